"""HTTP: one whole answer of a host within bounds of time and size, or an error that says what came instead.

One layer retries: passing faults (5xx, a cut body, no connection) within one allowance of time for all attempts. The
archive and REST share this module. What an answer means is each host's own table (``sources/binance/archive.py``,
``sources/binance/rest.py``).
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
from urllib.parse import quote, urlencode, urljoin, urlsplit

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
from market_data_pipeline.model.waits import Stop, Wait, in_words
from market_data_pipeline.settings import PREFIX, Settings
from market_data_pipeline.sources.connection import Connections, Meter, TooBigError

OK, BAD_REQUEST, FORBIDDEN, TOO_MANY = 200, 400, 403, 429

PASSING = (500, 502, 503, 504)
"""Answers that a later attempt may change."""

UNREACHABLE_AFTER = 3
"""Requests in a row that a host may leave unanswered, retries and all, before it is taken to be unreachable."""

LEAST_RATE = 16_000
"""Bytes per second of a big body, below which it counts as stalled: eight downloads share a line of 1 Mbit/s."""

CHECK_NETWORK = "A proxy or a login page may have answered in its place: check the network, and try again later."

_ALL_ATTEMPTS = 1.8
"""Timeouts that all attempts at one answer may lose together, pauses between them included."""

_LAST_ATTEMPT = 0.5
"""Timeouts that must be left to begin another attempt."""

_LONGEST_BACKOFF_SECONDS = 30
_MOST_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_ERROR_BYTES = 1 << 16
_MOST_HEADER_BYTES = 1 << 20
_FREE_BYTES = 8 << 20
"""Bytes of one body that come before room for all of it is reserved."""

_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Kind:
    """What is asked for, and how big it can be.

    Attributes:
        name: For messages, with its article.
        most_bytes: Most bytes of its body.
        big: Whether it may take longer than the timeout, as long as it comes at :data:`LEAST_RATE`.
    """

    name: str
    most_bytes: int
    big: bool = False


_ANYTHING = Kind("any answer", 1 << 20)


@dataclass(frozen=True, slots=True)
class Answer:
    """A host's answer, with its whole body.

    Attributes:
        url: What was asked.
        status: The status code.
        headers: By name, whatever its case.
        body: Whole; of a status other than 200, its first 64 kB.
        route: The proxy through which it was asked, for messages; empty without one.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    route: str = ""

    @property
    def said(self) -> str:
        """The answer in words: who answered what."""
        return f"{self.url}{self.route} answered {self.status} with {self.content}"

    @property
    def text(self) -> str:
        """The beginning of the body, for messages."""
        return _printable(self.body[:200])

    @property
    def is_html(self) -> bool:
        """Whether the body is a web page."""
        begin = self.body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        return begin.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in begin

    @property
    def content(self) -> str:
        """What the body is, in words, for an answer that should have been something else."""
        if not self.body:
            return "an empty body"
        if self.is_html:
            title = re.search(rb"<title[^>]{0,200}>([^<]{0,300})", self.body[:_MOST_ERROR_BYTES], re.IGNORECASE)
            named = _printable(title[1])[:100] if title else ""
            return f"a web page (HTML{f', titled {named!r}' if named else ''})"
        return f"{len(self.body):,} bytes that begin with {_printable(self.body[:80])!r}"


def _printable(data: bytes) -> str:
    """Text of bytes without control characters, which a terminal would obey, on one line."""
    text = data.decode(errors="replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class _AttemptError(Exception):
    """An attempt failed. The text says how; another attempt may succeed."""


class _UnansweredError(_AttemptError):
    """Nothing came at all."""


@dataclass
class _Allowance:
    """Time that all attempts at one answer may lose."""

    timeout: float
    lost: float = 0.0

    def next_attempt(self, pause: float) -> float:
        """Return the seconds of the next attempt, after a pause; 0 if there is to be none."""
        left = _ALL_ATTEMPTS * self.timeout - self.lost - pause
        return min(self.timeout, left) if left >= _LAST_ATTEMPT * self.timeout else 0.0


@dataclass
class Host:
    """One host: its connections, and whether it can be reached.

    Attributes:
        url: Base URL.
        settings: Threads, timeout and retries.
        retried: Status codes that are retried.
        stop: Ends every attempt, and the pauses between them.
        downloads: One place for each download at a time; whoever asks takes one while its requests belong together.
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
        except NetworkError as error:  # told to whoever asks, as days fail one by one
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
        kind: Kind,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        admit: Callable[[int], None] | None = None,
    ) -> Answer:
        """GET a path below the base URL; the body is whole when this returns. Any status but those retried comes back.

        Attempts that bring nothing, and the pauses between them, take less than two timeouts together.

        Args:
            path: Below the base URL.
            kind: What is asked for.
            params: Of the query.
            headers: To send.
            admit: Called with a number of bytes before more than a few of them are kept, and with the body's length
                when it is there. It may wait until there is room.

        Raises:
            NetworkError: No whole answer in all attempts, one that is too big or encoded, or a redirect elsewhere.
            StoppedError: The run was interrupted.
        """
        self.stop.check()
        url = f"{self.url}/{quote(path.lstrip('/'))}"
        if params:
            url += f"?{urlencode(params)}"
        asked = _Asked(url, self._headers | headers if headers else self._headers, kind, admit, self._route)
        while self._unanswered >= UNREACHABLE_AFTER:
            with self._probing:
                if self._unanswered >= UNREACHABLE_AFTER:
                    self._probe()
        return self._attempts(asked)

    def _probe(self) -> None:
        """Ask a host that seems to be unreachable for anything at all: perhaps it only left some requests unanswered.

        Raises:
            NetworkError: It does not answer, or did not a short while ago.
        """
        if time.monotonic() >= self._probed_at:
            url = f"{self.url}/"
            try:
                self._once(url, _Asked(url, self._headers, _ANYTHING, None, self._route), self._meter(_ANYTHING))
            except (_AttemptError, NetworkError):
                self._probed_at = time.monotonic() + self.settings.timeout_seconds
            if self._unanswered == 0:
                return
        raise NetworkError(
            f"{self.name} was not asked again{self._route}: {UNREACHABLE_AFTER} requests in a row had no answer. "
            "Check the network and start again; what is held is not fetched again."
        )

    def _meter(self, kind: Kind, seconds: float | None = None) -> Meter:
        return Meter(seconds or self.settings.timeout_seconds, 2 * kind.most_bytes + _MOST_HEADER_BYTES)

    @property
    def _route(self) -> str:
        """The proxy, for messages; empty without one."""
        proxy = self._connections.proxy if isinstance(self._connections, Connections) else None
        return f" through {proxy}" if proxy else ""

    def _attempts(self, asked: _Asked) -> Answer:
        allowance, began = _Allowance(self.settings.timeout_seconds), time.monotonic()
        seconds = allowance.timeout
        for number in range(self.settings.retries + 1):
            meter = self._meter(asked.kind, seconds)
            answer: Answer | None = None
            fault: _AttemptError | None = None
            try:
                answer = self._redirected(asked, meter)
            except _AttemptError as failed:
                fault = failed
            if answer is not None and answer.status not in self.retried:
                return answer
            allowance.lost += meter.seconds_lost()
            pause = self._pause(number, answer)
            seconds = allowance.next_attempt(pause)
            if not seconds or number == self.settings.retries:
                break
            allowance.lost += pause
            Wait(self.stop).sleep(pause, f"Waiting for {self.name}: it wants no request for {in_words(pause)}.", pause)
        if answer is not None:
            return answer
        with self._lock:
            # A host that answered others meanwhile is there: it is this request that it does not answer.
            if isinstance(fault, _UnansweredError) and self._answered_at < began:
                self._unanswered += 1
        tried = f" (tried {number + 1} times)" if number else ""
        raise NetworkError(f"{asked.url} could not be fetched{self._route}: {fault}{tried}.") from fault

    def _pause(self, number: int, answer: Answer | None) -> float:
        if answer is not None and answer.status in (TOO_MANY, 503) and TOO_MANY in self.retried:
            asked = seconds_asked(answer)
            if asked is not None:
                return min(asked, self.settings.rest_pause_seconds)
        return float(min(self.settings.retry_backoff_seconds * 2.0 ** min(number, 30), _LONGEST_BACKOFF_SECONDS))

    def _redirected(self, asked: _Asked, meter: Meter) -> Answer:
        """An answer, after redirects within the host."""
        url = asked.url
        for _ in range(_MOST_REDIRECTS + 1):
            found = self._once(url, asked, meter)
            if isinstance(found, Answer):
                return found
            url = _target(url, found.location, self._route)
        raise NetworkError(f"{asked.url}{self._route} redirects again and again, at last to {url}. {CHECK_NETWORK}")

    def _once(self, url: str, asked: _Asked, meter: Meter) -> Answer | _Redirect:
        response: BaseHTTPResponse | None = None
        whole = False
        try:
            if isinstance(self._connections, NetworkError):
                raise NetworkError(str(self._connections))
            response = self._connections.send(url, asked.headers, meter)
            self._unanswered, self._answered_at = 0, time.monotonic()
            if response.status in _REDIRECTS:
                return _Redirect(response.headers.get("Location", ""))
            body = _body(response, asked, meter)
            whole = response.status >= OK
            return Answer(url, response.status, response.headers, body, self._route)
        except TooBigError as error:
            most = f"more than the {asked.kind.most_bytes:,} bytes that {asked.kind.name} can have"
            raise NetworkError(f"{url}{self._route} answered {most}. {CHECK_NETWORK}") from error
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            self.stop.check()
            raise _fault(error, response) from error
        finally:
            if response is not None:
                if not whole:
                    response.close()  # what is left of it must not be taken for the answer to the next request
                response.release_conn()

    def close(self) -> None:
        """Close all connections."""
        if isinstance(self._connections, Connections):
            self._connections.close()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request."""

    url: str
    headers: dict[str, str]
    kind: Kind
    admit: Callable[[int], None] | None
    route: str


@dataclass(frozen=True, slots=True)
class _Redirect:
    location: str


def _body(response: BaseHTTPResponse, asked: _Asked, meter: Meter) -> bytes:
    """The whole body of a 200, or the first bytes of any other.

    Raises:
        TooBigError: It is bigger than its kind can be.
        NetworkError: It is encoded.
    """
    if response.status != OK:
        return _beginning(response)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        said = f"{asked.url}{asked.route} answered with Content-Encoding {_printable(encoding.encode())[:40]}"
        raise NetworkError(f"{said}, which was not asked for. {CHECK_NETWORK}")
    stated = _length(response)
    if stated is not None and stated > asked.kind.most_bytes:
        raise TooBigError
    if asked.kind.big:
        meter.allow_rate(LEAST_RATE)
    body = _whole(response, asked, meter, asked.kind.most_bytes if stated is None else stated)
    if asked.admit is not None:
        asked.admit(len(body))
    return body


def _whole(response: BaseHTTPResponse, asked: _Asked, meter: Meter, expected: int) -> bytes:
    body = io.BytesIO()
    room = _FREE_BYTES
    for chunk in response.stream(_CHUNK, decode_content=False):
        came = body.tell() + len(chunk)
        if came > asked.kind.most_bytes:
            raise TooBigError
        if came > room and asked.admit is not None:
            room = expected
            with meter.stopped():
                asked.admit(room)
        body.write(chunk)
    return body.getvalue()


def _beginning(response: BaseHTTPResponse) -> bytes:
    body = io.BytesIO()
    for chunk in response.stream(_CHUNK, decode_content=False):
        body.write(chunk)
        if body.tell() >= _MOST_ERROR_BYTES:
            response.close()
            break
    return body.getvalue()[:_MOST_ERROR_BYTES]


def _length(response: BaseHTTPResponse) -> int | None:
    """The length that an answer states; None where it states none that can be."""
    text = response.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _target(asked: str, location: str, route: str) -> str:
    """The address that a redirect leads to.

    Raises:
        NetworkError: It leads to another host or scheme, or nowhere.
    """
    named = _printable(location.encode("latin-1", "replace"))[:200]
    try:
        to, ours = urlsplit(urljoin(asked, location)), urlsplit(asked)
        same = (to.scheme, to.hostname, to.port or _port(to.scheme)) == (
            ours.scheme,
            ours.hostname,
            ours.port or _port(ours.scheme),
        ) and to.username is None
    except ValueError:
        same = False
    if not location or not same:
        where = f"to {named}, which is another host or scheme" if location else "but names no target"
        raise NetworkError(f"{asked}{route} redirects {where}. {CHECK_NETWORK}")
    path, query = quote(to.path or "/", safe="/%:@!$&'()*+,;="), quote(to.query, safe="/%:@!$&'()*+,;=?")
    return f"{ours.scheme}://{ours.netloc}{path}{f'?{query}' if query else ''}"


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _fault(error: Exception, response: BaseHTTPResponse | None) -> _AttemptError:
    """What went wrong in one attempt, in words."""
    if isinstance(error, ProxyError):
        return _UnansweredError(f"the proxy refuses or does not answer ({_reason(error.original_error)})")
    if isinstance(error, SSLError):
        advice = ". If a company's proxy signs with its own certificate, name that in REQUESTS_CA_BUNDLE"
        unknown = "CERTIFICATE_VERIFY_FAILED" in str(error)
        return _UnansweredError(f"no secure connection ({_reason(error)}){advice if unknown else ''}")
    if isinstance(error, (NewConnectionError, NameResolutionError, ConnectTimeoutError)):
        return _UnansweredError(f"no connection ({_reason(error)})")
    if response is not None:
        if isinstance(error, ReadTimeoutError):
            return _AttemptError(f"its body stalled, or came too slowly; {PREFIX}TIMEOUT_SECONDS says how long we wait")
        return _AttemptError("its body was cut short, or its length is not what it states")
    if isinstance(error, (ReadTimeoutError, TimeoutError)):
        return _UnansweredError(f"it did not answer in time; {PREFIX}TIMEOUT_SECONDS says how long we wait")
    if isinstance(error, ProtocolError):
        return _UnansweredError(f"the connection ended without a whole answer ({_reason(error)})")
    return _UnansweredError(f"its answer is not HTTP as it should be ({_reason(error)})")


def _reason(error: BaseException) -> str:
    """The innermost reason, in the system's words."""
    inner = error.args[-1] if error.args and isinstance(error.args[-1], Exception) else error
    if inner is not error:
        return _reason(inner)
    text = (error.strerror if isinstance(error, OSError) else None) or str(error).rsplit(": ", 1)[-1]
    return _printable(text.encode(errors="replace"))[:200].rstrip(".") or type(error).__name__


def seconds_asked(answer: Answer) -> float | None:
    """Return the pause that an answer asks for by Retry-After, in seconds; None where it names none that can be.

    A date is taken against our own clock. The number is finite and not negative; it can be as long as a day has.
    """
    text = answer.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        return max(0.0, (clock.naive_utc(moment) - clock.naive_utc(clock.now())).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
