"""Compact completed months of final days into one file each, across series.

Readers then use the month's file. A later call removes the files of days, because a reader may still have its list of
them. Closing the month of one series belongs to ``lake/closed_months.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta

from market_data_pipeline import clock
from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.lake.closed_months import close_months, closed_days, remove_closed_days
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.datasets import closes_months
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.sql.publish import publish_catalog, retire_catalogs
from market_data_pipeline.universe.daily_volumes import collect_daily_volumes


@dataclass
class CompactReport:
    """Result of a compaction.

    Attributes:
        closed: The months that were closed, as ``2024-01``, by series.
        removed: Number of removed files of days.
        waiting: Number of files that stay until the grace period is over.
        troubles: Reason why a series was left unchanged, by series.
    """

    closed: dict[SeriesKey, list[str]] = field(default_factory=dict)
    removed: int = 0
    waiting: int = 0
    troubles: dict[SeriesKey, str] = field(default_factory=dict)


def compact(
    settings: Settings,
    keys: Iterable[SeriesKey],
    *,
    grace: timedelta | None = None,
    on_progress: Callable[[], None] | None = None,
) -> CompactReport:
    """Close the months of series that can be closed, and remove files of days after the grace period.

    After a crash at any point no day is duplicate or missing, and the next call continues.

    Args:
        keys: The series. Series that do not close months are skipped.
        grace: How long the files of days stay after their month was closed. None takes the setting.
        on_progress: Called after each series.

    Raises:
        StorageError: the catalog cannot be written.
        SeriesBusyError: another process was publishing the catalog and did not finish in time.
    """
    layout, report = Layout(settings.root), CompactReport()
    keys = [key for key in keys if closes_months(key.data_type)]
    for key in keys:
        try:
            if closed := close_months(layout, key, wait_seconds=settings.lock_wait_seconds):
                report.closed[key] = [f"{month:%Y-%m}" for month in closed]
        except MarketDataError as error:
            report.troubles[key] = str(error)
        if on_progress is not None:
            on_progress()
    publish_catalog(layout)
    collect_daily_volumes(layout, report.closed)
    over = clock.now() - (timedelta(minutes=settings.compact_grace_minutes) if grace is None else grace)
    if (oldest := retire_catalogs(layout)) is not None:
        over = min(over, oldest)  # a running query may still use it
    left = {key: closed_days(layout, key, over) for key in keys}
    report.waiting = sum(len(waiting) for _, waiting in left.values())
    for key, (due, _) in left.items():
        try:
            report.removed += remove_closed_days(layout, key, due, wait_seconds=settings.lock_wait_seconds)
        except MarketDataError as error:
            report.troubles[key] = str(error)
    return report
