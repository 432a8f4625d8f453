"""What the pipeline is compared with: the simple ways to do the same, and what the libraries alone can do."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from isal import isal_zlib

from benchmarks.measure import Cost, measured
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.schema import ARROW_TYPES
from market_data_pipeline.model.series import SeriesKey


def days_of(key: SeriesKey, days: Sequence[date]) -> list[str]:
    """Keys of daily zips in the archive's bucket."""
    return [key.archive_daily(day) for day in days]


def months_of(key: SeriesKey, months: Sequence[date]) -> list[str]:
    """Keys of monthly zips in the archive's bucket."""
    return [key.archive_monthly(month) for month in months]


@contextmanager
def _reading(where: str | Path) -> Iterator[Callable[[str], bytes]]:
    """How a zip is got: from a server by one kept connection, or from a mirror on this disk."""
    if isinstance(where, Path):
        mirror = where
        yield lambda zip_: (mirror / zip_).read_bytes()
        return
    import requests

    with requests.Session() as session:
        yield lambda zip_: session.get(f"{where}/{zip_}", timeout=60).content


def pandas_ingest(key: SeriesKey, zips: Sequence[str], where: str | Path, folder: Path) -> Cost:
    """Run the common script: requests, ``pandas.read_csv`` on the zip, ``to_parquet``, one after another.

    Nothing is verified or checked, and no file is safe against a crash.

    Args:
        key: The series.
        zips: Their keys in the archive's bucket.
        where: URL of a server, or a mirror on this disk.
        folder: Where files go.
    """
    import pandas as pd

    names = [column.name for column in spec_of(key).columns]
    folder.mkdir(parents=True)
    with measured() as cost, _reading(where) as read:
        for zip_ in zips:
            frame = pd.read_csv(io.BytesIO(read(zip_)), names=names, compression="zip")
            frame.to_parquet(folder / f"{Path(zip_).stem}.parquet", compression="zstd", index=False)
    return cost


def pandas_ingest_each(keys: Sequence[SeriesKey], day: date, url: str, folder: Path) -> float:
    """Run the same script for a day of one series after another; seconds."""
    return sum(pandas_ingest(key, days_of(key, [day]), url, folder / str(n)).seconds for n, key in enumerate(keys))


def polars_ingest(key: SeriesKey, zips: Sequence[str], where: str | Path, folder: Path) -> Cost:
    """Run the same with polars, which reads and writes in threads of its own."""
    import polars as pl

    names = [column.name for column in spec_of(key).columns]
    folder.mkdir(parents=True)
    with measured() as cost, _reading(where) as read:
        for zip_ in zips:
            with zipfile.ZipFile(io.BytesIO(read(zip_))) as archive:
                csv = archive.read(archive.namelist()[0])
            frame = pl.read_csv(csv, has_header=False, new_columns=names)
            frame.write_parquet(folder / f"{Path(zip_).stem}.parquet", compression="zstd")
    return cost


def bare_libraries(key: SeriesKey, zips: Sequence[str], mirror: Path, folder: Path) -> Cost:
    """isal, Arrow's CSV reader and its Parquet writer on files of this disk, a thread for each core.

    No download, no checksum, no checks, nothing flushed to the disk: about the least that these libraries can do.
    """
    types = {column.name: ARROW_TYPES.get(column.kind, pa.string()) for column in spec_of(key).columns}
    types |= {column.name: pa.int64() for column in spec_of(key).columns if column.kind == "time"}
    options = pa_csv.ConvertOptions(column_types=types, true_values=["True"], false_values=["False"])
    folder.mkdir(parents=True)

    def one(zip_: str) -> None:
        table = pa_csv.read_csv(
            cast("BinaryIO", pa.BufferReader(_only_member(mirror / zip_))),
            read_options=pa_csv.ReadOptions(column_names=list(types), use_threads=False),
            convert_options=options,
        )
        pq.write_table(table, folder / f"{Path(zip_).stem}.parquet", compression="zstd")

    with measured() as cost, ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, zips))
    return cost


def _only_member(path: Path) -> bytes:
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        [member] = archive.infolist()
    name_length, extra_length = struct.unpack_from("<HH", data, member.header_offset + 26)
    start = member.header_offset + 30 + name_length + extra_length
    content: bytes = isal_zlib.decompress(data[start : start + member.compress_size], -zlib.MAX_WBITS)
    return content


def pandas_read(
    root: Path, days: Sequence[tuple[SeriesKey, date]], columns: list[str] | None, times: int
) -> list[float]:
    """``pandas.read_parquet`` on each file, then ``concat``; seconds of each repetition."""
    import pandas as pd

    layout = Layout(root)
    paths = [layout.file(key, day) for key, day in days]

    def read() -> pd.DataFrame:
        return pd.concat([pd.read_parquet(path, columns=columns) for path in paths], ignore_index=True)

    return repeated(read, times)


def polars_read(
    root: Path, days: Sequence[tuple[SeriesKey, date]], columns: list[str] | None, times: int
) -> list[float]:
    """``polars.read_parquet`` on all files at once, to pandas; seconds of each repetition."""
    import polars as pl

    layout = Layout(root)
    paths = [layout.file(key, day) for key, day in days]
    return repeated(lambda: pl.read_parquet(paths, columns=columns).to_pandas(), times)


def repeated(read: Callable[[], object], times: int) -> list[float]:
    """Seconds of each repetition, after one that does not count."""
    [seconds] = in_turn([read], times)
    return seconds


def in_turn(reads: Sequence[Callable[[], object]], times: int) -> list[list[float]]:
    """Return the seconds of each repetition of each read, after one that does not count.

    The reads take turns, so that a machine that is busy for a while slows all of them.
    """
    for read in reads:
        read()
    seconds = [list[float]() for _ in reads]
    for _ in range(times):
        for read, of_one in zip(reads, seconds, strict=True):
            with measured() as cost:
                read()
            of_one.append(cost.seconds)
    return seconds
