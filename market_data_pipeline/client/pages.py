"""Bounded pages of one series, with what is known about their rows. Servers read these. Encoding belongs to ``server``.

A page covers a part of the requested range: from its first moment to the moment at which the next page begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.client.composition import Composition, can_be_own, composition_of
from market_data_pipeline.client.gaps import Gap, gaps_in
from market_data_pipeline.client.hot_window import HotWindow
from market_data_pipeline.client.request import Request, check_held, is_requested, wanted_of
from market_data_pipeline.client.result import ComposedRows
from market_data_pipeline.client.session import DuckDB
from market_data_pipeline.client.snapshot import FORMING, LIVE, LiveDay, take_days, take_live_days
from market_data_pipeline.client.states import StateSpan, state_spans
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import partitions, reader, storage
from market_data_pipeline.lake.day_records import DayFacts, facts_on_record
from market_data_pipeline.lake.forming_candles import FormingCandle, forming_mark, read_forming
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_rows import live_days, live_file, live_folder
from market_data_pipeline.model import faults
from market_data_pipeline.model.datasets import ARCHIVE_BEGINS
from market_data_pipeline.model.day import FAILED, HELD, DayFile
from market_data_pipeline.model.findings import Verdict
from market_data_pipeline.model.series import EXCHANGE, INTERVALS, DataType, Market, SeriesKey, intervals_of
from market_data_pipeline.universe.resolved import Listings

MOST_ROWS = 10_000
"""Most rows of one page."""

_FIRST_SPAN: dict[DataType, timedelta] = {
    DataType.METRICS: timedelta(minutes=5),
    DataType.FUNDING_RATE: timedelta(hours=8),
    DataType.TRADE_PROFILE: timedelta(days=1),
    DataType.BOOK_DEPTH: timedelta(seconds=3),
    DataType.LIQUIDATION_SNAPSHOT: timedelta(seconds=10),
}
"""Usual distance of rows without an interval. Trades and tickers have milliseconds between them."""

_TRADES_SPAN = timedelta(milliseconds=20)
_WIDER = 4
"""Factor by which each further part of a range is longer, until a page is full."""

_OPEN_ROWS = 2
"""Candles that the present has not closed yet, or that a feed has not stored yet: the newest rows are behind them."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "mo": 28 * 86_400}


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request for a page of one series.

    Attributes:
        start: First moment, UTC without zone. None means the newest rows before ``end``.
        end: First moment after the range. None means now.
        limit: Most rows, from 1 to 10,000.
        columns: Columns besides the time. None means all but symbol and interval, which are the same in every row.
        skip: Rows at ``start`` that an earlier page has. Several trades can share a time.
        include_forming: Include the candle that is still open, if the live feed runs. Composed candles have none.
    """

    market: Market
    data_type: DataType
    symbol: str
    interval: str | None
    start: datetime | None
    end: datetime | None
    limit: int = 500
    columns: tuple[str, ...] | None = None
    skip: int = 0
    include_forming: bool = False

    @property
    def until(self) -> datetime:
        """Return the first moment after the range."""
        return clock.naive_utc(clock.now()) if self.end is None else self.end


@dataclass(frozen=True, slots=True)
class MissingSpan:
    """A span of time with missing rows, and the reason.

    Attributes:
        fetchable: Another fetch may store the rows.
    """

    first: datetime
    until: datetime
    reason: str
    fetchable: bool = False


@dataclass(frozen=True, slots=True)
class Position:
    """Begin of the next page: the time of its first row, and the number of rows at this time to skip."""

    time: datetime
    skip: int = 0


@dataclass(frozen=True, slots=True)
class RowsPage:
    """Rows of a page.

    Attributes:
        table: The rows, times in UTC without zone. Composed candles also have symbol and interval.
        first: First moment that the page covers.
        until: First moment that it does not cover.
        position: Begin of the next page. None if this is the last one.
        states: States of the rows, in order.
        forming: The open candle among the rows, which is the last one. None if there is none.
        missing: Missing rows of the span, in order.
        days: Stored days that the page overlaps, each with the hash of its content.
        version: Hash over the contents of these days, as ``StoredRows.version``.
        final: True if every day of the span is final, so that the page never changes.
        origins: Number of rows by where they were read: ``lake``, ``hot`` or ``exchange``.
    """

    table: pa.Table
    first: datetime
    until: datetime
    position: Position | None
    states: tuple[StateSpan, ...]
    missing: tuple[MissingSpan, ...]
    days: tuple[tuple[date, str], ...]
    version: str
    final: bool
    origins: tuple[tuple[str, int], ...] = ()
    forming: FormingCandle | None = None

    @property
    def is_whole(self) -> bool:
        """Return True if nothing is missing that another fetch may store."""
        return not any(span.fetchable for span in self.missing)


class Pages:
    """Reads pages of the lake.

    Args:
        universe: The universe. Its listings explain days without rows. Each call of ``listings`` reads them.
    """

    def __init__(self, layout: Layout, universe: Path, listings: Callable[[], Listings]) -> None:
        self._layout = layout
        self._of_universe = (universe, universe.with_suffix(".lock.yaml"))
        self._listings = listings
        self._files = DuckDB(layout)
        self._hot = HotWindow(layout)

    def source_of(self, request: PageRequest) -> SeriesKey:
        """Return the stored series from which a page is read: its own, or the one that its candles are composed from.

        Raises:
            UsageError: A name does not exist, or nothing is stored. The text lists what is.
        """
        own = self._own(request)
        if own is not None:
            return own.keys[0]
        composed = self._composition(request, ARCHIVE_BEGINS_AT, ARCHIVE_BEGINS_AT)
        return composed.sources[0].keys[0]

    def stamp(self, request: PageRequest) -> str:
        """Return a text that changes as soon as a series of the symbol is added or removed."""
        market, data_type, symbol = request.market, request.data_type, request.symbol
        shortest = intervals_of(market)[0] if data_type.has_interval else None
        key = SeriesKey(EXCHANGE, market, data_type, symbol, shortest)
        places = (*_places(self._layout, key), live_folder(self._layout, key))
        return "|".join(_identity(one.parent if data_type.has_interval else one) for one in places)

    def fingerprint(self, key: SeriesKey) -> str:
        """Return a text that changes as soon as a day of a series is stored, removed or recorded in another way.

        It also changes with each live row. It takes some microseconds: it looks at the ledger, the folders, the live
        files and the universe, and reads nothing.
        """
        live = (live_file(self._layout, key, day) for day in live_days(self._layout, key))
        return "|".join(map(_identity, (*_places(self._layout, key), *live, *self._of_universe)))

    def forming_mark(self, key: SeriesKey) -> bytes:
        """Return bytes that differ as soon as the open candle of a series does."""
        return forming_mark(self._layout, key)

    def read(self, request: PageRequest) -> RowsPage:
        """Read a page.

        Raises:
            UsageError: A name does not exist, or nothing is stored. The text lists what is.
            DamagedFileError: A file of the range is damaged. The text names it.
        """
        with faults.explained():
            try:
                return self._read(request)
            except FileNotFoundError:  # removed after it was listed
                try:
                    return self._read(request)
                except FileNotFoundError as error:
                    raise DamagedFileError(f"Files are removed during the read. {error}") from error

    def delivered(self, key: SeriesKey, start: datetime, last: date) -> int:
        """Return the sum of the stored days from a moment to a last day, as :func:`sum_of` of the pages' days."""
        first = Request((key,), start, start, pa.schema([])).first_day
        if first > last:
            return sum_of(())
        wanted = Request((key,), start, clock.midnight(last + clock.DAY), pa.schema([]))
        live = take_live_days(self._layout, wanted)
        files = partitions.day_files_between(self._layout, key, first, last)
        return sum_of(_contents(self._records(key, files, first, last), live))

    # --- one page ------------------------------------------------------------------------------------------------

    def _own(self, request: PageRequest) -> Request | None:
        """Return the request for the series itself; None if its candles are to be composed."""
        interval, moment = request.interval, ARCHIVE_BEGINS_AT
        if interval is not None and not can_be_own(interval, "UTC", request.columns):
            return None
        wanted = wanted_of(request.data_type, request.symbol, interval, moment, moment, request.market, request.columns)
        if is_requested(self._layout, wanted.keys[0]):
            labels = set(reader.labels_of(request.data_type)).difference(request.columns or ())
            return replace(wanted, schema=pa.schema([one for one in wanted.schema if one.name not in labels]))
        if interval is None:
            check_held(self._layout, wanted.keys)
        return None

    def _composition(self, request: PageRequest, start: datetime, end: datetime) -> Composition:
        return composition_of(
            self._layout,
            self._files,
            request.data_type,
            request.symbol,
            str(request.interval),
            start,
            end,
            request.market,
            request.columns,
            "UTC",
            sync=False,
            is_available=lambda key: is_requested(self._layout, key),
        )

    def _read(self, request: PageRequest) -> RowsPage:
        own = self._own(request)
        # Before the rows: a candle that closes meanwhile is then a row, and not left out.
        candle = read_forming(self._layout, own.keys[0]) if own is not None and request.include_forming else None
        forming: FormingCandle | None = None

        def rows(first: datetime, until: datetime) -> pa.Table:
            nonlocal forming
            if own is not None:
                stored = self._stored_rows(replace(own, start=first, end=until))
                if candle is None or not first <= candle.opened < until:
                    return stored
                if stored.num_rows and _moment(stored, time, stored.num_rows - 1) >= candle.opened:
                    return stored
                forming = candle
                return _joined([stored, candle.table().select(stored.column_names)])
            return _naive(ComposedRows(self._layout, self._files, self._composition(request, first, until)).arrow())

        key = own.keys[0] if own is not None else self.source_of(request)
        time = reader.time_column(request.data_type)
        until = request.until
        if request.start is None:
            first, table, position = self._newest(request, key, time, until, rows, candle)
        else:
            first = request.start
            table, position = _forward(request, first, until, time, rows)
        end = until if position is None else position.time
        if forming is not None and (position is not None or not table.num_rows):
            forming = None  # a later page has it
        elif forming is not None and _moment(table, time, table.num_rows - 1) != forming.opened:
            return self._read(replace(request, include_forming=False))  # later candles closed meanwhile
        return self._with_facts(request, key, table, first, end, position, forming)

    def _stored_rows(self, wanted: Request) -> pa.Table:
        [key] = wanted.keys
        if (hot := self._hot.rows(key, wanted.start, wanted.end)) is not None:
            return hot.select(wanted.schema.names)
        cut = (None, None) if wanted.data_type is DataType.TRADE_PROFILE else (wanted.start, wanted.end)
        return take_days(self._layout, wanted).read(wanted.schema, *cut)

    def _newest(
        self,
        request: PageRequest,
        key: SeriesKey,
        time: str,
        until: datetime,
        rows: Callable[[datetime, datetime], pa.Table],
        candle: FormingCandle | None,
    ) -> tuple[datetime, pa.Table, None]:
        """Return the newest rows before a moment, and the time of the first one."""
        stored = {*partitions.stored_dates(self._layout, key), *live_days(self._layout, key)}
        stored |= {candle.opened.date()} if candle is not None else set()
        begin = clock.midnight(min(stored)) if stored else until
        end = min(until, clock.midnight(max(stored) + clock.DAY)) if stored else until
        span, parts, found = _span(request, request.limit + _OPEN_ROWS), list[pa.Table](), 0
        while end > begin and found < request.limit:
            first = max(begin, _earlier(end, span))
            parts.insert(0, rows(first, end))
            found += parts[0].num_rows
            few = _span(request, 2 * (request.limit - found) + _OPEN_ROWS)
            end, span = first, few if len(parts) == 1 and 0 < found < request.limit else span * _WIDER
        table = _joined(parts) if parts else rows(until, until)
        table = table.slice(max(0, table.num_rows - request.limit))
        return (_moment(table, time, 0) if table.num_rows else until), table, None

    def _with_facts(
        self,
        request: PageRequest,
        key: SeriesKey,
        table: pa.Table,
        first: datetime,
        until: datetime,
        position: Position | None,
        forming: FormingCandle | None,
    ) -> RowsPage:
        span = Request((key,), first, until, table.schema)
        days = span.days_through(clock.today())
        if position is not None and position.skip and (day := position.time.date()) not in days:
            days.append(day)  # its first rows are in this page
        files = partitions.day_files_between(self._layout, key, days[0], days[-1]) if days else []
        records = self._records(key, files, days[0], days[-1]) if days else {}
        over = clock.midnight(days[-1] + clock.DAY) if days else until
        live = take_live_days(self._layout, replace(span, end=max(until, over))) if days else []
        contents = tuple(_contents(records, live))
        gaps = gaps_in(
            self._layout,
            span,
            self._listings,
            final_only=False,
            include_live=True,
            growing=request.end is not None,
        )
        times = [_live_between(one, first, until) for one in live]
        hot = sum(map(len, times))
        if request.interval != key.interval and hot:
            hot = _candles_of(table, np.concatenate(times))
        hot += forming is not None
        closed = until if forming is None else forming.opened
        states = state_spans(records.values(), live, first, closed)
        if forming is not None:
            states.append(StateSpan(forming.opened, forming.until, FORMING, LIVE))
        return RowsPage(
            table=table,
            first=first,
            until=until,
            position=position,
            states=tuple(states),
            missing=tuple(_missing(gaps, first, until)),
            days=contents,
            version=_version(key, contents),
            final=until <= clock.naive_utc(clock.now())
            and all(day in records and records[day].never_changes for day in days),
            origins=tuple(
                (name, rows)
                for name, rows in (("lake", max(0, table.num_rows - hot)), ("hot", hot))
                if rows or name == "lake"
            ),
            forming=forming,
        )

    def _records(self, key: SeriesKey, files: Iterable[DayFile], first: date, last: date) -> dict[date, DayFacts]:
        stored = {file.day: file for file in files}
        rows = facts_on_record(self._layout, key, stored, first, last)
        for day in stored:
            if rows[day].outcome == FAILED:
                raise DamagedFileError(rows[day].reason or f"{stored[day].path} is damaged.")
        return rows


def empty_page(request: PageRequest, key: SeriesKey) -> RowsPage:
    """Return the page of a series that is not stored: without rows, and with its whole range missing."""
    until = min(request.until, clock.naive_utc(clock.now()))
    first = min(until, request.start or until - clock.DAY)
    wanted = wanted_of(request.data_type, request.symbol, key.interval, first, until, request.market, request.columns)
    missing = (MissingSpan(max(first, ARCHIVE_BEGINS_AT), until, "missing", fetchable=True),)
    table = wanted.schema.empty_table()
    span = missing if missing[0].first < until else ()
    return RowsPage(table, first, until, None, (), span, (), _version(key, ()), final=False)


ARCHIVE_BEGINS_AT = clock.midnight(ARCHIVE_BEGINS)
"""First moment that can have rows."""


def sum_of(days: Iterable[tuple[date, str]]) -> int:
    """Return a sum over days and the hashes of their contents. It does not depend on how the days are split."""
    return sum(
        int.from_bytes(hashlib.sha256(f"{day} {content}".encode()).digest()[:16], "big") for day, content in days
    ) % (1 << 128)


def _forward(
    request: PageRequest, first: datetime, until: datetime, time: str, rows: Callable[[datetime, datetime], pa.Table]
) -> tuple[pa.Table, Position | None]:
    """Return the rows of a page from its first moment on, and where the next page begins."""
    wanted = request.skip + request.limit + 1
    begin, span = max(first, ARCHIVE_BEGINS_AT), _span(request, wanted)
    parts, found = list[pa.Table](), 0
    while begin < until and found < wanted:
        end = min(until, _later(begin, span))
        parts.append(rows(begin, end))
        found += parts[-1].num_rows
        begin, span = end, span * _WIDER
    table = _joined(parts) if parts else rows(begin, begin)
    page = table.slice(request.skip, request.limit)
    after = request.skip + page.num_rows
    if after >= table.num_rows:
        return page, None
    next_time = _moment(table, time, after)
    same = table[time].slice(0, after).to_pylist()[::-1]
    return page, Position(next_time, sum(1 for _ in takewhile(lambda one: one == table[time][after].as_py(), same)))


def _span(request: PageRequest, rows: int) -> timedelta:
    """Return a span of time that usually has so many rows."""
    if request.interval is None:
        step = _FIRST_SPAN.get(request.data_type, _TRADES_SPAN)
    elif request.interval in INTERVALS:
        step = timedelta(seconds=INTERVALS[request.interval])
    else:
        number = request.interval.rstrip("smhdwo")
        step = timedelta(seconds=int(number) * _UNITS[request.interval[len(number) :]])
    days = max(1, rows) * step
    return max(days, timedelta(days=1)) if request.data_type is DataType.TRADE_PROFILE else days


_LAST = clock.midnight(date.max)


def _later(moment: datetime, span: timedelta) -> datetime:
    with suppress(OverflowError):
        return moment + span
    return _LAST


def _earlier(moment: datetime, span: timedelta) -> datetime:
    with suppress(OverflowError):
        return moment - span
    return ARCHIVE_BEGINS_AT


def _joined(parts: list[pa.Table]) -> pa.Table:
    filled = [part for part in parts if part.num_rows] or parts[:1]
    return filled[0] if len(filled) == 1 else pa.concat_tables(filled).unify_dictionaries()


def _moment(table: pa.Table, time: str, row: int) -> datetime:
    value = table[time][row].as_py()
    return value if isinstance(value, datetime) else clock.midnight(value)


def _naive(table: pa.Table) -> pa.Table:
    fields = [
        field.with_type(pa.timestamp("us")) if pa.types.is_timestamp(field.type) else field for field in table.schema
    ]
    return table.cast(pa.schema(fields))


@lru_cache(maxsize=4096)
def _places(layout: Layout, key: SeriesKey) -> tuple[Path, Path, Path]:
    return layout.ledger(key), layout.folder(key), layout.months(key)


def _identity(path: Path) -> str:
    try:
        revision = storage.revision(path)
    except OSError:
        return ""
    return ".".join(map(str, revision or ()))


def _contents(records: Mapping[date, DayFacts], live: Iterable[LiveDay]) -> Iterator[tuple[date, str]]:
    found = {day: row.content_sha256 or "" for day, row in records.items() if row.outcome == HELD}
    found |= {one.day: one.content_sha256 for one in live}
    return iter(sorted(found.items()))


def _live_between(one: LiveDay, first: datetime, until: datetime) -> npt.NDArray[np.int64]:
    """Return the times of the rows between two moments that only the live feed has."""
    begin, over = (clock.to_us(moment.replace(tzinfo=UTC)) for moment in (first, until))
    times = one.times_us
    live: npt.NDArray[np.int64] = times[one.is_live & (times >= begin) & (times < over)]
    return live


def _candles_of(table: pa.Table, times: npt.NDArray[np.int64]) -> int:
    """Return the number of composed candles that have a row of these times."""
    opened = table["open_time"].cast(pa.int64()).to_numpy()
    return len(np.unique(np.searchsorted(opened, times, "right")))


def _version(key: SeriesKey, contents: Iterable[tuple[date, str]]) -> str:
    digest = hashlib.sha256()
    for day, content in contents:
        digest.update(f"{key} {day} {content}\n".encode())
    return digest.hexdigest()


_WHOLE_DAYS = frozenset({"missing", "failed", "provisional", "faulty"})


_FETCHABLE = frozenset({"missing", "failed", Verdict.UNPUBLISHED.value})


def _missing(gaps: Iterable[Gap], first: datetime, until: datetime) -> Iterator[MissingSpan]:
    for gap in gaps:
        if gap.verdict == "faulty":
            continue  # its rows are there
        some_rows_of_day = gap.first == gap.last and gap.count != 1
        if gap.verdict in _WHOLE_DAYS or gap.ids is not None or some_rows_of_day:
            over = gap.last + clock.DAY
        else:
            over = gap.last + timedelta(microseconds=gap.key.step)
        begin, end = max(gap.first, first), min(over, until)
        if begin < end:
            reason = f"{gap.verdict}: {gap.evidence}" if gap.evidence else gap.verdict
            yield MissingSpan(begin, end, reason, gap.verdict in _FETCHABLE)
