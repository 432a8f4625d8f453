"""When symbols were listed, from the archive's listing: what the lock is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from difflib import get_close_matches
from typing import Protocol

from market_data_pipeline.errors import UsageError
from market_data_pipeline.series import EXCHANGE, DataType, Listing, Market, SeriesKey, intervals_of
from market_data_pipeline.universe.collected import DATA_TYPES, Universe, is_pattern
from market_data_pipeline.universe.reading import day_in

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
    """What :func:`refresh` asks of ``sources.vision.Archive``; both may be called from several threads."""

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
