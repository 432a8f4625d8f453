"""Select days of klines to compare with their source, compare them and record the results.

The comparison itself belongs to ``reconciliation/rebuild.py``, the file of the record to ``reconciliation/record.py``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.errors import StorageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, StoredContent, stored_contents
from market_data_pipeline.lake.partitions import day_files_between, file_of
from market_data_pipeline.model.datasets import ARCHIVE_BEGINS
from market_data_pipeline.model.day import HELD
from market_data_pipeline.model.lineage import sources_of
from market_data_pipeline.model.reconciliation import DayReconciled
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.reconciliation.bars import DaySides
from market_data_pipeline.reconciliation.rebuild import reconcile_days
from market_data_pipeline.reconciliation.record import Compared, read_compared, read_reconciled, write_reconciled
from market_data_pipeline.sql.errors import retrying

BATCH_DAYS = 31
"""Number of days compared in one pass."""

WRITE_SECONDS = 5.0
"""Time between writes of the record. Writing a record of ten years takes 0.2 s, many batches take less."""

_LOCK_WAIT_SECONDS = 60.0

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Days of a series to compare.

    Attributes:
        days: Days with both sides stored whose present content was not compared, in order.
        done: Days that were compared and have not changed since, in order.
        gone: Missing files of days that the ledger has as stored. Their days are in neither list.
    """

    key: SeriesKey
    days: tuple[date, ...]
    done: tuple[date, ...]
    gone: tuple[Path, ...]

    def trouble(self) -> str | None:
        """Return a message about days that cannot be compared, None if there are none."""
        if not self.gone:
            return None
        more = len(self.gone) - 1
        others = f" is gone, and so {'is' if more == 1 else 'are'} {more:,} more. Backfill their days to restore them."
        only = " is gone. Backfill that day to restore it."
        return f"{self.key} is not compared on every day: {self.gone[0]}{others if more else only}"


def plan(
    layout: Layout, key: SeriesKey, first: date | None = None, last: date | None = None, *, again: bool = False
) -> Comparison:
    """Select the days of a series to compare, from the ledgers and the record. Ten years take about 40 ms.

    Args:
        first: First UTC day. None for the first stored one.
        last: Last UTC day, included. None for yesterday. Today is never compared, because it is still growing.
        again: Compare days again that were compared before.

    Raises:
        StorageError: a ledger cannot be read.
    """
    begin = max(first or ARCHIVE_BEGINS, ARCHIVE_BEGINS)
    end = min(last or date.max, clock.today() - _DAY)
    klines = stored_contents(layout.ledger(key), begin, end)
    sources = _stored_sources(layout, key, begin - _DAY, end + _DAY)
    chosen = _chosen(sources)
    record = {} if again else read_compared(layout.reconciled(key), begin, end)
    both = sorted(klines.keys() & chosen.keys())
    done = [day for day in both if day in record and _is_current(record[day], day, klines, sources[chosen[day]])]
    due = sorted(set(both).difference(done))
    wanted = {key: set(due)} | {one: {day for day in due if chosen[day] == one} for one in sources}
    gone = {
        one: days.difference(file.day for file in day_files_between(layout, one, min(days), max(days)))
        for one, days in wanted.items()
        if days
    }
    return Comparison(
        key,
        tuple(day for day in due if not any(day in days for days in gone.values())),
        tuple(done),
        tuple(layout.file(one, day) for one, days in gone.items() for day in sorted(days)),
    )


_Contents = Mapping[date, StoredContent]


def _stored_sources(layout: Layout, key: SeriesKey, first: date, last: date) -> dict[SeriesKey, _Contents]:
    """Return the stored days of each source, the most exact source first.

    A ledger that cannot be read matters only if no more exact source is stored.
    """
    found: dict[SeriesKey, _Contents] = {}
    for one in sources_of(key):
        try:
            found[one] = stored_contents(layout.ledger(one), first, last)
        except StorageError:
            if not any(found.values()):
                raise
    return found


def _chosen(sources: Mapping[SeriesKey, _Contents]) -> dict[date, SeriesKey]:
    """Return the most exact stored source of each day."""
    return {day: one for one, days in reversed(list(sources.items())) for day in days}


def _is_current(
    before: Compared, day: date, klines: Mapping[date, StoredContent], source: Mapping[date, StoredContent]
) -> bool:
    """Return True if a day's result is current: both sides are unchanged, and so are the source's adjacent days."""
    if (before.klines_sha256, before.source_sha256) != (klines[day].sha256, source[day].sha256):
        return False
    if not before.incomplete_source:
        return True
    around = (source.get(day + step) for step in (-_DAY, _DAY))
    return all(one is None or one.fetched_us is None or one.fetched_us <= before.compared_us for one in around)


def found_before(layout: Layout, wanted: Comparison) -> list[DayReconciled]:
    """Return the recorded results of days that have not changed since, in order."""
    record = read_reconciled(layout.reconciled(wanted.key), wanted.done)
    return [record[day] for day in wanted.done if day in record]


def compare(
    layout: Layout, key: SeriesKey, days: Sequence[date], *, memory_mb: int, wait_seconds: float = _LOCK_WAIT_SECONDS
) -> Iterator[list[DayReconciled]]:
    """Compare days of a series with their source, and record the results.

    A batch is recorded once the caller requests the next one. If the caller stops, its last batch is compared again.
    The record is written every :data:`WRITE_SECONDS` and at the end, also after an error. A killed process compares
    the days since the last write again.

    Args:
        days: Days with both sides stored, in order.
        memory_mb: DuckDB's memory limit.
        wait_seconds: How long to wait for another process that writes the series' record.

    Yields:
        One result for each day, in order, in lists of at most :data:`BATCH_DAYS`.

    Raises:
        DamagedFileError: a file of either side cannot be read. The text names it. Earlier days are on record.
        StorageError: the record cannot be written, or a ledger cannot be read.
        SeriesBusyError: another process was writing the record and did not finish in time.
    """
    accepted: list[DayReconciled] = []
    written = time.monotonic()
    try:
        for start in range(0, len(days), BATCH_DAYS):
            found = _compared(layout, key, days[start : start + BATCH_DAYS], memory_mb)
            yield found
            accepted += found
            if time.monotonic() - written >= WRITE_SECONDS:
                _add_to_record(layout, key, accepted, wait_seconds)
                accepted, written = [], time.monotonic()
    finally:
        if accepted:
            _add_to_record(layout, key, accepted, wait_seconds)


def _compared(layout: Layout, key: SeriesKey, days: Sequence[date], memory_mb: int) -> list[DayReconciled]:
    chosen = _chosen(_stored_sources(layout, key, days[0], days[-1]))
    found: list[DayReconciled] = []
    with storage.temporary_folder(layout.local) as scratch:
        for source in sources_of(key):
            some = [day for day in days if chosen[day] == source]
            found += _compared_with(layout, key, source, some, memory_mb, scratch) if some else []
    return sorted(found, key=lambda one: one.day)


def _compared_with(
    layout: Layout, key: SeriesKey, source: SeriesKey, days: Sequence[date], memory_mb: int, scratch: Path
) -> list[DayReconciled]:
    return retrying(
        lambda: reconcile_days(
            key, _sides(layout, key, source, days), source=source, memory_mb=memory_mb, scratch=scratch
        ),
        layout,
    )


def _sides(layout: Layout, key: SeriesKey, source: SeriesKey, days: Sequence[date]) -> list[DaySides]:
    near = (pc.field("day") >= days[0] - _DAY) & (pc.field("day") <= days[-1] + _DAY)
    klines, others = (Ledger.read(layout.ledger(one), near) for one in (key, source))

    def stored_file(day: date) -> Path | None:
        row, path = others.get(day), file_of(layout, source, day)
        return path if row is not None and row.outcome == HELD and storage.head(path) is not None else None

    return [
        DaySides(
            day=day,
            klines=file_of(layout, key, day),
            source=file_of(layout, source, day),
            klines_sha256=klines.rows[day].content_sha256,
            source_sha256=others.rows[day].content_sha256,
            klines_findings=klines.rows[day].findings_list(),
            source_findings=others.rows[day].findings_list(),
            before_findings=klines.rows[day - _DAY].findings_list() if day - _DAY in klines.rows else (),
            before=stored_file(day - _DAY),
            after=stored_file(day + _DAY),
        )
        for day in days
    ]


def _add_to_record(layout: Layout, key: SeriesKey, found: Sequence[DayReconciled], wait_seconds: float) -> None:
    path = layout.reconciled(key)
    with storage.only_writer(path.with_suffix(".lock"), wait_seconds, f"The reconciliation of {key}"):
        record = read_reconciled(path)
        record.update((one.day, one) for one in found)
        write_reconciled(path, record.values())
