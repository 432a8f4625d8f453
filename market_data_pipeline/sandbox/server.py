"""The sandbox's server: the exchange over HTTP and WebSocket on loopback, and control endpoints.

The endpoints set faults and time, end connections, and show the request log.

Archive and REST contents do not belong here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, time, timedelta
from email.utils import format_datetime
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote_plus

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.binance_dialect import (
    CANDLES,
    PREFIXES,
    STATISTICS,
    STATISTICS_PREFIX,
    TICKERS,
    weight_of,
)
from market_data_pipeline.model.series import Market
from market_data_pipeline.sandbox.exchange import Exchange, GeneratedExchange, ServedFile, etag_of_wrong
from market_data_pipeline.sandbox.faults import (
    AnswerFault,
    CutBody,
    Faults,
    OtherBody,
    RawAnswer,
    Reset,
    SlowBody,
    Status,
    WrongChecksum,
    fault_from_json,
    in_utc,
)
from market_data_pipeline.sandbox.listing import PAGE, list_objects
from market_data_pipeline.sandbox.mirror import MirrorExchange
from market_data_pipeline.sandbox.rest import WeightMeter, answer, ban_message
from market_data_pipeline.sandbox.sockets import Sockets, refuse
from market_data_pipeline.sandbox.symbols import GeneratedSymbol

_HOST = "127.0.0.1"
_MOST_UNSENT = 1 << 22
"""Largest number of unsent bytes to buffer for an endless answer."""

_TICK_SECONDS = 0.1
"""Interval at which the server updates the date in its answers and checks for Ctrl-C."""

_ENDPOINTS = ("aggTrades", "historicalTrades", "fundingRate", *TICKERS, "exchangeInfo", "time", "ping")
_URL_SETTINGS = (
    "MARKET_DATA_VISION_URL",
    "MARKET_DATA_VISION_LISTING_URL",
    "MARKET_DATA_SPOT_URL",
    "MARKET_DATA_UM_URL",
    "MARKET_DATA_CM_URL",
)
_STREAM_SETTINGS = {
    "MARKET_DATA_SPOT_STREAM_URL": "",
    "MARKET_DATA_UM_STREAM_URL": "/market",
    "MARKET_DATA_CM_STREAM_URL": "/cm",
}


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A request that the sandbox answered."""

    method: str
    """``WEBSOCKET`` for a request to connect to streams. Its status is 101 if it was accepted."""
    path: str
    """Decoded, without the query."""
    query: dict[str, str]
    status: int
    """0 if a reset or raw bytes replaced the answer."""
    weight: int
    """Weight of the request. 0 outside REST."""
    at: datetime
    """Time of arrival in real time (UTC)."""


@dataclass
class Clock:
    """The sandbox's clock: real time, a fixed moment, or a moment from which time runs, also faster."""

    _start: datetime | None = None
    _speed: float = 0.0
    _counted_from: float = 0.0

    def now(self) -> datetime:
        """Return the current time, zone-aware in UTC."""
        if self._start is None:
            return datetime.now(UTC)
        return self._start + timedelta(seconds=(monotonic() - self._counted_from) * self._speed)

    def set(self, moment: datetime | None, speed: float = 0.0) -> None:
        """Set the clock to a moment. Naive means UTC, and None follows real time again.

        Args:
            speed: Seconds of the clock in a real second. 0 stops it at the moment. It has no effect without a moment.
        """
        self._counted_from, self._speed = monotonic(), speed
        self._start = None if moment is None else in_utc(moment)


@dataclass
class Log:
    """The requests in the order of their answers. Safe for threads."""

    _requests: list[LoggedRequest] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def append(self, request: LoggedRequest) -> None:
        """Append a request."""
        with self._lock:
            self._requests.append(request)

    def snapshot(self) -> list[LoggedRequest]:
        """Return a copy of all requests."""
        with self._lock:
            return list(self._requests)

    def clear(self) -> None:
        """Remove all requests."""
        with self._lock:
            self._requests.clear()


@dataclass
class Site:
    """Everything that the server needs."""

    exchange: Exchange
    clock: Clock
    faults: Faults
    sockets: Sockets
    meter: WeightMeter = field(default_factory=WeightMeter)
    log: Log = field(default_factory=Log)


# --- the archive and its listing ---------------------------------------------------------------------------------


def _archive_answer(file: ServedFile | None, key: str) -> Response:
    if file is None:
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code>'
            f"<Message>The specified key does not exist.</Message><Key>{key}</Key></Error>"
        )
        return Response(body, 404, media_type="application/xml")
    headers = {
        "ETag": f'"{file.etag}"',
        "Last-Modified": format_datetime(file.last_modified, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    return Response(file.body, headers=headers, media_type="binary/octet-stream")


def _archive_routes(site: Site) -> list[Route]:
    async def archive(request: HttpRequest) -> Response:
        key = request.url.path.removeprefix("/")
        file = site.exchange.cached(key) or await run_in_threadpool(site.exchange.file, key)
        return _archive_answer(file, key)

    return [Route(f"/{tree}/{{key:path}}", archive) for tree in ("data", "data3")]


def _listing_route(site: Site) -> Route:
    async def listing(request: HttpRequest) -> Response:
        query = request.query_params
        size = query.get("max-keys", str(PAGE))
        page = await run_in_threadpool(
            list_objects,
            site.exchange,
            query.get("prefix", ""),
            query.get("delimiter", ""),
            query.get("marker", ""),
            int(size) if size.isdigit() else PAGE,
        )
        return Response(page, media_type="application/xml")

    return Route("/", listing)


# --- REST --------------------------------------------------------------------------------------------------------


def _rest_routes(site: Site) -> list[Route]:
    async def rest(request: HttpRequest) -> Response:
        prefix = next((one for one in PREFIXES if request.url.path.startswith(f"{one}/")), STATISTICS_PREFIX)
        market, endpoint = PREFIXES.get(prefix, Market.UM), request.url.path.removeprefix(f"{prefix}/")
        fine = request.headers.get("X-MBX-TIME-UNIT", "").upper() == "MICROSECOND"
        parameters = dict(request.query_params)
        request.scope["weight"] = weight = weight_of(market, endpoint, parameters)
        used, status, wait = site.meter.spend(market, weight)
        headers = {"X-MBX-USED-WEIGHT-1M": str(used), "X-MBX-USED-WEIGHT": str(used)}
        if status == 200:
            reply = await run_in_threadpool(answer, site.exchange, market, endpoint, parameters, microseconds=fine)
            status, payload = reply.status, reply.payload
        else:
            headers["Retry-After"] = str(wait)
            payload = ban_message(market, site.meter.budgets[market], status, wait)
        return Response(json.dumps(payload, ensure_ascii=False), status, headers, "application/json;charset=UTF-8")

    statistics = [Route(f"{STATISTICS_PREFIX}/{endpoint}", rest) for endpoint in STATISTICS]
    ordinary = [
        Route(f"{prefix}/{endpoint}", rest)
        for prefix, market in PREFIXES.items()
        for endpoint in (*CANDLES[market], *_ENDPOINTS)
    ]
    return ordinary + statistics


# --- control endpoints -------------------------------------------------------------------------------------------


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value, ensure_ascii=False, default=str), status, media_type="application/json")


def _requests_route(site: Site) -> Route:
    async def requests(request: HttpRequest) -> Response:
        if request.method == "DELETE":
            site.log.clear()
        return _json([asdict(entry) for entry in site.log.snapshot()])

    return Route("/_sandbox/requests", requests, methods=["GET", "DELETE"])


def _faults_route(site: Site) -> Route:
    async def faults(request: HttpRequest) -> Response:
        if request.method == "DELETE":
            site.faults.clear()
        elif request.method == "POST":
            try:
                message = await request.json()
                added = [fault_from_json(entry) for entry in (message if isinstance(message, list) else [message])]
            except (UsageError, ValueError) as error:
                return _json({"error": str(error)}, 400)
            for fault in added:
                site.faults.add(fault)
        return _json([{"kind": type(fault).__name__} | asdict(fault) for fault in site.faults])

    return Route("/_sandbox/faults", faults, methods=["GET", "POST", "DELETE"])


def _time_route(site: Site) -> Route:
    async def clock(request: HttpRequest) -> Response:
        if request.method == "POST":
            try:
                message = await request.json()
                moment = message.get("now")
                site.clock.set(datetime.fromisoformat(moment) if moment else None, float(message.get("speed", 0)))
            except (AttributeError, TypeError, ValueError) as error:
                text = f'The body must be {{"now": an ISO time or null, "speed": a number}}: {error}'
                return _json({"error": text}, 400)
        return _json({"now": site.clock.now().isoformat()})

    return Route("/_sandbox/time", clock, methods=["GET", "POST"])


def _sockets_route(site: Site) -> Route:
    async def sockets(request: HttpRequest) -> Response:
        if request.method == "POST":
            try:
                message = await request.json()
                seconds = message.get("shutdown")
                count = site.sockets.cut() if seconds is None else site.sockets.announce_shutdown(float(seconds))
            except (AttributeError, TypeError, ValueError) as error:
                return _json({"error": f'The body must be {{}} or {{"shutdown": seconds}}: {error}'}, 400)
            return _json({"connections": count})
        open_now = site.sockets.connections
        return _json([{"market": s.market, "streams": list(s.streams), "sent": s.sent} for s in open_now])

    return Route("/_sandbox/sockets", sockets, methods=["GET", "POST"])


# --- answer faults -----------------------------------------------------------------------------------------------


class Wire:
    """Middleware that logs requests and applies the answer faults that match them."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app = app
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        path: str = scope.get("path", "")
        if scope["type"] not in ("http", "websocket") or path.startswith("/_sandbox/"):
            await self._app(scope, receive, send)
            return
        at = datetime.now(UTC)
        query = unquote_plus(scope["query_string"].decode("ascii", "replace"))
        met = self._site.faults.of_answer(path, query)

        def log(status: int) -> None:
            pairs = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
            method = scope.get("method", "WEBSOCKET")
            self._site.log.append(LoggedRequest(method, path, pairs, status, scope.get("weight", 0), at))

        await asyncio.sleep(sum(fault.latency for fault in met))
        if await _is_replaced(met, log, scope, receive, send):
            return
        if scope["type"] == "websocket":
            log(101)
            await self._site.sockets(scope, receive, send)
            return

        async def logged(message: Message) -> None:
            if message["type"] == "http.response.start":
                log(message["status"])
            await send(message)

        await self._app(scope, receive, _with_faults(logged, met))


def _with_faults(send: Send, met: Iterable[AnswerFault]) -> Send:
    for fault in met:
        if isinstance(fault, WrongChecksum):
            send = _with_wrong_checksum(send)
        elif isinstance(fault, CutBody):
            send = _cut(send, fault.keep)
        elif isinstance(fault, SlowBody):
            send = _slow(send, fault.seconds)
    return send


async def _is_replaced(
    met: Iterable[AnswerFault], log: Callable[[int], None], scope: Scope, receive: Receive, send: Send
) -> bool:
    """Send the answer of the first fault that replaces the true one. Return False if none does."""
    for fault in met:
        if isinstance(fault, Reset):
            log(0)
            _reset(send)
            return True
        if isinstance(fault, RawAnswer):
            log(0)
            await _raw_answer(fault, send)
            return True
        if isinstance(fault, (Status, OtherBody)):
            log(fault.status)
            await _replace(fault, scope, receive, send)
            return True
    return False


async def _replace(fault: Status | OtherBody, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await refuse(send, fault.status)
    else:
        await _other_answer(fault)(scope, receive, send)


def _other_answer(fault: Status | OtherBody) -> Response:
    if isinstance(fault, OtherBody):
        return Response(fault.body, fault.status, fault.headers, fault.media_type)
    body = {"code": -1003 if fault.status in (418, 429) else -1000, "msg": f"Status {fault.status} on request."}
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    return Response(json.dumps(body), fault.status, headers, "application/json;charset=UTF-8")


def _reset(send: Send) -> None:
    """Close the connection with a TCP reset. ASGI cannot do that, so use uvicorn's transport."""
    transport: Any = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


async def _raw_answer(fault: RawAnswer, send: Send) -> None:
    """Write bytes that ASGI would reject to the transport, until the client disconnects."""
    transport: Any = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        return
    transport.write(fault.begin.encode("latin-1"))
    piece = fault.then.encode("latin-1")
    while not fault.hang_up and not transport.is_closing():
        await asyncio.sleep(fault.pause or (0.0 if piece else 0.05))
        if piece and transport.get_write_buffer_size() < _MOST_UNSENT:
            transport.write(piece)
    transport.abort() if not fault.hang_up else transport.close()


def _cut(send: Send, keep: float) -> Send:
    async def cut(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            # Announce more than is sent, so that the server closes the connection in the middle of the body.
            message = {"type": "http.response.body", "body": body[: int(len(body) * keep)], "more_body": True}
        await send(message)

    return cut


def _slow(send: Send, seconds: float, pieces: int = 20) -> Send:
    async def slow(message: MutableMapping[str, Any]) -> None:
        body = message.get("body", b"")
        if message["type"] != "http.response.body" or not body:
            await send(message)
            return
        step = -(-len(body) // pieces)
        for start in range(0, len(body), step):
            await asyncio.sleep(seconds / pieces)
            last = start + step >= len(body)
            more = not last or message.get("more_body", False)
            await send({"type": "http.response.body", "body": body[start : start + step], "more_body": more})

    return slow


def _with_wrong_checksum(send: Send) -> Send:
    async def wrong(message: MutableMapping[str, Any]) -> None:
        body = message.get("body", b"")
        if message["type"] == "http.response.start":
            headers = [
                (name, f'"{etag_of_wrong(value.decode().strip(chr(34)))}"'.encode() if name == b"etag" else value)
                for name, value in message["headers"]
            ]
            message = {**message, "headers": headers}
        if message["type"] == "http.response.body" and len(body) > 64:
            message = {**message, "body": hashlib.sha256(body).hexdigest().encode() + body[64:]}
        await send(message)

    return wrong


# --- startup and shutdown ----------------------------------------------------------------------------------------


def make_site(
    mirror: Path | str | None = None,
    seed: int = 0,
    symbols: Iterable[GeneratedSymbol] | None = None,
    now: datetime | None = None,
    publish_at: time = time(8),
    speed: float = 0.0,
) -> Site:
    """Create everything that a server needs.

    Raises:
        UsageError: the mirror is not a folder that contains ``data``.
    """
    clock, faults = Clock(), Faults()
    clock.set(now if now or not speed else clock.now(), speed)
    exchange: Exchange
    if mirror is not None:
        exchange = MirrorExchange(clock.now, faults, Path(mirror), publish_at)
    else:
        exchange = GeneratedExchange(clock.now, faults, seed, symbols, publish_at)
    return Site(exchange, clock, faults, Sockets(exchange, faults, seed))


def make_app(site: Site) -> ASGIApp:
    """Return the sandbox as one ASGI application."""
    control = [_requests_route(site), _faults_route(site), _time_route(site), _sockets_route(site)]
    routes = [*_archive_routes(site), *_rest_routes(site), _listing_route(site), *control]
    # The server logs nothing. With debug on, an error of the sandbox shows its traceback in the answer.
    return Wire(Starlette(debug=True, routes=routes), site)


def _server(site: Site) -> _Server:
    config = uvicorn.Config(
        make_app(site),
        host=_HOST,
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=60,
        ws_ping_interval=None,  # the markets have rhythms of their own
        ws_per_message_deflate=False,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """A uvicorn server that signals readiness and stops at once, without waiting for open connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Stop the server; call this from any thread once it is ready."""
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopped.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        tick = 0
        while not await self.on_tick(tick):
            tick += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), _TICK_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"The sandbox cannot listen on port {port}: {error.strerror}. Choose a different port."
        ) from error
    listener.listen(2048)
    return listener


class Sandbox:
    """A Binance on loopback in a thread of this process, from ``__enter__`` to ``__exit__``.

    Args:
        port: the port to listen on. 0 selects a free port.
        mirror: a folder that contains ``data/…`` in the archive's layout. None generates everything.
        seed: selects one of many generated histories.
        symbols: the listed symbols. None lists ``DEFAULT_SYMBOLS``.
        now: the sandbox's clock stops at this moment. Naive means UTC, and None follows real time.
        publish_at: time of day (UTC) at which the archive of the previous day appears.
        speed: seconds of the sandbox's clock in a real second, from ``now`` on. 0 stops the clock at ``now``.

    Raises:
        UsageError: the port is taken, or the mirror is not a folder that contains ``data``.
    """

    def __init__(
        self,
        port: int = 0,
        mirror: Path | str | None = None,
        seed: int = 0,
        symbols: Iterable[GeneratedSymbol] | None = None,
        now: datetime | None = None,
        publish_at: time = time(8),
        speed: float = 0.0,
    ) -> None:
        self.site = make_site(mirror, seed, symbols, now, publish_at, speed)
        self._port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://{_HOST}:{self._port}"

    @property
    def faults(self) -> Faults:
        """The active faults. Add one with ``sandbox.faults.add(Status(path="…", status=404))``."""
        return self.site.faults

    @property
    def weights(self) -> WeightMeter:
        """The used weights and the budgets. Set a budget with ``sandbox.weights.budgets[Market.UM] = 100``."""
        return self.site.meter

    @property
    def requests(self) -> list[LoggedRequest]:
        """A copy of the request log, in the order of the answers."""
        return self.site.log.snapshot()

    def clear_requests(self) -> None:
        """Remove all requests from the log."""
        self.site.log.clear()

    def set_time(self, moment: datetime | None, speed: float = 0.0) -> None:
        """Stop the sandbox's clock at a moment. Naive means UTC, and None follows real time again.

        Args:
            speed: seconds of the clock in a real second, from the moment on. 0 stops the clock.
        """
        self.site.clock.set(moment, speed)

    @property
    def now(self) -> datetime:
        """The time on the sandbox's clock (UTC)."""
        return self.site.clock.now()

    @property
    def sockets(self) -> Sockets:
        """The WebSocket connections, their rules, and commands that end them."""
        return self.site.sockets

    def settings_env(self) -> dict[str, str]:
        """Return the environment variables that point the pipeline at this sandbox."""
        streams = {name: f"{self.url.replace('http', 'ws', 1)}{path}" for name, path in _STREAM_SETTINGS.items()}
        return dict.fromkeys(_URL_SETTINGS, self.url) | streams

    def __enter__(self) -> Self:
        self._socket = _listen(self._port)
        self._port = self._socket.getsockname()[1]
        server = self._server = _server(self.site)
        self._thread = threading.Thread(
            target=server.run, kwargs={"sockets": [self._socket]}, name="sandbox", daemon=True
        )
        self._thread.start()
        if not server.ready.wait(30):
            raise RuntimeError("The sandbox did not start within 30 seconds.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server and self._thread and self._socket:
            self._server.stop()
            self._thread.join()
            self._socket.close()


def serve(
    port: int = 8765,
    mirror: Path | str | None = None,
    seed: int = 0,
    symbols: Iterable[GeneratedSymbol] | None = None,
    now: datetime | None = None,
    speed: float = 0.0,
) -> None:
    """Run the sandbox on 127.0.0.1 in this process until Ctrl-C. Print nothing.

    Args:
        port: the port to listen on.
        mirror: a folder that contains ``data/…`` in the archive's layout. None generates everything.
        seed: selects one of many generated histories.
        symbols: the listed symbols. None lists the default ones.
        now: the sandbox's clock stops at this moment. Naive means UTC, and None follows real time.
        speed: seconds of the sandbox's clock in a real second, from ``now`` on. 0 stops the clock at ``now``.

    Raises:
        UsageError: the port is taken, or the mirror is not a folder that contains ``data``.
    """
    site = make_site(mirror, seed, symbols, now, speed=speed)
    with _listen(port) as listener, suppress(KeyboardInterrupt):
        _server(site).run(sockets=[listener])
