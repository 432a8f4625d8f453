"""The table of ``specs.py`` in Arrow's words: what type a column has, and the schema of a series' files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pyarrow as pa

from market_data_pipeline.series import DataType, Market
from market_data_pipeline.specs import Kind, lake_columns

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
    """The schema of a series' files in the lake, derived types included."""
    return pa.schema([(column.name, ARROW_TYPES[column.kind]) for column in lake_columns(market, data_type)])


TRADE_PROFILE_SCHEMA = lake_schema(Market.SPOT, DataType.TRADE_PROFILE)
"""The derived tradeProfile, which is alike in all markets."""
