"""Read days of series into one Arrow table: many small files, read by a few threads.

Choosing the days and converting the table for users do not belong here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from market_data_pipeline import clock
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_files_between
from market_data_pipeline.model.datasets import SPECS
from market_data_pipeline.model.day import DayFile
from market_data_pipeline.model.schema import TIME, WORD, as_declared, empty_table, lake_schema
from market_data_pipeline.model.series import DataType, SeriesKey

_DAYS_A_TASK = 16
_FILES_A_TASK = 64

_READ_WHOLE = 128 << 10
"""Files up to this size (bytes) are read in one piece. For the footer alone Arrow reads the last 64 KB."""


def labels_of(data_type: DataType) -> tuple[str, ...]:
    """Return the columns that have the same value in every row of a file, taken from its path."""
    return ("symbol", "interval") if data_type.has_interval else ("symbol",)


def time_column(data_type: DataType) -> str:
    """Return the name of the column that assigns a row to its day."""
    return _TIME_COLUMNS[data_type]


_TIME_COLUMNS = {**{data_type: spec.time for (_, data_type), spec in SPECS.items()}, DataType.TRADE_PROFILE: "day"}


def read_days(
    days: Sequence[DayFile],
    schema: pa.Schema,
    start: datetime | None = None,
    end: datetime | None = None,
) -> pa.Table:
    """Read days of series of one market and data type, in the order given.

    Args:
        days: Days and their files. Each file must exist.
        schema: Columns to read, in order: a part of the lake's schema.
        start: Start of the range (UTC, without zone), inclusive; None means no bound.
        end: End of the range (UTC, without zone), exclusive; None means no bound.

    Raises:
        DamagedFileError: A file is unreadable or does not have the columns of its series. The message names it.
        FileNotFoundError: A file is missing.
    """
    if not days:
        return empty_table(schema)
    data_type = days[0].key.data_type
    labels = labels_of(data_type)
    wanted = pa.schema([field for field in schema if field.name not in labels])
    time = time_column(data_type)

    def read(some: Iterable[_Piece]) -> list[pa.Table]:
        return [_read_file(piece.path, piece.bytes, wanted, time, *piece.cut(start, end)) for piece in some]

    pieces = _pieces(days)
    # Reading a day of candles takes 0.4 ms, too little for a task of its own. A day of trades takes longer.
    tasks = list(_tasks(pieces)) if data_type.has_interval else [[piece] for piece in pieces]
    if len(tasks) == 1:
        tables = read(pieces)
    else:
        with ThreadPoolExecutor(min(len(tasks), os.cpu_count() or 1)) as threads:
            tables = [table for part in threads.map(read, tasks) for table in part]
    rows = pa.concat_tables(tables)
    counts = [table.num_rows for table in tables]
    keys = [piece.key for piece in pieces]
    columns = [
        _label([getattr(key, field.name) for key in keys], counts) if field.name in labels else rows[field.name]
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def read_whole(files: Sequence[tuple[Path, int]], schema: pa.Schema, time: str) -> list[pa.Table | None]:
    """Read many small files, each into a table of its own. A file that was removed meanwhile is None.

    Args:
        files: Paths and sizes (bytes).
        schema: Columns to read, in order: a part of the lake's schema without labels.
        time: Name of the column that assigns a row to its day.

    Raises:
        DamagedFileError: A file is unreadable or does not have the columns of its series. The message names it.
    """

    def read(some: Sequence[tuple[Path, int]]) -> list[pa.Table | None]:
        tables: list[pa.Table | None] = []
        for path, size in some:
            try:
                tables.append(_read_file(path, size, schema, time, None, None))
            except FileNotFoundError:
                tables.append(None)
        return tables

    tasks = [files[begin : begin + _FILES_A_TASK] for begin in range(0, len(files), _FILES_A_TASK)]
    if len(tasks) <= 1:
        return read(files)
    with ThreadPoolExecutor(min(len(tasks), os.cpu_count() or 1)) as threads:
        return [table for part in threads.map(read, tasks) for table in part]


def read_day(layout: Layout, key: SeriesKey, day: date, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a day's rows.

    Args:
        columns: Names of columns, in order; None reads all.

    Raises:
        DamagedFileError: The day's file is missing or unreadable. The message names it.
    """
    schema = lake_schema(key.market, key.data_type)
    try:
        stored = day_files_between(layout, key, day, day)
        if not stored:
            raise FileNotFoundError(f"{layout.file(key, day)} is missing")
        return read_days(stored, schema if columns is None else pa.schema([schema.field(name) for name in columns]))
    except FileNotFoundError as error:
        raise parquet.damaged(layout.file(key, day), error) from error


class _Piece(NamedTuple):
    """Consecutive days of a series in one file. ``whole`` is True if the file has no other days."""

    key: SeriesKey
    path: Path
    bytes: int
    first: date
    last: date
    whole: bool

    def cut(self, start: datetime | None, end: datetime | None) -> tuple[datetime | None, datetime | None]:
        """Return the bounds that cut the file's rows; None for a side that cuts no row."""
        begin, over = clock.midnight(self.first), clock.midnight(self.last + clock.DAY)
        after = start if start is not None and start > begin else None if self.whole else begin
        before = end if end is not None and end < over else None if self.whole else over
        return after, before


def _pieces(days: Iterable[DayFile]) -> list[_Piece]:
    pieces: list[_Piece] = []
    for one in days:
        before = pieces[-1] if pieces else None
        if before is not None and before.path == one.path and one.day == before.last + clock.DAY:
            whole = before.first.day == 1 and one.day == clock.days_of_month(one.day)[-1]
            pieces[-1] = before._replace(last=one.day, whole=whole)
        else:
            share = len(clock.days_of_month(one.day)) if one.of_month else 1
            pieces.append(_Piece(one.key, one.path, one.stat.bytes * share, one.day, one.day, whole=not one.of_month))
    return pieces


def _tasks(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    task: list[_Piece] = []
    days = 0
    for piece in pieces:
        task.append(piece)
        days += (piece.last - piece.first).days + 1
        if days >= _DAYS_A_TASK:
            yield task
            task, days = [], 0
    if task:
        yield task


def _read_file(
    path: Path, size: int, schema: pa.Schema, time: str, start: datetime | None, end: datetime | None
) -> pa.Table:
    try:
        source = storage.source(path) if size > _READ_WHOLE else pa.BufferReader(storage.read(path)[0])
        # Without pre_buffer, reading a day of candles takes half the time (measured).
        with pq.ParquetFile(source, pre_buffer=False) as file:
            if start is None and end is None:
                table = file.read(columns=schema.names, use_threads=False)
            else:
                groups = _row_groups(file.metadata, time, start, end)
                columns = list(dict.fromkeys((*schema.names, time)))
                table = _cut(file.read_row_groups(groups, columns=columns, use_threads=False), time, start, end)
                table = table.drop_columns([name for name in table.column_names if name not in schema.names])
    except FileNotFoundError:
        raise
    except parquet.UNREADABLE as error:
        raise parquet.damaged(path, error) from error
    if not table.schema.equals(schema):
        if set(table.column_names) != set(schema.names):
            raise parquet.damaged(path, ValueError("it does not have the columns of its series"))
        table = as_declared(table.select(schema.names), schema)
        if not table.schema.equals(schema):
            raise parquet.damaged(path, ValueError("its columns do not have the types of its series"))
    return table


def _cut(table: pa.Table, time: str, start: datetime | None, end: datetime | None) -> pa.Table:
    if start is not None:
        table = table.filter(pc.greater_equal(table[time], pa.scalar(start, TIME)))
    if end is not None:
        table = table.filter(pc.less(table[time], pa.scalar(end, TIME)))
    return table


def _row_groups(metadata: pq.FileMetaData, time: str, start: datetime | None, end: datetime | None) -> list[int]:
    """Return the row groups that can have rows in a range, by the statistics in the footer."""
    column = metadata.schema.names.index(time) if time in metadata.schema.names else None
    groups = []
    for group in range(metadata.num_row_groups):
        known: Any = parquet.statistics_in(metadata, group, column) if column is not None else None
        if known is not None and known.has_min_max:
            if start is not None and known.max < start:
                continue
            if end is not None and known.min >= end:
                continue
        groups.append(group)
    return groups


def _label(values: Sequence[str], counts: Sequence[int]) -> pa.Array[Any]:
    words = sorted(set(values))
    number = {word: n for n, word in enumerate(words)}
    indices = np.repeat(np.array([number[value] for value in values], dtype=np.int32), counts)
    return pa.DictionaryArray.from_arrays(indices, pa.array(words, pa.string())).cast(WORD)
