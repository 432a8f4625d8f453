"""The lake and a store of hot rows as one store, without a seam.

Final days come from the lake alone. All other rows come from both, and the higher state wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime

import numpy as np
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.errors import EnvironmentFaultError
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.stores.base import RowState, SaveReport, Store
from market_data_pipeline.stores.parquet import ParquetStore
from market_data_pipeline.stores.rows import (
    days_among,
    first_day_of,
    last_day_of,
    merged,
    moment_after,
    without_state,
)

_READS = 5
"""Attempts to read both stores while the lake changes."""


class HybridStore(Store):
    """The lake with its live rows (cold) and a store of hot rows as one store.

    Rows are written to the hot store. Reads join both: days that are final in the lake come from it alone, and for
    other days the row with the higher state wins. Of equal states, the row of the data folder wins. A read is repeated
    if the lake changes meanwhile, so a row that leaves the hot store or the live rows is not lost.

    Args:
        cold: The lake, with the rows of the live feed on this machine.
        hot: The store of hot rows, such as ``PostgresStore``.
    """

    def __init__(self, cold: ParquetStore, hot: Store) -> None:
        self._cold = cold
        self._hot = hot

    def save(
        self, key: SeriesKey, rows: pa.Table, state: RowState = RowState.PROVISIONAL, *, seen_at: datetime | None = None
    ) -> SaveReport:
        """Store rows in the hot store; see :meth:`Store.save`."""
        return self._hot.save(key, rows, state, seen_at=seen_at)

    def load(
        self,
        key: SeriesKey,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        last: int | None = None,
        least: RowState = RowState.LIVE,
        with_state: bool = False,
    ) -> pa.Table:
        """Return rows of both stores; see :meth:`Store.load`.

        Raises:
            MarketDataError: A store cannot be read.
        """
        for _ in range(_READS):
            before = self._final_days(key, start, end)
            hot = self._of_hot(key, start, end, last, least, before)
            cold = self._cold.load(key, start, end, last=last, least=least, with_state=True)
            if self._final_days(key, start, end) == before:
                rows = merged(key, [hot, cold])
                rows = rows if last is None else rows.slice(max(0, rows.num_rows - last))
                return rows if with_state else without_state(rows)
        raise EnvironmentFaultError(f"The lake's days of {key} change during every read. Read again later.")

    def exists(self, key: SeriesKey, start: datetime | None = None, end: datetime | None = None) -> bool:
        """Return True if one of the stores has a closed row of a series in a range."""
        return self.load(key, start, end, last=1).num_rows > 0

    def delete(self, key: SeriesKey, start: datetime | None = None, end: datetime | None = None) -> int:
        """Remove rows from the hot store, and rows from outside next to the lake. The lake and live rows stay."""
        return self._hot.delete(key, start, end) + self._cold.delete(key, start, end)

    def get_date_range(self, key: SeriesKey) -> tuple[date, date] | None:
        """Return the first and the last UTC day with closed rows in one of the stores."""
        ranges = [found for store in (self._cold, self._hot) if (found := store.get_date_range(key)) is not None]
        return (min(first for first, _ in ranges), max(last for _, last in ranges)) if ranges else None

    def get_missing_dates(self, key: SeriesKey, first: date, last: date) -> list[date]:
        """Return the UTC days without closed rows in both stores."""
        missing = self._cold.get_missing_dates(key, first, last)
        if not missing:
            return []
        in_hot = set(self._hot.get_missing_dates(key, missing[0], missing[-1]))
        return [day for day in missing if day in in_hot]

    def close(self) -> None:
        """Close both stores."""
        self._hot.close()
        self._cold.close()

    def _final_days(self, key: SeriesKey, start: datetime | None, end: datetime | None) -> Mapping[date, str | None]:
        """Return the final days of the lake in a range, with the hash of their content."""
        records: Mapping[date, DayRecord] = self._cold.records(key, first_day_of(start), last_day_of(end))
        return {day: record.content_sha256 for day, record in records.items() if record.final}

    def _of_hot(
        self,
        key: SeriesKey,
        start: datetime | None,
        end: datetime | None,
        last: int | None,
        least: RowState,
        final: Mapping[date, str | None],
    ) -> pa.Table:
        """Return the hot rows of all days that are not final in the lake."""
        if start is not None:
            start = _after_final(start, final)
        wanted = last
        while True:
            rows = self._hot.load(key, start, end, last=wanted, least=least, with_state=True)
            hidden = np.isin(days_among(key, rows), [clock.day_number(day) for day in final])
            seen = rows if not hidden.any() else rows.filter(pa.array(~hidden))
            if last is None or wanted is None or seen.num_rows >= last or rows.num_rows < wanted:
                return seen
            wanted *= 2  # rows of final days took the place of older ones


def _after_final(start: datetime, final: Mapping[date, str | None]) -> datetime:
    """Return the end of the final days that begin with a range, so that their rows are not read twice."""
    day = first_day_of(start)
    if day not in final:
        return start
    while day in final:
        day += clock.DAY
    return moment_after(day - clock.DAY)
