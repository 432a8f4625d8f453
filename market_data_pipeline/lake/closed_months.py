"""Closed months: choose months to close, merge their days into one file, and remove the days' own files.

Only the series' one writer may do this. A crash leaves the days unchanged, or the month's file in addition to them.
Readers then prefer the month's file. Its format belongs to ``lake/months.py``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from threading import Lock

import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import parquet as parquet_files
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.checksums import content_sha256
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, refresh_ledger
from market_data_pipeline.lake.months import DayInMonth, encode_month, read_month
from market_data_pipeline.lake.partitions import day_files, day_files_between, day_files_of_month, read_day_file
from market_data_pipeline.model.datasets import closes_months, spec_of
from market_data_pipeline.model.day import HELD, DayRecord, FileStat, Stage, stage_of
from market_data_pipeline.model.provenance import Provenance, belongs_elsewhere
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey

_MONTH_WRITE_LOCK = Lock()
"""Several threads may write days of one series, and each rewrites the whole month."""

_DAMAGED_SUFFIX = ".damaged"
"""Suffix of an unreadable month's file. Readers ignore it."""


def months_to_close(layout: Layout, key: SeriesKey, ledger: Ledger, today: date) -> list[date]:
    """Return the first day of each past month in which every day is final and has its own file.

    A month stays open while one of its days may be fetched again: to fill a gap, or because its archive was replaced.
    """
    if not closes_months(key.data_type):
        return []
    own = {day for day, stored in day_files(layout, key).items() if not stored.of_month}
    settled = {day for day in own if _is_settled(ledger.get(day))}
    months = sorted({day.replace(day=1) for day in settled})
    return [month for month in months if (days := clock.days_of_month(month))[-1] < today and settled.issuperset(days)]


def _is_settled(row: DayRecord | None) -> bool:
    return row is not None and stage_of(row) is Stage.FINAL and row.failure is None


def close_months(layout: Layout, key: SeriesKey, *, wait_seconds: float = 0) -> list[date]:
    """Merge the days of each month that may be closed into one file. Return the first day of these months.

    Raises:
        SeriesBusyError: Another run writes the series.
        StorageError: The write failed. Stored files are unchanged.
    """
    path = layout.ledger(key)
    closed = []
    with storage.only_writer(layout.lock(key), wait_seconds, str(key)):
        storage.remove_leftovers(layout.months(key))
        ledger = Ledger.read(path)
        changed = bool(refresh_ledger(ledger, layout, key))
        for month in months_to_close(layout, key, ledger, clock.today()):
            try:
                days = [_verified(layout, key, ledger, day) for day in clock.days_of_month(month)]
            except DamagedFileError:
                continue  # `verify --local` reports it, and a backfill replaces it
            storage.put(layout.month(key, month), encode_month(days, spec_of(key)))
            record_month(ledger, layout, key, month)
            closed.append(month)
        if closed or changed:
            ledger.write(path)
    return closed


def _verified(layout: Layout, key: SeriesKey, ledger: Ledger, day: date) -> DayInMonth:
    """Read a stored day and check its content against the ledger."""
    [stored] = day_files_between(layout, key, day, day)
    found = read_day_file(stored)
    if content_sha256(found.table) != ledger.rows[day].content_sha256:
        raise DamagedFileError(f"{stored.path} does not match its ledger.")
    return found


def record_month(ledger: Ledger, layout: Layout, key: SeriesKey, day: date) -> None:
    """Record the month's file of a day in the ledger if that month is closed."""
    if not closes_months(key.data_type) or storage.head(layout.month(key, day)) is None:
        return
    try:
        data, stat = storage.read(layout.month(key, day))
    except OSError:
        return  # the next reader reports it
    sha256 = hashlib.sha256(data).hexdigest()
    for stored in day_files_of_month(layout, key, day.replace(day=1), stat):
        row = ledger.get(stored.day)
        if row is not None and row.outcome == HELD:
            noted = replace(row, bytes=stored.stat.bytes, version=stored.stat.version)
            ledger.put(replace(noted, file_sha256=None, month_sha256=sha256))


def write_day(layout: Layout, key: SeriesKey, record: Provenance, parquet: pa.Buffer) -> FileStat:
    """Write a day to its own file, or to the month's file if the month is closed. Other days stay unchanged.

    Args:
        parquet: Bytes of the day's own file.

    Returns:
        Size and modification time of the written day.

    Raises:
        StorageError: The write failed. Stored files are unchanged.
    """
    day, month = record.day, layout.month(key, record.day)
    if closes_months(key.data_type) and storage.head(month) is not None:
        with _MONTH_WRITE_LOCK:
            days = _days_in(month, key, day)
            if days:
                days[day] = DayInMonth(record, parquet_files.read_encoded(parquet))
                storage.put(month, encode_month([days[one] for one in sorted(days)], spec_of(key)))
                [written] = day_files_between(layout, key, day, day)
                return written.stat
            # The file is unusable. Its days are missing from now on and are fetched again one by one.
            storage.set_aside(month, _DAMAGED_SUFFIX)
    return storage.put(layout.file(key, day), parquet)


def _days_in(path: Path, key: SeriesKey, day: date) -> dict[date, DayInMonth]:
    """Read the days of a month's file. Skip days of another month or series, such as after a mistaken copy."""
    try:
        found = read_month(path, lake_schema(key.market, key.data_type))
    except DamagedFileError:
        return {}
    mine = clock.days_of_month(day)
    return {
        one: stored
        for one, stored in found.items()
        if one in mine and belongs_elsewhere(stored.record, str(key), one) is None
    }


def closed_days(layout: Layout, key: SeriesKey, moment: datetime) -> tuple[list[date], list[date]]:
    """Return days of closed months that still have their own files: months closed before a moment, and the others."""
    before, since = list[date](), list[date]()
    # A time in the future comes from a wrong clock and is no reason to wait. Files have the machine's time.
    future = time.time() * 1e6 + clock.TOLERANCE / timedelta(microseconds=1)
    for day in storage.list_dates(layout.folder(key)) if closes_months(key.data_type) else ():
        modified_ns = storage.modified_ns(layout.month(key, day))
        if modified_ns is not None:
            closed = modified_ns // 1000
            (before if closed < clock.to_us(moment) or closed > future else since).append(day)
    return before, since


def remove_closed_days(layout: Layout, key: SeriesKey, days: Sequence[date], *, wait_seconds: float = 0) -> int:
    """Remove the own files of days in closed months. Return the number of removed files.

    Raises:
        SeriesBusyError: Another run writes the series.
        StorageError: A file cannot be removed.
    """
    if not days:
        return 0
    removed = 0
    with storage.only_writer(layout.lock(key), wait_seconds, str(key)):
        for day in days:
            if storage.head(layout.month(key, day)) is not None:  # a damaged one may have been renamed since
                storage.remove(layout.file(key, day))
                removed += 1
    return removed
