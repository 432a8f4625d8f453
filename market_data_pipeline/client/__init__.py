"""``MarketData``: the lake for analysts, from Python and SQL.

What belongs here: what people may ask for (symbols, moments, columns), what is refused and how that is said, and the
types in which answers are handed out. What does not: reading files (``lake/reader.py``), views (``sql/views.py``),
downloading (``defs/in_process.py``). Nothing here writes to the lake. DuckDB, pandas and polars are imported when asked
for.
"""

from market_data_pipeline.client.gaps import Gap, OnGap
from market_data_pipeline.client.market_data import MarketData
from market_data_pipeline.client.request import Moment, SeriesSelection
from market_data_pipeline.client.result import ComposedRows, Result, StoredRows
from market_data_pipeline.errors import GapError, GapWarning, QueryLimitError

__all__ = [
    "ComposedRows",
    "Gap",
    "GapError",
    "GapWarning",
    "MarketData",
    "Moment",
    "OnGap",
    "QueryLimitError",
    "Result",
    "SeriesSelection",
    "StoredRows",
]
