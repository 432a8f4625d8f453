"""The asset ``binance/<market>/coverage``: what is held, and the standing checks of the market's series.

It is unpartitioned and of its own: unpartitioned checks on partitioned assets are pulled into every backfill, leave
planned rows for each day, and are blanked by each materialization.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import dagster as dg

from market_data_pipeline import clock
from market_data_pipeline.defs.assets import OWNER
from market_data_pipeline.defs.events import iso_time, spans
from market_data_pipeline.defs.runs import LIFE
from market_data_pipeline.judging import judge_flat_candles
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.quality.standing import Break, SeriesCoverage, cover
from market_data_pipeline.series import EXCHANGE, Market, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

SHOWN_SERIES = 200
SHOWN_BREAKS = 50


def coverage_key(market: Market) -> dg.AssetKey:
    """Asset key of a market's coverage, e.g. ``binance/spot/coverage``."""
    return dg.AssetKey([EXCHANGE, market.value, "coverage"])


def build_coverage_asset(market: Market, settings: Settings, universe: Universe) -> dg.AssetsDefinition:
    """The coverage of a market, with its standing checks ``missing_days`` and ``continuity``."""
    asset_key = coverage_key(market)
    layout = Layout(settings.root)

    @dg.asset(
        key=asset_key,
        check_specs=[
            dg.AssetCheckSpec(
                "missing_days",
                asset=asset_key,
                description="Every series of the market holds every day from its start in the universe to yesterday.",
            ),
            dg.AssetCheckSpec(
                "continuity",
                asset=asset_key,
                description="Each settled day goes on where the day before ended: the next candle, the next trade id.",
            ),
        ],
        required_resource_keys={LIFE},
        group_name=f"{market.value}_coverage",
        kinds={"binance"},
        owners=[OWNER],
        tags={"market": market.value},
        description=(
            f"What is held of Binance {market.value}, by series: days final, provisional, failed and missing. Read "
            "from the ledgers, so it costs no request. SQL knows the same as `quality`; `market-data status` prints it."
        ),
    )
    def coverage() -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster knows the bare class only
        judged = judge_flat_candles(layout, market)
        covered = [
            cover(key, Ledger.read(layout.ledger(key)).rows, universe.days(key), clock.today())
            for key in universe.series()
            if key.market is market
        ]
        return dg.MaterializeResult(
            metadata={
                "series": len(covered),
                "days held": sum(one.final + one.provisional for one in covered),
                "days provisional": sum(one.provisional for one in covered),
                "days missing": sum(one.lacking for one in covered),
                "days judged anew": judged.days,
                "coverage": dg.MetadataValue.md(coverage_markdown(covered)),
            },
            check_results=[missing_days_result(covered), continuity_result(covered)],
        )

    return coverage


def coverage_markdown(covered: Sequence[SeriesCoverage]) -> str:
    """A table by series, those that lack most first."""
    head = ["series", "final", "provisional", "failed", "missing", "which"]
    ordered = sorted(covered, key=lambda one: (-one.lacking, one.key))
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [
        f"| {one.key} | {one.final} | {one.provisional} | {len(one.failed)} | {len(one.missing)} "
        f"| {spans([*one.failed, *one.missing])} |"
        for one in ordered[:SHOWN_SERIES]
    ]
    if len(ordered) > SHOWN_SERIES:
        lines.append(f"\n… and {len(ordered) - SHOWN_SERIES} series more")
    return "\n".join(lines)


def missing_days_result(covered: Sequence[SeriesCoverage]) -> dg.AssetCheckResult:
    """The verdict on days that are not there: a warning, with the way to bring them."""
    lacking = [one for one in covered if one.lacking]
    days = sum(one.lacking for one in lacking)
    return dg.AssetCheckResult(
        check_name="missing_days",
        passed=not lacking,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"{days} days of {len(lacking)} series are not held. `market-data sync` brings them, or a backfill in the "
            "UI; those that failed say why in their integrity check."
            if lacking
            else "Every day up to yesterday is held."
        ),
        metadata={"days": days, "lacking": dg.MetadataValue.md(coverage_markdown(lacking))} if lacking else {"days": 0},
    )


def continuity_result(covered: Sequence[SeriesCoverage]) -> dg.AssetCheckResult:
    """The verdict on midnights: an error where rows stand on both sides, else a warning."""
    breaks = [(one.key, found) for one in covered for found in one.breaks]
    overlaps = [found for _, found in breaks if found.overlap]
    table = [_break_record(key, found) for key, found in breaks[:SHOWN_BREAKS]]
    return dg.AssetCheckResult(
        check_name="continuity",
        passed=not breaks,
        severity=dg.AssetCheckSeverity.ERROR if overlaps else dg.AssetCheckSeverity.WARN,
        description=(
            f"{len(breaks)} midnights are not crossed: {len(breaks) - len(overlaps)} where rows lack, {len(overlaps)} "
            "where rows stand on both sides. The gaps check of the days around tells what the exchange left out."
            if breaks
            else "Each settled day goes on where the day before ended."
        ),
        metadata={"breaks": len(breaks), **({"midnights": dg.MetadataValue.table(table)} if table else {})},
    )


def _break_record(key: SeriesKey, found: Break) -> dg.TableRecord:
    said: Callable[[int], str] = iso_time if key.interval else str
    kind = "overlap" if found.overlap else "hole"
    return dg.TableRecord(
        {
            "series": str(key),
            "day": found.day.isoformat(),
            "kind": kind,
            "expected": said(found.expected),
            "found": said(found.found),
        }
    )
