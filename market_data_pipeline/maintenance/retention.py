"""Retention across series: days older than ``keep:``, and what the exchange could not give again.

A day can be fetched again if the archive lists it, or if REST serves it and the symbol is still listed. Other days are
the only copy, so callers must name them and ask. Removing files of one series belongs to ``lake/removal.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from market_data_pipeline import clock
from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_rows import live_days, live_file
from market_data_pipeline.lake.partitions import day_files
from market_data_pipeline.lake.removal import days_in_ledger, remove_days, remove_series_data
from market_data_pipeline.maintenance.archive_sweep import Listing, find_listed
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.lineage import source_of
from market_data_pipeline.model.needs import reach_of
from market_data_pipeline.model.series import DataType, ListingSpans, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.sql.publish import publish_catalog, retire_marks
from market_data_pipeline.universe import Universe


@dataclass(frozen=True, slots=True)
class Removal:
    """Days of a series to remove.

    Attributes:
        days: All days: stored, on record without rows, or live. In order.
        stored: Those with rows.
        bytes: Size of their files.
        gone: Days with rows that the exchange no longer has, in order. All stored days if that is unknown.
        trouble: The reason why it is unknown. None if it is known.
        whole: True to remove all of the series, False to remove only the days.
    """

    key: SeriesKey
    days: tuple[date, ...]
    stored: tuple[date, ...]
    bytes: int
    gone: tuple[date, ...] = ()
    trouble: str | None = None
    whole: bool = False


def removal_of(layout: Layout, key: SeriesKey, listing: ListingSpans, archive: Listing) -> Removal:
    """Return the removal of all that is stored of a series. It changes nothing.

    Args:
        listing: The symbol's listing. REST serves only listed symbols.
        archive: The listing of the archive.

    Raises:
        StorageError: The system cannot read the ledger.
    """
    return _removal(layout, key, None, listing, archive)


def expired(
    layout: Layout, universe: Universe, keys: Iterable[SeriesKey], archive: Listing, *, even_if_gone: bool = False
) -> tuple[list[Removal], list[Removal]]:
    """Return the days that are older than ``keep:``, and those to leave in the lake. It changes nothing.

    A closed month expires as a whole, with its last day.

    Args:
        keys: The series. Those without ``keep:`` are skipped.
        archive: The listing of the archive.
        even_if_gone: Leave none of them. By default, days that the exchange no longer has stay, and with a day its
            closed month.

    Returns:
        A removal for each series with expired days, and one for each series with days to leave in the lake.

    Raises:
        StorageError: The system cannot read a ledger.
    """
    found, left_over = [], []
    for key in keys:
        before = universe.retained_from(key)
        if before is None:
            continue
        one = _removal(layout, key, before, universe.listing(key), archive)
        back = () if even_if_gone else _with_months(layout, key, one.gone)
        if back:
            left_over.append(_part(layout, one, set(back)))
            one = _part(layout, one, set(one.days).difference(back))
        if one.days:
            found.append(one)
    return found, left_over


def carry_out_removals(settings: Settings, removals: Sequence[Removal]) -> dict[SeriesKey, str]:
    """Remove days from the lake, and publish the SQL views without them.

    Stale SQL over closed months fails from now on, instead of returning fewer rows.

    Returns:
        The reason why a series could not be removed, by series. The same call continues.

    Raises:
        StorageError: The catalog cannot be written.
        SeriesBusyError: Another process was publishing the catalog and did not finish in time.
    """
    layout, troubles = Layout(settings.root), dict[SeriesKey, str]()
    retire_marks(layout, [one.key for one in removals])
    for one in removals:
        try:
            if one.whole:
                remove_series_data(layout, one.key, wait_seconds=settings.lock_wait_seconds)
            else:
                remove_days(layout, one.key, one.days, wait_seconds=settings.lock_wait_seconds)
        except MarketDataError as error:
            troubles[one.key] = str(error)
    if storage.head(layout.catalog) is not None:
        publish_catalog(layout)
    return troubles


def _removal(layout: Layout, key: SeriesKey, before: date | None, listing: ListingSpans, archive: Listing) -> Removal:
    on_disk, live = day_files(layout, key), live_days(layout, key)
    bounded = [day for day in sorted({*on_disk, *live, *days_in_ledger(layout, key)}) if before is None or day < before]
    if before is not None:
        closed = {day for day, stored in on_disk.items() if stored.of_month}
        bounded = [day for day in bounded if day not in closed or clock.days_of_month(day)[-1] < before]
    stored = tuple(day for day in bounded if day in on_disk or day in live)
    gone, trouble = _gone(key, stored, listing, archive, clock.now())
    return Removal(key, tuple(bounded), stored, _bytes(layout, key, stored), gone, trouble, before is None)


def _bytes(layout: Layout, key: SeriesKey, days: Iterable[date]) -> int:
    on_disk, total = day_files(layout, key), 0
    for day in days:
        total += on_disk[day].stat.bytes if day in on_disk else 0
        live = storage.head(live_file(layout, key, day))
        total += live.bytes if live else 0
    return total


def _part(layout: Layout, one: Removal, days: set[date]) -> Removal:
    stored = tuple(day for day in one.stored if day in days)
    return Removal(
        one.key,
        tuple(day for day in one.days if day in days),
        stored,
        _bytes(layout, one.key, stored),
        tuple(day for day in one.gone if day in days),
        one.trouble,
    )


def _with_months(layout: Layout, key: SeriesKey, days: Iterable[date]) -> tuple[date, ...]:
    """Return days together with all days of their closed months."""
    on_disk, found = day_files(layout, key), set[date]()
    for day in days:
        found.add(day)
        if day in on_disk and on_disk[day].of_month:
            found.update(clock.days_of_month(day))
    return tuple(sorted(found))


def _gone(
    key: SeriesKey, days: Sequence[date], listing: ListingSpans, archive: Listing, now: datetime
) -> tuple[tuple[date, ...], str | None]:
    """Return the days that the exchange no longer has, and the reason if that is not known."""
    source = source_of(key) if key.data_type is DataType.TRADE_PROFILE else key
    left = [day for day in days if not _is_served_by_rest(source, day, listing, now)]
    try:
        for cadence, file_of in (("daily", source.archive_daily), ("monthly", source.archive_monthly)):
            if left and (cadence == "monthly" or spec_of(source).daily):
                listed, _ = find_listed(archive, source.archive_folder(cadence), {file_of(day) for day in left})
                left = [day for day in left if file_of(day) not in listed]
    except MarketDataError as error:
        return tuple(left), f"The archive could not be looked up: {error}"
    return tuple(left), None


def _is_served_by_rest(key: SeriesKey, day: date, listing: ListingSpans, now: datetime) -> bool:
    if not spec_of(key).rest.path or not listing.spans or listing.last is not None:
        return False
    reach = reach_of(key)
    return reach is None or day > (now - reach).date()
