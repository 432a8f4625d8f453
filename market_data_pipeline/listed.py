"""Symbols that ``universe.yaml`` names and its lock has not: looked up in the archive's listing, once.

What belongs here: asking the archive and REST for it, on behalf of ``universe/``, which touches no network. What they
answer is worked out in ``universe/listing.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

from market_data_pipeline.errors import MarketDataError, UsageError
from market_data_pipeline.lake.files import StorageError
from market_data_pipeline.series import Market, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe
from market_data_pipeline.universe.collected import lock_path
from market_data_pipeline.universe.listing import FirstCandle, near_to, only_unlisted, refresh
from market_data_pipeline.universe.writing import write_lock

if TYPE_CHECKING:
    from market_data_pipeline.sources.rest import RestApi
    from market_data_pipeline.sources.vision import Archive

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
        from market_data_pipeline.sources.errors import RefusedError
        from market_data_pipeline.sources.rest import RestApi

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
    from market_data_pipeline.sources.vision import Archive

    with closing(Archive(settings)) as archive, closing(_PatientRest(settings, tell)) as rest:
        yield archive, rest
