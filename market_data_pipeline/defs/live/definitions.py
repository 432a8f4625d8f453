"""The external assets ``binance/<market>/<market>_live``, their check, and the sensor that observes the live feed.

The feed is a process of its own, and Dagster records one observation a minute and market, never one per candle. Code of
a tick does not belong here.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Sequence

import dagster as dg

from market_data_pipeline.defs.ingestion.definitions import OWNER
from market_data_pipeline.defs.keys import LIVE_EQUALS_ARCHIVE, live_key_of
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import Market
from market_data_pipeline.settings import Settings

_SECONDS, _SECONDS_WITHOUT_FEED = 60, 600


def build_live_assets(markets: Sequence[Market]) -> list[dg.AssetSpec]:
    """Return the external asset of each market."""
    return [
        dg.AssetSpec(
            live_key_of(market),
            group_name=f"{market.value}_live",
            kinds={"binance"},
            owners=[OWNER],
            tags={"market": market.value},
            description=(
                f"Closed candles and trades of Binance {market.value}, within a moment.\n\nThe command "
                "`market-data live` stores them. The sensor `live_feed` observes it each minute."
            ),
        )
        for market in markets
    ]


def build_live_checks(markets: Sequence[Market], settings: Settings) -> list[dg.AssetChecksDefinition]:
    """Return the check of each market."""
    return [_build_check(market, settings) for market in markets]


def _build_check(market: Market, settings: Settings) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        name=LIVE_EQUALS_ARCHIVE,
        asset=live_key_of(market),
        description="The archive changed no live row.\n\nThe feed compares its rows with each day that becomes final.",
    )
    def live_equals_archive() -> dg.AssetCheckResult:
        from market_data_pipeline.defs.live.run import check_result

        return check_result(market, settings)

    return live_equals_archive


def build_live_sensor(markets: Sequence[Market], settings: Settings) -> dg.SensorDefinition:
    """Return the sensor ``live_feed``. It looks each minute, and each ten minutes if no feed ever ran until now."""
    ran = Layout(settings.root).feed_status.exists()

    @dg.sensor(
        name="live_feed",
        minimum_interval_seconds=_SECONDS if ran else _SECONDS_WITHOUT_FEED,
        description=(
            "Observe the live feed.\n\nReads `live/status.json`, and records lateness, gaps and reconnects of each "
            "market. Evaluates `live_equals_archive` when the feed has compared a day with the archive."
        ),
    )
    def live_feed(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from market_data_pipeline.defs.live.run import observe

        return observe(context.cursor, markets, settings)

    return live_feed
