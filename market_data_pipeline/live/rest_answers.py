"""Requests of the feed to REST, one at a time in threads. What to do with answers does not belong here."""

from __future__ import annotations

import threading
import time
from datetime import UTC, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.errors import HostOffError
from market_data_pipeline.lake.reader import labels_of
from market_data_pipeline.live.candles import Values
from market_data_pipeline.live.effects import AskCandles, AskTrades
from market_data_pipeline.model.series import Market, SeriesKey, interval_us
from market_data_pipeline.model.waits import Stop
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.binance.rest import RestApi
from market_data_pipeline.sources.binance.websocket import TradeEvent, units
from market_data_pipeline.universe.exchange_info import snapshot_of

_FRESH_SECONDS = 600.0
"""Age at which the client of REST is replaced, because it has an allowance of weight for trades."""


class RestAnswers:
    """REST of one market for a process that runs for months: a host that was off is tried again."""

    def __init__(self, market: Market, settings: Settings, stop: Stop) -> None:
        self.requests = 0
        self._market = market
        self._settings = settings
        self._stop = stop
        self._api: RestApi | None = None
        self._made_at = 0.0
        self._lock = threading.Lock()

    def candles(self, ask: AskCandles) -> list[Values]:
        """Return candles in the order of their times, with the one after them if there is one.

        Raises:
            SourceError: REST does not answer, or not with candles.
        """
        end = ask.end_us + interval_us(ask.key.interval or "1m")
        # All of them, also one that is not closed: the caller decides by the one after it.
        beyond = clock.midnight(clock.day_of_us(end)).replace(tzinfo=UTC) + timedelta(days=2)
        return rows_of(self._with_api(lambda api: api.klines(ask.key, ask.start_us, end, beyond)).table, ask.key)

    def trades(self, ask: AskTrades) -> list[TradeEvent]:
        """Return trades in the order of their ids.

        Raises:
            SourceError: REST does not answer, or not with trades.
        """
        found = self._with_api(lambda api: api.agg_trades_of_ids(ask.key, ask.first, ask.last))
        return [_trade(values, ask.key) for values in rows_of(found.table, ask.key)]

    def server_us(self) -> tuple[int, float]:
        """Return the server's time in microseconds since 1970 (UTC), and the monotonic time of the answer.

        Raises:
            SourceError: REST does not answer.
        """
        asked = time.monotonic()
        server = self._with_api(lambda api: api.server_time())
        return clock.to_us(server), (asked + time.monotonic()) / 2

    def trading_symbols(self) -> set[str]:
        """Return the symbols that trade now. In cm, the pairs of their index prices are among them.

        Raises:
            SourceError: REST does not answer, or not with symbols.
        """
        found = set[str]()
        table = snapshot_of(self._with_api(lambda api: api.exchange_info()), clock.now())
        for symbol, status in zip(table["symbol"].to_pylist(), table["status"].to_pylist(), strict=True):
            if status == "TRADING":
                found |= {str(symbol)} | ({str(symbol).partition("_")[0]} if self._market is Market.CM else set())
        return found

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            if self._api is not None:
                self._api.close()

    def _with_api(self, request: Any) -> Any:
        with self._lock:
            if self._api is None or time.monotonic() - self._made_at > _FRESH_SECONDS:
                if self._api is not None:
                    self._api.close()
                self._api, self._made_at = RestApi(self._market, self._settings, self._stop), time.monotonic()
            self.requests += 1
            try:
                return request(self._api)
            except HostOffError:
                self._api.close()
                self._api = None
                raise


def rows_of(table: pa.Table, key: SeriesKey) -> list[Values]:
    """Return rows as tuples in the order of the lake's columns, without labels. Times are microseconds."""
    columns: list[Any] = []
    for field in table.schema:
        if field.name in labels_of(key.data_type):
            continue
        column = table[field.name]
        columns.append((pc.cast(column, pa.int64()) if pa.types.is_timestamp(field.type) else column).to_pylist())
    return list(zip(*columns, strict=True))


def _trade(values: Values, key: SeriesKey) -> TradeEvent:
    trade_id, price, quantity, first, last, at, maker = values[:7]
    # Eight decimals give the same number back: Binance has no more.
    exact = units(f"{price:.8f}"), units(f"{quantity:.8f}")
    return TradeEvent(key, int(at), int(trade_id), int(first), int(last), int(at), *exact, bool(maker), tuple(values))
