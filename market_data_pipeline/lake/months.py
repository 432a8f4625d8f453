"""Format of a closed month's file: the rows of all its days, one after another, and the record of each.

A row group has a few whole days. Groups of one day make SQL twice as slow, groups of a month make reading a day four
times as slow (measured on a year of ten symbols). Closing a month belongs to ``lake/closed_months.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from market_data_pipeline import __version__
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.model.datasets import Spec
from market_data_pipeline.model.provenance import Provenance
from market_data_pipeline.model.schema import as_declared

_RECORDS_KEY = b"market_data_pipeline_days"
"""Footer key of the days' records, as in the days' own files, in the order of the rows."""

_RECORDS = TypeAdapter(tuple[Provenance, ...])

_ROWS_A_GROUP = 10_000


class DayInMonth(NamedTuple):
    """A day of a closed month."""

    record: Provenance
    table: pa.Table


def encode_month(days: Sequence[DayInMonth], spec: Spec) -> pa.Buffer:
    """Return the bytes of a month's file.

    Args:
        days: All days of the month, in order, with the columns of the lake.
    """
    records = tuple(day.record.model_copy(update={"writer_version": __version__}) for day in days)
    encoded = pa.BufferOutputStream()
    with parquet.numbered_writer(encoded, days[0].table.schema, spec) as writer:
        for group in _groups([day.table for day in days]):
            writer.write_table(group.replace_schema_metadata(None), row_group_size=max(1, group.num_rows))
        footer: Any = {_RECORDS_KEY: _RECORDS.dump_json(records, exclude_none=True)}  # bytes; the stubs want str
        writer.add_key_value_metadata(footer)
    return encoded.getvalue()


def _groups(tables: Iterable[pa.Table]) -> Iterable[pa.Table]:
    group: list[pa.Table] = []
    for table in tables:
        group.append(table)
        if sum(one.num_rows for one in group) >= _ROWS_A_GROUP:
            yield pa.concat_tables(group).unify_dictionaries().combine_chunks()
            group = []
    if group:
        yield pa.concat_tables(group).unify_dictionaries().combine_chunks()


def read_month(path: Path, schema: pa.Schema) -> dict[date, DayInMonth]:
    """Read all days of a month's file.

    Args:
        schema: Schema of its series. Rows are cast to it if they have its columns.

    Raises:
        DamagedFileError: The file is missing or unreadable, or its rows do not match its records.
    """
    try:
        data, _ = storage.read(path)
    except OSError as error:
        raise parquet.damaged(path, error) from error
    return parse_month(path, data, schema)


def parse_month(path: Path, data: bytes, schema: pa.Schema) -> dict[date, DayInMonth]:
    """Return the days in the bytes of a month's file; see :func:`read_month`.

    Raises:
        DamagedFileError: The bytes are unreadable, or the rows do not match the records.
    """
    try:
        with parquet.opened(data) as (reader, metadata):
            records = _records_in(metadata)
            table = as_declared(reader.read_all(use_threads=False), schema)
        starts = list(accumulate((record.rows for record in records), initial=0))
        if starts[-1] != table.num_rows:
            raise ValueError(f"it has {table.num_rows} rows, but the records of its days have {starts[-1]}")
    except parquet.UNREADABLE as error:
        raise parquet.damaged(path, error) from error
    return {
        record.day: DayInMonth(record, table.slice(start, end - start))
        for record, (start, end) in zip(records, pairwise(starts), strict=True)
    }


def read_records(path: Path) -> dict[date, Provenance]:
    """Read the records in a month's footer.

    Raises:
        DamagedFileError: The file is missing, not Parquet, or has no valid records.
    """
    try:
        with storage.open_file(path) as file:
            return {record.day: record for record in _records_in(pq.read_metadata(file))}
    except parquet.UNREADABLE as error:
        raise parquet.damaged(path, error) from error


def _records_in(metadata: pq.FileMetaData) -> tuple[Provenance, ...]:
    return _RECORDS.validate_json((metadata.metadata or {})[_RECORDS_KEY])
