"""How complete series are, in sums: days by state, gaps by verdict, breaks between days, days in doubt.

Reads ledgers and folders, and writes nothing. A picture of each day belongs to ``coverage/calendar.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby, pairwise

from market_data_pipeline import clock
from market_data_pipeline.checks.continuity import Break, continuity, is_told
from market_data_pipeline.coverage.calendar import SeriesCalendar, calendar_of
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, refresh_ledger
from market_data_pipeline.model.day import EMPTY, HELD, NOT_LISTED, DayRecord
from market_data_pipeline.model.findings import Finding, Severity, Verdict, shortened
from market_data_pipeline.model.needs import is_still_unlisted
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.model.states import DayState, doubts_of, state_of
from market_data_pipeline.universe import Universe

_DAY = timedelta(days=1)
_VERDICTS = frozenset(verdict.value for verdict in Verdict)

_NOTE = 200
"""Characters of what is said of a day."""


@dataclass(frozen=True, slots=True)
class GapSum:
    """What the gaps checks of a series' days found with one verdict.

    Attributes:
        verdict: The verdict.
        rows: Rows on which it was given.
        days: Days that have such rows.
        newest: The newest of them.
        evidence: What the verdict rests on there.
    """

    verdict: Verdict
    rows: int
    days: int
    newest: date
    evidence: str


@dataclass(frozen=True, slots=True)
class SeriesCoverage:
    """How complete a series is.

    Attributes:
        key: The series.
        final: Number of days that are held and settled.
        provisional: Number of days that are held and will be fetched again.
        overdue: Days that have been provisional for too long.
        failed: Days that were asked for and are not held, as their ledger has them.
        missing: Days that were never brought.
        breaks: Midnights that are not crossed, and no finding that passes says why.
        explained: Number of midnights that are not crossed for a reason, e.g. an outage: findings that pass say so.
        gaps: What is missing, or stands still, inside of the days that are held.
        doubtful: Days that are held and not beyond doubt, with what is to be said of them, in order.
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
    def lacking(self) -> int:
        """Number of days that should be there and are not."""
        return len(self.failed) + len(self.missing)


def states_of(rows: Mapping[date, DayRecord], wanted: Sequence[tuple[date, date]], today: date) -> dict[date, DayState]:
    """What each day of a series is that is known, or that should be held. A day that is in none is neither.

    A past day that was empty when it was asked for, and is not settled, was never brought: it is missing. Nothing is
    missing of today, which is still growing.

    Args:
        rows: The series' ledger, by day, without days that are only thought not to be listed.
        wanted: Spans of days to collect, both ends included, in order; between them the symbol was not listed.
        today: The present day in UTC.
    """
    states = {
        day: state_of(row.outcome, row.final, row.verdicts, row.integrity)
        for day, row in rows.items()
        if row.outcome != EMPTY or row.final
    }
    for first, last in wanted:
        for day in _days(first, min(last, today - _DAY)):
            states.setdefault(day, DayState.MISSING)
    for (_, last), (first, _) in pairwise(wanted):
        for day in _days(last + _DAY, first - _DAY):
            states.setdefault(day, DayState.NOT_LISTED)
    return states


def _days(first: date, last: date) -> Iterator[date]:
    return (first + timedelta(days=n) for n in range((last - first).days + 1))


def cover(
    key: SeriesKey,
    rows: Mapping[date, DayRecord],
    states: Mapping[date, DayState],
    wanted: Sequence[tuple[date, date]],
    today: date,
    provisional_days: int,
) -> SeriesCoverage:
    """Work out the coverage of a series.

    Args:
        key: The series.
        rows: Its ledger, by day.
        states: What its days are, see :func:`states_of`.
        wanted: Spans of days that should be held, both ends included; today, which is still growing, is left out.
        today: The present day in UTC.
        provisional_days: After how many days a day that is still provisional is overdue.
    """
    expected = [day for first, last in wanted for day in _days(first, min(last, today - _DAY))]
    held = [rows[day] for day in expected if day in rows and rows[day].outcome == HELD]
    provisional = [row.day for row in held if not row.final]
    breaks = continuity(key, rows, today)
    open_breaks = tuple(found for found in breaks if not is_told(key, found, rows, _passes))
    return SeriesCoverage(
        key,
        len(held) - len(provisional),
        len(provisional),
        tuple(day for day in provisional if (today - day).days > provisional_days),
        tuple(rows[day] for day in expected if states.get(day) is DayState.FAILED),
        tuple(day for day in expected if states.get(day) is DayState.MISSING),
        open_breaks,
        len(breaks) - len(open_breaks),
        sum_of_gaps(rows.values()),
        {day: "; ".join(said) for day, row in sorted(rows.items()) if (said := doubts_of(row))},
    )


def sum_of_gaps(rows: Iterable[DayRecord]) -> tuple[GapSum, ...]:
    """What the gaps checks of days found, by verdict, in the order in which verdicts take precedence."""
    sums: dict[str, GapSum] = {}
    for row in rows:
        if row.outcome not in (HELD, EMPTY) or not row.verdicts:
            continue
        of_day: dict[str, list[Finding]] = {}
        for finding in row.findings_list():
            if finding.check == "gaps" and finding.rule in _VERDICTS:
                of_day.setdefault(finding.rule, []).append(finding)
        for rule, findings in of_day.items():
            before = sums.get(rule)
            newer = before is None or row.day > before.newest
            sums[rule] = GapSum(
                Verdict(rule),
                sum(finding.count for finding in findings) + (before.rows if before else 0),
                1 + (before.days if before else 0),
                row.day if before is None or newer else before.newest,
                findings[0].evidence if before is None or newer else before.evidence,
            )
    return tuple(sums[verdict] for verdict in Verdict if verdict in sums)


def _passes(finding: Finding) -> bool:
    return finding.severity is Severity.INFO


@dataclass(frozen=True, slots=True)
class Surveyed:
    """How complete a series is.

    Attributes:
        coverage: In sums, and the days that are not as they should be.
        calendar: Day by day.
    """

    coverage: SeriesCoverage
    calendar: SeriesCalendar


def survey(layout: Layout, universe: Universe, keys: Iterable[SeriesKey], provisional_days: int) -> Iterator[Surveyed]:
    """Look at series, one after another.

    A ledger that is lost or behind is worked out from the footers, in memory: its next writer writes it. Of a series
    that is no longer collected, no day is missing.

    Args:
        layout: Where the lake lies.
        universe: Which days should be held.
        keys: The series.
        provisional_days: After how many days a day that is still provisional is overdue.

    Raises:
        UsageError: the universe does not know from when on a series is collected.
    """
    today = clock.today()
    for key in keys:
        ledger = Ledger.read(layout.ledger(key))
        refresh_ledger(ledger, layout, key)
        # A day that was not listed when it was asked for may be, as the listing knows by now.
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
            told = []
            for rule, some in groupby(gaps, key=lambda found: found.rule):
                findings = list(some)
                told.append(f"{sum(found.count for found in findings):,} rows {rule} ({findings[0].evidence})")
            note = "; ".join(told)
        if said := "; ".join(filter(None, (note, doubtful.get(row.day)))):
            yield row.day, shortened(said, _NOTE)
