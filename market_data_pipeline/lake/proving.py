"""Whether a file of the lake holds what its own footer says; nothing else shows a bit that the disk lost.

Small, since processes that do nothing else import it (``processes.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from market_data_pipeline.lake import files
from market_data_pipeline.lake.files import DamagedFileError, FileStat
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.months import DayInMonth, read_month
from market_data_pipeline.lake.on_disk import DayFile, closed_among, of_another_month
from market_data_pipeline.lake.provenance import Provenance, add_content, belongs_elsewhere, bytes_of
from market_data_pipeline.schemas import lake_schema, may_be_null
from market_data_pipeline.series import DataType, SeriesKey
from market_data_pipeline.specs import spec_of


@dataclass(frozen=True, slots=True)
class Proof:
    """What reading one file came to.

    Attributes:
        day: The UTC day that the file should be of.
        stat: Its size and time before it was read; None where it is gone.
        rows: Rows in it; 0 where it cannot be read.
        fault: What is wrong with it, and what to do; None where all is well.
    """

    day: date
    stat: FileStat | None
    rows: int = 0
    fault: str | None = None


def prove_days(layout: Layout, key: SeriesKey, days: Sequence[date]) -> list[Proof]:
    """Read files of a series and compare each with its footer: schema, rows, order of keys, sha256 of the content.

    Args:
        layout: Where the lake lies.
        key: The series, a derived one too.
        days: UTC days.
    """
    prover = _Prover(key)
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

    def __init__(self, key: SeriesKey) -> None:
        self._series = str(key)
        self._schema = lake_schema(key.market, key.data_type)
        self._schemas = self._schema, may_be_null(self._schema)
        self._key = None if key.data_type is DataType.TRADE_PROFILE else spec_of(key).key
        self._labels: _Labels | None = None
        self._month: tuple[Path | None, Mapping[date, DayInMonth] | DamagedFileError] = None, {}

    def prove(self, path: str, day: date) -> Proof:
        """Read a file and compare it with its footer."""
        try:
            data, stat = files.read_bytes(path)
        except FileNotFoundError:
            return Proof(day, None, fault=f"{path} is gone. Backfill that day to bring it back.")
        except OSError as error:
            return Proof(day, files.stat(Path(path)), fault=str(files.damaged(Path(path), error)))
        try:
            with files.opened(data) as (reader, metadata):
                rows = metadata.num_rows
                record = files.record_in(metadata)
                decoded = self._decoded(data, reader, metadata)
        except files.UNREADABLE as error:
            return Proof(day, stat, fault=str(files.damaged(Path(path), error)))
        return self._proof(path, day, stat, rows, self._difference(record, day, decoded))

    def prove_in_month(self, held: DayFile) -> Proof:
        """Compare a day of a closed month with its record; the month is read for the first of its days."""
        if held.path != self._month[0]:
            try:
                self._month = held.path, read_month(held.path, self._schema)
            except DamagedFileError as error:
                self._month = held.path, error
        found = self._month[1]
        if isinstance(found, DamagedFileError):
            return Proof(held.day, held.stat, fault=str(found))
        if held.day not in found:
            return self._proof(str(held.path), held.day, held.stat, 0, "it lacks the day")
        if (stray := of_another_month(held, found)) is not None:
            return self._proof(str(held.path), held.day, held.stat, 0, stray)
        record, table = found[held.day]
        decoded = (None, table) if table.schema.equals(self._schema) else None
        wrong = self._difference(record, held.day, decoded)
        return self._proof(str(held.path), held.day, held.stat, table.num_rows, wrong)

    def _proof(self, path: str, day: date, stat: FileStat, rows: int, wrong: str | None) -> Proof:
        if wrong is None:
            return Proof(day, stat, rows)
        advice = "it was changed after it was written. Backfill that day to replace it."
        return Proof(day, stat, rows, f"{path} does not hold what its footer says ({wrong}): {advice}")

    def _decoded(self, data: bytes, reader: pq.ParquetReader, metadata: pq.FileMetaData) -> _Decoded | None:
        """A file's rows; None where they are of other columns than they should be."""
        if reader.schema_arrow not in self._schemas:
            return None
        labels = self._labels
        if labels is not None and labels.are_in(data, metadata):
            rest = range(labels.columns, metadata.num_columns)
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


def _chunks(metadata: pq.FileMetaData, columns: int) -> list[pq.ColumnChunkMetaData]:
    group = metadata.row_group(0)
    return [group.column(number) for number in range(columns)]


def _encoded(data: bytes, chunk: pq.ColumnChunkMetaData) -> bytes:
    """A column as it is in the file: its dictionary, then its values."""
    begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return data[begin : begin + chunk.total_compressed_size]
