"""``market-data publish``: make the Iceberg tables equal to the lake."""

from __future__ import annotations

from importlib.util import find_spec

import click

from market_data_pipeline.cli.console import aside, counted, progress_bar, red
from market_data_pipeline.cli.selection import Selection, choosing, series_among
from market_data_pipeline.cli.summary import ExitCode, end
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import known_series
from market_data_pipeline.settings import load_settings

_SHOWN = 20
"""Most files or series that are listed one by one."""


@click.command("publish")
@choosing()
@click.option("--verify", is_flag=True, help="Then compare rows and sums of each series, read from both sides.")
@click.option("--expire", is_flag=True, help="Remove old snapshots and unneeded files now, not about once a day.")
def publish_command(what: Selection, verify: bool, expire: bool) -> None:
    """Publish the lake as Apache Iceberg tables.

    Spark, Trino, ClickHouse, DuckDB, Polars and others read them. There is one table per market and data type, named
    like the view: binance_spot.klines. Data files are hard links to those of the lake, so nothing is copied. A reader
    sees a day as it was or as it is, never both. A stopped publish continues.

    Without a selection, series that the lake no longer has leave the tables. Snapshots older than
    MARKET_DATA_ICEBERG_KEEP_HOURS go. Exit code 1 if a file of the lake is damaged, or --verify finds a difference.

    It needs the extra iceberg: pip install "market-data-pipeline[iceberg]"

      market-data publish
      market-data publish BTCUSDT 1m --verify
    """
    if find_spec("pyiceberg") is None:
        raise UsageError(
            'Iceberg tables need the extra iceberg. Install it: pip install "market-data-pipeline[iceberg]"'
        )
    from market_data_pipeline.iceberg.comparison import compare_tables
    from market_data_pipeline.iceberg.publishing import publish

    settings, console = load_settings(), aside()
    stored = known_series(Layout(settings.root))
    keys = series_among(stored, what, str(settings.root), "`market-data status` shows what is stored.")
    with progress_bar(len(keys), "series", "publishing", console) as bar:
        report = publish(
            settings, None if what == Selection() else keys, expire_now=expire, on_series=lambda number: bar(number)
        )
    console.print(
        f"{counted(report.added, 'file')} of {report.changed:,} series published, {report.removed:,} replaced or "
        f"removed, in {counted(report.commits, 'snapshot')}.",
        soft_wrap=True,
    )
    if report.expired or report.deleted:
        console.print(f"{counted(report.expired, 'old snapshot')} removed, {counted(report.deleted, 'file')} deleted.")
    for name, reason in list(report.troubles.items())[:_SHOWN]:
        console.print(red(f"Left out {name}: {reason}"), soft_wrap=True)
    if len(report.troubles) > _SHOWN:
        console.print(red(f"and {len(report.troubles) - _SHOWN:,} more files."))
    differences = 0
    if verify:
        with progress_bar(len(keys), "series", "comparing", console) as bar:
            for found in compare_tables(settings, keys, on_series=lambda number: bar(number)):
                differences += 1
                if differences <= _SHOWN:
                    console.print(red(f"{found.key.short}: {found.reason}"), soft_wrap=True)
        console.print(f"{len(keys) - differences:,} of {len(keys):,} series have the lake's rows and sums.")
    end(ExitCode.of(not report.troubles and not differences))
