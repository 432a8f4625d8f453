"""Daily volumes of all symbols of a market, collected from the stored 1d candles.

A lake has one file per symbol and day or month, too many to open for each question about a whole market. This table is
one file, and a refresh reads only files that changed. It can be deleted at any time.
Ranking symbols belongs to ``universe/membership.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.errors import DamagedFileError, StorageError
from market_data_pipeline.lake import parquet, partitions, reader
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.datasets import published_types
from market_data_pipeline.model.day import DayFile
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
    keys = [
        key
        for key in partitions.series_with_files(layout)
        if (key.market, key.data_type, key.interval) == (market, DataType.KLINES, INTERVAL)
    ]
    now = {key.symbol: _mark(layout, key) for key in keys}
    changed = [key for key in keys if marks.get(key.symbol) != now[key.symbol] or not now[key.symbol]]
    if not changed and marks.keys() == now.keys():
        return known
    of_symbols = _split(known)
    for key in changed:
        of_symbols[key.symbol] = _read(layout, key, of_symbols.get(key.symbol))
    tables = [of_symbols[symbol] for symbol in sorted(now)]
    table = pa.concat_tables(tables) if tables else volumes_schema(market).empty_table()
    table = table.unify_dictionaries().combine_chunks()
    with suppress(StorageError):  # without write access, the next call reads the files again
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(path, table.replace_schema_metadata({_MARKS: json.dumps(now).encode()}))
    return table


def _stored(layout: Layout, market: Market) -> tuple[pa.Table, Mapping[str, list[int]]]:
    """Return the table as it was stored, and the marks of its folders."""
    schema = volumes_schema(market)
    path = layout.daily_volumes(market)
    if path.exists():
        with suppress(DamagedFileError, ValueError, KeyError):  # what cannot be used is made again
            table = parquet.read_table(path)
            marks: dict[str, list[int]] = json.loads((table.schema.metadata or {})[_MARKS])
            return table.select(schema.names).replace_schema_metadata().cast(schema), marks
    return schema.empty_table(), {}


def _mark(layout: Layout, key: SeriesKey) -> list[int]:
    """Return the modification times of a series' folders; empty if they changed just now.

    Files are replaced by rename, which changes the modification time of their folder.
    """
    found = []
    for folder in (layout.folder(key), layout.months(key)):
        try:
            found.append(folder.stat().st_mtime_ns)
        except FileNotFoundError:
            found.append(0)
    return found if time.time_ns() - max(found) > _UNSETTLED_NS else []


def _split(table: pa.Table) -> dict[str, pa.Table]:
    """Return the rows of each symbol. The rows of a symbol are consecutive."""
    if not table.num_rows:
        return {}
    column: Any = table["symbol"].combine_chunks()
    codes = column.indices.to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), table.num_rows]
    return {str(column.dictionary[codes[first]]): table.slice(first, end - first) for first, end in pairwise(starts)}


def _read(layout: Layout, key: SeriesKey, known: pa.Table | None) -> pa.Table:
    """Return the rows of a series. Rows of files that did not change since are taken from the known ones."""
    for attempt in range(_ATTEMPTS):
        stored = partitions.day_files(layout, key)
        before = {} if known is None else _modified(known)
        unchanged = {day for day, file in stored.items() if before.get(day) == file.stat.mtime_ns}
        try:
            read = _of_files(key, [file for day, file in stored.items() if day not in unchanged])
        except FileNotFoundError as error:  # its month was closed meanwhile
            if attempt == _ATTEMPTS - 1:
                raise DamagedFileError(f"Files of {key} are removed during the read. {error}") from error
            continue
        if known is not None and unchanged:
            kept = known.filter(pc.is_in(known["day"], pa.array(sorted(unchanged), pa.date32())))
            read = pa.concat_tables([kept, read]).sort_by("day")
        return read
    raise AssertionError  # the last attempt returns or raises


def _modified(known: pa.Table) -> dict[date, int]:
    days, modified = parquet.days_of(known), known["modified_ns"].to_numpy().tolist()
    return dict(zip(days, modified, strict=True))


def _of_files(key: SeriesKey, files: Iterable[DayFile]) -> pa.Table:
    files = list(files)
    measures = measures_of(key.market)
    whole = lake_schema(key.market, key.data_type)
    rows = reader.read_days(files, pa.schema([whole.field(name) for name in ("open_time", *measures)]))
    listed = pa.table(
        {
            "day": pa.array([file.day for file in files], pa.date32()),
            "modified_ns": pa.array([file.stat.mtime_ns for file in files], pa.int64()),
        }
    )
    candles = rows.drop_columns("open_time").append_column("day", rows["open_time"].cast(pa.date32()))
    # A closed month lists all its days, also those without a candle.
    joined = listed.join(candles, "day", join_type="left outer").sort_by("day")
    symbols = pa.DictionaryArray.from_arrays(np.zeros(joined.num_rows, np.int32), pa.array([key.symbol]))
    schema = volumes_schema(key.market)
    return joined.append_column("symbol", symbols).select(schema.names).cast(schema)
