"""Parquet files of the lake: encode, write and read tables, with provenance in the footer.

Paths belong to ``lake/layout.py``, atomic replacement to ``lake/storage``.
"""

from __future__ import annotations

import base64
import errno
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from market_data_pipeline import __version__, clock
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import storage
from market_data_pipeline.model import faults
from market_data_pipeline.model.datasets import Spec
from market_data_pipeline.model.day import FileStat
from market_data_pipeline.model.provenance import FOOTER_KEY, Provenance
from market_data_pipeline.model.schema import with_field_ids, without_field_ids

ROW_GROUP_ROWS = 122_880
"""DuckDB's row group size. Measured as the best trade-off between file size and reading a part of a day."""

UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError)
"""Exceptions from reading a damaged or foreign file; see :func:`damaged`."""

_OF_THE_FILE = (None, errno.ENOENT, errno.EISDIR)
"""Values of errno that concern the file itself. All others concern the machine, and the file may be good."""


def encode_table(table: pa.Table, provenance: Provenance | None = None, spec: Spec | None = None) -> pa.Buffer:
    """Encode a table as Parquet, with provenance in the footer.

    Args:
        spec: Encoding and compression of the columns. None means zstd.
    """
    # Encoded in memory and written in one piece. Otherwise Arrow calls into Python for each of some hundred small ones.
    encoded = pa.BufferOutputStream()
    is_of_lake = provenance is not None
    with (numbered_writer if is_of_lake else _plain_writer)(encoded, table.schema, spec) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        _sign(writer, provenance)
    return encoded.getvalue()


def _plain_writer(sink: pa.NativeFile, schema: pa.Schema, spec: Spec | None) -> pq.ParquetWriter:
    return pq.ParquetWriter(sink, schema, **parquet_options(schema, spec))


def numbered_writer(sink: pa.NativeFile, schema: pa.Schema, spec: Spec | None = None) -> pq.ParquetWriter:
    """Return a writer of rows of the lake, whose columns have the numbers by which Iceberg finds them.

    Args:
        schema: Columns of the lake.
        spec: Encoding and compression of the columns. None means zstd.
    """
    plain = without_field_ids(schema)
    writer = pq.ParquetWriter(sink, with_field_ids(plain), store_schema=False, **parquet_options(plain, spec))
    # Arrow stores its own schema as well, and would repeat the numbers there: a kilobyte in each file.
    arrow_schema: Any = {b"ARROW:schema": base64.b64encode(plain.serialize())}  # bytes; the stubs want str
    writer.add_key_value_metadata(arrow_schema)
    return writer


def _sign(writer: pq.ParquetWriter, provenance: Provenance | None) -> None:
    if provenance is not None:
        stamped = provenance.model_copy(update={"writer_version": __version__})
        record: Any = {FOOTER_KEY: stamped.model_dump_json(exclude_none=True).encode()}  # bytes; the stubs want str
        writer.add_key_value_metadata(record)


class EncodingAhead:
    """Encoder of a big table in a background thread, while its blocks arrive. Result as :func:`encode_table`.

    Args:
        spec: Encoding and compression of the columns.
    """

    def __init__(self, schema: pa.Schema, spec: Spec) -> None:
        self._encoded = pa.BufferOutputStream()
        self._writer = numbered_writer(self._encoded, schema, spec)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._groups: list[Future[None]] = []
        self._rest: list[pa.Table] = []
        self._rows = 0

    def take(self, block: pa.Table) -> None:
        """Take the table's next rows."""
        self._rest.append(block)
        self._rows += block.num_rows
        while self._rows >= ROW_GROUP_ROWS:
            rows = pa.concat_tables(self._rest)
            self._write(rows.slice(0, ROW_GROUP_ROWS))
            self._rest = [rows.slice(ROW_GROUP_ROWS)]
            self._rows -= ROW_GROUP_ROWS

    def _write(self, rows: pa.Table) -> None:
        self._groups.append(self._thread.submit(self._writer.write_table, rows, row_group_size=ROW_GROUP_ROWS))

    def end(self) -> None:
        """Encode the remaining rows. No more may follow."""
        if self._rows:
            self._write(pa.concat_tables(self._rest))

    def signed(self, provenance: Provenance) -> pa.Buffer:
        """Return the bytes of the finished file, with its record in the footer. Call :meth:`end` first."""
        for group in self._groups:
            group.result()
        _sign(self._writer, provenance)
        self._writer.close()
        return self._encoded.getvalue()

    def close(self) -> None:
        """Release the thread and the writer, also if the file was never finished."""
        self._thread.shutdown(cancel_futures=True)
        self._writer.close()


def parquet_options(schema: pa.Schema, spec: Spec | None = None) -> dict[str, Any]:
    """Return compression and encoding of the lake's files, as arguments of Arrow's Parquet writer."""
    labels = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    compression = spec.compression if spec else "zstd"
    return {
        "compression": compression,
        "compression_level": 1 if compression == "zstd" else None,
        "use_dictionary": [*labels, *(spec.dictionary if spec else ())],
        "column_encoding": dict.fromkeys(spec.delta, "DELTA_BINARY_PACKED") if spec else None,
        # Ledgers and other tables without a spec have no hash on record elsewhere, so their pages have checksums.
        "write_page_checksum": spec is None,
    }


def write_table(
    path: Path, table: pa.Table, provenance: Provenance | None = None, spec: Spec | None = None
) -> FileStat:
    """Encode a table with :func:`encode_table` and write it atomically.

    Raises:
        StorageError: The write failed. ``path`` is unchanged.
    """
    return storage.put(path, encode_table(table, provenance, spec))


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read all rows of a file of the lake.

    Args:
        columns: Names of columns, in order; None reads all.

    Raises:
        DamagedFileError: The file or a column is missing, or the file is unreadable. The message names it and the fix.
    """
    try:
        with storage.open_file(path) as file:
            table = _read_parquet(file, columns)
        return table if columns is None else table.select(columns)
    except KeyError as error:
        raise damaged(path, ValueError(f"a column is missing ({error.args[0]})")) from error
    except UNREADABLE as error:  # also a damaged column name that is no longer UTF-8
        raise damaged(path, error) from error


def parse_table(path: Path, data: bytes) -> pa.Table:
    """Return all rows in the bytes of a file; see :func:`read_table`.

    Raises:
        DamagedFileError: The bytes are unreadable.
    """
    try:
        return _read_parquet(pa.BufferReader(data))
    except UNREADABLE as error:
        raise damaged(path, error) from error


def _read_parquet(source: IO[bytes] | pa.NativeFile, columns: list[str] | None = None) -> pa.Table:
    # Read in this thread. Arrow's own threads release a Python file only after the rows are returned. If the script
    # ends in between, the process aborts ("terminate called without an active exception").
    with pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True) as file:
        return file.read(columns=columns, use_threads=False)


def days_of(table: pa.Table) -> list[date]:
    """Return the column ``day`` as dates, thirty times as fast as Arrow's own conversion."""
    days: list[Any] = table["day"].cast(pa.int32()).to_pylist()
    return [clock.day_of_number(day) for day in days]


def us_of(table: pa.Table, name: str) -> list[int | None]:
    """Return a column of times as microseconds since 1970, thirty times as fast as datetimes."""
    us: list[int | None] = table[name].cast(pa.int64()).to_pylist()
    return us


def read_encoded(parquet: pa.Buffer) -> pa.Table:
    """Return the rows of a file from :func:`encode_table`."""
    return _read_parquet(pa.BufferReader(parquet))


def read_provenance(path: Path) -> Provenance:
    """Read the record in a file's footer.

    Raises:
        DamagedFileError: The file is missing, not Parquet, or has no valid record.
    """
    try:
        with storage.open_file(path) as file:
            return record_in(pq.read_metadata(file))
    except UNREADABLE as error:
        raise damaged(path, error) from error


def parse_whole(path: Path, data: bytes) -> tuple[Provenance, pa.Table]:
    """Return the record and the rows in the bytes of a file.

    Raises:
        DamagedFileError: The bytes are unreadable or have no valid record.
    """
    try:
        with opened(data) as (reader, metadata):
            return record_in(metadata), reader.read_all(use_threads=False)
    except UNREADABLE as error:
        raise damaged(path, error) from error


@contextmanager
def opened(data: bytes) -> Iterator[tuple[pq.ParquetReader, pq.FileMetaData]]:
    """Open the bytes of a file, and yield its reader and its metadata.

    A ``ParquetFile`` would first index nested columns, which takes as long as decoding one column.
    """
    reader = pq.ParquetReader()
    reader.open(pa.BufferReader(data), use_memory_map=False, pre_buffer=False)
    try:
        yield reader, reader.metadata
    finally:
        reader.close()


def statistics_in(metadata: pq.FileMetaData, group: int, column: int) -> pq.Statistics | None:
    """Return the footer's statistics of a column in a row group; None if there are none.

    Raises:
        ValueError: The footer is damaged. Reading its statistics through Arrow would end the process.
    """
    chunk, described = metadata.row_group(group).column(column), metadata.schema.column(column)
    if chunk.physical_type != described.physical_type:
        raise ValueError(f"its footer has two types for the column {described.name}")
    return chunk.statistics


def record_in(metadata: pq.FileMetaData) -> Provenance:
    """Return the record in a footer."""
    return Provenance.model_validate_json((metadata.metadata or {})[FOOTER_KEY])


def damaged(path: Path, error: Exception) -> DamagedFileError:
    """Return the error for a file that cannot be read."""
    if isinstance(error, OSError) and error.errno not in _OF_THE_FILE and not isinstance(error, pa.ArrowException):
        return DamagedFileError(f"{path} cannot be read ({error.strerror}). {faults.remedy(error)}.")
    reason = "its provenance is missing" if isinstance(error, KeyError) else str(error).strip() or repr(error)
    return DamagedFileError(
        f"{path} is damaged or was not written by this pipeline: {reason}. Backfill that day to replace it."
    )
