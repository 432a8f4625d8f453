"""Find the missing rows and the flat candles of a day. Pure. Tables are ordered by key.

The reasons do not belong here (``verdicts``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import Ints, floats, ints
from market_data_pipeline.model.series import ListingSpans, SeriesKey


def _none() -> Ints:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Missing:
    """Open times (microseconds UTC) of missing candles.

    Attributes:
        inside: Candles that should exist.
        before: Candles before the first stored one on the first listed day. Trading may have begun with that one.
        after: Candles after the last stored one on the last listed day. Trading may have ended with that one.
    """

    inside: Ints
    before: Ints = field(default_factory=_none)
    after: Ints = field(default_factory=_none)

    def __len__(self) -> int:
        """Return the number of all missing candles, expected or not."""
        return len(self.inside) + len(self.before) + len(self.after)


def expected_open_times(key: SeriesKey, day: date, known_until_us: int | None = None) -> Ints:
    """Return the open times (microseconds UTC) of a day's candles that closed by ``known_until_us``.

    Args:
        known_until_us: Microseconds UTC. None means the end of the day.
    """
    step, start = key.step, clock.day_start_us(day)
    over = start + clock.US_PER_DAY
    closed = max(0, min(over if known_until_us is None else known_until_us, over) - start) // step
    return start + step * np.arange(closed, dtype=np.int64)


def off_grid(opened: Ints, step: int) -> Ints:
    """Return the open times that are no multiple of the interval. Spot has a few such days in 2017 and 2018."""
    times: Ints = opened[opened % step != 0]
    return times


def ends_of(opened: Ints, closed: Ints, step: int) -> Ints:
    """Return the ends of candles (microseconds UTC, exclusive) by their close_time, at most their interval.

    A shortened close_time counts. A close_time before the open_time does not.
    """
    last: Ints = np.clip(closed, opened, opened + step - 1)
    # With times in milliseconds, the candle includes its whole last millisecond.
    return np.where(closed % 1000 == 0, np.minimum(last + 1000, opened + step), last + 1)


def missing_candles(
    key: SeriesKey, table: pa.Table, day: date, known_until_us: int, listing: ListingSpans, reach_us: int = 0
) -> Missing:
    """Return the missing candles of a day.

    A candle is not missing if a candle off the grid covers a part of its time.

    Args:
        table: The day's rows, ordered by key.
        known_until_us: The source's clock (microseconds UTC). Only candles closed by then are expected.
        listing: On the first and last listed day, candles may be absent before and after trading.
        reach_us: End of the previous day's last candle if it is off the grid and reaches into this day.
    """
    expected, present = expected_open_times(key, day, known_until_us), ints(table, "open_time")
    if np.array_equal(expected, present):  # nearly always
        return Missing(_none())
    missing = np.setdiff1d(expected, present, assume_unique=True)
    missing = missing[~_covered(missing, table, key.step) & (missing >= reach_us)]
    before, after = np.zeros((2, len(missing)), dtype=bool)
    if len(present):
        if any(first == day for first, _ in listing.spans):
            before = missing < present[0]
        if any(last == day for _, last in listing.spans):
            after = missing > present[-1]
    return Missing(missing[~before & ~after], missing[before], missing[after])


def _covered(missing: Ints, table: pa.Table, step: int) -> npt.NDArray[np.bool_]:
    """Return a mask of the missing candles whose time an off-grid candle covers in part."""
    opened = ints(table, "open_time")
    off = opened % step != 0
    if not off.any():
        return np.zeros(len(missing), dtype=bool)
    ends = ends_of(opened[off], ints(table, "close_time")[off], step)
    slots = np.concatenate([opened[off] // step, (ends - 1) // step]) * step
    return np.isin(missing, slots)


def overlapping(opened: Ints, closed: Ints, table: pa.Table, step: int, reach_us: int = 0) -> npt.NDArray[np.bool_]:
    """Return a mask of the candles that overlap a candle with another open time in a table or the previous day.

    Args:
        opened: Their open times in microseconds UTC, ordered.
        closed: Their close times.
        table: Other candles, ordered.
        step: Length of a candle in microseconds.
        reach_us: End of the previous day's last candle in microseconds UTC.
    """
    ours = ints(table, "open_time")
    within: npt.NDArray[np.bool_] = opened < reach_us
    if len(ours) == 0 or not (len(off_grid(ours, step)) or len(off_grid(opened, step))):
        return within
    ends = ends_of(ours, ints(table, "close_time"), step)
    before = np.searchsorted(ours, opened, side="left") - 1  # the last candle that begins earlier
    within |= (before >= 0) & (ends[np.maximum(before, 0)] > opened)
    after = np.searchsorted(ours, opened, side="right")  # the first candle that begins later
    return within | ((after < len(ours)) & (ours[np.minimum(after, len(ours) - 1)] < ends_of(opened, closed, step)))


def flat_candles(table: pa.Table) -> Ints:
    """Return the open times (microseconds UTC) of candles without volume and trades. Candles of a price have none."""
    if "volume" not in table.column_names:
        return _none()
    flat = (floats(table, "volume") == 0) & (ints(table, "count") == 0)
    times: Ints = ints(table, "open_time")[flat]
    return times


def missing_ids(ids: Ints) -> list[tuple[int, int]]:
    """Return the runs of missing ids between the first and the last id. Both ends are included."""
    if len(ids) == 0 or ids[-1] - ids[0] == len(ids) - 1:  # nearly every day; ids ascend
        return []
    jumps = np.flatnonzero(np.diff(ids) > 1)
    return [(int(ids[at]) + 1, int(ids[at + 1]) - 1) for at in jumps]


def seems_cut(times: Ints, day: date) -> bool:
    """Return True if a day of trades ends so early that its archive may be truncated.

    All archives of 2021-12-14 are (at 09:29). The ids of the day itself do not show it; those of the next day do, if
    that day is stored. A day seems truncated if the pause until midnight is longer than ten minutes and longer than
    five times the longest pause between its trades.
    """
    if len(times) < 2:
        return False  # nothing to compare with
    until_midnight = clock.day_start_us(day) + clock.US_PER_DAY - int(times[-1])
    longest = int(np.diff(times).max(initial=0))
    return until_midnight > max(10 * 60_000_000, 5 * longest)
