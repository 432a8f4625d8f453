"""Remove days of a series from the lake, or all that is stored of it.

The ledger forgets the days first, then their files go, the oldest first. After a crash in between, the files that are
left are stored days again, and the same call continues. A closed month goes as a whole.
Choosing days and asking first do not belong here; see ``maintenance/retention.py``.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import parquet, quarantine, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.live_rows import live_days, live_folder, remove_live_rows
from market_data_pipeline.model.datasets import closes_months
from market_data_pipeline.model.series import SeriesKey


def days_in_ledger(layout: Layout, key: SeriesKey) -> set[date]:
    """Return the days of a series that are in its ledger but may have no file.

    Raises:
        StorageError: The system cannot read the ledger.
    """
    return set(Ledger.read(layout.ledger(key)).rows)


def remove_days(layout: Layout, key: SeriesKey, days: Collection[date], *, wait_seconds: float = 0) -> None:
    """Remove days of a series: files, ledger rows, live rows, refused bytes and the results of comparing them.

    A closed month stays as long as one of its days is not among ``days``, and with it the ledger rows of its days.

    Args:
        days: UTC days.
        wait_seconds: How long to wait for another writer of the series.

    Raises:
        SeriesBusyError: Another run writes the series.
        StorageError: A file cannot be removed. The same call continues.
    """
    with storage.only_writer(layout.lock(key), wait_seconds, str(key)):
        _remove_days(layout, key, days)


def remove_series_data(layout: Layout, key: SeriesKey, *, wait_seconds: float = 0) -> None:
    """Remove all that is stored of a series, as :func:`remove_days` does, and its folders.

    Args:
        wait_seconds: How long to wait for another writer of the series.

    Raises:
        SeriesBusyError: Another run writes the series.
        StorageError: A file cannot be removed. The same call continues.
    """
    with storage.only_writer(layout.lock(key), wait_seconds, str(key)):
        # Files of days go last, because the series is found by them when a killed call is repeated.
        storage.remove(layout.reconciled(key))
        for folder in (layout.quarantine(key), live_folder(layout, key)):
            storage.remove_folder(folder)
        storage.remove(layout.ledger(key))
        own, months = storage.list_dates(layout.folder(key)), storage.list_dates(layout.months(key), storage.MONTHS)
        in_months = {day for month in months for day in clock.days_of_month(month)}
        _remove_days(layout, key, {*own, *in_months})
        for folder in (layout.folder(key), layout.months(key)):
            storage.remove_folder(folder)  # with temporary and damaged files, which no reader sees


def _remove_days(layout: Layout, key: SeriesKey, days: Collection[date]) -> None:
    months = storage.list_dates(layout.months(key), storage.MONTHS) if closes_months(key.data_type) else {}
    whole = [month for month in months if set(clock.days_of_month(month)) <= set(days)]
    stays = {day for month in months if month not in whole for day in clock.days_of_month(month)}
    going = sorted(set(days) - stays)
    _forget_comparisons(layout.reconciled(key), going)
    for entry in quarantine.entries_of(layout, key):
        if set(entry.days) <= set(going):
            quarantine.release(entry)
    for day in set(live_days(layout, key)) & set(going):
        remove_live_rows(layout, key, day)
    _forget(layout, key, going)
    for month in whole:  # while the month's file exists, readers ignore the days' own files
        for day in clock.days_of_month(month):
            storage.remove(layout.file(key, day))
        storage.remove(layout.month(key, month))
    for day in going:
        storage.remove(layout.file(key, day))


def _forget(layout: Layout, key: SeriesKey, days: Collection[date]) -> None:
    path = layout.ledger(key)
    ledger = Ledger.read(path)
    left = [row for day, row in ledger.rows.items() if day not in days]
    if not left:
        storage.remove(path)
    elif len(left) < len(ledger.rows):
        Ledger(left).write(path)


def _forget_comparisons(path: Path, days: Collection[date]) -> None:
    try:
        table = parquet.read_table(path)
        left = table.filter(~pc.field("day").isin(pa.array(days, pa.date32())))
    except (DamagedFileError, pa.ArrowException):
        return  # missing, or damaged: the days can be compared again
    if left.num_rows < table.num_rows:
        parquet.write_table(path, left)
