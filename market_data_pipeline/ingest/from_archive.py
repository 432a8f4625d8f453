"""A day's rows as the archive has them: of its daily zip, or of a monthly one.

A monthly zip may be stale by a day, or have been made of a daily one that was cut (binance-public-data #459): a day of
it stands for the daily archive only where it is complete and without fault. That is decided day by day, so that one bad
day does not cost the other thirty a download each. Where the archive has no daily zip of a day, what the month has of
it stands. Bytes that are refused go into quarantine.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from datetime import date
from functools import partial

from market_data_pipeline import clock
from market_data_pipeline.errors import ChecksumError, ConflictError, MalformedError, SourceError, StorageError
from market_data_pipeline.ingest.batching import Together
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.ingest.encode import Encoded, is_complete, read_daily, read_days
from market_data_pipeline.ingest.memory import MemoryBudget, Reservation
from market_data_pipeline.lake import quarantine
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.datasets import monthly_may_stand
from market_data_pipeline.model.provenance import ChecksumStatus
from market_data_pipeline.model.series import Listing, SeriesKey, interval_us
from market_data_pipeline.sources.binance.archive import Archive
from market_data_pipeline.sources.protocol import ArchiveFile

logger = logging.getLogger(__name__)

MEMORY_PER_BYTE = 7
"""Peak memory of a day beside the size of its zip: the zip, its Arrow table (4 times), checks and encoding."""

_SMALL_BYTES = 1 << 18
"""Size of a daily zip up to which it is read together with others that wait: four times a day of 1m klines."""

_MOST_TOGETHER = 8

_ROW_BYTES = 256
"""Bytes of one candle in a zip, at most; Binance's have some 50."""

_OVERHEAD_BYTES = 16 << 20
"""Bytes that a zip of candles may have beside its rows. A zip with a right checksum that holds something else is to be
read, and to come into quarantine with the reason."""

_MONTHS_KEPT = 4
"""Months whose days are asked for one by one, since they have no daily zips, that are kept meanwhile."""


@dataclass
class ArchivedDays:
    """The days of one series in the archive, for one run.

    Attributes:
        key: The series.
        layout: Where quarantine lies.
        listing: When the symbol was listed.
        archive: The archive.
        computing: Threads that read zips.
        memory: What all workers may take together.
        quarantine_bytes: How much all refused bytes may take together.
        refused: ETags of the zips that were refused, and of their ``.CHECKSUM`` files, by day.
    """

    key: SeriesKey
    layout: Layout
    listing: Listing
    archive: Archive
    computing: Executor
    memory: MemoryBudget
    quarantine_bytes: int
    refused: dict[date, tuple[str | None, str | None]] = field(default_factory=dict)
    _small: Together[date, ArchiveFile, DayRows | Encoded] = field(init=False)
    _in_work: set[date] = field(default_factory=set)
    _months: dict[date, Future[Mapping[date, DayRows | Encoded]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._small = Together(self._of_small, partial(read_daily, self.key), self.computing, _MOST_TOGETHER)

    def _of_small(self, day: date, file: ArchiveFile) -> DayRows | Encoded:
        return read_days(self.key, file, day, day, self.listing)[day]

    def rows(self, day: date, fresh: bool, whole_month: bool, memory: Reservation) -> DayRows | Encoded | None:
        """The rows of a day, perhaps encoded already; None where the archive has none.

        Args:
            day: The UTC day, which is over.
            fresh: Whether nothing is held of the day, so that a day that lacks nothing may be encoded at once.
            whole_month: Whether all days of its month are asked for, so that the monthly zip saves requests.
            memory: The worker's share, of which nothing is taken: who waits for a download may not hold what others
                wait for that have begun one.

        Raises:
            SourceError: the zip is damaged or does not match its checksum, or no whole answer came.
            StorageError: what was refused cannot be put into quarantine.
        """
        of_month = self._month(day).get(day) if whole_month else None
        if isinstance(of_month, Encoded) or (of_month is not None and is_complete(self.key, of_month)):
            return of_month
        if (daily := self._daily(day, fresh, memory)) is not None:
            return daily
        month_over = clock.days_of_month(day)[-1] < clock.today()
        return self._month(day).get(day) if month_over and monthly_may_stand(self.key) else None

    def _daily(self, day: date, fresh: bool, memory: Reservation) -> DayRows | Encoded | None:
        path = self.key.archive_daily(day)
        file = self._fetch(path, memory, (day,))
        return None if file is None else self._read(file, path, day, day, encode=fresh)[day]

    def _month(self, day: date) -> Mapping[date, DayRows | Encoded]:
        """The days of a month's zip; nothing where the archive has none that can be trusted."""
        month = clock.days_of_month(day)
        with self._lock:
            found = self._months.get(month[0])
            mine = found is None
            if found is None:
                idle = [known for known in self._months if known not in self._in_work]
                if len(idle) >= _MONTHS_KEPT:
                    del self._months[idle[0]]
                found = self._months[month[0]] = Future()
        if mine:  # outside of the lock: other months are fetched meanwhile, and whoever wants this one waits
            try:
                found.set_result(self._read_month(month))
            except BaseException as error:
                found.set_exception(error)
                raise
        return found.result()

    def later_day(self, day: date) -> date | None:
        """The first day after one that has a daily zip; None where the archive has no later one. It takes a request.

        Raises:
            SourceError: the listing does not answer.
        """
        path = self.key.archive_daily(day)
        page, _ = self.archive.list_page(self.key.archive_folder(), f"{path}.CHECKSUM")
        days = (re.search(r"-(\d{4}-\d{2}-\d{2})\.zip$", file.key) for file in page)
        return min((date.fromisoformat(found[1]) for found in days if found), default=None)

    def has_month(self, month: date) -> bool:
        """Whether the archive has a zip of a month that can be trusted, which is kept until :meth:`release`.

        Args:
            month: Its first day.
        """
        with self._lock:
            self._in_work.add(month)
        try:
            found = bool(self._month(month))
        except StorageError:
            return True  # each of its days will say so
        if not found:  # it is known, until others push it out, that the archive has none
            with self._lock:
                self._in_work.discard(month)
        return found

    def release(self, month: date) -> None:
        """Let go of a month, all of whose days were taken.

        Args:
            month: Its first day.
        """
        with self._lock:
            self._in_work.discard(month)
            self._months.pop(month, None)

    def _read_month(self, month: tuple[date, ...]) -> Mapping[date, DayRows | Encoded]:
        path = self.key.archive_monthly(month[0])
        try:
            with self.memory.reservation() as memory:
                file = self._fetch(path, memory, month)
                if file is None or file.checksum is not ChecksumStatus.VERIFIED:
                    return {}
                return self._read(file, path, month[0], month[-1], encode=True)
        except SourceError as error:
            # The daily archives are the better witness: a bad monthly zip only costs time.
            logger.warning("%s: the monthly zip is not used: %s", self.key, error)
            return {}

    # --- one zip ------------------------------------------------------------------------------------------------

    def _fetch(self, path: str, memory: Reservation, days: tuple[date, ...]) -> ArchiveFile | None:
        accepted = quarantine.accepted_sha256(self.layout, self.key, path)
        most = _most_bytes(self.key, len(days))
        try:
            file = self.archive.fetch(path, lambda size: memory.take(size * MEMORY_PER_BYTE), accepted, most)
        except ChecksumError as error:
            self._quarantine(path, error.file, error, days[0] if len(days) == 1 else None)
            raise
        if file is None:
            memory.give_back()  # for one that did not match its checksum and was gone when it was asked for again
        return file

    def _read(
        self, file: ArchiveFile, path: str, first: date, last: date, *, encode: bool
    ) -> Mapping[date, DayRows | Encoded]:
        try:
            if encode and first == last and self.key.interval is not None and len(file.data) <= _SMALL_BYTES:
                return {first: self._small.ask(first, file)}
            listing = self.listing if encode else None
            return self.computing.submit(read_days, self.key, file, first, last, listing).result()
        except (MalformedError, ConflictError) as error:
            self._quarantine(path, file, error, first if first == last else None)
            raise

    def _quarantine(self, path: str, file: ArchiveFile, error: SourceError, day: date | None) -> None:
        kept = quarantine.store(
            self.layout,
            self.key,
            path,
            file.data,
            kind=error.kind,
            reason=str(error),
            day=day,
            at=clock.now(),
            etag=file.etag,
            published_sha256=error.published_sha256 if isinstance(error, ChecksumError) else None,
            most_bytes=self.quarantine_bytes,
        )
        if kept is None:
            full = f"quarantine is full ({self.quarantine_bytes / 1e6:,.0f} MB)"
            advice = "Retry what is in it (`market-data quarantine list`), or raise MARKET_DATA_QUARANTINE_MB."
            error.args = (f"{error} The file is not stored, because {full}. {advice}", *error.args[1:])
        if day is not None:
            self.refused[day] = file.etag, file.checksum_etag


def _most_bytes(key: SeriesKey, days: int) -> int | None:
    """Return the most bytes that a zip of some days of candles has; None for trades, whose number nothing bounds."""
    if key.interval is None:
        return None
    return days * clock.US_PER_DAY // interval_us(key.interval) * _ROW_BYTES + _OVERHEAD_BYTES
