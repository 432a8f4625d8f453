"""Months that are closed: the days of one that is over and settled are put into one file.

What belongs here: which months may be closed, closing one, writing a day of one that is closed, and removing the days'
own files afterwards. All of it is done by the series' one writer. A crash at any point leaves the days as they were or
the month's file beside them, which readers prefer.
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
from market_data_pipeline.lake.ledger import Ledger, reconcile
from market_data_pipeline.lake.months import DayInMonth, encode_month, read_month
from market_data_pipeline.lake.partitions import days_between, days_of_month, days_on_disk, read_whole
from market_data_pipeline.model.datasets import closes_months, spec_of
from market_data_pipeline.model.day import HELD, DayRecord, FileStat, Stage, stage_of
from market_data_pipeline.model.provenance import Provenance, belongs_elsewhere
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey

_ONE_DAY_AT_A_TIME = Lock()
"""The series' one writer may be several threads, and each writes the whole month."""

_SET_ASIDE = ".damaged"
"""Suffix of a month's file that cannot be read, which no reader picks up."""


def months_to_close(layout: Layout, key: SeriesKey, ledger: Ledger, today: date) -> list[date]:
    """The months, by their first day, that are over, and each day of which is final and has a file of its own.

    A day that may be asked for again (a gap that may be filled, an archive that was replaced) keeps its month open.
    """
    if not closes_months(key.data_type):
        return []
    own = {day for day, held in days_on_disk(layout, key).items() if not held.of_month}
    settled = {day for day in own if _is_settled(ledger.get(day))}
    months = sorted({day.replace(day=1) for day in settled})
    return [month for month in months if (days := clock.days_of_month(month))[-1] < today and settled.issuperset(days)]


def _is_settled(row: DayRecord | None) -> bool:
    return row is not None and stage_of(row) is Stage.FINAL and row.failure is None


def close_months(layout: Layout, key: SeriesKey, *, wait_seconds: float = 0) -> list[date]:
    """Put the days of each month that may be closed into one file; return these months, by their first day.

    Raises:
        SeriesBusyError: another run writes the series.
        StorageError: the disk refuses; what was there is untouched.
    """
    path = layout.ledger(key)
    closed = []
    with storage.only_writer(layout.lock(key), wait_seconds, str(key)):
        storage.remove_leftovers(layout.months(key))
        ledger = Ledger.read(path)
        changed = bool(reconcile(ledger, layout, key))
        for month in months_to_close(layout, key, ledger, clock.today()):
            try:
                days = [_proven(layout, key, ledger, day) for day in clock.days_of_month(month)]
            except DamagedFileError:
                continue  # `verify --local` finds it, and a backfill brings it again
            storage.write_bytes(layout.month(key, month), encode_month(days, spec_of(key)))
            note_month(ledger, layout, key, month)
            closed.append(month)
        if closed or changed:
            ledger.write(path)
    return closed


def _proven(layout: Layout, key: SeriesKey, ledger: Ledger, day: date) -> DayInMonth:
    """A day as it is held, if it is what the ledger says."""
    [held] = days_between(layout, key, day, day)
    found = read_whole(held)
    if content_sha256(found.table) != ledger.rows[day].content_sha256:
        raise DamagedFileError(f"{held.path} does not hold what the ledger says.")
    return found


def note_month(ledger: Ledger, layout: Layout, key: SeriesKey, day: date) -> None:
    """Have a ledger speak of the file of the month that a day lies in, if that is closed."""
    if not closes_months(key.data_type) or not layout.month(key, day).exists():
        return
    try:
        data, stat = storage.read_bytes(str(layout.month(key, day)))
    except OSError:
        return  # whoever reads it next says so
    sha256 = hashlib.sha256(data).hexdigest()
    for held in days_of_month(layout, key, day.replace(day=1), stat):
        row = ledger.get(held.day)
        if row is not None and row.outcome == HELD:
            noted = replace(row, bytes=held.stat.bytes, mtime_ns=held.stat.mtime_ns)
            ledger.put(replace(noted, file_sha256=None, month_sha256=sha256))


def write_day(layout: Layout, key: SeriesKey, record: Provenance, parquet: pa.Buffer) -> FileStat:
    """Write a day: its own file, or that of its month once that is closed, with the other days as they are.

    Args:
        layout: Where the lake lies.
        key: The series.
        record: Says which day.
        parquet: The bytes of a file of its own.

    Returns:
        What tells this version of the day apart.

    Raises:
        StorageError: the disk refuses; what was there is untouched.
    """
    day, month = record.day, layout.month(key, record.day)
    if closes_months(key.data_type) and month.exists():
        with _ONE_DAY_AT_A_TIME:
            days = _days_in(month, key, day)
            if days:
                days[day] = DayInMonth(record, parquet_files.read_encoded(parquet))
                storage.write_bytes(month, encode_month([days[one] for one in sorted(days)], spec_of(key)))
                [written] = days_between(layout, key, day, day)
                return written.stat
            # Nothing in it can be used: its days are missing from now on, and brought again one by one.
            month.replace(month.with_name(month.name + _SET_ASIDE))
    return storage.write_bytes(layout.file(key, day), parquet)


def _days_in(path: Path, key: SeriesKey, day: date) -> dict[date, DayInMonth]:
    """What a file has of a day's month of a series; what belongs elsewhere, as after a mistaken copy, is left out."""
    try:
        found = read_month(path, lake_schema(key.market, key.data_type))
    except DamagedFileError:
        return {}
    mine = clock.days_of_month(day)
    return {
        one: held
        for one, held in found.items()
        if one in mine and belongs_elsewhere(held.record, str(key), one) is None
    }


def closed_days(layout: Layout, key: SeriesKey, moment: datetime) -> tuple[list[date], list[date]]:
    """The days of closed months that have files of their own still: of months closed before a moment, and of others."""
    before, since = list[date](), list[date]()
    # A time in the future is of a wrong clock, and no reason to wait. Files have the machine's time.
    future = time.time() * 1e6 + clock.TOLERANCE / timedelta(microseconds=1)
    for day in storage.days_on_disk(layout.folder(key)) if closes_months(key.data_type) else ():
        month = storage.stat(layout.month(key, day))
        if month is not None:
            closed = month.mtime_ns // 1000
            (before if closed < clock.to_us(moment) or closed > future else since).append(day)
    return before, since


def remove_closed_days(layout: Layout, key: SeriesKey, days: Sequence[date], *, wait_seconds: float = 0) -> int:
    """Remove the own files of days of closed months; return how many there were.

    Raises:
        SeriesBusyError: another run writes the series.
        StorageError: the disk refuses.
    """
    if not days:
        return 0
    removed = 0
    with storage.only_writer(layout.lock(key), wait_seconds, str(key)):
        for day in days:
            if layout.month(key, day).exists():  # a damaged one may have been set aside since
                storage.remove(layout.file(key, day))
                removed += 1
    return removed
