"""Answers with rows: read once, encoded once, cached as bytes while the lake stays as it is.

An answer is cached under its query, the fingerprint of its series, its format and its coding. Its ``ETag`` covers the
content, the states and what is missing. Parsing a request does not belong here (``market.py``).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import anyio
import pyarrow as pa
from starlette.responses import Response

from market_data_pipeline import clock
from market_data_pipeline.client.pages import RowsPage
from market_data_pipeline.server.formats import COMPRESS_FROM, MEDIA_TYPES, Encoding, compressed, encode_rows
from market_data_pipeline.server.parameters import digest_of
from market_data_pipeline.server.problems import ProblemError, ProblemKind
from market_data_pipeline.settings import cpus

_T = TypeVar("_T")
_K = TypeVar("_K")
_V = TypeVar("_V")

_IMMUTABLE = "max-age=31536000, immutable"
_MOST_SECONDS = 60
"""Seconds for which an answer that may change is fresh, at most."""

_OWN_OVERHEAD = 1000
"""Bytes that an answer takes in addition to its body."""

_MOST_WAITING = 64


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """An answer as bytes.

    Attributes:
        lasting: Its rows never change.
        expires: Unix time after which it is computed again. None means while the lake stays as it is.
        origins: Rows by where they were read.
        whole: Nothing is missing that could be fetched.
    """

    body: bytes
    media_type: str
    coding: str
    etag: str
    lasting: bool
    expires: float | None
    headers: tuple[tuple[str, str], ...] = ()
    origins: tuple[tuple[str, int], ...] = ()
    whole: bool = True


class AnswerCache:
    """Answers as bytes, the least recently used ones removed first.

    Args:
        most_bytes: Most bytes of all answers.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[Hashable, tuple[Hashable, EncodedAnswer]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, fingerprint: Hashable, *, count_miss: bool = True) -> EncodedAnswer | None:
        """Return an answer; None if there is none, or if its series changed, or if its time is over."""
        found = self._kept.get(key)
        if found is None or found[0] != fingerprint or (found[1].expires or time_now() + 1) <= time_now():
            self.misses += count_miss
            return None
        self._kept.move_to_end(key)
        self.hits += 1
        return found[1]

    def put(self, key: Hashable, fingerprint: Hashable, answer: EncodedAnswer) -> None:
        """Store an answer, and replace an older one."""
        self._remove(key)
        size = len(answer.body) + _OWN_OVERHEAD
        if size > self.most_bytes:
            return
        while self.bytes + size > self.most_bytes:
            self._remove(next(iter(self._kept)))
        self._kept[key] = (fingerprint, answer)
        self.bytes += size

    def _remove(self, key: Hashable) -> None:
        if (found := self._kept.pop(key, None)) is not None:
            self.bytes -= len(found[1].body) + _OWN_OVERHEAD


class Recent(OrderedDict[_K, _V]):
    """A dictionary of the values that were set last.

    Args:
        most: Most values.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: _K, value: _V) -> None:
        super().__setitem__(key, value)
        while len(self) > self._most:
            self.popitem(last=False)


def time_now() -> float:
    """Return the Unix time of the project's clock, in seconds."""
    return clock.now().timestamp()


@dataclass
class Workers:
    """Threads for work that blocks: as many as the machine has processors, and a bounded number of waiting requests."""

    limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(max(2, cpus())))

    async def run(self, work: Callable[[], _T]) -> _T:
        """Return the result of a function that blocks.

        Raises:
            ProblemError: Too many requests wait already.
        """
        if self.limiter.statistics().tasks_waiting >= _MOST_WAITING:
            raise ProblemError(
                ProblemKind.BUSY, "Too many requests wait for the disk. Send it again later.", {"Retry-After": "1"}
            )
        return await anyio.to_thread.run_sync(work, limiter=self.limiter)


class Shared:
    """Runs the same work once for all who wait for it."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Future[Any]] = {}

    async def run(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """Return the result of ``work()``, an awaitable, which another caller may have begun."""
        running = self._running.get(key)
        if running is None:
            running = asyncio.ensure_future(work())
            self._running[key] = running
            running.add_done_callback(lambda done: self._end(key, done))
        return await asyncio.shield(running)

    def _end(self, key: Hashable, done: asyncio.Future[Any]) -> None:
        del self._running[key]
        if not done.cancelled():
            done.exception()  # all who waited may have gone away


def iso(moment: datetime | None) -> str | None:
    """Return a moment (UTC, without zone) as RFC 3339."""
    if moment is None:
        return None
    precision = "seconds" if not moment.microsecond else "milliseconds" if not moment.microsecond % 1000 else "auto"
    return moment.isoformat(timespec=precision) + "Z"


def facts_of(page: RowsPage) -> dict[str, Any]:
    """Return the version, the states and what is missing, as every answer has them."""
    states = [
        {"from": iso(one.first), "to": iso(one.until), "state": one.state, "source": one.source} for one in page.states
    ]
    if page.forming is not None:
        states[-1]["as_of"] = iso(clock.naive_from_us(page.forming.as_of_us))
    return {
        "version": page.version,
        "states": states,
        "missing": [{"from": iso(one.first), "to": iso(one.until), "reason": one.reason} for one in page.missing],
    }


def aware(table: pa.Table) -> pa.Table:
    """Return a table whose times have the zone UTC."""
    fields = [
        field_.with_type(pa.timestamp("us", "UTC")).with_nullable(True)
        if pa.types.is_timestamp(field_.type)
        else field_.with_nullable(True)
        for field_ in table.schema
    ]
    return table.cast(pa.schema(fields))


def encoded(
    rows: pa.Table,
    facts: dict[str, Any],
    encoding: Encoding,
    query: Hashable,
    *,
    lasting: bool,
    growing: bool,
    fleeting: bool = False,
) -> EncodedAnswer:
    """Encode an answer.

    Args:
        facts: What is known about the rows. The ``ETag`` covers it.
        query: The request, without the format. It has the open candle, if the rows do.
        lasting: The answer never changes.
        growing: The range touches the present, so that the answer may change when the next minute is over.
        fleeting: The answer may change in each moment, because it has the open candle.
    """
    body = encode_rows(rows, facts, encoding.format)
    coding = encoding.coding if len(body) >= COMPRESS_FROM else "identity"
    tag = digest_of(query, facts, encoding.format, coding)
    expires = None
    if growing:
        expires = time_now() + 1 if fleeting else time_now() // 60 * 60 + 60
    return EncodedAnswer(
        body=compressed(body, coding),
        media_type=MEDIA_TYPES[encoding.format],
        coding=coding,
        etag=f'"{tag}"',
        lasting=lasting,
        expires=expires,
    )


def respond(if_none_match: str | None, answer: EncodedAnswer, *, private: bool) -> Response:
    """Return the response to a request: the bytes, or 304 if the client has them."""
    headers = {"ETag": answer.etag, "Cache-Control": _freshness(answer, private=private), "Vary": _VARY}
    headers.update(answer.headers)
    if _matches(if_none_match, answer.etag):
        return Response(None, 304, headers)
    if answer.coding != "identity":
        headers["Content-Encoding"] = answer.coding
    return Response(answer.body, 200, headers, answer.media_type)


_VARY = "Accept, Accept-Encoding"


def _freshness(answer: EncodedAnswer, *, private: bool) -> str:
    scope = "private" if private else "public"
    if answer.lasting:
        return f"{scope}, {_IMMUTABLE}"
    left = _MOST_SECONDS if answer.expires is None else max(0, min(_MOST_SECONDS, int(answer.expires - time_now())))
    return f"{scope}, max-age={left}"


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return etag in (one.strip().removeprefix("W/") for one in header.split(","))
