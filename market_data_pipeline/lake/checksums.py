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

CHANGED = "{path} was changed after it was written: its sha256 differs. Backfill that day to replace it."

_ROWS_AT_ONCE = 10_000


class Recorded(NamedTuple):
    """Hashes that a ledger has of a day's file.

    Attributes:
        stored: The day is stored. If False, its file was found damaged.
        rows: Number of rows in the file.
        stat: Size and modification time of the file that was hashed.
        file_sha256: SHA-256 of all bytes of the day's own file.
        month_sha256: SHA-256 of all bytes of the file of its closed month.
    """

    stored: bool = True
    rows: int = 0
    stat: FileStat | None = None
    file_sha256: str | None = None
    month_sha256: str | None = None

    def rules_out(self, stored: DayFile, sha256: str) -> bool:
        """Return True if a file with this SHA-256 is damaged: the ledger has another hash for its size and time.

        A file with another modification time may be a newer version from a killed run.
        """
        expected = self.month_sha256 if stored.of_month else self.file_sha256
        return expected is not None and expected != sha256 and (not self.stored or self.stat == stored.stat)


@dataclass(frozen=True, slots=True)
class DayVerification:
    """Result of verifying one day.

    Attributes:
        day: Expected UTC day.
        stat: Size and modification time before the read; None if the file is missing.
        rows: Number of rows; 0 if the file cannot be read.
        fault: Error message with the next step; None if the file is good.
        sha256: SHA-256 of all bytes of the file; None if they cannot be read.
        as_written: The bytes match the hash on record.
    """

    day: date
    stat: FileStat | None
    rows: int = 0
    fault: str | None = None
    sha256: str | None = None
    as_written: bool = False


def verify_days(
    layout: Layout, key: SeriesKey, days: Sequence[date], known: Mapping[date, Recorded] | None = None
) -> list[DayVerification]:
    """Verify days of a series against the hashes on record.

    Decode files whose hash differs or is not on record, and compare them with their footer: schema, rows, key order,
    statistics and content hash. The caller decides if changed bytes are a fault.

    Args:
        layout: Layout of the lake.
        key: The series. It may be derived.
        days: UTC days.
        known: Hashes from the ledger, for each day and for all days of their closed months.
    """
    verifier = _Verifier(layout, key, known or {})
    folder, closed = str(layout.folder(key)), closed_among(layout, key, days)
    return [
        verifier.verify_in_month(closed[day]) if day in closed else verifier.verify(f"{folder}/{day}.parquet", day)
        for day in days
    ]


class _Verifier:
    """Verifies files of one series, one after another.

    Label columns (symbol, interval) usually have the same bytes in each file of a series. Decoding them takes a
    quarter of the time of a day of 1m klines, so columns with identical bytes are decoded once.
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

    def verify(self, path: str, day: date) -> DayVerification:
        """Read a file and compare it with its footer."""
        try:
            data, stat = storage.read_bytes(path)
        except FileNotFoundError:
            return DayVerification(day, None, fault=f"{path} is gone. Backfill that day to restore it.")
        except OSError as error:
            return DayVerification(day, storage.stat(Path(path)), fault=str(parquet.damaged(Path(path), error)))
        sha256 = hashlib.sha256(data).hexdigest()
        known = self._known.get(day)
        if known is not None and known.file_sha256 == sha256:
            return DayVerification(day, stat, known.rows, sha256=sha256, as_written=True)
        if known is not None and known.rules_out(DayFile(self._of, day, Path(path), stat), sha256):
            return DayVerification(day, stat, fault=CHANGED.format(path=path), sha256=sha256)
        try:
            with parquet.opened(data) as (reader, metadata):
                rows = metadata.num_rows
                record = parquet.record_in(metadata)
                decoded = self._decoded(data, reader, metadata)
                wrong = self._difference(record, day, decoded) or _wrong_statistics(metadata, decoded)
        except parquet.UNREADABLE as error:
            return DayVerification(day, stat, fault=str(parquet.damaged(Path(path), error)), sha256=sha256)
        return self._result(path, day, stat, rows, wrong, sha256)

    def verify_in_month(self, stored: DayFile) -> DayVerification:
        """Compare a day of a closed month with its record. Read the month once for all of its days."""
        if self._month is None or stored.path != self._month.path:
            self._month = self._read_month(stored)
        month = self._month
        if month.as_written:
            known = self._known.get(stored.day)
            return DayVerification(
                stored.day, stored.stat, known.rows if known else 0, sha256=month.sha256, as_written=True
            )
        if month.changed:
            return DayVerification(stored.day, stored.stat, fault=CHANGED.format(path=stored.path), sha256=month.sha256)
        if isinstance(month.days, DamagedFileError):
            return DayVerification(stored.day, stored.stat, fault=str(month.days), sha256=month.sha256)
        found = month.days
        if stored.day not in found:
            return self._result(str(stored.path), stored.day, stored.stat, 0, "the day is missing", month.sha256)
        if (stray := of_another_month(stored, found)) is not None:
            return self._result(str(stored.path), stored.day, stored.stat, 0, stray, month.sha256)
        record, table = found[stored.day]
        decoded = (None, table) if table.schema.equals(self._schema) else None
        wrong = self._difference(record, stored.day, decoded) or month.wrong_statistics
        return self._result(str(stored.path), stored.day, stored.stat, table.num_rows, wrong, month.sha256)

    def _read_month(self, stored: DayFile) -> _Month:
        try:
            data, stat = storage.read_bytes(str(stored.path))
        except OSError as error:
            return _Month(stored.path, None, days=parquet.damaged(stored.path, error))
        sha256 = hashlib.sha256(data).hexdigest()
        # A killed run may leave hashes of an older file on record for some days.
        hashes = {known.month_sha256 for day in clock.days_of_month(stored.day) if (known := self._known.get(day))}
        if sha256 in hashes:
            return _Month(stored.path, sha256, as_written=True)
        days = days_of_month(self._layout, self._of, stored.day.replace(day=1), stat)
        if all((known := self._known.get(one.day)) and known.rules_out(one, sha256) for one in days):
            return _Month(stored.path, sha256, changed=True)
        try:
            found = parse_month(stored.path, data, self._schema)
            with parquet.opened(data) as (reader, metadata):
                wrong = _wrong_statistics(metadata, (None, reader.read_all(use_threads=False)))
        except DamagedFileError as error:
            return _Month(stored.path, sha256, days=error)
        except parquet.UNREADABLE as error:
            return _Month(stored.path, sha256, days=parquet.damaged(stored.path, error))
        return _Month(stored.path, sha256, found, wrong)

    def _result(
        self, path: str, day: date, stat: FileStat, rows: int, wrong: str | None, sha256: str | None
    ) -> DayVerification:
        if wrong is None:
            return DayVerification(day, stat, rows, sha256=sha256)
        advice = "it was changed after it was written. Backfill that day to replace it."
        return DayVerification(day, stat, rows, f"{path} does not match its footer ({wrong}): {advice}", sha256)

    def _decoded(self, data: bytes, reader: pq.ParquetReader, metadata: pq.FileMetaData) -> _Decoded | None:
        """Return a file's rows; None if it does not have the columns of its series."""
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
        """Describe the first difference between a file and its footer; None if there is none."""
        if (elsewhere := belongs_elsewhere(record, self._series, day)) is not None:
            return elsewhere
        if decoded is None:
            return "its columns differ"
        labels, table = decoded
        if table.num_rows != record.rows:
            return f"it has {table.num_rows} rows instead of {record.rows}"
        if self._key is not None:
            column = table.column(self._key)
            if column.null_count:
                return f"{self._key} is missing in a row"
            # Arrow's own conversion to numpy imports pandas first.
            keys = np.frombuffer(b"".join(bytes_of(chunk) for chunk in column.chunks), np.int64)
            if not (keys[1:] > keys[:-1]).all():
                return f"{self._key} is not strictly ascending"
            if keys.size and (keys[0], keys[-1]) != (record.first_key, record.last_key):
                return f"the first or last {self._key} differs"
        digest = labels.digest.copy() if labels else hashlib.sha256()
        add_content(digest, table)
        return None if digest.hexdigest() == record.content_sha256 else "the sha256 of its values differs"


@dataclass(frozen=True, slots=True)
class _Month:
    """A closed month's file, read once for all of its days."""

    path: Path
    sha256: str | None
    days: Mapping[date, DayInMonth] | DamagedFileError = field(default_factory=dict)
    wrong_statistics: str | None = None
    as_written: bool = False
    changed: bool = False


@dataclass(frozen=True, slots=True)
class _Labels:
    """A file's leading label columns: their encoded bytes, and the content hash up to them."""

    columns: int
    rows: int
    chunks: list[pq.ColumnChunkMetaData]
    encoded: list[bytes]
    digest: hashlib._Hash

    @classmethod
    def of(cls, data: bytes, metadata: pq.FileMetaData, table: pa.Table) -> _Labels | None:
        """Return the labels of a decoded file; None if its bytes do not separate them from other columns."""
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
        """Return True if another file of the same schema has the same labels, byte for byte."""
        if metadata.num_row_groups != 1 or metadata.num_rows != self.rows:
            return False
        chunks = _chunks(metadata, self.columns)
        return chunks == self.chunks and [_encoded(data, chunk) for chunk in chunks] == self.encoded


_Decoded = tuple[_Labels | None, pa.Table]
"""The labels if the table does not include them, and the table."""


def _wrong_statistics(metadata: pq.FileMetaData, decoded: _Decoded | None) -> str | None:
    """Describe the first column whose statistics do not match its values; None if all match.

    Readers skip rows by statistics, so wrong ones silently lose rows.
    """
    if decoded is None:
        return None
    table, start = decoded[1], 0
    names = [metadata.schema.column(at).name for at in range(metadata.num_columns)]
    for group in range(metadata.num_row_groups):
        rows = table.slice(start, metadata.row_group(group).num_rows)
        start += rows.num_rows
        for number, name in enumerate(names):
            recorded = parquet.statistics_in(metadata, group, number)
            if name in table.column_names and recorded is not None and not _are_of(recorded, rows.column(name)):
                return f"the statistics of {name} do not match its values"
    return None


def _are_of(recorded: Any, values: pa.ChunkedArray[Any]) -> bool:
    """Return True if statistics match values, as far as they are recorded."""
    if recorded.has_null_count and recorded.null_count != values.null_count:
        return False
    if not recorded.has_min_max:
        return True
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    try:
        bounds: Any = {"min": recorded.min, "max": recorded.max}
        return bool(bounds == pc.min_max(values).as_py())
    except OverflowError:  # a time beyond the year 9999
        return False


def _chunks(metadata: pq.FileMetaData, columns: int) -> list[pq.ColumnChunkMetaData]:
    group = metadata.row_group(0)
    return [group.column(number) for number in range(columns)]


def _encoded(data: bytes, chunk: pq.ColumnChunkMetaData) -> bytes:
    """Return a column's bytes in the file: its dictionary, then its values."""
    begin: Any = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return data[begin : begin + chunk.total_compressed_size]


class Digest(Protocol):
    """A hash of ``hashlib``."""

    def update(self, data: Any, /) -> None:
        """Hash more bytes."""


def content_sha256(table: pa.Table) -> str:
    """Return the SHA-256 of a table's values, independent of their encoding in a file.

    Columns are hashed one after another, in the table's order: the name, a zero byte, then the values as little-endian
    int64 (integers and times in µs), float64 or one byte per boolean. Label columns (symbol, interval) are the same in
    every row and are hashed once, as text.
    """
    digest = hashlib.sha256()
    add_content(digest, table)
    return digest.hexdigest()


def add_content(digest: Digest, table: pa.Table) -> None:
    """Add a table's columns to a :func:`content_sha256` that has hashed the columns before them."""
    if table.num_rows > _ROWS_AT_ONCE:
        for part in _content(table):
            digest.update(part)
    else:
        # Each update releases the GIL. Getting it back takes longer than hashing a day of candles.
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


# An Arrow conversion takes longer than hashing a day of 1m klines, so values are hashed straight from Arrow's buffers.


def _label_of(chunks: Sequence[pa.DictionaryArray[Any, Any]]) -> bytes:
    if len(chunks) == 1 and len(chunks[0].dictionary) == 1 and not chunks[0].null_count:
        [chunk] = chunks
        if len(chunk) and not np.frombuffer(memoryview(bytes_of(chunk.indices)), np.uint8).any():
            return str(chunk.dictionary[0]).encode()
    labels = dict.fromkeys(str(value) for chunk in chunks for value in chunk.unique().dictionary_decode().to_pylist())
    return ",".join(labels).encode()


def bytes_of(values: pa.Array[Any]) -> pa.Buffer | memoryview:
    """Return a column's values in the form that :func:`content_sha256` hashes. Labels are not supported."""
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
