"""What can go wrong at an exchange, on request.

Two kinds: faults of *answers* (:class:`AnswerFault`), which are met by a request's path, and faults of *data*
(:class:`DataFault`), which are met by a series and its days and leave checksums right unless they say otherwise.
All are frozen values; :class:`Faults` holds those in force.
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
    """A moment with its zone; one without is UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Anything that can be put in force."""


@dataclass(frozen=True, kw_only=True)
class AnswerFault(Fault):
    """A fault of answers: of those whose path and query match, the next ``times`` ones, or all."""

    path: str = ""
    """Regular expression searched for in the path, e.g. ``/api/v3/`` or ``2024-01-03\\.zip$``. Empty: every path."""
    query: str = ""
    """Regular expression searched for in the query as sent, e.g. ``symbol=BTCUSDT``."""
    times: int | None = None
    """How many answers; None: for good."""
    latency: float = 0.0
    """Seconds to wait before answering."""

    def meets(self, path: str, query: str) -> bool:
        """Whether a request is one of those that this fault is about."""
        return re.search(self.path, path) is not None and re.search(self.query, query) is not None


@dataclass(frozen=True, kw_only=True)
class Delay(AnswerFault):
    """The answer comes ``latency`` seconds late and is otherwise right; also used as a round trip's length."""


@dataclass(frozen=True, kw_only=True)
class Status(AnswerFault):
    """The answer is an error: 404, 403, 418, 429, 451, 5xx."""

    status: int
    retry_after: int | None = None
    """Seconds, sent as Retry-After."""


@dataclass(frozen=True, kw_only=True)
class CutBody(AnswerFault):
    """Content-Length is that of the whole body, but the connection ends before it."""

    keep: float = 0.5
    """Share of the body that is sent."""


@dataclass(frozen=True, kw_only=True)
class SlowBody(AnswerFault):
    """The body trickles in."""

    seconds: float = 1.0
    """How long the whole body takes."""


@dataclass(frozen=True, kw_only=True)
class Reset(AnswerFault):
    """The connection is reset instead of an answer."""


@dataclass(frozen=True, kw_only=True)
class OtherBody(AnswerFault):
    """The answer is another one altogether: a login page, a body of the wrong kind, odd headers."""

    body: str = "<html><head><title>Hotel WiFi</title></head><body>Please accept the terms of use.</body></html>"
    status: int = 200
    media_type: str = "text/html"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RawAnswer(AnswerFault):
    r"""Bytes are sent as they stand, headers or not, and others after them for ever.

    For answers that no honest server gives: ``RawAnswer(begin="HTTP/1.1 200 OK\r\nX-", then="a", pause=0.1)``.
    """

    begin: str
    """Sent first; each character is a byte (latin-1)."""
    then: str = ""
    """Sent again and again after it, until the client hangs up. Empty: nothing more comes."""
    pause: float = 0.0
    """Seconds before each of them."""
    hang_up: bool = False
    """Whether the connection is closed after ``begin``; otherwise it stays open, and silent."""


@dataclass(frozen=True, kw_only=True)
class WrongChecksum(AnswerFault):
    """A ``.CHECKSUM`` names another sha256 than the zip has; its path is matched, e.g. ``BTCUSDT-1m-2024-01-03``.

    Being another file, it has another ETag, in answers and in the listing.
    """

    def meets(self, path: str, query: str) -> bool:
        """Whether a request is for a CHECKSUM that this fault is about."""
        return path.endswith(".CHECKSUM") and AnswerFault.meets(self, path, query)


@dataclass(frozen=True, kw_only=True)
class DataFault(Fault):
    """A fault of data, in the series whose name matches."""

    series: str = ""
    """Regular expression searched for in the series' name, e.g. ``^binance/spot/klines/BTCUSDT/1m$``. Empty: all."""

    def concerns(self, series: str) -> bool:
        """Whether a series, by its name, is one of those that this fault is about."""
        return re.search(self.series, series) is not None


@dataclass(frozen=True, kw_only=True)
class DayFault(DataFault):
    """A fault in the archives of certain days: in the daily ones, and in what monthly ones hold of them."""

    days: Sequence[date]
    cadence: Literal["daily", "monthly"] | None = None
    """Where only one kind of archive has the fault, which."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "days", tuple(self.days))


@dataclass(frozen=True, kw_only=True)
class MissingDay(DayFault):
    """The day has no zip, no CHECKSUM and no entry in the listing, and monthly archives lack it; REST has it."""


@dataclass(frozen=True, kw_only=True)
class MissingChecksum(DayFault):
    """The day's zip is there, its CHECKSUM is not."""


@dataclass(frozen=True, kw_only=True)
class LateArchive(DayFault):
    """The day is published late. Of monthly archives, those late are the ones of the months of ``days``."""

    days_late: int


@dataclass(frozen=True, kw_only=True)
class ReplacedArchive(DayFault):
    """The day's archive is replaced after publication: other bytes, checksum, ETag and Last-Modified."""

    at: datetime
    """When, by the sandbox's clock (naive: UTC)."""
    short_by: int = 0
    """The earlier archive lacks this many of its last rows. If 0, it differs in the quantity of its last row."""

    def __post_init__(self) -> None:
        DayFault.__post_init__(self)
        object.__setattr__(self, "at", in_utc(self.at))


class Damage(StrEnum):
    """What is wrong inside an archive whose checksum is right."""

    TWO_FILES = "two files"
    NESTED_FOLDER = "nested folder"
    EXTRA_COLUMN = "extra column"
    EXPONENT_TIMES = "exponent times"
    OTHER_DAY = "other day"
    OTHER_SYMBOL = "other symbol"
    DISORDER = "disorder"
    """Two rows in the middle have changed places."""
    INTERLEAVED = "interleaved"
    """The rows of the first and of the second half take turns."""
    DUPLICATES = "duplicates"
    CONFLICTING_DUPLICATES = "conflicting duplicates"
    NOT_A_ZIP = "not a zip"


@dataclass(frozen=True, kw_only=True)
class DamagedArchive(DayFault):
    """The day's archive holds something that it should not."""

    damage: Damage


@dataclass(frozen=True, kw_only=True)
class RepeatedAtMidnight(DayFault):
    """An aggTrade on both sides of midnight: the day's archive begins with the last one of the day before, id and all.

    REST has it once, on the day before (binance-public-data #353).
    """

    moved: bool = True
    """Whether it stands there with the time of midnight; else with its own, which lies in the day before."""


@dataclass(frozen=True, kw_only=True)
class ScrambledArchive(DayFault):
    """Rows of the day's archive are dropped, repeated and put out of order, by a seed; REST has the day as it was.

    For tests of what must hold whatever an archive looks like.
    """

    seed: int
    drop: bool = True
    """Whether up to three runs of rows may be left out; together at most nine tenths of the day."""
    drop_ends: bool = True
    """Whether the first and the last row may be among them; of trades, nothing in the day itself tells of that."""
    repeat: bool = True
    """Whether up to five rows may stand there twice."""
    conflict: bool = False
    """Whether one row stands there twice with different content."""
    shuffle: bool = True
    """Whether up to three runs of rows may be out of order, or all of them."""


@dataclass(frozen=True, kw_only=True)
class SpanFault(DataFault):
    """A fault from ``start`` (inclusive) to ``end``, in archive and REST; naive times are UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", in_utc(self.start))
        object.__setattr__(self, "end", in_utc(self.end))


@dataclass(frozen=True, kw_only=True)
class RowsFault(SpanFault):
    """A fault of the rows whose open_time or transact_time lies from ``start`` (inclusive) to ``end``."""

    where: Literal["archive", "rest", "both"] = "both"
    cadence: Literal["daily", "monthly"] | None = None
    """Where only one kind of archive has the fault, which; REST has it not, then."""

    def is_in(self, archive: str) -> bool:
        """Whether archives of a cadence have the fault."""
        return self.where != "rest" and self.cadence in (None, archive)

    def is_everywhere_in(self, where: str) -> bool:
        """Whether all archives have the fault, or REST has it."""
        return self.where in (where, "both") and self.cadence is None


@dataclass(frozen=True, kw_only=True)
class MissingRows(RowsFault):
    """Rows are left out."""


@dataclass(frozen=True, kw_only=True)
class ChangedRows(RowsFault):
    """Rows have a number that is larger by 1: where only REST or the archive has the fault, the two disagree."""

    column: str = "volume"
    """The number's name in the archive's header; ``quantity`` or ``price``, for instance, of aggTrades."""

    def __post_init__(self) -> None:
        SpanFault.__post_init__(self)
        if self.column not in CHANGEABLE:
            raise UsageError(f"There is no column {self.column!r} to change. There are: {', '.join(CHANGEABLE)}.")


@dataclass(frozen=True, kw_only=True)
class ShiftedRows(RowsFault):
    """Klines begin and end later than they should, off the grid, as those of spot on some days of 2017 and 2018."""

    shift: timedelta = timedelta(minutes=28, seconds=14, milliseconds=789)
    """How much later."""


@dataclass(frozen=True, kw_only=True)
class FlatRows(RowsFault):
    """Klines are flat, as if nothing had been traded: in the archive alone, as those of um on 2025-01-29."""

    where: Literal["archive", "rest", "both"] = "archive"


CHANGEABLE = (
    "open", "high", "low", "close", "volume", "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume",
    "price", "quantity", "first_trade_id", "last_trade_id",
)  # fmt: skip
"""Columns that :class:`ChangedRows` can change: all but those that say which row it is."""


@dataclass(frozen=True, kw_only=True)
class MarketOutage(SpanFault):
    """Nothing trades from ``start`` (inclusive) to ``end``, in archive and REST alike.

    Trade ids run on. Klines are missing in spot and flat in um and cm, as in Binance's own outages. In a generated
    exchange the trades of that time are dealt in the minute after it, so klines still follow from aggTrades; in a
    mirrored one they are left out.
    """

    flat: bool | None = None
    """True: klines are flat; False: missing; None: as is usual in the market."""


@dataclass(frozen=True, kw_only=True)
class QuietSymbol(MarketOutage):
    """Nobody trades one symbol from ``start`` to ``end`` while its market goes on: flat klines, and ids that run on.

    Give ``series`` such as ``^binance/um/.*/NEARUSDT``.
    """

    flat: bool | None = True


_KINDS: tuple[type[Fault], ...] = (
    Delay, Status, CutBody, SlowBody, Reset, OtherBody, RawAnswer, WrongChecksum,
    MissingDay, MissingChecksum, LateArchive, ReplacedArchive, DamagedArchive, RepeatedAtMidnight, ScrambledArchive,
    MissingRows, ChangedRows, ShiftedRows, FlatRows, MarketOutage, QuietSymbol,
)  # fmt: skip
_ADAPTERS = {kind.__name__: TypeAdapter(kind) for kind in _KINDS}

F = TypeVar("F", bound=Fault)


def fault_from_json(message: dict[str, Any]) -> Fault:
    """A fault out of its JSON form: its fields, and ``kind``, the name of its class.

    >>> fault_from_json({"kind": "Status", "path": "/api/v3/", "status": 451}).status
    451

    Raises:
        UsageError: there is no such kind, or its fields are wrong.
    """
    fields = dict(message)
    kind = fields.pop("kind", None)
    if kind not in _ADAPTERS:
        raise UsageError(f"There is no fault of kind {kind!r}. There are: {', '.join(_ADAPTERS)}.")
    try:
        fault: Fault = _ADAPTERS[kind].validate_python(fields)
    except ValidationError as error:
        raise UsageError(f"The fault {kind} cannot be read: {error}") from error
    return fault


@dataclass(slots=True)
class _InForce:
    fault: Fault
    left: int | None


class Faults:
    """The faults in force, for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: tuple[_InForce, ...] = ()

    def add(self, fault: F) -> F:
        """Put a fault in force and hand it back."""
        times = fault.times if isinstance(fault, AnswerFault) else None
        with self._lock:
            self._entries = (*self._entries, _InForce(fault, times))
        return fault

    def remove(self, fault: Fault) -> None:
        """Lift a fault; nothing happens if it is not in force."""
        with self._lock:
            self._entries = tuple(entry for entry in self._entries if entry.fault != fault)

    def clear(self) -> None:
        """Lift all faults."""
        with self._lock:
            self._entries = ()

    def __iter__(self) -> Iterator[Fault]:
        return (entry.fault for entry in self._entries)

    def of_answer(self, path: str, query: str) -> list[AnswerFault]:
        """The faults that meet a request, each counted as having happened once more."""
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
        """Whether a ``.CHECKSUM`` would be spoilt if it were asked for now, which it is not."""
        return any(
            entry.left != 0 and isinstance(entry.fault, WrongChecksum) and entry.fault.meets(path, "")
            for entry in self._entries
        )

    def of_data(self, series: str) -> tuple[DataFault, ...]:
        """The faults that a series has."""
        return tuple(f for f in self if isinstance(f, DataFault) and f.concerns(series))
