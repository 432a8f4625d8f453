"""What is on record of days as they lie on the disk: final or provisional, hashes, findings, or why they failed.

Ledgers are read for this, and files that a ledger does not speak of: new ones are believed by their footer, those that
were changed or found damaged are proven against it. Reading rows (``reading.py``) needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import pyarrow.compute as pc

from market_data_pipeline.lake.files import FileStat
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import FAILED, HELD, Ledger, LedgerRow, row_of_file
from market_data_pipeline.series import SeriesKey
from market_data_pipeline.specs import lake_schema


def rows_on_record(
    layout: Layout, key: SeriesKey, on_disk: Mapping[date, FileStat], first: date, last: date
) -> dict[date, LedgerRow]:
    """What is known of the days of a series, as they lie on the disk.

    Args:
        layout: Where the lake lies.
        key: The series.
        on_disk: The days from first to last that have a file, with its size and time.
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
    schema = lake_schema(key.market, key.data_type)
    for day, stat in on_disk.items():
        found = known.get(day)
        same = found is not None and (found.bytes, found.mtime_ns) == (stat.bytes, stat.mtime_ns)
        if found is None or found.outcome != HELD or not same:
            known[day] = row_of_file(layout.file(key, day), day, stat, found, schema)
    return known
