"""``market-data retain``: remove days that are older than ``keep:`` in universe.yaml."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from market_data_pipeline.cli.console import aside, counted, json_option
from market_data_pipeline.cli.push import list_days
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
from market_data_pipeline.lake.partitions import known_series
from market_data_pipeline.maintenance.retention import expired
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.sources.binance.archive import ArchiveClient
from market_data_pipeline.universe import load_universe

if TYPE_CHECKING:
    from market_data_pipeline.stores.push import PushReport


@click.command("retain")
@choosing()
@dry_run_option
@even_if_gone_option
@unasked_option
@json_option
def retain_command(what: Selection, dry_run: bool, even_if_gone: bool, yes: bool, as_json: bool) -> None:
    """Remove days older than `keep:`.

    universe.yaml has `keep:` for a data type. For PostgreSQL, MARKET_DATA_HOT_STORE_KEEP_DAYS has it: an older day is
    removed there if it is final in the lake, and the lake has each of its rows.

    Days that Binance no longer has are named and stay, unless --even-if-gone is given. The candles of a closed month
    are removed together, when its last day is old enough. A tradeProfile stays when its aggTrades are removed. The
    schedule `retain` does the same every day.

      market-data retain --dry-run
      market-data retain BTCUSDT aggTrades
    """
    from market_data_pipeline.stores.push import evict_old_days

    settings = load_settings()
    universe, console = load_universe(settings.universe), aside()
    selected = collected(universe, what)
    keys = [key for key in selected if universe.retained_from(key) is not None]
    hot = evict_old_days(settings, Layout(settings.root), _hot(settings, what, selected), dry_run=dry_run)
    stays = hot is not None and _tell_hot(hot, dry_run=dry_run)
    if not keys:
        if as_json:
            show([], {}, as_json=True)
        if hot is None:
            console.print(f"No selected series has `keep:` in {universe.path}, so no day is removed.")
        end(ExitCode.of(not stays))
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
        done = carry_out(settings, found) and not any(one.trouble for one in left_over)
        end(ExitCode.of(done and not stays))
        return
    end(ExitCode.of(not stays))


def _hot(settings: Settings, what: Selection, selected: list[SeriesKey]) -> list[SeriesKey]:
    """Return the series to look for in PostgreSQL. Without a selection, those that left the universe are among them."""
    chosen = what.markets or what.symbols or what.intervals or what.data_types
    return list(dict.fromkeys([*selected, *(() if chosen else known_series(Layout(settings.root)))]))


def _tell_hot(report: PushReport, *, dry_run: bool) -> bool:
    """Print what was removed from PostgreSQL. Return True if old days stay."""
    would = "would be removed" if dry_run else "removed"
    aside().print(f"{counted(report.evicted, 'day')} {would} from PostgreSQL, because the lake has them.")
    list_days("In the database stays", report.staying, aside())
    return bool(report.staying)
