"""Sockets in Binance's dialect: clients follow streams of candles and trades of the feed in this process.

A name that the feed does not follow is refused, so no stream is silent without a reason. Names, requests and messages
belong to ``model/binance_dialect.py``.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from market_data_pipeline.model import binance_dialect as dialect
from market_data_pipeline.model.binance_dialect import Refusal, SocketRefusal, SocketRequest, SocketRules
from market_data_pipeline.model.live_updates import CandleUpdate, LiveUpdate, TradeUpdate
from market_data_pipeline.model.series import DataType, Market, SeriesKey
from market_data_pipeline.server.live_hub import Ending, LiveClient, LiveHub, SharedUpdate, followed_names
from market_data_pipeline.server.problems import ProblemError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_CLOSE_SECONDS = 5.0
"""Time in which a client must take the message that closes its connection, and answer it."""

_STREAMED = (DataType.KLINES, DataType.AGG_TRADES)


class BinanceSockets:
    """All sockets of one server: an ASGI application for the scope ``websocket``.

    Attributes:
        rules: Limits of each market.
    """

    def __init__(self, hub: LiveHub | None) -> None:
        self.rules = dict(dialect.SOCKET_RULES)
        self._hub = hub
        self._keys: dict[Market, dict[str, SeriesKey]] = {market: {} for market in dialect.SOCKET_BASES.values()}
        for key in hub.series if hub is not None else ():
            name = dialect.stream_name(key)
            if key.data_type in _STREAMED and key.market in self._keys and name is not None:
                self._keys[key.market][name] = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        await receive()
        try:
            socket = self._opened(scope)
        except Refusal as refusal:
            retry = {"Retry-After": "5"} if refusal.status == 503 else {}
            await deny(scope, send, Response(orjson.dumps(refusal.payload), refusal.status, retry, "application/json"))
            return
        try:
            await send({"type": "websocket.accept"})
            await self._serve(socket, receive, send)
        finally:
            socket.client.close()

    def _opened(self, scope: Scope) -> _Socket:
        """Return the state of a new connection.

        Raises:
            Refusal: There is no such address or stream, or no feed.
        """
        address = dialect.socket_address(scope["path"], scope["query_string"].decode("ascii", "replace"))
        market = dialect.SOCKET_BASES.get(address.base) if address is not None else None
        if address is None or market is None:
            raise Refusal(
                -1020,
                f"There are no streams at {scope['path'][:100]}. They are at /ws and /stream (spot), at /market/ws and "
                "/market/stream (um), and at /cm/ws and /cm/stream (cm).",
                404,
            )
        if self._hub is None:
            raise Refusal(-1020, "This server runs no live feed. Start it with `market-data serve --live`.", 404)
        if len(address.names) > self.rules[market].streams:
            raise Refusal(-1130, f"A connection has at most {self.rules[market].streams} streams.")
        keys = self._keys_of(market, address.names)
        try:
            client = self._hub.client()
        except ProblemError as problem:
            raise Refusal(dialect.OVERLOADED, str(problem), problem.kind.status) from None
        socket = _Socket(market, client, address.combined, 1 if address.fine and market is Market.SPOT else 1_000)
        socket.subscribe(keys)
        return socket

    def _keys_of(self, market: Market, names: Iterable[str]) -> dict[str, SeriesKey]:
        """Return the series of streams.

        Raises:
            Refusal: The feed does not follow one of them.
        """
        known = self._keys[market]
        for name in names:
            if name not in known:
                there = followed_names(known.values()) or "nothing"
                raise Refusal(
                    -1130,
                    f"The live feed does not follow {ascii(name)[:60]} of {market}. Streams have names like "
                    f"btcusdt@kline_1m and btcusdt@aggTrade. It follows: {there}.",
                )
        return {name: known[name] for name in names}

    # --- one connection --------------------------------------------------------------------------------------

    async def _serve(self, socket: _Socket, receive: Receive, send: Send) -> None:
        client = socket.client
        await client.serve(self._listen(socket, receive, send), self._send(socket, send))
        if client.ending is not None:
            await _close(client.ending, send)

    async def _send(self, socket: _Socket, send: Send) -> None:
        while True:
            for one in await socket.client.take():
                await send({"type": "websocket.send", "text": socket.text(one)})

    async def _listen(self, socket: _Socket, receive: Receive, send: Send) -> None:
        rules, asked = self.rules[socket.market], deque[float]()
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            now = time.monotonic()
            asked.append(now)
            while now - asked[0] > 1:
                asked.popleft()
            if len(asked) > rules.messages_per_second:
                socket.client.end(Ending.TOO_MANY_REQUESTS)
                return
            reply = self._answer(socket, message.get("text"), rules)
            if reply is None:
                socket.client.end(Ending.TOO_MANY_STREAMS)
                return
            await send({"type": "websocket.send", "text": orjson.dumps(reply).decode()})

    def _answer(self, socket: _Socket, text: str | None, rules: SocketRules) -> dict[str, Any] | None:
        """Return the answer to a message of the client. None if it has too many streams."""
        try:
            request = dialect.socket_request(text)
            self._change(socket, request)
        except SocketRefusal as refusal:
            return refusal.payload
        if len(socket.streams) > rules.streams:
            return None
        return dialect.socket_result(request, socket.streams, combined=socket.combined)

    def _change(self, socket: _Socket, request: SocketRequest) -> None:
        """Carry a request out.

        Raises:
            SocketRefusal: The feed does not follow one of the streams. Nothing is changed.
        """
        if request.method == "SUBSCRIBE":
            try:
                socket.subscribe(self._keys_of(socket.market, request.names))
            except Refusal as refusal:
                raise SocketRefusal(2, f"Invalid request: {refusal}", request.number) from None
        elif request.method == "UNSUBSCRIBE":
            socket.unsubscribe(request.names)
        elif request.combined is not None:
            socket.combined = request.combined


@dataclass(eq=False)
class _Socket:
    """One connection."""

    market: Market
    client: LiveClient
    combined: bool
    divisor: int
    streams: dict[str, SeriesKey] = field(default_factory=dict)

    def subscribe(self, keys: dict[str, SeriesKey]) -> None:
        self.streams |= keys
        for key in keys.values():
            self.client.follow(key)

    def unsubscribe(self, names: Iterable[str]) -> None:
        for name in names:
            key = self.streams.pop(name, None)
            if key is not None:
                self.client.leave(key)

    def text(self, one: SharedUpdate) -> str:
        divisor, combined = self.divisor, self.combined
        return one.text(
            ("binance", divisor, combined),
            lambda update: orjson.dumps(message_of(update, divisor, combined=combined)).decode(),
        )


def message_of(update: LiveUpdate, divisor: int, *, combined: bool) -> dict[str, Any]:
    """Return an update as Binance sends it.

    Args:
        divisor: 1 for times in microseconds, 1,000 for milliseconds.
        combined: The message has the name of its stream.
    """
    key, event = update.key, update.event_us // divisor
    if isinstance(update, TradeUpdate):
        trade_id, _, _, first, last, at, is_buyer_maker, *_ = update.values
        ids = int(trade_id), int(first), int(last)
        payload = dialect.agg_trade_message(
            key.market,
            key.symbol,
            event,
            int(at) // divisor,
            ids,
            update.texts,
            is_buyer_maker=bool(is_buyer_maker),
        )
    else:
        payload = _candle_message(update, event, divisor)
    return dialect.framed(payload, dialect.stream_name(key) or "", combined=combined)


def _candle_message(update: CandleUpdate, event: int, divisor: int) -> dict[str, Any]:
    key, values = update.key, update.values
    return dialect.kline_message(
        key.symbol,
        key.interval or "",
        event,
        (int(values[0]) // divisor, int(values[6]) // divisor),
        (update.first_id, update.last_id),
        update.texts,
        int(values[8]),
        closed=update.closed,
    )


async def deny(scope: Scope, send: Send, response: Response) -> None:
    """Answer a request to connect with an HTTP response instead."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    start = {"status": response.status_code, "headers": response.raw_headers}
    await send({"type": "websocket.http.response.start", **start})
    await send({"type": "websocket.http.response.body", "body": response.body})


async def _close(ending: Ending, send: Send) -> None:
    """Close a connection, and abort it if the client does not take that message."""
    transport: Any = getattr(getattr(send, "__self__", None), "transport", None)
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            with suppress(OSError, RuntimeError):  # the client is gone
                await send({"type": "websocket.close", "code": ending.code, "reason": ending.reason})
    except TimeoutError:
        if transport is not None:
            transport.abort()
        return
    if transport is not None:
        asyncio.get_running_loop().call_later(_CLOSE_SECONDS, transport.abort)
