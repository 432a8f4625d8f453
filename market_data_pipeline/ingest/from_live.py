"""Rows of a day from the live feed, as far as they have no gap from the day's start.

They spare requests to REST. A day of them is provisional until its archive is published. Writing live rows does not
belong here (``live/``).
"""

from __future__ import annotations

from datetime import UTC, date

import numpy as np

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import ints
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_rows import CLOSE_STATE, live_days, read_live_rows
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.provenance import Part, Source
from market_data_pipeline.model.series import SeriesKey

_EDGE_US = 3_600_000_000
"""Time before and after a day in which its neighbouring trades are looked for."""


def live_day(layout: Layout, key: SeriesKey, day: date, url: str) -> DayRows | None:
    """Return the live rows of a day up to the first gap. None if the day does not begin with them.

    Candles begin at midnight. Trades begin with the id after the last live trade of the day before.

    Args:
        url: Base address of the streams, for provenance.
    """
    start = clock.day_start_us(day)
    end = start + clock.US_PER_DAY
    if day not in live_days(layout, key):
        return None
    spec = spec_of(key)
    around = read_live_rows(layout, key, start - _EDGE_US, end + _EDGE_US).drop_columns([CLOSE_STATE])
    keys, times = ints(around, spec.key), ints(around, spec.time)
    first, last = int(np.searchsorted(times, start)), int(np.searchsorted(times, end))
    if first == last or (key.interval is None and (first == 0 or keys[first] != keys[first - 1] + 1)):
        return None
    if key.interval is not None and keys[first] != start:
        return None
    gaps = np.flatnonzero(np.diff(keys[first:]) != key.step)
    stop = first + int(gaps[0]) + 1 if len(gaps) else len(keys)
    rows = min(stop, last) - first
    until = end if stop > last or (key.interval and rows == last - first and keys[last - 1] + key.step >= end) else 0
    until = until or int(times[first + rows - 1]) + (key.step if key.interval else 0)
    at = clock.naive_from_us(until).replace(tzinfo=UTC)
    part = Part(source=Source.LIVE, url=url, first_row=0, rows=rows, fetched_at=at)
    return DayRows(table=around.slice(first, rows), parts=(part,), final=False, known_until_us=until)
