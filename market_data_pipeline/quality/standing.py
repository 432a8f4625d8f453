"""Standing checks: what only a whole series shows, from its ledger. Pure functions, no file is opened here.

A day's own checks (``integrity``, ``gaps``) look inside the day; these ask whether all days are there and settled, what
the gaps inside of them come to, and whether each day goes on where the day before ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise

from market_data_pipeline.day import EMPTY, HELD, DayRecord
from market_data_pipeline.findings import ACROSS_MIDNIGHT, Finding, Severity, Verdict
from market_data_pipeline.lake.states import DayState, doubts_of, state_of
from market_data_pipeline.series import SeriesKey, interval_us

_DAY = timedelta(days=1)
_VERDICTS = frozenset(verdict.value for verdict in Verdict)


@dataclass(frozen=True, slots=True)
class Break:
    """A midnight across which a series does not go on.

    Attributes:
        day: The later day.
        expected: Key that its first row should have: open_time in µs (UTC), or agg_trade_id.
        found: Key that its first row has.
    """

    day: date
    expected: int
    found: int

    @property
    def overlap(self) -> bool:
        """Whether rows stand on both sides of midnight, rather than lack."""
        return self.found < self.expected


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


def continuity(key: SeriesKey, rows: Mapping[date, DayRecord], today: date) -> tuple[Break, ...]:
    """Midnights at which a day does not go on where the day before ended.

    A candle follows one interval later, an aggregated trade has the next id. Only days that are settled are compared,
    since the last rows of a provisional day may be yet to come.

    Args:
        key: The series: klines or aggTrades.
        rows: Its ledger, by day.
        today: The present day in UTC, which is left out.
    """
    step = _step(key)
    breaks: list[Break] = []
    for day, row in sorted(rows.items()):
        before = rows.get(day - _DAY)
        if before is None or day >= today or not (row.held and before.held):
            continue
        if row.first_key is None or before.last_key is None:
            continue
        # A candle off the grid covers parts of two: what goes on in the second one follows.
        expected = -(-(before.last_key + step) // step) * step if key.interval else before.last_key + step
        if not before.last_key < row.first_key < expected + step:
            breaks.append(Break(day, expected, row.first_key))
    return tuple(breaks)


def _step(key: SeriesKey) -> int:
    """How far the key of the next row lies from a row's."""
    return interval_us(key.interval) if key.interval else 1


def is_told(key: SeriesKey, found: Break, rows: Mapping[date, DayRecord], counts: Callable[[Finding], bool]) -> bool:
    """Whether findings of the two days say of all that is not as it should be at a midnight why it is so.

    An outage over midnight is told in two parts, by each day of its own hours. An answer of REST may have parts, too.

    Args:
        key: The series.
        found: The midnight.
        rows: Ledger rows of both days.
        counts: Which findings count.
    """
    before, after = ([one for one in rows[day].findings_list() if counts(one)] for day in (found.day - _DAY, found.day))
    if found.overlap:
        return any(one.rule == ACROSS_MIDNIGHT for one in after)
    told = found.expected
    ranges = (range_ for one in (*before, *after) if one.check == "gaps" for range_ in one.ranges)
    for range_ in sorted(ranges, key=lambda range_: range_.first):
        if range_.first > told:
            break
        told = max(told, range_.last + _step(key))
    return told > found.found - _step(key)


def _passes(finding: Finding) -> bool:
    return finding.severity is Severity.INFO
