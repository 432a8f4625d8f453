"""Rows of one file of an older cache, as tables of the lake, day by day. Files are opened for reading only.

Zips are read by ``sources/binance/zip_reader.py``. Storing rows does not belong here.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import Ints, ints
from market_data_pipeline.errors import MalformedError
from market_data_pipeline.imports.layouts import OldFile, OldLayout
from market_data_pipeline.lake.regular_files import reading
from market_data_pipeline.model.datasets import Spec, is_bounded, most_rows, spec_of
from market_data_pipeline.model.schema import TIME, lake_schema
from market_data_pipeline.model.series import SeriesKey, interval_us
from market_data_pipeline.sources.binance.zip_reader import (
    label_columns,
    other_interval,
    read_csv_pieces,
    read_zip,
    split_days,
)

OLD_PRICES = ("open_time", "open", "high", "low", "close", "volume")
"""Columns that every cache of candles has."""

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "open_time": ("opentime", "timestamp", "time", "date", "datetime", "__index_level_0__"),
    "close_time": ("closetime",),
    "quote_volume": ("quote_asset_volume", "quotevolume", "quoteassetvolume", "quote_av"),
    "base_volume": ("base_asset_volume", "basevolume", "baseassetvolume"),
    "count": ("trades", "number_of_trades", "num_trades", "trade_count", "trades_count"),
    "taker_buy_volume": ("taker_buy_base_asset_volume", "taker_buy_base_volume", "taker_buy_base", "tb_base_av"),
    "taker_buy_quote_volume": ("taker_buy_quote_asset_volume", "taker_buy_quote", "tb_quote_av"),
    "taker_buy_base_volume": ("taker_buy_base_asset_volume", "taker_buy_base"),
}
"""Other names of the lake's columns, in lower case."""

_SYMBOLS = frozenset({"symbol", "s", "pair"})

_BATCH_ROWS = 1 << 17
_MOST_IN_MEMORY = 4_000_000
"""Maximum rows of a file whose days are not in order. It is read whole."""

_MOST_ARROW, _MOST_JSON = 1 << 30, 1 << 27
"""Maximum bytes of a file of Arrow, which may be one batch, and of JSON as text, which is parsed whole."""

_UNITS = ((10**9, 1_000_000, 1), (10**12, 1_000, 1), (10**15, 1, 1), (10**18, 1, 1_000))
"""Start of the range of plausible times of each unit, and the factor and divisor that make microseconds of it.
Each range ends with the year 2099. The ranges do not overlap."""


class FileVersion(NamedTuple):
    """Identity of a file at the time of reading.

    Attributes:
        sha256: SHA-256 of its bytes.
        mtime: Its modification time (UTC).
    """

    sha256: str
    bytes: int
    mtime: datetime


class OldDay(NamedTuple):
    """Rows of one day in a file.

    Attributes:
        table: The rows in the order of the file.
        known_until_us: End of the time that the file covers in this day (microseconds UTC).
    """

    day: date
    table: pa.Table
    known_until_us: int


@dataclass
class OldRows:
    """Rows of a file of an older cache.

    Attributes:
        version: Identity of the file.
        complete: True if the file has every column of the lake. Else it has :data:`OLD_PRICES` alone.
        notes: Remarks for people. They grow while days are read.
    """

    key: SeriesKey
    version: FileVersion
    complete: bool
    notes: list[str]
    _days: Iterator[OldDay]

    def __iter__(self) -> Iterator[OldDay]:
        """Yield the days in order.

        Raises:
            MalformedError: A value is not of its column's type.
        """
        return self._days


@contextmanager
def opened_rows(root: Path, file: OldFile, key: SeriesKey) -> Iterator[OldRows]:
    """Open a file of a cache, and check that it has rows of this series and of the days in its name.

    After the block, the file is looked at again.

    Args:
        root: Folder of the cache.

    Raises:
        MalformedError: The file is cut short, has other columns, rows of another series or in another unit or time
            zone, or was changed while it was read.
    """
    path = root / file.path
    try:
        with reading(path) as stream:
            before = os.fstat(stream.fileno())
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            mtime = datetime.fromtimestamp(before.st_mtime, UTC)
            version = FileVersion(sha256, before.st_size, min(mtime, clock.now()))
            yield _rows_of(stream, file, key, version)
            after = path.stat()
    except pa.ArrowException as error:
        raise MalformedError(f"It is damaged or cut short: {_first_line(error)}.") from error
    except OSError as error:
        raise MalformedError(f"It cannot be read: {error.strerror or _first_line(error)}.") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise MalformedError("It was changed while it was read. Import it again when no program writes it.")


def _rows_of(stream: BufferedReader, file: OldFile, key: SeriesKey, version: FileVersion) -> OldRows:
    if file.layout in (OldLayout.ARCHIVE, OldLayout.CSV):
        return OldRows(key, version, True, [], _of_archive(stream, file, key))
    reader = _Reader(stream, file, key, version)
    return OldRows(key, version, reader.complete, reader.notes, reader.days())


def _of_archive(stream: BufferedReader, file: OldFile, key: SeriesKey) -> Iterator[OldDay]:
    """Yield the days of a zip of the archive, or of its unzipped CSV."""
    stem = PurePosixPath(file.path).stem
    first, last = _period_of(file)
    if file.layout is OldLayout.ARCHIVE:
        table = read_zip(stream.read(), key, stem, first, last)
    else:
        size = os.fstat(stream.fileno()).st_size
        if is_bounded(key) and size > most_rows(key, (last - first).days + 1) * 400 + (1 << 20):
            raise MalformedError(f"{stem}.csv has {size:,} bytes, more than rows of {key.short} can take.")
        table = read_csv_pieces(iter(lambda: stream.read(4 << 20), b""), key, stem, first, last)
    table = table.replace_schema_metadata(None)
    for day, rows in split_days(table, spec_of(key).time).items():
        yield OldDay(day, rows, clock.day_start_us(day) + clock.US_PER_DAY)


def _period_of(file: OldFile) -> tuple[date, date]:
    if file.first is None or file.last is None:
        raise MalformedError("Its name has no day or month.")
    return file.first, file.last


class _Reader:
    """Rows of a file of Arrow, Parquet or JSON."""

    def __init__(self, stream: BufferedReader, file: OldFile, key: SeriesKey, version: FileVersion) -> None:
        self.file, self.key, self.version, self.spec = file, key, version, spec_of(key)
        self.notes: list[str] = []
        self._source = _open(stream, file)
        self._names = _names(self._source.names, self.spec)
        self.complete = len(self._names) == len(_columns(self.spec))
        if not self.complete and not set(OLD_PRICES) <= set(self._names):
            raise MalformedError(
                f"Its columns are {', '.join(self._source.names[:12])}: neither all columns of {key.data_type} nor "
                "open, high, low, close and volume with a time."
            )
        if not self.complete:
            self._names = {name: self._names[name] for name in OLD_PRICES}

    def days(self) -> Iterator[OldDay]:
        time = self._names[self.spec.time]
        rows, last, ordered = 0, None, True
        earliest, latest = 2**62, -(2**62)
        for batch in self._source.batches([time]):
            if not batch.num_rows:
                continue
            times = _microseconds(batch.column(time), time)
            days = times // clock.US_PER_DAY
            ordered &= bool((np.diff(days) >= 0).all()) and (last is None or last <= days[0])
            last, rows = days[-1], rows + len(times)
            earliest, latest = min(earliest, int(times.min())), max(latest, int(times.max()))
        if not rows:
            raise MalformedError("It has no rows.")
        self._check_span(earliest, latest)
        self._check_symbol()
        if not ordered and rows > _MOST_IN_MEMORY:
            raise MalformedError(f"Its {rows:,} rows are not in the order of their days. Sort them by time.")
        yield from self._finished(self._split(ordered), latest)

    def _check_span(self, earliest: int, latest: int) -> None:
        """Refuse rows outside of the period in the file's name, and rows that are newer than the file."""
        begin, end = clock.naive_from_us(earliest), clock.naive_from_us(latest)
        span = f"Its times run from {begin:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S}"
        advice = "They may be of another time zone, or of another file."
        if self.file.first and self.file.last and (begin.date() < self.file.first or end.date() > self.file.last):
            period = str(self.file.first) if self.file.first == self.file.last else f"{self.file.first:%Y-%m}"
            raise MalformedError(f"{span}, but its name has {period} (UTC). {advice}")
        if end > clock.naive_utc(self.version.mtime) + timedelta(minutes=1):
            raise MalformedError(
                f"{span}, beyond {self.version.mtime:%Y-%m-%d %H:%M:%S}, when it was written. {advice}"
            )

    def _split(self, ordered: bool) -> Iterator[tuple[date, pa.Table]]:
        """Yield the rows of each day, with only a few days in memory if the file is in order."""
        tables = (self._as_stored(batch) for batch in self._source.batches(list(self._names.values())))
        if not ordered:
            yield from split_days(pa.concat_tables(tables), self.spec.time).items()
            return
        parts: list[pa.Table] = []
        of: date | None = None
        for table in tables:
            for day, rows in split_days(table, self.spec.time).items():
                if of is not None and day != of:
                    yield of, pa.concat_tables(parts)
                    parts = []
                of = day
                parts.append(rows)
        if of is not None:
            yield of, pa.concat_tables(parts)

    def _finished(self, days: Iterator[tuple[date, pa.Table]], latest: int) -> Iterator[OldDay]:
        """Leave out a newest candle that may be unfinished."""
        written = clock.to_us(self.version.mtime)
        for day, table in days:
            end = clock.day_start_us(day) + clock.US_PER_DAY
            until = min(end, written)
            if self.key.interval is not None:
                step = interval_us(self.key.interval)
                if day == clock.day_of_us(latest) and (latest + step < end or latest + step > written):
                    table = table.filter(pc.less(table.column("open_time"), pa.scalar(latest, TIME)))
                    at = clock.naive_from_us(latest)
                    self.notes.append(f"The newest candle ({at:%Y-%m-%d %H:%M:%S}) is left out: it may be unfinished.")
            if table.num_rows:
                yield OldDay(day, table, until)

    def _as_stored(self, raw: pa.Table) -> pa.Table:
        """Return rows with the lake's columns and types."""
        raw = self._without_empty_rows(raw)
        columns: list[Any] = list(label_columns(self.key, raw.num_rows)) if self.complete else []
        fields = []
        schema = lake_schema(self.key.market, self.key.data_type)
        for name in _columns(self.spec) if self.complete else OLD_PRICES:
            field = schema.field(name)
            columns.append(_converted(raw.column(self._names[name]), field.type, self._names[name]))
            fields.append(field)
        table = pa.table(columns, schema=schema if self.complete else pa.schema(fields))
        self._check_candles(table)
        return table

    def _check_symbol(self) -> None:
        """Refuse a file that names another symbol in one of its rows."""
        for name in [name for name in self._source.names if name.lower() in _SYMBOLS]:
            for batch in self._source.batches([name]):
                words = pc.unique(batch.column(name)).to_pylist()
                for word in words:
                    if isinstance(word, str) and self.key.symbol not in (word, _plain(word)):
                        raise MalformedError(f"Its column {name} says {word}, but {self.key.symbol} is expected.")

    def _without_empty_rows(self, raw: pa.Table) -> pa.Table:
        """Leave out rows without values, which other tools write for missing candles. Refuse half rows."""
        values = [self._names[name] for name in self._names if name != self.spec.time]
        empty = [_is_empty(raw.column(name)) for name in values]
        some = np.logical_or.reduce(empty)
        if not some.any():
            return raw
        every = np.logical_and.reduce(empty)
        if (some & ~every).any():
            name = next(name for name, column in zip(values, empty, strict=True) if (column & ~every).any())
            raise MalformedError(f"A row has no {name}, but other values.")
        self.notes.append(f"{int(every.sum()):,} rows without values are left out.")
        return raw.filter(pa.array(~every))

    def _check_candles(self, table: pa.Table) -> None:
        """Refuse candles of another interval, off the grid, or whose times disagree by hours."""
        if self.key.interval is None or not table.num_rows:
            return
        step, opened = interval_us(self.key.interval), ints(table, "open_time")
        off = int((opened % step != 0).sum())
        if 2 * off > len(opened):
            raise MalformedError(
                f"{off:,} of {len(opened):,} candles do not begin on the grid of {self.key.interval} (UTC). "
                "Their times may be of another time zone."
            )
        steps = np.diff(np.unique(opened))
        if len(steps) and int(np.median(steps)) != step:
            raise MalformedError(f"Its candles are {int(np.median(steps)) / 1e6:g} s apart, not {self.key.interval}.")
        if not self.complete:
            return
        lasts = ints(table, "close_time") - opened
        if 2 * int(((lasts <= 0) | (lasts > step)).sum()) > len(lasts):
            hours = float(np.median(lasts - step)) / 3.6e9
            raise MalformedError(
                f"close_time is {hours:+.1f} hours from the end that open_time gives: another time zone."
            )
        if (other := other_interval(self.key, table)) is not None:
            raise MalformedError(f"Its rows have another interval: {other}.")


def _columns(spec: Spec) -> list[str]:
    return [column.name for column in spec.columns if column.kind != "ignore"]


def _names(names: Sequence[str], spec: Spec) -> dict[str, str]:
    """Return the file's names of the lake's columns, as far as it has them."""
    lower = {name.lower(): name for name in reversed(names)}
    found: dict[str, str] = {}
    for column in spec.columns:
        if column.kind == "ignore":
            continue
        if column.rest and column.rest in names:  # REST's short names differ in case: T, t
            found[column.name] = column.rest
            continue
        named = next((lower[one] for one in (column.name, *_ALIASES.get(column.name, ())) if one in lower), None)
        if named is not None and named not in found.values():
            found[column.name] = named
    return found


def _is_empty(column: pa.ChunkedArray[Any]) -> npt.NDArray[np.bool_]:
    """Return a mask of the values that are null or NaN."""
    mask: npt.NDArray[np.bool_] = np.asarray(pc.is_null(column, nan_is_null=pa.types.is_floating(column.type)))
    return mask


def _converted(column: pa.ChunkedArray[Any], wanted: pa.DataType, name: str) -> pa.ChunkedArray[Any] | pa.Array[Any]:
    if wanted == TIME:
        return pa.array(_microseconds(column, name)).cast(TIME)
    try:
        return column.cast(wanted)
    except pa.ArrowException as error:
        raise MalformedError(f"Its column {name} has values that are not {wanted}: {_first_line(error)}.") from error


def _microseconds(column: pa.ChunkedArray[Any], name: str) -> Ints:
    """Return times as microseconds UTC. Times without a zone count as UTC.

    Raises:
        MalformedError: A time is missing, or not between 2001 and 2099 in any unit.
    """
    if column.null_count:
        raise MalformedError(f"Its column {name} has {column.null_count:,} rows without a time.")
    kind = column.type
    try:
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            zoned = pc.any(pc.match_substring_regex(column, r"(Z|[+-]\d\d:?\d\d)$")).as_py()
            column = column.cast(pa.timestamp("us", "UTC" if zoned else None))
        elif pa.types.is_date(kind):
            column = column.cast(pa.timestamp("us"))
        if pa.types.is_timestamp(column.type):
            scale = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}[column.type.unit]
            numbers: Ints = column.cast(pa.int64()).to_numpy() * scale
            times = numbers // 1_000 if column.type.unit == "ns" else numbers
        else:
            times = _of_numbers(column.cast(pa.int64()).to_numpy())
    except (pa.ArrowException, KeyError) as error:
        raise MalformedError(f"Its column {name} has no times: {_first_line(error)}.") from error
    if len(times) and (times.min() < 10**15 or times.max() >= 41 * 10**14):
        raise MalformedError(f"Its column {name} has times outside of 2001 to 2099. Its unit is unknown.")
    return times


def _of_numbers(numbers: Ints) -> Ints:
    """Return numbers of any unit as microseconds. The archive's own unit changed in 2025, so units may be mixed."""
    ranges = [(numbers >= low) & (numbers < 41 * low // 10) for low, _, _ in _UNITS]
    in_us = [numbers * factor // divisor for _, factor, divisor in _UNITS]
    times: Ints = np.select(ranges, in_us, 0)
    return times


def _plain(symbol: str) -> str:
    """Return a symbol without the separators of other tools."""
    return symbol.replace("/", "").replace("-", "").partition(":")[0]


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")[:200] or type(error).__name__


# --- containers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """An opened container of columns.

    Attributes:
        names: Names of its columns.
        batches: Reads some of the columns, a bounded number of rows at a time.
    """

    names: list[str]
    batches: Callable[[list[str]], Iterator[pa.Table]]


def _open(stream: BufferedReader, file: OldFile) -> _Source:
    """Open a container by its first bytes: files named ``.arrow`` may be Parquet.

    Raises:
        MalformedError: The bytes are none of the known containers, or too many for one that is read whole.
    """
    magic = stream.read(8)
    stream.seek(0)
    if magic.startswith(b"PAR1"):
        return _open_parquet(stream)
    size = os.fstat(stream.fileno()).st_size
    if size > _MOST_ARROW:
        raise MalformedError(f"Its {size:,} bytes are more than the {_MOST_ARROW:,} that are read at once.")
    if magic.startswith(b"ARROW1"):
        return _open_arrow(stream)
    if magic.startswith(b"\xff\xff\xff\xff"):
        return _of_table(pa.ipc.open_stream(stream).read_all())
    if file.layout is OldLayout.FREQTRADE and ".json" in PurePosixPath(file.path).suffixes:
        return _of_table(_of_json(stream, magic))
    if not magic:
        raise MalformedError("It is empty.")
    raise MalformedError(f"It starts with {magic!r}: neither Parquet nor Arrow.")


def _open_parquet(stream: BufferedReader) -> _Source:
    parquet = pq.ParquetFile(stream)

    def batches(columns: list[str]) -> Iterator[pa.Table]:
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])

    return _Source(list(parquet.schema_arrow.names), batches)


def _open_arrow(stream: BufferedReader) -> _Source:
    names = list(pa.ipc.open_file(stream).schema.names)

    def batches(columns: list[str]) -> Iterator[pa.Table]:
        options = pa.ipc.IpcReadOptions(included_fields=sorted(names.index(name) for name in columns))
        reader = pa.ipc.open_file(stream, options=options)
        for number in range(reader.num_record_batches):
            yield from _sliced(pa.Table.from_batches([reader.get_batch(number)]))

    return _Source(names, batches)


def _of_table(table: pa.Table) -> _Source:
    return _Source(list(table.column_names), lambda columns: _sliced(table.select(columns)))


def _sliced(table: pa.Table) -> Iterator[pa.Table]:
    for first in range(0, table.num_rows, _BATCH_ROWS):
        yield table.slice(first, _BATCH_ROWS)


def _of_json(stream: BufferedReader, magic: bytes) -> pa.Table:
    """Read a list of rows: time, open, high, low, close and volume."""
    zipped = magic.startswith(b"\x1f\x8b")
    try:
        data = (gzip.GzipFile(fileobj=stream) if zipped else stream).read(_MOST_JSON + 1)
        if len(data) > _MOST_JSON:
            raise MalformedError(f"Its JSON has more than {_MOST_JSON:,} bytes.")
        rows = json.loads(data)
        columns = list(zip(*rows, strict=True))
        if len(columns) != len(OLD_PRICES):
            raise MalformedError(f"Its JSON is not a list of rows of {len(OLD_PRICES)} values.")
        numbers: list[pa.Array[Any]] = [pa.array(list(columns[0]), pa.int64())]
        numbers += [pa.array([float(value) for value in values], pa.float64()) for values in columns[1:]]
    except (ValueError, TypeError, EOFError, gzip.BadGzipFile, RecursionError) as error:
        raise MalformedError(f"Its JSON is damaged or cut short: {_first_line(error)}.") from error
    return pa.table(numbers, names=list(OLD_PRICES))
