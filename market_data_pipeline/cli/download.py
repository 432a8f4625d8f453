"""Common steps of ``add``, ``backfill`` and ``sync``: estimate a download, ask, fetch with a progress bar.

Printing the result belongs to ``cli/summary.py``.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import click

from market_data_pipeline.cli.console import aside, counted, in_bytes, watching
from market_data_pipeline.cli.selection import Chosen, Selection, choose, collected
from market_data_pipeline.cli.summary import ExitCode, tell
from market_data_pipeline.coverage.holdings import StoredDays, stored_days
from market_data_pipeline.defs.platform.records import BIG, BYTES_A_DAY
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.datasets import expected_rows
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import load_universe
from market_data_pipeline.universe.listings import with_listings

_ASK_ABOVE = 5_000_000_000
"""Downloads of more bytes than this are not begun without asking; nor are days whose records take over 1 GB."""


# Sizes of what Binance publishes and of the files made of it, as measured: 1,440 candles are a zip of 60-75 kB, a day
# of 1s candles 2.4 MB, a million aggTrades 15 MB.
_ZIP_BYTES_A_CANDLE, _ZIP_BYTES_A_SECOND_CANDLE, _ZIP_OVERHEAD = 48, 28, 500
_CANDLES_FILE_TO_ZIP, _TRADES_FILE_TO_ZIP = 1.1, 0.9
_FILE_OVERHEAD = 8_000
_AGG_TRADES_ZIP = 12_000_000
"""A day of trades of a busy symbol: the estimate for symbols without stored days."""
_SAMPLE = 30

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
    concern = concern_about(size, shutil.disk_usage(existing(settings.root)).free)
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


def existing(path: Path) -> Path:
    """Return the path itself if it exists, else the nearest folder above it that does."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


@dataclass(frozen=True, slots=True)
class Size:
    """The estimated size of a download.

    Attributes:
        days: Days that are not final yet.
        download: Bytes to download.
        disk: Bytes on disk for the files of those days.
    """

    days: int
    download: int
    disk: int

    @property
    def records(self) -> int:
        """Return the maximum size of Dagster's records of those days, in bytes."""
        return self.days * BYTES_A_DAY


def day_size(key: SeriesKey, held: StoredDays) -> tuple[float, float]:
    """Return the bytes of a day's zip and of its file: those of the newest stored days, else typical ones.

    >>> import numpy as np
    >>> from market_data_pipeline.model.series import DataType, Market
    >>> nothing = StoredDays(*(np.empty(0, dtype=t) for t in (int, *[bool] * 5, int, int)))
    >>> key = SeriesKey("binance", Market.SPOT, DataType.KLINES, "BTCUSDT", "1m")
    >>> [round(size) for size in day_size(key, nothing)]
    [69620, 84582]
    """
    rows = expected_rows(key)
    if rows is None:
        usual = float(_AGG_TRADES_ZIP)
    else:
        usual = _ZIP_OVERHEAD + rows * (_ZIP_BYTES_A_SECOND_CANDLE if key.interval == "1s" else _ZIP_BYTES_A_CANDLE)
    file = _FILE_OVERHEAD + usual * (_CANDLES_FILE_TO_ZIP if key.interval else _TRADES_FILE_TO_ZIP)
    sample = held.bytes[held.stored & held.final][-_SAMPLE:]
    if not sample.size:
        return usual, file
    seen = float(sample.mean())
    return usual * seen / file, seen


def size_of(wanted: Mapping[SeriesKey, Sequence[date]], holdings: Mapping[SeriesKey, StoredDays]) -> Size:
    """Estimate the size of the days of series that are not final yet."""
    days, download, disk = 0, 0.0, 0.0
    for key, asked in wanted.items():
        left = len(set(asked) - holdings[key].final_days)
        zipped, filed = day_size(key, holdings[key])
        days, download, disk = days + left, download + left * zipped, disk + left * filed
    return Size(days, round(download), round(disk))
