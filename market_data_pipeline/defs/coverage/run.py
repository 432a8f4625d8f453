"""What a run does for the coverage of a market: a look at all of its series, and the results of the standing checks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import date
from typing import Any

import dagster as dg

from market_data_pipeline.checks.continuity import Break
from market_data_pipeline.coverage.calendar import calendar_markdown
from market_data_pipeline.coverage.summary import GapSum, SeriesCoverage, survey
from market_data_pipeline.defs.events import days_told_anew, gaps_told_anew, iso_time, spans
from market_data_pipeline.errors import SeriesBusyError
from market_data_pipeline.ingest import Sources, ingest
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.maintenance.flat_candles import classify_with_rest
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.findings import VERDICT_SEVERITY, Severity, shortened
from market_data_pipeline.model.outcomes import DayOutcome
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

logger = logging.getLogger(__name__)

SHOWN_SERIES = 200
SHOWN_ROWS = 50
SHOWN_FAILURES = 20
SHOWN_TEXT = 200
"""An event keeps its own copy of all that it shows: together it stays below some 60 KB."""


def look_at(context: dg.AssetExecutionContext, market: Market, settings: Settings, universe: Universe) -> Iterator[Any]:
    """Judge flat candles with the whole market in view, and REST's answer, and tell Dagster what is held of it.

    Args:
        context: Of the market's coverage.
        market: The market.
        settings: Where the lake is.
        universe: Which days should be held.
    """
    layout = Layout(settings.root)
    standstill = classify_with_rest(
        layout, market, universe.series(), lambda days: _fetched_again(days, layout, settings, universe)
    )
    judged = standstill.classified
    yield from days_told_anew(context.instance, layout, standstill.stored)
    stored = {(one.key, one.day) for one in standstill.stored}
    others = {key: [day for day in days if (key, day) not in stored] for key, days in judged.verdicts.items()}
    yield from gaps_told_anew(context.instance, layout, others)
    keys = [key for key in universe.series() if key.market is market]
    surveyed = list(survey(layout, universe, keys, settings.provisional_days))
    covered = [one.coverage for one in surveyed]
    yield dg.MaterializeResult(
        metadata={
            "series": len(covered),
            "days held": sum(one.final + one.provisional for one in covered),
            "days provisional": sum(one.provisional for one in covered),
            "days missing": sum(one.days_missing for one in covered),
            "days judged anew": judged.days,
            "calendar": dg.MetadataValue.md(calendar_markdown(one.calendar for one in surveyed)),
            "coverage": dg.MetadataValue.md(coverage_markdown(covered)),
        },
        check_results=[
            missing_days_result(covered),
            failed_days_result(covered),
            doubtful_days_result(covered),
            provisional_days_result(covered, settings.provisional_days),
            gaps_result(covered),
            continuity_result(covered),
        ],
    )


def _fetched_again(
    wanted: Mapping[SeriesKey, Sequence[date]], layout: Layout, settings: Settings, universe: Universe
) -> Iterator[DayOutcome]:
    """Fetch days again and yield those that were stored. A series that another run writes is left for next time."""
    at_once = settings.model_copy(update={"lock_wait_seconds": 0})
    with closing(Sources(settings)) as sources:
        for key, days in wanted.items():
            listing = universe.listing(key)
            try:
                results = ingest(key, days, layout=layout, sources=sources, settings=at_once, listing=listing)
                yield from (result for result in results if isinstance(result, DayOutcome))
            except SeriesBusyError:
                logger.info("%s is being written by another run. Its flat candles are fetched the next time.", key)


def coverage_markdown(covered: Sequence[SeriesCoverage]) -> str:
    """A table by series, those that lack most first."""
    head = ["series", "final", "provisional", "failed", "missing", "which"]
    ordered = sorted(covered, key=lambda one: (-one.days_missing, one.key))
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [
        f"| {one.key} | {one.final} | {one.provisional} | {len(one.failed)} | {len(one.missing)} "
        f"| {spans([*(row.day for row in one.failed), *one.missing])} |"
        for one in ordered[:SHOWN_SERIES]
    ]
    if len(ordered) > SHOWN_SERIES:
        lines.append(f"\n… and {len(ordered) - SHOWN_SERIES} series more")
    return "\n".join(lines)


def missing_days_result(covered: Sequence[SeriesCoverage]) -> dg.AssetCheckResult:
    """The verdict on days that were never brought: a warning, with the way to bring them."""
    days = sum(len(one.missing) for one in covered)
    lacking = [one for one in covered if one.missing]
    metadata: dict[str, Any] = {"days": days}
    if days:
        metadata["missing"] = _days_table((one.key, one.missing) for one in lacking)
    return dg.AssetCheckResult(
        check_name="missing_days",
        passed=not days,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"{days} days of {len(lacking)} series were never brought. `market-data sync` brings them, or a backfill "
            "in the UI."
            if days
            else "Every day up to yesterday was brought."
        ),
        metadata=metadata,
    )


def failed_days_result(covered: Sequence[SeriesCoverage]) -> dg.AssetCheckResult:
    """The verdict on days that were asked for and are not held: an error, with the reasons and the way out of each."""
    failed = sorted(((one.key, row) for one in covered for row in one.failed), key=lambda found: found[1].day)
    newest = failed[::-1]
    metadata: dict[str, Any] = {"days": len(failed)}
    if failed:
        metadata["failed"] = _table([_failure(key, row) for key, row in newest], SHOWN_FAILURES)
    # A long text makes a table unreadable, and the days of a kind mostly have one reason.
    for key, row in failed:
        kind = row.failure or "failed"
        metadata[f"{kind}: newest reason"] = shortened(row.reason or "", SHOWN_TEXT)
        metadata[f"{kind}: to recover"] = dg.MetadataValue.md(how_to_recover(key, row))
    return dg.AssetCheckResult(
        check_name="failed_days",
        passed=not failed,
        severity=dg.AssetCheckSeverity.ERROR,
        description=(
            f"{len(failed)} days of {len({key for key, _ in failed})} series failed and are not held. The metadata has "
            f"the newest of them, at most {SHOWN_FAILURES}, and for each kind the way to recover. All of them: "
            "`market-data sql \"FROM quality.coverage WHERE outcome = 'failed'\"`."
            if failed
            else "No day that was asked for is without a file."
        ),
        metadata=metadata,
    )


def _failure(key: SeriesKey, row: DayRecord) -> dict[str, str | int]:
    return {
        "series": str(key),
        "day": row.day.isoformat(),
        "kind": row.failure or "failed",
        "attempts": row.attempts,
    }


def how_to_recover(key: SeriesKey, row: DayRecord) -> str:
    """What a person can do about a failed day: a command, as Markdown, or to wait."""
    asked = f"--market {key.market} --data-type {key.data_type} --symbol {key.symbol}"
    interval = f" --interval {key.interval}" if key.interval else ""
    backfill = f"`market-data backfill {asked}{interval} --from {row.day} --through {row.day}`"
    match row.failure:
        case "checksum" | "malformed" | "conflict":
            name = f"{key.symbol}-{key.interval or key.data_type}-{row.day}"
            return f"`market-data quarantine show {name}`, then `retry` or `accept`"
        case "absent":
            return f"`market-data universe refresh`, if it was not listed; else wait, then {backfill}"
        case "unpublished":
            return f"nothing: the archive brings it; or {backfill}"
        case _:
            return backfill


def doubtful_days_result(covered: Sequence[SeriesCoverage]) -> dg.AssetCheckResult:
    """The verdict on days that are held and not beyond doubt: a warning that stays as long as they are so."""
    doubtful = [(one.key, day, said) for one in covered for day, said in one.doubtful.items()]
    doubtful.sort(key=lambda found: found[1], reverse=True)
    records = [
        {"series": str(key), "day": day.isoformat(), "what": shortened(said, SHOWN_TEXT)}
        for key, day, said in doubtful[: SHOWN_ROWS + 1]
    ]
    metadata: dict[str, Any] = {"days": len(doubtful)}
    if doubtful:
        metadata["doubtful"] = _table(records, SHOWN_ROWS)
    return dg.AssetCheckResult(
        check_name="doubtful_days",
        passed=not doubtful,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"{len(doubtful)} days of {len({key for key, *_ in doubtful})} series are held, but the archive that "
            "replaced theirs was refused or not fetched yet, a person accepted a checksum that does not match, or the "
            "integrity check fails. The metadata has the newest; the day's own check has all that is known of it."
            if doubtful
            else "Every day that is held is of the archive that is published now, and proven."
        ),
        metadata=metadata,
    )


def provisional_days_result(covered: Sequence[SeriesCoverage], after: int) -> dg.AssetCheckResult:
    """The verdict on days that have been provisional for longer than some days: a warning."""
    days = sum(len(one.overdue) for one in covered)
    late = [one for one in covered if one.overdue]
    metadata: dict[str, Any] = {"days": days, "reported after days": after}
    if days:
        metadata["overdue"] = _days_table((one.key, one.overdue) for one in late)
    return dg.AssetCheckResult(
        check_name="provisional_days",
        passed=not days,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"{days} days of {len(late)} series have been provisional for more than {after} days: their archive was "
            "not published, or has no checksum. They are held as REST, or the archive, gave them, and stay usable; "
            "MARKET_DATA_PROVISIONAL_DAYS sets when this is reported."
            if days
            else f"No day has been provisional for more than {after} days."
        ),
        metadata=metadata,
    )


def gaps_result(covered: Sequence[SeriesCoverage]) -> dg.AssetCheckResult:
    """The verdict on what is missing inside of days: as grave as the gravest of them, with sums by series."""
    ranks = list(Severity)
    sums = [(one.key, gap) for one in covered for gap in one.gaps]
    sums.sort(key=lambda found: (-ranks.index(VERDICT_SEVERITY[found[1].verdict]), -found[1].newest.toordinal()))
    worst = max((VERDICT_SEVERITY[gap.verdict] for _, gap in sums), key=ranks.index, default=Severity.INFO)
    rows: dict[str, int] = {}
    for _, gap in sums:
        rows[gap.verdict] = rows.get(gap.verdict, 0) + gap.rows
    told = ", ".join(f"{number:,} {verdict}" for verdict, number in rows.items())
    metadata: dict[str, Any] = dict(rows)
    if sums:
        metadata["by series"] = _table([_gap_record(key, gap) for key, gap in sums], SHOWN_ROWS)
    return dg.AssetCheckResult(
        check_name="gaps",
        passed=worst is Severity.INFO,
        severity=dg.AssetCheckSeverity.WARN if worst is Severity.WARN else dg.AssetCheckSeverity.ERROR,
        description=(
            f'Rows by verdict: {told}. Each range with its evidence: `market-data sql "FROM quality.gaps"`.'
            if sums
            else "No row is missing, or stands still, inside of the days that are held."
        ),
        metadata=metadata,
    )


def _gap_record(key: SeriesKey, gap: GapSum) -> dict[str, str | int]:
    return {
        "series": str(key),
        "verdict": gap.verdict.value,
        "rows": gap.rows,
        "days": gap.days,
        "newest": gap.newest.isoformat(),
        "evidence there": shortened(gap.evidence, SHOWN_TEXT),
    }


def continuity_result(covered: Sequence[SeriesCoverage]) -> dg.AssetCheckResult:
    """The verdict on midnights: an error where rows stand on both sides, else a warning.

    Those that the days' own checks explain, e.g. by an outage over midnight, pass and are counted apart.
    """
    breaks = [(one.key, found) for one in covered for found in one.breaks]
    overlaps = [found for _, found in breaks if found.overlap]
    explained = sum(one.explained for one in covered)
    table = [_break_record(key, found) for key, found in breaks]
    excused = "that the checks of the days around explain, e.g. by an outage"
    if breaks:
        said = (
            f"{len(breaks)} midnights are not crossed: {len(breaks) - len(overlaps)} where rows lack, {len(overlaps)} "
            "where rows stand on both sides. The gaps check of the days around tells what the exchange left out."
        )
        said += f" Not counted: {explained} {excused}." if explained else ""
    else:
        but = f", but for {explained} midnights {excused}" if explained else ""
        said = f"Each settled day goes on where the day before ended{but}."
    return dg.AssetCheckResult(
        check_name="continuity",
        passed=not breaks,
        severity=dg.AssetCheckSeverity.ERROR if overlaps else dg.AssetCheckSeverity.WARN,
        description=said,
        metadata={
            "breaks": len(breaks),
            "explained": explained,
            **({"midnights": _table(table, SHOWN_ROWS)} if table else {}),
        },
    )


def _break_record(key: SeriesKey, found: Break) -> dict[str, str | int]:
    said: Callable[[int], str] = iso_time if key.interval else str
    return {
        "series": str(key),
        "day": found.day.isoformat(),
        "kind": "overlap" if found.overlap else "hole",
        "expected": said(found.expected),
        "found": said(found.found),
    }


def _days_table(days: Iterable[tuple[SeriesKey, Sequence[date]]]) -> dg.TableMetadataValue:
    """Days by series, at least one: how many, and which."""
    return _table([{"series": str(key), "days": len(some), "which": spans(some)} for key, some in days], SHOWN_ROWS)


def _table(records: Sequence[Mapping[str, str | int]], most: int) -> dg.TableMetadataValue:
    """A table of at least one record; where there are more than are shown, its last row says how many."""
    shown = [dg.TableRecord(dict(record)) for record in records[:most]]
    if len(records) > most:
        first, *others = records[0]
        shown.append(dg.TableRecord({first: f"… and {len(records) - most} more", **dict.fromkeys(others, "")}))
    columns = [dg.TableColumn(name) for name in records[0]]
    return dg.MetadataValue.table(shown, schema=dg.TableSchema(columns=columns))
