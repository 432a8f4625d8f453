"""``market-data compact``: merge the candles of finished months into one file per month."""

from __future__ import annotations

from datetime import timedelta

import click

from market_data_pipeline.cli.console import aside, counted, progress_bar
from market_data_pipeline.cli.selection import Selection, choosing, series_among
from market_data_pipeline.cli.summary import ExitCode, end, tell_troubles
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.maintenance.compaction import compact
from market_data_pipeline.model.datasets import closes_months
from market_data_pipeline.settings import load_settings


@click.command("compact")
@choosing(klines_only=True)
@click.option(
    "--grace",
    type=click.IntRange(min=0),
    help="Minutes before the files of days are removed, once their month is one file. Default: the setting, 60.",
)
def compact_command(what: Selection, grace: int | None) -> None:
    """Merge finished months into one file each.

    A query over years opens one file per month instead of thirty, and is several times as fast. A month is closed when
    all of its days are final. The next call an hour later removes the files of its days, so that running queries can
    finish. Until then both exist, and every reader of this project uses the month's file. A day that is fetched again
    later is written into its month. Nothing is downloaded.

      market-data compact
      market-data compact BTCUSDT 1m
    """
    from market_data_pipeline.lake.partitions import known_series

    settings = load_settings()
    held = [key for key in known_series(Layout(settings.root)) if closes_months(key.data_type)]
    console = aside()
    if not held:
        console.print(f"No klines are stored in {settings.root} yet, so there is no month to close.")
        return
    keys = series_among(held, what, str(settings.root), "`market-data status` shows what is stored.")
    with progress_bar(len(keys), "series", "closing months", console) as bar:
        report = compact(
            settings,
            keys,
            grace=None if grace is None else timedelta(minutes=grace),
            on_progress=lambda: bar(1),
        )
    months = sum(map(len, report.closed.values()))
    waiting = f" {counted(report.waiting, 'file')} of days stay for now." if report.waiting else ""
    console.print(
        f"{counted(months, 'month')} of {len(report.closed):,} series closed, "
        f"{counted(report.removed, 'file')} of days removed.{waiting}"
    )
    tell_troubles(report.troubles, console)
    end(ExitCode.of(not report.troubles))
