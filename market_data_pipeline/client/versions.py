"""Which of the days that are read are final, and the version of what was read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby

from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake.day_records import rows_on_record
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import are_as_listed
from market_data_pipeline.model.day import FAILED, DayFile, DayRecord
from market_data_pipeline.model.findings import Severity


def final_only(layout: Layout, days: Iterable[DayFile]) -> list[DayFile]:
    """Those of some days that are final and whose rows pass the integrity check.

    Raises:
        DamagedFileError: a file is not what it says; the text names it.
        StorageError: the system refuses to read a ledger.
    """
    return [file for file, row in _with_rows(layout, days) if row.final and row.integrity != Severity.ERROR]


def version_of(layout: Layout, days: Sequence[DayFile]) -> str | None:
    """A hash over series, day and content of days, as 64 hexadecimal digits; None where one was replaced since.

    The content's hash is over the values in the columns: a day that is fetched again and is the same keeps it.

    Raises:
        DamagedFileError: a file is not what it says; the text names it.
        StorageError: the system refuses to read a ledger.
    """
    told = hashlib.sha256()
    for file, row in _with_rows(layout, days):
        told.update(f"{file.key} {file.day} {row.content_sha256}\n".encode())
    if not are_as_listed(layout, days):
        return None
    return told.hexdigest()


def _with_rows(layout: Layout, days: Iterable[DayFile]) -> list[tuple[DayFile, DayRecord]]:
    found: list[tuple[DayFile, DayRecord]] = []
    for key, some in groupby(days, key=lambda file: file.key):
        held = {file.day: file for file in some}
        rows = rows_on_record(layout, key, held, min(held), max(held))
        for day, file in held.items():
            if rows[day].outcome == FAILED:
                raise DamagedFileError(rows[day].reason or f"{file.path} is damaged.")
            found.append((file, rows[day]))
    return found
