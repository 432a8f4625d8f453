"""Which days of klines can be compared with their source, comparing them, and keeping what came of it.

What belongs here: choosing days by the ledgers and by the record of what was compared. How two sides are compared is
``quality.reconciliation``, the record ``lake.reconciled``. Knows nothing of Dagster.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from market_data_pipeline import clock
from market_data_pipeline.lake import files
from market_data_pipeline.lake.catalog import lake_error, may_have_been_replaced
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import HELD, Ledger, LedgerRow
from market_data_pipeline.lake.reconciled import DayReconciled, Reason, read_reconciled, write_reconciled
from market_data_pipeline.quality.reconciliation import DaySides, reconcile_days, source_of
from market_data_pipeline.series import DataType, SeriesKey

BATCH_DAYS = 31
"""Days that are compared in one pass, and put on record together."""

LOCK_WAIT_SECONDS = 60.0

_DAY = timedelta(days=1)
_LACKING_SOURCE = (Reason.MISSING_TRADES, Reason.MISSING_CANDLES)


def comparable(keys: Iterable[SeriesKey]) -> list[SeriesKey]:
    """The klines among series whose source is among them, too, in the order given.

    >>> from market_data_pipeline.series import EXCHANGE, Market
    >>> hours, minutes = (SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", one) for one in ("1h", "1m"))
    >>> [key.interval for key in comparable([hours, minutes])]
    ['1h']
    """
    keys = list(keys)
    there = set(keys)
    return [key for key in keys if key.data_type is DataType.KLINES and source_of(key) in there]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A series whose days are to be compared.

    Attributes:
        key: The klines.
        days: Days both sides of which are held and that were not compared as they are now, in order.
        known: What earlier comparisons found on those days that are still as they were.
    """

    key: SeriesKey
    days: tuple[date, ...]
    known: tuple[DayReconciled, ...]


def plan(
    layout: Layout, key: SeriesKey, first: date | None = None, last: date | None = None, *, again: bool = False
) -> Comparison:
    """What is to be compared of a series, from the ledgers and the record.

    Args:
        layout: Where the lake lies.
        key: The klines.
        first: First UTC day; None for the first that is held.
        last: Last UTC day, included. Today is never compared: it is still growing.
        again: Whether days that were compared are compared again.
    """
    klines, source = (Ledger.read(layout.ledger(one)) for one in (key, source_of(key)))
    record = {} if again else read_reconciled(layout.reconciled(key))
    end = min(last or date.max, clock.today() - _DAY)
    days, known = [], []
    for day, row in sorted(klines.rows.items()):
        other = source.get(day)
        if not (first or date.min) <= day <= end or row.outcome != HELD or other is None or other.outcome != HELD:
            continue
        before = record.get(day)
        if before is not None and is_current(before, row, source):
            known.append(before)
        else:
            days.append(day)
    return Comparison(key, tuple(days), tuple(known))


def is_current(found: DayReconciled, row: LedgerRow, source: Ledger) -> bool:
    """Whether what was found on a day still holds: both sides are as they were, and so are the source's days around.

    Args:
        found: What was found.
        row: The day of the klines, as it is now.
        source: The source's ledger.
    """
    other = source.get(found.day)
    if other is None or (found.klines_sha256, found.source_sha256) != (row.content_sha256, other.content_sha256):
        return False
    if not any(one.reason in _LACKING_SOURCE for one in found.differences):
        return True
    around = (source.get(found.day + step) for step in (-_DAY, _DAY))
    return all(one is None or one.fetched_at is None or one.fetched_at <= found.compared_at for one in around)


def compare(
    layout: Layout, key: SeriesKey, days: Sequence[date], *, memory_mb: int, wait_seconds: float = LOCK_WAIT_SECONDS
) -> Iterator[list[DayReconciled]]:
    """Compare days of a series with their source; each batch is put on record when the next one is asked for.

    So a batch whose taker was stopped is compared again, rather than never told.

    Args:
        layout: Where the lake lies.
        key: The klines.
        days: Days of which both sides are held, in order.
        memory_mb: What DuckDB may take.
        wait_seconds: How long to wait for another process that writes the series' record.

    Yields:
        One result for each day, in order, in lists of at most :data:`BATCH_DAYS`.

    Raises:
        DamagedFileError: a file of either side cannot be read; the text names it, and days before are on record.
        StorageError: the record cannot be written.
        SeriesBusyError: another process has been writing the record for too long.
    """
    for start in range(0, len(days), BATCH_DAYS):
        found = _compared(layout, key, days[start : start + BATCH_DAYS], memory_mb)
        yield found
        _put_on_record(layout, key, found, wait_seconds)


def _compared(layout: Layout, key: SeriesKey, days: Sequence[date], memory_mb: int) -> list[DayReconciled]:
    import duckdb

    try:
        return reconcile_days(key, _sides(layout, key, days), memory_mb=memory_mb)
    except duckdb.Error as error:
        if not may_have_been_replaced(error):
            raise lake_error(error, layout) from error
    # A file may have been replaced between the two times that DuckDB opens it.
    try:
        return reconcile_days(key, _sides(layout, key, days), memory_mb=memory_mb)
    except duckdb.Error as error:
        raise lake_error(error, layout) from error


def _sides(layout: Layout, key: SeriesKey, days: Collection[date]) -> list[DaySides]:
    source = source_of(key)
    klines, others = (Ledger.read(layout.ledger(one)) for one in (key, source))

    def held(day: date) -> bool:
        row = others.get(day)
        return row is not None and row.outcome == HELD

    return [
        DaySides(
            day=day,
            klines=layout.file(key, day),
            source=layout.file(source, day),
            klines_sha256=klines.rows[day].content_sha256,
            source_sha256=others.rows[day].content_sha256,
            klines_findings=klines.rows[day].findings_list(),
            source_findings=others.rows[day].findings_list(),
            before=layout.file(source, day - _DAY) if held(day - _DAY) else None,
            after=layout.file(source, day + _DAY) if held(day + _DAY) else None,
        )
        for day in days
    ]


def _put_on_record(layout: Layout, key: SeriesKey, found: Sequence[DayReconciled], wait_seconds: float) -> None:
    path = layout.reconciled(key)
    with files.only_writer(path.with_suffix(".lock"), wait_seconds, f"The reconciliation of {key}"):
        record = read_reconciled(path)
        record.update((one.day, one) for one in found)
        write_reconciled(path, record.values())
