"""``ticker/price`` and ``ticker/24hr``, from the newest stored candles of a symbol. They name their time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.client.pages import PageRequest, RowsPage
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model import binance_dialect as dialect
from market_data_pipeline.model.binance_dialect import SymbolRules
from market_data_pipeline.model.series import INTERVALS, DataType, Market, intervals_of
from market_data_pipeline.server.rows import RowSource

_WINDOW = timedelta(hours=24)


def price_of(source: RowSource, market: Market, one: SymbolRules) -> dict[str, Any]:
    """Return the answer of ``ticker/price``: the newest stored close. This blocks.

    Raises:
        Refusal: No candle is stored.
    """
    symbol, rows = one.symbol, _newest(source, market, one.symbol, 1)[1].table
    found: dict[str, Any] = {"symbol": symbol, "price": _text(rows["close"][0].as_py())}
    if market is Market.CM:
        found["ps"] = symbol.partition("_")[0]
    return found if market is Market.SPOT else found | {"time": _milliseconds(rows, "close_time")}


def change_of(source: RowSource, market: Market, one: SymbolRules) -> dict[str, Any]:
    """Return the answer of ``ticker/24hr``: the 24 hours up to the newest stored candle.

    Orders, ids of trades and the close before are left out: candles do not have them. This blocks.

    Raises:
        Refusal: No candle is stored, or the lake does not have all candles of these hours.
    """
    request, page = _newest(source, market, one.symbol, None)
    end = page.table["close_time"][page.table.num_rows - 1].as_py() + timedelta(microseconds=1)
    begin = end - _WINDOW
    rows = page.table.filter(pc.field("open_time") >= pa.scalar(begin, pa.timestamp("us")))
    missing = [*page.missing]
    if page.first > begin:
        missing += source.read(replace(request, start=begin, end=page.first)).missing
    if any(span.fetchable and span.until > begin and span.first < end for span in missing):
        raise dialect.invalid(
            "symbol",
            f"The lake does not have all klines of {one.symbol} in {market} of the 24 hours up to {end:%Y-%m-%d %H:%M} "
            "UTC. `market-data sync` fetches missing days.",
        )
    traded = rows.filter(pc.field("count") > 0)
    prices = traded if traded.num_rows else rows  # a candle without trades repeats the price before it
    value = "base" if market is Market.CM else "quote"
    opened, last = prices["open"][0].as_py(), rows["close"][rows.num_rows - 1].as_py()
    volume, turnover = pc.sum(rows["volume"]).as_py(), pc.sum(rows[f"{value}_volume"]).as_py()
    contracts = market is Market.CM
    average = (volume * (one.contract_size or 0), turnover) if contracts else (turnover, volume)
    found: dict[str, Any] = {
        "symbol": one.symbol,
        "priceChange": _text(last - opened),
        "priceChangePercent": f"{(last - opened) / opened * 100 if opened else 0.0:.3f}",
        "weightedAvgPrice": _text(average[0] / average[1] if average[1] else 0.0),
        "lastPrice": _text(last),
        "openPrice": _text(opened),
        "highPrice": _text(pc.max(prices["high"]).as_py()),
        "lowPrice": _text(pc.min(prices["low"]).as_py()),
        "volume": _text(volume),
        f"{value}Volume": _text(turnover),
        "openTime": _milliseconds(rows, "open_time", 0),
        "closeTime": _milliseconds(rows, "close_time"),
        "count": pc.sum(rows["count"]).as_py(),
    }
    return found | {"pair": one.symbol.partition("_")[0]} if contracts else found


def _newest(source: RowSource, market: Market, symbol: str, limit: int | None) -> tuple[PageRequest, RowsPage]:
    """Return the newest stored candles, of 1m if they are stored. Without a limit, return those of 24 hours.

    Raises:
        Refusal: No candle is stored.
    """
    for interval in sorted(intervals_of(market), key=lambda one: (one != "1m", one == "1s", INTERVALS[one])):
        most = limit or int(_WINDOW / timedelta(seconds=INTERVALS[interval]))
        request = PageRequest(market, DataType.KLINES, symbol, interval, None, None, most)
        try:
            if source.series_of(request).interval != interval:
                continue
        except UsageError:
            continue
        page = source.read(request)
        if page.table.num_rows:
            return request, page
    raise dialect.invalid("symbol", f"The lake has no klines of {symbol} in {market}.")


def _milliseconds(rows: pa.Table, name: str, at: int = -1) -> int:
    moment = rows[name][at % rows.num_rows].as_py()
    return clock.to_us(moment.replace(tzinfo=UTC)) // 1_000


def _text(value: float) -> str:
    return f"{value:.8f}"
