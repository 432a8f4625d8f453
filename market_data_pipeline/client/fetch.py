"""``sync=True``: find the days of a range that a source may complete, and fetch them as a Dagster run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime

from tqdm import tqdm

from market_data_pipeline import clock
from market_data_pipeline.client.request import Request
from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.partitions import day_files
from market_data_pipeline.model.day import HELD, DayRecord
from market_data_pipeline.model.lineage import source_of
from market_data_pipeline.model.needs import is_current
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe, load_universe
from market_data_pipeline.universe.listings import with_listings

_REASONS = 5
"""Number of failed days whose reasons an error lists."""


def fetch_missing(settings: Settings, layout: Layout, wanted: Request) -> None:
    """Fetch the days of a request that a source may complete.

    Raises:
        UsageError: A series is not in the universe, its symbol does not exist, or a day is before the start of its
            series.
        MarketDataError: Days could not be fetched. The text has the reasons.
    """
    now = clock.now()
    days = wanted.days_through(now.date())
    lacking: dict[SeriesKey, list[date]] = {}
    for key in wanted.keys:
        found = set(_lacking(layout, key, days, now))
        source = key
        if key.data_type is DataType.TRADE_PROFILE:
            source = source_of(key)
            found.update(_lacking(layout, source, days, now))
        if found:
            lacking[source] = sorted(found)
    if lacking:
        universe = with_listings(settings, load_universe(settings.universe), lacking, warnings.warn)
        lacking = _partitions_of(universe, lacking)
    if not lacking:
        return
    from market_data_pipeline.defs.definitions import ignore_notices
    from market_data_pipeline.defs.in_process import run_ingest

    total = sum(map(len, lacking.values()))
    with warnings.catch_warnings(), _progress(total) as on_result:
        ignore_notices()
        report = run_ingest(settings, lacking, on_result, profiles=wanted.data_type is DataType.TRADE_PROFILE)
    if report.failures:
        reasons = " ".join(failure.reason for failure in report.failures[:_REASONS])
        more = f" And {len(report.failures) - _REASONS} more." if len(report.failures) > _REASONS else ""
        raise MarketDataError(
            f"{len(report.failures)} of {total} days could not be fetched. {reasons}{more} "
            "Without sync=True, the stored days are read."
        )


@contextmanager
def _progress(days: int) -> Iterator[Callable[[object], None]]:
    """Show a progress bar in a terminal or a notebook; yield what is called after each day."""
    shown = sys.stderr.isatty() or "ipykernel" in sys.modules
    with tqdm(total=days, unit="day", desc="sync", disable=not shown, leave=False) as bar:
        yield lambda _: bar.update()


def _partitions_of(universe: Universe, lacking: Mapping[SeriesKey, list[date]]) -> dict[SeriesKey, list[date]]:
    """Leave out days on which the symbol was not listed: there is nothing to fetch.

    Raises:
        UsageError: A day on which the symbol may have been listed is before the start of the series.
    """
    left: dict[SeriesKey, list[date]] = {}
    for key, days in lacking.items():
        if key not in universe:
            left[key] = days  # the error names the command that adds it
            continue
        listing = universe.listing(key)
        if kept := [day for day in days if listing.covers(day)]:
            universe.refuse_before_start(kept[0], key)
            left[key] = kept
    return left


def _lacking(layout: Layout, key: SeriesKey, days: Sequence[date], now: datetime) -> list[date]:
    """Return the days that a source may complete."""
    ledger, on_disk = Ledger.read(layout.ledger(key)), day_files(layout, key)

    def is_stored(row: DayRecord) -> bool:
        """Return False if the file was removed or changed by hand."""
        file = on_disk.get(row.day)
        return row.outcome != HELD or (file is not None and row.matches_file(file.stat))

    rows = {day: row for day in days if (row := ledger.get(day)) is not None and is_stored(row)}
    return [day for day in days if day not in rows or not is_current(key, rows[day], now)]
