"""``market-data retain``: remove days that are older than ``keep:`` in universe.yaml."""

from __future__ import annotations

from contextlib import closing

import click

from market_data_pipeline.cli.console import aside, counted, json_option
from market_data_pipeline.cli.removing import (
    ask,
    carry_out,
    dry_run_option,
    even_if_gone_option,
    show,
    tell_gone,
    unasked_option,
)
from market_data_pipeline.cli.selection import Selection, choosing, collected
from market_data_pipeline.cli.summary import ExitCode, end
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.maintenance.retention import expired
from market_data_pipeline.settings import load_settings
from market_data_pipeline.sources.binance.archive import ArchiveClient
from market_data_pipeline.universe import load_universe


@click.command("retain")
@choosing()
@dry_run_option
@even_if_gone_option
@unasked_option
@json_option
def retain_command(what: Selection, dry_run: bool, even_if_gone: bool, yes: bool, as_json: bool) -> None:
    """Remove days older than `keep:`.

    universe.yaml has `keep:` for a data type.

    Days that Binance no longer has are named and stay, unless --even-if-gone is given. The candles of a closed month
    are removed together, when its last day is old enough. A tradeProfile stays when its aggTrades are removed. The
    schedule `retain` does the same every day.

      market-data retain --dry-run
      market-data retain BTCUSDT aggTrades
    """
    settings = load_settings()
    universe, console = load_universe(settings.universe), aside()
    keys = [key for key in collected(universe, what) if universe.retained_from(key) is not None]
    if not keys:
        if as_json:
            show([], {}, as_json=True)
        console.print(f"No selected series has `keep:` in {universe.path}, so no day is removed.")
        return
    with closing(ArchiveClient(settings)) as archive:
        found, left_over = expired(Layout(settings.root), universe, keys, archive, even_if_gone=even_if_gone)
    show(found, {}, as_json=as_json)
    tell_gone([*found, *left_over])
    if left_over:
        number = sum(len(one.days) for one in left_over)
        console.print(f"{counted(number, 'day')} left in the lake. Add --even-if-gone to remove the only copy, too.")
    if not found:
        console.print("No other day is older than `keep:`." if left_over else "No day is older than `keep:`.")
    elif dry_run:
        console.print("Nothing was removed, because of --dry-run.")
    else:
        days = counted(sum(len(one.stored) for one in found), "day")
        ask(found, f"Remove {days} of {len(found):,} series from the lake?", yes=yes, even_if_gone=even_if_gone)
        end(ExitCode.of(carry_out(settings, found) and not any(one.trouble for one in left_over)))
