"""Runs of a market's coverage: read all of its series and evaluate the standing checks.

Counting days does not belong here; see ``coverage.summary``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import date
from typing import Any

import dagster as dg

from market_data_pipeline.checks.continuity import Break
from market_data_pipeline.coverage.calendar import calendar_markdown
from market_data_pipeline.coverage.summary import GapSum, SeriesCoverage, survey
from market_data_pipeline.defs.events import gaps_evaluations, iso_time, restored_day_events, spans
from market_data_pipeline.errors import SeriesBusyError
from market_data_pipeline.ingest.run import ingest
from market_data_pipeline.ingest.sources import Sources
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.maintenance.flat_candles import classify_with_rest
from market_data_pipeline.model.datasets import keyed_by_time
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.findings import VERDICT_SEVERITY, Severity, shortened
from market_data_pipeline.model.outcomes import DayOutcome
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

logger = logging.getLogger(__name__)

_SHOWN_SERIES = 200
_SHOWN_ROWS = 50
_SHOWN_DAYS = 20
_SHOWN_TEXT = 200
"""Limits that bound the metadata of one event to about 60 kB. Every event stores its own copy."""


def look_at(context: dg.AssetExecutionContext, market: Market, settings: Settings, universe: Universe) -> Iterator[Any]:
    """Classify flat candles across the market, ask REST about them, and report the coverage to Dagster.

    Args:
        context: The context of the coverage asset.
        market: The market.
        settings: The location of the lake.
        universe: The days that the lake should have.
    """
    layout = Layout(settings.root)
    judged, stored_again = classify_with_rest(
        layout, market, universe.series(), lambda days: _fetched_again(days, layout, settings, universe)
    )
    yield from restored_day_events(context.instance, layout, stored_again)
    stored = {(one.key, one.day) for one in stored_again}
    others = {key: [day for day in days if (key, day) not in stored] for key, days in judged.verdicts.items()}
    yield from gaps_evaluations(context.instance, layout, others)
    keys = [key for key in universe.series() if key.market is market]
    surveyed = list(survey(layout, universe, keys, settings.provisional_days))
    covered = [one.coverage for one in surveyed]
    yield dg.MaterializeResult(
        metadata={
            "series": len(covered),
            "days stored": sum(one.final + one.provisional for one in covered),
            "days provisional": sum(one.provisional for one in covered),
            "days missing": sum(one.days_missing for one in covered),
            "days classified again": judged.days,
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
    """Fetch days again and yield those that were stored. Skip a series that another run is writing."""
    at_once = settings.model_copy(update={"lock_wait_seconds": 0})
    with closing(Sources(settings)) as sources:
        for key, days in wanted.items():
            listing = universe.listing(key)
            try:
                results = ingest(key, days, layout=layout, sources=sources, settings=at_once, listing=listing)
                yield from (result for result in results if isinstance(result, DayOutcome))
            except SeriesBusyError:
                logger.info(
                    "%s is being written by another run. The next run of coverage fetches its flat candles again.", key
                )


def coverage_markdown(covered: Sequence[SeriesCoverage]) -> str:
    """Return a Markdown table by series. Series with the most missing and failed days come first."""
    head = ["series", "final", "provisional", "failed", "missing", "days"]
    ordered = sorted(covered, key=lambda one: (-one.days_missing, one.key))
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [
        f"| {one.key} | {one.final} | {one.provisional} | {len(one.failed)} | {len(one.missing)} "
        f"| {spans([*(row.day for row in one.failed), *one.missing])} |"
        for one in ordered[:_SHOWN_SERIES]
    ]
    if len(ordered) > _SHOWN_SERIES:
        lines.append(f"\n… and {len(ordered) - _SHOWN_SERIES} series more")
    return "\n".join(lines)


def missing_days_result(covered: Sequence[SeriesCoverage]) -> dg.AssetCheckResult:
    """Return the check result for days that were never fetched: a warning, with the command that fetches them."""
    missing = {one.key: one.missing for one in covered if one.missing}
    days = sum(map(len, missing.values()))
    text = (
        f"{days} days of {len(missing)} series were never fetched. Run `market-data sync`, or start a backfill in the "
        "UI."
    )
    metadata = {"days": days, "missing": _days_table(missing)}
    return _result("missing_days", not days, text if days else "Every day up to yesterday was fetched.", metadata)


def failed_days_result(covered: Sequence[SeriesCoverage]) -> dg.AssetCheckResult:
    """Return the check result for requested days without a file: an error, with reasons and remedies."""
    failed = sorted(((one.key, row) for one in covered for row in one.failed), key=lambda found: found[1].day)
    table = _table([_failure(key, row) for key, row in failed[::-1]], _SHOWN_DAYS)
    metadata: dict[str, Any] = {"days": len(failed), "failed": table}
    # Reasons are long and mostly alike, so the table has none: show one reason for each kind.
    for key, row in failed:
        kind = row.failure or "failed"
        metadata[f"{kind}: newest reason"] = shortened(row.reason or "", _SHOWN_TEXT)
        metadata[f"{kind}: to recover"] = dg.MetadataValue.md(how_to_recover(key, row))
    text = (
        f"{len(failed)} days of {len({key for key, _ in failed})} series failed and are not in the lake. The metadata "
        f"lists the newest, at most {_SHOWN_DAYS}, and the way to recover each kind. List all of them: "
        "`market-data sql \"FROM quality.coverage WHERE outcome = 'failed'\"`."
    )
    return _result("failed_days", not failed, text if failed else "No requested day has failed.", metadata, _ERROR)


def _failure(key: SeriesKey, row: DayRecord) -> dict[str, str | int]:
    return {
        "series": str(key),
        "day": row.day.isoformat(),
        "kind": row.failure or "failed",
        "attempts": row.attempts,
    }


def how_to_recover(key: SeriesKey, row: DayRecord) -> str:
    """Return the remedy for a failed day as Markdown: a command, or advice to wait."""
    selection = f"--market {key.market} --data-type {key.data_type} --symbol {key.symbol}"
    interval = f" --interval {key.interval}" if key.interval else ""
    backfill = f"`market-data backfill {selection}{interval} --from {row.day} --through {row.day}`"
    match row.failure:
        case "checksum" | "malformed" | "conflict":
            name = f"{key.symbol}-{key.interval or key.data_type}-{row.day}"
            return f"`market-data quarantine show {name}`, then `retry` or `accept`"
        case "absent":
            return f"`market-data universe refresh`, if the symbol was not listed. Otherwise wait, then {backfill}"
        case "unpublished":
            return f"None needed: the next archive replaces it. To fetch it now: {backfill}"
        case _:
            return backfill


def doubtful_days_result(covered: Sequence[SeriesCoverage]) -> dg.AssetCheckResult:
    """Return the check result for stored days in doubt: a warning that lasts as long as the doubt."""
    doubtful = [(one.key, day, doubt) for one in covered for day, doubt in one.doubtful.items()]
    doubtful.sort(key=lambda found: found[1], reverse=True)
    records = [
        {"series": str(key), "day": day.isoformat(), "doubt": shortened(doubt, _SHOWN_TEXT)}
        for key, day, doubt in doubtful
    ]
    text = (
        f"{len(doubtful)} stored days of {len({key for key, *_ in doubtful})} series are in doubt. The archive was "
        "replaced and the new one was refused or not fetched yet, you accepted a checksum that does not match, or "
        "the integrity check fails. The metadata lists the newest days. The check of each day has the details."
    )
    metadata = {"days": len(doubtful), "doubtful": _table(records, _SHOWN_ROWS)}
    return _result("doubtful_days", not doubtful, text if doubtful else "No stored day is in doubt.", metadata)


def provisional_days_result(covered: Sequence[SeriesCoverage], after: int) -> dg.AssetCheckResult:
    """Return the check result for days that are provisional for more than ``after`` days: a warning."""
    overdue = {one.key: one.overdue for one in covered if one.overdue}
    days = sum(map(len, overdue.values()))
    text = (
        f"{days} days of {len(overdue)} series have been provisional for more than {after} days. Their archive was "
        "not published, or has no checksum. They are stored as REST or the archive returned them, and stay usable. "
        "Set MARKET_DATA_PROVISIONAL_DAYS to change this limit."
    )
    none = f"No day has been provisional for more than {after} days."
    metadata = {"days": days, "reported after days": after, "overdue": _days_table(overdue)}
    return _result("provisional_days", not days, text if days else none, metadata)


def gaps_result(covered: Sequence[SeriesCoverage]) -> dg.AssetCheckResult:
    """Return the check result for gaps inside days: the worst severity of all, with sums by series."""
    ranks = list(Severity)
    sums = [(one.key, gap) for one in covered for gap in one.gaps]
    sums.sort(key=lambda found: (-ranks.index(VERDICT_SEVERITY[found[1].verdict]), -found[1].newest.toordinal()))
    worst = max((VERDICT_SEVERITY[gap.verdict] for _, gap in sums), key=ranks.index, default=Severity.INFO)
    rows: dict[str, int] = {}
    for _, gap in sums:
        rows[gap.verdict] = rows.get(gap.verdict, 0) + gap.rows
    by_verdict = ", ".join(f"{number:,} {verdict}" for verdict, number in rows.items())
    text = f'Rows by verdict: {by_verdict}. List each range with its evidence: `market-data sql "FROM quality.gaps"`.'
    none = "The stored days have no gaps and no flat candles."
    metadata = {**rows, "by series": _table([_gap_record(key, gap) for key, gap in sums], _SHOWN_ROWS)}
    severity = dg.AssetCheckSeverity.WARN if worst is Severity.WARN else _ERROR
    return _result("gaps", worst is Severity.INFO, text if sums else none, metadata, severity)


def _gap_record(key: SeriesKey, gap: GapSum) -> dict[str, str | int]:
    return {
        "series": str(key),
        "verdict": gap.verdict.value,
        "rows": gap.rows,
        "days": gap.days,
        "newest": gap.newest.isoformat(),
        "evidence there": shortened(gap.evidence, _SHOWN_TEXT),
    }


def continuity_result(covered: Sequence[SeriesCoverage]) -> dg.AssetCheckResult:
    """Return the check result for midnights: an error for rows on both sides, else a warning.

    Midnights that the checks of the days explain, e.g. by an outage, pass and are counted separately.
    """
    breaks = [(one.key, found) for one in covered for found in one.breaks]
    overlaps = [found for _, found in breaks if found.overlap]
    explained = sum(one.explained for one in covered)
    excused = "that the checks of the adjacent days explain, e.g. by an outage"
    if breaks:
        text = (
            f"{len(breaks)} midnights are not continuous: {len(breaks) - len(overlaps)} with missing rows, "
            f"{len(overlaps)} with overlapping rows. The `gaps` checks of the adjacent days list missing rows."
        )
        text += f" Not counted: {explained} {excused}." if explained else ""
    else:
        but = f", except {explained} midnights {excused}" if explained else ""
        text = f"Each final day continues where the previous day ended{but}."
    table = _table([_break_record(key, found) for key, found in breaks], _SHOWN_ROWS)
    metadata = {"breaks": len(breaks), "explained": explained, "midnights": table}
    return _result("continuity", not breaks, text, metadata, _ERROR if overlaps else dg.AssetCheckSeverity.WARN)


def _break_record(key: SeriesKey, found: Break) -> dict[str, str | int]:
    shown: Callable[[int], str] = iso_time if keyed_by_time(key.data_type) else str
    return {
        "series": str(key),
        "day": found.day.isoformat(),
        "kind": "overlap" if found.overlap else "gap",
        "expected": shown(found.expected),
        "found": shown(found.found),
    }


_ERROR = dg.AssetCheckSeverity.ERROR


def _result(
    name: str,
    passed: bool,
    text: str,
    metadata: Mapping[str, Any],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
) -> dg.AssetCheckResult:
    metadata = {name: value for name, value in metadata.items() if value is not None}
    return dg.AssetCheckResult(passed=passed, check_name=name, description=text, metadata=metadata, severity=severity)


def _days_table(days: Mapping[SeriesKey, Sequence[date]]) -> dg.TableMetadataValue | None:
    return _table(
        [{"series": str(key), "days": len(some), "spans": spans(some)} for key, some in days.items()], _SHOWN_ROWS
    )


def _table(records: Sequence[Mapping[str, str | int]], most: int) -> dg.TableMetadataValue | None:
    """Return a table of records, None without any. If records are left out, the last row has their number."""
    if not records:
        return None
    shown = [dg.TableRecord(dict(record)) for record in records[:most]]
    if len(records) > most:
        first, *others = records[0]
        shown.append(dg.TableRecord({first: f"… and {len(records) - most} more", **dict.fromkeys(others, "")}))
    columns = [dg.TableColumn(name) for name in records[0]]
    return dg.MetadataValue.table(shown, schema=dg.TableSchema(columns=columns))
