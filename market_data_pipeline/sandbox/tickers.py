"""``ticker/price`` and ``ticker/24hr``, computed from the trades of the last 24 hours. HTTP does not belong here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from market_data_pipeline.model import binance_dialect as dialect
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox.exchange import Exchange, ListedSymbol
from market_data_pipeline.sandbox.generator import moment_us

_WINDOW = timedelta(hours=24)
_EIGHT = Decimal("0.00000001")


def tickers(exchange: Exchange, market: Market, endpoint: str, parameters: Mapping[str, str]) -> Any:
    """Return the tickers of a request. Symbols without a trade in the last 24 hours are left out.

    Raises:
        Refusal: A symbol is not listed.
    """
    listed = {one.symbol: one for one in exchange.symbols(market)}
    names = dialect.chosen_symbols(parameters, market, listed)
    found = []
    for name in names:
        rows = _trades(exchange, market, name)
        if rows and endpoint == "ticker/price":
            found.append(_price(market, name, rows))
        elif rows:
            found.append(_change(exchange, market, listed[name], rows))
    if parameters.get("type") == "MINI" and market is Market.SPOT:
        found = [{name: one[name] for name in dialect.MINI_TICKER if name in one} for one in found]
    return found[0] if dialect.is_single_ticker(parameters, market) and found else found


def _trades(exchange: Exchange, market: Market, symbol: str) -> list[list[str]]:
    """Return the aggTrades of the last 24 hours."""
    series, now = SeriesKey(EXCHANGE, market, DataType.AGG_TRADES, symbol), exchange.now()
    stored, found = set[date](exchange.days(series)), list[list[str]]()
    for day in ((now - _WINDOW).date(), now.date()):
        if day in stored:
            rows = exchange.rows(series, day, "rest")
            low = int(np.searchsorted(rows.times, moment_us(now - _WINDOW), "left"))
            found += rows.fields(low, len(rows.times))
    return found


def _price(market: Market, symbol: str, rows: list[list[str]]) -> dict[str, Any]:
    found: dict[str, Any] = {"symbol": symbol, "price": rows[-1][1]}
    if market is Market.CM:
        found["ps"] = symbol.partition("_")[0]
    return found if market is Market.SPOT else found | {"time": int(rows[-1][5]) // 1_000}


def _change(exchange: Exchange, market: Market, one: ListedSymbol, rows: list[list[str]]) -> dict[str, Any]:
    prices, sizes = [Decimal(row[1]) for row in rows], [Decimal(row[2]) for row in rows]
    size, now = one.contract_size, moment_us(exchange.now()) // 1_000
    pairs = list(zip(prices, sizes, strict=True))
    if market is Market.CM:
        name, values = "baseVolume", [(amount * size / price).quantize(_EIGHT) for price, amount in pairs]
    else:
        name, values = "quoteVolume", [price * amount for price, amount in pairs]
    volume, turnover = sum(sizes), sum(values)
    average = volume * size / turnover if market is Market.CM else turnover / volume
    found = {
        "symbol": one.symbol,
        "priceChange": f"{prices[-1] - prices[0]:.8f}",
        "priceChangePercent": f"{(prices[-1] / prices[0] - 1) * 100:.3f}",
        "weightedAvgPrice": f"{average:.8f}",
        "lastPrice": rows[-1][1],
        "lastQty": rows[-1][2],
        "openPrice": rows[0][1],
        "highPrice": f"{max(prices):.8f}",
        "lowPrice": f"{min(prices):.8f}",
        "volume": f"{volume:.8f}",
        name: f"{turnover:.8f}",
        "openTime": now - int(_WINDOW.total_seconds()) * 1_000,
        "closeTime": now,
        "firstId": int(rows[0][3]),
        "lastId": int(rows[-1][4]),
        "count": sum(int(row[4]) - int(row[3]) + 1 for row in rows),
    }
    return found | {"pair": one.symbol.partition("_")[0]} if market is Market.CM else found
