"""Listings of symbols: from when to when each was traded, from the archive's listing and REST.

What the lock is made of, and the lookup of symbols that the lock does not have. Reading and writing the lock belong
to ``universe/config.py`` and ``universe/edit.py``.
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
from market_data_pipeline.model.series import EXCHANGE, DataType, Listing, Market, SeriesKey, intervals_of
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe.config import day_in
from market_data_pipeline.universe.edit import write_lock
from market_data_pipeline.universe.resolved import DATA_TYPES, Universe, is_pattern, lock_path

if TYPE_CHECKING:
    from market_data_pipeline.sources.binance.archive import Archive
    from market_data_pipeline.sources.binance.rest import RestApi


DELISTED_AFTER = timedelta(days=14)
"""Daily files that are absent for longer than this mean that a symbol was not listed.

The archive's publication has stalled for up to 9 days, which must not look like a delisting; spot LUNAUSDT was away for
17 days in May 2022, which must.
"""

ANCHORS = {Market.SPOT: "BTCUSDT", Market.UM: "BTCUSDT", Market.CM: "BTCUSD_PERP"}
"""Symbols whose newest daily file tells how far the archive of a market has got, whatever else is collected."""

UM_FILES_BEGIN = date(2020, 1, 1)
"""About when daily files of um begin; symbols listed by then traded before, since 2019-09, which only REST knows."""


def spans_of(days: Iterable[date], newest: date) -> tuple[tuple[date, date | None], ...]:
    """Listing spans from the days that have a daily file.

    Args:
        days: Days with a file, in any order.
        newest: The newest day that the market's archive has for any symbol.

    Returns:
        Spans, both days included. A hole of more than :data:`DELISTED_AFTER` separates two; the last is open unless it
        ended longer than that before ``newest``.
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


class ListedFile(Protocol):
    """A file in the archive's listing."""

    @property
    def key(self) -> str:
        """Its key in the bucket."""


class ArchiveListing(Protocol):
    """What :func:`refresh` asks of ``sources.binance.archive.Archive``; both may be called from several threads."""

    def list_folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders right below a prefix."""

    def list_files(self, prefix: str) -> Sequence[ListedFile]:
        """Files right below a prefix."""


class FirstCandle(Protocol):
    """What :func:`refresh` asks of REST."""

    def first_candle_day(self, key: SeriesKey) -> date | None:
        """The UTC day of a series' first candle, None where it has none or REST cannot be asked."""


def refresh(
    universe: Universe,
    archive: ArchiveListing,
    rest: FirstCandle | None = None,
    *,
    threads: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[Market, str], Listing]:
    """Resolve a universe over the archive's listing: which symbols it means and when each was listed.

    A listing day is one that has a daily file of the 1d klines (two keys a day, a thousand a page, so that ten years of
    a symbol are eight requests). REST, if it is given, is asked for the first candle of symbols that um had before its
    daily files begin, and of symbols that are named and that the archive does not have yet, e.g. because they began
    today. Patterns mean what the archive has.

    Args:
        universe: What to resolve; its old lock is not looked at.
        archive: The archive's listing.
        rest: Where the first candle can be asked for.
        threads: Symbols asked for at the same time.
        on_progress: Called with symbols done and symbols in all.

    Returns:
        Listings of every symbol that the universe means.

    Raises:
        UsageError: a symbol does not exist in its market, or a pattern means none; each is told with its line.
    """
    wanted: list[tuple[Market, str]] = []
    new: dict[tuple[Market, str], Listing] = {}
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
    """The universe without all that its lock knows: symbols of some series that are named, but not in the lock.

    Args:
        universe: The universe; its lock is kept.
        keys: The series; those that are not collected are passed over.
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
) -> dict[tuple[Market, str], Listing]:
    """What :func:`refresh` finds of one symbol.

    Raises:
        UsageError: there is no such symbol; the text names those near to it.
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
) -> dict[tuple[Market, str], Listing]:
    anchors = ((market, ANCHORS[market]) for market, _ in wanted)
    asked = list(dict.fromkeys([*wanted, *anchors]))
    days: dict[tuple[Market, str], list[date]] = {}
    with ThreadPoolExecutor(threads) as pool:
        answers = pool.map(lambda item: _listed_days(archive, *item), asked)
        for number, (item, found) in enumerate(zip(asked, answers, strict=True), start=1):
            days[item] = found
            if on_progress:
                on_progress(number, len(asked))
    newest = {m: max((d for (where, _), ds in days.items() if where is m for d in ds), default=None) for m, _ in asked}
    return {
        (market, symbol): Listing(spans)
        for market, symbol in wanted
        if (last := newest[market]) is not None
        if (spans := _with_first_candle(spans_of(days[market, symbol], last), market, symbol, rest))
    }


def _symbols_of(archive: ArchiveListing, market: Market) -> set[str]:
    prefixes = (f"data/{market.archive_folder}/daily/{data_type}/" for data_type in DATA_TYPES)
    folders = (folder for prefix in prefixes for folder in archive.list_folders(prefix))
    return set(folders)


def _choose(universe: Universe, market: Market, there: Sequence[str]) -> tuple[set[str], dict[str, list[int]]]:
    """The symbols that a market's archive has of those that are meant, and the lines of names it has nothing for."""
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


def _not_archived_yet(market: Market, symbol: str, rest: FirstCandle | None) -> Listing | None:
    """The listing of a symbol that the archive has no file of, by its first candle; None where REST has none either."""
    if rest is None or is_pattern(symbol):
        return None
    first = rest.first_candle_day(SeriesKey(EXCHANGE, market, DataType.KLINES, symbol, "1d"))
    return Listing(((first, None),)) if first else None


def _no_such_symbol(market: Market, symbol: str, there: Sequence[str]) -> str:
    if not there:
        return f"the archive has no symbol of {market} at all."
    return f"{market} has no symbol {symbol}. Near to it: {near_to(symbol, there)}."


def near_to(symbol: str, there: Sequence[str]) -> str:
    """The symbols that are spelt most like one, and how many there are."""
    near = get_close_matches(symbol, there, n=5, cutoff=0.5) or list(there[:5])
    return f"{', '.join(near)} ({len(there)} symbols in all)"


def _listed_days(archive: ArchiveListing, market: Market, symbol: str) -> list[date]:
    daily = SeriesKey(EXCHANGE, market, DataType.KLINES, symbol, "1d")
    found = _days_of(archive, daily.archive_folder())
    if found:
        return found
    # Not every copy of the archive has the 1d klines of every symbol: the next longest interval says the same.
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
    if rest is None or not spans or market is not Market.UM or spans[0][0] > UM_FILES_BEGIN:
        return spans
    first = rest.first_candle_day(SeriesKey(EXCHANGE, market, DataType.KLINES, symbol, "1d"))
    return ((min(first, spans[0][0]), spans[0][1]), *spans[1:]) if first else spans


Tell = Callable[[str], object]


def with_listings(settings: Settings, universe: Universe, keys: Iterable[SeriesKey], tell: Tell) -> Universe:
    """A universe that knows when the symbols of series were listed; its lock is written where it did not know.

    A misspelt symbol is refused here, before each of its days is asked for in vain. It costs a few requests a symbol
    that is not in the lock, and none at all if all are. Without a lock and without network, nothing is known of any
    symbol, and none is refused.

    Args:
        settings: Where the archive is.
        universe: As it was loaded.
        keys: The series that are to be brought; those that are not collected are passed over.
        tell: Told in a sentence what could not be found out.

    Raises:
        UsageError: a symbol does not exist in its market, or it is not in the lock and the archive cannot be asked;
            the text names the line, symbols near to it, and what to do.
    """
    unlisted = only_unlisted(universe, keys)
    if not unlisted.entries:
        return universe
    try:
        with listing_sources(settings, tell) as (archive, rest):
            found = refresh(unlisted, archive, rest)
    except UsageError as error:
        raise UsageError(
            f"{error}\nMend it in {universe.path}; `market-data universe refresh` looks all symbols up."
        ) from None
    except MarketDataError as error:
        if not universe.listings:
            return universe
        raise UsageError(f"{_not_in_lock(unlisted)}\nWhether they exist cannot be looked up now: {error}") from error
    known = {**universe.listings, **found}
    with suppress(StorageError):  # where nothing may be written, it is looked up again the next time
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
                lines.append(f"{unlisted.path}, line {line}: {lock} does not have {symbol} of {market}.{near}")
    return "\n".join([*dict.fromkeys(lines), "`market-data universe refresh` looks symbols up."])


class _PatientRest:
    """The first candle of a symbol, where REST lets us ask; what it refuses is told, and costs no more than its answer.

    The archive alone then says when um's symbols began that are older than its daily files, and which ones there are.
    """

    def __init__(self, settings: Settings, tell: Tell) -> None:
        self._settings = settings
        self._tell = tell
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
            self._tell(f"{key.market} {key.symbol}: listed from its first daily file on, as far as is known: {error}")
            return None

    def close(self) -> None:
        for rest in self._hosts.values():
            rest.close()


@contextmanager
def listing_sources(settings: Settings, tell: Tell) -> Iterator[tuple[Archive, FirstCandle]]:
    """The archive's listing, and REST for symbols that are older than it, or that it does not have yet.

    Args:
        settings: Where they are.
        tell: Told in a sentence of each symbol of which REST could not be asked.
    """
    from market_data_pipeline.sources.binance.archive import Archive

    with closing(Archive(settings)) as archive, closing(_PatientRest(settings, tell)) as rest:
        yield archive, rest
