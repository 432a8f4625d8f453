"""Months that are over and settled put into one file each, over many series; nothing here is Dagster's.

Afterwards every reader of the project takes the month's file. The days' own files stay for a while, since a reader may
have its list of them already, and are removed by a later call.
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


@dataclass
class CompactReport:
    """What was done.

    Attributes:
        closed: The months that were put into one file, as ``2024-01``, by series.
        removed: How many files of days were removed.
        waiting: How many are left until the grace period is over.
        troubles: Why a series was left as it is, by series.
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
    """Close the months of series that may be closed, and remove the files of days whose month has been for a while.

    A crash at any point leaves no day twice and none missing, and the next call goes on.

    Args:
        settings: Where the lake is.
        keys: The series; those that stay in days are passed over.
        grace: How long the days of a closed month stay; by default as the settings say.
        on_progress: Told of each series.

    Raises:
        StorageError: the catalog cannot be written.
        SeriesBusyError: another process has been publishing the catalog for too long.
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
    over = clock.now() - (timedelta(minutes=settings.compact_grace_minutes) if grace is None else grace)
    if (oldest := retire_catalogs(layout)) is not None:
        over = min(over, oldest)  # a query that is being answered may have begun with it
    left = {key: closed_days(layout, key, over) for key in keys}
    report.waiting = sum(len(waiting) for _, waiting in left.values())
    for key, (due, _) in left.items():
        try:
            report.removed += remove_closed_days(layout, key, due, wait_seconds=settings.lock_wait_seconds)
        except MarketDataError as error:
            report.troubles[key] = str(error)
    return report
