"""Which series are made of which, by name: tradeProfile of aggTrades, klines of trades or of shorter klines."""

from __future__ import annotations

from collections.abc import Iterable

from market_data_pipeline.model.series import DataType, SeriesKey

TRADED_INTERVALS = ("1s", "1m")
"""Intervals that are rebuilt from aggTrades; longer ones from 1m."""


def source_of(key: SeriesKey) -> SeriesKey:
    """The series that a tradeProfile is made of, or that klines are rebuilt from.

    That is aggTrades for tradeProfile and klines of 1s and 1m, klines of 1m for longer intervals.

    >>> from market_data_pipeline.model.series import EXCHANGE, Market
    >>> str(source_of(SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", "1h")))
    'binance/um/klines/BTCUSDT/1m'
    """
    if key.data_type is DataType.TRADE_PROFILE or key.interval in TRADED_INTERVALS:
        return SeriesKey(key.exchange, key.market, DataType.AGG_TRADES, key.symbol)
    return SeriesKey(key.exchange, key.market, DataType.KLINES, key.symbol, "1m")


def profile_of(key: SeriesKey) -> SeriesKey:
    """The tradeProfile that is made of an aggTrades series; the inverse of :func:`source_of`."""
    return SeriesKey(key.exchange, key.market, DataType.TRADE_PROFILE, key.symbol)


def comparable(keys: Iterable[SeriesKey]) -> list[SeriesKey]:
    """The klines among series whose source is among them, too, in the order given.

    >>> from market_data_pipeline.model.series import EXCHANGE, Market
    >>> hours, minutes = (SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", one) for one in ("1h", "1m"))
    >>> [key.interval for key in comparable([hours, minutes])]
    ['1h']
    """
    keys = list(keys)
    there = set(keys)
    return [key for key in keys if key.data_type is DataType.KLINES and source_of(key) in there]
