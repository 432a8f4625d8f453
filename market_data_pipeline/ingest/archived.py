"""A day's rows as the archive has them: of its daily zip, or of a monthly one.

A monthly zip may be stale by a day, or have been made of a daily one that was cut (binance-public-data #459): a day of
it stands for the daily archive only where it is complete and without fault. Where the archive has no daily zip of a
day, what the month has of it stands. Bytes that are refused go into quarantine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta

import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.findings import Severity
from market_data_pipeline.ingest.dayrows import DayRows
from market_data_pipeline.ingest.memory import MemoryBudget, Reservation
from market_data_pipeline.lake import quarantine
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.provenance import ChecksumStatus, Part, Source
from market_data_pipeline.quality.integrity import check_integrity, checksum_accepted, checksum_missing
from market_data_pipeline.quality.rows import in_order
from market_data_pipeline.series import SeriesKey
from market_data_pipeline.sources.archive import read_zip, split_days
from market_data_pipeline.sources.errors import ChecksumError, ConflictError, MalformedError, SourceError
from market_data_pipeline.sources.vision import Archive, ArchiveFile
from market_data_pipeline.specs import expected_rows, monthly_may_stand, spec_of

logger = logging.getLogger(__name__)

_MEMORY_PER_ZIP_BYTE = 7
"""Peak memory of a day beside the size of its zip: the zip, its Arrow table (4 times), checks and encoding."""


@dataclass
class ArchivedDays:
    """The days of one series in the archive, for one run.

    Attributes:
        key: The series.
        layout: Where quarantine lies.
        archive: The archive.
        memory: What all workers may take together.
        months_held: How many months' rows are kept until their days were asked for.
        refused: ETags of the zips that were refused, by day.
    """

    key: SeriesKey
    layout: Layout
    archive: Archive
    memory: MemoryBudget
    months_held: int
    refused: dict[date, str | None] = field(default_factory=dict)
    _months: dict[date, Future[dict[date, DayRows]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def rows(self, day: date, whole_month: bool, memory: Reservation) -> DayRows | None:
        """The rows of a day; None where the archive has none.

        Args:
            day: The UTC day, which is over.
            whole_month: Whether all days of its month are asked for, so that the monthly zip saves requests.
            memory: The worker's share.

        Raises:
            SourceError: the zip is damaged or does not match its checksum, or no whole answer came.
            StorageError: what was refused cannot be put into quarantine.
        """
        if whole_month and (rows := self._month(day).get(day)) is not None and self._complete(rows):
            return rows
        if (daily := self._daily(day, memory)) is not None:
            return daily
        memory.give_back()  # a worker that waits for a month's zip may not hold what that zip waits for
        month_over = days_of_month(day)[-1] < clock.today()
        return self._month(day).get(day) if month_over and monthly_may_stand(self.key) else None

    def _daily(self, day: date, memory: Reservation) -> DayRows | None:
        path = self.key.archive_daily(day)
        file = self._fetch(path, memory, day)
        if file is None:
            return None
        with self._refusing(path, file, day):
            table = self._read(file, path, day, day)
            return self._day(table, file, Source.ARCHIVE_DAILY, day, len(file.data))

    def _month(self, day: date) -> dict[date, DayRows]:
        """The days of a month's zip; nothing where the archive has none that can be trusted."""
        month = days_of_month(day)
        with self._lock:
            found = self._months.get(month[0])
            mine = found is None
            if found is None:
                while len(self._months) >= self.months_held:
                    del self._months[next(iter(self._months))]
                found = self._months[month[0]] = Future()
        if mine:  # outside of the lock: other months are fetched meanwhile, and whoever wants this one waits
            try:
                found.set_result(self._read_month(month))
            except BaseException as error:
                found.set_exception(error)
                raise
        return found.result()

    def _read_month(self, month: tuple[date, ...]) -> dict[date, DayRows]:
        path = self.key.archive_monthly(month[0])
        try:
            with self.memory.reservation() as memory:
                file = self._fetch(path, memory, None)
                if file is None or file.checksum is not ChecksumStatus.VERIFIED:
                    return {}
                with self._refusing(path, file, None):
                    table = self._read(file, path, month[0], month[-1])
                    days = split_days(table, spec_of(self.key).time)
                    share = len(file.data) / table.num_rows
                    return {
                        day: self._day(rows, file, Source.ARCHIVE_MONTHLY, day, round(share * rows.num_rows))
                        for day, rows in days.items()
                    }
        except SourceError as error:
            # The daily archives are the better witness: a bad monthly zip only costs time.
            logger.warning("%s: the monthly zip is not used: %s", self.key, error)
            return {}

    def _complete(self, rows: DayRows) -> bool:
        """Whether a monthly zip's day may stand for the daily archive: complete and without fault."""
        faults = [*rows.findings, *check_integrity(self.key, rows.table)]
        sound = all(finding.severity is not Severity.ERROR for finding in faults)
        return sound and rows.table.num_rows == expected_rows(self.key)

    # --- one zip ------------------------------------------------------------------------------------------------

    def _fetch(self, path: str, memory: Reservation, day: date | None) -> ArchiveFile | None:
        accepted = quarantine.accepted_sha256(self.layout, self.key, path)
        try:
            return self.archive.fetch(path, lambda size: memory.take(size * _MEMORY_PER_ZIP_BYTE), accepted)
        except ChecksumError as error:
            self._quarantine(path, error.file, error, day)
            raise

    def _read(self, file: ArchiveFile, path: str, first: date, last: date) -> pa.Table:
        return read_zip(file.data, self.key, path.rsplit("/", 1)[-1].removesuffix(".zip"), first, last)

    @contextmanager
    def _refusing(self, path: str, file: ArchiveFile, day: date | None) -> Iterator[None]:
        """Bytes that turn out to be no good go into quarantine."""
        try:
            yield
        except (MalformedError, ConflictError) as error:
            self._quarantine(path, file, error, day)
            raise

    def _quarantine(self, path: str, file: ArchiveFile, error: SourceError, day: date | None) -> None:
        quarantine.put(
            self.layout,
            self.key,
            path,
            file.data,
            kind=error.kind,
            reason=str(error),
            day=day,
            at=clock.now(),
            etag=file.etag,
        )
        if day is not None:
            self.refused[day] = file.etag

    def _day(self, table: pa.Table, file: ArchiveFile, source: Source, day: date, size: int) -> DayRows:
        ordered, findings, conflict = in_order(table, spec_of(self.key))
        if conflict is not None:
            raise ConflictError(
                f"two different rows have {spec_of(self.key).key} {conflict.key}: "
                f"{conflict.rows[0]} and {conflict.rows[1]}."
            )
        proven = file.checksum is not ChecksumStatus.MISSING
        if file.checksum is not ChecksumStatus.VERIFIED:
            findings.append(checksum_accepted() if proven else checksum_missing())
        part = Part(
            source=source,
            url=file.url,
            first_row=0,
            rows=ordered.num_rows,
            fetched_at=file.fetched_at,
            sha256=file.sha256,
            etag=file.etag,
            last_modified=file.last_modified,
            checksum=file.checksum,
        )
        return DayRows(
            table=ordered,
            parts=(part,),
            final=proven,
            known_until_us=clock.day_start_us(day) + clock.US_PER_DAY,
            findings=tuple(findings),
            downloaded=size,
        )


def days_of_month(day: date) -> tuple[date, ...]:
    """All days of the month of a day."""
    first = day.replace(day=1)
    following = (first + timedelta(days=32)).replace(day=1)
    return tuple(first + timedelta(days=n) for n in range((following - first).days))
