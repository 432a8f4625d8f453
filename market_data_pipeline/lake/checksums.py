"""Checksums of the lake: the hash of a day's content, and verification of files against the hashes on record.

Which files to verify belongs to ``maintenance/scrub.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.months import DayInMonth, parse_month
from market_data_pipeline.lake.partitions import closed_among, days_of_month, of_another_month
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import DayFile, FileStat
from market_data_pipeline.model.provenance import Provenance, belongs_elsewhere
from market_data_pipeline.model.schema import lake_schema, may_be_null
from market_data_pipeline.model.series import DataType, SeriesKey

CHANGED = (
    "{path} does not have the bytes that were written (its sha256 is another): it was changed after it was written. "
    "Backfill that day to replace it."
)


_ROWS_AT_ONCE = 10_000


class Recorded(NamedTuple):
    """What a ledger has on record of the bytes of a day's file.

    Attributes:
        held: Whether the file is held; else it failed as damaged.
        rows: Rows in the file.
        stat: Size and time of the file that is meant.
        file_sha256: SHA-256 of all bytes of the day's own file.
        month_sha256: SHA-256 of all bytes of the file of its closed month.
    """

    held: bool = True
    rows: int = 0
    stat: FileStat | None = None
    file_sha256: str | None = None
    month_sha256: str | None = None

    def rules_out(self, held: DayFile, sha256: str) -> bool:
        """Return True if a file is damaged since its bytes have a SHA-256: those of its size and time have another.

        A file of another time may be a newer version, which a run that was killed wrote.
        """
        expected = self.month_sha256 if held.of_month else self.file_sha256
        return expected is not None and expected != sha256 and (not self.held or self.stat == held.stat)


@dataclass(frozen=True, slots=True)
class Proof:
    """What reading one file came to.

    Attributes:
        day: The UTC day that the file should be of.
        stat: Its size and time before it was read; None where it is gone.
        rows: Rows in it; 0 where it cannot be read.
        fault: What is wrong with it, and what to do; None where all is well.
        sha256: Of all bytes of the file; None where they cannot be read.
        as_written: The bytes are those on record.
    """

    day: date
    stat: FileStat | None
    rows: int = 0
    fault: str | None = None
    sha256: str | None = None
    as_written: bool = False


def prove_days(
    layout: Layout, key: SeriesKey, days: Sequence[date], known: Mapping[date, Recorded] | None = None
) -> list[Proof]:
    """Read files of a series and compare each with the SHA-256 of its bytes on record.

    Those that have another one, or none on record, are decoded and compared with their footer: schema, rows, order of
    keys, statistics, sha256 of the content. It is then for the caller to decide whether other bytes are a fault.

    Args:
        layout: Where the lake lies.
        key: The series, a derived one too.
        days: UTC days.
        known: What the ledger has on record of each day, and of all days of closed months.
    """
    prover = _Prover(layout, key, known or {})
    folder, closed = str(layout.folder(key)), closed_among(layout, key, days)
    return [
        prover.prove_in_month(closed[day]) if day in closed else prover.prove(f"{folder}/{day}.parquet", day)
        for day in days
    ]


class _Prover:
    """Proves files of one series, one after another.

    Label columns (symbol, interval) are mostly the same bytes in each file of a series, yet decoding them takes a
    quarter of the time that a day of 1m klines does. Of those that are the same in every byte the first are decoded.
    """

    def __init__(self, layout: Layout, key: SeriesKey, known: Mapping[date, Recorded]) -> None:
        self._layout = layout
        self._known = known
        self._of = key
        self._series = str(key)
        self._schema = lake_schema(key.market, key.data_type)
        self._schemas = self._schema, may_be_null(self._schema)
        self._key = None if key.data_type is DataType.TRADE_PROFILE else spec_of(key).key
        self._labels: _Labels | None = None
        self._month: _Month | None = None

    def prove(self, path: str, day: date) -> Proof:
        """Read a file and compare it with its footer."""
        try:
            data, stat = storage.read_bytes(path)
        except FileNotFoundError:
            return Proof(day, None, fault=f"{path} is gone. Backfill that day to bring it back.")
        except OSError as error:
            return Proof(day, storage.stat(Path(path)), fault=str(parquet.damaged(Path(path), error)))
        sha256 = hashlib.sha256(data).hexdigest()
        known = self._known.get(day)
        if known is not None and known.file_sha256 == sha256:
            return Proof(day, stat, known.rows, sha256=sha256, as_written=True)
        if known is not None and known.rules_out(DayFile(self._of, day, Path(path), stat), sha256):
            return Proof(day, stat, fault=CHANGED.format(path=path), sha256=sha256)
        try:
            with parquet.opened(data) as (reader, metadata):
                rows = metadata.num_rows
                record = parquet.record_in(metadata)
                decoded = self._decoded(data, reader, metadata)
                wrong = self._difference(record, day, decoded) or _wrong_statistics(metadata, decoded)
        except parquet.UNREADABLE as error:
            return Proof(day, stat, fault=str(parquet.damaged(Path(path), error)), sha256=sha256)
        return self._proof(path, day, stat, rows, wrong, sha256)

    def prove_in_month(self, held: DayFile) -> Proof:
        """Compare a day of a closed month with its record; the month is read for the first of its days."""
        if self._month is None or held.path != self._month.path:
            self._month = self._read_month(held)
        month = self._month
        if month.as_written:
            known = self._known.get(held.day)
            return Proof(held.day, held.stat, known.rows if known else 0, sha256=month.sha256, as_written=True)
        if month.changed:
            return Proof(held.day, held.stat, fault=CHANGED.format(path=held.path), sha256=month.sha256)
        if isinstance(month.days, DamagedFileError):
            return Proof(held.day, held.stat, fault=str(month.days), sha256=month.sha256)
        found = month.days
        if held.day not in found:
            return self._proof(str(held.path), held.day, held.stat, 0, "it lacks the day", month.sha256)
        if (stray := of_another_month(held, found)) is not None:
            return self._proof(str(held.path), held.day, held.stat, 0, stray, month.sha256)
        record, table = found[held.day]
        decoded = (None, table) if table.schema.equals(self._schema) else None
        wrong = self._difference(record, held.day, decoded) or month.wrong_statistics
        return self._proof(str(held.path), held.day, held.stat, table.num_rows, wrong, month.sha256)

    def _read_month(self, held: DayFile) -> _Month:
        try:
            data, stat = storage.read_bytes(str(held.path))
        except OSError as error:
            return _Month(held.path, None, days=parquet.damaged(held.path, error))
        sha256 = hashlib.sha256(data).hexdigest()
        # A run that was killed may have left hashes of an older file on record for some days.
        hashes = {known.month_sha256 for day in clock.days_of_month(held.day) if (known := self._known.get(day))}
        if sha256 in hashes:
            return _Month(held.path, sha256, as_written=True)
        days = days_of_month(self._layout, self._of, held.day.replace(day=1), stat)
        if all((known := self._known.get(one.day)) and known.rules_out(one, sha256) for one in days):
            return _Month(held.path, sha256, changed=True)
        try:
            found = parse_month(held.path, data, self._schema)
            with parquet.opened(data) as (reader, metadata):
                wrong = _wrong_statistics(metadata, (None, reader.read_all(use_threads=False)))
        except DamagedFileError as error:
            return _Month(held.path, sha256, days=error)
        except parquet.UNREADABLE as error:
            return _Month(held.path, sha256, days=parquet.damaged(held.path, error))
        return _Month(held.path, sha256, found, wrong)

    def _proof(self, path: str, day: date, stat: FileStat, rows: int, wrong: str | None, sha256: str | None) -> Proof:
        if wrong is None:
            return Proof(day, stat, rows, sha256=sha256)
        advice = "it was changed after it was written. Backfill that day to replace it."
        return Proof(day, stat, rows, f"{path} does not hold what its footer says ({wrong}): {advice}", sha256)

    def _decoded(self, data: bytes, reader: pq.ParquetReader, metadata: pq.FileMetaData) -> _Decoded | None:
        """A file's rows; None where they are of other columns than they should be."""
        if reader.schema_arrow not in self._schemas:
            return None
        labels = self._labels
        if labels is not None and labels.are_in(data, metadata):
            rest = list(range(labels.columns, metadata.num_columns))
            return labels, reader.read_all(column_indices=rest, use_threads=False)
        table = reader.read_all(use_threads=False)
        self._labels = _Labels.of(data, metadata, table)
        return None, table

    def _difference(self, record: Provenance, day: date, decoded: _Decoded | None) -> str | None:
        """What of a file is not as its footer says, in words; None where all is."""
        if (elsewhere := belongs_elsewhere(record, self._series, day)) is not None:
            return elsewhere
        if decoded is None:
            return "its columns are others"
        labels, table = decoded
        if table.num_rows != record.rows:
            return f"it has {table.num_rows} rows instead of {record.rows}"
        if self._key is not None:
            column = table.column(self._key)
            if column.null_count:
                return f"{self._key} is missing in a row"
            # Not Arrow's own way to numpy, which imports pandas first.
            keys = np.frombuffer(b"".join(bytes_of(chunk) for chunk in column.chunks), np.int64)
            if not (keys[1:] > keys[:-1]).all():
                return f"{self._key} does not rise from row to row"
            if keys.size and (keys[0], keys[-1]) != (record.first_key, record.last_key):
                return f"{self._key} begins or ends elsewhere"
        digest = labels.digest.copy() if labels else hashlib.sha256()
        add_content(digest, table)
        return None if digest.hexdigest() == record.content_sha256 else "its values have another sha256"


@dataclass(frozen=True, slots=True)
class _Month:
    """The file of a closed month, read once for all of its days."""

    path: Path
    sha256: str | None
    days: Mapping[date, DayInMonth] | DamagedFileError = field(default_factory=dict)
    wrong_statistics: str | None = None
    as_written: bool = False
    changed: bool = False


@dataclass(frozen=True, slots=True)
class _Labels:
    """The label columns that a file begins with: what they were decoded from, and their part of the sha256."""

    columns: int
    rows: int
    chunks: list[pq.ColumnChunkMetaData]
    encoded: list[bytes]
    digest: hashlib._Hash

    @classmethod
    def of(cls, data: bytes, metadata: pq.FileMetaData, table: pa.Table) -> _Labels | None:
        """Those of a file that was decoded; None where they cannot be told from other columns by their bytes."""
        columns = 0
        while columns < table.num_columns and pa.types.is_dictionary(table.schema.field(columns).type):
            columns += 1
        if not columns or metadata.num_row_groups != 1:
            return None
        digest = hashlib.sha256()
        add_content(digest, table.select(range(columns)))
        chunks = _chunks(metadata, columns)
        return cls(columns, metadata.num_rows, chunks, [_encoded(data, chunk) for chunk in chunks], digest)

    def are_in(self, data: bytes, metadata: pq.FileMetaData) -> bool:
        """Whether another file of the same schema has the same ones, byte for byte."""
        if metadata.num_row_groups != 1 or metadata.num_rows != self.rows:
            return False
        chunks = _chunks(metadata, self.columns)
        return chunks == self.chunks and [_encoded(data, chunk) for chunk in chunks] == self.encoded


_Decoded = tuple[_Labels | None, pa.Table]
"""The labels, where the table is without them, and the table."""


def _wrong_statistics(metadata: pq.FileMetaData, decoded: _Decoded | None) -> str | None:
    """Return the first column whose statistics are not those of its values, in words; None if all are.

    Readers skip rows by them, so a wrong one loses rows unseen.
    """
    if decoded is None:
        return None
    table, start = decoded[1], 0
    names = [metadata.schema.column(at).name for at in range(metadata.num_columns)]
    for group in range(metadata.num_row_groups):
        rows = table.slice(start, metadata.row_group(group).num_rows)
        start += rows.num_rows
        for number, name in enumerate(names):
            told = parquet.statistics_in(metadata, group, number)
            if name in table.column_names and told is not None and not _are_of(told, rows.column(name)):
                return f"the statistics of {name} are those of other values"
    return None


def _are_of(told: Any, values: pa.ChunkedArray[Any]) -> bool:
    """Return True if statistics are those of values, as far as they say something."""
    if told.has_null_count and told.null_count != values.null_count:
        return False
    if not told.has_min_max:
        return True
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    try:
        bounds: Any = {"min": told.min, "max": told.max}
        return bool(bounds == pc.min_max(values).as_py())
    except OverflowError:  # a time beyond the year 9999
        return False


def _chunks(metadata: pq.FileMetaData, columns: int) -> list[pq.ColumnChunkMetaData]:
    group = metadata.row_group(0)
    return [group.column(number) for number in range(columns)]


def _encoded(data: bytes, chunk: pq.ColumnChunkMetaData) -> bytes:
    """A column as it is in the file: its dictionary, then its values."""
    begin: Any = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return data[begin : begin + chunk.total_compressed_size]


class Digest(Protocol):
    """What ``hashlib`` makes."""

    def update(self, data: Any, /) -> None:
        """Take in bytes."""


def content_sha256(table: pa.Table) -> str:
    """SHA-256 over a table's column values, independent of how a file encodes them.

    Columns go in one after another, in the table's order: the name, a zero byte, then the values as little-endian
    int64 (integers and times in µs), float64 or one byte a boolean. Label columns (symbol, interval), which are the
    same in every row, go in as text once.
    """
    digest = hashlib.sha256()
    add_content(digest, table)
    return digest.hexdigest()


def add_content(digest: Digest, table: pa.Table) -> None:
    """Go on with a :func:`content_sha256` that has taken in the columns before a table's."""
    if table.num_rows > _ROWS_AT_ONCE:
        for part in _content(table):
            digest.update(part)
    else:
        # Each update lets other threads in, and has to wait for them: longer than a day of candles takes.
        digest.update(b"".join(_content(table)))


def _content(table: pa.Table) -> Iterator[bytes | pa.Buffer | memoryview]:
    batches = [batch.columns for batch in table.to_batches()]
    for number, name in enumerate(table.schema.names):
        yield name.encode() + b"\0"
        chunks = [columns[number] for columns in batches]
        if chunks and isinstance(chunks[0], pa.DictionaryArray):
            yield _label_of(cast("list[pa.DictionaryArray[Any, Any]]", chunks))
        else:
            yield from map(bytes_of, chunks)


# To ask Arrow for a conversion takes longer than to hash a day of 1m klines, so what lies in memory as it is hashed is
# taken as it lies.


def _label_of(chunks: Sequence[pa.DictionaryArray[Any, Any]]) -> bytes:
    if len(chunks) == 1 and len(chunks[0].dictionary) == 1 and not chunks[0].null_count:
        [chunk] = chunks
        if len(chunk) and not np.frombuffer(memoryview(bytes_of(chunk.indices)), np.uint8).any():
            return str(chunk.dictionary[0]).encode()
    labels = dict.fromkeys(str(value) for chunk in chunks for value in chunk.unique().dictionary_decode().to_pylist())
    return ",".join(labels).encode()


def bytes_of(values: pa.Array[Any]) -> pa.Buffer | memoryview:
    """The values of a column, but labels, as :func:`content_sha256` takes them in."""
    kind, rows = values.type, len(values)
    if pa.types.is_boolean(kind):
        values = values.cast(pa.uint8())
        kind = values.type
    if values.null_count or not rows:
        return _bytes_with_nulls(values)
    width = kind.bit_width // 8
    buffer = cast("pa.Buffer", values.buffers()[1])
    return buffer.slice(values.offset * width, rows * width)


def _bytes_with_nulls(values: pa.Array[Any]) -> memoryview:
    if pa.types.is_timestamp(values.type):
        values = values.view(pa.int64())
    elif pa.types.is_date32(values.type):
        values = values.view(pa.int32())
    return np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).data
