"""Fill missing rows of data types whose rows state their interval. No row is ever invented.

Candles and trades do not belong here (``gap_fill.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date

import numpy as np
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import ints
from market_data_pipeline.checks.slots import missing_slots, near
from market_data_pipeline.errors import BeyondReachError, RefusedError, SourceError
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.findings import RestAnswer
from market_data_pipeline.model.series import ListingSpans, SeriesKey
from market_data_pipeline.sources.binance.rest import RestRows

Ask = Callable[[int, int], RestRows]
"""Fetch the rows from one time to before another (microseconds UTC)."""

Merge = Callable[[DayRows, RestRows], DayRows]
"""Add the rows of a response that a day does not have."""


def fill_slots(key: SeriesKey, day: date, rows: DayRows, listing: ListingSpans, ask: Ask, merge: Merge) -> DayRows:
    """Fill the missing rows of a day with those that REST has, and record its answer.

    Args:
        key: The series.
        day: The UTC day.
        rows: Its rows.
        listing: Listing spans of the symbol.
        ask: Fetches rows.
        merge: Adds them to the day.
    """
    missing = missing_slots(key, rows.table, day, rows.known_until_us, listing)
    if len(missing) == 0:
        return rows
    start = clock.day_start_us(day)
    try:
        answer = ask(start, start + clock.US_PER_DAY)
    except SourceError as error:
        return replace(rows, rest=answer_of(error))
    return replace(merge(rows, without_near(key, answer, rows.table)), rest=RestAnswer(answered=True))


def without_near(key: SeriesKey, answer: RestRows, table: pa.Table) -> RestRows:
    """Remove rows that a table has some milliseconds earlier or later. Equal times stay, to be compared."""
    return replace(answer, table=only_new_slots(key, answer.table, table))


def only_new_slots(key: SeriesKey, theirs: pa.Table, ours: pa.Table) -> pa.Table:
    """Return the rows of one table whose slot another table does not have with another time."""
    spec = spec_of(key)
    if spec.slots is None:
        return theirs
    times, stored = ints(theirs, spec.time), ints(ours, spec.time)
    return theirs.filter(pa.array(~near(times, stored, spec.slots) | np.isin(times, stored)))


def answer_of(error: SourceError) -> RestAnswer:
    """Return the answer behind an error. A refusal is an answer, because it would repeat."""
    refused, beyond = isinstance(error, RefusedError), isinstance(error, BeyondReachError)
    return RestAnswer(answered=refused, reason=str(error), beyond_reach=beyond)
