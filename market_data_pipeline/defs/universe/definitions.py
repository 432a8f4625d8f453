"""The asset ``binance/<market>/<market>_exchange_info``: daily snapshots of status, rules and dates of all symbols.

Code that runs inside the asset does not belong here.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Iterator
from typing import Any

import dagster as dg

from market_data_pipeline.defs.ingestion.definitions import OWNER
from market_data_pipeline.defs.keys import exchange_info_key_of
from market_data_pipeline.model.series import Market
from market_data_pipeline.settings import Settings


def build_exchange_info_asset(market: Market, settings: Settings) -> dg.AssetsDefinition:
    """Return the asset of a market's snapshots."""

    @dg.asset(
        key=exchange_info_key_of(market),
        group_name=f"{market.value}_universe",
        kinds={"binance"},
        owners=[OWNER],
        tags={"market": market.value},
        description=(
            f"Status, trading rules and dates of all symbols of Binance {market.value}, one snapshot per day.\n\n"
            "Binance has no history of them, so a day without a snapshot stays without one. In SQL, query "
            "`universe.exchange_info`."
        ),
    )
    def exchange_info(context: dg.AssetExecutionContext) -> Iterator[Any]:
        from market_data_pipeline.defs.platform.faults import failing_in_words
        from market_data_pipeline.defs.universe.run import take_snapshot

        with failing_in_words():
            yield take_snapshot(context, market, settings)

    return exchange_info
