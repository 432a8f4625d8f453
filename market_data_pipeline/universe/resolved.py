"""The entries of ``universe.yaml``, resolved to series and UTC days. Parsing them belongs to ``universe/config.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from market_data_pipeline import clock
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.datasets import ARCHIVE_BEGINS, SPECS, archived_spans, precedes_listing
from market_data_pipeline.model.lineage import source_of
from market_data_pipeline.model.series import EXCHANGE, DataType, ListingSpans, Market, SeriesKey, intervals_of

DATA_TYPES = tuple(dict.fromkeys(data_type for _, data_type in SPECS))
"""Data types that can be collected. An entry uses them as keys."""


Listings = Mapping[tuple[Market, str], ListingSpans]


@dataclass(frozen=True, slots=True)
class Since:
    """Start of a series, from ``from:``. Without any attribute, it is the symbol's listing.

    Attributes:
        day: A fixed day. None for the other forms.
        days_ago: Number of days before today, so that the start moves. None if it does not move.
        months_ago: Number of months before today, likewise.
    """

    day: date | None = None
    days_ago: int | None = None
    months_ago: int | None = None

    @property
    def moves(self) -> bool:
        """Return True if the start is another day tomorrow."""
        return self.days_ago is not None or self.months_ago is not None

    def first(self, listed: date | None) -> date | None:
        """Return the first day to collect of a symbol, None if it is the listing day and that is unknown."""
        wanted = self.day
        if self.moves:
            wanted = clock.months_before(clock.today(), self.months_ago or 0) - timedelta(days=self.days_ago or 0)
        return max((day for day in (wanted, listed) if day), default=None)

    @property
    def is_listing(self) -> bool:
        """Return True if the start is the symbol's listing."""
        return self.day is None and not self.moves

    @property
    def age(self) -> str:
        """Return a moving start as an age, such as ``30 days``."""
        return str(self).removesuffix(" ago")

    def __str__(self) -> str:
        if self.day is not None:
            return self.day.isoformat()
        if self.months_ago is not None:
            return f"{self.months_ago} months ago"
        return "listing" if self.days_ago is None else f"{self.days_ago} days ago"


@dataclass(frozen=True, slots=True)
class CollectedType:
    """One data type of an entry, with intervals (klines only) and start.

    Attributes:
        data_type: Klines or aggTrades.
        intervals: Kline intervals. ``(None,)`` for a data type without intervals.
        since: Start.
        line: Line in the file, from 1.
        since_line: Line of ``from:``.
        since_span: Begin and end of the value of ``from:``, in characters of the file.
        retention: Value of ``keep:`` as a moving start: its first day is the oldest to retain. None retains all days.
        retention_line: Line of ``keep:``.
    """

    data_type: DataType
    intervals: tuple[str | None, ...]
    since: Since
    line: int
    since_line: int = 0
    since_span: tuple[int, int] = (0, 0)
    retention: Since | None = None
    retention_line: int = 0

    def first(self, listed: date | None) -> date | None:
        """Return the first day to collect of a symbol, None if it is the listing day and that is unknown."""
        return self.since.first(listed) if self.retention is None else self.retention.first(self.since.first(listed))


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of ``universe.yaml``.

    Attributes:
        markets: Its markets.
        symbols: Symbols or patterns (``*`` any letters, ``?`` one), with the line of each.
        excepted: Symbols or patterns to leave out of the entry's patterns.
        wanted: Data types to collect.
        line: Line in the file, from 1.
    """

    markets: tuple[Market, ...]
    symbols: tuple[tuple[str, int], ...]
    excepted: tuple[str, ...]
    wanted: tuple[CollectedType, ...]
    line: int

    def takes(self, pattern: str, symbol: str) -> bool:
        """Return True if a pattern of the entry matches a symbol that the entry does not except."""
        return fnmatchcase(symbol, pattern) and not any(fnmatchcase(symbol, left_out) for left_out in self.excepted)


def is_pattern(symbol: str) -> bool:
    """Return True if a symbol in ``universe.yaml`` is a pattern."""
    return "*" in symbol or "?" in symbol


@dataclass(frozen=True)
class Universe:
    """The series to collect, each with its first day and its listing days.

    A named symbol takes precedence over a pattern that matches it, so that it can start on another day than the rest.
    If several patterns match a series, the earliest start applies.

    Attributes:
        entries: Entries of ``universe.yaml``.
        listings: Listings of the lock.
        path: Path of ``universe.yaml``, for messages.
    """

    entries: tuple[Entry, ...]
    listings: Listings
    path: Path = Path("universe.yaml")

    @cached_property
    def _resolved(self) -> dict[SeriesKey, list[CollectedType]]:
        named: dict[SeriesKey, list[CollectedType]] = {}
        meant: dict[SeriesKey, list[CollectedType]] = {}
        for entry in self.entries:
            for market in entry.markets:
                for symbol, line in entry.symbols:
                    target = meant if is_pattern(symbol) else named
                    for found in self._symbols(entry, market, symbol, line):
                        for key, wanted in series_of_entry(entry, market, found):
                            target.setdefault(key, []).append(wanted)
        return dict(sorted({**meant, **named}.items(), key=lambda item: _order(item[0])))

    def _symbols(self, entry: Entry, market: Market, symbol: str, line: int) -> list[str]:
        if not is_pattern(symbol):
            return [symbol]
        found = [name for where, name in self.listings if where is market and entry.takes(symbol, name)]
        if not found:
            raise UsageError(
                f"{self.path}, line {line}: no {market} symbol in {lock_path(self.path).name} matches {symbol}. "
                "`market-data universe refresh` writes the lock from Binance's archive."
            )
        return found

    def series(self) -> list[SeriesKey]:
        """Return all series to collect, ordered by market, data type, symbol and interval.

        Derived series (tradeProfile) are not included.

        Raises:
            UsageError: a pattern matches no symbol, because the lock is missing or older than the pattern.
        """
        return list(self._resolved)

    def types_of(self, key: SeriesKey) -> list[CollectedType]:
        """Return the places of a series in the file: one, or several if several patterns match. Empty if none does."""
        return list(self._resolved.get(key, ()))

    def __contains__(self, key: SeriesKey) -> bool:
        return _source_of(key) in self._resolved

    def start(self, key: SeriesKey) -> date:
        """Return the first UTC day to collect: ``from:``, but not before the listing or the begin of the archive.

        With ``keep:``, it is not before the oldest day to retain, so that a removed day is not fetched again. A derived
        series starts with its source.

        Raises:
            UsageError: the series is not in the universe, or starts with its listing and the lock does not have that.
        """
        key = _source_of(key)
        if key not in self._resolved:
            raise UsageError(self._unknown(key))
        listed = self.listing(key).first
        days = [wanted.first(listed) for wanted in self._resolved[key]]
        if None in days:
            raise UsageError(
                f"{self.path}: {key} starts with its listing, and that day is not known. "
                "Run `market-data universe refresh` to find it, or give a day: `from: 2020-01-01`."
            )
        return max(min(day for day in days if day), ARCHIVE_BEGINS)

    def retained_from(self, key: SeriesKey) -> date | None:
        """Return the oldest UTC day that ``keep:`` retains of a series. Return None if it retains all days.

        If several patterns match a series, the longest ``keep:`` applies. Derived series retain all days.
        """
        ages = [wanted.retention for wanted in self._resolved.get(key, ())]
        days = [age.first(None) for age in ages if age is not None]
        return min((day for day in days if day), default=None) if len(days) == len(ages) else None

    def end(self, key: SeriesKey) -> date:
        """Return the last UTC day to collect: the last listed day, or today."""
        last = self.listing(key).last
        return min(last, clock.today()) if last else clock.today()

    def listing(self, key: SeriesKey) -> ListingSpans:
        """Return the symbol's listing from the lock, while Binance publishes the type.

        It is empty if the lock does not have the symbol. Mark and index prices may be older than the listing, so theirs
        begins with an earlier day in ``from:``.
        """
        listed = self.listings.get((key.market, key.symbol), ListingSpans())
        if precedes_listing(key):
            days = (wanted.since.first(None) for wanted in self._resolved.get(key, ()))
            listed = listed.begun(min((day for day in days if day), default=date.max))
        return archived_spans(key, listed)

    def spans(self, key: SeriesKey) -> list[tuple[date, date]]:
        """Return runs of UTC days to collect, both ends included. Days between two listings are left out."""
        first, last = self.start(key), self.end(key)
        listed = self.listing(key).spans or ((first, None),)
        runs = [(max(first, begin), min(last, until or last)) for begin, until in listed]
        return [(begin, until) for begin, until in runs if begin <= until]

    def days(self, key: SeriesKey) -> list[date]:
        """Return all UTC days to collect, in order."""
        return [day for span in self.spans(key) for day in clock.days_between(*span)]

    def from_line(self, key: SeriesKey) -> int:
        """Return the line of the ``from:`` or ``keep:`` that decides the start of a series."""
        return self._deciding(key)[0]

    def earlier_advice(self, key: SeriesKey) -> str:
        """Return what to change in the file so that a series starts earlier, for messages."""
        return f"Set {'a longer `keep:`' if self._deciding(key)[1] else 'an earlier `from:`'} there first."

    def _deciding(self, key: SeriesKey) -> tuple[int, bool]:
        """Return the line that decides the start of a series, and True if ``keep:`` is in it, not ``from:``."""
        listed = self.listing(key).first
        wanted = self._resolved.get(_source_of(key), ())
        chosen = min(wanted, key=lambda one: (one.first(listed) or date.min, one.since_line), default=None)
        if chosen is None:
            return 0, False
        by_keep = chosen.retention is not None and chosen.first(listed) != chosen.since.first(listed)
        return (chosen.retention_line if by_keep else chosen.since_line), by_keep

    def said_of_start(self, key: SeriesKey) -> str:
        """Return the start of a series and its place in the file, for messages."""
        return f"{key} is collected from {self.start(key)} on ({self.path}, line {self.from_line(key)})"

    def earliest(self, key: SeriesKey) -> date:
        """Return the first UTC day that can be fetched, which is the first partition in Dagster.

        It is the start. If that is the listing and not known yet, it is the begin of the archive, so that a universe
        without a lock loads.

        Raises:
            UsageError: the series is not in the universe.
        """
        source = _source_of(key)
        unknown = self.listing(source).first is None
        if unknown and any(one.first(None) is None for one in self._resolved.get(source, ())):
            return ARCHIVE_BEGINS
        return self.start(key)

    def takes(self, key: SeriesKey, day: date) -> bool:
        """Return True if a UTC day of a series can be fetched, so that it is a partition in Dagster."""
        return self.earliest(key) <= day and self.listing(key).covers(day)

    def refuse_before_start(self, day: date, key: SeriesKey) -> None:
        """Refuse a day before the first partition of a series in Dagster.

        Args:
            key: The requested series.

        Raises:
            UsageError: the day is before the first partition. The text names the line to change.
        """
        if day < self.earliest(key):
            raise UsageError(f"{self.said_of_start(key)}, so {day} cannot be fetched. {self.earlier_advice(key)}")

    def _unknown(self, key: SeriesKey) -> str:
        near = [
            k for k in self._resolved if (k.market, k.data_type, k.symbol) == (key.market, key.data_type, key.symbol)
        ]
        near = near or [k for k in self._resolved if (k.market, k.data_type) == (key.market, key.data_type)]
        there = ", ".join(str(k) for k in (near or list(self._resolved))[:12])
        return f"{key} is not in {self.path}. It has: {there or 'none'}. `market-data add` adds a series."


def series_of_entry(entry: Entry, market: Market, symbol: str) -> Iterator[tuple[SeriesKey, CollectedType]]:
    """Yield the series of an entry for one symbol in one market, each with its data type there."""
    for wanted in entry.wanted:
        for interval in wanted.intervals:
            yield SeriesKey(EXCHANGE, market, wanted.data_type, symbol, interval), wanted


def _source_of(key: SeriesKey) -> SeriesKey:
    return source_of(key) if key.data_type is DataType.TRADE_PROFILE else key


def _order(key: SeriesKey) -> tuple[int, int, str, int]:
    interval = intervals_of(key.market).index(key.interval) if key.interval else 0
    return list(Market).index(key.market), list(DataType).index(key.data_type), key.symbol, interval


def lock_path(universe: Path) -> Path:
    """Return the path of a universe's lock: ``universe.lock.yaml`` next to ``universe.yaml``."""
    return universe.with_name(f"{universe.stem}.lock{universe.suffix or '.yaml'}")
