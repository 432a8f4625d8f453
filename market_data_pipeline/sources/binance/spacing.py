"""Compute the interval of rows that REST serves without one: the hours since the row before. Pure.

Reading rows does not belong here (``zip_reader.py``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_Ints = npt.NDArray[np.int64]

_HOUR_US = 3_600_000_000
_USUAL_HOURS = 8


def hours_between(times: _Ints) -> _Ints:
    """Return the hours since the row before.

    If the distance is none of Binance's intervals, because a row is missing or none is before it, use the distance to
    the next row. Without that, use eight hours, Binance's usual interval.

    >>> eight, four = 8 * 3_600_000_000, 4 * 3_600_000_000
    >>> hours_between(np.array([0, eight, eight + four, 2 * eight + 3])).tolist()
    [8, 8, 4, 4]

    Args:
        times: Times of the rows (microseconds UTC), ordered.
    """
    distances = np.round(np.diff(times) / _HOUR_US).astype(np.int64)
    since, until = np.r_[0, distances][: len(times)], np.r_[distances, 0][: len(times)]
    hours: _Ints = np.where(_is_interval(since), since, np.where(_is_interval(until), until, _USUAL_HOURS))
    return hours


def _is_interval(hours: _Ints) -> npt.NDArray[np.bool_]:
    valid: npt.NDArray[np.bool_] = (hours >= 1) & (hours <= _USUAL_HOURS)
    return valid
