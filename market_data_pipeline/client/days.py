"""What is on record of days that are read: final or provisional, hashes, findings.

Ledgers are read for this, and the footers of files that a ledger does not speak of yet. Reading rows needs neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import date
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.lake import files
from market_data_pipeline.lake.files import DamagedFileError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import FAILED, HELD, LedgerRow, row_from_provenance
from market_data_pipeline.lake.reading import DayFile
from market_data_pipeline.series import SeriesKey

_FIELDS = [field.name for field in fields(LedgerRow)]


def rows_on_record(
    layout: Layout, key: SeriesKey, held: Mapping[date, DayFile], first: date, last: date
) -> dict[date, LedgerRow]:
    """What is known of the days of a series, as they lie on the disk.

    Args:
        layout: Where the lake lies.
        key: The series.
        held: The files of the days.
        first: First UTC day.
        last: Last UTC day, included.

    Raises:
        DamagedFileError: a file that the ledger does not know has no valid record in its footer.
    """
    known = {row.day: row for row in _ledger_rows(layout, key, first, last)}
    for day, row in known.items():
        if row.outcome == HELD and day not in held:
            known[day] = LedgerRow(day=day, outcome=FAILED, failure="gone", reason="its file is gone")
    for day, file in held.items():
        found = known.get(day)
        same = found is not None and (found.bytes, found.mtime_ns) == (file.stat.bytes, file.stat.mtime_ns)
        if found is None or found.outcome != HELD or not same:
            known[day] = row_from_provenance(files.read_provenance(file.path), file.stat)
    return known


def _ledger_rows(layout: Layout, key: SeriesKey, first: date, last: date) -> list[LedgerRow]:
    try:
        rows = files.read_table(layout.ledger(key), _FIELDS)
    except DamagedFileError:  # or lost: the footers tell
        return []
    bounds = (pa.scalar(day, pa.date32()) for day in (first, last))
    inside = pc.and_(*(compare(rows["day"], day) for compare, day in zip(_BETWEEN, bounds, strict=True)))
    return [LedgerRow(**row) for row in rows.filter(inside).to_pylist()]


_BETWEEN = (pc.greater_equal, pc.less_equal)


def final_only(layout: Layout, days: Iterable[DayFile]) -> list[DayFile]:
    """Those of some days that are final.

    Raises:
        DamagedFileError: a file that the ledger does not know has no valid record in its footer.
    """
    return [file for file, row in _with_rows(layout, days) if row.final]


def version_of(layout: Layout, days: Sequence[DayFile]) -> str | None:
    """A hash over series, day and content of days, as 64 hexadecimal digits; None where one was replaced since.

    The content's hash is over the values in the columns: a day that is fetched again and is the same keeps it.

    Raises:
        DamagedFileError: a file that the ledger does not know has no valid record in its footer.
    """
    told = hashlib.sha256()
    for file, row in _with_rows(layout, days):
        told.update(f"{file.key} {file.day} {row.content_sha256}\n".encode())
    if any(files.stat(file.path) != file.stat for file in days):
        return None
    return told.hexdigest()


def _with_rows(layout: Layout, days: Iterable[DayFile]) -> list[tuple[DayFile, LedgerRow]]:
    found: list[tuple[DayFile, LedgerRow]] = []
    for key, some in groupby(days, key=lambda file: file.key):
        held = {file.day: file for file in some}
        rows = rows_on_record(layout, key, held, min(held), max(held))
        found += [(file, rows[day]) for day, file in held.items()]
    return found
