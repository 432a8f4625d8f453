"""Faults that you can inject into the sandbox, and :class:`Faults`, the collection of the active ones.

An :class:`AnswerFault` matches requests by path, a :class:`DataFault` matches series and days, a :class:`StreamFault`
matches streams. With a data fault, each checksum matches the faulty zip or is missing. Faults are frozen values. Code
that applies them does not belong here.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from market_data_pipeline.errors import UsageError


def in_utc(moment: datetime) -> datetime:
    """Return the moment with a time zone. Naive means UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Base class of all faults."""


@dataclass(frozen=True, kw_only=True)
class AnswerFault(Fault):
    """A fault in the answers to requests whose path and query match."""

    path: str = ""
    """Regular expression to find in the path, e.g. ``/api/v3/`` or ``2024-01-03\\.zip$``. Empty matches every path."""
    query: str = ""
    """Regular expression to find in the decoded query, e.g. ``symbol=BTCUSDT``. Empty matches every query."""
    times: int | None = None
    """Number of answers to affect. None affects all."""
    latency: float = 0.0
    """Seconds to wait before answering."""

    def meets(self, path: str, query: str) -> bool:
        """Return True if this fault matches a request."""
        return re.search(self.path, path) is not None and re.search(self.query, query) is not None


@dataclass(frozen=True, kw_only=True)
class Delay(AnswerFault):
    """The answer is correct but ``latency`` seconds late. It also simulates the time of a round trip."""


@dataclass(frozen=True, kw_only=True)
class Status(AnswerFault):
    """The answer is an error such as 404, 403, 418, 429, 451 or 5xx."""

    status: int
    retry_after: int | None = None
    """Seconds to send as Retry-After. None sends no such header."""


@dataclass(frozen=True, kw_only=True)
class CutBody(AnswerFault):
    """Content-Length names the whole body, but the connection closes early."""

    keep: float = 0.5
    """Share of the body to send, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class SlowBody(AnswerFault):
    """The body arrives slowly, in small pieces."""

    seconds: float = 1.0
    """Seconds that the whole body takes."""


@dataclass(frozen=True, kw_only=True)
class Reset(AnswerFault):
    """A TCP reset replaces the answer."""


@dataclass(frozen=True, kw_only=True)
class OtherBody(AnswerFault):
    """A different answer replaces the real one: a login page, a body of the wrong type, odd headers."""

    body: str = "<html><head><title>Hotel WiFi</title></head><body>Please accept the terms of use.</body></html>"
    status: int = 200
    media_type: str = "text/html"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RawAnswer(AnswerFault):
    r"""Raw bytes replace the answer, valid HTTP or not. Further bytes can follow without end.

    Use it for answers that no correct server sends: ``RawAnswer(begin="HTTP/1.1 200 OK\r\nX-", then="a", pause=0.1)``.
    """

    begin: str
    """Sent first. Each character is one byte (latin-1)."""
    then: str = ""
    """Sent repeatedly after ``begin`` until the client disconnects. Empty sends nothing more."""
    pause: float = 0.0
    """Seconds to wait before each repetition."""
    hang_up: bool = False
    """True closes the connection after ``begin``. False leaves it open."""


@dataclass(frozen=True, kw_only=True)
class WrongChecksum(AnswerFault):
    """A ``.CHECKSUM`` names a sha256 that differs from its zip's.

    ``path`` matches the path of the ``.CHECKSUM``, e.g. ``BTCUSDT-1m-2024-01-03``. The file also has a different ETag,
    both in answers and in the listing.
    """

    def meets(self, path: str, query: str) -> bool:
        """Return True if a request is for a ``.CHECKSUM`` that this fault matches."""
        return path.endswith(".CHECKSUM") and AnswerFault.meets(self, path, query)


@dataclass(frozen=True, kw_only=True)
class DataFault(Fault):
    """A fault in the data of every series whose name matches."""

    series: str = ""
    """Regular expression to find in a series name, e.g. ``^binance/spot/klines/BTCUSDT/1m$``. Empty matches all."""

    def concerns(self, series: str) -> bool:
        """Return True if this fault matches a series name."""
        return re.search(self.series, series) is not None


@dataclass(frozen=True, kw_only=True)
class DayFault(DataFault):
    """A fault in some days of the archive: in their daily zips, and in their part of the monthly zips."""

    days: Sequence[date]
    cadence: Literal["daily", "monthly"] | None = None
    """The kind of zip that has the fault. None means both."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "days", tuple(self.days))


@dataclass(frozen=True, kw_only=True)
class MissingDay(DayFault):
    """The day is missing from daily zips, checksums, the listing and monthly zips. REST still has it."""


@dataclass(frozen=True, kw_only=True)
class MissingChecksum(DayFault):
    """The day has a zip but no CHECKSUM."""


@dataclass(frozen=True, kw_only=True)
class LateArchive(DayFault):
    """The zip of the day is published late. So are the monthly zips of every month in ``days``."""

    days_late: int


@dataclass(frozen=True, kw_only=True)
class ReplacedArchive(DayFault):
    """The zip of the day is replaced after publication. Bytes, checksum, ETag and Last-Modified change."""

    at: datetime
    """Time of the replacement on the sandbox's clock. Naive means UTC."""
    short_by: int = 0
    """Number of last rows missing from the earlier zip. With 0, the quantity of its last row differs instead."""

    def __post_init__(self) -> None:
        DayFault.__post_init__(self)
        object.__setattr__(self, "at", in_utc(self.at))


class Damage(StrEnum):
    """Kinds of damage inside a zip whose checksum is correct."""

    TWO_FILES = "two files"
    NESTED_FOLDER = "nested folder"
    EXTRA_COLUMN = "extra column"
    EXPONENT_TIMES = "exponent times"
    OTHER_DAY = "other day"
    OTHER_SYMBOL = "other symbol"
    DISORDER = "disorder"
    """Two rows in the middle are swapped."""
    INTERLEAVED = "interleaved"
    """Rows of the first half alternate with rows of the second half."""
    DUPLICATES = "duplicates"
    CONFLICTING_DUPLICATES = "conflicting duplicates"
    NOT_A_ZIP = "not a zip"


@dataclass(frozen=True, kw_only=True)
class DamagedArchive(DayFault):
    """The zip of the day has damaged content."""

    damage: Damage


@dataclass(frozen=True, kw_only=True)
class RepeatedAtMidnight(DayFault):
    """The zip of the day begins with the last aggTrade of the previous day, with the same id.

    REST returns that trade once, on the previous day (binance-public-data #353).
    """

    moved: bool = True
    """True gives the duplicate the time of midnight. False leaves its own time, which is in the previous day."""


@dataclass(frozen=True, kw_only=True)
class ScrambledArchive(DayFault):
    """A seed selects rows of the day's zip to drop, repeat and reorder. REST returns the original day.

    Use it for property tests that accept any archive.
    """

    seed: int
    drop: bool = True
    """Drop up to three runs of rows, together at most 90 % of the day."""
    drop_ends: bool = True
    """Allow dropping the first and the last row. In aggTrades, the day itself does not show that they are missing."""
    repeat: bool = True
    """Repeat up to five rows."""
    conflict: bool = False
    """Repeat one row with different content."""
    shuffle: bool = True
    """Reorder up to three runs of rows, or all rows."""


@dataclass(frozen=True, kw_only=True)
class SpanFault(DataFault):
    """A fault from ``start`` to ``end`` (exclusive), in archive and REST. Naive times are UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", in_utc(self.start))
        object.__setattr__(self, "end", in_utc(self.end))


@dataclass(frozen=True, kw_only=True)
class RowsFault(SpanFault):
    """A fault in the rows whose open_time or transact_time lies from ``start`` to ``end`` (exclusive)."""

    where: Literal["archive", "rest", "both"] = "both"
    cadence: Literal["daily", "monthly"] | None = None
    """The kind of zip that has the fault; REST then does not. None leaves the choice to ``where``."""

    def is_in(self, archive: str) -> bool:
        """Return True if the zips of a cadence have the fault."""
        return self.where != "rest" and self.cadence in (None, archive)

    def is_everywhere_in(self, where: str) -> bool:
        """Return True if every zip (``archive``) or every REST answer (``rest``) has the fault."""
        return self.where in (where, "both") and self.cadence is None


@dataclass(frozen=True, kw_only=True)
class MissingRows(RowsFault):
    """Rows are missing."""


@dataclass(frozen=True, kw_only=True)
class ChangedRows(RowsFault):
    """One number per row is larger by 1. If only REST or only the archive has the fault, the two disagree."""

    column: str = "volume"
    """Name of the number in the archive's header, e.g. ``quantity`` or ``price`` for aggTrades."""

    def __post_init__(self) -> None:
        SpanFault.__post_init__(self)
        if self.column not in _CHANGEABLE:
            raise UsageError(f"There is no column {self.column!r} to change. There are: {', '.join(_CHANGEABLE)}.")


@dataclass(frozen=True, kw_only=True)
class ShiftedRows(RowsFault):
    """Klines begin and end late, off the grid. Spot has such klines on some days of 2017 and 2018."""

    shift: timedelta = timedelta(minutes=28, seconds=14, milliseconds=789)
    """Delay of each kline."""


@dataclass(frozen=True, kw_only=True)
class FlatRows(RowsFault):
    """Klines are flat, as if nothing traded. By default only in the archive, like um on 2025-01-29."""

    where: Literal["archive", "rest", "both"] = "archive"


_CHANGEABLE = (
    "open", "high", "low", "close", "volume", "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume",
    "price", "quantity", "first_trade_id", "last_trade_id", "last_funding_rate", "sum_open_interest",
)  # fmt: skip
"""Columns that :class:`ChangedRows` can change: all except the columns that identify a row."""


@dataclass(frozen=True, kw_only=True)
class MarketOutage(SpanFault):
    """Nothing trades from ``start`` to ``end`` (exclusive), in both archive and REST.

    Trade ids continue afterwards. Klines are missing in spot and flat in um and cm, as in Binance's own outages. A
    generated exchange moves the trades of that time into the minute after it, so klines still follow from aggTrades.
    A mirrored exchange drops them.
    """

    flat: bool | None = None
    """True makes klines flat, False drops them, and None follows the market's habit."""


@dataclass(frozen=True, kw_only=True)
class QuietSymbol(MarketOutage):
    """One symbol has no trades from ``start`` to ``end`` while its market trades. Klines are flat, ids continue.

    Set ``series`` to a pattern such as ``^binance/um/.*/NEARUSDT``.
    """

    flat: bool | None = True


@dataclass(frozen=True, kw_only=True)
class StreamFault(Fault):
    """A fault in WebSocket streams. Requests to connect take the faults of answers, such as :class:`Status`.

    A share decides by seed, stream and message, so two connections have the same fault in the same message.
    """

    streams: str = ""
    """Regular expression to find in a market and stream, e.g. ``^spot/btcusdt@kline``. Empty matches all."""

    def touches(self, stream: str) -> bool:
        """Return True if this fault matches a stream."""
        return re.search(self.streams, stream) is not None


class MessageDamage(StrEnum):
    """Kinds of damage to the messages of streams."""

    LOST = "lost"
    REPEATED = "repeated"
    """The message follows a second time, right away."""
    LATE_REPEATED = "late repeated"
    """The message follows a second time, after five seconds."""
    REORDERED = "reordered"
    """The message arrives up to two seconds late, after younger ones."""
    OTHER_SYMBOL = "other symbol"
    """The message follows a second time with another symbol, which nobody subscribed to."""
    GARBAGE = "garbage"
    """Bytes that are not JSON, or JSON that is no message, come before the message."""
    OVERSIZED = "oversized"
    """A frame of four million bytes comes before the message."""
    WRONG_TYPES = "wrong types"
    """The message follows a second time with wrong types, absurd numbers, or without fields."""


@dataclass(frozen=True, kw_only=True)
class DamagedMessages(StreamFault):
    """A share of the messages is damaged."""

    damage: MessageDamage
    share: float = 0.01
    """From 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class LateClose(StreamFault):
    """The last message of a candle is late or missing."""

    seconds: float | None = None
    """Delay on the sandbox's clock. None means that it never arrives."""
    share: float = 1.0
    """From 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class CutSockets(StreamFault):
    """Connections are aborted at random moments."""

    every: float
    """Mean life of a connection, in seconds on the sandbox's clock."""


@dataclass(frozen=True, kw_only=True)
class SilentSockets(StreamFault):
    """Connections fall silent at random moments. They still send pings, and answer requests to subscribe."""

    every: float = 0.0
    """Mean time until a connection falls silent, in seconds on the sandbox's clock. 0 means from the start."""


@dataclass(frozen=True, kw_only=True)
class SkewedClock(StreamFault):
    """The exchange's clock is wrong: the event time of messages, and the server time of REST."""

    seconds: float = 60.0
    """Positive means that it is ahead."""


_KINDS: tuple[type[Fault], ...] = (
    Delay, Status, CutBody, SlowBody, Reset, OtherBody, RawAnswer, WrongChecksum,
    MissingDay, MissingChecksum, LateArchive, ReplacedArchive, DamagedArchive, RepeatedAtMidnight, ScrambledArchive,
    MissingRows, ChangedRows, ShiftedRows, FlatRows, MarketOutage, QuietSymbol,
    DamagedMessages, LateClose, CutSockets, SilentSockets, SkewedClock,
)  # fmt: skip
_ADAPTERS = {kind.__name__: TypeAdapter(kind) for kind in _KINDS}

F = TypeVar("F", bound=Fault)


def fault_from_json(message: dict[str, Any]) -> Fault:
    """Build a fault from its JSON form: its fields, and the name of its class as ``kind``.

    >>> fault_from_json({"kind": "Status", "path": "/api/v3/", "status": 451}).status
    451

    Raises:
        UsageError: the kind is unknown, or its fields are invalid.
    """
    fields = dict(message)
    kind = fields.pop("kind", None)
    if kind not in _ADAPTERS:
        raise UsageError(f"There is no fault of kind {kind!r}. There are: {', '.join(_ADAPTERS)}.")
    try:
        fault: Fault = _ADAPTERS[kind].validate_python(fields)
    except ValidationError as error:
        raise UsageError(f"The fields of fault {kind} are invalid: {error}") from error
    return fault


@dataclass(slots=True)
class _Active:
    fault: Fault
    left: int | None


class Faults:
    """The active faults. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._activate(())

    def _activate(self, entries: tuple[_Active, ...]) -> None:
        self._entries = entries
        # After the entries: who finds this dictionary finds them, too. A listing looks up the faults of each file.
        self._data_faults: dict[str, tuple[DataFault, ...]] = {}

    def add(self, fault: F) -> F:
        """Activate a fault and return it."""
        times = fault.times if isinstance(fault, AnswerFault) else None
        with self._lock:
            self._activate((*self._entries, _Active(fault, times)))
        return fault

    def remove(self, fault: Fault) -> None:
        """Remove a fault. Do nothing if it is not active."""
        with self._lock:
            self._activate(tuple(entry for entry in self._entries if entry.fault != fault))

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._activate(())

    def __iter__(self) -> Iterator[Fault]:
        return (entry.fault for entry in self._entries)

    def of_answer(self, path: str, query: str) -> list[AnswerFault]:
        """Return the faults that match a request, and use up one of the ``times`` of each."""
        if not self._entries:
            return []
        met: list[AnswerFault] = []
        with self._lock:
            for entry in self._entries:
                fault = entry.fault
                if entry.left == 0 or not isinstance(fault, AnswerFault) or not fault.meets(path, query):
                    continue
                if entry.left is not None:
                    entry.left -= 1
                met.append(fault)
        return met

    def is_checksum_wrong(self, path: str) -> bool:
        """Return True if a request for this ``.CHECKSUM`` would get a wrong one. Do not count a use."""
        return any(
            entry.left != 0 and isinstance(entry.fault, WrongChecksum) and entry.fault.meets(path, "")
            for entry in self._entries
        )

    def of_stream(self, stream: str) -> tuple[StreamFault, ...]:
        """Return the faults of a stream, named by market and stream."""
        return tuple(f for f in self if isinstance(f, StreamFault) and f.touches(stream))

    def skew_us(self, market: str) -> int:
        """Return the microseconds by which a market's clock is ahead."""
        met = (f for f in self if isinstance(f, SkewedClock) and f.touches(f"{market}/"))
        return sum(int(fault.seconds * 1_000_000) for fault in met)

    def of_data(self, series: str) -> tuple[DataFault, ...]:
        """Return the data faults of a series."""
        known = self._data_faults
        found = known.get(series)
        if found is None:
            found = known[series] = tuple(f for f in self if isinstance(f, DataFault) and f.concerns(series))
        return found
