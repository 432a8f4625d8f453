"""``market-data push``: copy stored days into PostgreSQL, and remove old ones that the lake has.

The copy itself belongs to ``stores/push.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import click
from rich.console import Console

from market_data_pipeline import clock
from market_data_pipeline.cli.console import aside, counted, progress_bar, red
from market_data_pipeline.cli.selection import Selection, choosing, series_among
from market_data_pipeline.cli.summary import ExitCode, end
from market_data_pipeline.defs.platform.records import parse_age
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import known_series, stored_dates
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import load_settings

_SHOWN = 20
"""Most days that are listed one by one."""


@click.command("push")
@choosing(days=("the first stored day, or that of --retain", "the last stored day"))
@click.option(
    "--to",
    "url",
    required=True,
    metavar="URL",
    help="postgresql://user@host:port/database. Set PGPASSWORD or ~/.pgpass to leave the password out.",
)
@click.option(
    "--retain",
    metavar="AGE",
    help="Copy this age only, and remove older days that are final in the lake: 30d, 12w. Default: remove nothing.",
)
def push_command(what: Selection, url: str, retain: str | None) -> None:
    """Copy stored days into PostgreSQL.

    Days that the database has with the same content are left out, so a stopped push continues, and a daily one copies
    new days only. A day is one transaction. Final days replace provisional and live rows. Tables have the names of the
    views: binance_spot.klines.

    --retain removes an old day from the database only if it is final in the lake, and the lake has each of its rows.
    Exit code 1 if a day of the lake is damaged, or an old day stays.

      market-data push BTCUSDT 1m --to postgresql://team@db.example.com/market
      market-data push --retain 30d --to postgresql://team@db.example.com/market
    """
    from market_data_pipeline.stores.postgres import PostgresStore
    from market_data_pipeline.stores.push import PushReport, evict, push

    layout, console = Layout(load_settings().root), aside()
    oldest = _oldest(retain)
    keys = series_among(known_series(layout), what, str(layout.root), "`market-data status` shows what is stored.")
    if not keys:
        raise UsageError(f"No series is stored in {layout.root} yet. `market-data add` fetches one.")
    wanted = {key: _days(layout, key, what, oldest) for key in keys}
    report = PushReport()
    with (
        PostgresStore(url) as store,
        progress_bar(sum(map(len, wanted.values())), "days", "copying", console) as bar,
    ):
        for key, stored in wanted.items():
            push(layout, store, key, stored, report, lambda: bar(1))
            if oldest is not None:
                evict(layout, store, key, oldest, report)
        name = store.name
    console.print(
        f"{counted(report.copied, 'day')} of {len(keys):,} series copied to {name} ({counted(report.rows, 'row')}), "
        f"{report.unchanged:,} unchanged.",
        soft_wrap=True,
    )
    if report.replaced:
        days = counted(report.replaced, "day")
        console.print(f"{days} among them had other final rows before: their archive was published again.")
    if oldest is not None:
        console.print(f"{counted(report.evicted, 'day')} before {oldest} removed there.")
    list_days("The lake cannot read", report.damaged, console)
    list_days("In the database stays", report.staying, console)
    end(ExitCode.of(not report.damaged and not report.staying))


def _oldest(retain: str | None) -> date | None:
    """Return the first UTC day that stays in the database; None if all stay."""
    if retain is None:
        return None
    try:
        return (clock.now() - parse_age(retain)).date()
    except UsageError as error:
        raise UsageError(f"--retain: {error}") from None
    except OverflowError:
        raise UsageError(f"--retain: {retain} ago is before the first year.") from None


def _days(layout: Layout, key: SeriesKey, what: Selection, oldest: date | None) -> list[date]:
    first = max(what.first or date.min, oldest or date.min)
    return sorted(day for day in stored_dates(layout, key) if first <= day <= (what.last or date.max))


def list_days(words: str, days: Mapping[tuple[SeriesKey, date], str], console: Console) -> None:
    """Print days one by one, with the reason of each."""
    for (key, day), reason in list(days.items())[:_SHOWN]:
        console.print(red(f"{words} {key.short} {day}: {reason}"), soft_wrap=True)
    if len(days) > _SHOWN:
        console.print(red(f"and {len(days) - _SHOWN:,} more days."))
