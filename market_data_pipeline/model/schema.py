"""The table of ``datasets.py`` in Arrow's words: what type a column has, and the schema of a series' files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pyarrow as pa

from market_data_pipeline.model.datasets import SPECS, Kind, lake_columns
from market_data_pipeline.model.series import DataType, Market

TIME = pa.timestamp("us")
"""Times are microseconds in UTC without zone: a zoned type makes DuckDB sessions in other zones split days wrongly."""

WORD = pa.dictionary(pa.int32(), pa.string())

ARROW_TYPES: Mapping[Kind, pa.DataType] = {
    "time": TIME,
    "day": pa.date32(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "word": WORD,
}


@cache
def lake_schema(market: Market, data_type: DataType) -> pa.Schema:
    """The schema of a series' files in the lake, derived types included.

    What comes from the exchange is never null, and the files say so: Parquet then keeps no levels, without which Arrow
    reads candles in two thirds of the time and writes trades in nine tenths.
    """
    nullable = (market, data_type) not in SPECS
    columns = lake_columns(market, data_type)
    return pa.schema([pa.field(column.name, ARROW_TYPES[column.kind], nullable) for column in columns])


def may_be_null(schema: pa.Schema) -> pa.Schema:
    """The same columns as other libraries hand them out, and as files had them before they said what is never null."""
    return pa.schema([field.with_nullable(True) for field in schema])


def as_declared(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with a schema, if all that keeps it from that is what might be null, and nothing is."""
    if table.schema.equals(schema) or not may_be_null(table.schema).equals(may_be_null(schema)):
        return table
    return table if any(column.null_count for column in table.columns) else table.cast(schema)


TRADE_PROFILE_SCHEMA = lake_schema(Market.SPOT, DataType.TRADE_PROFILE)
"""The derived tradeProfile, which is alike in all markets."""
