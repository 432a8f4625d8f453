"""Connections to one host: proxy and certificates from the environment, and bounds on every response.

Each byte of a response, headers included, passes a :class:`Meter`, so no response escapes its bounds. The meaning of a
response, retries and redirects do not belong here (``http.py``).
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import os
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_auth_from_url, get_environ_proxies, select_proxy
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, ProxyManager, make_headers
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationValueError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry, Timeout
from urllib3.util.ssl_ import create_urllib3_context

from market_data_pipeline.errors import NetworkError

_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")

_CONNECT_SHARE = 0.2
"""Share of the timeout for connecting to one address of a host. A name can resolve to eight addresses."""

_NO_RETRY = Retry(total=False, redirect=False)


class TooSlowError(TimeoutError):
    """A response missed its deadline, or came below the minimum rate."""


class TooBigError(Exception):
    """A response is bigger than its kind allows."""


class Meter:
    """Bounds of one response, from the first byte sent to the last byte received.

    Args:
        seconds: Time for the whole response. With a minimum rate: longest time that it may fall behind that rate.
        most_bytes: Maximum bytes on the wire, headers and framing included.
    """

    def __init__(self, seconds: float, most_bytes: int) -> None:
        self._seconds = seconds
        self._left = most_bytes
        self._rate = 0.0
        self._ends = time.monotonic() + seconds

    def allow_rate(self, bytes_per_second: float) -> None:
        """From now on, extend the deadline with every byte received."""
        self._rate = bytes_per_second

    def seconds_left(self) -> float:
        """Return the time left.

        Raises:
            TooSlowError: No time is left.
        """
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TooSlowError("the response did not come in time")
        return left

    def count(self, size: int) -> None:
        """Count received bytes.

        Raises:
            TooBigError: The response is over its limit.
        """
        self._left -= size
        if self._left < 0:
            raise TooBigError
        if self._rate:
            self._ends = min(self._ends + size / self._rate, time.monotonic() + self._seconds)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the clock while the host waits for us."""
        began = time.monotonic()
        yield
        self._ends += time.monotonic() - began

    def seconds_lost(self) -> float:
        """Return the seconds lost: those not earned by received bytes."""
        return self._seconds - max(0.0, self._ends - time.monotonic())


_current = threading.local()
"""The response that this thread waits for: its meter, and its reader once it exists."""


class _Waiting:
    """Sockets that wait for a response, or did."""

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._aborted = False
        self._lock = threading.Lock()

    def add(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)
            if self._aborted:
                raise ConnectionAbortedError("the run was interrupted")

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            for sock in self._sockets:
                with suppress(OSError):
                    # For TLS, too, shut down the socket below: the TLS state belongs to its own thread.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Wire(io.RawIOBase):
    """Metered bytes from a socket."""

    def __init__(self, sock: socket.socket, meter: Meter) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._meter = meter
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.ended:
            return None
        self._sock.settimeout(self._meter.seconds_left())
        size = cast("int", self._raw.readinto(buffer))
        self._meter.count(size)
        return size

    def hang_up(self) -> None:
        """End the connection. The pool notices before it reuses it."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Reader(io.BufferedReader):
    """Reader of one response. It hangs up if bytes follow the response, so that they are not read as the next one."""

    def __init__(self, wire: _Wire) -> None:
        super().__init__(wire)
        self._wire = wire

    def close(self) -> None:
        try:
            if not self.closed:
                self._wire.ended = True
                if self.peek(1):
                    self._wire.hang_up()
        finally:
            super().close()


def _metered(sock: socket.socket) -> _Reader:
    _current.waiting.add(sock)
    _current.reader = reader = _Reader(_Wire(sock, _current.meter))
    return reader


class _Response(http.client.HTTPResponse):
    """A metered response. ``http.client`` only calls ``makefile`` of its socket."""

    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(cast("Any", SimpleNamespace(makefile=lambda _mode: _metered(sock))), *arguments, **named)


class _Plain(HTTPConnection):
    response_class = _Response


class _Secure(HTTPSConnection):
    response_class = _Response


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


_POOLS = {"http": _PlainPool, "https": _SecurePool}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that the environment names.

    Attributes:
        url: Its address, with user and password if it has them.
    """

    url: str
    variable: str

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"the proxy {parts.hostname}:{parts.port or 80} (from {self.variable})"


class Connections:
    """Pool of connections to one host.

    Args:
        timeout: Seconds for one response. Connecting to one address takes at most a fifth of it.
        number: Connections in the pool.

    Attributes:
        proxy: The proxy that requests go through, or None. Requests to loopback never use a proxy.

    Raises:
        NetworkError: An environment variable names an unusable proxy or certificate bundle.
    """

    def __init__(self, url: str, timeout: float, number: int) -> None:
        parts = urlsplit(url)
        scheme, host = parts.scheme, parts.hostname or ""
        port = parts.port or (443 if scheme == "https" else 80)
        self.proxy = proxy_of(url)
        self._waiting = _Waiting()
        self._timeout = Timeout(connect=max(min(timeout, 1.0), timeout * _CONNECT_SHARE), read=timeout)
        options: dict[str, Any] = {"maxsize": number, "block": False}
        if scheme == "https":
            options["ssl_context"] = _trusted(*_ca_bundle())
        self._all: Any
        if self.proxy is not None:
            self._all = _through(self.proxy, options)
        else:
            self._all = _POOLS[scheme](f"[{host}]" if ":" in host else host, port, **options)

    def send(self, url: str, headers: dict[str, str], meter: Meter) -> BaseHTTPResponse:
        """Send a GET request. The same thread reads the body afterwards.

        Raises:
            urllib3.exceptions.HTTPError: No response came.
        """
        _current.meter, _current.reader, _current.waiting = meter, None, self._waiting
        target = url if self.proxy is not None else "/" + url.split("/", 3)[3]
        try:
            named = {"headers": headers, "retries": _NO_RETRY, "redirect": False, "timeout": self._timeout}
            return cast(
                "BaseHTTPResponse",
                self._all.urlopen("GET", target, preload_content=False, decode_content=False, **named),
            )
        except Exception:
            if _current.reader is not None:  # urllib3 leaves it open when it rejects a header
                _current.reader.close()
            raise

    def abort(self) -> None:
        """Abort all pending and later responses, in every thread."""
        self._waiting.abort()

    def close(self) -> None:
        """Close all connections."""
        if isinstance(self._all, PoolManager):
            self._all.clear()
        else:
            self._all.close()


# --- the environment ---------------------------------------------------------------------------------------------


def proxy_of(url: str) -> Proxy | None:
    """Return the proxy that the environment names for a URL. Loopback has none, regardless of NO_PROXY.

    Raises:
        NetworkError: The variable is not the address of a proxy.
    """
    if _is_loopback(urlsplit(url).hostname or ""):
        return None
    given = select_proxy(url, get_environ_proxies(url))
    if not given:
        return None
    names = (f"{urlsplit(url).scheme}_proxy", "all_proxy")
    forms = (form for name in names for form in (name, name.upper()))
    variable = next((form for form in forms if os.environ.get(form) == given), "the system")
    try:
        proxy = Proxy(given if "://" in given else f"http://{given}", variable)
        named = bool(urlsplit(proxy.url).hostname) and urlsplit(proxy.url).port != 0
    except (ValueError, HTTPError):
        named = False
    if not named:
        raise NetworkError(f"{variable} is not the address of a proxy. Set it to http://HOST:PORT, or unset it.")
    return proxy


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _through(proxy: Proxy, options: dict[str, Any]) -> PoolManager:
    user, password = get_auth_from_url(proxy.url)
    scheme = urlsplit(proxy.url).scheme
    manager: PoolManager
    if scheme.startswith("socks"):
        if find_spec("socks") is None:
            raise NetworkError(
                f"{proxy.variable} names a SOCKS proxy. Run `pip install pysocks`, or name an HTTP proxy."
            )
        from urllib3.contrib.socks import SOCKSProxyManager

        manager = SOCKSProxyManager(proxy.url, username=user or None, password=password or None, **options)
        return manager
    try:
        login = make_headers(proxy_basic_auth=f"{user}:{password}") if user else None
        manager = ProxyManager(proxy.url, proxy_headers=login, **options)
    except (LocationValueError, ValueError) as error:
        raise NetworkError(
            f"{proxy.variable} is not the address of a proxy ({error}). Set it to http://HOST:PORT, or unset it."
        ) from error
    manager.pool_classes_by_scheme = dict(_POOLS)
    return manager


def _ca_bundle() -> tuple[str, str]:
    """Return the file or folder of trusted certificates, and the variable that names it (empty: certifi's bundle)."""
    for variable in _CA_VARIABLES:
        if path := os.environ.get(variable):
            return path, variable
    return DEFAULT_CA_BUNDLE_PATH, ""


@lru_cache(maxsize=4)
def _trusted(path: str, variable: str) -> ssl.SSLContext:
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
    load: Callable[..., None] = context.load_verify_locations
    try:
        load(capath=path) if Path(path).is_dir() else load(cafile=path)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = (
            error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else "no certificates"
        )
        raise NetworkError(
            f"Cannot read the trusted certificates: {variable or 'the bundle of certifi'} names {path} ({why}). "
            f"{f'Fix the path, or unset {variable}' if variable else 'Reinstall certifi'}."
        ) from error
    return context
