"""Compute tradeProfile: one row that summarizes a day of aggregated trades.

This is pure computation over a DuckDB relation. Reading and writing files do not belong here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from market_data_pipeline.model.schema import TRADE_PROFILE_SCHEMA
from market_data_pipeline.sql.bars import LEVEL_BY_PRICE

if TYPE_CHECKING:
    import duckdb


# Binance writes prices and quantities with at most eight decimals: a step is 0.00000001.
# Sentinel rows (first = last = -1, price 0) are no trades. Quantities are summed with compensation (fsum) and rounded
# to their eight decimals, so that 0.1 + 0.2 is 0.3 and equal levels are equal. Levels use whole numbers: 0.29 / 0.01 is
# 28.999… in floating point, so the trade would fall into the level below. A VWAP lies between low and high, but the
# last digit of a quotient may miss that.
_QUERY = """
WITH fills AS (
    SELECT
        CAST(transact_time AS DATE) AS day, price, quantity, is_buyer_maker,
        last_trade_id - first_trade_id + 1 AS trades,
        CAST(round(price * 1e8) AS BIGINT) AS steps
    FROM trades
    WHERE first_trade_id >= 0 AND price > 0
), days AS (
    SELECT
        day,
        least(max(price), greatest(min(price), {vwap})) AS vwap,
        max(price) AS high,
        min(price) AS low,
        round(fsum(quantity), 8) AS volume,
        round(coalesce(fsum(quantity) FILTER (NOT is_buyer_maker), 0), 8) AS buy_volume,
        round(coalesce(fsum(quantity) FILTER (is_buyer_maker), 0), 8) AS sell_volume,
        CAST(sum(trades) AS BIGINT) AS trades,
        count(*) AS agg_trades
    FROM fills GROUP BY day
), sized AS (
    SELECT *, greatest(1, CAST(round({level_size} * 1e8) AS BIGINT)) AS level_steps FROM days
), levels AS (
    SELECT day, steps // level_steps * level_steps AS level, round(fsum(quantity), 8) AS volume
    FROM fills JOIN sized USING (day)
    GROUP BY day, level
), controls AS (
    SELECT day, level, volume FROM levels
    QUALIFY row_number() OVER (PARTITION BY day ORDER BY volume DESC, level) = 1
)
SELECT
    day, vwap, high, low,
    controls.level / 1e8 AS point_of_control, controls.volume AS point_of_control_volume,
    level_steps / 1e8 AS level_size,
    sized.volume, buy_volume, sell_volume,
    round(buy_volume - sell_volume, 8) AS cumulative_delta,
    trades, agg_trades
FROM sized JOIN controls USING (day)
ORDER BY day
"""
_LINEAR_VWAP = "fsum(price * quantity) / fsum(quantity)"
_INVERSE_VWAP = "fsum(quantity) / fsum(quantity / price)"


def trade_profile(trades: duckdb.DuckDBPyRelation, *, symbol: str, inverse: bool, level_size: float = 0.0) -> pa.Table:
    """Compute one row for each day that has trades.

    Volumes count the taker's side: ``buy_volume`` has trades whose buyer was the taker (``is_buyer_maker`` false). The
    point of control is the price level with the most volume, given by its lower edge. Of equal levels, the lowest wins.

    Args:
        trades: aggTrades of one symbol, for any number of whole UTC days, columns as in the lake.
        inverse: Quantities are contracts of an inverse future (cm), whose VWAP is Σq / Σ(q/p).
        level_size: Height of a price level. 0 takes the largest power of ten that is at most 0.01 % of the day's
            VWAP (60,000 → 1; 3,200 → 0.1), but at least 0.00000001, the smallest step of Binance's prices.

    Returns:
        A table with ``model.schema.TRADE_PROFILE_SCHEMA``, ordered by day. A day without trades has no row.
    """
    query = _QUERY.format(
        vwap=_INVERSE_VWAP if inverse else _LINEAR_VWAP,
        level_size=f"CAST({level_size!r} AS DOUBLE)" if level_size else LEVEL_BY_PRICE,
    )
    answer = trades.query("trades", query)
    if answer is None:  # DuckDB returns None for a statement that is no query
        raise TypeError("The query of tradeProfile returned nothing.")
    table: pa.Table = answer.to_arrow_table()
    symbols = pa.array([symbol] * table.num_rows, pa.string()).dictionary_encode()
    return table.add_column(0, "symbol", symbols).cast(TRADE_PROFILE_SCHEMA)
