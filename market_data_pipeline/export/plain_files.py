"""Formats ``csv`` and ``parquet``: all columns of the lake, one file per series and month."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from market_data_pipeline.export.pairs import Pairs
from market_data_pipeline.export.rows import SeriesRows
from market_data_pipeline.lake.reader import labels_of
from market_data_pipeline.model.series import SeriesKey

_Writer = pc.CSVWriter | pq.ParquetWriter


def csv_path(key: SeriesKey, pairs: Pairs) -> str:  # noqa: ARG001 - the signature of all formats
    """Return the folder of a series' CSV files below the target."""
    return "/".join(filter(None, (key.market, key.data_type, key.symbol, key.interval)))


def parquet_path(key: SeriesKey, pairs: Pairs) -> str:  # noqa: ARG001 - the signature of all formats
    """Return the folder of a series' Parquet files below the target. Names are Hive partitions."""
    interval = f"interval={key.interval}" if key.interval else None
    return "/".join(filter(None, (key.market, key.data_type, f"symbol={key.symbol}", interval)))


def write_csv(series: SeriesRows, folder: Path, pairs: Pairs) -> None:
    """Write a series as CSV with a header, times in ISO 8601 with ``Z``, one file per month."""
    _write_months(series, folder / csv_path(series.key, pairs), "csv", (), pc.CSVWriter)


def write_parquet(series: SeriesRows, folder: Path, pairs: Pairs) -> None:
    """Write a series as Parquet, one file per month. Symbol and interval are in the path only."""
    labels = labels_of(series.key.data_type)
    _write_months(series, folder / parquet_path(series.key, pairs), "parquet", labels, _parquet_writer)


def _parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd")


def _write_months(
    series: SeriesRows,
    folder: Path,
    suffix: str,
    left_out: tuple[str, ...],
    open_writer: Callable[[Path, pa.Schema], _Writer],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for month, parts in groupby(series.parts(), key=lambda part: f"{part[0]:%Y-%m}"):
        with ExitStack() as stack:
            writers: list[_Writer] = []
            for _, rows in parts:
                table = rows.drop_columns(list(left_out))
                if not writers:
                    writers.append(open_writer(folder / f"{month}.{suffix}", table.schema))
                    stack.callback(writers[0].close)
                writers[0].write_table(table)
