"""WebSocket streams: names, decoding of messages, and one connection. It needs the extra ``live``.

A message that is not exactly what Binance documents is refused. What follows from messages does not belong here
(``live/``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect

from market_data_pipeline.model.binance_dialect import stream_name
from market_data_pipeline.model.series import DataType, Market, SeriesKey, interval_us

MOST_STREAMS: Mapping[Market, int] = {Market.SPOT: 1_024, Market.UM: 1_024, Market.CM: 200}
"""Most streams of one connection."""
MOST_MESSAGE_BYTES = 1 << 20
"""Largest message. Messages of candles and trades have less than a kilobyte."""

_MOST_WAITING = 4_096
"""Most frames that wait to be read. Beyond that, the connection stops reading, and Binance ends it."""
_NAMES_A_REQUEST = 150
_REQUEST_SECONDS = 0.35
"""Pause between two requests to subscribe. Spot allows five messages of the client a second, with pongs."""
_PLACES = 8
_TIMES_US = 10**15, 41 * 10**14
_MOST_ID = 1 << 62


class UnreadableError(ValueError):
    """A message is not what Binance documents."""


class CandleEvent(msgspec.Struct, frozen=True, gc=False):
    """A message of a kline stream. Times are microseconds since 1970 (UTC)."""

    key: SeriesKey
    event_us: int
    open_us: int
    closed: bool
    first_id: int
    last_id: int
    values: tuple[float | int, ...]
    """In the order of the lake's columns, without labels."""
    units: tuple[int, ...]
    """o, h, l, c, v, q, V, Q in units of 1e-8, for exact comparison."""
    texts: tuple[str, ...] = ()
    """The same as the exchange wrote them."""


class TradeEvent(msgspec.Struct, frozen=True, gc=False):
    """A message of an aggTrade stream. Times are microseconds since 1970 (UTC)."""

    key: SeriesKey
    event_us: int
    trade_id: int
    first_id: int
    last_id: int
    time_us: int
    price: int
    """In units of 1e-8."""
    quantity: int
    """In units of 1e-8."""
    is_buyer_maker: bool
    values: tuple[float | int | bool, ...]
    """In the order of the lake's columns, without labels."""
    texts: tuple[str, ...] = ()
    """Price and quantity as the exchange wrote them. Empty if they come from REST."""


class MarkPriceEvent(msgspec.Struct, frozen=True, gc=False):
    """A message of a markPrice stream."""

    symbol: str
    event_us: int


class ShutdownEvent(msgspec.Struct, frozen=True, gc=False):
    """The server ends soon: open another connection."""


class ReplyEvent(msgspec.Struct, frozen=True, gc=False):
    """The answer to a request to subscribe. It does not promise that messages follow."""

    error: str = ""


StreamEvent = CandleEvent | TradeEvent | MarkPriceEvent | ShutdownEvent | ReplyEvent


class _K(msgspec.Struct, gc=False):
    t: int
    T: int
    s: str
    i: str
    f: int
    L: int
    o: str
    h: str
    l: str  # noqa: E741 - Binance's name
    c: str
    v: str
    n: int
    x: bool
    q: str
    V: str
    Q: str


class _Kline(msgspec.Struct, tag_field="e", tag="kline", gc=False):
    E: int
    s: str
    k: _K


class _Trade(msgspec.Struct, tag_field="e", tag="aggTrade", gc=False):
    E: int
    s: str
    a: int
    p: str
    q: str
    f: int
    l: int  # noqa: E741 - Binance's name
    T: int
    m: bool


class _Mark(msgspec.Struct, tag_field="e", tag="markPriceUpdate", gc=False):
    E: int
    s: str


class _Shutdown(msgspec.Struct, tag_field="e", tag="serverShutdown", gc=False):
    pass


class _Combined(msgspec.Struct, gc=False):
    stream: str
    data: _Kline | _Trade | _Mark | _Shutdown


class _Reply(msgspec.Struct, gc=False):
    id: int | None = None
    result: Any = None
    error: Any = None


class StreamDecoder:
    """Decoder of the messages of one market's combined streams.

    Args:
        keys: The series that were subscribed. Messages of others are refused.
        unit: Microseconds in one unit of the times.
    """

    def __init__(self, market: Market, keys: Iterable[SeriesKey], unit: int) -> None:
        self._keys = {name: key for key in keys if (name := stream_name(key)) is not None}
        self._unit = unit
        self._spot = market is Market.SPOT
        self._combined = msgspec.json.Decoder(_Combined)
        self._reply = msgspec.json.Decoder(_Reply)

    def decode(self, message: bytes | str) -> StreamEvent:
        """Decode a message.

        Raises:
            UnreadableError: It is not JSON, has a wrong type, an impossible value, or another symbol than its stream.
        """
        try:
            found = self._combined.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self._other(message, error)
        data = found.data
        if isinstance(data, _Shutdown):
            return ShutdownEvent()
        key = self._keys.get(found.stream)
        if key is None or data.s != key.symbol:
            raise UnreadableError(f"the stream {found.stream[:60]!r} was not subscribed for this symbol")
        event_us = data.E * self._unit
        _time(event_us)
        if isinstance(data, _Trade):
            return self._trade(key, event_us, data)
        if isinstance(data, _Kline):
            return self._candle(key, event_us, data.k)
        return MarkPriceEvent(key.symbol, event_us)

    def _other(self, message: bytes | str, error: Exception) -> ReplyEvent:
        try:
            reply = self._reply.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UnreadableError(str(error)[:200]) from None
        if reply.id is None and reply.error is None:
            raise UnreadableError(str(error)[:200])
        return ReplyEvent("" if reply.error is None else str(reply.error)[:200])

    def _trade(self, key: SeriesKey, event_us: int, data: _Trade) -> TradeEvent:
        price, quantity, at = units(data.p), units(data.q), data.T * self._unit
        _time(at)
        if (
            key.data_type is not DataType.AGG_TRADES
            or not 0 <= data.f <= data.l < _MOST_ID
            or not 0 <= data.a < _MOST_ID
        ):
            raise UnreadableError(f"ids {data.a}, {data.f}, {data.l} of a trade are impossible")
        values = (data.a, float(data.p), float(data.q), data.f, data.l, at, data.m)
        return TradeEvent(
            key,
            event_us,
            data.a,
            data.f,
            data.l,
            at,
            price,
            quantity,
            data.m,
            (*values, True) if self._spot else values,
            (data.p, data.q),
        )

    def _candle(self, key: SeriesKey, event_us: int, k: _K) -> CandleEvent:
        step, opened = interval_us(key.interval or "1m"), k.t * self._unit
        _time(opened)
        if k.i != key.interval or k.s != key.symbol or opened % step or k.T * self._unit != opened + step - self._unit:
            raise UnreadableError(f"a candle of {k.i[:20]!r} from {k.t} to {k.T} is none of {key}")
        texts = (k.o, k.h, k.l, k.c, k.v, k.q, k.V, k.Q)
        exact = o, h, low, c, v, q, taker, taker_q = tuple(units(text) for text in texts)
        if not (
            low <= o <= h
            and low <= c <= h
            and taker <= v
            and taker_q <= q
            and 0 <= k.n < _MOST_ID
            and (k.n > 0) == (v > 0)
        ):
            raise UnreadableError(f"the values of a candle of {key} contradict each other")
        numbers = (float(k.o), float(k.h), float(k.l), float(k.c), float(k.v))
        rest = (k.T * self._unit, float(k.q), k.n, float(k.V), float(k.Q))
        return CandleEvent(key, event_us, opened, k.x, k.f, k.L, (opened, *numbers, *rest), exact, texts)


def units(text: str) -> int:
    """Return a decimal number without sign and exponent in units of 1e-8.

    >>> units("62445.66")
    6244566000000

    Raises:
        UnreadableError: It has another form, or more than eight decimals.
    """
    whole, point, part = text.partition(".")
    digits = whole + part
    if not (digits.isascii() and digits.isdigit() and whole and bool(part) == bool(point) and len(part) <= _PLACES):
        raise UnreadableError(f"{text[:40]!r} is not a decimal number")
    if len(whole) > 20:
        raise UnreadableError(f"{text[:40]!r} is too large")
    return int(digits + "0" * (_PLACES - len(part)))


def _time(us: int) -> None:
    if not _TIMES_US[0] <= us < _TIMES_US[1]:
        raise UnreadableError(f"{us} is not a time between 2001 and 2099")


@asynccontextmanager
async def open_streams(
    base_url: str, names: Sequence[str], *, microseconds: bool, pace: Callable[[float], float] = float
) -> AsyncIterator[ClientConnection]:
    """Connect to streams and subscribe to them.

    Args:
        base_url: Without ``/stream``.
        microseconds: True to request times in microseconds. Spot alone has them.
        pace: Convert seconds of Binance's limits to real seconds.

    Raises:
        OSError: The host does not answer.
        websockets.WebSocketException: It refuses the connection, or ends it.
    """
    url = f"{base_url}/stream{'?timeUnit=MICROSECOND' if microseconds else ''}"
    async with connect(
        url, max_size=MOST_MESSAGE_BYTES, max_queue=_MOST_WAITING, ping_interval=None, compression=None, close_timeout=1
    ) as socket:
        for number, start in enumerate(range(0, len(names), _NAMES_A_REQUEST)):
            if number:
                await asyncio.sleep(pace(_REQUEST_SECONDS))
            request = {"method": "SUBSCRIBE", "params": list(names[start : start + _NAMES_A_REQUEST]), "id": number + 1}
            await socket.send(msgspec.json.encode(request).decode())
        yield socket
