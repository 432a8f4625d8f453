"""The only partitions definition of the project, and conversions between partition keys and days."""

from __future__ import annotations

from datetime import date

import dagster as dg

PARTITION = "dagster/partition"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
"""Tags of a run that select its days."""


def daily_partitions(first: date) -> dg.DailyPartitionsDefinition:
    """Return partitions for each UTC day from ``first`` to today.

    All assets share it, although symbols were listed on different days. Assets with different partitions definitions
    cannot share a job, a schedule or a backfill started in the UI. Days before a listing succeed as not listed,
    without a request. ``end_offset=1`` makes today, which is still growing, a partition too.

    Args:
        first: The first day of any series in the universe.
    """
    return dg.DailyPartitionsDefinition(start_date=first.isoformat(), end_offset=1, timezone="UTC")


def day_of(partition_key: str) -> date:
    """Return the UTC day of a partition key."""
    return date.fromisoformat(partition_key)


def partition_of(day: date) -> str:
    """Return the partition key of a UTC day."""
    return day.isoformat()
