"""Check neighbouring days across midnight: ids of aggTrades are contiguous, and candles off the grid may cross it.

A trade at midnight may be missing in both days or appear in both (binance-public-data #353). Days are checked when they
are fetched. After a killed run, they are checked when they are fetched again (``model.needs``). Gaps inside a day do
not belong here (``gap_fill.py``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta

from market_data_pipeline import clock
from market_data_pipeline.checks.continuity import open_midnights
from market_data_pipeline.checks.ordering import ints
from market_data_pipeline.checks.verdicts import answered_ids
from market_data_pipeline.errors import DamagedFileError, StorageError
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.ingest.from_archive import MEMORY_PER_BYTE
from market_data_pipeline.ingest.gap_fill import GapFiller, missing_between, without_duplicates
from market_data_pipeline.ingest.memory import MemoryBudget
from market_data_pipeline.ingest.store import DayStore
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.reader import read_day
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.findings import RestAnswer
from market_data_pipeline.model.outcomes import Action, DayFailure, DayOutcome
from market_data_pipeline.model.series import interval_us

logger = logging.getLogger(__name__)

_DAY = timedelta(days=1)
_CHANGED = (Action.FETCHED, Action.EXTENDED)
_NOT_REQUESTED = RestAnswer(answered=False, reason="they belong to the previous day, which was not requested")


@dataclass(frozen=True, slots=True)
class Midnight:
    """Check and repair neighbouring days of one series."""

    day_store: DayStore
    gap_filler: GapFiller
    ledger: Ledger
    memory: MemoryBudget

    def across(self, results: Iterator[DayOutcome | DayFailure]) -> Iterator[DayOutcome | DayFailure]:
        """Yield results in order, after comparing each fetched day with its neighbours and repairing it."""
        unchecked = set(open_midnights(self.day_store.key, self.ledger.rows, clock.now()))
        before: DayOutcome | DayFailure | None = None
        for result in results:
            if before is None:
                repaired = self._compare(result.day, [result], unchecked)
            elif before.day + _DAY == result.day:
                repaired = self._compare(result.day, [before, result], unchecked)
            else:
                repaired = self._compare(before.day + _DAY, [before], unchecked)
                repaired |= self._compare(result.day, [result], unchecked)
            if before is not None:
                yield repaired.get(before.day, before)
            before = repaired.get(result.day, result)
        if before is not None:
            yield self._compare(before.day + _DAY, [before], unchecked).get(before.day, before)

    def _compare(
        self, day: date, results: Sequence[DayOutcome | DayFailure], unchecked: Set[date]
    ) -> dict[date, DayOutcome]:
        """Compare a day with the day before, and return the repaired ones among this run's results."""
        rows = {r.day: r.row for r in results}
        first, second = (rows.get(one) or self.ledger.get(one) for one in (day - _DAY, day))
        ours = {r.day: r for r in results if isinstance(r, DayOutcome)}
        if not any(r.action in _CHANGED or r.day in unchecked for r in ours.values()):
            return {}
        if first is None or second is None or not (first.is_stored_final and second.is_stored_final):
            return {}
        if first.last_key is None or second.first_key is None:
            return {}
        later = ours.get(day)
        if spec_of(self.day_store.key).slots is not None:  # each day has findings about its own missing rows
            return {}
        if self.day_store.key.interval is not None:
            return self._reach(first, second, later)
        if second.first_key > first.last_key + 1:
            gapless = spec_of(self.day_store.key).gapless
            return self._fill(ours, second.day, first.last_key + 1, second.first_key - 1) if gapless else {}
        if later is None:
            return {}
        is_next = second.first_key == first.last_key + 1
        return {day: self._drop_outdated(later) if is_next else self._remove_overlap(first, later)}

    def _reach(self, first: DayRecord, second: DayRecord, later: DayOutcome | None) -> dict[date, DayOutcome]:
        """Store a day of candles again if the previous day's last candle reaches into it and covers a gap."""
        if (first.last_key or 0) % interval_us(self.day_store.key.interval or "") == 0:
            return {}
        outcome = later or DayOutcome(self.day_store.key, second.day, second, Action.HELD)
        with self._memory_for(outcome.row):
            rows = self.day_store.rows(second.day)
            if rows is None or not rows.reach_us:
                return {}
            stored = self._store_again(outcome, self.gap_filler.fill(second.day, rows))
        if later is None:  # the caller records only its own results
            self.ledger.put(stored.row)
            return {}
        return {second.day: stored}

    def _fill(self, ours: Mapping[date, DayOutcome], later: date, first: int, last: int) -> dict[date, DayOutcome]:
        """Fetch the ids missing between two days, and record in the later one the ids still missing, with reasons."""
        answer = self.gap_filler.of_ids(first, last, self._around(later))
        stored: dict[date, DayOutcome] = {}
        for day, outcome in sorted(ours.items()):
            with self._memory_for(outcome.row):
                rows = self.day_store.rows(day)
                if rows is None:
                    continue
                mine, elsewhere = answer.of_day(day, self.day_store.key)
                filled = self.gap_filler.filled_in(rows, mine)
                ids = ints(filled.table, spec_of(self.day_store.key).key)
                if day == later:
                    before = missing_between(first, min(last, int(ids[0]) - 1), ids[:0])
                    inside = [one for one in rows.asked_ids if one.first > last]
                    if len(ours) == 1:
                        elsewhere = [replace(one, answer=_NOT_REQUESTED) for one in elsewhere]
                    known = [*answer.missing, *elsewhere]
                    filled = replace(filled, before=before, asked_ids=(*known, *inside))
                elif filled is not rows:
                    # Ids missing before the filled trades are now inside this day, which reports them.
                    filled = replace(filled, asked_ids=(*rows.asked_ids, *answer.missing))
                    first = max(first, int(ids[-1]) + 1)
                if filled is not rows:
                    stored[day] = self._store_again(outcome, filled)
                del rows, filled  # before the memory is returned
        return stored

    def _around(self, later: date) -> tuple[int, int] | None:
        """Return the times of the last trade before and the first one after midnight. None if REST has no age limit."""
        spec = spec_of(self.day_store.key)
        if spec.rest.reach is None:
            return None
        try:
            before, after = (
                read_day(self.day_store.layout, self.day_store.key, day, [spec.time]) for day in (later - _DAY, later)
            )
        except DamagedFileError:
            return None
        return int(ints(before, spec.time)[-1]), int(ints(after, spec.time)[0])

    def _drop_outdated(self, outcome: DayOutcome) -> DayOutcome:
        """Drop outdated findings about missing trades before a day that now follows the previous one directly."""
        if not any(one.last < (outcome.row.first_key or 0) for one in answered_ids(outcome.row.findings_list())):
            return outcome
        with self._memory_for(outcome.row):
            rows = self.day_store.rows(outcome.day)
            return outcome if rows is None else self._store_again(outcome, replace(rows, before=()))

    def _remove_overlap(self, earlier: DayRecord, outcome: DayOutcome) -> DayOutcome:
        """Remove trades of the earlier day from the later of two overlapping days."""
        with self._memory_for(earlier, outcome.row):
            rows, before = self.day_store.rows(outcome.day), self.day_store.rows(earlier.day)
            if rows is None or before is None:
                return outcome
            repaired = without_duplicates(self.day_store.key, before.table, rows)
            return outcome if repaired is rows else self._store_again(outcome, repaired)

    @contextmanager
    def _memory_for(self, *days: DayRecord) -> Iterator[None]:
        """Reserve memory to read stored days at the same time."""
        with self.memory.reservation() as memory:
            memory.take(sum(day.bytes for day in days) * MEMORY_PER_BYTE)
            yield

    def _store_again(self, outcome: DayOutcome, rows: DayRows) -> DayOutcome:
        action = outcome.action if outcome.action in _CHANGED else Action.EXTENDED
        try:
            stored = self.day_store.store(outcome.day, outcome.row, replace(rows, action=action), time.perf_counter())
        except StorageError as error:
            logger.warning("%s: %s stays as fetched: %s", self.day_store.key, outcome.day, error)
            return outcome
        return replace(stored, seconds=outcome.seconds + stored.seconds, downloaded=outcome.downloaded, action=action)
