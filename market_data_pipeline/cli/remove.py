"""``market-data remove``: take series out of the universe, and with ``--data`` out of the lake, too."""

from __future__ import annotations

from contextlib import closing

import click

from market_data_pipeline.cli.console import aside, counted, json_option
from market_data_pipeline.cli.removing import (
    ask,
    carry_out,
    dry_run_option,
    even_if_gone_option,
    refuse_only_copies,
    show,
    tell_gone,
    unasked_option,
)
from market_data_pipeline.cli.selection import Selection, choosing, series_among
from market_data_pipeline.cli.summary import ExitCode, end
from market_data_pipeline.errors import MarketDataError, UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import known_series
from market_data_pipeline.maintenance.retention import Removal, removal_of
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.sources.binance.archive import ArchiveClient
from market_data_pipeline.universe import Universe, load_universe
from market_data_pipeline.universe.config import read_text
from market_data_pipeline.universe.edit import remove_series


@click.command("remove")
@choosing()
@click.option(
    "--data", is_flag=True, help="Also remove what is stored: lake, ledger, quarantine, live rows and Dagster's asset."
)
@dry_run_option
@even_if_gone_option
@unasked_option
@json_option
def remove_command(what: Selection, data: bool, dry_run: bool, even_if_gone: bool, yes: bool, as_json: bool) -> None:
    """Remove series.

    Name one or more symbols, and intervals or data types to remove only these. Without --data, only universe.yaml
    changes, and stored days stay readable. With --data, the command first looks in the archive for the days. It names
    those that Binance no longer has, and asks a second time. A tradeProfile stays when only its aggTrades are removed.
    If the command is interrupted, run it again.

      market-data remove ETHUSDT 1h --market spot --dry-run
      market-data remove BTCUSDT aggTrades --market um --data
    """
    settings = load_settings()
    layout, path, console = Layout(settings.root), settings.universe, aside()
    if not what.symbols:
        raise UsageError("Name at least one symbol, e.g. `market-data remove ETHUSDT 1h`. Nothing was removed.")
    text = read_text(path)
    universe = Universe((), {}, path) if text is None else load_universe(path, resolve=False)
    collected = universe.series()
    existing = sorted({*collected, *known_series(layout)}) if data else collected
    where = f"{path} or {settings.root}" if data else str(path)
    advice = "`market-data status` shows what is stored." if data else "With --data, stored series can be named, too."
    keys = series_among(existing, what, where, advice)
    markets = list(dict.fromkeys(key.market for key in keys))
    if len(markets) > 1 and not what.markets:
        raise UsageError(f"{', '.join(what.symbols)} is in {' and '.join(markets)}. Add --market. Nothing was removed.")
    leaving = [key for key in keys if key in collected]
    changed = text if text is None else remove_series(text, leaving, universe.listings, str(path))
    removals = _removals(settings, layout, universe, keys) if data else [Removal(key, (), (), 0) for key in keys]
    tell_gone(removals)
    if yes and not even_if_gone and not dry_run:
        refuse_only_copies(removals)
    show(removals, dict.fromkeys(leaving, True), as_json=as_json)
    if dry_run:
        console.print("Nothing was removed, because of --dry-run.")
        return
    ask(removals, _question(leaving, removals, data=data), yes=yes, even_if_gone=even_if_gone)
    if changed is not None and changed != text:
        if read_text(path) != text:
            raise MarketDataError(f"{path} was changed meanwhile. Run the command again. Nothing was removed.")
        storage.put(path, changed.encode())  # first, so that no schedule fetches removed days again
        console.print(f"{len(leaving):,} series left {path}.")
        if layout.dagster_home.exists():
            console.print("Reload the code location (Deployment, Reload) or restart `market-data ui` if it runs.")
    if not data:
        console.print("Stored days stay readable. `--data` removes them, too.")
        return
    end(ExitCode.of(carry_out(settings, removals)))


def _removals(settings: Settings, layout: Layout, universe: Universe, keys: list[SeriesKey]) -> list[Removal]:
    with closing(ArchiveClient(settings)) as archive:
        return [removal_of(layout, key, universe.listing(key), archive) for key in keys]


def _question(leaving: list[SeriesKey], removals: list[Removal], *, data: bool) -> str:
    parts = [f"{len(leaving):,} series from the universe"] if leaving else []
    parts += [f"{counted(sum(len(one.stored) for one in removals), 'day')} from the lake"] if data else []
    return f"Remove {' and '.join(parts)}?"
