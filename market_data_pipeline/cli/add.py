"""``market-data add``: add series to the universe and fetch them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import click

from market_data_pipeline.cli.console import aside
from market_data_pipeline.cli.download import fetch, yes_option
from market_data_pipeline.cli.selection import Chosen, Day, check_days
from market_data_pipeline.cli.summary import end
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.model.datasets import ARCHIVE_BEGINS, published_types
from market_data_pipeline.model.series import EXCHANGE, INTERVALS, DataType, Market, SeriesKey
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe import Universe, load_universe
from market_data_pipeline.universe.config import parse_since, parse_universe, read_text
from market_data_pipeline.universe.edit import add_series, write_lock
from market_data_pipeline.universe.listings import listing_sources, look_up
from market_data_pipeline.universe.resolved import Since


@click.command()
@click.argument("symbol")
@click.argument("what", nargs=-1, required=True)
@click.option(
    "--market", type=click.Choice([str(m) for m in Market]), default=str(Market.SPOT), show_default=True, help="Market."
)
@click.option(
    "--from",
    "since",
    help="First UTC day (2024-01-31), `listing`, or `30 days ago`. Default: the listing, or for a known series the day "
    "in universe.yaml.",
)
@click.option("--through", "last", type=Day(), help="Last UTC day to fetch now, included. Default: today.")
@yes_option
def add(symbol: str, what: Sequence[str], market: str, since: str | None, last: date | None, yes: bool) -> None:
    """Add series to the universe and fetch them.

    WHAT is one or more kline intervals or data types. Other candles than klines have their interval after a slash.
    Comments in universe.yaml do not change. If Binance listed SYMBOL today, so that the archive has no file of it yet,
    the command looks it up in REST.

    If universe.yaml already has a series, the command enters an earlier --from there, or names the line to change. A
    later --from does not change the file. It limits the days to fetch now.

      market-data add BTCUSDT 1m 1h --from 2024-01-01
      market-data add BTCUSDT aggTrades --market um --from "7 days ago"
      market-data add BTCUSDT fundingRate markPriceKlines/1h --market um --from 2024-01-01
    """
    settings = load_settings()
    console = aside()
    keys = [_series(Market(market), symbol, word) for word in what]
    try:
        begin = parse_since(since or "listing")
    except UsageError as error:
        raise UsageError(f"--from {error}") from None
    check_days(begin.first(None), last)
    path = settings.universe
    before = read_text(path) or ""
    known = load_universe(path, resolve=False) if before else Universe((), {}, path)
    text = before
    for key in keys:
        text = _with_series(text, key, begin if since or key not in known else None, known)
    listings = dict(known.listings)
    if (Market(market), symbol) not in listings:
        with listing_sources(settings, console.print) as (archive, rest):
            listings |= look_up(Market(market), symbol, archive, rest)
    universe = Universe(parse_universe(text, str(path)), listings, path)
    first = begin if since else None
    chosen = Chosen({key: days for key in keys if (days := _days_to_add(universe, key, first, last))})
    if not chosen.wanted:
        raise UsageError(_no_day_is_left(universe, keys, begin, last))
    if listings != known.listings:
        write_lock(path, listings)
    if text != before:
        storage.write_bytes(path, text.encode())
    for key in keys:
        console.print(f"{universe.said_of_start(key)}.", soft_wrap=True)
    end(fetch(settings, chosen, yes=yes))


def _with_series(text: str, key: SeriesKey, since: Since | None, known: Universe) -> str:
    """Return the text of a universe that collects a series from a day on, or from where it does so far if None."""
    if since is None or (key in known and known.start(key) <= _first(since, known, key)):
        return text
    return add_series(text, key, since, str(known.path))


def _first(since: Since, universe: Universe, key: SeriesKey) -> date:
    """Return the first day that a ``from:`` means of a series, as :meth:`Universe.start` counts."""
    return max(since.first(universe.listing(key).first) or ARCHIVE_BEGINS, ARCHIVE_BEGINS)


def _days_to_add(universe: Universe, key: SeriesKey, since: Since | None, last: date | None) -> list[date]:
    """Return the days of a series to fetch.

    Raises:
        UsageError: the series begins later in ``universe.yaml``, in an entry that is not its own.
    """
    days = universe.days(key)
    if since is not None:
        first = _first(since, universe, key)
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


def _series(market: Market, symbol: str, word: str) -> SeriesKey:
    if symbol != symbol.upper():
        raise UsageError(f"Symbols are written in capitals: {symbol.upper()}, not {symbol}.")
    without_interval = [one for one in published_types(market) if not one.has_interval]
    for data_type in without_interval:
        if word.lower() == data_type.lower():
            return SeriesKey(EXCHANGE, market, data_type, symbol)
    folder, slash, interval = word.partition("/")
    for data_type in published_types(market) if slash else ():
        if data_type.has_interval and folder.lower() == data_type.lower():
            return SeriesKey(EXCHANGE, market, data_type, symbol, interval)
    if word not in INTERVALS:
        types = " nor ".join(without_interval)
        raise UsageError(f"{word!r} is neither a kline interval nor {types}. There are: {', '.join(INTERVALS)}.")
    return SeriesKey(EXCHANGE, market, DataType.KLINES, symbol, word)
