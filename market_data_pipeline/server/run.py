"""Run the app on uvicorn: one process, bounded request heads, and a time limit for slow clients."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_HEAD_BYTES = 65_536
"""Most bytes of a request's line and headers."""

HEAD_SECONDS = 10.0
"""Time in which the head of a request must arrive."""

_MOST_CONNECTIONS = 512
_END_SECONDS = 10
_IDLE_SECONDS = 30
"""Time after which an idle connection is closed. Clients that poll every few seconds stay connected."""


def run_server(app: FastAPI, host: str, port: int) -> None:
    """Serve an app until Ctrl-C or SIGTERM. Then finish the requests that are being answered, and stop all jobs."""
    _leave_pandas_out()
    _Server(_config(app, host, port)).run()


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
    server = uvicorn.Server(_config(app, *listening.getsockname()))
    thread = threading.Thread(target=server.run, args=([listening],), name="server", daemon=True)
    thread.start()  # the socket queues connections until the server answers them
    try:
        yield "http://{}:{}".format(*listening.getsockname())
    finally:
        server.should_exit = True
        thread.join()


def _config(app: FastAPI, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
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
    )


class _Server(uvicorn.Server):
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


_BODY = (
    b'{"type":"urn:market-data-pipeline:problem:head-too-large","title":"The head of the request is too large",'
    b'"status":431,"detail":"Send at most %d bytes of headers."}' % MOST_HEAD_BYTES
)
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/problem+json\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(_BODY)
) + _BODY
