"""Read the stored days of a series in columns, from its ledger and folder, and count missing days.

Gaps inside days and breaks between days belong to ``coverage/summary.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.lake.day_records import rows_as_on_disk
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import checks_do_not_pass
from market_data_pipeline.model.day import EMPTY, FAILED, HELD, NOT_LISTED, DayRecord
from market_data_pipeline.model.findings import Verdict
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.model.states import is_complete

_OF_CHECKS = ("day", "outcome", "final", "integrity", "gaps", "verdicts", "failure", "replaced_by")
_COLUMNS = (*_OF_CHECKS, "rows", "bytes")
_OF_MISSING_ROWS = {Verdict.OUTAGE, Verdict.ARCHIVE_DEFECT, Verdict.HEALED, Verdict.UNEXPLAINED}
"""Verdicts of missing rows. The others are of flat candles, or of rows that are not expected."""


@dataclass(frozen=True, slots=True)
class StoredDays:
    """A series' ledger in columns, one element per day that was ever requested.

    Attributes:
        day: Days since 1970-01-01 (UTC).
        stored: True if the day is stored.
        failed: True if the last attempt failed and nothing is stored.
        empty: True if the day is final and has no data.
        not_listed: True if the symbol was not listed, according to the listing at the time of the request.
        rows: Rows in the file.
        bytes: Its size.
        incomplete: True if the day is stored and not complete (see ``model.states``).
        gapped: True if rows were missing in its source, so that REST was requested.
    """

    day: npt.NDArray[np.int64]
    stored: npt.NDArray[np.bool_]
    final: npt.NDArray[np.bool_]
    failed: npt.NDArray[np.bool_]
    empty: npt.NDArray[np.bool_]
    not_listed: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    incomplete: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=bool))
    gapped: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=bool))

    @property
    def final_days(self) -> set[date]:
        """Return the stored days that are final. They are not downloaded again."""
        return {clock.day_of_number(day) for day in self.day[self.stored & self.final].tolist()}

    def missing_in(self, spans: Sequence[tuple[date, date]], *, listing_known: bool) -> int:
        """Return the number of missing days inside spans: neither stored, failed nor empty.

        Args:
            spans: Past days to collect, both ends included.
            listing_known: The spans come from the listing. Days inside them count as missing even if they were not
                listed at the time of the request.
        """
        known = self.stored | self.failed | self.empty
        if not listing_known:
            known |= self.not_listed
        days = self.day[known]
        numbers = [(clock.day_number(first), clock.day_number(last)) for first, last in spans]
        return sum(
            last - first + 1 - int(np.count_nonzero((days >= first) & (days <= last))) for first, last in numbers
        )


def stored_days(layout: Layout, key: SeriesKey) -> StoredDays:
    """Read the ledger of a series in columns, corrected by the files on disk."""
    table, _ = rows_as_on_disk(layout, key, _COLUMNS)
    outcome = np.asarray(table["outcome"].to_pylist(), dtype=object)
    stored = outcome == HELD
    final = np.asarray(table["final"].to_pylist(), dtype=bool)
    return StoredDays(
        day=np.asarray(table["day"].cast(pa.date32()).cast(pa.int32()).to_numpy(), dtype=np.int64),
        stored=np.asarray(stored, dtype=bool),
        final=final,
        failed=np.asarray(outcome == FAILED, dtype=bool),
        empty=np.asarray((outcome == EMPTY) & final, dtype=bool),
        not_listed=np.asarray(outcome == NOT_LISTED, dtype=bool),
        rows=np.asarray(table["rows"].to_pylist(), dtype=np.int64),
        bytes=np.asarray(table["bytes"].to_pylist(), dtype=np.int64),
        incomplete=_incomplete(table),
        gapped=np.asarray([_has_missing(verdicts) for verdicts in table["verdicts"].to_pylist()], dtype=bool),
    )


def _has_missing(verdicts: str | None) -> bool:
    return bool(verdicts) and not _OF_MISSING_ROWS.isdisjoint((verdicts or "").split("+"))


def _incomplete(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Return a mask of stored days that are not complete. Only rows whose checks warn or fail are looked at."""
    table = table.select(_OF_CHECKS).append_column("place", pa.array(range(table.num_rows), pa.int64()))
    found = np.zeros(table.num_rows, dtype=bool)
    for row in table.filter(checks_do_not_pass()).to_pylist():
        place = row.pop("place")
        found[place] = not is_complete(DayRecord(**row))
    return found
