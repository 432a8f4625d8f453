"""Messages of Binance's WebSocket streams, from the same rows as archive and REST.

A message is a value: the moment at which the exchange sends it, and its payload. Sockets, limits and faults do not
belong here (``sockets.py``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from market_data_pipeline.clock import day_of_us, days_between
from market_data_pipeline.model.binance_dialect import agg_trade_message, kline_message
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey, interval_us, intervals_of
from market_data_pipeline.sandbox.exchange import Exchange
from market_data_pipeline.sandbox.rows import Rows

TRADE_DELAY_US = 155_000
"""Microseconds between a trade and its message: the median of a recorded connection to um."""
_CLOSE_DELAYS_US = (200_000, 2_004_000)
"""Shortest and longest time between the end of a candle and its last message, as recorded in um."""
_KLINE = re.compile(r"kline_(?P<interval>\w+)")
_MARK_PRICE = re.compile(r"markPrice(?P<fast>@1s)?")
_SECOND_US = 1_000_000
_FUNDING_US = 8 * 3_600 * _SECOND_US


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """One message of a stream."""

    at_us: int
    """Moment at which the exchange sends it, in microseconds since 1970 (UTC)."""
    stream: str
    payload: dict[str, Any]

    @property
    def closes(self) -> bool:
        """Return True if this is the last message of a candle."""
        return self.payload["e"] == "kline" and bool(self.payload["k"]["x"])


@dataclass
class Stream:
    """One stream of one symbol, and the position up to which its messages were taken.

    Args:
        name: Name of the stream, such as ``btcusdt@kline_1m``.
        divisor: 1 for times in microseconds, 1,000 for milliseconds.
    """

    exchange: Exchange
    market: Market
    symbol: str
    name: str
    divisor: int
    since_us: int
    _last_update: tuple[int, int, int] = field(default=(0, 0, 0))

    def take(self, until_us: int) -> list[StreamMessage]:
        """Return the messages after the last call up to a moment, in order."""
        since, self.since_us = self.since_us, until_us
        if until_us <= since:
            return []
        kind = self.name.partition("@")[2]
        if kind == "aggTrade":
            found = list(self._trades(since, until_us))
        elif match := _KLINE.fullmatch(kind):
            found = [*self._closes(match["interval"], since, until_us), *self._update(match["interval"], until_us)]
        else:
            found = list(self._mark_prices(kind, since, until_us))
        return sorted(found, key=lambda message: message.at_us)

    def _series(self, data_type: DataType, interval: str | None = None) -> SeriesKey:
        return SeriesKey(EXCHANGE, self.market, data_type, self.symbol, interval)

    def _rows(self, series: SeriesKey, day: date) -> Rows | None:
        return self.exchange.rows(series, day, "rest") if day in self.exchange.days(series) else None

    def _message(self, at_us: int, payload: dict[str, Any]) -> StreamMessage:
        return StreamMessage(at_us, self.name, payload)

    # --- trades ----------------------------------------------------------------------------------------------

    def _trades(self, since_us: int, until_us: int) -> Iterator[StreamMessage]:
        series = self._series(DataType.AGG_TRADES)
        after, last = since_us - TRADE_DELAY_US, until_us - TRADE_DELAY_US
        for day in days_between(day_of_us(after), day_of_us(last)):
            rows = self._rows(series, day)
            if rows is None:
                continue
            low, high = (int(np.searchsorted(rows.times, at, "right")) for at in (after, last))
            for row in rows.fields(low, high):
                at = int(row[5])
                payload = agg_trade_message(
                    self.market,
                    self.symbol,
                    (at + TRADE_DELAY_US) // self.divisor,
                    at // self.divisor,
                    (int(row[0]), int(row[3]), int(row[4])),
                    (row[1], row[2]),
                    is_buyer_maker=row[6].lower() == "true",
                )
                if self.market is not Market.SPOT:
                    payload |= {"nq": row[2], "st": 1} if self.market is Market.UM else {"st": 2}
                yield self._message(at + TRADE_DELAY_US, payload)

    # --- candles ---------------------------------------------------------------------------------------------

    def _closes(self, interval: str, since_us: int, until_us: int) -> Iterator[StreamMessage]:
        length = interval_us(interval)
        open_time = (since_us - _CLOSE_DELAYS_US[1]) // length * length - length
        while open_time + length + _CLOSE_DELAYS_US[0] <= until_us:
            at = open_time + length + close_delay_us(self.symbol, interval, open_time)
            if since_us < at <= until_us and (payload := self._candle(interval, open_time, at, closed=True)):
                yield self._message(at, payload)
            open_time += length

    def _update(self, interval: str, now_us: int) -> Iterator[StreamMessage]:
        """Yield the forming candle if it changed, at most once per period of the market."""
        period = 250_000 if self.market is not Market.SPOT else _SECOND_US if interval == "1s" else 2 * _SECOND_US
        sent_us, last_id, last_open = self._last_update
        if now_us - sent_us < period:
            return
        length = interval_us(interval)
        payload = self._candle(interval, now_us // length * length, now_us, closed=False)
        if payload is None or (payload["k"]["L"], payload["k"]["t"]) == (last_id, last_open):
            return
        self._last_update = (now_us, payload["k"]["L"], payload["k"]["t"])
        yield self._message(now_us, payload)

    def _candle(self, interval: str, open_time: int, at_us: int, *, closed: bool) -> dict[str, Any] | None:
        day, length = day_of_us(open_time), interval_us(interval)
        rows = self._rows(self._series(DataType.KLINES, interval), day)
        if rows is None:
            return None
        index = int(np.searchsorted(rows.times, open_time, "left"))
        if index >= len(rows.times) or int(rows.times[index]) >= open_time + length:
            return None
        row = rows.fields(index, index + 1)[0]
        first, last = self._trade_ids(day, open_time, open_time + length) if int(row[8]) else (-1, -1)
        return kline_message(
            self.symbol,
            interval,
            at_us // self.divisor,
            (int(row[0]) // self.divisor, int(row[6]) // self.divisor),
            (first, last),
            (*row[1:6], row[7], row[9], row[10]),
            int(row[8]),
            closed=closed,
        )

    def _trade_ids(self, day: date, start_us: int, end_us: int) -> tuple[int, int]:
        rows = self._rows(self._series(DataType.AGG_TRADES), day)
        if rows is None:
            return -1, -1
        low, high = (int(np.searchsorted(rows.times, at, "left")) for at in (start_us, end_us))
        if low == high:
            return -1, -1
        return int(rows.fields(low, low + 1)[0][3]), int(rows.fields(high - 1, high)[0][4])

    # --- mark price ------------------------------------------------------------------------------------------

    def _mark_prices(self, kind: str, since_us: int, until_us: int) -> Iterator[StreamMessage]:
        match = _MARK_PRICE.fullmatch(kind)
        if match is None:
            return
        period = _SECOND_US if match["fast"] else 3 * _SECOND_US
        at = until_us // period * period  # the newest one alone: it replaces the others
        day = day_of_us(at)
        if at <= since_us:
            return
        prices = []
        for data_type in (DataType.MARK_PRICE_KLINES, DataType.INDEX_PRICE_KLINES):
            rows = self._rows(self._series(data_type, "1m"), day)
            index = -1 if rows is None else int(np.searchsorted(rows.times, at, "right")) - 1
            if rows is None or index < 0:
                return
            prices.append(rows.fields(index, index + 1)[0][4])
        payload = {"e": "markPriceUpdate", "E": at // self.divisor, "s": self.symbol}
        payload |= {"p": prices[0], "P": prices[0], "i": prices[1], "r": "0.00010000"}
        yield self._message(at, {**payload, "T": (at // _FUNDING_US + 1) * _FUNDING_US // self.divisor})


def close_delay_us(symbol: str, interval: str, open_time: int) -> int:
    """Return the microseconds between the end of a candle and its last message. It is the same in each run."""
    digest = hashlib.blake2b(f"{symbol}/{interval}/{open_time}".encode(), digest_size=4).digest()
    shortest, longest = _CLOSE_DELAYS_US
    return shortest + int.from_bytes(digest, "big") % (longest - shortest)


def find_stream(exchange: Exchange, market: Market, name: str, divisor: int, now_us: int) -> Stream | None:
    """Return the stream of a name from now on. None if the market has no such stream."""
    lower, _, kind = name.partition("@")
    symbol = next((one.symbol for one in exchange.symbols(market) if one.symbol.lower() == lower), None)
    if symbol is None:
        return None
    kline = _KLINE.fullmatch(kind)
    known = (
        kind == "aggTrade"
        or (kline is not None and kline["interval"] in intervals_of(market))
        or (market is not Market.SPOT and _MARK_PRICE.fullmatch(kind) is not None)
    )
    return Stream(exchange, market, symbol, name, divisor, now_us) if known else None
