"""Sources of derived and rebuilt series: tradeProfile from aggTrades, klines from trades or shorter klines.

The computation itself does not belong here (``derived/``, ``reconciliation/``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from market_data_pipeline.model.series import INTERVALS, DataType, SeriesKey

_TRADED_INTERVALS = ("1s", "1m")
"""Intervals that are rebuilt from aggTrades. Longer ones are rebuilt from 1m."""


def source_of(key: SeriesKey) -> SeriesKey:
    """Return the source of a tradeProfile or of rebuilt klines.

    The source is aggTrades for tradeProfile and for klines of 1s and 1m. Longer klines are rebuilt from 1m klines.

    >>> from market_data_pipeline.model.series import EXCHANGE, Market
    >>> str(source_of(SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", "1h")))
    'binance/um/klines/BTCUSDT/1m'
    """
    if key.data_type is DataType.TRADE_PROFILE or key.interval in _TRADED_INTERVALS:
        return SeriesKey(key.exchange, key.market, DataType.AGG_TRADES, key.symbol)
    return SeriesKey(key.exchange, key.market, DataType.KLINES, key.symbol, "1m")


def sources_of(key: SeriesKey) -> tuple[SeriesKey, ...]:
    """Return the series from which klines can be rebuilt, the most exact one first.

    Single trades go before aggTrades. Longer klines are rebuilt from those of 1m, or without them from the longest
    interval that divides theirs.

    >>> from market_data_pipeline.model.series import EXCHANGE, Market
    >>> minutes = SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", "1m")
    >>> [str(source.data_type) for source in sources_of(minutes)]
    ['trades', 'aggTrades']
    >>> quarters = SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", "15m")
    >>> [source.interval for source in sources_of(quarters)]
    ['1m', '5m', '3m']
    """
    source = source_of(key)
    if source.data_type is not DataType.AGG_TRADES:
        length, shortest = INTERVALS[key.interval or ""], INTERVALS[source.interval or ""]
        finer = [name for name, seconds in INTERVALS.items() if shortest < seconds < length and length % seconds == 0]
        return (source, *(replace(source, interval=name) for name in reversed(finer)))
    return (SeriesKey(key.exchange, key.market, DataType.TRADES, key.symbol), source)


def profile_of(key: SeriesKey) -> SeriesKey:
    """Return the tradeProfile of an aggTrades series. It is the inverse of :func:`source_of`."""
    return SeriesKey(key.exchange, key.market, DataType.TRADE_PROFILE, key.symbol)


def comparable(keys: Iterable[SeriesKey]) -> list[SeriesKey]:
    """Return the klines with a source among ``keys``, in the given order.

    >>> from market_data_pipeline.model.series import EXCHANGE, Market
    >>> hours, minutes = (SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", one) for one in ("1h", "1m"))
    >>> [key.interval for key in comparable([hours, minutes])]
    ['1h']
    """
    keys = list(keys)
    there = set(keys)
    return [key for key in keys if key.data_type is DataType.KLINES and not there.isdisjoint(sources_of(key))]
