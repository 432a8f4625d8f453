"""From one day of aggTrades to the next: ids run on over midnight, so that neighbours prove each other.

A trade at midnight may lack on both sides, or stand on both (binance-public-data #353). Days are looked at when they
are brought; those of a run that was killed in between, when they are asked for again (``quality.repair``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from datetime import date, timedelta

from market_data_pipeline import clock
from market_data_pipeline.ingest.dayrows import DayRows
from market_data_pipeline.ingest.healing import Healer, without_repeated
from market_data_pipeline.ingest.shelf import Shelf
from market_data_pipeline.lake.ledger import Ledger, LedgerRow
from market_data_pipeline.outcomes import Action, DayFailure, DayOutcome
from market_data_pipeline.quality.repair import unmet_midnights

_DAY = timedelta(days=1)
_BROUGHT = (Action.FETCHED, Action.EXTENDED)


@dataclass(frozen=True, slots=True)
class Midnight:
    """Looks at neighbouring days of one series of aggTrades.

    Attributes:
        shelf: Where its days lie.
        healer: Asks REST for what lacks.
        ledger: Of the series.
    """

    shelf: Shelf
    healer: Healer
    ledger: Ledger

    def across(self, results: Iterator[DayOutcome | DayFailure]) -> Iterator[DayOutcome | DayFailure]:
        """Results in order, each day that was brought looked at together with its neighbours, and mended."""
        before: DayOutcome | DayFailure | None = None
        unmet = set(unmet_midnights(self.shelf.key, self.ledger.rows, clock.now()))
        for result in results:
            mended: dict[date, DayOutcome] = {}
            if before is not None and before.day + _DAY == result.day:
                mended = self._meet((before, result), before.row, result.row, unmet)
            else:
                if before is not None:
                    mended = self._meet((before,), before.row, self.ledger.get(before.day + _DAY), unmet)
                mended |= self._meet((result,), self.ledger.get(result.day - _DAY), result.row, unmet)
            if before is not None:
                yield mended.get(before.day, before)
            before = mended.get(result.day, result)
        if before is not None:
            yield self._meet((before,), before.row, self.ledger.get(before.day + _DAY), unmet).get(before.day, before)

    def _meet(
        self,
        results: Sequence[DayOutcome | DayFailure],
        first: LedgerRow | None,
        second: LedgerRow | None,
        unmet: Set[date],
    ) -> dict[date, DayOutcome]:
        """Of two neighbouring days, those of this run's results that had to be mended for what midnight shows."""
        brought = [r for r in results if isinstance(r, DayOutcome) and (r.action in _BROUGHT or r.day in unmet)]
        if not brought or first is None or second is None or not (first.held and second.held):
            return {}
        if first.last_key is None or second.first_key is None:
            return {}
        if second.first_key > first.last_key + 1:
            return self._fill(brought, first.last_key + 1, second.first_key - 1)
        if second.first_key <= first.last_key:
            return {r.day: self._without_repeated(first.day, r) for r in brought if r.day == second.day}
        return {}

    def _fill(self, days: Sequence[DayOutcome], first: int, last: int) -> dict[date, DayOutcome]:
        """Bring the ids that lack between two days, and say of the later one what REST does not have."""
        stored: dict[date, DayOutcome] = {}
        for outcome in days:
            rows = self.shelf.rows(outcome.day)
            if rows is None:
                continue
            filled = self.healer.ids_between(rows, outcome.day, first, last)
            if filled is not rows:
                stored[outcome.day] = self._stored_again(outcome, filled)
        return stored

    def _without_repeated(self, earlier: date, outcome: DayOutcome) -> DayOutcome:
        """The later day without the trades that stand in the earlier one, too."""
        rows, before = self.shelf.rows(outcome.day), self.shelf.rows(earlier)
        if rows is None or before is None:
            return outcome
        mended = without_repeated(self.shelf.key, before.table, rows)
        return outcome if mended is rows else self._stored_again(outcome, mended)

    def _stored_again(self, outcome: DayOutcome, rows: DayRows) -> DayOutcome:
        action = outcome.action if outcome.action in _BROUGHT else Action.EXTENDED
        stored = self.shelf.store(outcome.day, outcome.row, replace(rows, action=action), time.perf_counter())
        return replace(stored, seconds=outcome.seconds + stored.seconds, downloaded=outcome.downloaded, action=action)
