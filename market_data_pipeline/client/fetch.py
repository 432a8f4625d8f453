"""``sync=True``: find the days of a range that a source may complete, and fetch them as a Dagster run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

from tqdm import tqdm

from market_data_pipeline import clock
from market_data_pipeline.client.request import Wanted, midnight
from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.partitions import days_on_disk
from market_data_pipeline.model.day import FAILED, HELD, NOT_LISTED, DayFile, DayRecord
from market_data_pipeline.model.series import EXCHANGE, DataType, SeriesKey, interval_us
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe, load_universe
from market_data_pipeline.universe.listings import with_listings

_REASONS = 5
"""Number of failed days whose reasons an error lists."""

_ARCHIVE_HOURS = 3
"""Daily archives appear between 03:00 and 09:00 UTC of the next day."""

_ASK_AGAIN_AFTER = timedelta(hours=1)
"""Pause after a request for a day that waits for its archive."""


def bring_lacking(settings: Settings, layout: Layout, wanted: Wanted) -> None:
    """Fetch the days of a request that a source may complete.

    Raises:
        UsageError: A series is not in the universe, its symbol does not exist, or a day is before the start of its
            series.
        MarketDataError: Days could not be fetched. The text has the reasons.
    """
    now = clock.naive_utc(clock.now())
    days = wanted.days_through(now.date())
    lacking: dict[SeriesKey, list[date]] = {}
    for key in wanted.keys:
        found = set(_lacking(layout, key, days, now))
        source = key
        if key.data_type is DataType.TRADE_PROFILE:  # made of trades
            source = SeriesKey(EXCHANGE, key.market, DataType.AGG_TRADES, key.symbol)
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
    ledger = Ledger.read(layout.ledger(key))
    on_disk = days_on_disk(layout, key)
    return [day for day in days if not _up_to_date(key, ledger.get(day), on_disk.get(day), now)]


def _up_to_date(key: SeriesKey, row: DayRecord | None, held: DayFile | None, now: datetime) -> bool:
    if row is None or row.outcome == FAILED:
        return False
    if row.outcome == HELD and (held is None or not row.matches_file(held.stat)):
        return False  # the file was removed or changed by hand
    if row.final or row.outcome == NOT_LISTED:
        return True
    if row.asked_at is None:
        return False
    over = midnight(row.day + timedelta(days=1))
    if now < over:
        return key.interval is not None and _candles_begun(key, now) == _candles_begun(key, row.asked_at)
    if row.asked_at < over:
        return False
    # The whole day is stored provisionally. Only its archive can complete it.
    return now < over + timedelta(hours=_ARCHIVE_HOURS) or now - row.asked_at < _ASK_AGAIN_AFTER


def _candles_begun(key: SeriesKey, moment: datetime) -> int:
    """Return the number of candles that have begun since 1970. One more has closed only if one more has begun."""
    return clock.to_us(moment.replace(tzinfo=UTC)) // interval_us(str(key.interval))
