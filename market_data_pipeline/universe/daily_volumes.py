"""Daily volumes of all symbols of a market, collected from the stored 1d candles.

A lake has one file per symbol and day or month, too many to open for each question about a whole market. This table is
one file, and a refresh reads only files that changed. It can be deleted at any time.
Ranking symbols belongs to ``universe/membership.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError, StorageError
from market_data_pipeline.lake import parquet, partitions, reader, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.datasets import published_types
from market_data_pipeline.model.schema import WORD, lake_schema
from market_data_pipeline.model.series import DataType, Market, SeriesKey

INTERVAL = "1d"

_MARKS = b"market_data_pipeline.folders"
"""Metadata of the file: modification times of the folders that it was read from, by symbol."""

_UNSETTLED_NS = 2_000_000_000
"""A folder that changed this shortly before it was read may change again without a new modification time."""

_ATTEMPTS = 5


def measures_of(market: Market) -> list[str]:
    """Return the columns by which symbols of a market can be ranked."""
    if DataType.KLINES not in published_types(market):
        return []
    names = lake_schema(market, DataType.KLINES).names
    return [name for name in ("quote_volume", "base_volume", "volume", "count") if name in names]


def volumes_schema(market: Market) -> pa.Schema:
    """Return the columns of the table. A stored day without a candle has nulls."""
    of_candles = lake_schema(market, DataType.KLINES)
    measures = [pa.field(name, of_candles.field(name).type) for name in measures_of(market)]
    return pa.schema(
        [pa.field("symbol", WORD), pa.field("day", pa.date32()), *measures, pa.field("modified_ns", pa.int64())]
    )


def refresh_daily_volumes(layout: Layout, market: Market) -> pa.Table:
    """Return the daily volumes of a market, as the lake is now, ordered by symbol and day.

    The table is stored for the next call if the data folder is writable.

    Raises:
        DamagedFileError: A candle file is unreadable.
    """
    path = layout.daily_volumes(market)
    known, marks = _stored(layout, market)
    keys = [key for key in partitions.series_with_files(layout) if is_collected(key) and key.market is market]
    now = {key.symbol: _mark(layout, key) for key in keys}
    changed = [key for key in keys if marks.get(key.symbol) != now[key.symbol] or not now[key.symbol]]
    if not changed and marks.keys() == now.keys():
        return known
    table = _updated(layout, market, keys, changed, known)
    with suppress(StorageError):  # without write access, the next call reads the files again
        parquet.write_table(path, table.replace_schema_metadata({_MARKS: json.dumps(now).encode()}))
    return table


def collect_daily_volumes(layout: Layout, keys: Iterable[SeriesKey], *, older_than_seconds: float = 0) -> None:
    """Update the tables after files were written, so that the next question about a market need not read them.

    An unreadable file leaves the table as it is. The next question reports it.

    Args:
        layout: Layout of the lake.
        keys: The series. Only markets of 1d candles are updated.
        older_than_seconds: Leave tables alone that were written more recently. Many small runs update them once.
    """
    for market in sorted({key.market for key in keys if is_collected(key)}):
        modified_ns = storage.modified_ns(layout.daily_volumes(market))
        if modified_ns is None or time.time() - modified_ns / 1e9 >= older_than_seconds:
            with suppress(DamagedFileError):
                refresh_daily_volumes(layout, market)


def is_collected(key: SeriesKey) -> bool:
    """Return True if the rows of a series are in the table of its market."""
    return (key.data_type, key.interval) == (DataType.KLINES, INTERVAL)


def _stored(layout: Layout, market: Market) -> tuple[pa.Table, Mapping[str, list[int]]]:
    """Return the table as it was stored, and the marks of its folders."""
    schema = volumes_schema(market)
    path = layout.daily_volumes(market)
    if storage.head(path) is not None:
        with suppress(DamagedFileError, ValueError, KeyError):  # what cannot be used is made again
            table = parquet.read_table(path)
            marks: dict[str, list[int]] = json.loads((table.schema.metadata or {})[_MARKS])
            return table.select(schema.names).replace_schema_metadata().cast(schema), marks
    return schema.empty_table(), {}


def _mark(layout: Layout, key: SeriesKey) -> list[int]:
    """Return the modification times of a series' folders; empty if they changed just now.

    Files are replaced by rename, which changes the modification time of their folder.
    """
    revisions = (storage.revision(folder) for folder in (layout.folder(key), layout.months(key)))
    found = [0 if revision is None else revision[0] for revision in revisions]
    return found if time.time_ns() - max(found) > _UNSETTLED_NS else []


def _split(table: pa.Table) -> dict[str, pa.Table]:
    """Return the rows of each symbol. The rows of a symbol are consecutive."""
    if not table.num_rows:
        return {}
    column: Any = table["symbol"].combine_chunks()
    codes = column.indices.to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), table.num_rows]
    return {str(column.dictionary[codes[first]]): table.slice(first, end - first) for first, end in pairwise(starts)}


def _updated(
    layout: Layout, market: Market, keys: Sequence[SeriesKey], changed: Sequence[SeriesKey], known: pa.Table
) -> pa.Table:
    """Return the rows of series. Rows of files that did not change since are taken from the known ones."""
    before = _split(known)
    unchanged = {key.symbol for key in keys} - {key.symbol for key in changed}
    tables = [before[symbol] for symbol in sorted(unchanged & before.keys())]
    waiting = list(changed)
    for _ in range(_ATTEMPTS):
        found = [_compared(layout, key, before.get(key.symbol)) for key in waiting]
        files = [file for one in found for file in one.files]
        wanted = pa.schema(
            [lake_schema(market, DataType.KLINES).field(name) for name in ("open_time", *measures_of(market))]
        )
        read = reader.read_whole([(file.path, file.bytes) for file in files], wanted, "open_time")
        # A file is gone if its month was closed meanwhile. Its series is read again.
        gone = {file.symbol for file, table in zip(files, read, strict=True) if table is None}
        tables += [one.kept for one in found if one.kept is not None and one.symbol not in gone]
        both = [(file, table) for file, table in zip(files, read, strict=True) if table is not None]
        tables += _of_files(market, [(file, table) for file, table in both if file.symbol not in gone])
        waiting = [key for key in waiting if key.symbol in gone]
        if not waiting:
            return _ordered(pa.concat_tables([volumes_schema(market).empty_table(), *tables]))
    raise DamagedFileError(f"Files of {waiting[0]} are removed during the read. Request the universe again.")


class _File(NamedTuple):
    """A file to read, with the number of its first day since 1970 and its number of days."""

    symbol: str
    path: Path
    day: int
    days: int
    bytes: int
    modified_ns: int


class _Compared(NamedTuple):
    """The known rows of a series whose files did not change, and the files to read."""

    symbol: str
    kept: pa.Table | None
    files: Sequence[_File]


def _compared(layout: Layout, key: SeriesKey, known: pa.Table | None) -> _Compared:
    stored = partitions.file_columns(layout, key)
    is_known = np.zeros(len(stored.day), np.bool_)
    kept = None
    if known is not None and len(stored.day):
        day, modified_ns = _numbers(known["day"].cast(pa.int32())), _numbers(known["modified_ns"])
        of_file = np.maximum(np.searchsorted(stored.day, day, side="right") - 1, 0)
        same = (day - stored.day[of_file] < stored.days[of_file]) & (day >= stored.day[of_file])
        same &= modified_ns == stored.version[of_file]
        is_known = np.bincount(of_file[same], minlength=len(stored.day)) == stored.days
        kept = known.filter(pa.array(same & is_known[of_file]))
    columns = (column[~is_known].tolist() for column in stored)
    files = [
        _File(key.symbol, partitions.path_of_file(layout, key, day, days), day, days, size, modified)
        for day, days, size, modified in zip(*columns, strict=True)
    ]
    return _Compared(key.symbol, kept, files)


def _of_files(market: Market, read: Sequence[tuple[_File, pa.Table]]) -> list[pa.Table]:
    """Return a row for each day of files. A closed month has all its days, also those without a candle."""
    if not read:
        return []
    symbols = sorted({file.symbol for file, _ in read})
    number = {symbol: n for n, symbol in enumerate(symbols)}
    owner, first, days, modified_ns = np.array(
        [(number[file.symbol], file.day, file.days, file.modified_ns) for file, _ in read], np.int64
    ).T
    rows = pa.concat_tables([table for _, table in read]).combine_chunks()
    of_row = np.repeat(owner, [table.num_rows for _, table in read])
    of_day = np.repeat(owner, days)
    day = np.repeat(first, days) + np.arange(len(of_day)) - np.repeat(np.cumsum(days) - days, days)
    listed = of_day * _FAR + day
    order = np.argsort(listed)
    candles = of_row * _FAR + _numbers(rows["open_time"].cast(pa.int64())) // clock.US_PER_DAY
    at = np.minimum(np.searchsorted(listed, candles, sorter=order), len(listed) - 1)
    is_listed = listed[order[at]] == candles
    row = np.full(len(listed), -1, np.int64)
    row[order[at[is_listed]]] = np.flatnonzero(is_listed)
    columns: dict[str, Any] = {
        "symbol": pa.DictionaryArray.from_arrays(of_day.astype(np.int32), pa.array(symbols)),
        "day": pa.array(day.astype(np.int32)).cast(pa.date32()),
        "modified_ns": np.repeat(modified_ns, days),
    }
    measures = rows.select(measures_of(market)).take(pa.array(row, pa.int64(), mask=row < 0))
    schema = volumes_schema(market)
    columns |= {name: measures[name] for name in measures.column_names}
    return [pa.table({name: columns[name] for name in schema.names}).cast(schema)]


_FAR = 1 << 24
"""More days than the calendar has."""


def _ordered(table: pa.Table) -> pa.Table:
    """Return rows by symbol and day."""
    table = table.unify_dictionaries().combine_chunks()
    if not table.num_rows:
        return table
    column: Any = table["symbol"].combine_chunks()
    rank = np.argsort(np.argsort(np.array(column.dictionary.to_pylist(), object)))
    key = rank[column.indices.to_numpy()] * _FAR + _numbers(table["day"].cast(pa.int32()))
    return table if (np.diff(key) > 0).all() else table.take(pa.array(np.argsort(key), pa.int64())).combine_chunks()


def _numbers(column: pa.ChunkedArray[Any]) -> npt.NDArray[np.int64]:
    return column.to_numpy().astype(np.int64)
