"""``market-data copy``: copy the lake into another store."""

from __future__ import annotations

from pathlib import Path

import click

from market_data_pipeline.cli.console import aside, counted, in_bytes, progress_bar
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import known_series
from market_data_pipeline.settings import load_settings


@click.command("copy")
@click.argument("target")
@click.option(
    "--local-dir",
    type=click.Path(path_type=Path),
    help="Folder for the locks of a copy in a bucket. Default: the setting MARKET_DATA_LOCAL_DIR.",
)
def copy_command(target: str, local_dir: Path | None) -> None:
    """Copy the lake into a folder or a bucket.

    TARGET is a folder, or s3://bucket/prefix. Each file is compared with the hash on record before it is written. Run
    the command again after an interruption: it copies only what is missing. The lake stays as it is, and so do newer
    days of the copy. To use the copy, set MARKET_DATA_DIR to it.

      market-data copy s3://my-bucket/market-data
      MARKET_DATA_DIR=s3://my-bucket/market-data market-data copy /data/back
    """
    settings = load_settings()
    local = {} if local_dir is None else {"local_dir": local_dir}
    copied = load_settings(dir=target, **local)
    if copied.root == settings.root:
        raise UsageError(f"{target} is the lake itself. Name another folder or bucket.")
    from market_data_pipeline.maintenance.copying import copy_lake
    from market_data_pipeline.sql.publish import publish_catalog

    console = aside()
    source, wait = Layout(settings.root), settings.lock_wait_seconds
    with progress_bar(len(known_series(source)), "series", "copying", console) as bar:
        report = copy_lake(source, Layout(copied.root), wait_seconds=wait, on_progress=lambda: bar(1))
    publish_catalog(Layout(copied.root))
    newer = f" {counted(report.newer, 'day')} of the copy are newer and stay." if report.newer else ""
    console.print(
        f"{counted(report.files, 'file')} with {in_bytes(report.bytes)} copied to {copied.root}. "
        f"{counted(report.there, 'day')} were there before.{newer}"
    )
    for trouble in report.troubles.values():
        console.print(trouble)
    if report.troubles:
        raise SystemExit(1)
