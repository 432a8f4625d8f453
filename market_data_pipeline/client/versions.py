"""Versions of data: the final days among those that are read, and a hash over their contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

from market_data_pipeline.client.snapshot import LiveDay
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake.day_records import rows_on_record
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import are_as_listed
from market_data_pipeline.model.day import FAILED, DayFile, DayRecord
from market_data_pipeline.model.findings import Severity


def final_only(layout: Layout, days: Iterable[DayFile]) -> list[DayFile]:
    """Return the days that are final and pass the integrity check.

    Raises:
        DamagedFileError: A file does not match its record. The text names it.
        StorageError: A ledger cannot be read.
    """
    return [file for file, row in _with_rows(layout, days) if row.final and row.integrity != Severity.ERROR]


def version_of(layout: Layout, days: Sequence[DayFile], live: Sequence[LiveDay] = ()) -> str | None:
    """Return a hash over series, day and content of days, 64 hexadecimal digits; None if one was replaced since.

    The hash of a content covers the values of the columns. It stays the same if a day is fetched again with equal rows,
    or if its live rows are stored.

    Raises:
        DamagedFileError: A file does not match its record. The text names it.
        StorageError: A ledger cannot be read.
    """
    contents = [(file.key, file.day, row.content_sha256) for file, row in _with_rows(layout, days)]
    contents += [(one.key, one.day, one.content_sha256) for one in live if one.closed_rows]
    digest = hashlib.sha256()
    for key, day, content in sorted(contents, key=itemgetter(0, 1)) if live else contents:
        digest.update(f"{key} {day} {content}\n".encode())
    if not are_as_listed(layout, days):
        return None
    return digest.hexdigest()


def _with_rows(layout: Layout, days: Iterable[DayFile]) -> list[tuple[DayFile, DayRecord]]:
    found: list[tuple[DayFile, DayRecord]] = []
    for key, some in groupby(days, key=lambda file: file.key):
        stored = {file.day: file for file in some}
        rows = rows_on_record(layout, key, stored, min(stored), max(stored))
        for day, file in stored.items():
            if rows[day].outcome == FAILED:
                raise DamagedFileError(rows[day].reason or f"{file.path} is damaged.")
            found.append((file, rows[day]))
    return found
