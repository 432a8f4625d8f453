"""Continuity of a series: does each day go on where the day before ended? Pure.

Reads ledger rows. Gaps inside a day belong to ``checks/gaps.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from market_data_pipeline import clock
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.findings import ACROSS_MIDNIGHT, Finding
from market_data_pipeline.model.needs import needs, reach_of, rest_ends
from market_data_pipeline.model.series import SeriesKey, interval_us

_DAY = timedelta(days=1)


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


def open_midnights(key: SeriesKey, rows: Mapping[date, DayRecord], now: datetime) -> list[date]:
    """Return days of aggTrades that are due because ids do not run on to the next day, and no verdict says why.

    Neighbours are compared when either is fetched. A run that is killed in between leaves them open. Candles lie on a
    grid, so what is missing at midnight is a gap of the day itself.

    Args:
        key: The series.
        rows: Its records, or those of days that may be neighbours.
        now: The present moment, zone-aware.

    Returns:
        Both days of each such midnight, in order.
    """
    if key.interval is not None:
        return []
    naive, reach = clock.naive_utc(now), reach_of(key)

    def has_rested(record: DayRecord) -> bool:
        not_before = rest_ends(record, naive, reach)
        return not_before is None or not_before <= naive

    days: set[date] = set()
    for found in continuity(key, rows, naive.date()):
        pair = (rows[found.day - _DAY], rows[found.day])
        if not is_told(key, found, rows, _stays) and all(map(has_rested, pair)):
            days.update(row.day for row in pair)
    return sorted(days)


def _stays(finding: Finding) -> bool:
    """Return True if another attempt would find the same."""
    return not finding.open


def due_days(key: SeriesKey, rows: Mapping[date, DayRecord], now: datetime) -> list[date]:
    """Return the days of a series that a schedule is to fetch now, in order.

    Args:
        key: The series.
        rows: Its records. Those of days that need nothing may be left out, but for aggTrades.
        now: The present moment, zone-aware.
    """
    reach = reach_of(key)
    due = {day for day, record in rows.items() if needs(record, now, reach).is_due}
    return sorted(due.union(open_midnights(key, rows, now)))
