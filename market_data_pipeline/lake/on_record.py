"""What is on record of days as they lie on the disk: final or provisional, hashes, findings, or why they failed.

Ledgers are read for this, and files that a ledger does not speak of: new ones are believed by their footer, those that
were changed or found damaged are proven against it. Reading rows (``reading.py``) needs neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.lake import files
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import FAILED, HELD, SCHEMA, Ledger, LedgerRow, reconcile, row_of_file
from market_data_pipeline.lake.on_disk import DayFile, days_on_disk
from market_data_pipeline.series import SeriesKey


def rows_on_record(
    layout: Layout, key: SeriesKey, on_disk: Mapping[date, DayFile], first: date, last: date
) -> dict[date, LedgerRow]:
    """What is known of the days of a series, as they lie on the disk.

    Args:
        layout: Where the lake lies.
        key: The series.
        on_disk: The days from first to last that have rows on the disk.
        first: First UTC day.
        last: Last UTC day, included.

    Returns:
        A row for each day with a file, and for those without one of which the ledger speaks. A day whose file is gone,
        or is not what it says, has failed.

    Raises:
        StorageError: the system refuses to read the ledger.
    """
    inside = (pc.field("day") >= first) & (pc.field("day") <= last)
    known = Ledger.read(layout.ledger(key), inside).rows
    for day, row in known.items():
        if row.outcome == HELD and day not in on_disk:
            known[day] = LedgerRow(day=day, outcome=FAILED, failure="gone", reason="its file is gone")
    for day, held in on_disk.items():
        found = known.get(day)
        if found is None or not found.speaks_of(held.stat):
            known[day] = row_of_file(held, found)
    return known


_SPEAKING = ("day", "outcome", "bytes", "mtime_ns")
"""Columns of a ledger that tell which files it speaks of."""


def rows_as_on_disk(layout: Layout, key: SeriesKey, columns: Sequence[str] = ()) -> tuple[pa.Table, bool]:
    """A series' ledger, corrected in memory where it does not speak of the files that lie there.

    A ledger that is lost or behind, or whose files were changed or removed by hand, is mended by its next writer.

    Args:
        layout: Where the lake lies.
        key: The series.
        columns: Of the ledger; more may come.

    Returns:
        A row for each day, and whether it is another than the ledger has.

    Raises:
        StorageError: the system refuses to read the ledger.
    """
    path = layout.ledger(key)
    try:
        table = files.read_table(path, list(dict.fromkeys((*_SPEAKING, *columns))))
        if _speaks_of(table, days_on_disk(layout, key)):
            return table, False
    except files.DamagedFileError:
        pass
    ledger = Ledger.read(path)
    reconcile(ledger, layout, key)
    return pa.Table.from_pylist([asdict(row) for row in ledger.rows.values()], SCHEMA), True


def _speaks_of(ledger: pa.Table, on_disk: Mapping[date, DayFile]) -> bool:
    """Whether the days that a ledger has as held are those with a file, and the files those that it knows."""
    held = ledger.filter(pc.field("outcome") == HELD)
    known = zip(files.days_of(held), held["bytes"].to_pylist(), held["mtime_ns"].to_pylist(), strict=True)
    return set(known) == {(day, held.stat.bytes, held.stat.mtime_ns) for day, held in on_disk.items()}


SERIES_LABELS = ("exchange", "market", "data_type", "symbol", "interval")

CORRECTED = pa.schema([*((name, pa.string()) for name in ("series", *SERIES_LABELS)), *SCHEMA])
"""The name of a series for people, its labels, and what its ledger should say of a day."""


def corrected(layout: Layout, keys: Iterable[SeriesKey]) -> pa.Table:
    """All days of those series whose ledgers do not speak of the files that lie there, as they lie on the disk.

    A folder is listed for each series. No ledger is written: the next writer of the series does.

    Returns:
        A table of :data:`CORRECTED`, empty where every ledger is right.

    Raises:
        StorageError: the system refuses to read a ledger.
    """
    rows = []
    for key in keys:
        table, is_other = rows_as_on_disk(layout, key)
        if is_other:
            labels = {name: getattr(key, name) for name in SERIES_LABELS}
            rows += [{"series": str(key), **labels, **row} for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, CORRECTED)
