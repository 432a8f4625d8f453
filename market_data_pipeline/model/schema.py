"""Arrow types of columns, and the Arrow schema of a series' files.

Facts about columns do not belong here (``datasets.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pyarrow as pa

from market_data_pipeline.model.datasets import SPECS, ColumnKind, lake_columns
from market_data_pipeline.model.field_ids import FIELD_IDS
from market_data_pipeline.model.series import DataType, Market

TIME = pa.timestamp("us")
"""Times are microseconds in UTC without zone. With a zoned type, DuckDB sessions in other zones split days wrongly."""

WORD = pa.dictionary(pa.int32(), pa.string())

ARROW_TYPES: Mapping[ColumnKind, pa.DataType] = {
    "time": TIME,
    "day": pa.date32(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "word": WORD,
    "text": pa.string(),
}


@cache
def lake_schema(market: Market, data_type: DataType) -> pa.Schema:
    """Return the schema of a series' files in the lake, also for derived types.

    Columns from the exchange are never null, except those that ``datasets.py`` declares nullable, and the schema
    declares it. Parquet then stores no definition levels. Arrow reads candles in two thirds of the time and writes
    trades in nine tenths.
    """
    derived = (market, data_type) not in SPECS
    columns = lake_columns(market, data_type)
    return pa.schema(
        [pa.field(column.name, ARROW_TYPES[column.kind], derived or column.nullable) for column in columns]
    )


def empty_table(schema: pa.Schema) -> pa.Table:
    """Return a table without rows. PyArrow's method of this name imports pandas, which takes 0.2 s of each process."""
    return pa.Table.from_batches([], schema)


def may_be_null(schema: pa.Schema) -> pa.Schema:
    """Return the same columns as nullable. Other libraries and older files have them in this form."""
    return pa.schema([field.with_nullable(True) for field in schema])


def with_field_ids(schema: pa.Schema) -> pa.Schema:
    """Return a schema of the lake whose Parquet columns have their numbers from ``field_ids.py``."""
    return pa.schema([field.with_metadata({"PARQUET:field_id": str(FIELD_IDS[field.name])}) for field in schema])


def without_field_ids(schema: pa.Schema) -> pa.Schema:
    """Return a schema without metadata. Arrow adds the numbers of columns when it reads a file that has them."""
    return pa.schema([field.remove_metadata() for field in schema])


def as_declared(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with a schema, if the two differ only in nullability and no value is null that must not be.

    Otherwise the table is returned unchanged.
    """
    if table.schema.equals(schema) or not may_be_null(table.schema).equals(may_be_null(schema)):
        return table
    nulls = any(column.null_count for column, field in zip(table.columns, schema, strict=True) if not field.nullable)
    return table if nulls else table.cast(schema)


TRADE_PROFILE_SCHEMA = lake_schema(Market.SPOT, DataType.TRADE_PROFILE)
"""Schema of the derived tradeProfile. It is the same in all markets."""
