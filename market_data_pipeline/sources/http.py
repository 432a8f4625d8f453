"""HTTP sessions: connections kept, passing faults retried with growing pauses, whole bodies or an error.

What belongs here: transport that the archive and REST share. What an answer means is each host's own table
(``vision.py``, ``rest.py``).
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential
from urllib3.util.retry import Retry

from market_data_pipeline import __version__
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.errors import NetworkError

OK, BAD_REQUEST, TOO_MANY = 200, 400, 429

PASSING = (500, 502, 503, 504)
"""Answers that a later attempt may change."""

UNREACHABLE_AFTER = 3
"""Requests in a row that a host may leave unanswered, retries and all, before it is taken to be unreachable."""


class _StalledError(requests.RequestException):
    """A body that began and then did not go on in time; urllib3 retries only what fails before the body."""


_BODY_FAULTS = (
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
    _StalledError,
)

_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Answer:
    """A host's answer, with its whole body.

    Attributes:
        url: What was asked.
        status: The status code.
        headers: By name, whatever its case.
        body: Whole.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The beginning of the body, for messages."""
        return self.body[:200].decode(errors="replace")


@dataclass
class Host:
    """One host: its sessions, and whether it can be reached.

    Attributes:
        url: Base URL.
        settings: Threads, timeout and retries.
        retried: Status codes that urllib3 retries.
        downloads: One place for each download at a time; whoever asks takes one while its requests belong together.
    """

    url: str
    settings: Settings
    retried: tuple[int, ...] = PASSING
    downloads: threading.Semaphore = field(init=False)
    _session: requests.Session = field(init=False)
    _prepared: requests.PreparedRequest = field(init=False)
    _again: Retrying = field(init=False)
    _unanswered: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.downloads = threading.Semaphore(self.settings.download_threads)
        self._session = requests.Session()
        # The environment is read once: requests would look for proxies in it before every request.
        found = self._session.merge_environment_settings(self.url, {}, None, None, None)
        self._session.proxies, self._session.verify = found["proxies"], found["verify"]
        self._session.trust_env = False
        self._session.headers["User-Agent"] = f"market-data-pipeline/{__version__}"
        retry = Retry(
            total=self.settings.retries,
            backoff_factor=self.settings.retry_backoff_seconds,
            backoff_max=30,
            status_forcelist=self.retried,
            allowed_methods=["GET"],
            # Else urllib3 would wait out any 429 by itself, hours too, where the host has its own table for it.
            respect_retry_after_header=TOO_MANY in self.retried,
            retry_after_max=int(self.settings.rest_pause_seconds),
            raise_on_status=False,
        )
        adapter = HTTPAdapter(pool_maxsize=self.settings.download_threads, max_retries=retry)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        # Requests differ in address and headers; to prepare each of them anew takes as long as to send it.
        self._prepared = self._session.prepare_request(requests.Request("GET", self.url))
        self._again = Retrying(
            retry=retry_if_exception_type(_BODY_FAULTS),
            stop=stop_after_attempt(self.settings.retries + 1),
            wait=wait_exponential(self.settings.retry_backoff_seconds, max=30),
            reraise=True,
        )

    @property
    def name(self) -> str:
        """The host's name, for messages."""
        return urlsplit(self.url).netloc

    def get(
        self,
        path: str,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        admit: Callable[[int], None] | None = None,
    ) -> Answer:
        """GET a path below the base URL; the body is whole when this returns. Any status but those retried comes back.

        Args:
            path: Below the base URL.
            params: Of the query.
            headers: To send.
            admit: Called with the body's length before the body is read; it may wait until there is room.

        Raises:
            NetworkError: no answer, or a cut body, in all attempts; or the host was unreachable before.
        """
        if self._unanswered >= UNREACHABLE_AFTER:
            raise NetworkError(
                f"{self.name} was not asked again: {UNREACHABLE_AFTER} requests in a row had no answer. "
                "Check the network and start again; what is held is not fetched again."
            )
        url = f"{self.url}/{path.lstrip('/')}"
        request = self._prepared.copy()
        request.prepare_url(url, params)
        request.headers.update(headers or {})
        try:
            answer = self._again(self._whole, request, admit)
        except requests.RequestException as error:
            with self._lock:
                self._unanswered += not isinstance(error, _BODY_FAULTS)
            raise NetworkError(f"{url} could not be fetched: {_plain(error)}.") from error
        self._unanswered = 0
        return answer

    def _whole(self, request: requests.PreparedRequest, admit: Callable[[int], None] | None) -> Answer:
        with self._session.send(request, timeout=self.settings.timeout_seconds, stream=True) as answer:
            if admit is not None and answer.ok:
                admit(int(answer.headers.get("Content-Length", "0")))
            # urllib3 compares the body's length with Content-Length.
            body = io.BytesIO()
            try:
                for chunk in answer.iter_content(_CHUNK):
                    body.write(chunk)
            except requests.ConnectionError as error:  # so requests calls a timeout here
                raise _StalledError(error) from error
            return Answer(answer.url, answer.status_code, answer.headers, body.getvalue())

    def close(self) -> None:
        """Close all connections."""
        self._session.close()


def _plain(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return "it did not answer in time"
    if isinstance(error, _BODY_FAULTS):
        return "its body was cut short, or stalled, in every attempt"
    if isinstance(error, requests.ConnectionError):
        return f"no connection ({str(error).rsplit(': ', 1)[-1].strip(chr(39) + ')')})"
    return str(error)
