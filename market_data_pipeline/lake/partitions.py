"""Stored days of a series and their files: the day's own file, or the file of its closed month.

A month's file has all days of its month, and readers then ignore the days' own files, which are removed later.
List months first: a month that is closed during the listing is then found by its days alone.
Reading many days into one table belongs to ``lake/reader.py``.
"""

from __future__ import annotations

import time
from calendar import monthrange
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from market_data_pipeline import clock
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import months, parquet, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.months import DayInMonth
from market_data_pipeline.model.datasets import closes_months, data_types_of
from market_data_pipeline.model.day import DayFile, FileStat
from market_data_pipeline.model.provenance import Provenance, belongs_elsewhere
from market_data_pipeline.model.schema import as_declared, lake_schema
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey

_LONG_RANGE = 1000
"""Number of days above which listing the folder (up to ten years) is faster than a stat of each file."""


_UNSETTLED_NS = 2_000_000_000
"""A folder that changed this shortly before it was listed may change again without a new modification time."""

_CACHED_FOLDERS = 20_000
"""Folders whose closed months are cached. Ten years take 8 kB."""


def day_files(layout: Layout, key: SeriesKey) -> dict[date, DayFile]:
    """Return the stored days of a series, in order."""
    closed = storage.list_dates(layout.months(key), storage.MONTHS) if closes_months(key.data_type) else {}
    own = storage.list_dates(layout.folder(key))
    found = {day: DayFile(key, day, layout.file(key, day), stat) for day, stat in own.items()}
    for month, stat in closed.items():
        found |= {one.day: one for one in day_files_of_month(layout, key, month, stat)}
    return dict(sorted(found.items())) if closed else found


class StoredFiles(NamedTuple):
    """Files of a series' stored days, by their first day since 1970, with sizes and modification times.

    ``days`` is 1 for a day's own file, and the length of the month for a closed month.
    """

    day: npt.NDArray[np.int64]
    days: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    version: npt.NDArray[np.int64]


class DayColumns(NamedTuple):
    """Stored days of a series since 1970, in order, with the size and modification time of their files."""

    day: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    version: npt.NDArray[np.int64]


def file_columns(layout: Layout, key: SeriesKey) -> StoredFiles:
    """Return the files that have the stored days of a series, in order. Own files of days in closed months are not."""
    closed = storage.list_dates(layout.months(key), storage.MONTHS) if closes_months(key.data_type) else {}
    own = storage.list_dates(layout.folder(key))
    found = [
        (clock.day_number(one), monthrange(one.year, one.month)[1], stat.bytes, stat.version)
        for one, stat in closed.items()
    ]
    found += [
        (clock.day_number(day), 1, stat.bytes, stat.version)
        for day, stat in own.items()
        if not closed or day.replace(day=1) not in closed
    ]
    return StoredFiles(*np.array(sorted(found), np.int64).reshape(-1, 4).T)


def day_columns(layout: Layout, key: SeriesKey) -> DayColumns:
    """Return what :func:`day_files` returns as columns, ten times as fast for a series of closed months."""
    files = file_columns(layout, key)
    first, days, size, version = (np.repeat(column, files.days) for column in files)
    number = np.arange(len(first)) - np.repeat(np.cumsum(files.days) - files.days, files.days)
    share = size * (number + 1) // days - size * number // days  # see day_files_of_month
    return DayColumns(first + number, share, version)


def path_of_file(layout: Layout, key: SeriesKey, day: int, days: int) -> Path:
    """Return the path of one of the :func:`file_columns`."""
    first = clock.day_of_number(day)
    return layout.file(key, first) if days == 1 else layout.month(key, first)


def stored_dates(layout: Layout, key: SeriesKey) -> set[date]:
    """Return the stored days of a series by file name only, without a stat of the files."""
    closed = storage.list_named(layout.months(key), storage.MONTHS) if closes_months(key.data_type) else []
    return {*storage.list_named(layout.folder(key)), *(day for month in closed for day in clock.days_of_month(month))}


def months_closed(layout: Layout, key: SeriesKey) -> list[str]:
    """Return the closed months of a series, as ``2024-01``, in order."""
    if not closes_months(key.data_type):
        return []
    folder = layout.months(key)
    revision = storage.revision(folder)
    if revision is None:
        return []
    if time.time_ns() - revision[0] < _UNSETTLED_NS:
        return list(_months_in(folder))
    return list(_months_cached(folder, revision))


def _months_in(folder: Path) -> tuple[str, ...]:
    return tuple(f"{month:%Y-%m}" for month in sorted(storage.list_named(folder, storage.MONTHS)))


@lru_cache(maxsize=_CACHED_FOLDERS)
def _months_cached(folder: Path, _revision: tuple[int, ...]) -> tuple[str, ...]:
    return _months_in(folder)


def day_files_between(layout: Layout, key: SeriesKey, first: date, last: date) -> list[DayFile]:
    """Return the stored days from first to last, both inclusive, in order."""
    if (last - first).days >= _LONG_RANGE:
        return [stored for day, stored in day_files(layout, key).items() if first <= day <= last]
    days = clock.days_between(first, last)
    closed = closed_among(layout, key, days)
    found, store = [], storage.store_of(layout.root)
    for day in days:
        if (in_month := closed.get(day)) is not None:
            found.append(in_month)
        elif (stat := store.head(path := layout.file(key, day))) is not None:
            found.append(DayFile(key, day, path, stat))
    return found


def closed_among(layout: Layout, key: SeriesKey, days: Iterable[date]) -> Mapping[date, DayFile]:
    """Return all days of the closed months that contain the given days."""
    found: dict[date, DayFile] = {}
    if closes_months(key.data_type):
        for month in dict.fromkeys(day.replace(day=1) for day in days):
            if (stat := storage.head(layout.month(key, month))) is not None:
                found |= {one.day: one for one in day_files_of_month(layout, key, month, stat)}
    return found


def day_files_of_month(layout: Layout, key: SeriesKey, month: date, stat: FileStat) -> list[DayFile]:
    """Return the days of a closed month, each with its share of the bytes of the month's file.

    Args:
        month: First day of the month.
        stat: Size and modification time of the month's file.
    """
    path, days = layout.month(key, month), clock.days_of_month(month)
    shares = [stat.bytes * n // len(days) for n in range(len(days) + 1)]
    return [
        DayFile(key, day, path, FileStat(end - start, stat.version))
        for day, start, end in zip(days, shares, shares[1:], strict=False)
    ]


def file_of(layout: Layout, key: SeriesKey, day: date) -> Path:
    """Return the file that has a day's rows, or would have them."""
    month = layout.month(key, day)
    return month if closes_months(key.data_type) and storage.head(month) is not None else layout.file(key, day)


def are_as_listed(layout: Layout, days: Iterable[DayFile]) -> bool:
    """Return True if the files of days are unchanged since they were listed."""
    for key, some in groupby(days, key=lambda stored: stored.key):
        listed = set(some)
        days_listed = [stored.day for stored in listed]
        if not listed.issubset(day_files_between(layout, key, min(days_listed), max(days_listed))):
            return False
    return True


# --- content of the files ------------------------------------------------------------------------------------


def read_record(stored: DayFile) -> Provenance:
    """Read the record of a day.

    Raises:
        DamagedFileError: The file is missing, not Parquet, or has no valid record of this day and series.
    """
    if stored.of_month:
        return _belonging(stored, _of_day(stored, months.read_records(stored.path)))
    return _belonging(stored, parquet.read_provenance(stored.path))


def read_day_file(stored: DayFile) -> DayInMonth:
    """Read a day's record and its rows.

    Raises:
        DamagedFileError: The file is missing, unreadable, or has no valid record of this day and series.
    """
    try:
        data, _ = storage.read(stored.path)
    except OSError as error:
        raise parquet.damaged(stored.path, error) from error
    return parse_day_file(stored, data)


def parse_day_file(stored: DayFile, data: bytes) -> DayInMonth:
    """Return a day's record and its rows from the bytes of its file; see :func:`read_day_file`.

    Raises:
        DamagedFileError: The bytes are unreadable or have no valid record of this day and series.
    """
    schema = lake_schema(stored.key.market, stored.key.data_type)
    if stored.of_month:
        found = _of_day(stored, months.parse_month(stored.path, data, schema))
    else:
        record, table = parquet.parse_whole(stored.path, data)
        found = DayInMonth(record, as_declared(table, schema))
    _belonging(stored, found.record)
    return found


def _belonging(stored: DayFile, record: Provenance) -> Provenance:
    elsewhere = belongs_elsewhere(record, str(stored.key), stored.day)
    if elsewhere is not None:
        raise parquet.damaged(stored.path, ValueError(elsewhere))
    return record


_T = TypeVar("_T")


def of_another_month(stored: DayFile, days: Iterable[date]) -> str | None:
    """Describe the first day in a month's file that belongs to another month; None if there is none."""
    strays = (day for day in days if day.replace(day=1) != stored.day.replace(day=1))
    return next((f"it has rows of {day}, which is of another month" for day in strays), None)


def _of_day(stored: DayFile, days: Mapping[date, _T]) -> _T:
    if (stray := of_another_month(stored, days)) is not None:
        raise parquet.damaged(stored.path, ValueError(stray))
    try:
        return days[stored.day]
    except KeyError as error:
        raise parquet.damaged(stored.path, ValueError(f"it has no rows of {stored.day}")) from error


def known_series(layout: Layout) -> list[SeriesKey]:
    """Return every series that has a ledger or a file, in order. Skip folders and files that are not a series."""
    return sorted({*series_in_ledgers(layout), *series_with_files(layout)})


def series_with_files(layout: Layout) -> list[SeriesKey]:
    """Return the series that have at least one stored day, in order."""
    found = set[SeriesKey | None]()
    for market in Market:
        for data_type in data_types_of(market):
            for cadence in ("daily", "monthly"):
                folder = folder_of(layout, market, data_type) / cadence
                found |= {_series(market, data_type, *labels) for labels in _labels_in(folder, data_type)}
    keys = sorted(key for key in found if key is not None)
    return [key for key in keys if months_closed(layout, key) or any(storage.list_named(layout.folder(key)))]


def series_in_ledgers(layout: Layout) -> Iterator[SeriesKey]:
    """Yield the series that have a ledger."""
    for market in Market:
        for data_type in data_types_of(market):
            for *above, name in _labels_in(layout.root.joinpath("ledger", EXCHANGE, market, data_type), data_type):
                # Other files are, for example, locks.
                if name.endswith(".parquet") and (key := _series(market, data_type, *above, name[: -len(".parquet")])):
                    yield key


@lru_cache(maxsize=_CACHED_FOLDERS)
def _series(market: Market, data_type: DataType, *labels: str) -> SeriesKey | None:
    try:
        return SeriesKey(EXCHANGE, market, data_type, *labels)
    except UsageError:
        return None


def _labels_in(folder: Path, data_type: DataType) -> Iterator[tuple[str, ...]]:
    """Yield the names in a folder: of symbols, or of symbols and their intervals."""
    for name in storage.list_names(folder):
        if data_type.has_interval:
            yield from ((name, interval) for interval in storage.list_names(folder / name))
        else:
            yield (name,)


def folder_of(layout: Layout, market: Market, data_type: DataType) -> Path:
    """Return the folder of a market and data type."""
    return layout.root.joinpath("lake", EXCHANGE, market, data_type)
