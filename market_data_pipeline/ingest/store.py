"""Store a day's rows in the lake with their findings, and read stored days to continue from them.

Choosing the better of two files of a day belongs here. Fetching rows does not.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta

from market_data_pipeline import clock
from market_data_pipeline.checks.gaps import ends_of
from market_data_pipeline.checks.ordering import ints
from market_data_pipeline.checks.verdicts import TradeRecord
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.ingest.encode import Encoded, describe, encode, may_need_rest
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.closed_months import write_day
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_files_between, read_day_file, read_record
from market_data_pipeline.lake.reader import read_day
from market_data_pipeline.model.datasets import shows_trades
from market_data_pipeline.model.day import HELD, Confirmed, DayFile, DayRecord, Stored, after
from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.outcomes import Action, DayOutcome
from market_data_pipeline.model.provenance import PROVISIONAL_SOURCES, Provenance
from market_data_pipeline.model.series import DataType, ListingSpans, SeriesKey, interval_us


@dataclass(frozen=True, slots=True)
class DayStore:
    """Stored days of one series. Writers must have the lock of the series."""

    key: SeriesKey
    layout: Layout
    listing: ListingSpans

    def rows(self, day: date) -> DayRows | None:
        """Return the rows of a stored day. None if its file is missing or damaged."""
        stored = self._on_disk(day)
        if stored is None:
            return None
        try:
            record, table = read_day_file(stored)
        except DamagedFileError:
            return None
        return self.reached(day, DayRows.of_file(record, table))

    def reached(self, day: date, rows: DayRows) -> DayRows:
        """Set the end of the previous day's last candle if it reaches into this day. Nearly none does.

        It matters only if the archive has no candle at midnight: it is missing, or comes from REST.
        """
        if self.key.interval is None or rows.table.num_rows == 0:
            return rows
        begins = int(ints(rows.table.slice(0, 1), "open_time")[0])
        if begins == clock.day_start_us(day) and rows.parts[0].source not in PROVISIONAL_SOURCES:
            return rows
        return replace(rows, reach_us=self._reach(day - timedelta(days=1)))

    def _reach(self, day: date) -> int:
        """Return the end of a day's last candle (microseconds UTC) if it is off the grid. Else, or if not stored, 0."""
        stored = self._on_disk(day)
        record, step = self._record_in(stored), interval_us(self.key.interval or "")
        if record is None or record.last_key is None or record.last_key % step == 0:
            return 0
        try:
            last = read_day(self.layout, self.key, day, ["open_time", "close_time"]).slice(record.rows - 1)
        except DamagedFileError:
            return 0
        return int(ends_of(ints(last, "open_time"), ints(last, "close_time"), step)[0])

    def store(self, day: date, known: DayRecord | None, rows: DayRows, started: float) -> DayOutcome:
        """Check a day's rows and write them, unless the stored file is better.

        Args:
            started: Start of the work on the day, by :func:`time.perf_counter`.

        Raises:
            StorageError: The disk refuses.
        """
        # A file that the ledger does not count as stored was damaged, so its footer is not evidence.
        on_disk = self._on_disk(day) if known is not None and known.outcome == HELD else None
        stored = self._record_in(on_disk)
        rows = self.reached(day, rows)
        trades = (
            self._stored_trades(day) if rows.of_archive and may_need_rest(self.key, day, rows, self.listing) else None
        )
        record = describe(self.key, day, rows, self.listing, trades)
        if known is not None and stored is not None and _STORED_STAYS[stored.final, record.final](stored, record):
            # The ledger knows more than the footer: flat candles may have been classified since.
            row = after(known, day, Confirmed(clock.now(), archive=True))
            return DayOutcome(self.key, day, row, Action.HELD, time.perf_counter() - started, rows.downloaded)
        return self.put(day, known, encode(self.key, rows, record), started, rows.action)

    def put(
        self, day: date, known: DayRecord | None, encoded: Encoded, started: float, action: Action = Action.FETCHED
    ) -> DayOutcome:
        """Write a day, into the file of its month if the month is closed.

        Raises:
            StorageError: The disk refuses.
        """
        stat = write_day(self.layout, self.key, encoded.record, encoded.parquet)
        sha256 = hashlib.sha256(encoded.parquet).hexdigest()
        row = after(known, day, Stored(encoded.record, stat, sha256, clock.now()))
        return DayOutcome(self.key, day, row, action, time.perf_counter() - started, encoded.downloaded)

    def _on_disk(self, day: date) -> DayFile | None:
        return next(iter(day_files_between(self.layout, self.key, day, day)), None)

    def _record_in(self, stored: DayFile | None) -> Provenance | None:
        try:
            return None if stored is None else read_record(stored)
        except DamagedFileError:
            return None

    def _stored_trades(self, day: date) -> TradeRecord | None:
        """Return the symbol's stored aggTrades of a day, as evidence for its candles. None if not stored."""
        if self.key.interval is None or not shows_trades(self.key):
            return None
        path = self.layout.file(replace(self.key, data_type=DataType.AGG_TRADES, interval=None), day)
        if storage.head(path) is None:
            return None
        try:
            table = parquet.read_table(path, ["agg_trade_id", "transact_time"])
        except DamagedFileError:
            return None
        return TradeRecord(ints(table, "agg_trade_id"), ints(table, "transact_time"))


def _sources(record: Provenance) -> list[tuple[str | None, str | None]]:
    return [(part.sha256, part.etag) for part in record.parts]


def _has_same(stored: Provenance, new: Provenance) -> bool:
    """Return True if both have the same rows and findings. The words of findings may differ."""
    return stored.content_sha256 == new.content_sha256 and _typed(stored) == _typed(new)


def _typed(record: Provenance) -> list[Finding]:
    """Return findings without words for people."""
    words = {"message": "", "evidence": ""}
    return [
        one.model_copy(update=words | {"rest": one.rest and one.rest.model_copy(update={"reason": ""})})
        for one in record.findings
    ]


def _covers_more(stored: Provenance, new: Provenance) -> bool:
    """Return True if the new rows were fetched after a day whose stored rows were fetched before its end."""
    return clock.naive_utc(stored.fetched_at).date() <= stored.day < clock.naive_utc(new.fetched_at).date()


_STORED_STAYS: Mapping[tuple[bool, bool], Callable[[Provenance, Provenance], bool]] = {
    (True, False): lambda *_: True,
    (False, True): lambda *_: False,
    (True, True): lambda stored, new: _has_same(stored, new) and _sources(stored) == _sources(new),
    (False, False): lambda stored, new: (
        stored.rows > new.rows or (_has_same(stored, new) and not _covers_more(stored, new))
    ),
}
"""Conditions under which a stored file is not overwritten, by: the stored day is final, the new one is final."""
