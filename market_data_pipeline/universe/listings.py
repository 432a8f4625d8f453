"""Find the listing days of symbols in the archive's listing and from REST, for the lock and for symbols not in it.

Reading and writing the lock belong to ``universe/config.py`` and ``universe/edit.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import date, timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Protocol

from market_data_pipeline.errors import MarketDataError, StorageError, UsageError
from market_data_pipeline.model.datasets import MARKETS, published_types
from market_data_pipeline.model.series import EXCHANGE, DataType, ListingSpans, Market, SeriesKey, intervals_of
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe.config import day_in
from market_data_pipeline.universe.edit import write_lock
from market_data_pipeline.universe.resolved import Universe, is_pattern, lock_path

if TYPE_CHECKING:
    from market_data_pipeline.sources.binance.archive import ArchiveClient
    from market_data_pipeline.sources.binance.rest import RestApi


DELISTED_AFTER = timedelta(days=14)
"""A symbol without daily files for longer than this was not listed.

The archive's publication has stalled for up to 9 days, which is no delisting. Spot LUNAUSDT was delisted for 17 days in
May 2022.
"""

ANCHORS = {Market.SPOT: "BTCUSDT", Market.UM: "BTCUSDT", Market.CM: "BTCUSD_PERP", Market.OPTION: "BTCBVOLUSDT"}
"""Symbols that show the newest published day of a market. They are listed whatever the universe collects."""

_UM_FILES_BEGIN = date(2020, 1, 1)
"""Approximate first day of um's daily files. For symbols that traded before, since 2019-09, only REST has the start."""


def spans_of(days: Iterable[date], newest: date) -> tuple[tuple[date, date | None], ...]:
    """Return listing spans, derived from the days that have a daily file.

    Args:
        days: Days with a file, in any order.
        newest: The newest day that the market's archive has for any symbol.

    Returns:
        Spans, both days included. A hole of more than :data:`DELISTED_AFTER` separates two. The last span is open
        unless it ended longer than that before ``newest``.
    """
    spans: list[tuple[date, date]] = []
    for day in sorted(set(days)):
        if spans and day - spans[-1][1] <= DELISTED_AFTER + timedelta(days=1):
            spans[-1] = (spans[-1][0], day)
        else:
            spans.append((day, day))
    if not spans:
        return ()
    *closed, (first, last) = spans
    return (*closed, (first, last if newest - last > DELISTED_AFTER else None))


class ListedKey(Protocol):
    """A file in the archive's listing."""

    @property
    def key(self) -> str:
        """Return its key in the bucket."""


class ArchiveListing(Protocol):
    """The listing, as :func:`refresh` needs it. Thread-safe. ``ArchiveClient`` implements it."""

    def list_folders(self, prefix: str) -> Sequence[str]:
        """Return the names of the folders directly below a prefix."""

    def list_files(self, prefix: str) -> Sequence[ListedKey]:
        """Return the files directly below a prefix."""


class FirstCandle(Protocol):
    """REST, as :func:`refresh` needs it."""

    def first_candle_day(self, key: SeriesKey) -> date | None:
        """Return the UTC day of a series' first candle, None if it has none or REST is not available."""


def refresh(
    universe: Universe,
    archive: ArchiveListing,
    rest: FirstCandle | None = None,
    *,
    threads: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[Market, str], ListingSpans]:
    """Resolve a universe against the archive's listing: find its symbols and their listing days.

    A symbol was listed on each day that has a daily file of 1d klines, or of any type in the market of options. A page
    has 1,000 keys and a day has two, so ten years of a symbol take eight requests. REST, if given, supplies the first
    candle of um symbols that are older than the daily files, and of named symbols that the archive does not have yet.
    Patterns match the archive's symbols.

    Args:
        universe: The universe. Its lock is ignored.
        rest: Source of first candles. None leaves REST out.
        threads: Number of symbols to list in parallel.
        on_progress: Called with the number of symbols done and their total.

    Returns:
        Listings of all symbols of the universe.

    Raises:
        UsageError: a symbol does not exist in its market, or a pattern matches none. The text has the line of each.
    """
    wanted: list[tuple[Market, str]] = []
    new: dict[tuple[Market, str], ListingSpans] = {}
    mistakes: dict[tuple[int, str], None] = {}
    for market in dict.fromkeys(market for entry in universe.entries for market in entry.markets):
        there = sorted(_symbols_of(archive, market))
        chosen, unknown = _choose(universe, market, there)
        wanted += [(market, symbol) for symbol in there if symbol in chosen]
        for symbol, lines in unknown.items():
            if (listing := _not_archived_yet(market, symbol, rest)) is not None:
                new[market, symbol] = listing
            else:
                mistakes |= {(line, _no_such_symbol(market, symbol, there)): None for line in lines}
    if mistakes:
        raise UsageError("\n".join(f"{universe.path}, line {line}: {text}" for line, text in sorted(mistakes)))
    return _listings_of(wanted, archive, rest, threads=threads, on_progress=on_progress) | new


def only_unlisted(universe: Universe, keys: Iterable[SeriesKey]) -> Universe:
    """Return the universe reduced to named symbols of some series that its lock does not have.

    Args:
        universe: The universe. The result has the same lock.
        keys: The series. Series that the universe does not collect are skipped.
    """
    wanted = {(key.market, key.symbol) for key in keys if key in universe} - universe.listings.keys()
    entries = tuple(
        replace(entry, markets=(market,), symbols=((symbol, line),))
        for entry in universe.entries
        for market in entry.markets
        for symbol, line in entry.symbols
        if (market, symbol) in wanted
    )
    return replace(universe, entries=entries)


def look_up(
    market: Market, symbol: str, archive: ArchiveListing, rest: FirstCandle | None = None
) -> dict[tuple[Market, str], ListingSpans]:
    """Return the listing of one symbol, as :func:`refresh` finds it.

    Raises:
        UsageError: there is no such symbol. The text names similar ones.
    """
    there = sorted(_symbols_of(archive, market))
    if symbol not in there:
        if (listing := _not_archived_yet(market, symbol, rest)) is not None:
            return {(market, symbol): listing}
        text = _no_such_symbol(market, symbol, there)
        raise UsageError(text[0].upper() + text[1:])
    return _listings_of([(market, symbol)], archive, rest)


def _listings_of(
    wanted: Sequence[tuple[Market, str]],
    archive: ArchiveListing,
    rest: FirstCandle | None,
    *,
    threads: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[Market, str], ListingSpans]:
    anchors = ((market, ANCHORS[market]) for market, _ in wanted)
    requested = list(dict.fromkeys([*wanted, *anchors]))
    days: dict[tuple[Market, str], list[date]] = {}
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(lambda item: _listed_days(archive, *item), requested)
        for number, (item, found) in enumerate(zip(requested, results, strict=True), start=1):
            days[item] = found
            if on_progress:
                on_progress(number, len(requested))
    newest = {
        market: max((day for (of, _), some in days.items() if of is market for day in some), default=None)
        for market, _ in requested
    }
    return {
        (market, symbol): ListingSpans(spans)
        for market, symbol in wanted
        if (last := newest[market]) is not None
        if (spans := _with_first_candle(spans_of(days[market, symbol], last), market, symbol, rest))
    }


_TRADED = (DataType.KLINES, DataType.AGG_TRADES)
"""Data types of all traded symbols. The others have fewer symbols. Options have neither."""


def _listing_types(market: Market) -> tuple[DataType, ...]:
    """Return the data types whose folders have all symbols of a market together."""
    published = published_types(market)
    return tuple(one for one in _TRADED if one in published) or published


def _symbols_of(archive: ArchiveListing, market: Market) -> set[str]:
    prefixes = (f"data/{market.archive_folder}/daily/{data_type}/" for data_type in _listing_types(market))
    folders = (folder for prefix in prefixes for folder in archive.list_folders(prefix))
    return set(folders)


def _choose(universe: Universe, market: Market, there: Sequence[str]) -> tuple[set[str], dict[str, list[int]]]:
    """Return the universe's symbols that a market's archive has, and the lines of names that match none."""
    chosen: set[str] = set()
    unknown: dict[str, list[int]] = {}
    for entry in universe.entries:
        if market not in entry.markets:
            continue
        for symbol, line in entry.symbols:
            found = {s for s in there if entry.takes(symbol, s)} if is_pattern(symbol) else {symbol} & set(there)
            chosen |= found
            if not found:
                unknown.setdefault(symbol, []).append(line)
    return chosen, unknown


def _not_archived_yet(market: Market, symbol: str, rest: FirstCandle | None) -> ListingSpans | None:
    """Return the listing of a symbol without a file in the archive, from REST's first candle; None without a candle."""
    if rest is None or is_pattern(symbol) or not MARKETS[market].has_rest:
        return None
    first = rest.first_candle_day(SeriesKey(EXCHANGE, market, DataType.KLINES, symbol, "1d"))
    return ListingSpans(((first, None),)) if first else None


def _no_such_symbol(market: Market, symbol: str, there: Sequence[str]) -> str:
    if not there:
        return f"the archive has no {market} symbols at all."
    return f"{market} has no symbol {symbol}. Similar: {near_to(symbol, there)}."


def near_to(symbol: str, there: Sequence[str]) -> str:
    """Return the most similar symbols, and the number of all."""
    near = get_close_matches(symbol, there, n=5, cutoff=0.5) or list(there[:5])
    return f"{', '.join(near)} ({len(there)} symbols in all)"


def _listed_days(archive: ArchiveListing, market: Market, symbol: str) -> list[date]:
    if DataType.KLINES not in (types := _listing_types(market)):
        series = (SeriesKey(EXCHANGE, market, one, symbol) for one in types)
        return sorted({day for key in series for day in _days_of(archive, key.archive_folder())})
    daily = SeriesKey(EXCHANGE, market, DataType.KLINES, symbol, "1d")
    found = _days_of(archive, daily.archive_folder())
    if found:
        return found
    # Not every copy of the archive has 1d klines of every symbol. The next longest interval has the same days.
    above = daily.archive_folder().removesuffix("1d/")
    there = archive.list_folders(above)
    for interval in reversed(intervals_of(market)):
        if interval in there and (found := _days_of(archive, f"{above}{interval}/")):
            return found
    return _days_of(archive, SeriesKey(EXCHANGE, market, DataType.AGG_TRADES, symbol).archive_folder())


def _days_of(archive: ArchiveListing, folder: str) -> list[date]:
    names = (re.search(r"-(\d{4}-\d{2}-\d{2})\.zip$", file.key) for file in archive.list_files(folder))
    return [day for name in names if name and (day := day_in(name[1]))]


def _with_first_candle(
    spans: tuple[tuple[date, date | None], ...], market: Market, symbol: str, rest: FirstCandle | None
) -> tuple[tuple[date, date | None], ...]:
    if rest is None or not spans or market is not Market.UM or spans[0][0] > _UM_FILES_BEGIN:
        return spans
    first = rest.first_candle_day(SeriesKey(EXCHANGE, market, DataType.KLINES, symbol, "1d"))
    return ((min(first, spans[0][0]), spans[0][1]), *spans[1:]) if first else spans


_Report = Callable[[str], object]


def with_listings(settings: Settings, universe: Universe, keys: Iterable[SeriesKey], report: _Report) -> Universe:
    """Add the listings of series' symbols that the lock does not have, and write the lock.

    This refuses a misspelt symbol before any of its days is requested. It takes a few requests per symbol that is not
    in the lock. Without a lock and without network it refuses nothing.

    Args:
        settings: Addresses of archive and REST.
        universe: The universe, as loaded.
        keys: The series to fetch. Series that the universe does not collect are skipped.
        report: Called with one sentence about anything that could not be looked up.

    Raises:
        UsageError: a symbol does not exist in its market, or it is not in the lock and the archive cannot be reached.
            The text names the line, similar symbols and the remedy.
    """
    unlisted = only_unlisted(universe, keys)
    if not unlisted.entries:
        return universe
    try:
        with listing_sources(settings, report) as (archive, rest):
            found = refresh(unlisted, archive, rest)
    except UsageError as error:
        raise UsageError(
            f"{error}\nCorrect it in {universe.path}. `market-data universe refresh` looks all symbols up."
        ) from None
    except MarketDataError as error:
        if not universe.listings:
            return universe
        raise UsageError(f"{_not_in_lock(unlisted)}\nThe archive cannot be reached to look them up: {error}") from error
    known = {**universe.listings, **found}
    with suppress(StorageError):  # without write access, the next run looks it up again
        write_lock(universe.path, known)
    return replace(universe, listings=known)


def _not_in_lock(unlisted: Universe) -> str:
    lines = []
    for entry in unlisted.entries:
        for market in entry.markets:
            there = [symbol for where, symbol in unlisted.listings if where is market]
            for symbol, line in entry.symbols:
                near = f" It has {near_to(symbol, there)}." if there else ""
                lock = lock_path(unlisted.path).name
                lines.append(f"{unlisted.path}, line {line}: {lock} does not have {market} symbol {symbol}.{near}")
    return "\n".join([*dict.fromkeys(lines), "`market-data universe refresh` looks symbols up."])


class _LenientRest:
    """First candles from REST. An error is reported and does not end the refresh.

    Without REST, um symbols that are older than the daily files start with their first daily file.
    """

    def __init__(self, settings: Settings, report: _Report) -> None:
        self._settings = settings
        self._report = report
        self._hosts: dict[Market, RestApi] = {}

    def first_candle_day(self, key: SeriesKey) -> date | None:
        from market_data_pipeline.errors import RefusedError
        from market_data_pipeline.sources.binance.rest import RestApi

        if (rest := self._hosts.get(key.market)) is None:
            rest = self._hosts[key.market] = RestApi(key.market, self._settings)
        try:
            return rest.first_candle_day(key)
        except RefusedError:  # it does not know the symbol
            return None
        except MarketDataError as error:
            self._report(f"{key.market} {key.symbol}: using its first daily file as the first listing day: {error}")
            return None

    def close(self) -> None:
        for rest in self._hosts.values():
            rest.close()


@contextmanager
def listing_sources(settings: Settings, report: _Report) -> Iterator[tuple[ArchiveClient, FirstCandle]]:
    """Open the archive's listing, and REST for symbols that are older than the archive or not in it yet.

    Args:
        settings: Addresses of both.
        report: Called with one sentence about each symbol for which REST failed.
    """
    from market_data_pipeline.sources.binance.archive import ArchiveClient

    with closing(ArchiveClient(settings)) as archive, closing(_LenientRest(settings, report)) as rest:
        yield archive, rest
