"""Standing checks: what only a whole series shows, from its ledger. Pure functions, no file is opened here.

A day's own checks (``integrity``, ``gaps``) look inside the day; these ask whether all days are there and whether each
day goes on where the day before ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from market_data_pipeline.lake.ledger import EMPTY, FAILED, HELD, NOT_LISTED, LedgerRow
from market_data_pipeline.series import SeriesKey, interval_us

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


@dataclass(frozen=True, slots=True)
class SeriesCoverage:
    """How complete a series is.

    Attributes:
        key: The series.
        final: Number of days that are held and settled.
        provisional: Number of days that are held and will be fetched again.
        failed: Days that were asked for and are not held.
        missing: Days that were never brought.
        breaks: Midnights that are not crossed.
    """

    key: SeriesKey
    final: int
    provisional: int
    failed: tuple[date, ...]
    missing: tuple[date, ...]
    breaks: tuple[Break, ...]

    @property
    def lacking(self) -> int:
        """Number of days that should be there and are not."""
        return len(self.failed) + len(self.missing)


def cover(key: SeriesKey, rows: Mapping[date, LedgerRow], expected: Iterable[date], today: date) -> SeriesCoverage:
    """Work out the coverage of a series.

    Args:
        key: The series.
        rows: Its ledger, by day.
        expected: Days that should be held; today, which is still growing, may be among them and is left out.
        today: The present day in UTC.
    """
    final = provisional = 0
    failed: list[date] = []
    missing: list[date] = []
    for day in expected:
        row = rows.get(day)
        if day >= today or (row is not None and _nothing_to_hold(row)):
            continue
        if row is not None and row.outcome == HELD:
            final += row.final
            provisional += not row.final
        elif row is not None and row.outcome == FAILED:
            failed.append(day)
        else:
            missing.append(day)
    return SeriesCoverage(key, final, provisional, tuple(failed), tuple(missing), continuity(key, rows, today))


def _nothing_to_hold(row: LedgerRow) -> bool:
    return row.outcome == NOT_LISTED or (row.outcome == EMPTY and row.final)


def continuity(key: SeriesKey, rows: Mapping[date, LedgerRow], today: date) -> tuple[Break, ...]:
    """Midnights at which a day does not go on where the day before ended.

    A candle follows one interval later, an aggregated trade has the next id. Only days that are settled are compared,
    since the last rows of a provisional day may be yet to come.

    Args:
        key: The series: klines or aggTrades.
        rows: Its ledger, by day.
        today: The present day in UTC, which is left out.
    """
    step = interval_us(key.interval) if key.interval else 1
    breaks: list[Break] = []
    for day, row in sorted(rows.items()):
        before = rows.get(day - _DAY)
        if before is None or day >= today or not (row.held and before.held):
            continue
        if row.first_key is None or before.last_key is None:
            continue
        if row.first_key != before.last_key + step:
            breaks.append(Break(day, before.last_key + step, row.first_key))
    return tuple(breaks)
