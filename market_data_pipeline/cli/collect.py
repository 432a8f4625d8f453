"""``market-data backfill``, ``sync`` and ``add``: bring days of series, through Dagster and on record."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from market_data_pipeline.cli.choice import Asked, Chosen, Day, asked, check_days, choose, choosing, collected
from market_data_pipeline.cli.holdings import Size, holding, size_of
from market_data_pipeline.cli.screen import aside, counted, in_bytes, red, watching
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import files
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.listed import listing_sources, with_listings
from market_data_pipeline.quality.repair import REFUSED
from market_data_pipeline.records import BIG
from market_data_pipeline.series import EXCHANGE, INTERVALS, DataType, Market, SeriesKey
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.universe import load_universe
from market_data_pipeline.universe.listing import look_up
from market_data_pipeline.universe.reading import parse_since, read_text
from market_data_pipeline.universe.writing import add_series, write_lock

if TYPE_CHECKING:
    from market_data_pipeline.outcomes import DayFailure

ASK_ABOVE = 5_000_000_000
"""Downloads of more bytes than this are not begun without asking; nor are days whose records take over 1 GB."""

SHOWN_FAILURES = 20

_yes = click.option("--yes", "-y", is_flag=True, help="Do not ask before downloading more than 5 GB.")


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
    on where it was; a file that was damaged by hand is replaced. Ends with exit code 0 only when all days are there.

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
    default="listing",
    show_default=True,
    help="First UTC day (2024-01-31), `listing`, or `30 days ago`.",
)
@click.option("--through", "last", type=Day(), help="Last UTC day to fetch now, included. Left out: today.")
@_yes
def add(symbol: str, what: Sequence[str], market: str, since: str, last: date | None, yes: bool) -> None:
    """Put series of SYMBOL into the universe and fetch them.

    WHAT is one or more kline intervals, or aggTrades. Comments in universe.yaml stay as they are. A symbol that began
    today, so that the archive has nothing of it, is looked up in REST.

      market-data add BTCUSDT 1m 1h --from 2024-01-01
      market-data add BTCUSDT aggTrades --market um --from "7 days ago"
    """
    settings = load_settings()
    console = aside()
    keys = [_series(Market(market), symbol, word) for word in what]
    try:
        begin = parse_since(since)
    except UsageError as error:
        raise UsageError(f"--from {error}") from None
    check_days(begin.first(None), last)
    path = settings.universe
    before = read_text(path) or ""
    text = before
    for key in keys:
        text = add_series(text, key, begin, str(path))
    known = load_universe(path, resolve=False).listings if before else {}
    if (Market(market), symbol) not in known:
        with listing_sources(settings, console.print) as (archive, rest):
            found = look_up(Market(market), symbol, archive, rest)
        write_lock(path, {**known, **found})
    if text != before:
        files.write_bytes(path, text.encode())
    universe = load_universe(path)
    for key in keys:
        console.print(f"{key} is collected from {universe.start(key)} on ({path})")
    wanted = {key: [d for d in universe.days(key) if last is None or d <= last] for key in keys}
    end(fetch(settings, Chosen({key: days for key, days in wanted.items() if days}), yes=yes))


def _series(market: Market, symbol: str, word: str) -> SeriesKey:
    if symbol != symbol.upper():
        raise UsageError(f"Symbols are written in capitals: {symbol.upper()}, not {symbol}.")
    if word.lower() == DataType.AGG_TRADES.lower():
        return SeriesKey(EXCHANGE, market, DataType.AGG_TRADES, symbol)
    if word not in INTERVALS:
        raise UsageError(f"{word!r} is neither a kline interval nor aggTrades. There are: {', '.join(INTERVALS)}.")
    return SeriesKey(EXCHANGE, market, DataType.KLINES, symbol, word)


# --- what all three do -------------------------------------------------------------------------------------------


def fetch(settings: Settings, chosen: Chosen, *, yes: bool, everything: bool = False) -> bool:
    """Bring what was chosen, with a bar; then say what is there and what failed.

    Args:
        settings: Where to, and where from.
        chosen: Series and days.
        yes: Whether to begin a big download without asking.
        everything: Whether tradeProfiles are made and the markets' coverage is looked at, too.

    Returns:
        Whether all that was chosen is there.

    Raises:
        MarketDataError: nothing can be brought at all, e.g. because the disk refuses.
    """
    from market_data_pipeline.definitions import ignore_notices
    from market_data_pipeline.sync import bring

    console = aside()
    for note in chosen.notes:
        console.print(note, soft_wrap=True)
    ask_first(settings, chosen.wanted, yes=yes)
    with watching(chosen.wanted, console) as watch, warnings.catch_warnings():
        ignore_notices()
        try:
            report = bring(settings, chosen.wanted, on_result=watch, profiles=everything, coverage=everything)
        except KeyboardInterrupt:
            console.print("Stopped. What was brought is kept; the same command goes on from there.")
            raise
    if report.failures:
        tell_failures(report.failures, console)
        return False
    console.print(f"{counted(chosen.days, 'day')} of {len(chosen.wanted):,} series: all there.")
    return True


def end(all_there: bool) -> None:
    """End the command: with exit code 0 only where all that was asked for is there."""
    if not all_there:
        raise click.exceptions.Exit(1)


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


def tell_failures(failures: Sequence[DayFailure], console: Console) -> None:
    """Say which days failed and why."""
    console.print(red(f"{counted(len(failures), 'day')} failed:"))
    for failure in failures[:SHOWN_FAILURES]:
        named = f"{failure.key} {failure.day}: "
        console.print(f"  {named}{failure.failure}: {failure.reason.removeprefix(named)}", soft_wrap=True)
    if len(failures) > SHOWN_FAILURES:
        console.print(f"  and {len(failures) - SHOWN_FAILURES:,} more.")
    kept = sum(failure.row.held and failure.failure in REFUSED for failure in failures)
    if kept:
        console.print(
            f"{counted(kept, 'day')} {'is' if kept == 1 else 'are'} held as before, and fetched again when Binance "
            "publishes another archive or another checksum.",
            soft_wrap=True,
        )
    if kept < len(failures):
        console.print(f"What is held stays. The same command tries the {'other' if kept else 'failed'} days again.")
