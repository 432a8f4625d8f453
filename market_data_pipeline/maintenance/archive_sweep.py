"""Sweep over the archive's listing: find days whose archive Binance has replaced, published or removed since.

:func:`sweep` compares the listing, by pages, with what ledgers say of the archives that days came from, and marks
the days in the ledger. Fetching them again belongs to ``ingest``, and when to do so to ``model/needs.py``.
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
from market_data_pipeline.model.datasets import MOST_PAGES, monthly_may_stand
from market_data_pipeline.model.day import FAILED, HELD, REFUSED, DayRecord, OtherArchive, after
from market_data_pipeline.model.needs import expects_archive, knows_archive, needs, refused_archive
from market_data_pipeline.model.provenance import ChecksumStatus, Source
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.settings import Settings


class Listed(Protocol):
    """A line of the archive's listing, as ``sources.binance.archive`` gives it."""

    @property
    def key(self) -> str:
        """Path in the bucket."""

    @property
    def etag(self) -> str:
        """Without quotes; empty where the listing has none."""

    @property
    def last_modified(self) -> str:
        """ISO 8601."""


class Listing(Protocol):
    """What is asked of the archive: ``sources.binance.archive.Archive`` is one."""

    def list_page(self, prefix: str, after: str) -> tuple[Sequence[Listed], bool]:
        """Files right below a prefix whose keys come after one, at most a page; and whether there are more."""


# --- the archive's listing ----------------------------------------------------------------------------------------


FAILED_IN_A_ROW = 3
"""Series that could not be listed, one after another, from which on the listing's host is taken to be down."""

_NAMED = 5
"""Series that a text names before it says that there are more."""


class Kind(StrEnum):
    """What the listing says of an archive that the lake does not."""

    REPLACED = "replaced"
    """Another archive is there than the one that the rows came from."""
    PUBLISHED = "published"
    """An archive is there for a day that has none yet: it is provisional, or failed."""
    REFUSED = "refused"
    """An archive is there that was to replace the rows, and was refused: it is fetched again when it, or its
    ``.CHECKSUM``, is another one; the rows stay."""
    VANISHED = "vanished"
    """The archive that the rows came from is there no more; the rows stay."""


TO_BRING = frozenset({Kind.REPLACED, Kind.PUBLISHED})
"""What is to be fetched."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """One archive that is not as the ledger says.

    Attributes:
        kind: In which way.
        key: The series.
        days: The UTC days concerned, in order: one of a daily archive, up to a month of a monthly one.
        archive: Its key in the bucket.
        etag: As listed now; its Last-Modified where the listing has no ETag, empty where it vanished.
    """

    kind: Kind
    key: SeriesKey
    days: tuple[date, ...]
    archive: str
    etag: str = ""


@dataclass
class SweepReport:
    """What a sweep found.

    Attributes:
        archives: Archives that were compared, by series.
        discoveries: Those that are not as the ledgers say, in the order of series and days.
        requests: Pages of the listing that were asked for.
        unproven: Days of held archives of which neither ETag nor Last-Modified is on record, so nothing can be said.
        troubles: Series that could not be compared or marked, with the reason.
        not_reached: Series that were not compared because it ended early, in the order in which they were to be.
    """

    archives: dict[SeriesKey, int] = field(default_factory=dict)
    discoveries: list[Discovery] = field(default_factory=list)
    requests: int = 0
    unproven: int = 0
    troubles: dict[SeriesKey, str] = field(default_factory=dict)
    not_reached: list[SeriesKey] = field(default_factory=list)

    def add(self, other: SweepReport) -> None:
        """Take in what was found of further series."""
        self.archives |= other.archives
        self.discoveries += other.discoveries
        self.requests += other.requests
        self.unproven += other.unproven
        self.troubles |= other.troubles
        self.not_reached += other.not_reached

    def of(self, kind: Kind) -> list[Discovery]:
        """The discoveries of a kind."""
        return [found for found in self.discoveries if found.kind is kind]

    def said_of_not_reached(self) -> str:
        """What to tell people of the series that were not compared, with the first of them; empty where all were."""
        if not self.not_reached:
            return ""
        names = ", ".join(map(str, self.not_reached[:_NAMED]))
        more = ", …" if len(self.not_reached) > _NAMED else ""
        return (
            f"{len(self.not_reached)} series were not compared, since the archive's listing could not be had for those "
            f"before: {names}{more}. Try again later."
        )

    @property
    def to_bring(self) -> dict[SeriesKey, list[date]]:
        """The days that are to be fetched again, by series."""
        wanted: dict[SeriesKey, set[date]] = {}
        for found in self.discoveries:
            if found.kind in TO_BRING:
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
    """Compare the archive's listing with the ledgers of series, and mark the days whose archive is another one now.

    A page of the listing has 500 days, so ten years of a series are eight requests. Days that came from a monthly zip
    are compared with that one. Days that wait for their archive, and days that failed for what was in it, are looked
    for as well.

    No further series is begun after :data:`FAILED_IN_A_ROW` that could not be listed, since the host is down for the
    others as well, and each would wait through all retries; the report has those that were not reached.

    Args:
        settings: Where the lake is, and how many series are asked for at the same time.
        keys: The series; derived ones, which have no archive, are passed over.
        archive: The archive's listing.
        mark: Whether to write what was found into the ledgers.
        at_once: Whether days are marked anew that rest after an attempt failed, since somebody wants them now.
        on_progress: Told after each series how many archives were compared.
    """
    layout = Layout(settings.root)
    report = SweepReport()
    asked = [key for key in keys if key.data_type is not DataType.TRADE_PROFILE]
    unlisted = 0
    ended = Event()
    lock = Lock()

    def compare(key: SeriesKey) -> SweepReport:
        nonlocal unlisted
        if ended.is_set():
            return SweepReport(not_reached=[key])
        found = _sweep_series(layout, key, archive)
        with lock:
            if found.troubles and key in found.archives:  # one without was not looked for: its ledger cannot be read
                unlisted += 1
            elif found.requests:
                unlisted = 0
            if unlisted >= FAILED_IN_A_ROW:
                ended.set()
        return found

    with ThreadPoolExecutor(settings.download_threads, thread_name_prefix="sweep") as pool:
        for key, found in zip(asked, pool.map(compare, asked), strict=True):
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
    """Look in the listing for the archives of days that wait for theirs; nothing is marked.

    No further series is begun after one that could not be listed, since its host is mostly down for the others as well,
    nor when the time is up: the report has those that were not reached.

    Args:
        waiting: Rows of the days, by series, in the order in which they are looked for; see
            ``quality.repair.waits_for_archive``.
        archive: The archive's listing.
        threads: How many series are asked for at the same time.
        seconds: How long to go on with further series.
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
        return replace(found, discoveries=found.of(Kind.PUBLISHED))

    with ThreadPoolExecutor(threads, thread_name_prefix="look") as pool:
        for found in pool.map(look, waiting):
            report.add(found)
    return report


def _sweep_series(layout: Layout, key: SeriesKey, archive: Listing) -> SweepReport:
    try:
        ledger = Ledger.read(layout.ledger(key))
        refresh_ledger(ledger, layout, key)  # in memory: it may be behind
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
            pages = Pages(archive)
            listed = pages.find(key.archive_folder(cadence), by_archive)
            swept.requests += pages.requests
            swept.archives[key] += len(by_archive)
            for name, days in by_archive.items():
                _compare(key, name, days, listed, swept)
    except MarketDataError as error:
        swept.troubles[key] = str(error)
    return swept


def _cadences(key: SeriesKey, row: DayRecord, now: datetime) -> tuple[str, ...]:
    """In which of the archive's folders to look for a day: daily, monthly, both or none."""
    sources = (row.source or "").split("+") if row.outcome == HELD else []
    if Source.ARCHIVE_MONTHLY in sources:
        return ("monthly",)
    if Source.ARCHIVE_DAILY in sources or (row.outcome == FAILED and row.failure in REFUSED):
        return ("daily",)
    if not needs(row, now).awaits_archive:
        return ()
    # A day whose own archive stays away may be in that of its month, which comes in the first half of the next.
    month_over = (row.day.year, row.day.month) != (now.year, now.month)
    return ("daily", "monthly") if month_over and monthly_may_stand(key) else ("daily",)


def _compare(
    key: SeriesKey, name: str, rows: Sequence[DayRecord], listed: Mapping[str, Listed], swept: SweepReport
) -> None:
    file = listed.get(name)
    came_from_it = [row for row in rows if row.outcome == HELD and row.archive_sha256 is not None]
    if file is None:
        if came_from_it:
            swept.discoveries.append(Discovery(Kind.VANISHED, key, _days(came_from_it), name))
        return
    etag, checksum = identity(file), listed.get(f"{name}.CHECKSUM")
    replaced = []
    for row in came_from_it:
        same = _is_same(row, file)
        swept.unproven += same is None
        if (same is False and (not knows_archive(row, etag) or _is_proven_anew(row, checksum))) or _is_back(row, same):
            replaced.append(row)
    published = [
        row
        for row in rows
        if row not in replaced
        and (is_published(row, file, checksum) if name == key.archive_daily(row.day) else _is_newer(file, row))
    ]
    refused = [row for row in rows if row not in replaced and row not in published and refused_archive(row, etag)]
    for kind, concerned in ((Kind.REPLACED, replaced), (Kind.PUBLISHED, published), (Kind.REFUSED, refused)):
        if concerned:
            swept.discoveries.append(Discovery(kind, key, _days(concerned), name, etag))


def _days(rows: Iterable[DayRecord]) -> tuple[date, ...]:
    return tuple(row.day for row in rows)


def _is_same(row: DayRecord, file: Listed) -> bool | None:
    """Whether a listed archive is the one that a day's rows came from; None where that cannot be told."""
    if row.etag and file.etag:
        return row.etag == file.etag
    if row.last_modified and file.last_modified and (ours := _moment(row.last_modified)):
        return ours == _moment(file.last_modified)
    return None


def _moment(text: str) -> datetime | None:
    """A Last-Modified, as headers (HTTP date) or listings (ISO 8601) write it, to the second that headers have."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None  # an older record may hold what a host once sent as a date
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).replace(microsecond=0)


def identity(file: Listed) -> str:
    """What tells an archive from the one that replaces it: its ETag, or its Last-Modified where there is none."""
    return file.etag or file.last_modified


def is_published(row: DayRecord, file: Listed, checksum: Listed | None) -> bool:
    """Whether a listed archive brings a day further that is not final.

    Args:
        row: The day's row in the ledger.
        file: The day's archive in the listing.
        checksum: Its ``.CHECKSUM``, where that is listed.
    """
    if row.final:
        return False
    if _is_proven_anew(row, checksum):
        return True
    if row.outcome == HELD and row.checksum == ChecksumStatus.MISSING and row.etag == file.etag:
        return checksum is not None and row.failure != "checksum"  # the same archive, which only lacked its proof
    return not knows_archive(row, identity(file))


def _is_proven_anew(row: DayRecord, checksum: Listed | None) -> bool:
    """Whether the archive of a day was refused for want of proof, and another ``.CHECKSUM`` is there than was then.

    The bytes may be the same: what they are to match is another.
    """
    if checksum is None or row.failure not in ("checksum", "unproven"):
        return False
    if row.failure == "unproven":
        return True
    if row.checksum_etag and checksum.etag:
        return row.checksum_etag != checksum.etag
    return _is_newer(checksum, row)


def _is_back(row: DayRecord, same: bool | None) -> bool:
    """Whether an archive that was refused is gone again, and the one that a day's rows came from is back."""
    return same is True and row.final and row.failure in REFUSED


def _is_newer(file: Listed, row: DayRecord) -> bool:
    """Whether a file was published after a day was asked for."""
    if row.asked_at is None or not file.last_modified:
        return row.asked_at is None
    published = _moment(file.last_modified)
    return published is not None and clock.naive_utc(published) > row.asked_at


@dataclass
class Pages:
    """Looks for archives in the listing with as few requests as there can be.

    Attributes:
        archive: The archive's listing.
        requests: Pages asked for so far.
    """

    archive: Listing
    requests: int = 0

    def find(self, folder: str, wanted: Iterable[str]) -> dict[str, Listed]:
        """The wanted archives and their ``.CHECKSUM`` files, as far as they are listed, by key.

        Each page begins with the next archive that is wanted, so stretches in which none is cost nothing.

        Args:
            folder: Of the archives, ending with a slash.
            wanted: Keys of archives right in that folder.
        """
        left = sorted(wanted)
        found: dict[str, Listed] = {}
        after = ""
        while left:
            # On from the last page, if that ended between a zip and its checksum.
            after = max(after, left[0].removesuffix(".zip"))
            page, more = self.archive.list_page(folder, after)
            self.requests += 1
            found.update((file.key, file) for file in page)
            if not more or not page:
                break
            if self.requests >= MOST_PAGES:
                raise NetworkError(
                    f"The listing of {folder} has more than {MOST_PAGES} pages, the last of them from {after} on. "
                    "Check the network and MARKET_DATA_VISION_LISTING_URL."
                )
            after = page[-1].key
            # A zip at the end of a page is not done with before the page that has its checksum.
            left = [key for key in left if f"{key}.CHECKSUM" > page[-1].key]
        return found


def mark_days(
    layout: Layout,
    key: SeriesKey,
    discoveries: Iterable[Discovery],
    wait_seconds: float,
    *,
    at_once: bool = False,
) -> None:
    """Note in a series' ledger which archives are there in place of those that its days came from.

    A day that is marked for that archive already, and which a passing failure kept from having it, keeps its pauses.

    Args:
        layout: Where the lake lies.
        key: The series.
        discoveries: What a sweep found of it.
        wait_seconds: How long to wait for another run that writes the series.
        at_once: Whether pauses end.

    Raises:
        SeriesBusyError: another run writes the series and did not finish in time.
        StorageError: the ledger cannot be written.
    """
    with storage.only_writer(layout.lock(key), wait_seconds, str(key)):
        ledger = Ledger.read(layout.ledger(key))
        before = dict(ledger.rows)
        refresh_ledger(ledger, layout, key)
        for found in discoveries:
            for day in found.days if found.kind in TO_BRING and found.etag else ():
                row = ledger.get(day)
                # A run may have fetched the day since it was compared.
                if row is None or (row.final and row.etag == found.etag and row.failure is None):
                    continue
                if at_once or not expects_archive(row, found.etag):
                    ledger.put(after(row, day, OtherArchive(found.etag)))
        if ledger.rows != before:
            ledger.write(layout.ledger(key))
