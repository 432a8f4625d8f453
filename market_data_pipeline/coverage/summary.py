"""Summarize how complete series are: days by state, gaps by verdict, breaks between days, days in doubt.

This reads ledgers and folders, and writes nothing. Pictures belong to ``coverage/calendar.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby, pairwise

from market_data_pipeline import clock
from market_data_pipeline.checks.continuity import Break, continuity, is_reported
from market_data_pipeline.coverage.calendar import SeriesCalendar, calendar_of
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, refresh_ledger
from market_data_pipeline.model.day import EMPTY, HELD, NOT_LISTED, DayRecord
from market_data_pipeline.model.findings import Finding, Severity, Verdict, shortened
from market_data_pipeline.model.needs import is_still_unlisted
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.model.states import DayState, doubts_of, state_of
from market_data_pipeline.universe import Universe

_NOTE = 200
"""Most characters of a day's note."""


@dataclass(frozen=True, slots=True)
class GapSum:
    """Sum of a series' gaps with one verdict.

    Attributes:
        rows: Number of rows with it.
        days: Number of days with such rows.
        newest: The newest of these days.
        evidence: Evidence for the verdict on the newest day.
    """

    verdict: Verdict
    rows: int
    days: int
    newest: date
    evidence: str


@dataclass(frozen=True, slots=True)
class SeriesCoverage:
    """Completeness of a series, in sums.

    Attributes:
        final: Number of final days.
        provisional: Number of provisional days. They will be fetched again.
        overdue: Days that have been provisional for too long.
        failed: Ledger rows of days that failed and are not stored.
        missing: Days that were never fetched.
        breaks: Breaks at midnight that no passing finding explains.
        explained: Number of breaks at midnight that passing findings explain, e.g. by an outage.
        gaps: Missing rows and flat candles inside stored days, by verdict.
        doubtful: Notes on stored days in doubt, in order of days.
    """

    key: SeriesKey
    final: int
    provisional: int
    overdue: tuple[date, ...]
    failed: tuple[DayRecord, ...]
    missing: tuple[date, ...]
    breaks: tuple[Break, ...]
    explained: int
    gaps: tuple[GapSum, ...]
    doubtful: Mapping[date, str]

    @property
    def days_missing(self) -> int:
        """Return the number of failed and missing days."""
        return len(self.failed) + len(self.missing)


def states_of(rows: Mapping[date, DayRecord], wanted: Sequence[tuple[date, date]], today: date) -> dict[date, DayState]:
    """Return the state of each day of a series that is on record or should be stored.

    A past day that is empty but not final is missing. Today is never missing, because it is still growing.

    Args:
        rows: The series' ledger, by day, without days whose not-listed record the listing contradicts.
        wanted: Spans of days to collect, both ends included, in order. The symbol was not listed between them.
        today: The current day in UTC.
    """
    states = {
        day: state_of(row.outcome, row.final, row.verdicts, row.integrity)
        for day, row in rows.items()
        if row.outcome != EMPTY or row.final
    }
    for first, last in wanted:
        for day in clock.days_between(first, min(last, today - clock.DAY)):
            states.setdefault(day, DayState.MISSING)
    for (_, last), (first, _) in pairwise(wanted):
        for day in clock.days_between(last + clock.DAY, first - clock.DAY):
            states.setdefault(day, DayState.NOT_LISTED)
    return states


def cover(
    key: SeriesKey,
    rows: Mapping[date, DayRecord],
    states: Mapping[date, DayState],
    wanted: Sequence[tuple[date, date]],
    today: date,
    provisional_days: int,
) -> SeriesCoverage:
    """Compute the coverage of a series.

    Args:
        rows: Its ledger, by day.
        states: States of its days, see :func:`states_of`.
        wanted: Spans of days that should be stored, both ends included. Today does not count.
        today: The current day in UTC.
        provisional_days: Number of days after which a provisional day is overdue.
    """
    expected = [day for first, last in wanted for day in clock.days_between(first, min(last, today - clock.DAY))]
    stored = [rows[day] for day in expected if day in rows and rows[day].outcome == HELD]
    provisional = [row.day for row in stored if not row.final]
    breaks = continuity(key, rows, today)
    open_breaks = tuple(found for found in breaks if not is_reported(key, found, rows, _passes))
    return SeriesCoverage(
        key,
        len(stored) - len(provisional),
        len(provisional),
        tuple(day for day in provisional if (today - day).days > provisional_days),
        tuple(rows[day] for day in expected if states.get(day) is DayState.FAILED),
        tuple(day for day in expected if states.get(day) is DayState.MISSING),
        open_breaks,
        len(breaks) - len(open_breaks),
        sum_of_gaps(rows.values()),
        {day: "; ".join(doubts) for day, row in sorted(rows.items()) if (doubts := doubts_of(row))},
    )


def sum_of_gaps(rows: Iterable[DayRecord]) -> tuple[GapSum, ...]:
    """Sum the gaps of days by verdict, in the order of precedence of verdicts."""
    found: dict[str, list[tuple[date, Finding]]] = {}
    for row in rows:
        if row.outcome in (HELD, EMPTY) and row.verdicts:
            for finding in row.findings_list():
                if finding.check == "gaps":
                    found.setdefault(finding.rule, []).append((row.day, finding))
    return tuple(_sum_of(verdict, found[verdict]) for verdict in Verdict if verdict in found)


def _sum_of(verdict: Verdict, found: Sequence[tuple[date, Finding]]) -> GapSum:
    newest, last = max(found, key=lambda one: one[0])
    rows = sum(finding.count for _, finding in found)
    return GapSum(verdict, rows, len({day for day, _ in found}), newest, last.evidence)


def _passes(finding: Finding) -> bool:
    return finding.severity is Severity.INFO


@dataclass(frozen=True, slots=True)
class Surveyed:
    """Coverage and calendar of a series.

    Attributes:
        coverage: Sums, and the days that need attention.
        calendar: State of each day.
    """

    coverage: SeriesCoverage
    calendar: SeriesCalendar


def survey(layout: Layout, universe: Universe, keys: Iterable[SeriesKey], provisional_days: int) -> Iterator[Surveyed]:
    """Yield coverage and calendar of each series.

    A missing or outdated ledger is rebuilt from the footers in memory. Its next writer stores it. A series that is no
    longer collected has no missing days.

    Args:
        universe: The series and days to collect.
        keys: The series.
        provisional_days: Number of days after which a provisional day is overdue.

    Raises:
        UsageError: the universe does not have the start of a series.
    """
    today = clock.today()
    for key in keys:
        ledger = Ledger.read(layout.ledger(key))
        refresh_ledger(ledger, layout, key)
        # The listing may now cover a day that was not listed at the time of the request.
        listing = universe.listing(key)
        rows = {
            day: row for day, row in ledger.rows.items() if row.outcome != NOT_LISTED or is_still_unlisted(row, listing)
        }
        wanted = universe.spans(key) if key in universe else []
        states = states_of(rows, wanted, today)
        coverage = cover(key, rows, states, wanted, today, provisional_days)
        verdicts = {gap.verdict.value: gap.rows for gap in coverage.gaps}
        calendar = calendar_of(key, states, verdicts, dict(_notes(rows.values(), states, coverage.doubtful)))
        yield Surveyed(coverage, calendar)


def _notes(
    rows: Iterable[DayRecord], states: Mapping[date, DayState], doubtful: Mapping[date, str]
) -> Iterator[tuple[date, str]]:
    for row in rows:
        state, note = states.get(row.day), ""
        if state is DayState.FAILED:
            note = ": ".join(filter(None, (row.failure, row.reason)))
        elif state in (DayState.INCOMPLETE, DayState.FAULTY, DayState.OUTAGE, DayState.HEALED):
            gaps = sorted(
                (found for found in row.findings_list() if found.check == "gaps"), key=lambda found: found.rule
            )
            parts = []
            for rule, some in groupby(gaps, key=lambda found: found.rule):
                findings = list(some)
                parts.append(f"{sum(found.count for found in findings):,} rows {rule} ({findings[0].evidence})")
            note = "; ".join(parts)
        if text := "; ".join(filter(None, (note, doubtful.get(row.day)))):
            yield row.day, shortened(text, _NOTE)
