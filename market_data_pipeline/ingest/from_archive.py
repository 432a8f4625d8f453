"""Rows of a day from the archive: from its daily zip, or from a monthly one. REST does not belong here.

A monthly zip may be stale by a day, or built from a truncated daily one (binance-public-data #459). So a day of it
counts only if it is complete and without errors, or has no daily zip. The check is per day, so that one bad day does
not cost 30 downloads. Rejected bytes go into quarantine.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import date
from functools import partial

from market_data_pipeline import clock
from market_data_pipeline.errors import ChecksumError, ConflictError, MalformedError, SourceError, StorageError
from market_data_pipeline.ingest.batching import Batcher
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.ingest.encode import Encoded, read_daily, read_zip_days, replaces_daily_zip
from market_data_pipeline.ingest.memory import Reservation
from market_data_pipeline.ingest.sources import Sources
from market_data_pipeline.lake import quarantine
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.datasets import is_bounded, monthly_may_replace, most_rows, spec_of
from market_data_pipeline.model.provenance import ChecksumStatus
from market_data_pipeline.model.series import ListingSpans, SeriesKey
from market_data_pipeline.sources.binance.archive import ArchiveFile

logger = logging.getLogger(__name__)

MEMORY_PER_BYTE = 7
"""Peak memory of a day per byte of its zip: the zip, its Arrow table (4 times), checks and encoding."""

_SMALL_BYTES = 1 << 18
"""Maximum size of a daily zip to read in a batch: four times a day of 1m klines."""

_MOST_TOGETHER = 8

_ROW_BYTES = 256
"""Maximum bytes of one candle in a zip. Binance's have about 50."""

_OVERHEAD_BYTES = 16 << 20
"""Extra bytes that a zip of candles may have. A zip with a matching checksum and other content must still be read, so
that it goes into quarantine with the reason."""

_MONTHS_CACHED = 4
"""Months to cache, for days without daily zips that are requested one by one."""


@dataclass
class ArchiveDays:
    """Days of one series in the archive, for one run.

    Attributes:
        quarantine_bytes: Maximum bytes of the whole quarantine.
        refused: ETags of rejected zips and of their ``.CHECKSUM`` files, by day.
    """

    key: SeriesKey
    layout: Layout
    listing: ListingSpans
    sources: Sources
    quarantine_bytes: int
    refused: dict[date, tuple[str | None, str | None]] = field(default_factory=dict)
    _small: Batcher[date, ArchiveFile, DayRows | Encoded] = field(init=False)
    _in_work: set[date] = field(default_factory=set)
    _months: dict[date, Future[Mapping[date, DayRows | Encoded]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._small = Batcher(self._of_small, partial(read_daily, self.key), self.sources.computing, _MOST_TOGETHER)

    def _of_small(self, day: date, file: ArchiveFile) -> DayRows | Encoded:
        return read_zip_days(self.key, file, day, day, self.listing)[day]

    def rows(self, day: date, fresh: bool, whole_month: bool, memory: Reservation) -> DayRows | Encoded | None:
        """Return the rows of a day, possibly already encoded. None if the archive has none.

        Args:
            day: The UTC day, in the past.
            fresh: True if the day is not stored, so that a complete day can be encoded at once.
            whole_month: True if the run fetches all days of the month, so that the monthly zip saves requests.
            memory: The worker's reservation, still empty. Do not reserve memory before waiting for a download slot. It
                can deadlock.

        Raises:
            SourceError: The zip is damaged or does not match its checksum, or the response was incomplete.
            StorageError: Rejected bytes cannot be stored in quarantine.
        """
        month_over = clock.days_of_month(day)[-1] < clock.today()
        if not spec_of(self.key).daily:
            return self._month(day).get(day) if month_over else None
        of_month = self._month(day).get(day) if whole_month else None
        if isinstance(of_month, Encoded) or (of_month is not None and replaces_daily_zip(self.key, of_month)):
            return of_month
        daily = self._read(self.key.archive_daily(day), (day,), memory, encode=fresh).get(day)
        if daily is not None or not month_over or not monthly_may_replace(self.key):
            return daily
        return self._month(day).get(day)

    def _month(self, day: date) -> Mapping[date, DayRows | Encoded]:
        """Return the days of a month's zip. Empty if the archive has no valid one."""
        month = clock.days_of_month(day)
        with self._lock:
            found = self._months.get(month[0])
            mine = found is None
            if found is None:
                idle = [known for known in self._months if known not in self._in_work]
                if len(idle) >= _MONTHS_CACHED:
                    del self._months[idle[0]]
                found = self._months[month[0]] = Future()
        if mine:  # outside the lock, so that other months can be fetched; requests for this one wait
            try:
                found.set_result(self._read_month(month))
            except BaseException as error:
                found.set_exception(error)
                raise
        return found.result()

    def later_day(self, day: date) -> date | None:
        """Return the first later day that has a zip, or None. It takes one request.

        Without daily zips, a day's own month counts as later: the archive has published the days around it.

        Raises:
            SourceError: The listing does not respond.
        """
        if not spec_of(self.key).daily:
            path = self.key.archive_monthly(day).removesuffix(".zip")
            page, _ = self.sources.archive.list_page(self.key.archive_folder("monthly"), path)
            months = (re.search(r"-(\d{4}-\d{2})\.zip$", file.key) for file in page)
            first = min((date.fromisoformat(f"{found[1]}-01") for found in months if found), default=None)
            return None if first is None else max(first, day)
        path = self.key.archive_daily(day)
        page, _ = self.sources.archive.list_page(self.key.archive_folder(), f"{path}.CHECKSUM")
        days = (re.search(r"-(\d{4}-\d{2}-\d{2})\.zip$", file.key) for file in page)
        return min((date.fromisoformat(found[1]) for found in days if found), default=None)

    def has_month(self, month: date) -> bool:
        """Return True if the archive has a valid zip of a month. It stays cached until :meth:`release`.

        Args:
            month: Its first day.
        """
        with self._lock:
            self._in_work.add(month)
        try:
            found = bool(self._month(month))
        except (SourceError, StorageError):
            return True  # each of its days reports the error
        if not found:  # the absence stays cached until other months evict it
            with self._lock:
                self._in_work.discard(month)
        return found

    def release(self, month: date) -> None:
        """Release a month after the last of its days.

        Args:
            month: Its first day.
        """
        with self._lock:
            self._in_work.discard(month)
            self._months.pop(month, None)

    def _read_month(self, month: tuple[date, ...]) -> Mapping[date, DayRows | Encoded]:
        only_source = not spec_of(self.key).daily
        try:
            with self.sources.memory.reservation() as memory:
                return self._read(self.key.archive_monthly(month[0]), month, memory, encode=True)
        except SourceError as error:
            if only_source:
                raise
            # The daily archives are the better source. A bad monthly zip only costs time.
            logger.warning("%s: the monthly zip is not used: %s", self.key, error)
            return {}

    # --- one zip ------------------------------------------------------------------------------------------------

    def _read(
        self, path: str, days: Sequence[date], memory: Reservation, *, encode: bool
    ) -> Mapping[date, DayRows | Encoded]:
        """Fetch and read a zip. Return its days: none if it does not exist, or is monthly and not verified."""
        accepted = quarantine.accepted_sha256(self.layout, self.key, path)
        try:
            file = self.sources.archive.fetch(
                path, lambda size: memory.take(size * MEMORY_PER_BYTE), accepted, _most_bytes(self.key, len(days))
            )
        except ChecksumError as error:
            self._quarantine(path, error.file, error, days)
            raise
        if file is None:
            memory.give_back()  # the zip did not match its checksum, and was gone at the second attempt
        must_be_verified = len(days) > 1 and spec_of(self.key).daily
        if file is None or (must_be_verified and file.checksum is not ChecksumStatus.VERIFIED):
            return {}
        try:
            if encode and len(days) == 1 and self.key.interval is not None and len(file.data) <= _SMALL_BYTES:
                return {days[0]: self._small.compute(days[0], file)}
            listing = self.listing if encode else None
            return self.sources.computing.submit(read_zip_days, self.key, file, days[0], days[-1], listing).result()
        except (MalformedError, ConflictError) as error:
            self._quarantine(path, file, error, days)
            raise

    def _quarantine(self, path: str, file: ArchiveFile, error: SourceError, days: Sequence[date]) -> None:
        day = days[0] if len(days) == 1 else None
        entry = quarantine.store(
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
        if entry is None:
            full = f"quarantine is full ({self.quarantine_bytes / 1e6:,.0f} MB)"
            advice = "Retry its files (`market-data quarantine list`), or raise MARKET_DATA_QUARANTINE_MB."
            error.args = (f"{error} The file is not stored, because {full}. {advice}", *error.args[1:])
        if day is not None or not spec_of(self.key).daily:
            self.refused |= dict.fromkeys(days, (file.etag, file.checksum_etag))


def _most_bytes(key: SeriesKey, days: int) -> int | None:
    """Return the maximum bytes of a zip with some days. None for trades, whose number has no limit."""
    if not is_bounded(key):
        return None
    return most_rows(key, days) * _ROW_BYTES + _OVERHEAD_BYTES
