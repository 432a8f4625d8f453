"""``market-data universe``: show, refresh and check the series to collect."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import click
from rich.progress import Progress

from market_data_pipeline.cli.console import aside, counted, json_option, out, print_json, table
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import ListingSpans, Market
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe import load_universe
from market_data_pipeline.universe.edit import write_lock
from market_data_pipeline.universe.listings import listing_sources, refresh
from market_data_pipeline.universe.resolved import is_pattern, lock_path


@click.group()
def universe() -> None:
    """Show, resolve and check the universe.

    You write universe.yaml by hand, or with `market-data add`. `market-data universe refresh` writes universe.lock.yaml
    in the same folder. It has the days on which each symbol was listed.
    """


@universe.command("show")
@json_option
def universe_show_command(as_json: bool) -> None:
    """Show all series and the days to collect."""
    found = load_universe(load_settings().universe)
    if as_json:
        print_json(
            {
                "series": str(key),
                "market": key.market,
                "data_type": key.data_type,
                "symbol": key.symbol,
                "interval": key.interval,
                "first": found.start(key),
                "last": found.end(key),
            }
            for key in found.series()
        )
        return
    shown = table("", "market", "data type", "symbol", "intervals", "from", "through", fold="intervals")
    rows: dict[tuple[str, str, str, date, date], list[str]] = {}
    for key in found.series():
        row = (str(key.market), str(key.data_type), key.symbol, found.start(key), found.end(key))
        rows.setdefault(row, []).append(key.interval or "")
    for (market, data_type, symbol, first, last), intervals in rows.items():
        shown.add_row(market, data_type, symbol, " ".join(intervals), str(first), str(last))
    out().print(shown)
    aside().print(f"{len(found.series()):,} series in {found.path}")


@universe.command(name="refresh")
def refresh_command() -> None:
    """Look up when each symbol was listed.

    Reads Binance's archive and writes universe.lock.yaml. Resolves patterns again, delisted symbols included. Needs the
    network. Commands that load the universe later do not.
    """
    settings = load_settings()
    found = load_universe(settings.universe, resolve=False)
    console = aside()
    with (
        listing_sources(settings, console.print) as (archive, rest),
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("asking the archive", total=None)
        listings = refresh(
            found, archive, rest, on_progress=lambda done, of: progress.update(task, completed=done, total=of)
        )
    path = write_lock(found.path, listings)
    for line in _changes(found.listings, listings):
        console.print(line)
    console.print(f"{path}: {counted(len(listings), 'symbol')}")


def _changes(
    before: Mapping[tuple[Market, str], ListingSpans], after: Mapping[tuple[Market, str], ListingSpans]
) -> list[str]:
    new = [f"{market} {symbol}: new" for market, symbol in after if (market, symbol) not in before]
    gone = [f"{market} {symbol}: no longer meant" for market, symbol in before if (market, symbol) not in after]
    other = [
        f"{m} {s}: now {_shown(after[m, s])}" for m, s in after if (m, s) in before and before[m, s] != after[m, s]
    ]
    changes = [*new, *gone, *other]
    return changes if len(changes) <= 20 else [*changes[:20], f"and {len(changes) - 20} more changes"]


def _shown(listing: ListingSpans) -> str:
    return ", ".join(f"{first} to {last or 'now'}" for first, last in listing.spans)


@universe.command()
def check() -> None:
    """Check universe.yaml and its lock file.

    Needs no network. Exit code 2 if something is wrong.
    """
    found = load_universe(load_settings().universe)
    unlisted = {
        f"{market} {symbol} (line {line})"
        for entry in found.entries
        for market in entry.markets
        for symbol, line in entry.symbols
        if not is_pattern(symbol) and (market, symbol) not in found.listings
    }
    if unlisted:
        raise UsageError(
            f"{lock_path(found.path)} does not say when these were listed: {', '.join(sorted(unlisted))}. "
            "`market-data universe refresh` looks them up."
        )
    symbols = {(key.market, key.symbol) for key in found.series()}
    out().print(f"{found.path} is in order: {len(found.series()):,} series of {counted(len(symbols), 'symbol')}.")
