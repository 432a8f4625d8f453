"""Sweep the archive's listing for days whose archive Binance has replaced, published or removed.

:func:`sweep` compares pages of the listing with the ledgers and marks the days there. Fetching them again belongs to
``ingest``, the decision when to do so to ``model/needs.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from math import inf
from threading import Event, Lock
from time import monotonic
from typing import Protocol

from market_data_pipeline import clock
from market_data_pipeline.errors import MarketDataError, NetworkError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, refresh_ledger
from market_data_pipeline.maintenance.scrub import OnProgress
from market_data_pipeline.model.datasets import MOST_PAGES, monthly_may_replace
from market_data_pipeline.model.day import FAILED, HELD, REFUSED, DayRecord, OtherArchive, after
from market_data_pipeline.model.needs import expects_archive, knows_archive, needs, refused_archive
from market_data_pipeline.model.provenance import ChecksumStatus, Source
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.settings import Settings


class Listed(Protocol):
    """A file in the archive's listing, as ``sources.binance.archive`` returns it."""

    @property
    def key(self) -> str:
        """Return its path in the bucket."""

    @property
    def etag(self) -> str:
        """Return its ETag without quotes, empty if the listing has none."""

    @property
    def last_modified(self) -> str:
        """Return its Last-Modified in ISO 8601."""


class Listing(Protocol):
    """The archive, as a sweep needs it. ``sources.binance.archive.ArchiveClient`` implements it."""

    def list_page(self, prefix: str, after: str) -> tuple[Sequence[Listed], bool]:
        """Return at most a page of files directly below a prefix, after a key, and True if there are more."""


# --- the archive's listing ----------------------------------------------------------------------------------------


_FAILED_IN_A_ROW = 3
"""Consecutive series that cannot be listed before the sweep takes the host to be down."""

_NAMED = 5
"""Number of series that a message lists by name."""


class ArchiveChange(StrEnum):
    """Difference between the listing and the lake."""

    REPLACED = "replaced"
    """The listing has another archive than the one that the rows came from."""
    PUBLISHED = "published"
    """The listing has an archive for a day without one. The day is provisional or failed."""
    REFUSED = "refused"
    """The listing has a replacement that ingest refused. The rows stay. It is fetched again once it or its
    ``.CHECKSUM`` changes."""
    VANISHED = "vanished"
    """The archive that the rows came from is no longer listed. The rows stay."""


_TO_FETCH = frozenset({ArchiveChange.REPLACED, ArchiveChange.PUBLISHED})
"""Kinds of archives to fetch."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """One archive whose listing differs from the ledger.

    Attributes:
        days: The UTC days affected, in order: one for a daily archive, up to a month for a monthly one.
        archive: Its key in the bucket.
        etag: ETag listed now, or Last-Modified if the listing has no ETag. Empty if the archive vanished.
    """

    kind: ArchiveChange
    key: SeriesKey
    days: tuple[date, ...]
    archive: str
    etag: str = ""


@dataclass
class SweepReport:
    """Result of a sweep.

    Attributes:
        archives: Number of archives compared, by series.
        discoveries: Archives that differ from the ledgers, in order of series and days.
        requests: Pages of the listing that were requested.
        without_etag: Stored days whose ledger has neither ETag nor Last-Modified, so that they cannot be compared.
        troubles: Series that could not be compared or marked, with the reason.
        not_reached: Series not compared because the sweep ended early, in order.
    """

    archives: dict[SeriesKey, int] = field(default_factory=dict)
    discoveries: list[Discovery] = field(default_factory=list)
    requests: int = 0
    without_etag: int = 0
    troubles: dict[SeriesKey, str] = field(default_factory=dict)
    not_reached: list[SeriesKey] = field(default_factory=list)

    def add(self, other: SweepReport) -> None:
        """Add the results of further series."""
        self.archives |= other.archives
        self.discoveries += other.discoveries
        self.requests += other.requests
        self.without_etag += other.without_etag
        self.troubles |= other.troubles
        self.not_reached += other.not_reached

    def of(self, kind: ArchiveChange) -> list[Discovery]:
        """Return the discoveries of a kind."""
        return [found for found in self.discoveries if found.kind is kind]

    def said_of_not_reached(self) -> str:
        """Return a message about the series not compared, with the first of them by name. Empty if there are none."""
        if not self.not_reached:
            return ""
        names = ", ".join(map(str, self.not_reached[:_NAMED]))
        more = ", …" if len(self.not_reached) > _NAMED else ""
        return (
            f"{len(self.not_reached)} series were not compared, because listing the archive failed for the series "
            f"before them: {names}{more}. Try again later."
        )

    @property
    def to_fetch(self) -> dict[SeriesKey, list[date]]:
        """Return the days to fetch again, by series."""
        wanted: dict[SeriesKey, set[date]] = {}
        for found in self.discoveries:
            if found.kind in _TO_FETCH:
                wanted.setdefault(found.key, set()).update(found.days)
        return {key: sorted(days) for key, days in wanted.items()}


def sweep(
    settings: Settings,
    keys: Iterable[SeriesKey],
    archive: Listing,
    *,
    mark: bool = True,
    at_once: bool = False,
    on_progress: OnProgress | None = None,
) -> SweepReport:
    """Compare the archive's listing with the ledgers of series, and mark the days whose archive has changed.

    A page of the listing has 500 days, so ten years of a series take eight requests. Days from a monthly zip are
    compared with that zip. The sweep also looks for archives of days that wait for theirs, and of days that failed
    because of the archive's content.

    The sweep ends early after :data:`_FAILED_IN_A_ROW` consecutive series that cannot be listed, because the host is
    down and every further series would wait through all retries. ``not_reached`` has the rest.

    Args:
        settings: Location of the lake, and number of series to list in parallel.
        keys: The series. Derived series have no archive and are skipped.
        mark: Write the result into the ledgers.
        at_once: End the retry backoff of days whose last attempt failed.
        on_progress: Called after each series with the number of archives compared.
    """
    layout = Layout(settings.root)
    report = SweepReport()
    requested = [key for key in keys if key.data_type is not DataType.TRADE_PROFILE]
    unlisted = 0
    ended = Event()
    lock = Lock()

    def compare(key: SeriesKey) -> SweepReport:
        nonlocal unlisted
        if ended.is_set():
            return SweepReport(not_reached=[key])
        found = _sweep_series(layout, key, archive)
        with lock:
            if found.troubles and key in found.archives:  # without it, the ledger failed, not the listing
                unlisted += 1
            elif found.requests:
                unlisted = 0
            if unlisted >= _FAILED_IN_A_ROW:
                ended.set()
        return found

    with ThreadPoolExecutor(settings.download_threads, thread_name_prefix="sweep") as pool:
        for key, found in zip(requested, pool.map(compare, requested), strict=True):
            report.add(found)
            if mark and found.discoveries:
                try:
                    mark_days(layout, key, found.discoveries, settings.lock_wait_seconds, at_once=at_once)
                except MarketDataError as error:
                    report.troubles[key] = str(error)
            if on_progress is not None:
                on_progress(found.archives.get(key, 0))
    return report


def look_for(
    waiting: Mapping[SeriesKey, Iterable[DayRecord]],
    archive: Listing,
    *,
    threads: int = 1,
    seconds: float = inf,
) -> SweepReport:
    """Look in the listing for the archives of days that wait for theirs. This marks nothing.

    No further series starts after one that cannot be listed, because the host is then usually down, or after the time
    limit. ``not_reached`` has the rest.

    Args:
        waiting: Ledger rows of the days, by series, in the order to look for them.
        threads: Number of series to list in parallel.
        seconds: Time after which no further series starts.
    """
    report = SweepReport()
    until = monotonic() + seconds
    ended = Event()

    def look(key: SeriesKey) -> SweepReport:
        if ended.is_set() or monotonic() >= until:
            return SweepReport(not_reached=[key])
        found = _compare_rows(key, waiting[key], archive)
        if found.troubles:
            ended.set()
        return replace(found, discoveries=found.of(ArchiveChange.PUBLISHED))

    with ThreadPoolExecutor(threads, thread_name_prefix="look") as pool:
        for found in pool.map(look, waiting):
            report.add(found)
    return report


def _sweep_series(layout: Layout, key: SeriesKey, archive: Listing) -> SweepReport:
    try:
        ledger = Ledger.read(layout.ledger(key))
        refresh_ledger(ledger, layout, key)  # in memory only: the file may be behind
    except MarketDataError as error:
        return SweepReport(troubles={key: str(error)})
    return _compare_rows(key, ledger.rows.values(), archive)


def _compare_rows(key: SeriesKey, rows: Iterable[DayRecord], archive: Listing) -> SweepReport:
    swept = SweepReport(archives={key: 0})
    now = clock.now()
    in_order = sorted(rows, key=lambda row: row.day)
    try:
        for cadence, of_cadence in (("daily", key.archive_daily), ("monthly", key.archive_monthly)):
            by_archive: dict[str, list[DayRecord]] = {}
            for row in in_order:
                if cadence in _cadences(key, row, now):
                    by_archive.setdefault(of_cadence(row.day), []).append(row)
            listed, requests = find_listed(archive, key.archive_folder(cadence), by_archive)
            swept.requests += requests
            swept.archives[key] += len(by_archive)
            for name, days in by_archive.items():
                _compare(key, name, days, listed, swept)
    except MarketDataError as error:
        swept.troubles[key] = str(error)
    return swept


def _cadences(key: SeriesKey, row: DayRecord, now: datetime) -> tuple[str, ...]:
    """Return the archive's folders in which to look for a day: daily, monthly, both or none."""
    sources = (row.source or "").split("+") if row.outcome == HELD else []
    if Source.ARCHIVE_MONTHLY in sources:
        return ("monthly",)
    if Source.ARCHIVE_DAILY in sources or (row.outcome == FAILED and row.failure in REFUSED):
        return ("daily",)
    if not needs(row, now).awaits_archive:
        return ()
    # A day without a daily archive may be in the monthly one, which appears in the first half of the next month.
    month_over = (row.day.year, row.day.month) != (now.year, now.month)
    return ("daily", "monthly") if month_over and monthly_may_replace(key) else ("daily",)


def _compare(
    key: SeriesKey, name: str, rows: Sequence[DayRecord], listed: Mapping[str, Listed], swept: SweepReport
) -> None:
    file, checksum = listed.get(name), listed.get(f"{name}.CHECKSUM")
    found: dict[ArchiveChange, list[date]] = {kind: [] for kind in ArchiveChange}
    for row in rows:
        kind = _kind_of(row, file, checksum, is_daily=name == key.archive_daily(row.day))
        if kind is not None:
            found[kind].append(row.day)
        swept.without_etag += file is not None and _came_from_archive(row) and _is_same(row, file) is None
    etag = "" if file is None else _identity(file)
    swept.discoveries += [Discovery(kind, key, tuple(days), name, etag) for kind, days in found.items() if days]


def _kind_of(row: DayRecord, file: Listed | None, checksum: Listed | None, *, is_daily: bool) -> ArchiveChange | None:
    """Return the difference between a day and its archive in the listing. None if there is none."""
    if file is None:
        return ArchiveChange.VANISHED if _came_from_archive(row) else None
    etag = _identity(file)
    if _came_from_archive(row):
        same = _is_same(row, file)
        if same is False and (not knows_archive(row, etag) or _has_new_checksum(row, checksum)):
            return ArchiveChange.REPLACED
        if same and row.final and row.failure in REFUSED:  # the refused replacement is gone
            return ArchiveChange.REPLACED
    if _is_published(row, file, checksum) if is_daily else _is_newer(file, row):
        return ArchiveChange.PUBLISHED
    return ArchiveChange.REFUSED if refused_archive(row, etag) else None


def _came_from_archive(row: DayRecord) -> bool:
    return row.outcome == HELD and row.archive_sha256 is not None


def _is_same(row: DayRecord, file: Listed) -> bool | None:
    """Return True if a day's rows came from the listed archive, None if that is unknown."""
    if row.etag and file.etag:
        return row.etag == file.etag
    if row.last_modified and file.last_modified and (ours := _moment(row.last_modified)):
        return ours == _moment(file.last_modified)
    return None


def _moment(text: str) -> datetime | None:
    """Parse a Last-Modified of a header (HTTP date) or a listing (ISO 8601), truncated to seconds as in headers."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None  # an older record may have a malformed date from a host
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).replace(microsecond=0)


def _identity(file: Listed) -> str:
    """Return the version of an archive: its ETag, or its Last-Modified if it has no ETag."""
    return file.etag or file.last_modified


def _is_published(row: DayRecord, file: Listed, checksum: Listed | None) -> bool:
    """Return True if this archive would make a provisional or failed day final."""
    if row.final:
        return False
    if _has_new_checksum(row, checksum):
        return True
    if row.outcome == HELD and row.checksum == ChecksumStatus.MISSING and row.etag == file.etag:
        return checksum is not None and row.failure != "checksum"  # the same archive, whose checksum was missing
    return not knows_archive(row, _identity(file))


def _has_new_checksum(row: DayRecord, checksum: Listed | None) -> bool:
    """Return True if the day's archive failed its checksum or had none, and the listing now has another ``.CHECKSUM``.

    The archive's bytes may be the same.
    """
    if checksum is None or row.failure not in ("checksum", "unproven"):
        return False
    if row.failure == "unproven":
        return True
    if row.checksum_etag and checksum.etag:
        return row.checksum_etag != checksum.etag
    return _is_newer(checksum, row)


def _is_newer(file: Listed, row: DayRecord) -> bool:
    """Return True if a file was published after the last attempt at a day."""
    if row.asked_at is None or not file.last_modified:
        return row.asked_at is None
    published = _moment(file.last_modified)
    return published is not None and clock.naive_utc(published) > row.asked_at


def find_listed(archive: Listing, folder: str, wanted: Iterable[str]) -> tuple[dict[str, Listed], int]:
    """Find archives in the listing with as few requests as possible.

    Each page begins with the next wanted archive, so that stretches without one take no request.

    Args:
        folder: Folder of the archives, ending with a slash.
        wanted: Keys of archives directly in that folder.

    Returns:
        The listed archives and their ``.CHECKSUM`` files, by key, and the number of requests.

    Raises:
        NetworkError: The listing is incomplete, or does not end.
    """
    left = sorted(wanted)
    found: dict[str, Listed] = {}
    after, requests = "", 0
    while left:
        # Continue from the last page if it ended between a zip and its checksum.
        after = max(after, left[0].removesuffix(".zip"))
        page, more = archive.list_page(folder, after)
        requests += 1
        found.update((file.key, file) for file in page)
        if not more or not page:
            break
        if requests >= MOST_PAGES:
            raise NetworkError(
                f"The listing of {folder} has more than {MOST_PAGES} pages. The last one begins at {after}. "
                "Check the network and MARKET_DATA_VISION_LISTING_URL."
            )
        after = page[-1].key
        # A zip at the end of a page also needs the next page, which has its checksum.
        left = [key for key in left if f"{key}.CHECKSUM" > page[-1].key]
    return found, requests


def mark_days(
    layout: Layout,
    key: SeriesKey,
    discoveries: Iterable[Discovery],
    wait_seconds: float,
    *,
    at_once: bool = False,
) -> None:
    """Mark the days of a series in its ledger whose archive is to be fetched, with the archive's version.

    A day that is already marked for this archive, and whose fetch failed, stays in retry backoff.

    Args:
        wait_seconds: How long to wait for another run that writes the series.
        at_once: End the retry backoff.

    Raises:
        SeriesBusyError: another run writes the series and did not finish in time.
        StorageError: the ledger cannot be written.
    """
    with storage.only_writer(layout.lock(key), wait_seconds, str(key)):
        ledger = Ledger.read(layout.ledger(key))
        before = dict(ledger.rows)
        refresh_ledger(ledger, layout, key)
        for found in discoveries:
            for day in found.days if found.kind in _TO_FETCH and found.etag else ():
                row = ledger.get(day)
                # A run may have fetched the day since it was compared.
                if row is None or (row.final and row.etag == found.etag and row.failure is None):
                    continue
                if at_once or not expects_archive(row, found.etag):
                    ledger.put(after(row, day, OtherArchive(found.etag)))
        if ledger.rows != before:
            ledger.write(layout.ledger(key))
