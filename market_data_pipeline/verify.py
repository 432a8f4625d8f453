"""Whether the lake is still what Binance publishes, and still what was written: two proofs, neither with a download.

:func:`sweep` compares the archive's listing, by pages, with what ledgers say of the archives that the days came from:
Binance replaces archives after publication, mostly unannounced. Days whose archive is another one now are marked in the
ledger, so that whoever asks for them next fetches them again. :func:`prove_local` reads every file of the lake and
compares its bytes with the hash on record: nothing else shows a file that lost bits at the same size and time.

What belongs here: finding and marking. What does not: fetching again (``ingest``), and when (``quality.repair``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from math import inf
from pathlib import Path
from threading import Event, Lock
from time import monotonic, perf_counter
from typing import Protocol

from market_data_pipeline import clock
from market_data_pipeline.day import FAILED, HELD, REFUSED, DayRecord, Lost, OtherArchive, after
from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.lake import files
from market_data_pipeline.lake.files import DamagedFileError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, is_changed, reconcile, recorded
from market_data_pipeline.lake.on_disk import DayFile, days_between, days_on_disk, read_record
from market_data_pipeline.lake.provenance import ChecksumStatus, Source
from market_data_pipeline.lake.proving import CHANGED, Proof, Recorded, prove_days
from market_data_pipeline.needs import expects_archive, knows_archive, needs, refused_archive
from market_data_pipeline.processes import Processes, cpus
from market_data_pipeline.series import DataType, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.errors import NetworkError
from market_data_pipeline.sources.listing_page import MOST_PAGES
from market_data_pipeline.specs import monthly_may_stand

OnProgress = Callable[[int], None]
"""Told how many more days are done."""


class Listed(Protocol):
    """A line of the archive's listing, as ``sources.vision`` gives it."""

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
    """What is asked of the archive: ``sources.vision.Archive`` is one."""

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
        reconcile(ledger, layout, key)  # in memory: it may be behind
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
    with files.only_writer(layout.lock(key), wait_seconds, str(key)):
        ledger = Ledger.read(layout.ledger(key))
        before = dict(ledger.rows)
        reconcile(ledger, layout, key)
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


# --- the files of the lake ----------------------------------------------------------------------------------------


@dataclass
class LocalReport:
    """What reading the lake found.

    Attributes:
        files: Files that were read, by series.
        rows: Rows in them.
        bytes: Their size.
        seconds: How long it took.
        faults: Days whose file is not what its footer says, or is gone, with the reason.
        troubles: Series whose ledger could not be told, with the reason.
    """

    files: dict[SeriesKey, int] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    faults: dict[SeriesKey, dict[date, str]] = field(default_factory=dict)
    troubles: dict[SeriesKey, str] = field(default_factory=dict)

    @property
    def to_bring(self) -> dict[SeriesKey, list[date]]:
        """The days whose file is to be replaced, by series."""
        return {key: sorted(days) for key, days in self.faults.items()}

    @property
    def all_well(self) -> bool:
        """Whether every file is what its footer says."""
        return not self.faults and not self.troubles


_FILES_AT_ONCE = 32
_BYTES_AT_ONCE = 4 << 20
"""What a process is handed at a time: little enough that none waits long for another at the end."""

_WORTH_BYTES = 32 << 20
"""Bytes that one process reads by itself, in about the time that another takes to start."""


def prove_local(
    settings: Settings,
    keys: Iterable[SeriesKey],
    *,
    mark: bool = True,
    processes: int = 1,
    on_progress: OnProgress | None = None,
) -> LocalReport:
    """Read every file of series and compare it with the SHA-256 on record of all its bytes.

    A file without one on record is compared with its footer: schema, rows, order of keys, statistics, sha256 of the
    content. If all is well, the SHA-256 of its bytes is put on record.

    A file that is not as it was written is noted as failed in the ledger, so that the next run that is asked for the
    day replaces it.

    Args:
        settings: Where the lake is, and how long to wait for a series that is being written.
        keys: The series, derived ones too.
        mark: Whether to write what was found into the ledgers.
        processes: How many processes may read, this one counted; 0 takes one for each CPU. Small files (1m klines) take
            Python's lock half of the time, so threads would wait for one another. Others are started where there is
            much to read.
        on_progress: Told how many more files were read.
    """
    layout = Layout(settings.root)
    report = LocalReport()
    began = perf_counter()
    wanted: dict[SeriesKey, dict[date, int]] = {}
    known: dict[SeriesKey, dict[date, Recorded]] = {}
    for key in keys:
        try:
            known[key] = recorded(layout.ledger(key))
            wanted[key] = _days_to_prove(layout, key, known[key])
        except MarketDataError as error:
            report.troubles[key] = str(error)
    faulty: dict[SeriesKey, dict[date, Proof]] = {key: {} for key in wanted}
    new: dict[SeriesKey, list[Proof]] = {key: [] for key in wanted}
    for key, proofs in _proofs(layout, wanted, known, processes or cpus()):
        report.files[key] = report.files.get(key, 0) + len(proofs)
        report.rows += sum(proof.rows for proof in proofs)
        report.bytes += sum(proof.stat.bytes for proof in proofs if proof.stat)
        faulty[key].update((proof.day, proof) for proof in proofs if proof.fault)
        new[key] += [proof for proof in proofs if not proof.fault and not proof.as_written]
        if on_progress is not None:
            on_progress(len(proofs))
    for key, faults in faulty.items():
        faults |= _changed(layout, key, new[key], known[key])
        if mark:
            _put_on_record(layout, key, [proof for proof in new[key] if proof.day not in faults])
        if faults:
            report.faults[key] = {day: proof.fault or "" for day, proof in faults.items()}
            if mark:
                try:
                    _mark_damaged(layout, key, faults.values(), settings.lock_wait_seconds)
                except MarketDataError as error:
                    report.troubles[key] = str(error)
    report.seconds = perf_counter() - began
    return report


def _proofs(
    layout: Layout,
    wanted: Mapping[SeriesKey, Mapping[date, int]],
    known: Mapping[SeriesKey, Mapping[date, Recorded]],
    processes: int,
) -> Iterator[tuple[SeriesKey, list[Proof]]]:
    """Read all files, in bundles of one series, by so many processes."""
    bundles = [(key, days) for key, sizes in wanted.items() for days in _bundles(sizes)]
    beside = Processes(processes, ahead=prove_days.__module__, worth_bytes=_WORTH_BYTES)
    with closing(beside), ThreadPoolExecutor(processes, thread_name_prefix="prove") as readers:
        beside.expect(sum(sum(sizes.values()) for sizes in wanted.values()))
        tasks = [
            readers.submit(beside.compute, prove_days, layout, key, days, _known_of(days, known[key]))
            for key, days in bundles
        ]
        try:
            for (key, _), task in zip(bundles, tasks, strict=True):
                yield key, task.result()
        finally:
            for task in tasks:
                task.cancel()


def _days_to_prove(layout: Layout, key: SeriesKey, known: Iterable[date]) -> dict[date, int]:
    """The days that have a file, and those that should have one by the ledger, with its size in bytes; in order."""
    sizes = dict.fromkeys(known, 0)
    sizes |= {day: held.stat.bytes for day, held in days_on_disk(layout, key).items()}
    return dict(sorted(sizes.items()))


def _bundles(sizes: Mapping[date, int]) -> list[list[date]]:
    bundles: list[list[date]] = []
    bytes_in_last = 0
    for day, size in sizes.items():
        if not bundles or len(bundles[-1]) == _FILES_AT_ONCE or bytes_in_last + size > _BYTES_AT_ONCE:
            bundles.append([])
            bytes_in_last = 0
        bundles[-1].append(day)
        bytes_in_last += size
    return bundles


def _mark_damaged(layout: Layout, key: SeriesKey, proofs: Iterable[Proof], wait_seconds: float) -> None:
    """Note files that are not what they say as failed days.

    Raises:
        SeriesBusyError: another run writes the series and did not finish in time.
        StorageError: the ledger cannot be written.
    """
    with files.only_writer(layout.lock(key), wait_seconds, str(key)):
        ledger = Ledger.read(layout.ledger(key))
        reconcile(ledger, layout, key)
        for proof in proofs:
            # A run may have replaced the file since it was read.
            held = days_between(layout, key, proof.day, proof.day)
            if (held[0].stat if held else None) == proof.stat:
                lost = Lost(proof.fault or "", damaged=proof.stat is not None)
                ledger.put(after(ledger.get(proof.day), proof.day, lost))
        ledger.write(layout.ledger(key))


def _known_of(days: Sequence[date], known: Mapping[date, Recorded]) -> dict[date, Recorded]:
    """What is on record of days, and of the rest of their months."""
    months = {day.replace(day=1) for day in days}
    return {day: known[day] for month in months for day in clock.days_of_month(month) if day in known}


def _changed(
    layout: Layout, key: SeriesKey, proofs: Sequence[Proof], known: Mapping[date, Recorded]
) -> dict[date, Proof]:
    """Of files that hold what their footer says, those whose bytes are not the ones on record although they should be.

    A closed month is written whole, so that its file is another version if any of its days is.
    """
    asked = [proof for proof in proofs if (of := known.get(proof.day)) and (of.file_sha256 or of.month_sha256)]
    if not asked:
        return {}
    ledger = Ledger.read(layout.ledger(key))
    found: dict[Path, dict[date, Proof]] = {}
    newer: set[Path] = set()
    for proof in asked:
        row, held = ledger.get(proof.day), _file_of(layout, key, proof)
        if row is None or held is None:
            continue
        try:
            if is_changed(held, row, read_record(held)):
                fault = CHANGED.format(path=held.path)
                found.setdefault(held.path, {})[proof.day] = replace(proof, fault=fault)
            elif held.of_month:
                newer.add(held.path)
        except DamagedFileError:
            continue  # it was replaced since it was read
    return {day: proof for path, days in found.items() if path not in newer for day, proof in days.items()}


def _file_of(layout: Layout, key: SeriesKey, proof: Proof) -> DayFile | None:
    """The file of a day, if it is still the one that was proven."""
    return next((held for held in days_between(layout, key, proof.day, proof.day) if held.stat == proof.stat), None)


def _put_on_record(layout: Layout, key: SeriesKey, proofs: Sequence[Proof]) -> None:
    """Note the SHA-256 of files that were proven without one. A series that is being written is left for next time."""
    if not proofs:
        return
    with suppress(MarketDataError), files.only_writer(layout.lock(key), 0, str(key)):
        ledger = Ledger.read(layout.ledger(key))
        reconcile(ledger, layout, key)
        for proof in proofs:
            row, held = ledger.get(proof.day), _file_of(layout, key, proof)
            if row is not None and row.outcome == HELD and held is not None:
                own, month = (None, proof.sha256) if held.of_month else (proof.sha256, None)
                ledger.put(replace(row, file_sha256=own, month_sha256=month))
        ledger.write(layout.ledger(key))
