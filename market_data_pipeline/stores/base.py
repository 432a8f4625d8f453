"""The interface of all stores, the states of rows, and the report of a write.

Every store passes the same tests. Deciding which row wins belongs to ``rows.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from enum import IntEnum
from typing import Self

import pyarrow as pa

from market_data_pipeline.model.series import SeriesKey

EXAMPLES = 20
"""Most conflicts of a report that are listed one by one."""


class RowState(IntEnum):
    """State of a row, from the least certain to the most certain. A row only moves upward."""

    FORMING = 0
    """A candle that is still open. Its values change."""
    LIVE = 1
    """Closed, as the live feed sent it."""
    PROVISIONAL = 2
    """Closed, from REST or from an import. The archive has not confirmed it."""
    FINAL = 3
    """From a verified archive. It is never overwritten."""


@dataclass(frozen=True, slots=True)
class RowConflict:
    """A row with other values than the stored row of the same key and the same state.

    Attributes:
        time: Time of the row (UTC, without zone).
        key: Values of the key columns, as text.
        columns: Columns that differ.
        replaced: True if the new row was stored, because it was seen later. Final rows stay.
    """

    time: datetime
    key: str
    state: RowState
    columns: tuple[str, ...]
    replaced: bool


@dataclass(frozen=True, slots=True)
class SaveReport:
    """Rows of a write, by result. Each row counts once, except that conflicts count among the others, too.

    Attributes:
        inserted: Rows whose key was new.
        replaced: Rows that replaced a row of a lower state, an older forming one, or one of a conflict.
        unchanged: Rows that were stored already.
        ignored: Rows that were left out, because the stored row has a higher state, or was seen later.
        conflicts: Rows with other values in the same state, forming ones excluded.
        examples: The first conflicts.
    """

    inserted: int = 0
    replaced: int = 0
    unchanged: int = 0
    ignored: int = 0
    conflicts: int = 0
    examples: tuple[RowConflict, ...] = ()

    def __add__(self, other: SaveReport) -> SaveReport:
        """Return the report of two writes."""
        return SaveReport(
            self.inserted + other.inserted,
            self.replaced + other.replaced,
            self.unchanged + other.unchanged,
            self.ignored + other.ignored,
            self.conflicts + other.conflicts,
            (*self.examples, *other.examples)[:EXAMPLES],
        )

    @classmethod
    def total(cls, reports: Iterable[SaveReport]) -> SaveReport:
        """Return the report of all writes together."""
        return sum(reports, cls())

    @property
    def written(self) -> int:
        """Return the number of rows that the store wrote."""
        return self.inserted + self.replaced


class Store(ABC):
    """A store of rows of any series.

    Moments are datetimes in UTC: without zone, or with any zone. A range begins with ``start`` and ends before ``end``;
    None means no bound. Tables have the columns of the lake, in the order of the series' key.
    """

    @abstractmethod
    def save(
        self, key: SeriesKey, rows: pa.Table, state: RowState = RowState.PROVISIONAL, *, seen_at: datetime | None = None
    ) -> SaveReport:
        """Store rows of a series in one state. When this returns, the rows are on disk.

        A row moves only upward: forming, live, provisional, final. A row of the same state with other values is a
        conflict. The row that was seen later wins, and the report lists both cases. A final row never changes.

        Args:
            rows: The columns of the lake in any order. Columns ``symbol`` and ``interval`` may be missing.
            seen_at: Time at which the source sent the rows; None means now.

        Raises:
            UsageError: The rows are not rows of this series, or the store does not take this state.
            MarketDataError: The store cannot write. Rows that it reported before are unaffected.
        """

    @abstractmethod
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
        """Return rows of a series, in the order of its key, with the schema of the lake.

        Args:
            last: Return only so many of the newest rows of the range.
            least: Leave out rows of a lower state. Forming candles are left out by default.
            with_state: Add the columns ``state`` (0 to 3, see :class:`RowState`) and ``seen_at`` (UTC, without zone).

        Raises:
            MarketDataError: The store cannot be read.
        """

    @abstractmethod
    def exists(self, key: SeriesKey, start: datetime | None = None, end: datetime | None = None) -> bool:
        """Return True if the store has a closed row of a series in a range."""

    @abstractmethod
    def delete(self, key: SeriesKey, start: datetime | None = None, end: datetime | None = None) -> int:
        """Remove rows of a series, and return their number. Files of the lake stay, whatever the range is."""

    @abstractmethod
    def get_date_range(self, key: SeriesKey) -> tuple[date, date] | None:
        """Return the first and the last UTC day with closed rows; None if the store has none."""

    @abstractmethod
    def get_missing_dates(self, key: SeriesKey, first: date, last: date) -> list[date]:
        """Return the UTC days from first to last, both included, without closed rows."""

    def close(self) -> None:  # noqa: B027 - most stores have nothing to release
        """Release connections. A later call opens new ones."""

    def __enter__(self) -> Self:
        """Return the store, and close it at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
