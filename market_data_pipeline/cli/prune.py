"""``market-data prune``: remove old runs from Dagster's records and free their disk space."""

from __future__ import annotations

import click

from market_data_pipeline import clock
from market_data_pipeline.cli.console import aside, counted, in_bytes
from market_data_pipeline.defs.platform.records import parse_age
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.settings import load_settings


@click.command("prune")
@click.option(
    "--runs-older-than",
    "age",
    metavar="AGE",
    help="Remove runs that ended longer ago than this: 36h, 90d, 12w. Default: the setting, 90d.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
def prune_command(age: str | None, dry_run: bool) -> None:
    """Remove old runs from Dagster's records.

    Their disk space becomes free. The newest materialization and check results of each day stay, and so do the runs
    that they link to, without their logs. Runs in progress stay. Files of the lake do not change, and nothing is
    downloaded again. You can run it while `sync`, the UI or the daemon runs.

      market-data prune --runs-older-than 90d --dry-run
      market-data prune
    """
    settings = load_settings()
    given = f"{settings.keep_runs_days}d" if age is None else age
    try:
        before = clock.now() - parse_age(given)
    except UsageError as error:
        raise UsageError(f"--runs-older-than: {error}") from None
    except OverflowError:
        raise UsageError(f"--runs-older-than: {given} ago is before the first year.") from None
    layout, console = Layout(settings.root), aside()
    if not layout.dagster_home.exists():
        console.print(f"There are no records in {layout.dagster_home} yet.")
        return
    from market_data_pipeline.defs.platform.home import open_instance, recording
    from market_data_pipeline.defs.platform.pruning import prune as drop

    with recording(layout), open_instance(layout) as instance:
        done = drop(instance, before, dry_run=dry_run)
    console.print(
        f"{'Would drop' if dry_run else 'Dropped'} {counted(done.runs, 'run')} older than {given}, "
        f"{counted(done.events, 'event')}, {counted(done.evaluations, 'check result')} and "
        f"{counted(done.ticks, 'tick')}."
    )
    if done.kept:
        console.print(
            f"{counted(done.kept, 'older run')} with the newest of a day {'stays' if done.kept == 1 else 'stay'}, "
            "without the log."
        )
    now = "about " if dry_run else ""
    console.print(f"Dagster's records: {in_bytes(done.before)} before, {now}{in_bytes(done.after)} afterwards.")
    if done.waiting:
        console.print(f"More space comes back later: {done.waiting}.")
