"""Days of series as one Arrow table: many small files read by a few threads.

What belongs here: reading. Which days are meant, and in which type they are handed out, is said elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from market_data_pipeline.lake import files
from market_data_pipeline.lake.files import FileStat
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.schemas import WORD
from market_data_pipeline.series import DataType, SeriesKey
from market_data_pipeline.specs import SPECS

_FILES_A_TASK = 16
"""A day of candles is read in 0.4 ms, which is not worth a task of its own."""


_READ_WHOLE = 128 << 10
"""Bytes of a file up to which it is read in one piece: for the footer alone Arrow reads the last 64 KB."""

_LONG_RANGE = 1000
"""Days from which on listing a series' folder, which can hold ten years, is quicker than to look for each file."""


def labels_of(data_type: DataType) -> tuple[str, ...]:
    """The columns that are the same in every row of a file and follow from its path."""
    return ("symbol", "interval") if data_type.has_interval else ("symbol",)


def time_column(data_type: DataType) -> str:
    """The column that says which day a row belongs to."""
    return _TIME_COLUMNS[data_type]


_TIME_COLUMNS = {**{data_type: spec.time for (_, data_type), spec in SPECS.items()}, DataType.TRADE_PROFILE: "day"}


class DayFile(NamedTuple):
    """A day of a series and its file, with what tells the file's version apart."""

    key: SeriesKey
    day: date
    path: Path
    stat: FileStat


def days_held(layout: Layout, key: SeriesKey, first: date, last: date) -> list[DayFile]:
    """The days from one to another, both included, that have a file, in order."""
    length = (last - first).days + 1
    if length > _LONG_RANGE:
        return [
            DayFile(key, day, layout.file(key, day), stat)
            for day, stat in files.days_on_disk(layout.folder(key)).items()
            if first <= day <= last
        ]
    days = [first + timedelta(days=n) for n in range(length)]
    return [DayFile(key, day, path, stat) for day in days if (stat := files.stat(path := layout.file(key, day)))]


def read_days(
    days: Sequence[DayFile],
    schema: pa.Schema,
    start: datetime | None = None,
    end: datetime | None = None,
) -> pa.Table:
    """Read days of series of one market and data type, in the order given.

    Args:
        days: Which files; each must exist.
        schema: The columns to read, in order: a part of the lake's schema that has the time column if rows are cut.
        start: Rows before this moment (UTC, without zone) are left out.
        end: Rows at this moment or after it are left out.

    Raises:
        DamagedFileError: a file is not readable, or has not the columns of its series; the text names it.
        FileNotFoundError: a file is gone.
    """
    if not days:
        return schema.empty_table()
    data_type = days[0].key.data_type
    labels = labels_of(data_type)
    wanted = pa.schema([field for field in schema if field.name not in labels])

    def read(some: Iterable[DayFile]) -> list[pa.Table]:
        time = time_column(data_type)
        return [_read_file(path, stat.bytes, wanted, time, *_bounds(day, start, end)) for _, day, path, stat in some]

    tasks = [days[n : n + _FILES_A_TASK] for n in range(0, len(days), _FILES_A_TASK)]
    if len(tasks) == 1 and data_type.has_interval:
        tables = read(days)
    else:
        # A day of trades is worth a task.
        tasks = tasks if data_type.has_interval else [[one] for one in days]
        with ThreadPoolExecutor(min(len(tasks), os.cpu_count() or 1)) as threads:
            tables = [table for part in threads.map(read, tasks) for table in part]
    rows = pa.concat_tables(tables)
    counts = [table.num_rows for table in tables]
    columns = [
        _label([getattr(day.key, field.name) for day in days], counts) if field.name in labels else rows[field.name]
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _bounds(day: date, start: datetime | None, end: datetime | None) -> tuple[datetime | None, datetime | None]:
    """What of a range cuts a day: None on a side where the day lies inside."""
    midnight = datetime.combine(day, datetime.min.time())
    after = start if start is not None and start > midnight else None
    before = end if end is not None and end < midnight + timedelta(days=1) else None
    return after, before


def _read_file(
    path: Path, size: int, schema: pa.Schema, time: str, start: datetime | None, end: datetime | None
) -> pa.Table:
    try:
        source = path if size > _READ_WHOLE else pa.BufferReader(path.read_bytes())
        # Measured: without pre_buffer a day of candles takes half the time.
        with pq.ParquetFile(source, pre_buffer=False) as file:
            if start is None and end is None:
                table = file.read(columns=schema.names, use_threads=False)
            else:
                groups = _row_groups(file.metadata, time, start, end)
                table = file.read_row_groups(groups, columns=schema.names, use_threads=False)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise files.damaged(path, error) from error
    if not table.schema.equals(schema):
        if set(table.column_names) != set(schema.names):
            raise files.damaged(path, ValueError("it has not the columns of its series"))
        table = table.select(schema.names)
        if not table.schema.equals(schema):
            raise files.damaged(path, ValueError("its columns are not of the types of its series"))
    if start is not None:
        table = table.filter(pc.greater_equal(table[time], pa.scalar(start, pa.timestamp("us"))))
    if end is not None:
        table = table.filter(pc.less(table[time], pa.scalar(end, pa.timestamp("us"))))
    return table


def _row_groups(metadata: pq.FileMetaData, time: str, start: datetime | None, end: datetime | None) -> list[int]:
    """The row groups that can have rows in a range, by the statistics in the footer."""
    column = metadata.schema.names.index(time) if time in metadata.schema.names else None
    groups = []
    for group in range(metadata.num_row_groups):
        known = metadata.row_group(group).column(column).statistics if column is not None else None
        if known is not None and known.has_min_max:
            if start is not None and known.max < start:
                continue
            if end is not None and known.min >= end:
                continue
        groups.append(group)
    return groups


def _label(values: Sequence[str], counts: Sequence[int]) -> pa.DictionaryArray:
    words = sorted(set(values))
    number = {word: n for n, word in enumerate(words)}
    indices = np.repeat(np.array([number[value] for value in values], dtype=np.int32), counts)
    return pa.DictionaryArray.from_arrays(pa.array(indices), pa.array(words, pa.string())).cast(WORD)
