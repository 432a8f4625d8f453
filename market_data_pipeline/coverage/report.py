"""The truth report of a universe: conditions, gaps, replaced files and disagreements, as one self-contained page.

The page has no script and needs no network. Reading ledgers and records does not belong here (``cli/report.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from market_data_pipeline import clock
from market_data_pipeline.coverage.calendar import LOOKS
from market_data_pipeline.coverage.condition import DayCondition
from market_data_pipeline.coverage.summary import GapSum, sum_of_gaps
from market_data_pipeline.model.day import EMPTY, HELD, DayRecord
from market_data_pipeline.model.findings import VERDICT_SEVERITY, Severity, Verdict, shortened
from market_data_pipeline.model.reconciliation import DayReconciled
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.model.states import EXPLAINED, Condition, DayState

_MOST_LINES = 500
"""Most lines of a table. The line after them names the query for the rest."""

_MOST_TEXT = 400
"""Most characters of an evidence."""

_REPLACED = "replaced"
"""Rule of the finding on a day whose archive was replaced."""

_LOOKS = {
    Condition.AVAILABLE: (LOOKS[DayState.FINAL], "final and complete"),
    Condition.EXPLAINED: (LOOKS[DayState.OUTAGE], "final; the source does not have the missing rows either"),
    Condition.PENDING: (LOOKS[DayState.PROVISIONAL], "stored from REST, or the day is not over"),
    Condition.DEGRADED: (
        LOOKS[DayState.INCOMPLETE],
        "stored, but rows are missing unexplained, or the file is in doubt",
    ),
    Condition.MISSING: (LOOKS[DayState.MISSING], "not stored, although the symbol was listed"),
}
"""Colours of a condition, those of a state in the calendar, and its meaning."""


@dataclass(frozen=True, slots=True)
class ConditionRun:
    """Consecutive days with the same condition, reason and evidence, both ends included."""

    first: date
    last: date
    condition: Condition
    reason: str
    evidence: str

    @property
    def days(self) -> int:
        """Return the number of days."""
        return (self.last - self.first).days + 1


@dataclass(frozen=True, slots=True)
class GapLine:
    """Missing or flat rows of one day with one verdict."""

    day: date
    verdict: str
    rows: int
    evidence: str

    @property
    def is_explained(self) -> bool:
        """Return True if nothing is left to find out."""
        return self.verdict in EXPLAINED


@dataclass(frozen=True, slots=True)
class SeriesReport:
    """The part of the report on one series.

    Attributes:
        days: Number of days by condition.
        runs: Days that are not available, in runs, in order. Days before a listing are left out.
        sums: Gaps by verdict.
        gaps: Gaps of each day, without quiet rows.
        replaced: Days whose file was replaced or waits for it, each with a text.
        compared: Days that were compared with their source, in order.
    """

    key: SeriesKey
    first: date | None
    last: date | None
    days: Mapping[Condition, int]
    runs: tuple[ConditionRun, ...]
    sums: tuple[GapSum, ...]
    gaps: tuple[GapLine, ...]
    replaced: tuple[tuple[date, str], ...]
    compared: tuple[DayReconciled, ...]


def series_report(
    key: SeriesKey, days: Sequence[DayCondition], rows: Iterable[DayRecord], compared: Iterable[DayReconciled]
) -> SeriesReport:
    """Build the report on one series.

    Args:
        days: Condition of each day, in order.
        rows: The series' ledger.
        compared: The days on record that were compared with their source.
    """
    ordered = sorted(rows, key=lambda row: row.day)
    return SeriesReport(
        key,
        days[0].day if days else None,
        days[-1].day if days else None,
        Counter(one.condition for one in days),
        tuple(_runs(one for one in days if one.condition is not Condition.AVAILABLE and one.reason != "not_listed")),
        sum_of_gaps(ordered),
        tuple(_gaps(ordered)),
        tuple(_replaced(ordered)),
        tuple(sorted(compared, key=lambda one: one.day)),
    )


def _runs(days: Iterable[DayCondition]) -> list[ConditionRun]:
    runs: list[ConditionRun] = []
    for one in days:
        last = runs[-1] if runs else None
        if last and (last.last + clock.DAY, last.condition, last.reason, last.evidence) == (
            one.day,
            one.condition,
            one.reason,
            one.evidence,
        ):
            runs[-1] = ConditionRun(last.first, one.day, last.condition, last.reason, last.evidence)
        else:
            runs.append(ConditionRun(one.day, one.day, one.condition, one.reason, one.evidence))
    return runs


def _gaps(rows: Iterable[DayRecord]) -> Iterator[GapLine]:
    for row in rows:
        if row.outcome in (HELD, EMPTY) and row.verdicts not in ("", Verdict.QUIET):
            for finding in row.findings_list():
                if finding.check == "gaps" and finding.rule != Verdict.QUIET:
                    yield GapLine(row.day, finding.rule, finding.count, finding.evidence or finding.message)


def _replaced(rows: Iterable[DayRecord]) -> Iterator[tuple[date, str]]:
    for row in rows:
        if row.replaced_by is not None:
            why = ": ".join(filter(None, (row.failure, row.reason)))
            yield row.day, f"another archive is published, and {f'was refused ({why})' if why else 'must be fetched'}"
        if _REPLACED in row.findings:
            for finding in row.findings_list():
                if finding.rule == _REPLACED:
                    yield row.day, f"replaced, with other rows: {finding.evidence or finding.message}"


def report_page(reports: Sequence[SeriesReport], root: str, made_at: datetime) -> str:
    """Render the report as HTML, with a light and a dark colour scheme.

    Args:
        reports: The series, in the order of the page.
        root: Folder of the lake.
        made_at: Time shown on the page (UTC).
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, keep_trailing_newline=True
    )
    templates.filters["short"] = lambda text: shortened(text, _MOST_TEXT)
    days: Counter[Condition] = Counter()
    for one in reports:
        days.update(one.days)
    sums = _verdicts(reports)
    return templates.get_template("report.html.j2").render(
        root=root,
        made_at=f"{made_at:%Y-%m-%d %H:%M}",
        looks=_LOOKS,
        days=days,
        total=sum(days.values()),
        reports=reports,
        most=_MOST_LINES,
        sums=sums,
        sections=[
            ("Days that are not available", "quality.condition", *_days(reports)),
            ("Gaps", "quality.gaps", *_gap_lines(reports)),
            ("Replaced files", "quality.findings", *_replaced_lines(reports)),
            ("Disagreements", "quality.reconciliation_differences", *_disagreements(reports)),
        ],
        compared=_compared(reports),
    )


def _verdicts(reports: Iterable[SeriesReport]) -> list[Mapping[str, Any]]:
    """Return the rows and days of all series by verdict, in the order of precedence."""
    rows: Counter[str] = Counter()
    days: Counter[str] = Counter()
    for gap in (gap for one in reports for gap in one.sums):
        rows[gap.verdict] += gap.rows
        days[gap.verdict] += gap.days
    return [
        {"verdict": verdict, "rows": rows[verdict], "days": days[verdict], "explained": verdict in EXPLAINED}
        for verdict in Verdict
        if days[verdict]
    ]


_Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _days(reports: Iterable[SeriesReport]) -> _Table:
    order = list(_LOOKS)[::-1]
    found = [(one.key, run) for one in reports for run in one.runs]
    found.sort(key=lambda pair: (order.index(pair[1].condition), -pair[1].last.toordinal()))
    lines: list[tuple[str, ...]] = [
        (key.short, _when(run.first, run.last), f"{run.days:,}", run.condition, run.reason, run.evidence)
        for key, run in found
    ]
    return ("series", "days", "number", "condition", "reason", "evidence"), lines


def _gap_lines(reports: Iterable[SeriesReport]) -> _Table:
    worst = [Severity.ERROR, Severity.WARN, Severity.INFO]
    found = [(one.key, gap) for one in reports for gap in one.gaps]
    found.sort(key=lambda pair: (worst.index(VERDICT_SEVERITY[Verdict(pair[1].verdict)]), -pair[1].day.toordinal()))
    lines: list[tuple[str, ...]] = [
        (
            key.short,
            str(gap.day),
            f"{gap.rows:,}",
            gap.verdict,
            "explained" if gap.is_explained else "not explained",
            gap.evidence,
        )
        for key, gap in found
    ]
    return ("series", "day", "rows", "verdict", "", "evidence"), lines


def _replaced_lines(reports: Iterable[SeriesReport]) -> _Table:
    found = sorted(((day, one.key, text) for one in reports for day, text in one.replaced), reverse=True)
    lines: list[tuple[str, ...]] = [(key.short, str(day), text) for day, key, text in found]
    return ("series", "day", "what happened"), lines


def _disagreements(reports: Iterable[SeriesReport]) -> _Table:
    lines: list[tuple[str, ...]] = [
        (
            one.key.short,
            f"{difference.open_time:%Y-%m-%d %H:%M}",
            difference.column,
            _number(difference.klines),
            _number(difference.rebuilt),
            " ".join(filter(None, (difference.reason, difference.ids))) or "not explained",
        )
        for one in reports
        for day in reversed(one.compared)
        for difference in day.differences
    ]
    lines.sort(key=lambda line: line[-1] != "not explained")
    return ("series", "candle", "column", "klines", "rebuilt from source", "reason"), lines


def _compared(reports: Iterable[SeriesReport]) -> Mapping[str, int]:
    found = [day for one in reports for day in one.compared]
    return {
        "days": len(found),
        "bars": sum(day.bars for day in found),
        "differing": sum(day.differing for day in found),
        "unexplained": sum(day.unexplained for day in found),
    }


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.10g}"


def _when(first: date, last: date) -> str:
    return str(first) if first == last else f"{first} to {last}"
