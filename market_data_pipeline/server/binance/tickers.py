"""``ticker/price`` and ``ticker/24hr``, from the newest stored candles of a symbol. They name their time."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.client.pages import PageRequest
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.binance_dialect import SymbolRules
from market_data_pipeline.model.series import INTERVALS, DataType, Market, intervals_of
from market_data_pipeline.server.rows import RowSource

_WINDOW = timedelta(hours=24)


def price_of(source: RowSource, market: Market, one: SymbolRules) -> dict[str, Any] | None:
    """Return the answer of ``ticker/price``: the newest stored close. None if no candle is stored. This blocks."""
    symbol, rows = one.symbol, _newest(source, market, one.symbol, 1)
    if rows is None:
        return None
    found: dict[str, Any] = {"symbol": symbol, "price": _text(rows["close"][0].as_py())}
    if market is not Market.SPOT:
        found["time"] = _milliseconds(rows, "close_time")
    if market is Market.CM:
        found["ps"] = symbol.partition("_")[0]
    return found


def change_of(source: RowSource, market: Market, one: SymbolRules) -> dict[str, Any] | None:
    """Return the answer of ``ticker/24hr``: the 24 hours up to the newest stored candle. None if none is stored.

    Orders, ids of trades and the close before are left out: candles do not have them. This blocks.
    """
    symbol, rows = one.symbol, _newest(source, market, one.symbol, None)
    if rows is None:
        return None
    value = "base" if market is Market.CM else "quote"
    opened, last = rows["open"][0].as_py(), rows["close"][rows.num_rows - 1].as_py()
    volume, turnover = pc.sum(rows["volume"]).as_py(), pc.sum(rows[f"{value}_volume"]).as_py()
    found: dict[str, Any] = {
        "symbol": symbol,
        "priceChange": _text(last - opened),
        "priceChangePercent": f"{(last - opened) / opened * 100 if opened else 0.0:.3f}",
        "lastPrice": _text(last),
        "openPrice": _text(opened),
        "highPrice": _text(pc.max(rows["high"]).as_py()),
        "lowPrice": _text(pc.min(rows["low"]).as_py()),
        "volume": _text(volume),
        f"{value}Volume": _text(turnover),
        "openTime": _milliseconds(rows, "open_time", 0),
        "closeTime": _milliseconds(rows, "close_time"),
        "count": pc.sum(rows["count"]).as_py(),
    }
    if market is Market.CM:
        found["pair"] = symbol.partition("_")[0]
        if one.contract_size is not None and turnover:
            found["weightedAvgPrice"] = _text(volume * one.contract_size / turnover)
    elif volume:
        found["weightedAvgPrice"] = _text(turnover / volume)
    return found


def _newest(source: RowSource, market: Market, symbol: str, limit: int | None) -> pa.Table | None:
    """Return the newest stored candles, of 1m if they are stored. Without a limit, return those of 24 hours."""
    for interval in sorted(intervals_of(market), key=lambda one: (one != "1m", INTERVALS[one])):
        most = limit or int(_WINDOW / timedelta(seconds=INTERVALS[interval]))
        request = PageRequest(market, DataType.KLINES, symbol, interval, None, None, most)
        try:
            if source.series_of(request).interval != interval:
                continue
        except UsageError:
            continue
        rows = source.read(request).table
        if rows.num_rows:
            begin = rows["close_time"][rows.num_rows - 1].as_py() - _WINDOW
            return rows.filter(pc.field("open_time") > pa.scalar(begin, pa.timestamp("us")))
    return None


def _milliseconds(rows: pa.Table, name: str, at: int = -1) -> int:
    moment = rows[name][at % rows.num_rows].as_py()
    return clock.to_us(moment.replace(tzinfo=UTC)) // 1_000


def _text(value: float) -> str:
    return f"{value:.8f}"
