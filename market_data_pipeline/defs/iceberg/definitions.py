"""The asset ``binance/<market>/<market>_iceberg``: the market's Iceberg tables, with a check against the lake.

It exists if the extra ``iceberg`` is installed. Code that runs inside the asset does not belong here.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import dagster as dg

from market_data_pipeline.defs.ingestion.definitions import OWNER
from market_data_pipeline.defs.keys import EQUALS_LAKE, iceberg_key_of
from market_data_pipeline.defs.platform.heartbeat import HEARTBEAT
from market_data_pipeline.model.places import is_object
from market_data_pipeline.model.series import Market
from market_data_pipeline.settings import Settings


def can_publish(settings: Settings) -> bool:
    """Return True if the extra ``iceberg`` is installed, and the lake is in a folder."""
    return find_spec("pyiceberg") is not None and not is_object(settings.root)


def build_iceberg_asset(market: Market, settings: Settings) -> dg.AssetsDefinition:
    """Return the asset of a market's Iceberg tables."""
    asset_key = iceberg_key_of(market)
    check = dg.AssetCheckSpec(
        EQUALS_LAKE,
        asset=asset_key,
        description="The tables have the rows of the lake.\n\nRows of all series are compared by metadata. Rows and "
        "sums of a few series, other ones each time, are read from both sides and compared.",
    )

    @dg.asset(
        key=asset_key,
        check_specs=[check],
        required_resource_keys={HEARTBEAT},
        group_name=f"{market.value}_iceberg",
        kinds={"iceberg"},
        owners=[OWNER],
        tags={"market": market.value},
        description=(
            f"Iceberg tables of Binance {market.value}, for Spark, Trino, ClickHouse and other engines.\n\nOne table "
            f"per data type, such as `binance_{market.value}.klines`. A run publishes what the lake has now, and "
            "removes old snapshots. On the command line, `market-data publish` does the same."
        ),
    )
    def iceberg(context: dg.AssetExecutionContext) -> Iterator[Any]:
        from market_data_pipeline.defs.iceberg.run import publish_market
        from market_data_pipeline.defs.platform.faults import failing_in_words

        with failing_in_words():
            yield from publish_market(context, market, settings)

    return iceberg
