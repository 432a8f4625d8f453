"""Which days of a series have rows on the disk, and where: in a file of their own, or in that of their closed month.

A month's file stands for all days of its month. From the moment that it is there the days' own files, which are removed
later, are passed over. So whoever lists looks for months first: a month that is closed meanwhile is then found by its
days, which are there still, and by them alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, timedelta
from itertools import groupby
from pathlib import Path
from typing import TypeVar

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
"""Days from which on listing a series' folder, which can hold ten years, is quicker than to look for each file."""


def days_on_disk(layout: Layout, key: SeriesKey) -> dict[date, DayFile]:
    """The days of a series that have rows on the disk, in order."""
    closed = storage.months_on_disk(layout.months(key)) if closes_months(key.data_type) else {}
    own = storage.days_on_disk(layout.folder(key))
    found = {day: DayFile(key, day, layout.file(key, day), stat) for day, stat in own.items()}
    for month, stat in closed.items():
        found |= {one.day: one for one in days_of_month(layout, key, month, stat)}
    return dict(sorted(found.items())) if closed else found


def days_named(layout: Layout, key: SeriesKey) -> set[date]:
    """Return the days of a series that have rows on the disk by the names of its files, without a look at the files."""
    closed = storage.months_named(layout.months(key)) if closes_months(key.data_type) else []
    return {*storage.days_named(layout.folder(key)), *(day for month in closed for day in clock.days_of_month(month))}


def months_closed(layout: Layout, key: SeriesKey) -> list[str]:
    """The closed months of a series, as ``2024-01``, in order."""
    if not closes_months(key.data_type):
        return []
    return [month.isoformat()[: len("2024-01")] for month in storage.months_named(layout.months(key))]


def days_between(layout: Layout, key: SeriesKey, first: date, last: date) -> list[DayFile]:
    """The days from one to another, both included, that have rows on the disk, in order."""
    length = (last - first).days + 1
    if length > _LONG_RANGE:
        return [held for day, held in days_on_disk(layout, key).items() if first <= day <= last]
    days = [first + timedelta(days=n) for n in range(length)]
    closed = closed_among(layout, key, days)
    found = []
    for day in days:
        if (in_month := closed.get(day)) is not None:
            found.append(in_month)
        elif (stat := storage.stat(path := layout.file(key, day))) is not None:
            found.append(DayFile(key, day, path, stat))
    return found


def closed_among(layout: Layout, key: SeriesKey, days: Iterable[date]) -> Mapping[date, DayFile]:
    """The days of those closed months that some days lie in."""
    found: dict[date, DayFile] = {}
    if closes_months(key.data_type):
        for month in dict.fromkeys(day.replace(day=1) for day in days):
            if (stat := storage.stat(layout.month(key, month))) is not None:
                found |= {one.day: one for one in days_of_month(layout, key, month, stat)}
    return found


def days_of_month(layout: Layout, key: SeriesKey, month: date, stat: FileStat) -> list[DayFile]:
    """Return the days of a closed month, each with its share of the bytes of the month's file.

    Args:
        layout: Where the lake lies.
        key: The series.
        month: Its first day.
        stat: Of the month's file.
    """
    path, days = layout.month(key, month), clock.days_of_month(month)
    shares = [stat.bytes * n // len(days) for n in range(len(days) + 1)]
    return [
        DayFile(key, day, path, FileStat(end - start, stat.mtime_ns))
        for day, start, end in zip(days, shares, shares[1:], strict=False)
    ]


def file_of(layout: Layout, key: SeriesKey, day: date) -> Path:
    """The file that has a day's rows, or would have them."""
    month = layout.month(key, day)
    return month if closes_months(key.data_type) and storage.stat(month) is not None else layout.file(key, day)


def are_as_listed(layout: Layout, days: Iterable[DayFile]) -> bool:
    """Whether the files of days are those that they were when they were listed."""
    for key, some in groupby(days, key=lambda held: held.key):
        listed = set(some)
        days_listed = [held.day for held in listed]
        if not listed.issubset(days_between(layout, key, min(days_listed), max(days_listed))):
            return False
    return True


# --- what is in them -----------------------------------------------------------------------------------------


def read_record(held: DayFile) -> Provenance:
    """The record of a day.

    Raises:
        DamagedFileError: the file is not there, not Parquet, or has no valid record of the day of the series.
    """
    if held.of_month:
        return _belonging(held, _of_day(held, months.read_records(held.path)))
    return _belonging(held, parquet.read_provenance(held.path))


def read_whole(held: DayFile) -> DayInMonth:
    """A day's record and its rows.

    Raises:
        DamagedFileError: the file is not there, not readable, or has no valid record of the day of the series.
    """
    try:
        data, _ = storage.read_bytes(str(held.path))
    except OSError as error:
        raise parquet.damaged(held.path, error) from error
    return parse_whole(held, data)


def parse_whole(held: DayFile, data: bytes) -> DayInMonth:
    """Return a day's record and its rows from the bytes of its file; see :func:`read_whole`.

    Raises:
        DamagedFileError: they are not readable, or have no valid record of the day of the series.
    """
    schema = lake_schema(held.key.market, held.key.data_type)
    if held.of_month:
        found = _of_day(held, months.parse_month(held.path, data, schema))
    else:
        record, table = parquet.parse_whole(held.path, data)
        found = DayInMonth(record, as_declared(table, schema))
    _belonging(held, found.record)
    return found


def _belonging(held: DayFile, record: Provenance) -> Provenance:
    elsewhere = belongs_elsewhere(record, str(held.key), held.day)
    if elsewhere is not None:
        raise parquet.damaged(held.path, ValueError(elsewhere))
    return record


_T = TypeVar("_T")


def of_another_month(held: DayFile, days: Iterable[date]) -> str | None:
    """Which day a month's file has that is none of its month's, in words; None where it has none, as it should."""
    strays = (day for day in days if day.replace(day=1) != held.day.replace(day=1))
    return next((f"it has rows of {day}, which is of another month" for day in strays), None)


def _of_day(held: DayFile, days: Mapping[date, _T]) -> _T:
    if (stray := of_another_month(held, days)) is not None:
        raise parquet.damaged(held.path, ValueError(stray))
    try:
        return days[held.day]
    except KeyError as error:
        raise parquet.damaged(held.path, ValueError(f"it has no rows of {held.day}")) from error


def series_held(layout: Layout) -> list[SeriesKey]:
    """Every series that was ever asked for or has a file, in order: from the ledgers, and from the lake's folders.

    Folders and files that cannot be a series are passed over.
    """
    return sorted({*series_in_ledgers(layout), *series_with_files(layout)})


def series_with_files(layout: Layout) -> list[SeriesKey]:
    """The series that have at least one day's file, in order."""
    found = []
    for market in Market:
        for data_type in data_types_of(market):
            for cadence in ("daily", "monthly"):
                symbols = folder_of(layout, market, data_type) / cadence
                for symbol in _names(symbols):
                    # Without an interval, the days lie in the symbol's own folder.
                    intervals = _names(symbols / symbol) if data_type.has_interval else [None]
                    found += [key for i in intervals if (key := _series(market, data_type, symbol, i))]
    return sorted(key for key in set(found) if storage.has_days(layout.folder(key)) or months_closed(layout, key))


def series_in_ledgers(layout: Layout) -> Iterator[SeriesKey]:
    """Yield the series that have a ledger."""
    for market in Market:
        for data_type in data_types_of(market):
            folder = layout.root / "ledger" / EXCHANGE / market / data_type
            for name in _names(folder):
                in_it = _names(folder / name) if data_type.has_interval else [name]
                for ledger in in_it:
                    stem = ledger.removesuffix(".parquet")
                    if stem == ledger:
                        continue  # e.g. the series' lock
                    labels = (name, stem) if data_type.has_interval else (stem, None)
                    key = _series(market, data_type, *labels)
                    if key is not None:
                        yield key


def _series(market: Market, data_type: DataType, symbol: str, interval: str | None) -> SeriesKey | None:
    try:
        return SeriesKey(EXCHANGE, market, data_type, symbol, interval)
    except UsageError:
        return None


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def folder_of(layout: Layout, market: Market, data_type: DataType) -> Path:
    """Return the folder of a market and data type."""
    return layout.root / "lake" / EXCHANGE / market / data_type
