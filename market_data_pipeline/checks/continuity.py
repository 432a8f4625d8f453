"""Check that each day of a series continues where the previous day ended. Pure, over ledger records.

Gaps inside a day do not belong here (``checks/gaps.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime

from market_data_pipeline import clock
from market_data_pipeline.model.datasets import SPECS, spec_of
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.findings import ACROSS_MIDNIGHT, Finding
from market_data_pipeline.model.needs import needs, reach_of
from market_data_pipeline.model.series import SeriesKey


@dataclass(frozen=True, slots=True)
class Break:
    """A midnight at which a series does not continue.

    Attributes:
        day: The later day.
        expected: Expected key of its first row: open_time in µs (UTC), or agg_trade_id.
        found: Actual key of its first row.
    """

    day: date
    expected: int
    found: int

    @property
    def overlap(self) -> bool:
        """Return True if rows are on both sides of midnight, False if rows are missing."""
        return self.found < self.expected


def continuity(key: SeriesKey, rows: Mapping[date, DayRecord], today: date) -> tuple[Break, ...]:
    """Return the midnights at which a day does not continue where the previous day ended.

    The next candle is one interval later, and the next trade has the next id, or a later one if ids have holes. Only
    final days are compared, because the last rows of a provisional day may still come.

    Args:
        key: The series. One that is derived from another has no order of its own to continue.
        rows: Its ledger, by day.
        today: The current UTC day, which is skipped.
    """
    if (key.market, key.data_type) not in SPECS:
        return ()
    spec = spec_of(key)
    if spec.slots is not None:  # the gaps check of each day covers its midnights
        return ()
    step, has_holes = key.step, key.interval is None and not spec.gapless
    breaks: list[Break] = []
    for day, row in sorted(rows.items()):
        before = rows.get(day - clock.DAY)
        if before is None or day >= today or not (row.is_stored_final and before.is_stored_final):
            continue
        if row.first_key is None or before.last_key is None:
            continue
        # A candle off the grid covers parts of two slots. The next candle may begin in the second slot or after it.
        expected = -(-(before.last_key + step) // step) * step if key.interval else before.last_key + step
        if not before.last_key < row.first_key or not (has_holes or row.first_key < expected + step):
            breaks.append(Break(day, expected, row.first_key))
    return tuple(breaks)


def is_reported(
    key: SeriesKey, found: Break, rows: Mapping[date, DayRecord], counts: Callable[[Finding], bool]
) -> bool:
    """Return True if findings of the two days explain the whole break.

    An outage over midnight has two findings, one per day. An answer of REST may have several parts, too.

    Args:
        counts: Returns True for a finding that counts as an explanation.
    """
    pair = (found.day - clock.DAY, found.day)
    before, after = ([one for one in rows[day].findings_list() if counts(one)] for day in pair)
    if found.overlap:
        return any(one.rule == ACROSS_MIDNIGHT for one in after)
    reached = found.expected
    ranges = (range_ for one in (*before, *after) if one.check == "gaps" for range_ in one.ranges)
    for range_ in sorted(ranges, key=lambda range_: range_.first):
        if range_.first > reached:
            break
        reached = max(reached, range_.last + key.step)
    return reached > found.found - key.step


def open_midnights(key: SeriesKey, rows: Mapping[date, DayRecord], now: datetime) -> list[date]:
    """Return the days of aggTrades that are due because of an unexplained break at midnight.

    Neighbours are compared when either is fetched. A run that is killed in between leaves the break open. Candles are
    on a grid, so a missing candle at midnight is a gap of its own day.

    Args:
        rows: Its records. Days without neighbours may be left out.
        now: The current time, zone-aware.

    Returns:
        Both days of each such midnight, in order.
    """
    if key.interval is not None:
        return []
    days: set[date] = set()
    for found in continuity(key, rows, clock.naive_utc(now).date()):
        pair = (found.day - clock.DAY, found.day)
        is_lasting = is_reported(key, found, rows, lambda finding: not finding.open)
        if not is_lasting and all(needs(rows[day], now, reach_of(key)).has_rested for day in pair):
            days.update(pair)
    return sorted(days)


def due_days(key: SeriesKey, rows: Mapping[date, DayRecord], now: datetime) -> list[date]:
    """Return the days of a series that a schedule should fetch now, in order.

    Args:
        rows: Its records. Days without a need may be left out, except for aggTrades.
        now: The current time, zone-aware.
    """
    reach = reach_of(key)
    due = {day for day, record in rows.items() if needs(record, now, reach).is_due}
    return sorted(due.union(open_midnights(key, rows, now)))
