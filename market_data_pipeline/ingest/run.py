"""Run the ingestion of one series: select days, fetch ahead in threads, yield results in order, update the ledger.

Sources, gap filling and files do not belong here (``from_*.py``, ``gap_fill.py``, ``store.py``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import date

from market_data_pipeline import clock
from market_data_pipeline.checks.halts import suspect_flat
from market_data_pipeline.errors import AbsentError, ChecksumError, SourceError, StorageError, UnprovenError
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.ingest.encode import Encoded, decode
from market_data_pipeline.ingest.from_archive import MEMORY_PER_BYTE, ArchiveDays
from market_data_pipeline.ingest.from_live import live_day
from market_data_pipeline.ingest.from_rest import NoRows, RestDays
from market_data_pipeline.ingest.gap_fill import GapFiller, with_stored_rows
from market_data_pipeline.ingest.memory import Reservation
from market_data_pipeline.ingest.midnight import Midnight
from market_data_pipeline.ingest.sources import Sources
from market_data_pipeline.ingest.store import DayStore
from market_data_pipeline.lake import quarantine, storage
from market_data_pipeline.lake.closed_months import record_month
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, refresh_ledger
from market_data_pipeline.model.datasets import monthly_may_replace
from market_data_pipeline.model.day import HELD, Confirmed, DayRecord, Failed, NothingThere, Unlisted, after
from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.needs import is_still_unlisted, needs, reach_of
from market_data_pipeline.model.outcomes import Action, DayFailure, DayOutcome
from market_data_pipeline.model.provenance import Source
from market_data_pipeline.model.series import ListingSpans, SeriesKey
from market_data_pipeline.model.waits import StoppedError
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.binance.rest import RestApi

logger = logging.getLogger(__name__)

_SAVE_EVERY_SECONDS = 10.0
"""Maximum work of a killed run that :func:`refresh_ledger` must read back from footers."""

_LAST_SECONDS = 3.0
"""Maximum wait of an interrupted run for days in progress, so that it stores days that are being read."""


def ingest(
    key: SeriesKey,
    days: Sequence[date],
    *,
    layout: Layout,
    sources: Sources,
    settings: Settings,
    listing: ListingSpans | None = None,
) -> Iterator[DayOutcome | DayFailure]:
    """Ingest days of a series into the lake.

    Args:
        days: UTC days, in any order.
        listing: Listing spans of the symbol, as far as known. Days outside are ``not_listed`` without a request.

    Yields:
        One result per day, in order of days. Stored days without need are reported from the ledger.

    Raises:
        SeriesBusyError: Another run writes the series and did not finish in time.
        StorageError: The ledger or its lock is not writable.
    """
    with (
        sources.stop.if_interrupted(),
        storage.only_writer(layout.lock(key), settings.lock_wait_seconds, str(key), sources.stop),
    ):
        yield from _Run(key, layout, sources, settings, listing or ListingSpans()).results(sorted(set(days)))


def _is_shorter(stored: DayRows, live: DayRows) -> bool:
    return not stored.of_archive and stored.table.num_rows < live.table.num_rows


@dataclass(frozen=True, slots=True)
class _Job:
    """Days of one worker: a single day, or a whole month that one monthly zip may cover."""

    days: tuple[date, ...]
    whole_month: bool = False


@dataclass
class _Run:
    key: SeriesKey
    layout: Layout
    sources: Sources
    settings: Settings
    listing: ListingSpans
    _ledger: Ledger = field(init=False)
    _refusal: StorageError | None = field(default=None, init=False)
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)
    _abandoned: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        self._day_store = DayStore(self.key, self.layout, self.listing)
        quarantine_bytes = self.settings.quarantine_mb * 1_000_000
        self._archive_days = ArchiveDays(self.key, self.layout, self.listing, self.sources, quarantine_bytes)
        self._rest_days = RestDays(self.key, self._rest, self.listing, self._archive_days.later_day)
        self._gap_filler = GapFiller(self.key, self._rest, self.listing)

    def _rest(self) -> RestApi:
        return self.sources.rest(self.key.market)

    # --- days in, results out ---------------------------------------------------------------------------------

    def results(self, days: Sequence[date]) -> Iterator[DayOutcome | DayFailure]:
        ledger = self.layout.ledger(self.key)
        storage.remove_leftovers(self.layout.folder(self.key))
        storage.remove_leftovers(self.layout.months(self.key))
        storage.remove_leftovers(self.layout.quarantine(self.key))
        self._ledger = Ledger.read(ledger)
        changed = refresh_ledger(self._ledger, self.layout, self.key)
        finished = {day: found for day in days if (found := self._without_request(day)) is not None}
        unsaved, saved_at = bool(changed), time.monotonic()
        any_changed = False
        in_order = self._in_order(days, finished)
        try:
            midnight = Midnight(self._day_store, self._gap_filler, self._ledger, self.sources.memory)
            with self.sources.stop.if_interrupted():
                for result in midnight.across(in_order):
                    if result.row is not self._ledger.get(result.day):
                        self._ledger.put(result.row)
                        record_month(self._ledger, self.layout, self.key, result.day)
                        unsaved = any_changed = True
                        if time.monotonic() - saved_at > _SAVE_EVERY_SECONDS:
                            self._ledger.write(ledger)
                            unsaved, saved_at = False, time.monotonic()
                    yield result
        finally:
            try:
                in_order.close()  # no day is in progress after the run, however it ended
            finally:
                if unsaved:
                    self._ledger.write(ledger)
                if any_changed:
                    quarantine.release_resolved(self.layout, self.key, self._ledger)

    def _without_request(self, day: date) -> DayOutcome | None:
        """Return the result of a day that needs no request, else None."""
        row, now = self._ledger.get(day), clock.now()
        if row is not None and needs(row, now, reach_of(self.key)).is_met:
            return DayOutcome(self.key, day, row, Action.HELD if row.is_stored_final else Action.EMPTY)
        if row is not None and is_still_unlisted(row, self.listing):
            return DayOutcome(self.key, day, row, Action.NOT_LISTED)
        if not self.listing.covers(day) and (row is None or row.outcome != HELD):
            return self._without_rows(day, Action.NOT_LISTED)
        return None

    def _without_rows(
        self, day: date, action: Action, seconds: float = 0.0, findings: tuple[Finding, ...] = ()
    ) -> DayOutcome:
        at = clock.now()
        event = Unlisted(at) if action is Action.NOT_LISTED else NothingThere(at, findings)
        return DayOutcome(self.key, day, after(self._ledger.get(day), day, event), action, seconds)

    def _in_order(
        self, days: Sequence[date], finished: Mapping[date, DayOutcome]
    ) -> Generator[DayOutcome | DayFailure]:
        """Yield results in order of days, while workers are a bounded number of jobs ahead."""
        jobs = iter(self._jobs([day for day in days if day not in finished]))
        ahead: deque[tuple[_Job, Future[list[DayOutcome | DayFailure] | None]]] = deque()
        ready: deque[DayOutcome | DayFailure] = deque()
        threads = self.sources.at_a_time
        pool = ThreadPoolExecutor(threads, thread_name_prefix=f"ingest-{self.key.symbol}")
        try:
            with self.sources.stop.if_interrupted():  # before waiting for the days in progress
                for day in days:
                    if day in finished:
                        yield finished[day]
                        continue
                    while not ready:
                        while len(ahead) < 2 * threads and (job := next(jobs, None)) is not None:
                            ahead.append((job, pool.submit(self._work, job)))
                        # The job stays in ``ahead`` until it is done, so that an interrupt waits for it, too.
                        results = ahead[0][1].result()
                        first, _ = ahead.popleft()
                        if results is not None:
                            ready.extend(results)
                        else:
                            alone = [_Job((one,)) for one in first.days]
                            ahead.extendleft(reversed([(job, pool.submit(self._work, job)) for job in alone]))
                    yield ready.popleft()
        finally:
            # The end of a run waits for the days in progress, not for their months.
            self._stopped.set()
            for _, future in ahead:
                future.cancel()
            interrupted = self.sources.stop.is_set
            if interrupted:
                wait([future for _, future in ahead], timeout=_LAST_SECONDS)
                self._abandoned.set()
            pool.shutdown(wait=not interrupted)

    def _jobs(self, days: Sequence[date]) -> list[_Job]:
        """Group days to fetch: whole months together if a monthly zip can replace the daily ones."""
        if not monthly_may_replace(self.key):
            return [_Job((day,)) for day in days]
        # The monthly zip may be older than a replaced daily zip.
        replaced = (
            day
            for day, row in self._ledger.rows.items()
            if row.replaced_by is not None and Source.ARCHIVE_DAILY in (row.source or "")
        )
        wanted = set(days).difference(replaced)
        jobs, done = [], set[date]()
        for day in days:
            month = clock.days_of_month(day)
            if day in done:
                continue
            if month[-1] < clock.today() and wanted.issuperset(month):
                jobs.append(_Job(month, whole_month=True))
                done.update(month)
            else:
                jobs.append(_Job((day,)))
        return jobs

    # --- one worker -------------------------------------------------------------------------------------------

    def _work(self, job: _Job) -> list[DayOutcome | DayFailure] | None:
        """Return the results of a job. None for a month without a zip: its days are fetched in parallel instead."""
        results = []
        self.sources.stop.check()
        if job.whole_month:
            with self.sources.places:
                if not self._archive_days.has_month(job.days[0]):
                    return None
        for day in job.days:
            with self.sources.places:  # shared by all series of the run
                if self._stopped.is_set():
                    break
                results.append(self._day(day, job.whole_month))
        if job.whole_month:
            self._archive_days.release(job.days[0])
        return results

    def _day(self, day: date, whole_month: bool) -> DayOutcome | DayFailure:
        started = time.perf_counter()
        known = self._ledger.get(day)
        downloaded = 0
        try:
            if self._refusal is not None:
                raise self._refusal
            with self.sources.memory.reservation() as memory:
                rows = self._fetch(day, known, whole_month, memory)
                if self._abandoned.is_set():
                    raise StoppedError  # another run may have the lock by now
                if isinstance(rows, Encoded):
                    return self._day_store.put(day, known, rows, started)
                if isinstance(rows, DayRows):
                    downloaded = rows.downloaded
                    return self._day_store.store(day, known, rows, started)
            seconds = time.perf_counter() - started
            if rows.action is Action.HELD and known is not None:
                return DayOutcome(self.key, day, after(known, day, Confirmed(clock.now())), Action.HELD, seconds)
            return self._without_rows(day, rows.action, seconds, rows.findings)
        except StorageError as error:
            self._refusal = error
            return self._failed(day, known, "storage", str(error), started, downloaded)
        except SourceError as error:
            if isinstance(error, ChecksumError):
                downloaded = len(error.file.data)
            return self._failed(day, known, error.kind, str(error), started, downloaded)

    def _fetch(
        self, day: date, known: DayRecord | None, whole_month: bool, memory: Reservation
    ) -> DayRows | Encoded | NoRows:
        """Fetch a day's rows from the archive, with gaps filled from REST, or else from REST."""
        if day > clock.today():
            raise AbsentError(f"the day is in the future; today is {clock.today()} (UTC).")
        if day < clock.today():
            if known is not None and known.is_stored_final and not known.replaced_by:  # fetch only missing rows
                memory.take(known.bytes * MEMORY_PER_BYTE)
                stored = self._day_store.rows(day)
                if stored is not None:
                    filled = self._gap_filler.fill(day, replace(stored, action=Action.EXTENDED))
                    return self._gap_filler.compare_flat(day, filled, suspect_flat(known.findings_list()))
                memory.give_back()
            fresh = known is None or known.outcome != HELD
            rows = self._archive_days.rows(day, fresh, whole_month, memory)
            if isinstance(rows, Encoded):
                if fresh:
                    return rows
                rows = decode(rows)
            if rows is not None:
                return self._completed(day, known, rows)
        stored = self._day_store.rows(day) if known is not None and known.outcome == HELD else None
        live = live_day(self.layout, self.key, day, self.settings.stream_url(self.key.market))
        if live is not None and (stored is None or _is_shorter(stored, live)):
            action = Action.FETCHED if stored is None else Action.EXTENDED
            return replace(self._from_live(day, live), action=action)
        return self._rest_days.rows(day, stored)

    def _from_live(self, day: date, live: DayRows) -> DayRows:
        """Return live rows, and those of REST after them. Without an answer of REST, live rows alone."""
        try:
            rows = self._rest_days.rows(day, live)
        except SourceError as error:
            logger.info("%s %s: stored from the live feed, because REST has no answer: %s", self.key, day, error)
            return live
        return rows if isinstance(rows, DayRows) else live

    def _completed(self, day: date, known: DayRecord | None, rows: DayRows) -> DayRows:
        """Complete an archive day with rows from REST, stored before or fetched now."""
        if not rows.final and known is not None and known.is_stored_final:
            raise UnprovenError(
                "the archive was republished without a checksum. The stored rows, which are verified, stay."
            )
        if known is not None and known.outcome == HELD and (stored := self._day_store.rows(day)) is not None:
            rows = with_stored_rows(self.key, stored, rows)
        return self._gap_filler.fill(day, self._day_store.reached(day, rows))

    def _failed(
        self, day: date, known: DayRecord | None, kind: str, reason: str, started: float, downloaded: int
    ) -> DayFailure:
        text = f"{self.key} {day}: {reason}"
        etag, checksum_etag = self._archive_days.refused.get(day, (None, None))
        row = after(known, day, Failed(kind, text, clock.now(), etag, checksum_etag))
        return DayFailure(self.key, day, kind, text, row, time.perf_counter() - started, downloaded)
