"""``market-data add``: add series to the universe and fetch them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import click

from market_data_pipeline.cli.console import aside
from market_data_pipeline.cli.download import fetch, yes_option
from market_data_pipeline.cli.selection import Chosen, Day, Selection, check_days, read_words, through_option
from market_data_pipeline.cli.summary import end
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.model.datasets import ARCHIVE_BEGINS, precedes_listing, published_types
from market_data_pipeline.model.series import EXCHANGE, INTERVALS, DataType, Market, SeriesKey
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe import Universe, load_universe
from market_data_pipeline.universe.config import parse_since, parse_universe, read_text
from market_data_pipeline.universe.edit import add_series, write_lock
from market_data_pipeline.universe.listings import listing_sources, look_up
from market_data_pipeline.universe.resolved import Since


@click.command()
@click.argument("words", nargs=-1, metavar="SYMBOL... INTERVAL|aggTrades...")
@click.option(
    "--market", type=click.Choice([str(m) for m in Market]), default=str(Market.SPOT), show_default=True, help="Market."
)
@click.option(
    "--from",
    "since",
    type=Day(parse_since),
    help="First UTC day, e.g. 2024-01-31, 2024-01, 2024, yesterday, '3 years ago', listing. Default: the listing, or "
    "for a known series the day in universe.yaml.",
)
@through_option("today")
@yes_option
def add(words: Sequence[str], market: str, since: Since | None, last: date | None, yes: bool) -> None:
    """Add series to the universe and fetch them.

    Name one or more symbols, and one or more kline intervals or data types. Intervals are of klines, unless candles of
    another type are named. Comments in universe.yaml do not change. If Binance listed a symbol today, so that the
    archive has no file of it yet, the command looks it up in REST.

    If universe.yaml already has a series, the command enters an earlier --from there, or names the line to change. A
    later --from does not change the file. It limits the days to fetch now.

      market-data add BTCUSDT ETHUSDT 1m 1h --from 2024-01
      market-data add BTCUSDT aggTrades --market um --from "7 days ago"
      market-data add BTCUSDT fundingRate markPriceKlines 1h --market um --from 2024-01-01
    """
    settings = load_settings()
    console = aside()
    keys = _series(Market(market), read_words(words))
    begin = since or Since()
    check_days(begin.first(None), last)
    path = settings.universe
    before = read_text(path) or ""
    known = load_universe(path, resolve=False) if before else Universe((), {}, path)
    text = before
    for key in keys:
        text = _with_series(text, key, begin if since or key not in known else None, known)
    listings = dict(known.listings)
    if unknown := [key.symbol for key in keys if (key.market, key.symbol) not in listings]:
        with listing_sources(settings, console.print) as (archive, rest):
            for symbol in dict.fromkeys(unknown):
                listings |= look_up(Market(market), symbol, archive, rest)
    universe = Universe(parse_universe(text, str(path)), listings, path)
    chosen = Chosen({key: days for key in keys if (days := _days_to_add(universe, key, since, last))})
    if not chosen.wanted:
        raise UsageError(_no_day_is_left(universe, keys, begin, last))
    if listings != known.listings:
        write_lock(path, listings)
    if text != before:
        storage.put(path, text.encode())
    for key in keys:
        console.print(f"{universe.said_of_start(key)}.")
    end(fetch(settings, chosen, yes=yes))


def _with_series(text: str, key: SeriesKey, since: Since | None, known: Universe) -> str:
    """Return the text of a universe that collects a series from a day on, or from where it does so far if None."""
    if since is None or (key in known and known.start(key) <= _first(since, known, key)):
        return text
    return add_series(text, key, since, str(known.path))


def _first(since: Since, universe: Universe, key: SeriesKey) -> date:
    """Return the first day that a ``from:`` means of a series, as :meth:`Universe.start` counts."""
    older = precedes_listing(key) and not since.is_listing
    return max(since.first(None if older else universe.listing(key).first) or ARCHIVE_BEGINS, ARCHIVE_BEGINS)


def _days_to_add(universe: Universe, key: SeriesKey, since: Since | None, last: date | None) -> list[date]:
    """Return the days of a series to fetch.

    Raises:
        UsageError: the series begins later in ``universe.yaml``, in an entry that is not its own.
    """
    days = universe.days(key)
    if since is not None:
        first = _first(since, universe, key)
        kept = universe.retained_from(key)
        if kept is not None and first < kept:
            raise UsageError(
                f"{universe.said_of_start(key)}, and earlier days would be removed. {universe.earlier_advice(key)} "
                "Nothing was changed."
            )
        if universe.start(key) > first:
            raise UsageError(
                f"{universe.said_of_start(key)}, together with others. Set `from: {since}` there and run the command "
                "again, or give the series an entry of its own. Nothing was changed."
            )
        days = [day for day in days if day >= first]
    return [day for day in days if last is None or day <= last]


def _no_day_is_left(universe: Universe, keys: Sequence[SeriesKey], since: Since, last: date | None) -> str:
    """Return why there is nothing to fetch, and what there is."""
    listed = ", ".join(f"{first} to {until or 'now'}" for first, until in universe.listing(keys[0]).spans)
    asked = f"--from {since}" + (f" --through {last}" if last else "")
    there = f"{keys[0].symbol} was listed from {listed}" if listed else f"{universe.said_of_start(keys[0])}"
    return f"No requested day is left ({asked}). {there}. Nothing was changed."


def _series(market: Market, named: Selection) -> list[SeriesKey]:
    types = [data_type for data_type in named.data_types if data_type is not DataType.TRADE_PROFILE]
    for data_type in types:
        if data_type not in published_types(market):
            allowed = ", ".join(published_types(market))
            raise UsageError(f"{market} has no {data_type}. Allowed: {allowed}. Name another --market.")
    candles = [data_type for data_type in types if data_type.has_interval] or [DataType.KLINES]
    kinds: list[tuple[DataType, str | None]] = [(kind, interval) for kind in candles for interval in named.intervals]
    kinds += [(data_type, None) for data_type in types if not data_type.has_interval]
    if not named.symbols or not kinds:
        raise UsageError(
            f"Name at least one symbol, and at least one of {', '.join(INTERVALS)} and aggTrades. For example: "
            "`market-data add BTCUSDT 1h`."
        )
    return [SeriesKey(EXCHANGE, market, kind, symbol, interval) for symbol in named.symbols for kind, interval in kinds]
