"""Parameters of requests: times, columns, symbols and page tokens. Text in, values out, or a problem."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import orjson

from market_data_pipeline import clock
from market_data_pipeline.client.pages import Position
from market_data_pipeline.client.request import moment_of
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import is_symbol
from market_data_pipeline.server.problems import ProblemError, ProblemKind

MOST_CHARACTERS = 40
"""Most characters of a symbol."""

_MOST_SKIPPED = 1_000_000
"""Most rows of one moment that earlier pages have."""

_FORM = re.compile(r"[A-Za-z0-9_-]{1,400}")


class Strategy(StrEnum):
    """Values of ``cache_strategy``: the lake alone, missing days fetched, or days that are not final fetched again."""

    CACHE_ONLY = "cache_only"
    AUTO = "auto"
    FORCE_FRESH = "force_fresh"


def moment_in(text: str | None, name: str) -> datetime | None:
    """Return a moment in UTC without zone: ISO text, or an integer in milliseconds since 1970.

    Raises:
        ProblemError: The text is neither.
    """
    if text is None:
        return None
    if re.fullmatch(r"-?[0-9]{1,17}", text):
        try:
            return clock.naive_from_us(int(text) * 1000)
        except OverflowError:
            raise ProblemError(ProblemKind.INVALID, f"{name} is {text}, which is outside the calendar.") from None
    try:
        return moment_of(text.replace(" ", "+") if re.search(r"T.* \d\d:\d\d$", text) else text, name)
    except UsageError as error:
        raise ProblemError(
            ProblemKind.INVALID, f"{_short(str(error))} Milliseconds since 1970 are allowed, too."
        ) from None


def range_in(start: str | None, end: str | None) -> tuple[datetime | None, datetime | None]:
    """Return the range of a request. None means that the bound is open.

    Raises:
        ProblemError: A moment is not valid, or the start is after the end.
    """
    first, last = moment_in(start, "start_time"), moment_in(end, "end_time")
    if first is not None and last is not None and first > last:
        raise ProblemError(ProblemKind.INVALID, f"start_time ({first} UTC) is after end_time ({last} UTC).")
    return first, last


def columns_in(text: str | None) -> tuple[str, ...] | None:
    """Return the names in a list separated by commas. None means all."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip()) or None


def symbol_in(text: str) -> str:
    """Return a symbol that can be a name of a folder.

    Raises:
        ProblemError: It cannot be.
    """
    if len(text) > MOST_CHARACTERS or not text.isprintable() or not is_symbol(text) or set(text) & set("'\"%*?[]"):
        raise ProblemError(ProblemKind.UNKNOWN_SERIES, f"{_short(ascii(text))} is not a symbol.")
    return text


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:199]}…"


# --- page tokens -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PageToken:
    """Content of a page token.

    Attributes:
        position: Begin of the page.
        query: Digest of the query to which it belongs.
        delivered: Sum over the days of the pages before it.
    """

    position: Position
    query: str
    delivered: int

    @property
    def last_day(self) -> datetime:
        """Return the last moment that the pages before it cover."""
        return self.position.time if self.position.skip else self.position.time - timedelta(microseconds=1)

    def encoded(self) -> str:
        """Return the text that users see."""
        us = clock.to_us(self.position.time.replace(tzinfo=UTC))
        document = orjson.dumps([us, self.position.skip, self.query, f"{self.delivered:032x}"])
        return base64.urlsafe_b64encode(document).decode().rstrip("=")


def token_in(text: str, query: str) -> PageToken:
    """Return the content of a page token.

    Raises:
        ProblemError: This server did not make it, or it belongs to another query.
    """
    try:
        if not _FORM.fullmatch(text):
            raise ValueError(text)
        us, skip, of_query, delivered = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if type(us) is not int or type(skip) is not int or not 0 <= skip <= _MOST_SKIPPED:
            raise ValueError(text)
        token = PageToken(Position(clock.naive_from_us(us), skip), str(of_query), int(str(delivered), 16))
    except (ValueError, TypeError, OverflowError, binascii.Error):
        raise ProblemError(
            ProblemKind.BAD_TOKEN, "page_token is not one that this server made. Begin without it."
        ) from None
    if token.query != query or token.encoded() != text:
        raise ProblemError(
            ProblemKind.BAD_TOKEN,
            "page_token belongs to another request. Send the same parameters as for the first page.",
        )
    return token


def digest_of(*parts: object) -> str:
    """Return a short digest of values."""
    return hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
