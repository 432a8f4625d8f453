"""The sandbox's WebSocket: paths, subscriptions, limits, pings, the end after 24 hours, and faults of streams.

It needs the package ``websockets``. Without it, the server refuses to upgrade connections. Contents of messages do not
belong here (``streams.py``).
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import json
import math
import random
import secrets
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from market_data_pipeline.model import binance_dialect as dialect
from market_data_pipeline.model.binance_dialect import SocketRefusal, SocketRules
from market_data_pipeline.model.series import Market
from market_data_pipeline.sandbox.exchange import Exchange
from market_data_pipeline.sandbox.faults import (
    CutSockets,
    DamagedMessages,
    Faults,
    LateClose,
    MessageDamage,
    SilentSockets,
)
from market_data_pipeline.sandbox.generator import moment_us
from market_data_pipeline.sandbox.streams import Stream, StreamMessage, find_stream

_SECOND_US = 1_000_000
_TICK_SECONDS = 0.05
"""Real seconds between two looks for new messages."""
_POLICY, _GOING_AWAY = 1008, 1001
_OVERSIZED_BYTES = 4_000_000
_LATE_US = 5 * _SECOND_US
_MOST_REORDERED_US = 2 * _SECOND_US


_QUIET = "/um"
"""Start of the paths of um that acknowledge subscriptions but send nothing.

Since 2026-04-23 um does so at ``wss://fstream.binance.com/ws``. The sandbox has it here, because spot has ``/ws``.
"""


@dataclass(eq=False)
class Socket:
    """One connection."""

    market: Market
    combined: bool
    quiet: bool
    divisor: int
    opened_us: int
    streams: dict[str, Stream | None] = field(default_factory=dict)
    """Streams by name. None for a name that the market does not have: Binance accepts it, too."""
    sent: int = 0
    silent: bool = False
    protocol: Any = None
    waiting: list[tuple[int, int, StreamMessage]] = field(default_factory=list)
    """Messages that a fault delays: the moment, a number, and the message."""
    pinged_us: int = 0
    ping: bytes | None = None
    asked_us: list[int] = field(default_factory=list)
    shutdown_us: int | None = None
    disturbed_us: int = 0
    """Moment of the last decision about faults of the connection."""


class Sockets:
    """All connections: an ASGI application for the scope ``websocket``.

    Attributes:
        rules: Limits of each market. Change an entry to test a limit.
    """

    def __init__(self, exchange: Exchange, faults: Faults, seed: int = 0) -> None:
        self.rules = dict(dialect.SOCKET_RULES)
        self._exchange = exchange
        self._faults = faults
        self._seed = seed
        self._random = random.Random(seed)  # noqa: S311 - faults, no secrets
        self._open: dict[Socket, asyncio.AbstractEventLoop] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    # --- control, from any thread ----------------------------------------------------------------------------

    @property
    def connections(self) -> list[Socket]:
        """Return the open connections, the oldest first."""
        with self._lock:
            return list(self._open)

    def cut(self) -> int:
        """Abort all connections without a closing handshake. Return their number."""
        return self._each(_abort)

    def announce_shutdown(self, seconds: float) -> int:
        """Send ``serverShutdown`` on all connections, and close them later. Return their number.

        Args:
            seconds: Time until the end, on the sandbox's clock.
        """
        at = self._now_us() + int(seconds * _SECOND_US)
        return self._each(lambda socket: setattr(socket, "shutdown_us", at))

    def _each(self, do: Callable[[Socket], object]) -> int:
        with self._lock:
            found = dict(self._open)
        for socket, loop in found.items():
            loop.call_soon_threadsafe(do, socket)
        return len(found)

    def _now_us(self) -> int:
        return moment_us(self._exchange.now())

    # --- one connection --------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        await receive()
        address = dialect.socket_address(scope["path"], scope["query_string"].decode("ascii", "replace"))
        quiet = address is not None and address.base == _QUIET
        market = Market.UM if quiet else dialect.SOCKET_BASES.get(address.base) if address is not None else None
        if address is None or market is None:
            await refuse(send, 404)
            return
        divisor = 1 if address.fine and market is Market.SPOT else 1_000
        socket = Socket(market, address.combined, quiet, divisor, self._now_us())
        socket.pinged_us = socket.disturbed_us = socket.opened_us
        socket.protocol = getattr(send, "__self__", None)
        self._subscribe(socket, address.names)
        if len(socket.streams) > self.rules[market].streams:
            await refuse(send, 400)
            return
        await send({"type": "websocket.accept"})
        with self._lock:
            self._open[socket] = asyncio.get_running_loop()
        feeding = asyncio.create_task(self._feed(socket, send))
        listening = asyncio.create_task(self._listen(socket, receive, send))
        try:
            done, _ = await asyncio.wait((feeding, listening), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                with suppress(OSError):  # the client is gone
                    task.result()
        finally:
            with self._lock:
                self._open.pop(socket, None)
            for task in (feeding, listening):
                task.cancel()

    def _subscribe(self, socket: Socket, names: Iterable[str]) -> None:
        for name in names:
            if name not in socket.streams:
                now = self._now_us()
                socket.streams[name] = find_stream(self._exchange, socket.market, name, socket.divisor, now)

    # --- requests of the client ------------------------------------------------------------------------------

    async def _listen(self, socket: Socket, receive: Receive, send: Send) -> None:
        rules = self.rules[socket.market]
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            now = self._now_us()
            socket.asked_us = [at for at in socket.asked_us if now - at < _SECOND_US] + [now]
            if len(socket.asked_us) > rules.messages_per_second:
                await send({"type": "websocket.close", "code": _POLICY, "reason": "Too many requests"})
                return
            reply = self._answer(socket, message.get("text"))
            if len(socket.streams) > rules.streams:
                await send({"type": "websocket.close", "code": _POLICY, "reason": "Too many streams"})
                return
            await send({"type": "websocket.send", "text": _json(reply)})

    def _answer(self, socket: Socket, text: str | None) -> dict[str, Any]:
        try:
            request = dialect.socket_request(text)
        except SocketRefusal as refusal:
            return refusal.payload
        if request.method == "SUBSCRIBE":
            self._subscribe(socket, request.names)
        elif request.method == "UNSUBSCRIBE":
            for name in request.names:
                socket.streams.pop(name, None)
        elif request.combined is not None:
            socket.combined = request.combined
        return dialect.socket_result(request, socket.streams, combined=socket.combined)

    # --- messages --------------------------------------------------------------------------------------------

    async def _feed(self, socket: Socket, send: Send) -> None:
        rules, before = self.rules[socket.market], self._now_us()
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = self._now_us()
            for message in await run_in_threadpool(self._take, socket, now):
                for frame in self._frames(socket, message):
                    await send({"type": "websocket.send", **frame})
                    socket.sent += 1
            self._ping(socket, now, rules)
            ends = socket.opened_us + int(rules.life * _SECOND_US)
            if now >= min(ends, socket.shutdown_us or ends):
                await send({"type": "websocket.close", "code": _GOING_AWAY, "reason": ""})
                return
            if socket.shutdown_us is not None and before < socket.shutdown_us:
                notice = dialect.shutdown_message(now // socket.divisor)
                await send({"type": "websocket.send", **_frame(socket, dialect.SHUTDOWN_STREAM, notice)})
                before = socket.shutdown_us
            self._disturb(socket, now)

    def _take(self, socket: Socket, now_us: int) -> list[StreamMessage]:
        """Return the messages to send now, in the order of their moments."""
        for stream in list(socket.streams.values()):
            for message in stream.take(now_us) if stream is not None else ():
                heapq.heappush(socket.waiting, (self._moment(socket, message), next(self._numbers), message))
                if self._meets(socket, message, MessageDamage.LATE_REPEATED):
                    heapq.heappush(socket.waiting, (message.at_us + _LATE_US, next(self._numbers), message))
        due = []
        while socket.waiting and socket.waiting[0][0] <= now_us:
            due.append(heapq.heappop(socket.waiting)[2])
        return [] if socket.quiet or socket.silent else due

    def _moment(self, socket: Socket, message: StreamMessage) -> int:
        """Return the moment to send a message. It is far in the future if the message is lost."""
        at, never = message.at_us, 1 << 62
        for fault in self._faults.of_stream(f"{socket.market}/{message.stream}"):
            if isinstance(fault, LateClose) and message.closes and self._chance(message, fault.share, "close"):
                at = never if fault.seconds is None else at + int(fault.seconds * _SECOND_US)
        if self._meets(socket, message, MessageDamage.LOST):
            at = never
        if self._meets(socket, message, MessageDamage.REORDERED):
            at += int(self._part(message, "delay") * _MOST_REORDERED_US)
        return at

    def _meets(self, socket: Socket, message: StreamMessage, damage: MessageDamage) -> bool:
        return any(
            isinstance(fault, DamagedMessages) and fault.damage is damage and self._chance(message, fault.share, damage)
            for fault in self._faults.of_stream(f"{socket.market}/{message.stream}")
        )

    def _chance(self, message: StreamMessage, share: float, of: str) -> bool:
        return self._part(message, of) < share

    def _part(self, message: StreamMessage, of: str) -> float:
        """Return a number in [0, 1), determined by the seed and the message."""
        key = message.payload["k"]["t"] if message.closes else message.payload.get("a", message.at_us)
        digest = hashlib.blake2b(f"{self._seed}/{of}/{message.stream}/{key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2.0**64

    def _frames(self, socket: Socket, message: StreamMessage) -> list[dict[str, Any]]:
        """Return the frames of a message, with those that faults add."""
        skew = self._faults.skew_us(socket.market) // socket.divisor
        payload = {**message.payload, "E": message.payload["E"] + skew}
        frames: list[dict[str, Any]] = []
        if self._meets(socket, message, MessageDamage.GARBAGE):
            frames.append(_garbage(self._part(message, "garbage kind")))
        if self._meets(socket, message, MessageDamage.OVERSIZED):
            frames.append({"text": '{"e":"' + "x" * _OVERSIZED_BYTES + '"}'})
        frames.append(_frame(socket, message.stream, payload))
        if self._meets(socket, message, MessageDamage.REPEATED):
            frames.append(frames[-1])
        if self._meets(socket, message, MessageDamage.OTHER_SYMBOL):
            frames.append(_frame(socket, message.stream, _of_other_symbol(payload)))
        if self._meets(socket, message, MessageDamage.WRONG_TYPES):
            frames.append(_frame(socket, message.stream, _with_wrong_types(payload, self._part(message, "types"))))
        return frames

    # --- pings and faults of the connection ------------------------------------------------------------------

    def _ping(self, socket: Socket, now_us: int, rules: SocketRules) -> None:
        """Ping in the market's rhythm. ASGI has no pings, so use uvicorn's connection."""
        protocol = socket.protocol
        if not hasattr(protocol, "pending_ping_payload") or protocol.transport.is_closing():
            return
        answered = protocol.pending_ping_payload != socket.ping
        if socket.ping is not None and not answered and now_us - socket.pinged_us > rules.pong_within * _SECOND_US:
            _abort(socket)
        elif (socket.ping is None or answered) and now_us - socket.pinged_us >= rules.ping_every * _SECOND_US:
            socket.ping, socket.pinged_us = secrets.token_bytes(4), now_us
            protocol.pending_ping_payload = socket.ping
            protocol.conn.send_ping(socket.ping)
            protocol.transport.write(b"".join(protocol.conn.data_to_send()))

    def _disturb(self, socket: Socket, now_us: int) -> None:
        """Cut or silence a connection if a fault decides so."""
        since, socket.disturbed_us = socket.disturbed_us, now_us
        for fault in self._faults.of_stream(f"{socket.market}/"):
            if not isinstance(fault, (CutSockets, SilentSockets)):
                continue
            seconds = (now_us - since) / _SECOND_US
            if fault.every == 0 or self._random.random() >= math.exp(-seconds / fault.every):
                if isinstance(fault, CutSockets):
                    _abort(socket)
                else:
                    socket.silent = True


async def refuse(send: Send, status: int) -> None:
    """Answer a request to connect with an HTTP status instead."""
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b""})


def _abort(socket: Socket) -> None:
    if socket.protocol is not None:
        socket.protocol.transport.abort()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _frame(socket: Socket, stream: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {"text": _json(dialect.framed(payload, stream, combined=socket.combined))}


_GARBAGE: tuple[dict[str, Any], ...] = (
    {"bytes": b"\x00\xff\xfe\x80 no text"},
    {"text": "<html><body>502 Bad Gateway</body></html>"},
    {"text": '{"e":"kline","s":"BTCUSDT","k":{"t":17'},
    {"text": ""},
    {"text": "[" * 2_000 + "]" * 2_000},
    {"text": "null"},
    {"text": '{"stream":5,"data":[]}'},
)


def _garbage(part: float) -> dict[str, Any]:
    return _GARBAGE[int(part * len(_GARBAGE))]


def _of_other_symbol(payload: dict[str, Any]) -> dict[str, Any]:
    other = {**payload, "s": "OTHERUSDT"}
    return {**other, "k": {**payload["k"], "s": "OTHERUSDT"}} if "k" in payload else other


_WRONG: tuple[Any, ...] = (None, [], {}, "NaN", "Infinity", "-1", "1e400", "", True, -1, 1 << 80, "0x10", "１２")


def _with_wrong_types(payload: dict[str, Any], part: float) -> dict[str, Any]:
    """Return a payload with a wrong value in one field, or without it."""
    inner = payload.get("k", payload)
    names = [name for name in inner if name not in ("x", "m", "M", "B", "nq", "st")]
    name = names[int(part * 997) % len(names)]
    choice = int(part * 9_973) % (len(_WRONG) + 1)
    changed = {key: value for key, value in inner.items() if key != name}
    if choice < len(_WRONG):
        changed[name] = _WRONG[choice]
    return {**payload, "k": changed} if "k" in payload else changed
