"""The asset ``binance/<market>/coverage``: what is held, and the standing checks of the market's series.

It is unpartitioned and of its own: unpartitioned checks on partitioned assets are pulled into every backfill, leave
planned rows for each day, and are blanked by each materialization.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from market_data_pipeline.defs.ingestion.definitions import OWNER
from market_data_pipeline.defs.platform.heartbeat import LIFE
from market_data_pipeline.model.series import EXCHANGE, Market
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

CHECKS: Mapping[str, str] = {
    "missing_days": "Every day of every series, from its start in the universe to yesterday, was brought.",
    "failed_days": "No day that was asked for is without a file.",
    "doubtful_days": "Every day that is held is beyond doubt: it is of the archive that is published now, matches its "
    "checksum, and passes the integrity check.",
    "provisional_days": "No day has been provisional for too long: its archive was published and verified.",
    "gaps": "Whatever is missing, or stands still, inside of the days that are held is explained: as the days' own "
    "gaps checks, and with the whole market in view, so that `suspended` is told from `quiet`.",
    "continuity": "Each settled day goes on where the day before ended, with the next candle or the next trade id; or "
    "the checks of both days say why it does not, e.g. an outage over midnight.",
}


def coverage_key(market: Market) -> dg.AssetKey:
    """Asset key of a market's coverage, e.g. ``binance/spot/coverage``."""
    return dg.AssetKey([EXCHANGE, market.value, "coverage"])


def build_coverage_asset(market: Market, settings: Settings, universe: Universe) -> dg.AssetsDefinition:
    """The coverage of a market, with its standing checks."""
    asset_key = coverage_key(market)

    @dg.asset(
        key=asset_key,
        check_specs=[
            dg.AssetCheckSpec(name, asset=asset_key, description=description) for name, description in CHECKS.items()
        ],
        required_resource_keys={LIFE},
        group_name=f"{market.value}_coverage",
        kinds={"binance"},
        owners=[OWNER],
        tags={"market": market.value},
        description=(
            f"What is held of Binance {market.value}, by series and day: final, provisional, failed and missing. Read "
            "from the ledgers, so it costs no request. SQL knows the same as `quality`; `market-data coverage` prints "
            "it, and draws a calendar of every series."
        ),
    )
    def coverage(context: dg.AssetExecutionContext) -> Iterator[Any]:
        from market_data_pipeline.defs.coverage.run import look_at
        from market_data_pipeline.defs.platform.faults import failing_in_words

        with failing_in_words():
            yield from look_at(context, market, settings, universe)

    return coverage
