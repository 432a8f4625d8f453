"""HTTP GET: one complete response within bounds of time and size, or an error that describes the failure.

One layer retries transient faults (5xx, a truncated body, no connection), within one time budget for all attempts. The
meaning of a response does not belong here (``sources/binance/archive.py``, ``sources/binance/rest.py``).
"""

from __future__ import annotations

import http.client
import io
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, quote, urlencode, urljoin, urlsplit

from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse

from market_data_pipeline import __version__, clock
from market_data_pipeline.errors import NetworkError
from market_data_pipeline.model.waits import Stop, Wait, as_duration
from market_data_pipeline.settings import PREFIX, Settings
from market_data_pipeline.sources.connection import Connections, Meter, TooBigError

OK, BAD_REQUEST, FORBIDDEN, TOO_MANY = 200, 400, 403, 429

PASSING = (500, 502, 503, 504)
"""Status codes of transient faults."""

_UNREACHABLE_AFTER = 3
"""A host counts as unreachable after this many unanswered requests in a row, retries included."""

_LEAST_RATE = 16_000
"""Minimum bytes per second of a big body. Below it, the body counts as stalled. Eight downloads share 1 Mbit/s."""

CHECK_NETWORK = "A proxy or a login page may have answered instead. Check the network and try again later."

_ALL_ATTEMPTS = 1.8
"""Time budget for all attempts at one request, backoff included, in timeouts."""

_LAST_ATTEMPT = 0.5
"""Part of the timeout that must be left to start another attempt."""

_LONGEST_BACKOFF_SECONDS = 30
_MOST_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_ERROR_BYTES = 1 << 16
_MOST_HEADER_BYTES = 1 << 20
_FREE_BYTES = 8 << 20
"""Bytes of one body that are read before memory for all of it is reserved."""

_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class ResponseKind:
    """Kind of response to expect, and its maximum size.

    Attributes:
        name: Name for messages, with its article.
        big: True if it may take longer than the timeout, as long as it comes at :data:`_LEAST_RATE`.
    """

    name: str
    most_bytes: int
    big: bool = False


_ANYTHING = ResponseKind("any answer", 1 << 20)


@dataclass(frozen=True, slots=True)
class Response:
    """A host's response, with its complete body.

    Attributes:
        headers: By name, case-insensitive.
        body: Complete for status 200. The first 64 kB for any other status.
        route: The proxy in between, for messages. Empty without one.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    route: str = ""

    @property
    def summary(self) -> str:
        """The response in words, for messages."""
        return f"{self.url}{self.route} answered {self.status} with {self.content}"

    @property
    def text(self) -> str:
        """The start of the body, for messages."""
        return _printable(self.body[:200])

    @property
    def is_html(self) -> bool:
        """True if the body is a web page."""
        begin = self.body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        return begin.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in begin

    @property
    def content(self) -> str:
        """The body in words, for messages about an unexpected response."""
        if not self.body:
            return "an empty body"
        if self.is_html:
            title = re.search(rb"<title[^>]{0,200}>([^<]{0,300})", self.body[:_MOST_ERROR_BYTES], re.IGNORECASE)
            named = _printable(title[1])[:100] if title else ""
            return f"a web page (HTML{f', titled {named!r}' if named else ''})"
        return f"{len(self.body):,} bytes starting with {_printable(self.body[:80])!r}"


def _printable(data: bytes) -> str:
    """Return bytes as one line of text without control characters, which a terminal would obey."""
    text = data.decode(errors="replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class _AttemptError(Exception):
    """An attempt failed, and another may succeed. The text is the reason."""


class _UnansweredError(_AttemptError):
    """The host did not respond at all."""


@dataclass
class Host:
    """One host: its connections, retries and reachability.

    Attributes:
        stop: Ends every attempt, and the backoff between them.
        downloads: Download slots. Callers acquire one for a group of related requests.
    """

    url: str
    settings: Settings
    retried: tuple[int, ...] = PASSING
    stop: Stop = field(default_factory=Stop)
    downloads: threading.Semaphore = field(init=False)
    _connections: Connections | NetworkError = field(init=False)
    _headers: dict[str, str] = field(init=False)
    _unanswered: int = field(default=0, init=False)
    _answered_at: float = field(default=0.0, init=False)
    _probed_at: float = field(default=0.0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _probing: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.downloads = threading.Semaphore(self.settings.download_threads)
        try:
            self._connections = Connections(self.url, self.settings.timeout_seconds, self.settings.download_threads)
            self.stop.on_set(self._connections.abort)
        except NetworkError as error:  # raised by each request, because days fail one by one
            self._connections = error
        self._headers = {
            "User-Agent": f"market-data-pipeline/{__version__}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }

    @property
    def name(self) -> str:
        """The host's name, for messages."""
        return urlsplit(self.url).netloc

    def get(
        self,
        path: str,
        kind: ResponseKind,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        admit: Callable[[int], None] | None = None,
    ) -> Response:
        """GET a path below the base URL and return the complete response. Statuses other than ``retried`` are returned.

        Failed attempts and the backoff between them take less than two timeouts in total.

        Args:
            admit: Called with a number of bytes before the body outgrows 8 MiB, and with its length at the end. It may
                block until memory is free.

        Raises:
            NetworkError: No attempt returned a complete response, it is too big or encoded, or it redirects elsewhere.
            StoppedError: The run was interrupted.
        """
        self.stop.check()
        url = f"{self.url}/{quote(path.lstrip('/'))}"
        if params:
            url += f"?{urlencode(params)}"
        request = _Request(url, self._headers | headers if headers else self._headers, kind, admit, self._route)
        while self._unanswered >= _UNREACHABLE_AFTER:
            with self._probing:
                if self._unanswered >= _UNREACHABLE_AFTER:
                    self._probe()
        return self._attempts(request)

    def _probe(self) -> None:
        """Send a test request to a host that seems unreachable, because it may have ignored only some requests.

        Raises:
            NetworkError: The host does not respond, or did not within the last timeout.
        """
        if time.monotonic() >= self._probed_at:
            url = f"{self.url}/"
            try:
                self._once(url, _Request(url, self._headers, _ANYTHING, None, self._route), self._meter(_ANYTHING))
            except (_AttemptError, NetworkError):
                self._probed_at = time.monotonic() + self.settings.timeout_seconds
            if self._unanswered == 0:
                return
        raise NetworkError(
            f"{self.name} is unreachable{self._route}: {_UNREACHABLE_AFTER} requests in a row got no response. "
            "Check the network and run it again. Stored days are not fetched again."
        )

    def _meter(self, kind: ResponseKind, seconds: float | None = None) -> Meter:
        return Meter(seconds or self.settings.timeout_seconds, 2 * kind.most_bytes + _MOST_HEADER_BYTES)

    @property
    def _route(self) -> str:
        """The proxy, for messages; empty without one."""
        proxy = self._connections.proxy if isinstance(self._connections, Connections) else None
        return f" through {proxy}" if proxy else ""

    def _attempts(self, request: _Request) -> Response:
        timeout, began = self.settings.timeout_seconds, time.monotonic()
        seconds, left = timeout, _ALL_ATTEMPTS * timeout
        for number in range(self.settings.retries + 1):
            meter = self._meter(request.kind, seconds)
            answer: Response | None = None
            fault: _AttemptError | None = None
            try:
                answer = self._redirected(request, meter)
            except _AttemptError as failed:
                fault = failed
            if answer is not None and answer.status not in self.retried:
                return answer
            pause = self._pause(number, answer)
            left -= meter.seconds_lost() + pause
            if left < _LAST_ATTEMPT * timeout or number == self.settings.retries:
                break
            seconds = min(timeout, left)
            Wait(self.stop).sleep(pause, f"Waiting for {self.name}: next request in {as_duration(pause)}.", pause)
        if answer is not None:
            return answer
        with self._lock:
            # A host that answered other requests meanwhile is reachable. Only this request fails.
            if isinstance(fault, _UnansweredError) and self._answered_at < began:
                self._unanswered += 1
        tried = f" (tried {number + 1} times)" if number else ""
        raise NetworkError(f"{request.url} could not be fetched{self._route}: {fault}{tried}.") from fault

    def _pause(self, number: int, answer: Response | None) -> float:
        if answer is not None and answer.status in (TOO_MANY, 503) and TOO_MANY in self.retried:
            seconds = retry_after_seconds(answer)
            if seconds is not None:
                return min(seconds, self.settings.rest_pause_seconds)
        return float(min(self.settings.retry_backoff_seconds * 2.0 ** min(number, 30), _LONGEST_BACKOFF_SECONDS))

    def _redirected(self, request: _Request, meter: Meter) -> Response:
        """Return the response, after redirects within the host."""
        url = request.url
        for _ in range(_MOST_REDIRECTS + 1):
            found = self._once(url, request, meter)
            if isinstance(found, Response):
                return found
            url = _target(url, found, self._route)
        raise NetworkError(f"{request.url}{self._route} redirects too often, the last time to {url}. {CHECK_NETWORK}")

    def _once(self, url: str, request: _Request, meter: Meter) -> Response | str:
        """Send one request. Return the response, or the target of a redirect."""
        response: BaseHTTPResponse | None = None
        whole = False
        try:
            if isinstance(self._connections, NetworkError):
                raise NetworkError(str(self._connections))
            response = self._connections.send(url, request.headers, meter)
            self._unanswered, self._answered_at = 0, time.monotonic()
            if response.status in _REDIRECTS:
                return response.headers.get("Location", "")
            body = _body(response, request, meter)
            whole = response.status >= OK
            return Response(url, response.status, response.headers, body, self._route)
        except TooBigError as error:
            most = f"more than the maximum of {request.kind.most_bytes:,} bytes for {request.kind.name}"
            raise NetworkError(f"{url}{self._route} answered {most}. {CHECK_NETWORK}") from error
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            self.stop.check()
            raise _fault(error, response) from error
        finally:
            if response is not None:
                if not whole:
                    response.close()  # unread bytes must not be read as the next response
                response.release_conn()

    def close(self) -> None:
        """Close all connections."""
        if isinstance(self._connections, Connections):
            self._connections.close()


@dataclass(frozen=True, slots=True)
class _Request:
    url: str
    headers: dict[str, str]
    kind: ResponseKind
    admit: Callable[[int], None] | None
    route: str


def _body(response: BaseHTTPResponse, request: _Request, meter: Meter) -> bytes:
    """Read the complete body of a 200, or the first bytes of any other status.

    Raises:
        TooBigError: It is bigger than its kind allows.
        NetworkError: It has a content encoding.
    """
    if response.status != OK:
        return _beginning(response)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        summary = f"{request.url}{request.route} answered with Content-Encoding {_printable(encoding.encode())[:40]}"
        raise NetworkError(f"{summary}, which we did not accept. {CHECK_NETWORK}")
    length, most = response.headers.get("Content-Length", ""), request.kind.most_bytes
    stated = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else most
    if stated > most:
        raise TooBigError
    if request.kind.big:
        meter.allow_rate(_LEAST_RATE)
    admit = request.admit or (lambda _: None)
    body = io.BytesIO()
    room = _FREE_BYTES
    for chunk in response.stream(_CHUNK, decode_content=False):
        came = body.tell() + len(chunk)
        if came > most:
            raise TooBigError
        if came > room:
            room = stated
            with meter.stopped():
                admit(room)
        body.write(chunk)
    admit(body.tell())
    return body.getvalue()


def _beginning(response: BaseHTTPResponse) -> bytes:
    body = io.BytesIO()
    for chunk in response.stream(_CHUNK, decode_content=False):
        body.write(chunk)
        if body.tell() >= _MOST_ERROR_BYTES:
            response.close()
            break
    return body.getvalue()[:_MOST_ERROR_BYTES]


def _target(url: str, location: str, route: str) -> str:
    """Return the URL that a redirect leads to.

    Raises:
        NetworkError: It leads to another host or scheme, or nowhere.
    """
    named = _printable(location.encode("latin-1", "replace"))[:200]
    try:
        to, ours = urlsplit(urljoin(url, location)), urlsplit(url)
        same = _origin(to) == _origin(ours) and to.username is None
    except ValueError:
        same = False
    if not location or not same:
        where = f"to {named}, another host or scheme" if location else "without a target"
        raise NetworkError(f"{url}{route} redirects {where}. {CHECK_NETWORK}")
    path, query = quote(to.path or "/", safe="/%:@!$&'()*+,;="), quote(to.query, safe="/%:@!$&'()*+,;=?")
    return f"{ours.scheme}://{ours.netloc}{path}{f'?{query}' if query else ''}"


def _origin(url: SplitResult) -> tuple[str, str | None, int]:
    return url.scheme, url.hostname, url.port or (443 if url.scheme == "https" else 80)


def _fault(error: Exception, response: BaseHTTPResponse | None) -> _AttemptError:
    """Return the failure of one attempt, in words."""
    if isinstance(error, ProxyError):
        return _UnansweredError(f"the proxy refuses or does not respond ({_reason(error.original_error)})")
    if isinstance(error, SSLError):
        advice = ". If a company proxy signs with its own certificate, set REQUESTS_CA_BUNDLE to it"
        unknown = "CERTIFICATE_VERIFY_FAILED" in str(error)
        return _UnansweredError(f"no secure connection ({_reason(error)}){advice if unknown else ''}")
    if isinstance(error, (NewConnectionError, NameResolutionError, ConnectTimeoutError)):
        return _UnansweredError(f"no connection ({_reason(error)})")
    if response is not None:
        if isinstance(error, ReadTimeoutError):
            return _AttemptError(f"the body stalled or came too slowly; raise {PREFIX}TIMEOUT_SECONDS to wait longer")
        return _AttemptError("the body was cut short, or does not match its stated length")
    if isinstance(error, (ReadTimeoutError, TimeoutError)):
        return _UnansweredError(f"no response in time; raise {PREFIX}TIMEOUT_SECONDS to wait longer")
    if isinstance(error, ProtocolError):
        return _UnansweredError(f"the connection ended before the response was complete ({_reason(error)})")
    return _UnansweredError(f"the response is not valid HTTP ({_reason(error)})")


def _reason(error: BaseException) -> str:
    """Return the innermost reason, in the system's words."""
    inner = error.args[-1] if error.args and isinstance(error.args[-1], Exception) else error
    if inner is not error:
        return _reason(inner)
    text = (error.strerror if isinstance(error, OSError) else None) or str(error).rsplit(": ", 1)[-1]
    return _printable(text.encode(errors="replace"))[:200].rstrip(".") or type(error).__name__


def retry_after_seconds(answer: Response) -> float | None:
    """Return the seconds of a Retry-After header. None if it is missing or invalid.

    A date is compared with our own clock. The number is finite and not negative, but can be very large.
    """
    text = answer.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        return max(0.0, (clock.naive_utc(moment) - clock.naive_utc(clock.now())).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
