"""``market-data backfill``, ``sync`` and ``add``: bring days of series, through Dagster and on record."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import click

from market_data_pipeline.cli.choice import Asked, Chosen, Day, asked, check_days, choose, choosing, collected
from market_data_pipeline.cli.holdings import Size, holding, size_of
from market_data_pipeline.cli.screen import aside, counted, in_bytes, watching
from market_data_pipeline.cli.summary import ExitCode, end, tell
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import files
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.listed import listing_sources, with_listings
from market_data_pipeline.records import BIG
from market_data_pipeline.series import EXCHANGE, INTERVALS, DataType, Market, SeriesKey
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.specs import ARCHIVE_BEGINS
from market_data_pipeline.universe import Universe, load_universe
from market_data_pipeline.universe.collected import Since
from market_data_pipeline.universe.listing import look_up
from market_data_pipeline.universe.reading import parse_since, parse_universe, read_text
from market_data_pipeline.universe.writing import add_series, write_lock

ASK_ABOVE = 5_000_000_000
"""Downloads of more bytes than this are not begun without asking; nor are days whose records take over 1 GB."""

_yes = click.option(
    "--yes",
    "-y",
    is_flag=True,
    help="Do not ask before downloading more than 5 GB, or more than the disk has room for.",
)


@click.command()
@choosing
@_yes
def backfill(
    markets: Sequence[str],
    data_types: Sequence[str],
    symbols: Sequence[str],
    intervals: Sequence[str],
    first: date | None,
    last: date | None,
    yes: bool,
) -> None:
    """Bring days of series that are in the universe.

    Each option may be repeated, or left out for all. Runs Dagster in this process: every day is a materialization with
    its checks, on record in the UI. Days that are held are not downloaded again, so a backfill that was stopped goes
    on where it was; a file that was damaged by hand is replaced.

    Exit codes: 0 all days are stored and their checks pass, 1 days failed, 2 invalid request, 3 all days were fetched,
    but some are incomplete or fail their checks.

      market-data backfill --symbol BTCUSDT --interval 1m --from 2024-01-01 --through 2024-01-31
      market-data backfill --market um --data-type aggTrades --from 2024-05-01 --through 2024-05-01
    """
    settings = load_settings()
    end(fetch(settings, _chosen(settings, asked(markets, data_types, symbols, intervals, first, last)), yes=yes))


@click.command()
@_yes
def sync(yes: bool) -> None:
    """Bring everything in the universe up to now.

    Today's candles and trades are included, and so are the tradeProfiles of days with trades. Nothing is started for
    days that are held and on record. The schedules in Dagster's UI do the same by themselves while `market-data ui`
    runs.
    """
    settings = load_settings()
    end(fetch(settings, _chosen(settings, Asked()), yes=yes, everything=True))


def _chosen(settings: Settings, what: Asked) -> Chosen:
    universe = load_universe(settings.universe)
    return choose(with_listings(settings, universe, collected(universe, what), aside().print), what)


@click.command()
@click.argument("symbol")
@click.argument("what", nargs=-1, required=True)
@click.option(
    "--market", type=click.Choice([str(m) for m in Market]), default=str(Market.SPOT), show_default=True, help="Market."
)
@click.option(
    "--from",
    "since",
    help="First UTC day (2024-01-31), `listing`, or `30 days ago`. Left out: the listing, or for a known series what "
    "universe.yaml says.",
)
@click.option("--through", "last", type=Day(), help="Last UTC day to fetch now, included. Left out: today.")
@_yes
def add(symbol: str, what: Sequence[str], market: str, since: str | None, last: date | None, yes: bool) -> None:
    """Put series of SYMBOL into the universe and fetch them.

    WHAT is one or more kline intervals, or aggTrades. Comments in universe.yaml stay as they are. A symbol that began
    today, so that the archive has nothing of it, is looked up in REST.

    If universe.yaml collects a series already, an earlier --from is entered there, or the command names the line to
    change. A later one leaves the file as it is, and limits what is fetched now.

      market-data add BTCUSDT 1m 1h --from 2024-01-01
      market-data add BTCUSDT aggTrades --market um --from "7 days ago"
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
        files.write_bytes(path, text.encode())
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
    return f"No day is left of what was asked for ({asked}). {there}. Nothing was changed."


def _series(market: Market, symbol: str, word: str) -> SeriesKey:
    if symbol != symbol.upper():
        raise UsageError(f"Symbols are written in capitals: {symbol.upper()}, not {symbol}.")
    if word.lower() == DataType.AGG_TRADES.lower():
        return SeriesKey(EXCHANGE, market, DataType.AGG_TRADES, symbol)
    if word not in INTERVALS:
        raise UsageError(f"{word!r} is neither a kline interval nor aggTrades. There are: {', '.join(INTERVALS)}.")
    return SeriesKey(EXCHANGE, market, DataType.KLINES, symbol, word)


# --- what all three do -------------------------------------------------------------------------------------------


def fetch(settings: Settings, chosen: Chosen, *, yes: bool, everything: bool = False) -> ExitCode:
    """Fetch what was chosen, with a bar; then print what is stored, what is incomplete and what failed.

    Args:
        settings: Where to, and where from.
        chosen: Series and days.
        yes: Whether to begin a big download without asking.
        everything: Whether tradeProfiles are made and the markets' coverage is looked at, too.

    Returns:
        The exit code of the command.

    Raises:
        MarketDataError: nothing can be brought at all, e.g. because the disk refuses.
    """
    from market_data_pipeline.definitions import ignore_notices
    from market_data_pipeline.sync import bring

    console = aside()
    for note in chosen.notes:
        console.print(note, soft_wrap=True)
    if not chosen.wanted:
        raise UsageError("No day was selected, so nothing was fetched. `market-data universe check` lists the series.")
    ask_first(settings, chosen.wanted, yes=yes)
    with watching(chosen.wanted, console) as watch, warnings.catch_warnings():
        ignore_notices()
        try:
            report = bring(settings, chosen.wanted, on_result=watch, profiles=everything, coverage=everything)
        except KeyboardInterrupt:
            console.print("Stopped. What was brought is kept; the same command goes on from there.")
            raise
    return tell(report, chosen.days, len(chosen.wanted), console)


def ask_first(settings: Settings, wanted: Mapping[SeriesKey, Sequence[date]], *, yes: bool) -> None:
    """Say how much a big download is, or that it will not fit the disk, and ask whether to go on."""
    layout = Layout(settings.root)
    size = size_of(wanted, {key: holding(layout, key) for key in wanted})
    concern = concern_about(size, shutil.disk_usage(existing(settings.root)).free)
    if concern:
        aside().print(f"{concern} Dagster's records take up to {in_bytes(size.records)} of it.", soft_wrap=True)
        if not yes:
            click.confirm("Go on?", abort=True, err=True)


def concern_about(size: Size, free: int) -> str | None:
    """What to say before work of a size, on a disk with so many free bytes; None where it can just begin.

    >>> concern_about(Size(31, 2_000_000, 2_500_000), free=10**11) is None
    True
    """
    disk = size.disk + size.records
    if disk > free:
        return f"{counted(size.days, 'day')} would take about {in_bytes(disk)}, and the disk has {in_bytes(free)} free."
    if size.download > ASK_ABOVE or size.records > BIG:
        return (
            f"{counted(size.days, 'day')} are about {in_bytes(size.download)} to download and "
            f"{in_bytes(disk)} on disk, where {in_bytes(free)} are free."
        )
    return None


def existing(path: Path) -> Path:
    """The nearest folder above a path, or the path itself, that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
