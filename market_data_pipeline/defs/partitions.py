"""Partitions definitions, one for each set of days, and conversions between partition keys and days."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline import clock
from market_data_pipeline.clock import DAY, days_between
from market_data_pipeline.model.series import SeriesKey

if TYPE_CHECKING:
    from market_data_pipeline.universe import Universe

PARTITION = "dagster/partition"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
"""Tags of a run that select its days."""


def partitions_of(universe: Universe, key: SeriesKey) -> dg.DailyPartitionsDefinition:
    """Return the partitions of a series: the UTC days that the universe collects.

    They begin at its start, end with its listing, and have no days between two listings. So a complete series shows
    100 %, and no click can start a download outside of the universe.
    """
    first, today = universe.earliest(key), clock.today()
    listed = universe.listing(key).spans or ((first, None),)
    return daily_partitions(first, tuple((begin, end if end and end < today else None) for begin, end in listed))


@cache
def daily_partitions(first: date, listed: tuple[tuple[date, date | None], ...]) -> dg.DailyPartitionsDefinition:
    """Return partitions for each listed UTC day from ``first`` on. Equal arguments return the same object.

    Args:
        first: The first day of a series in the universe.
        listed: Spans of days, both ends included, in order. An end of None means still listed: today, which is still
            growing, is a partition too.
    """
    last = listed[-1][1]
    gaps = [
        datetime.combine(day, time(), UTC)
        for (_, end), (begin, _) in pairwise(listed)
        if end is not None
        for day in days_between(max(first, end + DAY), begin - DAY)
    ]
    return dg.DailyPartitionsDefinition(
        start_date=max(first, listed[0][0]).isoformat(),
        end_date=max(last + DAY, first).isoformat() if last else None,
        end_offset=0 if last else 1,
        timezone="UTC",
        exclusions=gaps or None,
    )


def span_of(tags: Mapping[str, str]) -> tuple[date, date] | None:
    """Return the first and last UTC day that tags of a run select. Return None if they select none."""
    first = tags.get(RANGE_START) or tags.get(PARTITION)
    last = tags.get(RANGE_END) or first
    return (day_of(first), day_of(last)) if first and last else None


def tags_of(first: date, last: date) -> dict[str, str]:
    """Return the tags of a run over the UTC days from ``first`` to ``last``. It is the inverse of :func:`span_of`.

    Tags select days of any series. ``RunRequest(partition_key=)`` sets the same tag, and refuses series with different
    starts.
    """
    if first == last:
        return {PARTITION: partition_of(first)}
    return {RANGE_START: partition_of(first), RANGE_END: partition_of(last)}


def day_of(partition_key: str) -> date:
    """Return the UTC day of a partition key."""
    return date.fromisoformat(partition_key)


def partition_of(day: date) -> str:
    """Return the partition key of a UTC day."""
    return day.isoformat()
