"""Days of one series become files of the lake. Knows nothing of Dagster.

For each day: bytes or JSON → verified Arrow table with its origin → findings → one Parquet file, atomically; then the
series' ledger. Days are fetched ahead by threads, within a bound of memory, and come back in order.

A day that is over comes from the daily archive, or from a monthly zip where the run covers the whole month and the
month has the day complete. A day that the archive does not have comes from REST and is provisional.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from types import TracebackType
from typing import Self

import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.dayrows import DayRows, joined
from market_data_pipeline.findings import HISTORY, Finding, Severity
from market_data_pipeline.healing import Healer, with_what_was_held, without_repeated
from market_data_pipeline.lake import files, quarantine
from market_data_pipeline.lake.files import DamagedFileError, StorageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import (
    EMPTY,
    HELD,
    NOT_LISTED,
    Ledger,
    LedgerRow,
    failed_row,
    reconcile,
    row_from_provenance,
)
from market_data_pipeline.lake.provenance import ChecksumStatus, Part, Provenance, Source, content_sha256
from market_data_pipeline.memory import MemoryBudget, Reservation
from market_data_pipeline.outcomes import Action, DayFailure, DayOutcome
from market_data_pipeline.quality.gaps import flat_candles, missing_candles, missing_ids
from market_data_pipeline.quality.integrity import check_integrity, checksum_accepted, checksum_missing
from market_data_pipeline.quality.repair import is_settled
from market_data_pipeline.quality.rows import in_order, ints
from market_data_pipeline.quality.verdicts import CUT, TradeRecord, judge_candles, judge_trades
from market_data_pipeline.series import DataType, Listing, Market, SeriesKey, interval_us
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.archive import read_zip, split_days
from market_data_pipeline.sources.errors import (
    AbsentError,
    ChecksumError,
    ConflictError,
    MalformedError,
    SourceError,
    UnpublishedError,
)
from market_data_pipeline.sources.rest import RestApi, RestRows
from market_data_pipeline.sources.vision import Archive, ArchiveFile
from market_data_pipeline.specs import expected_rows, monthly_may_stand, spec_of

__all__ = ["Action", "DayFailure", "DayOutcome", "Sources", "ingest"]

logger = logging.getLogger(__name__)

_DAY = timedelta(days=1)
_BROUGHT = (Action.FETCHED, Action.EXTENDED)

_MEMORY_PER_ZIP_BYTE = 7
"""Peak memory of a day beside the size of its zip: the zip, its Arrow table (4 times), checks and encoding."""

_SAVE_EVERY_SECONDS = 10.0
"""How much work a killed run may leave for :func:`reconcile` to read back from footers."""


class Sources:
    """The archive and the REST hosts, for one run: what is off or used up stays so until the run ends."""

    def __init__(self, settings: Settings) -> None:
        self.archive = Archive(settings)
        self._settings = settings
        self._rest: dict[Market, RestApi] = {}
        self._lock = threading.Lock()

    def rest(self, market: Market) -> RestApi:
        """REST of a market."""
        with self._lock:
            if market not in self._rest:
                self._rest[market] = RestApi(market, self._settings)
            return self._rest[market]

    def close(self) -> None:
        """Close all connections."""
        self.archive.close()
        for api in self._rest.values():
            api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ingest(
    key: SeriesKey,
    days: Sequence[date],
    *,
    layout: Layout,
    sources: Sources,
    settings: Settings,
    listing: Listing | None = None,
) -> Iterator[DayOutcome | DayFailure]:
    """Bring days of a series into the lake.

    Args:
        key: The series.
        days: UTC days to bring, in any order.
        layout: Where the lake lies.
        sources: Where data comes from.
        settings: Threads, memory and waiting.
        listing: When the symbol was listed, as far as known; days outside are ``not_listed`` without a request.

    Yields:
        One result for each day, in order of days. Days that are held are reported from the ledger.

    Raises:
        SeriesBusyError: another run writes the series and did not finish in time.
        StorageError: the ledger or its lock cannot be written.
    """
    with files.only_writer(layout.lock(key), settings.lock_wait_seconds, str(key)):
        yield from _Run(key, layout, sources, settings, listing or Listing()).bring(sorted(set(days)))


@dataclass(frozen=True, slots=True)
class _Nothing:
    """There is nothing to store for a day, and that is as it should be."""

    action: Action


@dataclass(frozen=True, slots=True)
class _Job:
    """Days for one worker: one day, or a whole month that a monthly zip may serve."""

    days: tuple[date, ...]
    whole_month: bool = False


@dataclass
class _Run:
    """The work on one series while its lock is held."""

    key: SeriesKey
    layout: Layout
    sources: Sources
    settings: Settings
    listing: Listing
    _ledger: Ledger = field(init=False)
    _months: dict[date, Future[dict[date, DayRows]]] = field(default_factory=dict, init=False)
    _months_lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _refusal: StorageError | None = field(default=None, init=False)
    _first_candle: tuple[date | None] | None = field(default=None, init=False)
    _refused: dict[date, str | None] = field(default_factory=dict, init=False)
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        self._memory = MemoryBudget(self.settings.memory_mb << 20)
        self._healer = Healer(self.key, lambda: self.sources.rest(self.key.market), self.listing)

    # --- days in, results out ---------------------------------------------------------------------------------

    def bring(self, days: Sequence[date]) -> Iterator[DayOutcome | DayFailure]:
        ledger = self.layout.ledger(self.key)
        files.remove_leftovers(self.layout.folder(self.key))
        files.remove_leftovers(ledger.parent, f"{ledger.name}.")
        self._ledger = Ledger.read(ledger)
        changed = reconcile(self._ledger, self.layout.folder(self.key), spec_of(self.key).schema)
        settled = {day: found for day in days if (found := self._settled(day)) is not None}
        unsaved, saved_at = bool(changed), time.monotonic()
        try:
            results = self._in_order(days, settled)
            for result in self._across_midnight(results) if self.key.interval is None else results:
                if result.row is not self._ledger.get(result.day):
                    self._ledger.put(result.row)
                    unsaved = True
                    if time.monotonic() - saved_at > _SAVE_EVERY_SECONDS:
                        self._ledger.write(ledger)
                        unsaved, saved_at = False, time.monotonic()
                yield result
        finally:
            if unsaved:
                self._ledger.write(ledger)

    def _settled(self, day: date) -> DayOutcome | None:
        """The result of a day for which no source need be asked."""
        row = self._ledger.get(day)
        if row is not None and is_settled(row, clock.now()):
            return DayOutcome(self.key, day, row, Action.HELD)
        if not self.listing.covers(day) and (row is None or row.outcome != HELD):
            return self._without_rows(day, Action.NOT_LISTED)
        return None

    def _without_rows(self, day: date, action: Action, seconds: float = 0.0) -> DayOutcome:
        outcome, final = (NOT_LISTED, True) if action is Action.NOT_LISTED else (EMPTY, False)
        known = self._ledger.get(day)
        if known is not None and known.outcome == outcome:
            return DayOutcome(self.key, day, known, action, seconds)
        row = LedgerRow(
            day=day,
            outcome=outcome,
            final=final,
            attempts=known.attempts if known else 0,
            asked_at=clock.naive_utc(clock.now()),
        )
        return DayOutcome(self.key, day, row, action, seconds)

    def _in_order(self, days: Sequence[date], settled: Mapping[date, DayOutcome]) -> Iterator[DayOutcome | DayFailure]:
        """Results in the order of days, while workers are a bounded number of jobs ahead."""
        jobs = iter(self._jobs([day for day in days if day not in settled]))
        ahead: deque[Future[list[DayOutcome | DayFailure]]] = deque()
        ready: deque[DayOutcome | DayFailure] = deque()
        threads = self.settings.download_threads
        with ThreadPoolExecutor(threads, thread_name_prefix=f"ingest-{self.key.symbol}") as pool:
            try:
                for day in days:
                    if day in settled:
                        yield settled[day]
                        continue
                    while not ready:
                        while len(ahead) < 2 * threads and (job := next(jobs, None)) is not None:
                            ahead.append(pool.submit(self._work, job))
                        ready.extend(ahead.popleft().result())
                    yield ready.popleft()
            finally:
                # Whoever stops (Ctrl-C) waits for the days in work, not for the months that they belong to.
                self._stopped.set()
                for future in ahead:
                    future.cancel()

    def _jobs(self, days: Sequence[date]) -> list[_Job]:
        """Days to fetch, with whole months together where a monthly zip may stand for them."""
        if not monthly_may_stand(self.key):
            return [_Job((day,)) for day in days]
        wanted, jobs, done = set(days), [], set[date]()
        for day in days:
            month = _days_of_month(day)
            if day in done:
                continue
            if month[-1] < clock.today() and wanted.issuperset(month):
                jobs.append(_Job(month, whole_month=True))
                done.update(month)
            else:
                jobs.append(_Job((day,)))
        return jobs

    # --- one worker -------------------------------------------------------------------------------------------

    def _work(self, job: _Job) -> list[DayOutcome | DayFailure]:
        return [self._day(day, job.whole_month) for day in job.days if not self._stopped.is_set()]

    def _day(self, day: date, whole_month: bool) -> DayOutcome | DayFailure:
        started = time.perf_counter()
        known = self._ledger.get(day)
        downloaded = 0
        try:
            if self._refusal is not None:
                raise self._refusal
            with self._memory.reservation() as memory:
                rows = self._obtain(day, known, whole_month, memory)
                if isinstance(rows, DayRows):
                    downloaded = rows.downloaded
                    return self._store(day, known, rows, started)
            seconds = time.perf_counter() - started
            if rows.action is Action.HELD and known is not None:
                return DayOutcome(self.key, day, known, Action.HELD, seconds)
            return self._without_rows(day, rows.action, seconds)
        except StorageError as error:
            self._refusal = error
            return self._failed(day, known, "storage", str(error), started, downloaded)
        except SourceError as error:
            if isinstance(error, ChecksumError):
                downloaded = len(error.file.data)
            return self._failed(day, known, error.kind, str(error), started, downloaded)

    def _failed(
        self, day: date, known: LedgerRow | None, kind: str, reason: str, started: float, downloaded: int
    ) -> DayFailure:
        text = f"{self.key} {day}: {reason}"
        row = failed_row(known, day, kind, text, clock.now(), self._refused.get(day))
        return DayFailure(self.key, day, kind, text, row, time.perf_counter() - started, downloaded)

    # --- where rows come from ---------------------------------------------------------------------------------

    def _obtain(self, day: date, known: LedgerRow | None, whole_month: bool, memory: Reservation) -> DayRows | _Nothing:
        if day > clock.today():
            raise AbsentError(f"the day lies in the future; today is {clock.today()} (UTC).")
        if day < clock.today():
            if known is not None and known.held and not known.replaced_by:  # what lacks is asked for, and no more
                held = self._held_rows(day)
                if held is not None:
                    return self._healer.heal(day, replace(held, action=Action.EXTENDED))
            rows = self._from_archive(day, whole_month, memory)
            if rows is not None:
                return self._completed(day, known, rows)
        return self._from_rest(day, known)

    def _from_archive(self, day: date, whole_month: bool, memory: Reservation) -> DayRows | None:
        if whole_month and (rows := self._month(day).get(day)) is not None and self._complete(rows):
            return rows
        if (daily := self._daily(day, memory)) is not None:
            return daily
        memory.give_back()  # a worker that waits for a month's zip may not hold what that zip waits for
        month_over = _days_of_month(day)[-1] < clock.today()
        return self._month(day).get(day) if month_over and monthly_may_stand(self.key) else None

    def _completed(self, day: date, known: LedgerRow | None, rows: DayRows) -> DayRows:
        """What the archive has of a day, with what it lacks and was held from REST, or REST has now."""
        if not rows.final:
            return rows
        if known is not None and known.outcome == HELD and (held := self._held_rows(day)) is not None:
            rows = with_what_was_held(self.key, held, rows)
        return self._healer.heal(day, rows)

    def _daily(self, day: date, memory: Reservation) -> DayRows | None:
        path = self.key.archive_daily(day)
        file = self._fetch(path, memory, day)
        if file is None:
            return None
        table = self._read(file, path, day, day)
        return self._rows_of_archive(table, file, Source.ARCHIVE_DAILY, day, len(file.data))

    def _month(self, day: date) -> dict[date, DayRows]:
        """The days of a month's zip; nothing where the archive has none that can be trusted."""
        month = _days_of_month(day)
        with self._months_lock:
            found = self._months.get(month[0])
            mine = found is None
            if found is None:
                while len(self._months) >= self.settings.download_threads:
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
        days: dict[date, DayRows] = {}
        try:
            with self._memory.reservation() as memory:
                file = self._fetch(path, memory, None)
                if file is None or file.checksum is not ChecksumStatus.VERIFIED:
                    return {}
                table = self._read(file, path, month[0], month[-1])
            ordered, _, conflict = in_order(table, spec_of(self.key))
            if conflict is None:
                for day, rows in split_days(ordered, spec_of(self.key).time).items():
                    share = len(file.data) * rows.num_rows // table.num_rows
                    days[day] = self._rows_of_archive(rows, file, Source.ARCHIVE_MONTHLY, day, share)
        except SourceError as error:
            # The daily archives are the better witness: a bad monthly zip only costs time.
            logger.warning("%s: the monthly zip is not used: %s", self.key, error)
        return days

    def _complete(self, rows: DayRows) -> bool:
        """Whether a monthly zip's day may stand for the daily archive: complete and without fault."""
        faults = [*rows.findings, *check_integrity(self.key, rows.table)]
        sound = all(finding.severity is not Severity.ERROR for finding in faults)
        return sound and rows.table.num_rows == expected_rows(self.key)

    def _fetch(self, path: str, memory: Reservation, day: date | None) -> ArchiveFile | None:
        try:
            return self.sources.archive.fetch(path, lambda size: memory.take(size * _MEMORY_PER_ZIP_BYTE))
        except ChecksumError as error:
            if error.file.sha256 in quarantine.accepted_sha256(self.layout, self.key, path):
                return replace(error.file, checksum=ChecksumStatus.ACCEPTED)
            self._quarantine(path, error.file, error, day)
            raise

    def _read(self, file: ArchiveFile, path: str, first: date, last: date) -> pa.Table:
        stem = path.rsplit("/", 1)[-1].removesuffix(".zip")
        try:
            return read_zip(file.data, self.key, stem, first, last)
        except MalformedError as error:
            self._quarantine(path, file, error, first if first == last else None)
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
            self._refused[day] = file.etag

    def _rows_of_archive(self, table: pa.Table, file: ArchiveFile, source: Source, day: date, size: int) -> DayRows:
        ordered, findings, conflict = in_order(table, spec_of(self.key))
        if conflict is not None:
            self._refused[day] = file.etag
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

    # --- REST -------------------------------------------------------------------------------------------------

    def _from_rest(self, day: date, known: LedgerRow | None) -> DayRows | _Nothing:
        """What REST has of a day, beyond what is held of it already."""
        held = self._held_rows(day) if known is not None and known.outcome == HELD else None
        if held is not None and self._provisional_is_whole(day, held):
            return _Nothing(Action.HELD)
        # Trades are asked for hour by hour: 24 requests a day to learn what one candle tells of all days.
        if held is None and self.key.interval is None and day < clock.today() and self._before_listing(day):
            return _Nothing(Action.NOT_LISTED)
        try:
            fetched = self._ask_rest(day, held)
        except SourceError as error:
            if day < clock.today():
                raise _with_archive_answer(error) from error
            raise
        new = fetched.table.num_rows
        if held is None and new == 0:
            return self._nothing(day, fetched)
        # What is held is looked at again even where nothing came: candles that should have closed since are missing.
        before, parts = (held.table, held.parts) if held else (fetched.table.schema.empty_table(), ())
        table = pa.concat_tables([before, fetched.table])
        part = Part(
            source=Source.REST,
            url=fetched.url,
            first_row=before.num_rows,
            rows=new,
            fetched_at=fetched.asked_at,
        )
        ordered, findings, conflict = in_order(table, spec_of(self.key))
        if conflict is not None:
            raise ConflictError(f"REST gave two different rows: {conflict.rows[0]} and {conflict.rows[1]}.")
        return DayRows(
            table=ordered,
            parts=joined((*parts, part)),
            final=False,
            known_until_us=clock.to_us(fetched.asked_at),
            findings=tuple(findings),
            cut=fetched.cut,
            action=Action.FETCHED if held is None else Action.EXTENDED if new else Action.HELD,
        )

    def _held_rows(self, day: date) -> DayRows | None:
        """The rows of a day that is held, to go on from."""
        path = self.layout.file(self.key, day)
        try:
            record, table = files.read_provenance(path), files.read_table(path)
        except DamagedFileError:
            return None
        known_until = clock.day_start_us(day) + clock.US_PER_DAY if record.final else clock.to_us(record.fetched_at)
        return DayRows(
            table=table,
            parts=record.parts,
            final=record.final,
            known_until_us=known_until,
            findings=tuple(finding for finding in record.findings if finding.rule in HISTORY),
            cut=any(finding.evidence == CUT for finding in record.findings),
        )

    def _provisional_is_whole(self, day: date, held: DayRows) -> bool:
        end = clock.day_start_us(day) + clock.US_PER_DAY
        if self.key.interval is not None:
            return int(ints(held.table, "open_time")[-1]) == end - interval_us(self.key.interval)
        return held.known_until_us >= end and not held.cut

    def _ask_rest(self, day: date, held: DayRows | None) -> RestRows:
        api = self.sources.rest(self.key.market)
        start = clock.day_start_us(day)
        end = start + clock.US_PER_DAY
        last = int(ints(held.table, spec_of(self.key).key)[-1]) if held else None
        if self.key.interval is None:
            return api.agg_trades(self.key, start, end, None if last is None else last + 1)
        return api.klines(self.key, start if last is None else last + interval_us(self.key.interval), end)

    def _nothing(self, day: date, fetched: RestRows) -> _Nothing:
        """Neither source has a row of the day: what does that mean?"""
        if fetched.cut:
            raise UnpublishedError(
                "the archive does not have it yet, and the REST weight that this run may spend on aggTrades "
                "(MARKET_DATA_REST_TRADES_WEIGHT) is used up. The next run, or the archive, will bring it."
            )
        if day == clock.today():
            return _Nothing(Action.EMPTY)
        if self._before_listing(day):
            return _Nothing(Action.NOT_LISTED)
        raise _with_archive_answer(AbsentError("REST has no rows for it either"))

    def _before_listing(self, day: date) -> bool:
        first = self._first_listed()
        return first is not None and day < first

    def _first_listed(self) -> date | None:
        """The day of the symbol's first candle by REST, asked for once; None where REST does not say."""
        if self.listing.first is not None:
            return self.listing.first
        if self._first_candle is None:
            try:
                self._first_candle = (self.sources.rest(self.key.market).first_candle_day(self.key),)
            except SourceError:
                self._first_candle = (None,)
        return self._first_candle[0]

    # --- into the lake ----------------------------------------------------------------------------------------

    def _store(self, day: date, known: LedgerRow | None, rows: DayRows, started: float) -> DayOutcome:
        path = self.layout.file(self.key, day)
        # A file that the ledger does not count as held was found to be damaged: its footer proves nothing.
        held = self._record_on_disk(day) if known is not None and known.outcome == HELD else None
        record = self._record(day, rows)
        attempts = (known.attempts if known else 0) + 1
        if held is not None and _keep(held, record):
            stat = files.stat(path)
            if stat is not None:
                row = row_from_provenance(held, stat, attempts=attempts)
                row = replace(row, asked_at=clock.naive_utc(clock.now()))
                return DayOutcome(self.key, day, row, Action.HELD, time.perf_counter() - started, rows.downloaded)
        spec = spec_of(self.key)
        stat = files.write_table(path, rows.table, record, delta=spec.delta, dictionary=spec.dictionary)
        row = row_from_provenance(record, stat, attempts=attempts)
        return DayOutcome(self.key, day, row, rows.action, time.perf_counter() - started, rows.downloaded)

    def _record_on_disk(self, day: date) -> Provenance | None:
        try:
            return files.read_provenance(self.layout.file(self.key, day))
        except DamagedFileError:
            return None

    def _record(self, day: date, rows: DayRows) -> Provenance:
        keys = ints(rows.table, spec_of(self.key).key)
        findings = (
            *rows.findings,
            *check_integrity(self.key, rows.table),
            *self._gaps(day, rows),
        )
        return Provenance(
            series=str(self.key),
            day=day,
            parts=rows.parts,
            final=rows.final,
            fetched_at=max(part.fetched_at for part in rows.parts),
            rows=rows.table.num_rows,
            first_key=int(keys[0]),
            last_key=int(keys[-1]),
            content_sha256=content_sha256(rows.table),
            findings=findings,
        )

    def _gaps(self, day: date, rows: DayRows) -> list[Finding]:
        healed = rows.healed(spec_of(self.key))
        if self.key.interval is None:
            missing = [*rows.before, *missing_ids(rows.table)]
            return judge_trades(missing, healed, final=rows.final, asked=rows.asked, cut=rows.cut)
        lacking = missing_candles(self.key, rows.table, day, rows.known_until_us, self.listing)
        trades = self._trades_held(day) if len(lacking.lacking) and rows.final else None
        flat = flat_candles(rows.table)
        return judge_candles(self.key, lacking, healed, flat, final=rows.final, asked=rows.asked, trades=trades)

    def _trades_held(self, day: date) -> TradeRecord | None:
        """The symbol's aggTrades of a day as witnesses, where the lake has them."""
        path = self.layout.file(replace(self.key, data_type=DataType.AGG_TRADES, interval=None), day)
        if not path.exists():
            return None
        try:
            table = files.read_table(path, ["agg_trade_id", "transact_time"])
        except DamagedFileError:
            return None
        return TradeRecord(ints(table, "agg_trade_id"), ints(table, "transact_time"))

    # --- from one day to the next -----------------------------------------------------------------------------

    def _across_midnight(self, results: Iterator[DayOutcome | DayFailure]) -> Iterator[DayOutcome | DayFailure]:
        """Results in order, each day of aggTrades looked at together with its neighbours: ids run on over midnight."""
        before: DayOutcome | DayFailure | None = None
        for result in results:
            mended: dict[date, DayOutcome] = {}
            if before is not None and before.day + _DAY == result.day:
                mended = self._meet((before, result), before.row, result.row)
            else:
                if before is not None:
                    mended = self._meet((before,), before.row, self._ledger.get(before.day + _DAY))
                mended |= self._meet((result,), self._ledger.get(result.day - _DAY), result.row)
            if before is not None:
                yield mended.get(before.day, before)
            before = mended.get(result.day, result)
        if before is not None:
            yield self._meet((before,), before.row, self._ledger.get(before.day + _DAY)).get(before.day, before)

    def _meet(
        self, results: Sequence[DayOutcome | DayFailure], first: LedgerRow | None, second: LedgerRow | None
    ) -> dict[date, DayOutcome]:
        """Of two neighbouring days, those of this run's results that had to be mended for what midnight shows."""
        brought = [r for r in results if isinstance(r, DayOutcome) and r.action in _BROUGHT]
        if not brought or first is None or second is None or not (first.held and second.held):
            return {}
        if first.last_key is None or second.first_key is None:
            return {}
        if second.first_key > first.last_key + 1:
            return self._fill_midnight(brought, first.last_key + 1, second.first_key - 1)
        if second.first_key <= first.last_key:
            return {r.day: self._without_repeated(first.day, r) for r in brought if r.day == second.day}
        return {}

    def _fill_midnight(self, days: Sequence[DayOutcome], first: int, last: int) -> dict[date, DayOutcome]:
        """Bring the ids that lack between two days, and say of the later one what REST does not have."""
        stored: dict[date, DayOutcome] = {}
        for outcome in days:
            rows = self._held_rows(outcome.day)
            if rows is None:
                continue
            filled = self._healer.ids_between(rows, outcome.day, first, last)
            if filled is not rows:
                stored[outcome.day] = self._stored_again(outcome, filled)
        return stored

    def _without_repeated(self, earlier: date, outcome: DayOutcome) -> DayOutcome:
        """The later day without the trades that stand in the earlier one, too."""
        rows, before = self._held_rows(outcome.day), self._held_rows(earlier)
        if rows is None or before is None:
            return outcome
        mended = without_repeated(self.key, before.table, rows)
        return outcome if mended is rows else self._stored_again(outcome, mended)

    def _stored_again(self, outcome: DayOutcome, rows: DayRows) -> DayOutcome:
        stored = self._store(outcome.day, outcome.row, replace(rows, action=outcome.action), time.perf_counter())
        return replace(
            stored, seconds=outcome.seconds + stored.seconds, downloaded=outcome.downloaded, action=outcome.action
        )


# --- small decisions ----------------------------------------------------------------------------------------------


def _keep(held: Provenance, new: Provenance) -> bool:
    """Whether the file that is held is the better one: final before provisional, and never fewer rows unproven."""
    if held.final and not new.final:
        return True
    same_source = [(part.sha256, part.etag) for part in held.parts] == [(part.sha256, part.etag) for part in new.parts]
    if held.final == new.final and held.content_sha256 == new.content_sha256 and held.findings == new.findings:
        return same_source or not new.final
    return new.rows < held.rows and not new.final


def _days_of_month(day: date) -> tuple[date, ...]:
    first = day.replace(day=1)
    following = (first + timedelta(days=32)).replace(day=1)
    return tuple(first + timedelta(days=n) for n in range((following - first).days))


def _with_archive_answer(error: SourceError) -> SourceError:
    """The same failure, with the archive's answer before REST's."""
    return type(error)(f"the archive has no file for it (404), and: {error}")
