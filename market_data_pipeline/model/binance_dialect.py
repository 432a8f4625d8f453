"""Binance's dialect of REST and of streams: paths, parameters, limits, weights, error codes and forms of answers.

The sandbox and the server share it. Facts come from Binance's documentation of the three markets. Rows, HTTP, sockets
and the requests of the pipeline do not belong here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from market_data_pipeline.model.series import DataType, Market, SeriesKey, intervals_of

PREFIXES = {"/api/v3": Market.SPOT, "/fapi/v1": Market.UM, "/dapi/v1": Market.CM}
STATISTICS_PREFIX = "/futures/data"
"""Start of the paths of statistics. They are of um alone."""

STATISTICS: dict[str, dict[str, str]] = {
    "openInterestHist": {
        "sumOpenInterest": "sum_open_interest",
        "sumOpenInterestValue": "sum_open_interest_value",
    },
    "topLongShortAccountRatio": {"longShortRatio": "count_toptrader_long_short_ratio"},
    "topLongShortPositionRatio": {"longShortRatio": "sum_toptrader_long_short_ratio"},
    "globalLongShortAccountRatio": {"longShortRatio": "count_long_short_ratio"},
    "takerlongshortRatio": {"buySellRatio": "sum_taker_long_short_vol_ratio"},
}
"""Endpoints below ``/futures/data``, each with its fields and their columns of metrics."""

_FUTURES = (Market.UM, Market.CM)
_PRICES = (DataType.MARK_PRICE_KLINES, DataType.INDEX_PRICE_KLINES, DataType.PREMIUM_INDEX_KLINES)

CANDLES: dict[Market, dict[str, DataType]] = {
    Market.SPOT: {"klines": DataType.KLINES, "uiKlines": DataType.KLINES},
    **{
        market: {"klines": DataType.KLINES, "continuousKlines": DataType.KLINES, **{str(one): one for one in _PRICES}}
        for market in _FUTURES
    },
}
"""Endpoints of candles by market, and the data type of their rows."""

TICKERS = ("ticker/price", "ticker/24hr")
"""Endpoints of the newest price, and of the last 24 hours."""

MINI_TICKER = (
    *("symbol", "openPrice", "highPrice", "lowPrice", "lastPrice", "volume", "quoteVolume", "openTime", "closeTime"),
    *("firstId", "lastId", "count"),
)
"""Fields of ``ticker/24hr`` of spot with ``type=MINI``."""

_PAIRS = ("indexPriceKlines", "continuousKlines")
"""Endpoints that take a pair in place of a symbol."""

BUDGETS = {Market.SPOT: 6_000, Market.UM: 2_400, Market.CM: 2_400}
"""Weight that one address can use per minute."""

_MAX_LIMIT: dict[tuple[Market, str], int] = {
    **{(market, endpoint): 1_500 for market in _FUTURES for endpoint in CANDLES[market]},
    **{(Market.SPOT, endpoint): 1_000 for endpoint in CANDLES[Market.SPOT]},
    **{(market, "aggTrades"): 1_000 for market in Market},
    **{(market, "fundingRate"): 1_000 for market in _FUTURES},
    (Market.SPOT, "historicalTrades"): 1_000,
}
DEFAULT_LIMIT = {"fundingRate": 100, **dict.fromkeys(STATISTICS, 30)}
"""Rows of an answer without a limit, if they are not 500."""

CONTRACTS = ("PERPETUAL", "CURRENT_QUARTER", "NEXT_QUARTER")
"""Contracts of ``continuousKlines``."""

_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US

Parameters = Mapping[str, str]
"""The query of a request."""


class Refusal(Exception):  # noqa: N818 - an answer, not an error of the server
    """Raised for a request that Binance refuses with an error code.

    Args:
        status: Status of the answer.
    """

    def __init__(self, code: int, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status

    @property
    def payload(self) -> dict[str, Any]:
        """Return the JSON of the answer."""
        return {"code": self.code, "msg": str(self)}


def weight_of(market: Market, endpoint: str, parameters: Parameters) -> int:
    """Return the weight of a request. For klines in futures it depends on the limit."""
    try:
        limit = limit_in(parameters, market, endpoint)
    except Refusal:
        return 1
    spot = market is Market.SPOT
    if endpoint in CANDLES[market]:
        if spot:
            return 2
        return 1 if limit < 100 else 2 if limit < 500 else 5 if limit <= 1_000 else 10
    if endpoint == "aggTrades":
        return 4 if spot else 20
    if endpoint == "historicalTrades":
        return 25 if spot else 20
    if endpoint in TICKERS:
        return _ticker_weight(spot, endpoint, parameters)
    if endpoint == "exchangeInfo":
        return 20 if spot else 1
    return 1


def _ticker_weight(spot: bool, endpoint: str, parameters: Parameters) -> int:
    if "symbol" in parameters:
        return 2 if spot else 1
    if endpoint == "ticker/price":
        return 4 if spot else 2
    number = parameters["symbols"].count(",") + 1 if spot and "symbols" in parameters else 101
    return 40 if not spot or 20 < number <= 100 else 2 if number <= 20 else 80


# --- parameters --------------------------------------------------------------------------------------------------


def number_in(parameters: Parameters, name: str) -> int | None:
    """Return a whole number; None if it was not sent.

    Raises:
        Refusal: It has other characters than digits.
    """
    text = parameters.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise Refusal(-1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.")
    return int(text)


def limit_in(parameters: Parameters, market: Market, endpoint: str) -> int:
    """Return the most rows of an answer. Spot cuts a limit that is too large, and futures refuse it.

    Raises:
        Refusal: The limit is not a number, 0, or too large in futures.
    """
    limit = number_in(parameters, "limit")
    greatest = _MAX_LIMIT.get((market, endpoint), 500)
    if limit is None:
        return DEFAULT_LIMIT.get(endpoint, 500)
    if limit == 0 or (limit > greatest and market is not Market.SPOT):
        raise invalid("limit")
    return min(limit, greatest)


def times_in(parameters: Parameters, market: Market) -> tuple[int | None, int | None]:
    """Return startTime and endTime in microseconds.

    An endTime in milliseconds includes its whole millisecond. Spot also accepts microseconds.

    Raises:
        Refusal: A time is not a number, or they are reversed in futures.
    """
    start, end = number_in(parameters, "startTime"), number_in(parameters, "endTime")
    fine = market is Market.SPOT
    start_us = None if start is None else start if fine and start >= 10**14 else start * 1_000
    end_us = None if end is None else end if fine and end >= 10**14 else end * 1_000 + 999
    if start_us is not None and end_us is not None and start_us > end_us and not fine:
        raise Refusal(-1023, "Start time is greater than end time.")
    return start_us, end_us


def listed_name_in(parameters: Parameters, endpoint: str) -> str:
    """Return the symbol, or the pair for endpoints that take one.

    Raises:
        Refusal: It is missing, or no symbol can be written like it.
    """
    name = symbol_name(endpoint)
    symbol = parameters.get(name)
    if not symbol:
        raise mandatory(name)
    if not re.fullmatch(r"[\w\-.&]{1,50}", symbol) or re.search("[a-z]", symbol):
        raise Refusal(
            -1100, f"Illegal characters found in parameter '{name}'; legal range is '^[\\w\\-._&&[^a-z]]{{1,50}}$'."
        )
    return symbol


def listed_names_in(parameters: Parameters, market: Market) -> list[str] | None:
    """Return the symbols of ``symbol``, or of spot's ``symbols``, which is a JSON list. None without either.

    Raises:
        Refusal: Both were sent, or no symbol can be written like one of them, or the list is not JSON.
    """
    if market is not Market.SPOT or "symbols" not in parameters:
        return [listed_name_in(parameters, "")] if "symbol" in parameters else None
    if "symbol" in parameters:
        raise Refusal(-1128, "Combination of optional parameters invalid.")
    try:
        names = json.loads(parameters["symbols"])
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(one, str) for one in names):
        raise Refusal(-1100, "Illegal characters found in parameter 'symbols'; it is a JSON list of symbols.")
    return list(dict.fromkeys(listed_name_in({"symbol": one}, "") for one in names))


def chosen_symbols(parameters: Parameters, market: Market, listed: Iterable[str]) -> list[str]:
    """Return the symbols of a request for tickers: those that it names, those of cm's ``pair``, or all.

    Raises:
        Refusal: A symbol or a pair is not listed, or both were sent.
    """
    names = list(listed)
    wanted = listed_names_in(parameters, market)
    if market is Market.CM and "pair" in parameters:
        if wanted is not None:
            raise Refusal(-1128, "Combination of optional parameters invalid.")
        found = [name for name in names if name.partition("_")[0] == parameters["pair"]]
        if not found:
            raise unknown_symbol("pair")
        return found
    if wanted is not None and not set(wanted) <= set(names):
        raise unknown_symbol()
    return names if wanted is None else wanted


def is_single_ticker(parameters: Parameters, market: Market) -> bool:
    """Return True if the answer to a request for tickers is an object. It is a list otherwise, and always in cm."""
    return "symbol" in parameters and market is not Market.CM


def symbol_name(endpoint: str) -> str:
    """Return the name of the parameter with the symbol: ``symbol`` or ``pair``."""
    return "pair" if endpoint in _PAIRS else "symbol"


def interval_in(parameters: Parameters, market: Market) -> str:
    """Return an interval as Binance writes it.

    Raises:
        Refusal: It is missing, or the market has no such interval.
    """
    interval = parameters.get("interval")
    if not interval:
        raise mandatory("interval")
    if interval not in (*intervals_of(market), "3d", "1w", "1M"):
        raise Refusal(-1120, "Invalid interval.")
    return interval


def contract_in(parameters: Parameters) -> str:
    """Return the contract of ``continuousKlines``.

    Raises:
        Refusal: It is missing or unknown.
    """
    contract = parameters.get("contractType")
    if not contract:
        raise mandatory("contractType")
    if contract not in CONTRACTS:
        raise invalid("contractType")
    return contract


def perpetual_of(market: Market, pair: str) -> str:
    """Return the symbol of the perpetual contract of a pair."""
    return f"{pair}_PERP" if market is Market.CM else pair


def refuse_long_span(market: Market, start: int | None, end: int | None) -> None:
    """Refuse candles of cm over more than 200 days.

    Raises:
        Refusal: The span is longer.
    """
    if market is Market.CM and start is not None and end is not None and end - start > 200 * _DAY_US:
        raise Refusal(-4088, "Maximum time interval is 200 days.")


def refuse_combination(market: Market, from_id: int | None, start: int | None, end: int | None) -> None:
    """Refuse aggTrades of futures with an id and times, or over more than an hour.

    Raises:
        Refusal: They are combined so.
    """
    if market is Market.SPOT:
        return
    if from_id is not None and (start is not None or end is not None):
        raise Refusal(-1128, "Combination of optional parameters invalid.")
    if start is not None and end is not None and end - start > _HOUR_US + 999:
        raise Refusal(-1127, "More than 1 hours between startTime and endTime.")


def mandatory(name: str) -> Refusal:
    """Return the refusal of a request without a parameter."""
    return Refusal(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")


def invalid(name: str, words: str = "") -> Refusal:
    """Return the refusal of a value. ``words`` is the reason."""
    return Refusal(-1130, f"Data sent for parameter '{name}' is not valid.{words and f' {words}'}")


def unknown_symbol(name: str = "symbol") -> Refusal:
    """Return the refusal of a symbol or pair that the exchange does not have."""
    return Refusal(-1121, f"Invalid {name}.")


# --- forms of answers --------------------------------------------------------------------------------------------

UNKNOWN_ERROR, OVERLOADED, NO_PERMISSION = -1000, -1008, -2015
"""Codes of an unknown error, of a busy server, and of a refused key. Signed endpoints answer with the last one."""


@dataclass(frozen=True, slots=True)
class SymbolRules:
    """A symbol in ``exchangeInfo``.

    Attributes:
        filters: Trading rules as Binance writes them.
        precisions: Decimals of prices and of quantities.
        onboard: Listing in milliseconds since 1970. None leaves it out.
        contract_size: Value of a contract in US dollars. cm only.
    """

    symbol: str
    trading: bool
    base_asset: str
    quote_asset: str
    precisions: tuple[int, int]
    onboard: int | None = None
    contract_size: int | None = None
    contract_type: str = "PERPETUAL"
    filters: list[dict[str, Any]] = field(default_factory=list)


_QUOTES = tuple(
    sorted(
        (
            *("USDT", "USDC", "FDUSD", "BUSD", "TUSD", "USDP", "PAX", "USDS", "USD1", "USDE", "XUSD", "BFUSD", "RLUSD"),
            *("BTC", "ETH", "BNB", "XRP", "TRX", "DOGE", "DOT", "SOL", "UST", "VAI", "DAI", "BKRW", "BIDR", "IDRT"),
            *("BVND", "NGN", "RUB", "TRY", "EUR", "EURI", "AEUR", "GBP", "AUD", "BRL", "UAH", "ZAR", "PLN", "RON"),
            *("ARS", "CZK", "MXN", "JPY", "COP", "IDR"),
        ),
        key=len,
        reverse=True,
    )
)
"""Quote assets of spot and um, the longest first. A snapshot of exchangeInfo wins, so new ones may be missing here."""


def assets_of(market: Market, symbol: str) -> tuple[str, str]:
    """Return the base and the quote asset of a symbol. The quote asset is empty if the symbol ends with no known one.

    >>> assets_of(Market.SPOT, "ETHBTC"), assets_of(Market.CM, "BTCUSD_PERP"), assets_of(Market.UM, "BTCUSDT_240628")
    (('ETH', 'BTC'), ('BTC', 'USD'), ('BTC', 'USDT'))
    """
    name = symbol.partition("_")[0]
    for quote in ("USD",) if market is Market.CM else _QUOTES:
        if name.endswith(quote) and name != quote:
            return name.removesuffix(quote), quote
    return name, ""


def contract_size_of(market: Market, symbol: str) -> int | None:
    """Return the value of a contract of cm in US dollars: 100 for BTC, 10 for all others."""
    return None if market is not Market.CM else 100 if symbol.startswith("BTCUSD_") else 10


def filters_of(tick_size: float, step_size: float) -> list[dict[str, Any]]:
    """Return the trading rules on the steps of prices and quantities."""
    return [
        {"filterType": "PRICE_FILTER", "tickSize": f"{tick_size:.8f}"},
        {"filterType": "LOT_SIZE", "stepSize": f"{step_size:.8f}"},
    ]


def exchange_info(market: Market, now_us: int, symbols: Iterable[SymbolRules], divisor: int = 1_000) -> dict[str, Any]:
    """Return the JSON of ``exchangeInfo``.

    Args:
        now_us: Time of the server in microseconds since 1970.
        divisor: 1 for a time in microseconds, 1,000 for milliseconds.
    """
    limit = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": BUDGETS[market]}
    return {
        "timezone": "UTC",
        "serverTime": now_us // divisor,
        "rateLimits": [limit],
        "exchangeFilters": [],
        "symbols": [_symbol(market, one) for one in symbols],
    }


_PERPETUAL_UNTIL = 4_133_404_800_000
"""Delivery of perpetual contracts, as Binance writes it: 2100-12-25."""


def _delivery_of(symbol: str) -> int:
    """Return the time of delivery in milliseconds since 1970. It is 08:00 UTC of the day in the symbol.

    >>> _delivery_of("BTCUSDT_240628"), _delivery_of("BTCUSD_PERP")
    (1719561600000, 4133404800000)
    """
    try:
        day = datetime.strptime(symbol.partition("_")[2], "%y%m%d").replace(hour=8, tzinfo=UTC)
    except ValueError:
        return _PERPETUAL_UNTIL
    return int(day.timestamp()) * 1_000


def _symbol(market: Market, one: SymbolRules) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "symbol": one.symbol,
        "status": "TRADING" if one.trading else "BREAK" if market is Market.SPOT else "CLOSE",
        "baseAsset": one.base_asset,
        "quoteAsset": one.quote_asset,
        "filters": one.filters,
    }
    if market is Market.SPOT:
        return entry | {
            "baseAssetPrecision": 8,
            "quoteAssetPrecision": 8,
            "isSpotTradingAllowed": one.trading,
            "isMarginTradingAllowed": False,
            "permissions": ["SPOT"],
        }
    entry |= {
        "pair": f"{one.base_asset}{one.quote_asset}",
        "contractType": one.contract_type,
        "marginAsset": one.base_asset if market is Market.CM else one.quote_asset,
        "pricePrecision": one.precisions[0],
        "quantityPrecision": one.precisions[1],
    }
    entry["deliveryDate"] = _delivery_of(one.symbol)
    if one.onboard is not None:
        entry["onboardDate"] = one.onboard
    if market is Market.CM:
        entry["contractStatus"] = entry.pop("status")
        entry["contractSize"] = one.contract_size
    return entry


# --- streams -----------------------------------------------------------------------------------------------------

SOCKET_BASES: dict[str, Market] = {"": Market.SPOT, "/market": Market.UM, "/cm": Market.CM}
"""Start of the paths of streams. Binance has a host for each market; um has its streams below ``/market``."""


@dataclass(frozen=True, slots=True)
class SocketRules:
    """Limits of a market's connections. Times are in seconds."""

    streams: int = 1_024
    messages_per_second: int = 10
    """Messages of the client, with pings and pongs."""
    ping_every: float = 180.0
    pong_within: float = 600.0
    life: float = 24 * 3_600.0


SOCKET_RULES: dict[Market, SocketRules] = {
    Market.SPOT: SocketRules(messages_per_second=5, ping_every=20.0, pong_within=60.0),
    Market.UM: SocketRules(),
    Market.CM: SocketRules(streams=200),
}


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """An address to which a client of streams connects.

    Attributes:
        base: What is before ``/ws`` or ``/stream``.
        names: Names of streams, in order.
        combined: Messages have the name of their stream.
        fine: Times are requested in microseconds. Futures have none.
    """

    base: str
    names: tuple[str, ...]
    combined: bool
    fine: bool


_SOCKET_PATH = re.compile(r"(?P<base>(?:/[a-z]+)?)/(?P<kind>ws|stream)(?:/(?P<names>.*))?", re.DOTALL)


def socket_address(path: str, query: str) -> SocketAddress | None:
    """Return the parts of an address. None if it is none of streams.

    >>> socket_address("/market/stream", "streams=btcusdt@aggTrade/ethusdt@kline_1m").names
    ('btcusdt@aggTrade', 'ethusdt@kline_1m')
    >>> socket_address("/ws/btcusdt@aggTrade", "timeUnit=MICROSECOND").fine
    True
    """
    match = _SOCKET_PATH.fullmatch(path)
    if match is None:
        return None
    try:
        given = parse_qs(query, max_num_fields=10)
    except ValueError:
        return None
    combined = match["kind"] == "stream"
    text = given.get("streams", [""])[0] if combined else match["names"] or ""
    # Some clients number their connections: /ws/1.
    names = tuple(name for name in text.split("/") if name and not (name.isascii() and name.isdigit()))
    fine = given.get("timeUnit", [""])[0].upper() == "MICROSECOND"
    return SocketAddress(match["base"], names, combined, fine)


def stream_name(key: SeriesKey) -> str | None:
    """Return the name of the stream of a series. None if the series has no stream of rows.

    >>> stream_name(SeriesKey("binance", Market.UM, DataType.KLINES, "BTCUSDT", "1m"))
    'btcusdt@kline_1m'
    """
    symbol = key.symbol.lower()
    if key.data_type is DataType.KLINES:
        return f"{symbol}@kline_{key.interval}"
    if key.data_type is DataType.AGG_TRADES:
        return f"{symbol}@aggTrade"
    if key.data_type is DataType.MARK_PRICE_KLINES:
        return f"{symbol}@markPrice@1s"
    return None


_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
_MOST_ID = 1 << 64

RequestId = int | str | None


class SocketRefusal(Exception):  # noqa: N818 - an answer, not an error of the server
    """Raised for a request on a socket that is answered with an error.

    Args:
        code: 0 unknown property, 1 wrong type, 2 invalid request, 3 no JSON.
    """

    def __init__(self, code: int, message: str, number: RequestId = None) -> None:
        super().__init__(message)
        self.code = code
        self.number = number

    @property
    def payload(self) -> dict[str, Any]:
        """Return the JSON of the answer."""
        return {"error": {"code": self.code, "msg": str(self)}, "id": self.number}


@dataclass(frozen=True, slots=True)
class SocketRequest:
    """A request on a socket.

    Attributes:
        names: Names of streams. They are empty for requests about properties.
        combined: New value of the property ``combined``. None if it is not set.
    """

    method: str
    number: RequestId
    names: tuple[str, ...] = ()
    combined: bool | None = None


def socket_request(text: str | None) -> SocketRequest:
    """Parse a request on a socket.

    Args:
        text: The message of a client. None if it was not text.

    Raises:
        SocketRefusal: It is not JSON, or no request.
    """
    try:
        document = json.loads(text or "")
    except (ValueError, RecursionError):
        raise SocketRefusal(3, "Invalid JSON: expected value at line 1 column 1") from None
    if not isinstance(document, dict):
        raise SocketRefusal(2, "Invalid request: expected an object")
    number = document.get("id")
    if not _is_id(number):
        raise SocketRefusal(2, "Invalid request: request ID must be an unsigned integer")
    method, params = document.get("method"), document.get("params", [])
    if method is None:
        raise SocketRefusal(2, "Invalid request: missing field `method`", number)
    if method not in _METHODS:
        expected = ", ".join(f"`{one}`" for one in _METHODS)
        got = ascii(method)[:40]
        raise SocketRefusal(2, f"Invalid request: unknown variant {got}, expected one of {expected}", number)
    if not isinstance(params, list):
        raise SocketRefusal(2, "Invalid request: expected a sequence as `params`", number)
    if method in ("SUBSCRIBE", "UNSUBSCRIBE"):
        if not params or not all(isinstance(name, str) for name in params):
            raise SocketRefusal(2, "Invalid request: `params` must be names of streams", number)
        return SocketRequest(method, number, tuple(params))
    if method == "LIST_SUBSCRIPTIONS":
        return SocketRequest(method, number)
    return _about_property(method, params, number)


def _about_property(method: str, params: list[Any], number: RequestId) -> SocketRequest:
    if params[:1] != ["combined"]:
        raise SocketRefusal(0, "Unknown property", number)
    if method == "GET_PROPERTY":
        return SocketRequest(method, number)
    if len(params) != 2 or not isinstance(params[1], bool):
        raise SocketRefusal(1, "Invalid value type: expected Boolean", number)
    return SocketRequest(method, number, combined=params[1])


def _is_id(number: object) -> bool:
    if isinstance(number, bool):
        return False
    if isinstance(number, int):
        return 0 <= number < _MOST_ID
    return number is None or (isinstance(number, str) and len(number) <= 36)


def socket_result(request: SocketRequest, names: Iterable[str], *, combined: bool) -> dict[str, Any]:
    """Return the JSON of the answer to a request that succeeded.

    Args:
        names: Streams of the connection.
        combined: Its property.
    """
    results: dict[str, Any] = {"LIST_SUBSCRIPTIONS": list(names), "GET_PROPERTY": combined}
    return {"result": results.get(request.method), "id": request.number}


def framed(payload: dict[str, Any], stream: str, *, combined: bool) -> dict[str, Any]:
    """Return a message of a stream, in the combined form or alone."""
    return {"stream": stream, "data": payload} if combined else payload


def kline_message(
    symbol: str,
    interval: str,
    event: int,
    times: tuple[int, int],
    ids: tuple[int, int],
    texts: Iterable[str],
    count: int,
    *,
    closed: bool,
) -> dict[str, Any]:
    """Return a message of a kline stream.

    Args:
        event: Time of the message. All times are in the unit of the stream.
        times: Open and close time.
        ids: First and last trade id.
        texts: o, h, l, c, v, q, V, Q.
    """
    o, h, low, c, v, q, taker, taker_q = texts
    return {
        "e": "kline",
        "E": event,
        "s": symbol,
        "k": {
            "t": times[0],
            "T": times[1],
            "s": symbol,
            "i": interval,
            "f": ids[0],
            "L": ids[1],
            "o": o,
            "c": c,
            "h": h,
            "l": low,
            "v": v,
            "n": count,
            "x": closed,
            "q": q,
            "V": taker,
            "Q": taker_q,
            "B": "0",
        },
    }


def agg_trade_message(
    market: Market,
    symbol: str,
    event: int,
    time: int,
    ids: tuple[int, int, int],
    texts: tuple[str, str],
    *,
    is_buyer_maker: bool,
) -> dict[str, Any]:
    """Return a message of an aggTrade stream.

    Args:
        event: Time of the message. All times are in the unit of the stream.
        time: Time of the trade.
        ids: Its id, and its first and last trade id.
        texts: Price and quantity.
    """
    message: dict[str, Any] = {"e": "aggTrade", "E": event, "s": symbol, "a": ids[0], "p": texts[0], "q": texts[1]}
    message |= {"f": ids[1], "l": ids[2], "T": time, "m": is_buyer_maker}
    return message | {"M": True} if market is Market.SPOT else message


def shutdown_message(event: int) -> dict[str, Any]:
    """Return the message that a connection ends soon."""
    return {"e": "serverShutdown", "E": event}


SHUTDOWN_STREAM = "!serverShutdown"
"""Stream of the messages that a connection ends soon."""
