"""The one partitions definition of the project, and the way between partition keys and days."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, timedelta

import dagster as dg

DAY, HOUR = timedelta(days=1), timedelta(hours=1)

PARTITION = "dagster/partition"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
"""Tags of a run that say which days it is of."""


def daily_partitions(first: date) -> dg.DailyPartitionsDefinition:
    """A partition for each UTC day from ``first`` to today.

    All assets share it, although symbols were listed on different days: assets whose partitions definitions differ
    cannot share a job, a schedule or a backfill started in the UI. Days before a listing succeed as not listed,
    without a request. ``end_offset=1`` makes today, which is still growing, a partition too.

    Args:
        first: The first day of any series in the universe.
    """
    return dg.DailyPartitionsDefinition(start_date=first.isoformat(), end_offset=1, timezone="UTC")


def day_of(partition_key: str) -> date:
    """The UTC day that a partition key stands for."""
    return date.fromisoformat(partition_key)


def partition_of(day: date) -> str:
    """The partition key of a UTC day."""
    return day.isoformat()


def days_between(first: date, last: date) -> list[date]:
    """The days from ``first`` to ``last``, both included; none where ``last`` is earlier."""
    return [first + n * DAY for n in range((last - first).days + 1)]


def contiguous_ranges(days: Iterable[date], at_most: int | None = None) -> Iterator[tuple[date, date]]:
    """Split days into runs of consecutive days, in order, as Dagster's range runs want them.

    Args:
        days: Days in any order; a day named twice counts once.
        at_most: Longest run in days; None for no limit.

    Yields:
        First and last day of each run, both included.

    >>> list(contiguous_ranges([date(2024, 1, 1), date(2024, 1, 2), date(2024, 1, 5)]))
    [(datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)), (datetime.date(2024, 1, 5), datetime.date(2024, 1, 5))]
    """
    first = last = None
    for day in sorted(set(days)):
        if first is None or last is None:
            first = last = day
        elif day - last == DAY and (at_most is None or (last - first).days + 1 < at_most):
            last = day
        else:
            yield first, last
            first = last = day
    if first is not None and last is not None:
        yield first, last
