"""Condition of every day of a series: available, degraded, pending, missing or explained.

``quality.condition`` is the same in SQL. It learns the collected days from a list that is written here, because the
ledgers have only days that were requested. The rules belong to ``model/states.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date

import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError, StorageError, UsageError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.day_records import SERIES_LABELS
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import known_series
from market_data_pipeline.model.day import EMPTY, NOT_LISTED, DayRecord
from market_data_pipeline.model.series import ListingSpans, SeriesKey
from market_data_pipeline.model.states import Condition, DayState, condition_of, evidence_of, state_of
from market_data_pipeline.universe import Universe

_SPAN = pa.struct([("first", pa.date32()), ("last", pa.date32())])
_COLUMNS: list[tuple[str, pa.DataType]] = [
    *((name, pa.string()) for name in SERIES_LABELS),
    ("first", pa.date32()),
    ("last", pa.date32()),
    ("listed", pa.list_(_SPAN)),
]
_COLLECTED = pa.schema(_COLUMNS)
"""The list of collected series. ``last`` is null if the series goes on, ``listed`` is empty if nothing is known."""


@dataclass(frozen=True, slots=True)
class DayCondition:
    """Condition of one day of a series.

    Attributes:
        reason: Reason in one word, e.g. ``final``, ``incomplete`` or ``never_fetched``.
        evidence: Findings, failure and published archives behind the reason. Empty if there are none.
        last_modified: HTTP date of the archive. None without an archive.
        checksum: Status of the archive's checksum. None without an archive.
        archive_sha256: SHA-256 of the archive. None without an archive.
    """

    day: date
    condition: Condition
    reason: str
    evidence: str = ""
    last_modified: str | None = None
    checksum: str | None = None
    archive_sha256: str | None = None


def conditions(
    rows: Mapping[date, DayRecord], collected: tuple[date, date] | None, listing: ListingSpans, today: date
) -> Iterator[DayCondition]:
    """Yield the condition of each day from the first to the last day of a series, in order.

    Args:
        rows: The series' ledger, by day.
        collected: First and last day to collect. None if the series is not collected.
        listing: The symbol's listing. Without spans, every day counts as listed.
        today: The current day in UTC. Later days are not yielded, unless they are on record.
    """
    ends = [*rows, *((collected[0], min(collected[1], today)) if collected and collected[0] <= today else ())]
    for day in clock.days_between(min(ends), max(ends)) if ends else ():
        row = rows.get(day)
        state = _state(row, listing.covers(day), bool(listing.spans))
        row = row or DayRecord(day, EMPTY)
        condition, reason = condition_of(state, row, today)
        yield DayCondition(
            day, condition, reason, evidence_of(row), row.last_modified, row.checksum, row.archive_sha256
        )


def _state(row: DayRecord | None, is_listed: bool, is_known: bool) -> DayState:
    if row is None:
        return DayState.MISSING if is_listed else DayState.NOT_LISTED
    if row.outcome == NOT_LISTED and is_known and is_listed:
        return DayState.MISSING
    return state_of(row.outcome, row.final, row.verdicts, row.integrity)


def days_to_collect(universe: Universe, key: SeriesKey) -> tuple[date, date] | None:
    """Return the first and last day to collect of a series. None if it is not collected, or its start is not known."""
    with suppress(UsageError):
        if key in universe and (spans := universe.spans(key)):
            return spans[0][0], spans[-1][1]
    return None


def record_collected(layout: Layout, universe: Universe) -> None:
    """Write the list of collected series for SQL, if it changed. Do nothing in a folder that is read-only or missing.

    Raises:
        UsageError: A pattern in the universe matches no symbol.
    """
    if storage.revision(layout.root) is None:  # a command that only reads makes no data folder
        return
    rows = list(_collected(universe, dict.fromkeys([*universe.series(), *known_series(layout)])))
    wanted = pa.Table.from_pylist(rows, _COLLECTED)
    try:
        if parquet.read_table(layout.collected).equals(wanted):
            return
    except DamagedFileError:
        pass
    with suppress(StorageError):
        parquet.write_table(layout.collected, wanted)


def _collected(universe: Universe, keys: Iterable[SeriesKey]) -> Iterator[Mapping[str, object]]:
    for key in keys:
        listing = universe.listing(key)
        days = days_to_collect(universe, key)
        if days or listing.spans:
            yield {
                **{name: getattr(key, name) for name in SERIES_LABELS},
                "first": days[0] if days else None,
                "last": listing.last,
                "listed": [{"first": first, "last": last} for first, last in listing.spans],
            }
