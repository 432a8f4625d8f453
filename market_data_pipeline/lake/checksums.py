"""Checksums of the lake: the hash of a day's content, and verification of files against the hashes on record.

Which files to verify belongs to ``maintenance/scrub.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.months import DayInMonth, parse_month
from market_data_pipeline.lake.partitions import closed_among, day_files_of_month, of_another_month
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import DayFile, DayRecord, FileStat
from market_data_pipeline.model.provenance import Provenance, belongs_elsewhere
from market_data_pipeline.model.schema import lake_schema, may_be_null
from market_data_pipeline.model.series import DataType, SeriesKey

CHANGED = "{path} was changed after it was written: its sha256 differs. Backfill that day to replace it."

_ROWS_AT_ONCE = 10_000


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
    layout: Layout, key: SeriesKey, days: Sequence[date], known: Mapping[date, DayRecord] | None = None
) -> list[DayVerification]:
    """Verify days of a series against the hashes on record.

    Decode files whose hash differs or is not on record, and compare them with their footer: schema, rows, key order,
    statistics and content hash. The caller decides if changed bytes are a fault.

    Args:
        key: The series. It may be derived.
        days: UTC days.
        known: Hashes from the ledger, for each day and for all days of their closed months.
    """
    verifier = _Verifier(layout, key, known or {})
    closed, unread = closed_among(layout, key, days), FileStat(0, 0)
    return [verifier.verify(closed.get(day) or DayFile(key, day, layout.file(key, day), unread)) for day in days]


@dataclass(frozen=True, slots=True)
class _File:
    """A file, read once for all of its days.

    Attributes:
        stats: Size and modification time, for each day its share.
        sha256: SHA-256 of all bytes.
        as_written: The bytes match a hash on record.
        wrong_statistics: First column whose statistics do not match, in words.
    """

    path: Path
    stats: Mapping[date, FileStat]
    sha256: str | None = None
    as_written: bool = False
    fault: str | None = None
    days: Mapping[date, DayInMonth] = field(default_factory=dict)
    wrong_statistics: str | None = None


class _Verifier:
    """Verifies files of one series, one after another."""

    def __init__(self, layout: Layout, key: SeriesKey, known: Mapping[date, DayRecord]) -> None:
        self._layout = layout
        self._known = known
        self._of = key
        schema = lake_schema(key.market, key.data_type)
        self._schemas = schema, may_be_null(schema)
        self._key = None if key.data_type is DataType.TRADE_PROFILE else spec_of(key).key
        self._step = 1 if self._key is None or not spec_of(key).also else 0
        self._file: _File | None = None

    def verify(self, stored: DayFile) -> DayVerification:
        """Compare a day with its record."""
        if self._file is None or self._file.path != stored.path:
            self._file = self._read(stored)
        file, day = self._file, stored.day
        result = DayVerification(day, file.stats.get(day), fault=file.fault, sha256=file.sha256)
        if file.fault is not None:
            return result
        if file.as_written:
            known = self._known.get(day)
            return replace(result, rows=known.rows if known else 0, as_written=True)
        rows, wrong = 0, of_another_month(stored, file.days)
        if day not in file.days:
            wrong = "the day is missing"
        elif wrong is None:
            record, table = file.days[day]
            rows, wrong = table.num_rows, self._difference(record, day, table) or file.wrong_statistics
        if wrong is not None:
            advice = "it was changed after it was written. Backfill that day to replace it."
            wrong = f"{file.path} does not match its footer ({wrong}): {advice}"
        return replace(result, rows=rows, fault=wrong)

    def _read(self, stored: DayFile) -> _File:
        path = stored.path
        try:
            data, stat = storage.read(path)
        except FileNotFoundError:
            return _File(path, {}, fault=f"{path} is gone. Backfill that day to restore it.")
        except OSError as error:
            unread = {one.day: one.stat for one in self._days_of(stored, storage.head(path) or stored.stat)}
            return _File(path, unread, fault=str(parquet.damaged(path, error)))
        days, sha256 = self._days_of(stored, stat), hashlib.sha256(data).hexdigest()
        file = _File(path, {one.day: one.stat for one in days}, sha256)
        known = [(one, self._known[one.day]) for one in days if one.day in self._known]
        # A killed run may leave hashes of an older file on record for some days of a month.
        if any(row.sha256_of(one) == sha256 for one, row in known):
            return replace(file, as_written=True)
        if len(known) == len(days) and all(row.rules_out(one, sha256) for one, row in known):
            return replace(file, fault=CHANGED.format(path=path))
        try:
            with parquet.opened(data) as (reader, metadata):
                if stored.of_month:
                    found = parse_month(path, data, self._schemas[0])
                else:
                    record = parquet.record_in(metadata)
                    found = {stored.day: DayInMonth(record, reader.read_all(use_threads=False))}
                table = pa.concat_tables(one.table for one in found.values())
                wrong = _wrong_statistics(metadata, table) if table.schema in self._schemas else None
        except DamagedFileError as error:
            return replace(file, fault=str(error))
        except parquet.UNREADABLE as error:
            return replace(file, fault=str(parquet.damaged(path, error)))
        return replace(file, days=found, wrong_statistics=wrong)

    def _days_of(self, stored: DayFile, stat: FileStat) -> list[DayFile]:
        """Return the days of a file, each with its share of the bytes."""
        if stored.of_month:
            return day_files_of_month(self._layout, self._of, stored.day.replace(day=1), stat)
        return [stored._replace(stat=stat)]

    def _difference(self, record: Provenance, day: date, table: pa.Table) -> str | None:
        """Describe the first difference between a file and its footer; None if there is none."""
        if (elsewhere := belongs_elsewhere(record, str(self._of), day)) is not None:
            return elsewhere
        if table.schema not in self._schemas:
            return "its columns differ"
        if table.num_rows != record.rows:
            return f"it has {table.num_rows} rows instead of {record.rows}"
        if self._key is not None:
            column = table.column(self._key)
            if column.null_count:
                return f"{self._key} is missing in a row"
            # Arrow's own conversion to numpy imports pandas first.
            keys = np.frombuffer(b"".join(_bytes_of(chunk) for chunk in column.chunks), np.int64)
            if not (keys[1:] >= keys[:-1] + self._step).all():
                return f"{self._key} is not {'strictly ' * self._step}ascending"
            if keys.size and (keys[0], keys[-1]) != (record.first_key, record.last_key):
                return f"the first or last {self._key} differs"
        return None if content_sha256(table) == record.content_sha256 else "the sha256 of its values differs"


def _wrong_statistics(metadata: pq.FileMetaData, table: pa.Table) -> str | None:
    """Describe the first column of a file whose statistics do not match its values; None if all match.

    Readers skip rows by statistics, so wrong ones silently lose rows.
    """
    start = 0
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


def content_sha256(table: pa.Table) -> str:
    """Return the SHA-256 of a table's values, independent of their encoding in a file.

    Columns are hashed one after another, in the table's order: the name, a zero byte, then the values as little-endian
    int64 (integers and times in µs), float64, one byte per boolean, or UTF-8 with a zero byte after each text. Label
    columns (symbol, interval) are the same in every row and are hashed once, as text.
    """
    digest = hashlib.sha256()
    if table.num_rows > _ROWS_AT_ONCE:
        for part in _content(table):
            digest.update(part)
    else:
        # Each update releases the GIL. Getting it back takes longer than hashing a day of candles.
        digest.update(b"".join(_content(table)))
    return digest.hexdigest()


def _content(table: pa.Table) -> Iterator[bytes | pa.Buffer | memoryview]:
    batches = [batch.columns for batch in table.to_batches()]
    for number, name in enumerate(table.schema.names):
        yield name.encode() + b"\0"
        chunks = [columns[number] for columns in batches]
        if chunks and isinstance(chunks[0], pa.DictionaryArray):
            yield _label_of(cast("list[pa.DictionaryArray[Any, Any]]", chunks))
        else:
            yield from map(_bytes_of, chunks)


# An Arrow conversion takes longer than hashing a day of 1m klines, so values are hashed straight from Arrow's buffers.


def _label_of(chunks: Sequence[pa.DictionaryArray[Any, Any]]) -> bytes:
    if len(chunks) == 1 and len(chunks[0].dictionary) == 1 and not chunks[0].null_count:
        [chunk] = chunks
        if len(chunk) and not np.frombuffer(memoryview(_bytes_of(chunk.indices)), np.uint8).any():
            return str(chunk.dictionary[0]).encode()
    labels = dict.fromkeys(str(value) for chunk in chunks for value in chunk.unique().dictionary_decode().to_pylist())
    return ",".join(labels).encode()


def _bytes_of(values: pa.Array[Any]) -> pa.Buffer | memoryview:
    """Return a column's values in the form that :func:`content_sha256` hashes. Labels are not supported."""
    kind, rows = values.type, len(values)
    if pa.types.is_string(kind):
        return memoryview("".join(f"{value}\0" for value in values.to_pylist()).encode())
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
