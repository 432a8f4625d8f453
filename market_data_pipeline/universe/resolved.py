"""What is collected: the entries of ``universe.yaml``, resolved to series and UTC days."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from market_data_pipeline import clock
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.datasets import ARCHIVE_BEGINS, SPECS
from market_data_pipeline.model.series import EXCHANGE, DataType, Listing, Market, SeriesKey, intervals_of

DATA_TYPES = tuple(dict.fromkeys(data_type for _, data_type in SPECS))
"""What can be collected, as the keys of an entry."""


Listings = Mapping[tuple[Market, str], Listing]


@dataclass(frozen=True, slots=True)
class Since:
    """From which day on a series is collected, as ``from:`` says.

    Attributes:
        day: A fixed day; None where the two others say it.
        days_ago: A number of days before today, so that the start moves on; None where it does not.

    With neither, collecting starts with the symbol's listing.
    """

    day: date | None = None
    days_ago: int | None = None

    def first(self, listed: date | None) -> date | None:
        """The first day to collect of a symbol; None where it is the listing's and that is not known."""
        wanted = self.day if self.days_ago is None else clock.today() - timedelta(days=self.days_ago)
        return max((day for day in (wanted, listed) if day), default=None)

    def __str__(self) -> str:
        if self.day is not None:
            return self.day.isoformat()
        return "listing" if self.days_ago is None else f"{self.days_ago} days ago"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One data type of an entry: for klines its intervals, and from when on.

    Attributes:
        data_type: Klines, aggTrades.
        intervals: Kline intervals; ``(None,)`` for a data type that has none.
        since: From when on.
        line: Line in the file, from 1.
        since_line: Line of ``from:``.
        since_span: Where the text of ``from:`` begins and ends, in characters of the file.
    """

    data_type: DataType
    intervals: tuple[str | None, ...]
    since: Since
    line: int
    since_line: int = 0
    since_span: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of ``universe.yaml``.

    Attributes:
        markets: The markets that it speaks of.
        symbols: Symbols or patterns (``*`` any letters, ``?`` one), with the line of each.
        excepted: Symbols or patterns that the entry's patterns leave out.
        wanted: What to collect of them.
        line: Line in the file, from 1.
    """

    markets: tuple[Market, ...]
    symbols: tuple[tuple[str, int], ...]
    excepted: tuple[str, ...]
    wanted: tuple[Wanted, ...]
    line: int

    def takes(self, pattern: str, symbol: str) -> bool:
        """Whether one of the entry's patterns means a symbol."""
        return fnmatchcase(symbol, pattern) and not any(fnmatchcase(symbol, left_out) for left_out in self.excepted)


def is_pattern(symbol: str) -> bool:
    """Whether a symbol in ``universe.yaml`` stands for many."""
    return "*" in symbol or "?" in symbol


@dataclass(frozen=True)
class Universe:
    """What to collect, resolved: series with their first day and the days on which they were listed.

    A symbol that is named goes before a pattern that means it too, so that one symbol can be collected from another
    day than the rest; where several patterns mean the same series, the earliest start holds.

    Attributes:
        entries: What ``universe.yaml`` says.
        listings: What the lock says.
        path: Where ``universe.yaml`` lies, for messages.
    """

    entries: tuple[Entry, ...]
    listings: Listings
    path: Path = Path("universe.yaml")

    @cached_property
    def _resolved(self) -> dict[SeriesKey, list[Since]]:
        named: dict[SeriesKey, list[Since]] = {}
        meant: dict[SeriesKey, list[Since]] = {}
        for entry in self.entries:
            for market in entry.markets:
                for symbol, line in entry.symbols:
                    target = meant if is_pattern(symbol) else named
                    for found in self._symbols(entry, market, symbol, line):
                        for key, since in series_of(entry, market, found):
                            target.setdefault(key, []).append(since)
        return dict(sorted({**meant, **named}.items(), key=lambda item: _order(item[0])))

    def _symbols(self, entry: Entry, market: Market, symbol: str, line: int) -> list[str]:
        if not is_pattern(symbol):
            return [symbol]
        found = [name for where, name in self.listings if where is market and entry.takes(symbol, name)]
        if not found:
            raise UsageError(
                f"{self.path}, line {line}: {lock_path(self.path).name} has no symbol of {market} that {symbol} means. "
                "`market-data universe refresh` writes it from Binance's archive."
            )
        return found

    def series(self) -> list[SeriesKey]:
        """All series to collect, in the order of markets, data types, symbols and intervals.

        Derived series (tradeProfile) are not among them.

        Raises:
            UsageError: a pattern means nothing, because the lock is missing or older than the pattern.
        """
        return list(self._resolved)

    def __contains__(self, key: SeriesKey) -> bool:
        return _source_of(key) in self._resolved

    def start(self, key: SeriesKey) -> date:
        """The first UTC day to collect: what ``from:`` says, but not before the listing, nor before Binance.

        A derived series starts with what it is derived from.

        Raises:
            UsageError: the series is not in the universe, or starts with a listing that is not known.
        """
        key = _source_of(key)
        if key not in self._resolved:
            raise UsageError(self._unknown(key))
        listed = self.listing(key).first
        days = [since.first(listed) for since in self._resolved[key]]
        if None in days:
            raise UsageError(
                f"{self.path}: {key} is to be collected from its listing on, and that day is not known. "
                "`market-data universe refresh` finds it, or give a day: `from: 2020-01-01`."
            )
        return max(min(day for day in days if day), ARCHIVE_BEGINS)

    def end(self, key: SeriesKey) -> date:
        """The last UTC day to collect: the last listed one, or today."""
        last = self.listing(key).last
        return min(last, clock.today()) if last else clock.today()

    def listing(self, key: SeriesKey) -> Listing:
        """When the symbol was listed, from the lock; an empty listing where nothing is known."""
        return self.listings.get((key.market, key.symbol), Listing())

    def spans(self, key: SeriesKey) -> list[tuple[date, date]]:
        """Runs of UTC days to collect, both ends included: from the start to the end, without days between listings."""
        first, last = self.start(key), self.end(key)
        listed = self.listing(key).spans or ((first, None),)
        runs = [(max(first, begin), min(last, until or last)) for begin, until in listed]
        return [(begin, until) for begin, until in runs if begin <= until]

    def days(self, key: SeriesKey) -> list[date]:
        """All UTC days to collect, in order."""
        return [first + timedelta(days=n) for first, last in self.spans(key) for n in range((last - first).days + 1)]

    def from_line(self, key: SeriesKey) -> int:
        """Return the line of the ``from:`` that decides when a series of the universe begins."""
        key = _source_of(key)
        listed = self.listing(key).first
        found: list[tuple[bool, date, int]] = []
        for entry in self.entries:
            for symbol, _ in entry.symbols if key.market in entry.markets else ():
                by_pattern = is_pattern(symbol)
                if entry.takes(symbol, key.symbol) if by_pattern else symbol == key.symbol:
                    found += [
                        (by_pattern, wanted.since.first(listed) or date.min, wanted.since_line)
                        for wanted in entry.wanted
                        if wanted.data_type is key.data_type and key.interval in wanted.intervals
                    ]
        return min(found)[2] if found else 0

    def said_of_start(self, key: SeriesKey) -> str:
        """Return from when on a series is collected, and where that is written, for messages."""
        return f"{key} is collected from {self.start(key)} on ({self.path}, line {self.from_line(key)})"

    def first_day(self) -> date:
        """The earliest day that any series may be asked for; it does not move as days go by.

        It is the earliest start, save where ``30 days ago`` is the earliest: such a start moves, so there the
        listing stands for it.
        """
        fixed: list[date] = []
        moving: list[tuple[date, date]] = []
        for key, sinces in self._resolved.items():
            listed = self.listing(key).first or ARCHIVE_BEGINS
            for since in sinces:
                day = since.first(listed) or listed
                if since.days_ago is None:
                    fixed.append(day)
                else:
                    moving.append((day, listed))
        earliest = min(fixed, default=None)
        settled = [listed for day, listed in moving if earliest is None or day < earliest]
        return min([*fixed, *settled], default=ARCHIVE_BEGINS)

    def refuse_before_first(self, day: date, key: SeriesKey) -> None:
        """Refuse a day that is no partition in Dagster, because everything collected begins later.

        Args:
            day: The day.
            key: The series that it was requested of.

        Raises:
            UsageError: the text says when it begins and which line to change.
        """
        if day < self.first_day():
            raise UsageError(
                f"{day} is before all that {self.path} collects, which begins on {self.first_day()}. "
                f"Set an earlier `from:` there first: {self.said_of_start(key)}."
            )

    def _unknown(self, key: SeriesKey) -> str:
        near = [
            k for k in self._resolved if (k.market, k.data_type, k.symbol) == (key.market, key.data_type, key.symbol)
        ]
        near = near or [k for k in self._resolved if (k.market, k.data_type) == (key.market, key.data_type)]
        there = ", ".join(str(k) for k in (near or list(self._resolved))[:12])
        return f"{key} is not in {self.path}. There are: {there or 'none'}. `market-data add` puts a series into it."


def series_of(entry: Entry, market: Market, symbol: str) -> Iterator[tuple[SeriesKey, Since]]:
    """The series that an entry means of one symbol in one market, each with its start."""
    for wanted in entry.wanted:
        for interval in wanted.intervals:
            yield SeriesKey(EXCHANGE, market, wanted.data_type, symbol, interval), wanted.since


def _source_of(key: SeriesKey) -> SeriesKey:
    if key.data_type is not DataType.TRADE_PROFILE:
        return key
    return SeriesKey(key.exchange, key.market, DataType.AGG_TRADES, key.symbol)


def _order(key: SeriesKey) -> tuple[int, int, str, int]:
    interval = intervals_of(key.market).index(key.interval) if key.interval else 0
    return list(Market).index(key.market), list(DataType).index(key.data_type), key.symbol, interval


def lock_path(universe: Path) -> Path:
    """Where the lock of a universe lies: ``universe.lock.yaml`` beside ``universe.yaml``."""
    return universe.with_name(f"{universe.stem}.lock{universe.suffix or '.yaml'}")
