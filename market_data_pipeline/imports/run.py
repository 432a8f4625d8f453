"""Import the files of an older cache into the lake, series by series.

A day that the lake has is compared, and never replaced by a worse one. Finding and reading files do not belong here
(``old_files.py``, ``old_rows.py``), nor does undoing an import (``undo.py``).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode

from market_data_pipeline import clock
from market_data_pipeline.checks.gaps import seems_cut
from market_data_pipeline.checks.ordering import in_order, ints
from market_data_pipeline.errors import (
    ConflictError,
    DamagedFileError,
    MalformedError,
    NetworkError,
    UsageError,
)
from market_data_pipeline.imports.comparison import OldComparison, compare_rows
from market_data_pipeline.imports.journal import Journal, JournalDay
from market_data_pipeline.imports.layouts import OldFile, OldLayout
from market_data_pipeline.imports.old_files import LeftOut, Selected, old_files
from market_data_pipeline.imports.old_rows import FileVersion, OldDay, opened_rows
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.ingest.encode import Encoded, describe, encode, read_zip_days, replaces_daily_zip
from market_data_pipeline.ingest.store import DayStore
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, refresh_ledger
from market_data_pipeline.lake.reader import read_day
from market_data_pipeline.lake.regular_files import reading
from market_data_pipeline.model.datasets import closes_months, spec_of
from market_data_pipeline.model.day import HELD, DayRecord
from market_data_pipeline.model.findings import Severity
from market_data_pipeline.model.provenance import ChecksumStatus, Part, Source
from market_data_pipeline.model.series import ListingSpans, Market, SeriesKey
from market_data_pipeline.settings import PREFIX, Settings
from market_data_pipeline.sources.binance.archive import ArchiveClient, ArchiveFile, ListedFile, stated_sha256

_PENDING_BYTES = 64 << 20
"""Bytes of encoded days to collect before they are stored together."""

_CHECKSUM_BYTES = 4 << 10

_SAMPLED_DAYS = 3
"""Final days of the lake with which a file is compared before any of its days is stored."""

_LEAST_ROWS = 10
"""Rows in common from which on a disagreement shows another series. A difference of a few rows may be a correction."""

_T = TypeVar("_T")

OldListings = Mapping[tuple[Market, str], ListingSpans]


class FileState(StrEnum):
    """Result of a file."""

    IMPORTED = "imported"
    """At least one of its days was stored, or would be in a dry run."""
    KNOWN = "known"
    """The lake has all of its days."""
    COMPARED = "compared"
    """It has no quote volume and counts, so it was compared with the lake, and not loaded."""
    REFUSED = "refused"
    """None of its days can be stored."""


@dataclass(slots=True)
class FileReport:
    """Result of a file.

    Attributes:
        path: Path below the cache's folder.
        series: Name of its series. Empty if it is not known.
        rows: Stored rows, or compared ones.
        final: Stored days that are final.
        provisional: Stored days that are provisional.
        known: Days that the lake had.
        compared: Its rows, compared with those of the lake.
        reason: Reason of a refusal.
        notes: Further remarks.
    """

    path: str
    layout: OldLayout
    series: str = ""
    state: FileState = FileState.REFUSED
    rows: int = 0
    final: int = 0
    provisional: int = 0
    known: int = 0
    compared: OldComparison = field(default_factory=OldComparison)
    reason: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ImportReport:
    """Result of an import.

    Attributes:
        identity: Name of the import, for undoing it. None if it stored nothing.
        files: Results of files, in the order of their paths.
        left_out: Paths that were not read.
        at: Start of the import (UTC).
    """

    folder: str
    at: datetime
    dry_run: bool
    identity: str | None = None
    files: list[FileReport] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def as_object(self) -> dict[str, object]:
        """Return the report as an object of JSON."""
        return {**asdict(self), "at": self.at.isoformat()}


def import_folder(
    folder: Path,
    selected: Selected,
    *,
    layout: Layout,
    settings: Settings,
    listings: OldListings,
    dry_run: bool = False,
    on_file: Callable[[FileReport], None] = lambda _: None,
) -> ImportReport:
    """Import the files of an older cache.

    Args:
        folder: Folder of the cache. Nothing in it is changed.
        listings: Listing spans of symbols, as far as known. Days outside are refused.
        dry_run: Read and check all files, but store nothing and send no request.
        on_file: Called with the result of each file.

    Raises:
        UsageError: The folder does not exist, or it is the data folder.
        SeriesBusyError: Another run writes a series and did not finish in time.
        StorageError: The disk refuses. The journal has the days that were stored before.
    """
    root = folder.expanduser().absolute()
    lake = layout.local.resolve()
    if root.is_dir() and (root.resolve() == lake or root.resolve().is_relative_to(lake / "lake")):
        raise UsageError(f"{folder} is the data folder itself. Name the folder of an older cache.")
    files, left_out = old_files(root, selected, layout.local)
    run = _Import(root.resolve(), selected, layout, settings, dry_run)
    report = run.report
    report.left_out = left_out
    by_series: dict[SeriesKey, list[OldFile]] = {}
    for file in files:
        try:
            by_series.setdefault(file.key(selected.market, selected.symbol), []).append(file)
        except UsageError as error:
            report.files.append(FileReport(file.path, file.layout, reason=str(error)))
            on_file(report.files[-1])
    try:
        for key, of_series in sorted(by_series.items()):
            listing = listings.get((key.market, key.symbol), ListingSpans())
            for result in run.series(key, listing, of_series):
                report.files.append(result)
                on_file(result)
        report.files.sort(key=lambda one: one.path)
    finally:
        run.close()
    return report


class _Import:
    def __init__(self, root: Path, selected: Selected, layout: Layout, settings: Settings, dry_run: bool) -> None:
        self.root, self.selected, self.layout, self.settings, self.dry_run = root, selected, layout, settings, dry_run
        self.report = ImportReport(str(root), clock.now(), dry_run)
        self.archive = _Archive(settings)
        self._journal: Journal | None = None

    @property
    def journal(self) -> Journal:
        """Return the journal. It begins with the first stored day, so that an import without days leaves no trace."""
        if self._journal is None:
            self._journal = Journal.begun(self.layout, self.report.at)
            self.report.identity = self._journal.identity
            self._journal.write_report(self.report.as_object())
        return self._journal

    def identity(self) -> str:
        """Return the name of the import, for provenance."""
        return "dry-run" if self.dry_run else self.journal.identity

    def series(self, key: SeriesKey, listing: ListingSpans, files: list[OldFile]) -> Iterator[FileReport]:
        """Import the files of one series."""
        lock = self.layout.lock(key)
        wait = self.settings.lock_wait_seconds
        with nullcontext() if self.dry_run else storage.only_writer(lock, wait, str(key)):
            ledger = Ledger.read(self.layout.ledger(key))
            changed = bool(refresh_ledger(ledger, self.layout, key))
            series = _Series(self, key, listing, ledger)
            try:
                # Zips may become final, so their days come first.
                for file in sorted(files, key=lambda one: one.layout is not OldLayout.ARCHIVE):
                    yield series.file(file)
            finally:
                if (changed or series.stored) and not self.dry_run:
                    ledger.write(self.layout.ledger(key))

    def close(self) -> None:
        """Write the report, and close all connections."""
        self.archive.close()
        if self._journal is not None:
            self._journal.write_report({**self.report.as_object(), "ended_at": clock.now().isoformat()})


class _Series:
    """Import of the files of one series, by its one writer."""

    def __init__(self, run: _Import, key: SeriesKey, listing: ListingSpans, ledger: Ledger) -> None:
        self.run, self.key, self.listing, self.ledger = run, key, listing, ledger
        self.stored = 0
        self._store = DayStore(key, run.layout, listing)
        self._pending: dict[date, Encoded] = {}
        self._taken: dict[date, Encoded | None] = {}  # days of a dry run

    def file(self, file: OldFile) -> FileReport:
        """Import one file, and return its result. A file at fault is refused; it does not end the import."""
        report = FileReport(file.path, file.layout, str(self.key))
        try:
            if file.layout is not OldLayout.ARCHIVE or not self._verified(file, report):
                self._rows(file, report)
            self._flush()
        except (MalformedError, ConflictError) as error:
            report.reason = str(error)
            for encoded in self._pending.values():  # days of a big file that were stored before its fault still count
                report.final -= encoded.record.final
                report.provisional -= not encoded.record.final
                report.rows -= encoded.record.rows
            self._pending.clear()
        if report.reason:
            report.state = FileState.REFUSED
        elif report.final or report.provisional:
            report.state = FileState.IMPORTED
        elif report.state is not FileState.COMPARED:
            report.state = FileState.KNOWN if report.known else FileState.REFUSED
            report.reason = "" if report.known else next(iter(report.notes), "It has no day that can be stored.")
        return report

    # --- zips of the archive --------------------------------------------------------------------------------------

    def _verified(self, file: OldFile, report: FileReport) -> bool:
        """Store the days of a zip as final if its checksum is the published one. Return False if none is known."""
        first, last = file.first or date.min, file.last or date.min
        data = self._read_zip(file)
        sha256 = hashlib.sha256(data).hexdigest()
        rows = [self.ledger.get(day) for day in clock.days_between(first, last)]
        if all(row is not None and row.is_stored_final and row.archive_sha256 == sha256 for row in rows):
            report.known = len(rows)
            return True
        if self.run.dry_run:
            report.notes.append("Its checksum would be compared with the archive's. Its days are final if they match.")
            return False
        daily = first == last
        path = self.key.archive_daily(first) if daily else self.key.archive_monthly(first)
        try:
            published = self.run.archive.published(path)
            listed = self.run.archive.listed(self.key, path, "daily" if daily else "monthly") if published else None
        except NetworkError as error:
            report.notes.append(f"Its days are provisional: the archive did not answer ({error})")
            return False
        if published is not None and published != sha256:
            raise MalformedError(
                f"The archive publishes another checksum, {published}, than that of its bytes, {sha256}: it was "
                "replaced since, or the file is damaged. Fetch its days instead."
            )
        if published is None or listed is None:
            report.notes.append("Its days are provisional: the archive does not publish its checksum.")
            return False
        of_archive = ArchiveFile(
            url=f"{self.run.settings.vision_url.rstrip('/')}/{path}",
            data=data,
            sha256=sha256,
            etag=listed.etag or None,
            last_modified=None,
            checksum=ChecksumStatus.VERIFIED,
            fetched_at=clock.now(),
        )
        for day, found in read_zip_days(self.key, of_archive, first, last, self.listing).items():
            if isinstance(found, DayRows):
                if not daily and spec_of(self.key).daily and not replaces_daily_zip(self.key, found):
                    report.notes.append(f"{day} is incomplete in the monthly zip, so it is left to the daily one.")
                    continue
                found = encode(self.key, found, describe(self.key, day, found, self.listing))
            self._take(day, found, report)
        return True

    def _read_zip(self, file: OldFile) -> bytes:
        """Return the bytes of a zip that matches its own ``.CHECKSUM``, if there is one."""
        path = self.run.root / file.path
        most = self.run.settings.max_zip_mb << 20
        try:
            with reading(path) as stream:
                data = stream.read(most + 1)
        except OSError as error:
            raise MalformedError(f"It cannot be read: {error.strerror}.") from error
        if len(data) > most:
            raise MalformedError(f"It has more than {most >> 20} MB, the limit of {PREFIX}MAX_ZIP_MB.")
        own = path.with_name(f"{path.name}.CHECKSUM")
        with suppress(OSError):
            if not own.is_symlink():
                with reading(own) as stream:
                    stated = stated_sha256(stream.read(_CHECKSUM_BYTES))
                if stated is None:
                    raise MalformedError("Its .CHECKSUM in the same folder has no SHA-256.")
                if stated != hashlib.sha256(data).hexdigest():
                    raise MalformedError(
                        "It does not match its .CHECKSUM in the same folder: one of the two is damaged."
                    )
        return data

    # --- rows of other files --------------------------------------------------------------------------------------

    def _rows(self, file: OldFile, report: FileReport) -> None:
        """Store the days of a file as provisional, or compare candles without quote volume and counts."""
        self._check_sample(file)
        with opened_rows(self.run.root, file, self.key) as rows:
            for one in rows:
                if not rows.complete:
                    report.state = FileState.COMPARED
                    self._compare(one, report)
                elif fault := self._fault(one):
                    report.notes.append(f"{one.day} is not stored: {fault}")
                else:
                    self._provisional(one, file, rows.version, report)
            report.notes[:0] = rows.notes
        if report.state is FileState.COMPARED:
            report.rows = report.compared.rows
            report.notes.append("It has no quote volume and counts, so it is compared with the lake, and not loaded.")

    def _check_sample(self, file: OldFile) -> None:
        """Refuse a file that disagrees with most rows of final days of the lake, before any of its days is stored."""
        final = {
            day
            for day, row in self.ledger.rows.items()
            if row.is_stored_final and row.rows and (not file.first or not file.last or file.first <= day <= file.last)
        }
        if not final:
            return
        found, days = OldComparison(), 0
        with opened_rows(self.run.root, file, self.key) as rows:
            for one in rows:
                if one.day in final and (compared := self._compared(one)) is not None:
                    found, days = found + compared, days + 1
                    if days == _SAMPLED_DAYS:
                        break
        most = max(found.rows, _LEAST_ROWS)
        if 2 * found.different > most or (not found.rows and found.only_old >= _LEAST_ROWS):
            raise MalformedError(
                f"{found.different:,} of {found.rows:,} rows differ from the lake on the same days, and "
                f"{found.only_old:,} are not in it. It is of another symbol, market or time zone"
                + (f": {found.example}." if found.example else ".")
            )

    def _compare(self, one: OldDay, report: FileReport) -> None:
        compared = self._compared(one)
        if compared is None:
            report.notes.append(f"{one.day} is not in the lake, so it is not compared.")
        else:
            report.known += 1
            report.compared += compared

    def _compared(self, one: OldDay) -> OldComparison | None:
        """Return the comparison of a day with the lake. None if the lake does not have it."""
        row = self.ledger.get(one.day)
        if row is None or row.outcome != HELD:
            return None
        try:
            lake = read_day(self.run.layout, self.key, one.day)
        except DamagedFileError:
            return None
        return compare_rows(one.table, lake, spec_of(self.key))

    def _fault(self, one: OldDay) -> str:
        """Return the reason not to store a day. Empty if there is none."""
        if one.day >= clock.today():
            return "the day is not over."
        if not self.listing.covers(one.day):
            return f"{self.key.symbol} was not listed on that day."
        if self.key.interval is None and spec_of(self.key).gapless:
            times = ints(one.table, spec_of(self.key).time)
            if seems_cut(times, one.day):
                return f"its trades end at {clock.naive_from_us(int(times.max())):%H:%M:%S}, long before midnight."
        return ""

    def _provisional(self, one: OldDay, file: OldFile, version: FileVersion, report: FileReport) -> None:
        table, findings, conflict = in_order(one.table, spec_of(self.key))
        if conflict is not None:
            report.notes.append(
                f"{one.day} is not stored: two different rows have one key: {conflict.rows[0]} and {conflict.rows[1]}."
            )
            return
        part = Part(source=Source.IMPORT, url="", first_row=0, rows=table.num_rows, fetched_at=version.mtime)
        rows = DayRows(table, (part,), False, one.known_until_us, tuple(findings))
        record = describe(self.key, one.day, self._store.reached(one.day, rows), self.listing)
        errors = [f.message for f in record.findings if f.check == "integrity" and f.severity is Severity.ERROR]
        if errors:
            report.notes.append(f"{one.day} is not stored: {' '.join(errors)}")
            return
        row = self.ledger.get(one.day)
        if row is not None and row.outcome == HELD and not self._is_better(row, record.rows, final=False):
            report.known += 1
            if row.content_sha256 != record.content_sha256 and (compared := self._compared(one)) is not None:
                report.compared += compared
            return
        named = part.model_copy(update={"url": self._address(file, version)})
        self._take(one.day, encode(self.key, rows, record.model_copy(update={"parts": (named,)})), report)

    def _address(self, file: OldFile, version: FileVersion) -> str:
        facts = {"sha256": version.sha256, "mtime": f"{version.mtime:%Y-%m-%dT%H:%M:%SZ}", "layout": file.layout}
        return f"import:{self.run.identity()}/{quote(file.path)}?{urlencode(facts)}"

    def _is_better(self, row: DayRecord, rows: int, *, final: bool) -> bool:
        """Return True if rows may replace a stored day: an unproven one by the archive's, or an import by a longer one.

        The archive's rows of final days are never replaced.
        """
        if row.final:
            return False
        return final or (row.source == Source.IMPORT and rows > row.rows)

    # --- storing --------------------------------------------------------------------------------------------------

    def _take(self, day: date, encoded: Encoded, report: FileReport) -> None:
        """Store a day with the next ones, unless the lake has it."""
        record = encoded.record
        row = self.ledger.get(day)
        earlier = self._taken.get(day) or self._pending.get(day)
        known = row is not None and row.outcome == HELD and not self._is_better(row, record.rows, final=record.final)
        if known or earlier is not None:
            report.known += 1
            return
        if closes_months(self.key.data_type) and storage.head(self.run.layout.month(self.key, day)) is not None:
            report.notes.append(f"{day} is not stored: its month is closed in the lake.")
            return
        report.final += record.final
        report.provisional += not record.final
        report.rows += record.rows
        self._pending[day] = encoded
        if sum(one.parquet.size for one in self._pending.values()) > _PENDING_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Record the pending days in the journal, and store them."""
        pending, self._pending = self._pending, {}
        if self.run.dry_run:
            self._taken |= pending
            return
        if not pending:
            return
        journal, layout = self.run.journal, self.run.layout
        lines = []
        for day, encoded in pending.items():
            before = self.ledger.get(day)
            path = layout.file(self.key, day)
            replaces = before is not None and before.outcome == HELD
            if replaces:
                storage.put(journal.copy_of(self.key, day), storage.read(path)[0])
            sha256 = hashlib.sha256(encoded.parquet).hexdigest()
            lines.append(JournalDay(self.key, day, sha256, before, replaces))
        journal.add(lines)
        for day, encoded in pending.items():
            outcome = self._store.put(day, self.ledger.get(day), encoded, time.perf_counter())
            self.ledger.put(outcome.row)
            self.stored += 1


class _Archive:
    """The published checksums of the archive. Once it does not answer, it is not asked again in this import."""

    def __init__(self, settings: Settings) -> None:
        self._client = ArchiveClient(settings)
        self._error: NetworkError | None = None
        self._pages: dict[str, ListedFile] = {}

    def published(self, path: str) -> str | None:
        """Return the published SHA-256 of a zip, in one small request.

        Raises:
            NetworkError: The archive does not answer, or did not before.
        """
        return self._ask(lambda: self._client.published_sha256(path))

    def listed(self, key: SeriesKey, path: str, cadence: str) -> ListedFile | None:
        """Return the line of a zip in the listing. A page has 500 zips, so that few requests are needed."""
        if path not in self._pages:
            after = path.removesuffix(".zip")
            page, _ = self._ask(lambda: self._client.list_page(key.archive_folder(cadence), after))
            self._pages = {file.key: file for file in page}
        return self._pages.get(path)

    def _ask(self, request: Callable[[], _T]) -> _T:
        if self._error is not None:
            raise self._error
        try:
            return request()
        except NetworkError as error:
            self._error = error
            raise

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
