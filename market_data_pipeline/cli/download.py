"""Common steps of ``add``, ``backfill`` and ``sync``: estimate a download, ask, fetch with a progress bar.

Printing the result belongs to ``cli/summary.py``.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from datetime import date

import click

from market_data_pipeline.cli.console import aside, counted, in_bytes, watching
from market_data_pipeline.cli.plan import Size, existing, size_of
from market_data_pipeline.cli.selection import Chosen, Selection, choose, collected
from market_data_pipeline.cli.summary import ExitCode, tell
from market_data_pipeline.coverage.holdings import stored_days
from market_data_pipeline.defs.platform.records import BIG
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import load_universe
from market_data_pipeline.universe.listings import with_listings

_ASK_ABOVE = 5_000_000_000
"""Downloads of more bytes than this are not begun without asking; nor are days whose records take over 1 GB."""


yes_option = click.option(
    "--yes",
    "-y",
    is_flag=True,
    help="Do not ask before downloading more than 5 GB, or more than the disk has room for.",
)


def chosen_of(settings: Settings, what: Selection) -> Chosen:
    """Return the series and days that options select, after a lookup of symbols that the lock does not have."""
    universe = load_universe(settings.universe)
    return choose(with_listings(settings, universe, collected(universe, what), aside().print), what)


# --- what all three do -------------------------------------------------------------------------------------------


def fetch(settings: Settings, chosen: Chosen, *, yes: bool, everything: bool = False) -> ExitCode:
    """Fetch series and days with a progress bar, and print the result. Return the exit code of the command.

    With ``yes``, a big download begins without asking. With ``everything``, tradeProfiles and coverage are computed.

    Raises:
        MarketDataError: Nothing can be fetched at all, e.g. because the disk is full.
    """
    from market_data_pipeline.defs.definitions import ignore_notices
    from market_data_pipeline.defs.in_process import run_ingest

    console = aside()
    for note in chosen.notes:
        console.print(note)
    if not chosen.wanted:
        raise UsageError("No day was selected, so nothing was fetched. `market-data universe check` lists the series.")
    ask_first(settings, chosen.wanted, yes=yes)
    with watching(chosen.wanted, console) as watch, warnings.catch_warnings():
        ignore_notices()
        try:
            report = run_ingest(settings, chosen.wanted, on_result=watch, profiles=everything, coverage=everything)
        except KeyboardInterrupt:
            console.print("Stopped. Finished days are stored, and the same command continues from there.")
            raise
    return tell(report, chosen.days, len(chosen.wanted), console)


def ask_first(settings: Settings, wanted: Mapping[SeriesKey, Sequence[date]], *, yes: bool) -> None:
    """Ask for confirmation of a download that is big, or does not fit the disk."""
    layout = Layout(settings.root)
    size = size_of(wanted, {key: stored_days(layout, key) for key in wanted})
    concern = concern_about(size, shutil.disk_usage(existing(Layout(settings.root).local)).free)
    if concern:
        aside().print(f"{concern} Dagster's records take up to {in_bytes(size.records)} of it.")
        if not yes:
            click.confirm("Go on?", abort=True, err=True)


def concern_about(size: Size, free: int) -> str | None:
    """Return what to confirm before work of a size, on a disk with so many free bytes; None if nothing.

    >>> concern_about(Size(31, 2_000_000, 2_500_000), free=10**11) is None
    True
    """
    disk = size.disk + size.records
    if disk > free:
        return f"{counted(size.days, 'day')} would take about {in_bytes(disk)}, and the disk has {in_bytes(free)} free."
    if size.download > _ASK_ABOVE or size.records > BIG:
        return (
            f"{counted(size.days, 'day')} are about {in_bytes(size.download)} to download and "
            f"{in_bytes(disk)} on disk, where {in_bytes(free)} are free."
        )
    return None
