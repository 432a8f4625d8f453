"""Symbols of a market as of a date: who was listed, since when, and how they ranked by past volume.

A date means the midnight (UTC) at which it begins. Only candles of earlier days count, so that no answer depends
on what happened later. A symbol is a member if it traded on the day before.
Collecting volumes belongs to ``universe/daily_volumes.py``. Nothing here reads a file.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.model.series import ListingSpans, Market
from market_data_pipeline.universe.aliases import Aliases
from market_data_pipeline.universe.listings import DELISTED_AFTER
from market_data_pipeline.universe.resolved import Listings

BY_CANDLES, BY_ARCHIVE = "candles", "archive listing"
"""Evidence for the end of a listing: the last candle with trades, or the last file in the archive."""

_TEXT, _DAY = pa.string(), pa.date32()

_LISTINGS: dict[str, pa.DataType] = {
    "market": _TEXT,
    "symbol": _TEXT,
    "instrument": _TEXT,
    "first": _DAY,
    "until": _DAY,
    "evidence": _TEXT,
    "predecessor": _TEXT,
    "ratio": pa.float64(),
}
LISTINGS_SCHEMA = pa.schema(_LISTINGS)
"""Columns of ``universe.listings``. ``until`` is the last day with trades, null while listed."""

_Flags = npt.NDArray[np.bool_]
_Days = npt.NDArray[np.int64]
_HOLE = DELISTED_AFTER.days


@dataclass(frozen=True, slots=True)
class Span:
    """A time without a longer pause in which an instrument traded, in days since 1970.

    Attributes:
        first: First listed day. Not after the first candle.
        traded: First day with a candle with trades. It is ``first``, unless the lake begins later than the listing.
        last: Last day with trades.
        until: Last listed day. None while listed.
        evidence: Evidence for first and until.
    """

    first: int
    traded: int
    last: int
    until: int | None
    evidence: str


@dataclass(frozen=True, slots=True)
class Instrument:
    """One coin under one symbol.

    Attributes:
        symbol: The symbol.
        number: 1, or one more for each time that the symbol was used again for another coin.
        begin: First day of this coin, in days since 1970. The first one has no bound.
        end: First day of the next coin under this symbol.
        listing: Listing of the symbol in the lock.
    """

    symbol: str
    number: int
    begin: int
    end: int
    listing: ListingSpans

    @property
    def name(self) -> str:
        """Return the name of the instrument, such as ``LUNAUSDT#2``."""
        return f"{self.symbol}#{self.number}"

    def listed(self, beyond: int) -> Iterator[tuple[int, int, bool]]:
        """Yield first day, last day and openness of each listing in the lock, within the life of this coin.

        Args:
            beyond: Last day of a listing that is open.
        """
        for since, until in self.listing.spans:
            first = max(clock.day_number(since), self.begin)
            last = min(beyond if until is None else clock.day_number(until), self.end - 1)
            if first <= last:
                yield first, last, until is None and last == beyond


_FAR_PAST, _FAR_FUTURE = clock.day_number(date.min), clock.day_number(date.max)


class MarketHistory:
    """Days with trades of all instruments of a market.

    Args:
        market: The market.
        volumes: Its daily volumes, as ``daily_volumes.refresh_daily_volumes`` returns them. At least one has trades.
        listings: Listings of the lock. They add symbols that are not stored, and days before the first stored one.
        aliases: Symbols that were used again.
    """

    def __init__(self, market: Market, volumes: pa.Table, listings: Listings, aliases: Aliases) -> None:
        self.market = market
        self._aliases = aliases
        symbols: Any = volumes["symbol"].combine_chunks()
        stored: list[str] = symbols.dictionary.to_pylist()
        locked = {symbol: spans for (where, symbol), spans in listings.items() if where is market}
        self.instruments = [
            one
            for symbol in sorted({*stored, *locked})
            for one in _instruments(
                symbol, locked.get(symbol, ListingSpans()), aliases.reused.get((market, symbol), ())
            )
        ]
        first_of = {one.symbol: row for row, one in reversed(list(enumerate(self.instruments)))}
        days = volumes["day"].combine_chunks().cast(pa.int32()).to_numpy().astype(np.int64)
        rows = np.array([first_of[symbol] for symbol in stored], np.int64)[symbols.indices.to_numpy()]
        for row, one in enumerate(self.instruments):
            if one.number > 1:
                rows[(rows == row - 1) & (days >= one.begin)] = row
        counts = volumes["count"].combine_chunks()
        self._volumes, self._rows, self._days = volumes, rows, days
        self._origin = int(days.min())
        self.shape = len(self.instruments), int(days.max()) - self._origin + 1
        self.stored = self._filled(np.ones(len(days), np.bool_))
        self.traded = self._filled(counts.fill_null(0).to_numpy() > 0)
        traded_days = np.flatnonzero(self.traded.any(axis=0)) + self._origin
        self.first, self.newest = int(traded_days[0]), int(traded_days[-1])

    def _filled(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return one value of each stored candle as a matrix of instruments and days, with zeros elsewhere."""
        filled = np.zeros(self.shape, values.dtype)
        filled[self._rows, self._days - self._origin] = values
        return filled

    def has_trades(self, day: int) -> bool:
        """Return True if any instrument traded on a day."""
        return self.first <= day <= self.newest and bool(self.traded[:, day - self._origin].any())

    @cached_property
    def spans(self) -> list[list[Span]]:
        """Return the spans of each instrument."""
        return [self._spans(row, one) for row, one in enumerate(self.instruments)]

    def _spans(self, row: int, one: Instrument) -> list[Span]:
        traded = np.flatnonzero(self.traded[row]) + self._origin
        idle = np.flatnonzero(self.stored[row] & ~self.traded[row]) + self._origin
        listed = list(one.listed(self.newest))
        found: list[tuple[int, int, int]] = []
        for first, last in _runs(traded, lambda one, other: _unlisted_days(one, other, idle, listed) > _HOLE):
            begin = next((since for since, until, _ in listed if since <= first <= until), first)
            if _count(idle, begin, first) > _HOLE or (found and begin <= found[-1][2]):
                begin = first
            found.append((begin, first, last))
        spans = []
        for number, (begin, first, last) in enumerate(found):
            following = found[number + 1][1] if number + 1 < len(found) else None
            spans.append(Span(begin, first, last, *self._end(last, following, idle, listed, one)))
        return spans or _of_lock(one, self.newest)

    def _end(
        self, last: int, following: int | None, idle: _Days, listed: Sequence[tuple[int, int, bool]], one: Instrument
    ) -> tuple[int | None, str]:
        """Return the last day of a listing whose last day with trades is ``last``, and the evidence."""
        after = _count(idle, last + 1, following or _FAR_FUTURE)
        in_lock = next(((until, is_open) for since, until, is_open in listed if since <= last <= until), None)
        if after == 0 and in_lock is not None and in_lock[0] > last and not in_lock[1]:
            return in_lock[0], BY_ARCHIVE  # the lake ends earlier
        is_closed = in_lock is not None and not in_lock[1]
        is_silent = self.newest - last > _HOLE and (after > _HOLE or not listed)
        ended = following is not None or is_closed or is_silent or one.end <= self.newest
        return (last if ended else None), BY_CANDLES

    def listings(self) -> pa.Table:
        """Return one row for each span of each instrument, ordered by symbol and day. It knows the whole history."""
        return _table_of_listings(self.market, zip(self.instruments, self.spans, strict=True), self._aliases)

    def members(
        self,
        dates: Sequence[date],
        *,
        by: str,
        lookback: int,
        top: int | None = None,
        min_age: int = 0,
        takes: Callable[[str], bool] = bool,
        hindsight: bool = False,
    ) -> pa.Table:
        """Return the members on each date, ordered by date and rank.

        Args:
            dates: The dates, in order. Each must have trades on the day before.
            by: Column to rank by: its sum over the lookback, largest first, then by symbol.
            lookback: Number of days before the date.
            top: Number of ranks. None means all.
            min_age: Days since the listing that a member must have.
            takes: Returns True for the symbols to rank.
            hindsight: Fill ``listed_until``, also if it was not known on the date.
        """
        values = self._filled(self._volumes[by].combine_chunks().fill_null(0).to_numpy())
        allowed = np.array([takes(one.symbol) for one in self.instruments])
        firsts = [[span.traded for span in spans] for spans in self.spans]
        parts: list[dict[str, object]] = []
        for day in dates:
            number = clock.day_number(day)
            column = number - 1 - self._origin
            sums = values[:, max(0, column + 1 - lookback) : column + 1].sum(axis=1)
            found = []
            for row in np.flatnonzero(self.traded[:, column] & allowed).tolist():
                span = self.spans[row][bisect_right(firsts[row], number - 1) - 1]
                if number - span.first >= min_age:
                    found.append((-sums[row], self.instruments[row].symbol, row, span))
            for rank, (negative, symbol, row, span) in enumerate(sorted(found, key=lambda item: item[:2])[:top], 1):
                until = clock.day_of_number(span.until) if hindsight and span.until is not None else None
                parts.append(
                    {
                        "date": day,
                        "symbol": symbol,
                        "instrument": self.instruments[row].name,
                        "listed_from": clock.day_of_number(span.first),
                        "listed_until": until,
                        "age_days": number - span.first,
                        by: (-negative).item(),
                        "rank": rank,
                    }
                )
        return pa.Table.from_pylist(parts, schema=members_schema(by, self._volumes.schema.field(by).type))

    def missing(
        self, dates: Sequence[date], lookback: int, takes: Callable[[str], bool]
    ) -> Mapping[str, list[tuple[date, date]]]:
        """Return days that the answer needs and that are not stored although the symbol was listed, by symbol.

        This looks at the whole listing, also at what was known later.
        """
        first = min(clock.day_number(day) for day in dates) - lookback
        needed = np.zeros(self.newest - first + 1, np.bool_)
        for day in dates:
            end = clock.day_number(day) - first
            needed[max(0, end - lookback) : end] = True
        found: dict[str, list[tuple[date, date]]] = {}
        for row, one in enumerate(self.instruments):
            if takes(one.symbol):
                listed = np.zeros_like(needed)
                spans = list(one.listed(self.newest)) or [(span.traded, span.last, False) for span in self.spans[row]]
                for since, until, _ in spans:
                    listed[max(0, since - first) : max(0, until - first + 1)] = True
                has = np.zeros_like(needed)
                shift = self._origin - first
                days = np.flatnonzero(self.stored[row]) + shift
                has[days[(days >= 0) & (days < len(has))]] = True
                absent = np.flatnonzero(needed & listed & ~has) + first
                runs = _runs(absent, lambda one, other: other - one > 1)
                ranges = [(clock.day_of_number(begin), clock.day_of_number(end)) for begin, end in runs]
                if ranges:
                    found.setdefault(one.symbol, []).extend(ranges)
        return found


def members_schema(by: str, type_: pa.DataType) -> pa.Schema:
    """Return the columns of :meth:`MarketHistory.members`."""
    columns: dict[str, pa.DataType] = {
        "date": _DAY,
        "symbol": _TEXT,
        "instrument": _TEXT,
        "listed_from": _DAY,
        "listed_until": _DAY,
        "age_days": pa.int64(),
        by: type_,
        "rank": pa.int64(),
    }
    return pa.schema(columns)


def listings_without_candles(market: Market, listings: Listings, aliases: Aliases) -> pa.Table:
    """Return the listings of the lock for a market without stored 1d candles."""
    found = [
        (one, _of_lock(one, clock.day_number(clock.today())))
        for (where, symbol), spans in sorted(listings.items())
        if where is market
        for one in _instruments(symbol, spans, aliases.reused.get((market, symbol), ()))
    ]
    return _table_of_listings(market, found, aliases)


def _of_lock(one: Instrument, newest: int) -> list[Span]:
    """Return the spans of an instrument without stored candles."""
    return [
        Span(first, first, last, None if is_open else last, BY_ARCHIVE) for first, last, is_open in one.listed(newest)
    ]


def _table_of_listings(
    market: Market, found: Iterable[tuple[Instrument, Sequence[Span]]], aliases: Aliases
) -> pa.Table:
    rows = []
    for one, spans in found:
        before = aliases.predecessors.get((market, one.symbol)) if one.number == 1 else None
        rows += [
            {
                "market": str(market),
                "symbol": one.symbol,
                "instrument": one.name,
                "first": clock.day_of_number(span.first),
                "until": None if span.until is None else clock.day_of_number(span.until),
                "evidence": span.evidence,
                # A symbol is renamed before it is used again.
                "predecessor": f"{before.symbol}#1" if before else None,
                "ratio": before.ratio if before else None,
            }
            for span in spans
        ]
    return pa.Table.from_pylist(rows, schema=LISTINGS_SCHEMA)


def _instruments(symbol: str, listing: ListingSpans | None, reused: Sequence[date]) -> Iterator[Instrument]:
    bounds = [_FAR_PAST, *map(clock.day_number, reused), _FAR_FUTURE]
    for number, (begin, end) in enumerate(pairwise(bounds), start=1):
        yield Instrument(symbol, number, begin, end, listing or ListingSpans())


def _runs(days: _Days, is_apart: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Return first and last day of each run of days. Only neighbours with days between can be apart."""
    if not len(days):
        return []
    breaks = [n for n in np.flatnonzero(np.diff(days) > 1).tolist() if is_apart(int(days[n]), int(days[n + 1]))]
    firsts, lasts = [0, *(n + 1 for n in breaks)], [*breaks, len(days) - 1]
    return [(int(days[first]), int(days[last])) for first, last in zip(firsts, lasts, strict=True)]


def _unlisted_days(one: int, other: int, idle: _Days, listed: Sequence[tuple[int, int, bool]]) -> int:
    """Return the number of days between two on which a symbol was not listed, or was stored without trades."""
    covered = sum(max(0, min(until, other - 1) - max(since, one + 1) + 1) for since, until, _ in listed)
    idle_and_listed = sum(_count(idle, max(since, one + 1), min(until, other - 1) + 1) for since, until, _ in listed)
    return other - one - 1 - covered + idle_and_listed


def _count(days: _Days, first: int, end: int) -> int:
    """Return the number of days from ``first`` to before ``end``."""
    return max(0, bisect_left(days, end) - bisect_left(days, first))
