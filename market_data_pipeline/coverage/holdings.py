"""What the lake holds of a series, from its ledger and its folder, and how much is still to be downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline.lake.day_records import rows_as_on_disk
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import CHECKS_DO_NOT_PASS
from market_data_pipeline.model.day import EMPTY, FAILED, HELD, NOT_LISTED, DayRecord
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.model.states import is_complete

_OF_CHECKS = ("day", "outcome", "final", "integrity", "gaps", "verdicts", "failure", "replaced_by")
_COLUMNS = (*_OF_CHECKS, "rows", "bytes")
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Holding:
    """A series' ledger in columns, one element a day that was ever asked for.

    Attributes:
        day: Days since 1970-01-01 (UTC).
        held: Whether a file is there.
        final: Whether that file is settled.
        failed: Whether the newest attempt failed and nothing is held.
        empty: Whether it is settled that there is nothing to hold.
        not_listed: Whether the symbol was not listed, as far as was known when the day was asked for.
        rows: Rows in the file.
        bytes: Its size.
        incomplete: Whether a file is there, and the day is not complete (see ``model.states``).
    """

    day: npt.NDArray[np.int64]
    held: npt.NDArray[np.bool_]
    final: npt.NDArray[np.bool_]
    failed: npt.NDArray[np.bool_]
    empty: npt.NDArray[np.bool_]
    not_listed: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    incomplete: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=bool))

    @property
    def settled(self) -> set[date]:
        """Days that are final: nothing is downloaded for them again."""
        return {day_of(day) for day in self.day[self.held & self.final].tolist()}

    def missing_in(self, spans: Sequence[tuple[date, date]], *, listing_known: bool) -> int:
        """How many days inside spans (both ends included) are neither held nor failed, though they should be.

        Args:
            spans: Days to collect, which are over.
            listing_known: Whether the spans are those of the listing: a day inside them that was not listed when it
                was asked for is, as the listing knows by now.
        """
        known = self.held | self.failed | self.empty
        if not listing_known:
            known |= self.not_listed
        days = self.day[known]
        return sum(
            (last - first).days
            + 1
            - int(np.count_nonzero((days >= (first - _EPOCH).days) & (days <= (last - _EPOCH).days)))
            for first, last in spans
        )


def day_of(number: int) -> date:
    """The UTC day that is so many days after 1970-01-01."""
    return date.fromordinal(number + _EPOCH.toordinal())


def holding(layout: Layout, key: SeriesKey) -> Holding:
    """Read what is held of a series, as it lies on the disk."""
    table, _ = rows_as_on_disk(layout, key, _COLUMNS)
    outcome = np.asarray(table["outcome"].to_pylist(), dtype=object)
    held = outcome == HELD
    final = np.asarray(table["final"].to_pylist(), dtype=bool)
    return Holding(
        day=np.asarray(table["day"].cast(pa.date32()).cast(pa.int32()).to_numpy(), dtype=np.int64),
        held=np.asarray(held, dtype=bool),
        final=final,
        failed=np.asarray(outcome == FAILED, dtype=bool),
        empty=np.asarray((outcome == EMPTY) & final, dtype=bool),
        not_listed=np.asarray(outcome == NOT_LISTED, dtype=bool),
        rows=np.asarray(table["rows"].to_pylist(), dtype=np.int64),
        bytes=np.asarray(table["bytes"].to_pylist(), dtype=np.int64),
        incomplete=_incomplete(table),
    )


def _incomplete(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which days are stored and not complete; only rows whose checks warn or fail are looked at one by one."""
    table = table.select(_OF_CHECKS).append_column("place", pa.array(range(table.num_rows), pa.int64()))
    found = np.zeros(table.num_rows, dtype=bool)
    for row in table.filter(CHECKS_DO_NOT_PASS).to_pylist():
        place = row.pop("place")
        found[place] = not is_complete(DayRecord(**row))
    return found
