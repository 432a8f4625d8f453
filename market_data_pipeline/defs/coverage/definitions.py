"""The asset ``binance/<market>/<market>_coverage``: the stored days of a market, with its standing checks.

It is an unpartitioned asset of its own. Unpartitioned checks on partitioned assets join every backfill, leave planned
rows for each day, and are blanked by each materialization. Code that runs inside the asset does not belong here.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from market_data_pipeline.defs.ingestion.definitions import OWNER
from market_data_pipeline.defs.keys import coverage_key_of
from market_data_pipeline.defs.platform.heartbeat import HEARTBEAT
from market_data_pipeline.model.series import Market
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

_CHECKS: Mapping[str, str] = {
    "missing_days": "Every day of every series was fetched.\n\nA series runs from its start in the universe to "
    "yesterday.",
    "failed_days": "No requested day has failed.",
    "doubtful_days": "No stored day is in doubt.\n\nA day is in doubt if its archive was replaced and the new one is "
    "not stored, if its checksum does not match, or if its integrity check fails.",
    "provisional_days": "No day has been provisional for too long.\n\nA day becomes final when its archive is "
    "published and verified.",
    "gaps": "Every gap and every run of flat candles in the stored days has an explanation.\n\nThe verdicts are those "
    "of the days' own `gaps` checks. The whole market is compared, so that `suspended` differs from `quiet`.",
    "continuity": "Each final day continues where the previous day ended.\n\nIt starts with the next candle or the "
    "next trade id, or the checks of both days explain the gap, e.g. an outage over midnight.",
}


def build_coverage_asset(market: Market, settings: Settings, universe: Universe) -> dg.AssetsDefinition:
    """Return the coverage asset of a market, with its standing checks."""
    asset_key = coverage_key_of(market)

    @dg.asset(
        key=asset_key,
        check_specs=[
            dg.AssetCheckSpec(name, asset=asset_key, description=description) for name, description in _CHECKS.items()
        ],
        required_resource_keys={HEARTBEAT},
        group_name=f"{market.value}_coverage",
        kinds={"binance"},
        owners=[OWNER],
        tags={"market": market.value},
        description=(
            f"Stored days of Binance {market.value}, by series.\n\nDays are final, provisional, failed or missing. "
            "The numbers come from the ledgers and cost no request. In SQL, query the schema `quality`. On the command "
            "line, `market-data coverage` prints the same and draws a calendar of every series."
        ),
    )
    def coverage(context: dg.AssetExecutionContext) -> Iterator[Any]:
        from market_data_pipeline.defs.coverage.run import look_at
        from market_data_pipeline.defs.platform.faults import failing_in_words

        with failing_in_words():
            yield from look_at(context, market, settings, universe)

    return coverage
