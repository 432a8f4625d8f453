"""Find the missing rows of a day whose rows state their interval, such as funding rates. Pure.

Candles and ids do not belong here (``gaps.py``), nor do the reasons (``verdicts.py``).
"""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import Ints, ints
from market_data_pipeline.model.datasets import Slots, spec_of
from market_data_pipeline.model.series import ListingSpans, SeriesKey

_HOUR_US = 3_600_000_000
_MINUTE_US = 60_000_000


def missing_slots(key: SeriesKey, table: pa.Table, day: date, known_until_us: int, listing: ListingSpans) -> Ints:
    """Return the times (microseconds UTC) at which a day should have rows and has none, in order.

    A row is due one interval after the row before it. The interval may change: two rows belong together if their
    distance is the interval of either of them, so that a change is no gap. Times are rounded to whole minutes.

    Args:
        key: The series.
        table: The day's rows, ordered by key.
        day: The UTC day.
        known_until_us: The source's clock (microseconds UTC). Later rows are not expected.
        listing: No row is due before the first one of the first listed day, or after the last one of the last day.
    """
    spec = spec_of(key)
    slots = spec.slots
    if slots is None or table.num_rows == 0:
        return np.zeros(0, dtype=np.int64)
    if slots.step is not None and slots.longest is not None:
        return _missing_in_pauses(slots.step, slots.longest, ints(table, spec.time), day, known_until_us, listing)
    if slots.step is not None:
        return _missing_of_grid(slots.step, ints(table, spec.time), day, known_until_us, listing)
    tolerance = _tolerance_us(slots)
    start = clock.day_start_us(day)
    end = min(start + clock.US_PER_DAY, known_until_us - tolerance)
    times = slots_of(ints(table, spec.time))
    steps = np.maximum(ints(table, slots.hours), 1) * _HOUR_US
    due = [] if any(first == day for first, _ in listing.spans) else [_before(int(times[0]), int(steps[0]), start)]
    for at in range(len(times) - 1):
        distance = int(times[at + 1] - times[at])
        if distance > steps[at] + tolerance and abs(distance - int(steps[at + 1])) > tolerance:
            due.append(np.arange(times[at] + steps[at], times[at + 1] - tolerance, steps[at], dtype=np.int64))
    if not any(last == day for _, last in listing.spans):
        due.append(np.arange(times[-1] + steps[-1], end, steps[-1], dtype=np.int64))
    return np.concatenate(due) if due else np.zeros(0, dtype=np.int64)


def _missing_of_grid(step: timedelta, times: Ints, day: date, known_until_us: int, listing: ListingSpans) -> Ints:
    """Return the missing starts of a day's periods of fixed length.

    On an unfinished day, a period is expected one period after its end, because REST has it some seconds late.
    """
    length, start = int(step.total_seconds() * 1e6), clock.day_start_us(day)
    end = start + clock.US_PER_DAY
    known = end if known_until_us >= end else known_until_us - length
    over = max(0, known - start) // length
    due = start + length * np.arange(over, dtype=np.int64)
    missing: Ints = np.setdiff1d(due, times // length * length)
    if any(first == day for first, _ in listing.spans):
        missing = missing[missing > times[0]]
    if any(last == day for _, last in listing.spans):
        missing = missing[missing < times[-1]]
    return missing


def _missing_in_pauses(
    step: timedelta, longest: timedelta, times: Ints, day: date, known_until_us: int, listing: ListingSpans
) -> Ints:
    """Return times at which rows should be in the pauses of a day that are too long, one for each step."""
    every, most = (int(span.total_seconds() * 1e6) for span in (step, longest))
    start = clock.day_start_us(day)
    begins = [] if any(first == day for first, _ in listing.spans) else [start - every]
    ends = [] if any(last == day for _, last in listing.spans) else [min(start + clock.US_PER_DAY, known_until_us)]
    edges = np.concatenate((begins, np.unique(times), ends)).astype(np.int64)
    pauses = np.flatnonzero(np.diff(edges) > most)
    due = [np.arange(edges[at] + every, edges[at + 1] - every // 2, every, dtype=np.int64) for at in pauses]
    return np.concatenate(due) if due else np.zeros(0, dtype=np.int64)


def _before(first: int, step: int, start: int) -> Ints:
    """Return the slots of a day before its first row."""
    return np.arange(first - step, start - 1, -step, dtype=np.int64)[::-1]


def slots_of(times: Ints) -> Ints:
    """Return times (microseconds UTC) rounded to whole minutes. Binance's are late by some milliseconds."""
    rounded: Ints = (times + _MINUTE_US // 2) // _MINUTE_US * _MINUTE_US
    return rounded


def near(times: Ints, others: Ints, slots: Slots) -> npt.NDArray[np.bool_]:
    """Return a mask of the times that lie within the tolerance of another time.

    Args:
        times: Microseconds UTC.
        others: The other times in microseconds UTC, ordered.
        slots: Facts about the rows.
    """
    if len(others) == 0:
        return np.zeros(len(times), dtype=bool)
    after = np.clip(np.searchsorted(others, times), 0, len(others) - 1)
    distance = np.minimum(np.abs(others[after] - times), np.abs(others[np.maximum(after - 1, 0)] - times))
    within: npt.NDArray[np.bool_] = distance <= _tolerance_us(slots)
    return within


def _tolerance_us(slots: Slots) -> int:
    return int(slots.tolerance.total_seconds() * 1e6)
