"""Run the app on uvicorn: one process, bounded request heads, and a time limit for slow clients."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from market_data_pipeline.server.event_stream import TRANSPORT

MOST_HEAD_BYTES = 65_536
"""Most bytes of a request's line and headers."""

HEAD_SECONDS = 10.0
"""Time in which the head of a request must arrive."""

MOST_FRAME_BYTES = 65_536
"""Most bytes of a message that a socket receives. 1,024 names of streams have 30,000."""

MOST_PINGS = 10
"""Most pings of a socket in a second."""

MOST_FRAGMENTS = 64
"""Most fragments of a message that a socket receives."""

_MOST_CONNECTIONS = 512
_END_SECONDS = 10
_IDLE_SECONDS = 30
"""Time after which an idle connection is closed. Clients that poll every few seconds stay connected."""


def run_server(app: FastAPI, host: str, port: int) -> None:
    """Serve an app until Ctrl-C or SIGTERM. Then finish the requests that are being answered, and stop all jobs."""
    _leave_pandas_out()
    _Server(_config(app, host, port), app).run()


def _leave_pandas_out() -> None:
    """Make pandas unavailable in this process. Arrow imports it for the first value: 50 MB that no route needs."""
    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _WithoutPandas())


class _WithoutPandas(MetaPathFinder):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:  # noqa: ARG002 - the form
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is left out of this process.", name=fullname)


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an app on a free port of loopback, in a thread, as long as the block runs. Yields its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = _Ending(_config(app, *listening.getsockname()), app)
    thread = threading.Thread(target=server.run, args=([listening],), name="server", daemon=True)
    thread.start()  # the socket queues connections until the server answers them
    try:
        yield "http://{}:{}".format(*listening.getsockname())
    finally:
        server.should_exit = True
        thread.join()


def _config(app: FastAPI, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        _with_transport(app),
        host=host,
        port=port,
        http=protocol(),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        timeout_graceful_shutdown=_END_SECONDS,
        timeout_keep_alive=_IDLE_SECONDS,
        ws=socket_protocol() or "none",
        ws_max_size=MOST_FRAME_BYTES,
        ws_ping_interval=20.0,
        ws_ping_timeout=60.0,
        ws_per_message_deflate=False,
    )


def _with_transport(app: ASGIApp) -> ASGIApp:
    """Return an app that finds the transport of a connection in its scope, to abort one that does not read."""

    async def outermost(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[TRANSPORT] = getattr(getattr(send, "__self__", None), "transport", None)
        await app(scope, receive, send)

    return outermost


class _Ending(uvicorn.Server):
    """Ends the streams of all clients first, because they would never end by themselves."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if (hub := self._app.state.server.hub) is not None:
            hub.close()
            await asyncio.sleep(0)
        await super().shutdown(sockets)


class _Server(_Ending):
    """Ends in an orderly way at Ctrl-C and SIGTERM: to stop a server is no fault of it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def protocol() -> type[asyncio.Protocol]:
    """Return the HTTP protocol: httptools where it is installed, else h11. Both with limits for the head."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return _bounded(H11Protocol)
    return _bounded(HttpToolsProtocol)


def _bounded(base: Any) -> type[asyncio.Protocol]:  # noqa: C901 - a class of small methods
    class Bounded(base):  # type: ignore[misc]  # uvicorn has two classes
        """Refuses a head that is too large, and closes a connection whose head does not arrive in time.

        The timer also runs while a connection is idle before its first request. uvicorn's own ends idle ones after it.
        """

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head_bytes = 0
            self._head_timer: asyncio.TimerHandle | None = None
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_arrived()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            cycle = self.cycle
            if cycle is None or cycle.response_complete:  # between two requests
                self._head_bytes += len(data)
                if self._head_timer is None:
                    self._await_head()
                if self._head_bytes > MOST_HEAD_BYTES and b"\r\n\r\n" not in data[:MOST_HEAD_BYTES]:
                    self._refuse()
                    return
            super().data_received(data)
            if self.cycle is not None and self.cycle is not cycle:
                self._head_arrived()

        def handle_websocket_upgrade(self, *event: Any) -> None:
            self._head_arrived()
            super().handle_websocket_upgrade(*event)

        def _await_head(self) -> None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._late)

        def _head_arrived(self) -> None:
            self._head_bytes = 0
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _late(self) -> None:
            self._head_timer = None
            if not self.transport.is_closing():
                self.transport.close()

        def _refuse(self) -> None:
            self._head_arrived()
            if not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    return Bounded


def socket_protocol() -> type[asyncio.Protocol] | None:  # noqa: C901 - a class of small methods
    """Return the protocol of sockets, with limits for what a client sends. None without the package websockets."""
    try:
        from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
    except ImportError:
        return None

    class BoundedSocket(WebSocketsSansIOProtocol):
        """Ends a connection that sends pings or fragments without end, or that does not read."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._pings: deque[float] = deque()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self.handshake_initiated and not self.transport.is_closing():
                # websockets has bounds of its own for the head, and uvicorn would wait for the rest of it.
                self.transport.write(_TOO_LARGE_FOR_SOCKETS)
                self.transport.close()

        async def send(self, message: Any) -> None:
            await super().send(message)
            if message["type"] == "websocket.http.response.body" and self.close_sent:
                self.handshake_complete = True  # a refusal is no error of the app, so uvicorn shall not log one

        def handle_ping(self) -> None:
            now = self.loop.time()
            self._pings.append(now)
            while now - self._pings[0] > 1:
                self._pings.popleft()
            if len(self._pings) > MOST_PINGS or self.transport.get_write_buffer_size() > MOST_FRAME_BYTES:
                self.transport.abort()
            else:
                super().handle_ping()

        def handle_cont(self, event: Any) -> None:
            if len(self.frames) > MOST_FRAGMENTS:
                self.transport.abort()
            else:
                super().handle_cont(event)

        def keepalive_timeout(self) -> None:
            self.transport.abort()  # to close it would wait for a client that does not read

    return BoundedSocket


def _too_large(detail: bytes) -> bytes:
    body = (
        b'{"type":"urn:market-data-pipeline:problem:head-too-large","title":"The head of the request is too large",'
        b'"status":431,"detail":"%b"}' % detail
    )
    return (
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/problem+json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


_TOO_LARGE = _too_large(b"Send at most %d bytes of headers." % MOST_HEAD_BYTES)
_TOO_LARGE_FOR_SOCKETS = _too_large(
    b"The address and each header of a socket have at most 8192 bytes. For more streams, connect to /ws and subscribe."
)
