"""Binance's REST endpoints for market data, as functions from parameters to answers.

Parameters, codes and forms are those of the dialect. HTTP does not belong here.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np

from market_data_pipeline.errors import UsageError
from market_data_pipeline.model import binance_dialect as dialect
from market_data_pipeline.model.binance_dialect import Refusal
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox.exchange import Exchange
from market_data_pipeline.sandbox.forms import FORMS
from market_data_pipeline.sandbox.generator import moment_us
from market_data_pipeline.sandbox.rows import Rows
from market_data_pipeline.sandbox.tickers import tickers

STATISTICS_DAYS = 30
"""Days back to which statistics reach."""

_METRICS = FORMS[DataType.METRICS].header.split(",")
_COUNTED_WITH = {Market.CM: Market.UM}
"""Markets that share the budget of another. COIN-M joined USDⓈ-M on 2026-06-30."""
AGG_TRADES_DAYS = {Market.UM: 2, Market.CM: 1}
"""Number of recent days for which aggTrades are available. Spot has no limit."""
_DAY_US = 86_400_000_000
_FAR = 1 << 62


@dataclass(frozen=True, slots=True)
class Answer:
    """A REST answer: a status and a value for JSON."""

    status: int
    payload: Any


def answer(
    exchange: Exchange, market: Market, endpoint: str, parameters: Mapping[str, str], *, microseconds: bool = False
) -> Answer:
    """Answer one request.

    Args:
        exchange: the source of the rows.
        market: the API that receives the request.
        endpoint: ``klines``, ``aggTrades``, ``historicalTrades``, ``fundingRate``, ``ticker/price``, ``exchangeInfo``,
            ``time``, ``ping`` and so on.
        parameters: the query.
        microseconds: True if the request has the header ``X-MBX-TIME-UNIT: MICROSECOND``. Futures ignore it.
    """
    divisor = 1 if microseconds and market is Market.SPOT else 1_000
    payload: Any
    try:
        limit = dialect.limit_in(parameters, market, endpoint)
        match endpoint:
            case candles if candles in dialect.CANDLES[market]:
                payload = _klines(exchange, market, endpoint, parameters, limit, divisor)
            case "aggTrades":
                payload = _agg_trades(exchange, market, parameters, limit, divisor)
            case "fundingRate" if market is not Market.SPOT:
                payload = _funding_rates(exchange, market, parameters, limit)
            case statistic if statistic in dialect.STATISTICS:
                payload = _statistics(exchange, endpoint, parameters, limit)
            case "historicalTrades":
                payload = _trades(exchange, market, parameters, limit, divisor)
            case ticker if ticker in dialect.TICKERS:
                payload = tickers(exchange, market, endpoint, parameters)
            case "exchangeInfo":
                payload = _exchange_info(exchange, market, parameters, divisor)
            case "time":
                payload = {"serverTime": (moment_us(exchange.now()) + exchange.faults.skew_us(market)) // divisor}
            case _:
                payload = {}
    except Refusal as refusal:
        return Answer(refusal.status, refusal.payload)
    return Answer(200, payload)


def _series(
    exchange: Exchange, market: Market, parameters: Mapping[str, str], data_type: DataType, endpoint: str
) -> SeriesKey:
    symbol, name = dialect.listed_name_in(parameters, endpoint), dialect.symbol_name(endpoint)
    listed = [one.symbol for one in exchange.symbols(market)]
    if endpoint == "continuousKlines":
        if dialect.contract_in(parameters) != "PERPETUAL":
            raise dialect.invalid("contractType", "The sandbox has perpetual contracts only.")
        symbol = dialect.perpetual_of(market, symbol)
    if symbol not in ([one.partition("_")[0] for one in listed] if endpoint == "indexPriceKlines" else listed):
        raise dialect.unknown_symbol(name)
    interval = dialect.interval_in(parameters, market) if data_type.has_interval else None
    try:
        return SeriesKey(EXCHANGE, market, data_type, symbol, interval)
    except UsageError as error:
        raise Refusal(-1120, "Invalid interval.") from error


def _day(us: int) -> date:
    return date.fromordinal(min(max(us // _DAY_US, 0), 2_900_000) + date(1970, 1, 1).toordinal())


def _oldest(exchange: Exchange, series: SeriesKey, start: int, end: int, limit: int) -> list[list[str]]:
    """Return the first rows from ``start`` to ``end``, both inclusive."""
    days, found = exchange.days(series), list[list[str]]()
    for at in range(bisect_left(days, _day(start)), bisect_right(days, _day(end))):
        rows = exchange.rows(series, days[at], "rest")
        low, high = _bounds(rows, start, end)
        found += rows.fields(low, min(high, low + limit - len(found)))
        if len(found) >= limit:
            break
    return found


def _newest(exchange: Exchange, series: SeriesKey, end: int, limit: int) -> list[list[str]]:
    """Return the last rows up to ``end``, inclusive, oldest first."""
    days, found = exchange.days(series), list[list[str]]()
    for at in range(bisect_right(days, _day(end)) - 1, -1, -1):
        rows = exchange.rows(series, days[at], "rest")
        _, high = _bounds(rows, 0, end)
        found = rows.fields(max(high - limit + len(found), 0), high) + found
        if len(found) >= limit:
            break
    return found


def _bounds(rows: Rows, start: int, end: int) -> tuple[int, int]:
    times = rows.times
    return int(np.searchsorted(times, start, "left")), int(np.searchsorted(times, end, "right"))


def _klines(
    exchange: Exchange, market: Market, endpoint: str, parameters: Mapping[str, str], limit: int, divisor: int
) -> list[list[Any]]:
    series = _series(exchange, market, parameters, dialect.CANDLES[market][endpoint], endpoint)
    start, end = dialect.times_in(parameters, market)
    dialect.refuse_long_span(market, start, end)
    until = min(_FAR if end is None else end, moment_us(exchange.now()))
    rows = _newest(exchange, series, until, limit) if start is None else _oldest(exchange, series, start, until, limit)
    return [
        [int(r[0]) // divisor, r[1], r[2], r[3], r[4], r[5], int(r[6]) // divisor, r[7], int(r[8]), r[9], r[10], r[11]]
        for r in rows
    ]


def _agg_trades(
    exchange: Exchange, market: Market, parameters: Mapping[str, str], limit: int, divisor: int
) -> list[dict[str, Any]]:
    series = _series(exchange, market, parameters, DataType.AGG_TRADES, "aggTrades")
    start, end = dialect.times_in(parameters, market)
    from_id = dialect.number_in(parameters, "fromId")
    dialect.refuse_combination(market, from_id, start, end)
    now = exchange.now()
    until = min(_FAR if end is None else end, moment_us(now))
    oldest = moment_us(now) - AGG_TRADES_DAYS.get(market, 100_000) * _DAY_US
    if start is not None and start < oldest:
        raise _too_old(market)
    if from_id is not None:
        rows = _from_id(exchange, series, from_id, limit)
        if rows and int(rows[0][5]) < oldest:
            raise _too_old(market)
        rows = [r for r in rows if (start or 0) <= int(r[5]) <= until]
    elif start is not None:
        rows = _oldest(exchange, series, start, until, limit)
    else:
        rows = _newest(exchange, series, until, limit)
    return [_agg_trade(r, market, divisor) for r in rows]


def _trades(
    exchange: Exchange, market: Market, parameters: Mapping[str, str], limit: int, divisor: int
) -> list[dict[str, Any]]:
    """Return single trades from an id on, or the newest. Unlike Binance, it requires no key in futures."""
    series = _series(exchange, market, parameters, DataType.TRADES, "historicalTrades")
    from_id = dialect.number_in(parameters, "fromId")
    if from_id is None:
        rows = _newest(exchange, series, moment_us(exchange.now()), limit)
    else:
        days = exchange.days(series)
        first = bisect_left(days, from_id, key=lambda day: _last_id(exchange, series, day))
        rows = _rows_from_id(exchange, series, days[first:], from_id, limit)
    value = "baseQty" if market is Market.CM else "quoteQty"
    return [
        {"id": int(r[0]), "price": r[1], "qty": r[2], value: r[3], "time": int(r[4]) // divisor}
        | {"isBuyerMaker": r[5].lower() == "true"}
        | ({"isBestMatch": r[6].lower() == "true"} if market is Market.SPOT else {})
        for r in rows
    ]


def _last_id(exchange: Exchange, series: SeriesKey, day: date) -> int:
    ids = exchange.rows(series, day, "rest").ids
    return int(ids[-1]) if ids is not None and len(ids) else -1


def _funding_rates(
    exchange: Exchange, market: Market, parameters: Mapping[str, str], limit: int
) -> list[dict[str, Any]]:
    """Return funding rates with both ends included: the oldest from startTime on, or the newest without times."""
    series = _series(exchange, market, parameters, DataType.FUNDING_RATE, "fundingRate")
    start, end = dialect.times_in(parameters, market)
    until = min(_FAR if end is None else end, moment_us(exchange.now()))
    rows = _newest(exchange, series, until, limit) if not start else _oldest(exchange, series, start, until, limit)
    return [
        {"symbol": series.symbol, "fundingTime": int(at) // 1_000, "fundingRate": f"{Decimal(rate):.8f}"}
        for at, _, rate in rows
    ]


def _statistics(exchange: Exchange, endpoint: str, parameters: Mapping[str, str], limit: int) -> list[dict[str, Any]]:
    """Return periods of five minutes, labelled by their start. If more match than the limit, return the newest."""
    if parameters.get("period") != "5m":
        raise dialect.invalid("period", "The sandbox serves period 5m only.")
    try:
        series = _series(exchange, Market.UM, parameters, DataType.METRICS, endpoint)
    except Refusal:
        return []  # as Binance answers for unknown symbols
    start, end = dialect.times_in(parameters, Market.UM)
    now = moment_us(exchange.now())
    oldest = now - STATISTICS_DAYS * _DAY_US
    if start is not None and start < oldest:
        raise dialect.invalid("startTime")
    rows = _newest(exchange, series, min(_FAR if end is None else end, now), limit)
    return [
        {"symbol": series.symbol, "timestamp": int(row[0]) // 1_000}
        | {field: row[_METRICS.index(column)] for field, column in dialect.STATISTICS[endpoint].items()}
        for row in rows
        if int(row[0]) >= (oldest if start is None else start)
    ]


def _too_old(market: Market) -> Refusal:
    # Observed in um only. We assume the same text for cm and for an id that is too old.
    return Refusal(-4166, f"Search window is restricted to recent {AGG_TRADES_DAYS[market]} days only.")


def _agg_trade(row: list[str], market: Market, divisor: int) -> dict[str, Any]:
    trade: dict[str, Any] = {
        "a": int(row[0]),
        "p": row[1],
        "q": row[2],
        "f": int(row[3]),
        "l": int(row[4]),
        "T": int(row[5]) // divisor,
        "m": row[6].lower() == "true",
    }
    if market is Market.SPOT:
        trade["M"] = row[7].lower() == "true"
    elif market is Market.UM:
        trade["nq"] = row[2]
    return trade


def _from_id(exchange: Exchange, series: SeriesKey, from_id: int, limit: int) -> list[list[str]]:
    day = exchange.day_of_agg_trade(series, from_id)
    if day is None:
        return []
    days = exchange.days(series)
    return _rows_from_id(exchange, series, days[bisect_left(days, day) :], from_id, limit)


def _rows_from_id(
    exchange: Exchange, series: SeriesKey, days: Iterable[date], from_id: int, limit: int
) -> list[list[str]]:
    found = list[list[str]]()
    for day in days:
        rows = exchange.rows(series, day, "rest")
        ids = rows.ids
        low = int(np.searchsorted(ids, from_id, "left")) if ids is not None else 0
        found += rows.fields(low, low + limit - len(found))
        if len(found) >= limit:
            break
    return found


def _exchange_info(exchange: Exchange, market: Market, parameters: Mapping[str, str], divisor: int) -> dict[str, Any]:
    symbols = exchange.symbols(market)
    symbol = parameters.get("symbol")
    if symbol is not None and market is Market.SPOT:
        symbols = [s for s in symbols if s.symbol == symbol]
        if not symbols:
            raise dialect.unknown_symbol()
    shown = (
        dialect.SymbolRules(
            s.symbol,
            s.trading,
            s.base_asset,
            s.quote_asset,
            (s.price_decimals, s.quantity_decimals),
            moment_us(s.listed_at) // 1_000,
            s.contract_size,
            filters=dialect.filters_of(10.0**-s.price_decimals, 10.0**-s.quantity_decimals),
        )
        for s in symbols
    )
    return dialect.exchange_info(market, moment_us(exchange.now()), shown, divisor)


@dataclass
class WeightMeter:
    """Count the weight used in each market. It uses real time, not the sandbox's clock.

    Attributes:
        budgets: weight allowed per window. cm shares the budget of um.
        window: length of a window in seconds. Binance uses one minute.
        ban_after: number of requests beyond the budget that get 429 before 418 follows.
        ban_seconds: length of a ban (418) in seconds. Binance's shortest ban is two minutes.
    """

    budgets: dict[Market, int] = field(default_factory=lambda: dict(dialect.BUDGETS))
    window: float = 60.0
    ban_after: int = 20
    ban_seconds: int = 120
    _used: dict[Market, tuple[int, int, int]] = field(default_factory=dict)
    _banned_until: dict[Market, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def spend(self, market: Market, weight: int) -> tuple[int, int, int]:
        """Count a request.

        Returns:
            The weight used in this window, the status (200, 429 or 418), and the seconds until the window or ban ends.
        """
        market = _COUNTED_WITH.get(market, market)
        with self._lock:
            now = time.time()
            banned = self._banned_until.get(market, 0.0) - now
            number, used, refused = self._used.get(market, (0, 0, 0))
            current = int(now // self.window)
            if number != current:
                used, refused = 0, 0
            if banned > 0:
                return used, 418, int(banned) + 1
            used += weight
            wait = max(int((current + 1) * self.window - now) + 1, 1)
            status = 200
            if used > self.budgets[market]:
                refused += 1
                status = 429
                if refused > self.ban_after:
                    self._banned_until[market] = now + self.ban_seconds
                    status, wait = 418, self.ban_seconds
            self._used[market] = (current, used, refused)
            return used, status, wait

    def reset(self) -> None:
        """Reset the used weight and remove all bans."""
        with self._lock:
            self._used.clear()
            self._banned_until.clear()


def ban_message(market: Market, budget: int, status: int, wait: int) -> dict[str, Any]:
    """Return the JSON body that Binance sends with 429 and 418."""
    if status == 418:
        until = int(datetime.now(UTC).timestamp() * 1_000) + wait * 1_000
        return {"code": -1003, "msg": f"Way too much request weight used; IP banned until {until}."}
    return {
        "code": -1003,
        "msg": f"Too much request weight used; current limit of {market} is {budget} request weight per 1 MINUTE.",
    }
