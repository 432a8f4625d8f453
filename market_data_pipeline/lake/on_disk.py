"""Which days of a series have rows on the disk, and where: in a file of their own, or in that of their closed month.

A month's file stands for all days of its month. From the moment that it is there the days' own files, which are removed
later, are passed over. So whoever lists looks for months first: a month that is closed meanwhile is then found by its
days, which are there still, and by them alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeVar

from market_data_pipeline import clock
from market_data_pipeline.day import FileStat
from market_data_pipeline.lake import files, months
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.months import DayInMonth
from market_data_pipeline.lake.provenance import Provenance, belongs_elsewhere
from market_data_pipeline.schemas import as_declared, lake_schema
from market_data_pipeline.series import SeriesKey
from market_data_pipeline.specs import closes_months

_LONG_RANGE = 1000
"""Days from which on listing a series' folder, which can hold ten years, is quicker than to look for each file."""


class DayFile(NamedTuple):
    """A day of a series and the file that has its rows, with what tells the version of the day apart.

    Attributes:
        key: The series.
        day: The UTC day.
        path: The day's own file, or that of its month.
        stat: Of a closed month, each day has its share of the bytes.
    """

    key: SeriesKey
    day: date
    path: Path
    stat: FileStat

    @property
    def of_month(self) -> bool:
        """Whether the file has the other days of the month, too."""
        return len(self.path.stem) < len("2024-01-01")


def days_on_disk(layout: Layout, key: SeriesKey) -> dict[date, DayFile]:
    """The days of a series that have rows on the disk, in order."""
    closed = files.months_on_disk(layout.months(key)) if closes_months(key.data_type) else {}
    own = files.days_on_disk(layout.folder(key))
    found = {day: DayFile(key, day, layout.file(key, day), stat) for day, stat in own.items()}
    for month, stat in closed.items():
        found |= {one.day: one for one in days_of_month(layout, key, month, stat)}
    return dict(sorted(found.items())) if closed else found


def days_named(layout: Layout, key: SeriesKey) -> set[date]:
    """Return the days of a series that have rows on the disk by the names of its files, without a look at the files."""
    closed = files.months_named(layout.months(key)) if closes_months(key.data_type) else []
    return {*files.days_named(layout.folder(key)), *(day for month in closed for day in clock.days_of_month(month))}


def months_closed(layout: Layout, key: SeriesKey) -> list[str]:
    """The closed months of a series, as ``2024-01``, in order."""
    if not closes_months(key.data_type):
        return []
    return [month.isoformat()[: len("2024-01")] for month in files.months_named(layout.months(key))]


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
        elif (stat := files.stat(path := layout.file(key, day))) is not None:
            found.append(DayFile(key, day, path, stat))
    return found


def closed_among(layout: Layout, key: SeriesKey, days: Iterable[date]) -> Mapping[date, DayFile]:
    """The days of those closed months that some days lie in."""
    found: dict[date, DayFile] = {}
    if closes_months(key.data_type):
        for month in dict.fromkeys(day.replace(day=1) for day in days):
            if (stat := files.stat(layout.month(key, month))) is not None:
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
    return month if closes_months(key.data_type) and files.stat(month) is not None else layout.file(key, day)


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
    return _belonging(held, files.read_provenance(held.path))


def read_whole(held: DayFile) -> DayInMonth:
    """A day's record and its rows.

    Raises:
        DamagedFileError: the file is not there, not readable, or has no valid record of the day of the series.
    """
    try:
        data, _ = files.read_bytes(str(held.path))
    except OSError as error:
        raise files.damaged(held.path, error) from error
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
        record, table = files.parse_whole(held.path, data)
        found = DayInMonth(record, as_declared(table, schema))
    _belonging(held, found.record)
    return found


def _belonging(held: DayFile, record: Provenance) -> Provenance:
    elsewhere = belongs_elsewhere(record, str(held.key), held.day)
    if elsewhere is not None:
        raise files.damaged(held.path, ValueError(elsewhere))
    return record


_T = TypeVar("_T")


def of_another_month(held: DayFile, days: Iterable[date]) -> str | None:
    """Which day a month's file has that is none of its month's, in words; None where it has none, as it should."""
    strays = (day for day in days if day.replace(day=1) != held.day.replace(day=1))
    return next((f"it has rows of {day}, which is of another month" for day in strays), None)


def _of_day(held: DayFile, days: Mapping[date, _T]) -> _T:
    if (stray := of_another_month(held, days)) is not None:
        raise files.damaged(held.path, ValueError(stray))
    try:
        return days[held.day]
    except KeyError as error:
        raise files.damaged(held.path, ValueError(f"it has no rows of {held.day}")) from error
