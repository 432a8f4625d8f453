"""The newest candles of series, in the memory of one process: filled from the lake, continued from the live rows.

A window is read again as soon as a day of its series is stored, replaced or removed. So it always has the rows that
:func:`take_days` returns. Encoding and caching of answers belong to ``server``.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.client.request import Request
from market_data_pipeline.client.snapshot import take_days
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_rows import CLOSE_STATE, live_days, live_file, read_live_tail
from market_data_pipeline.lake.reader import time_column
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey

_ROWS = {"1m": 1440, "5m": 864, "15m": 672, "1h": 720, "4h": 540, "1d": 365}
"""Rows of a window: 24 hours of 1m, 3 days of 5m, 7 of 15m, 30 of 1h, 90 of 4h, and a year of 1d."""

_OTHER_ROWS = 720

_LATE = timedelta(hours=1)
"""Time after the end of a day in which no archive has it."""

_Identity = tuple[int, int]


@dataclass(frozen=True)
class _Window:
    """Rows of one series from ``begin`` on.

    Attributes:
        lake: Identity of the series' files in the lake.
        live: Inode and size of each file of live rows.
    """

    begin: datetime
    table: pa.Table
    times_us: npt.NDArray[np.int64]
    lake: tuple[object, ...]
    live: dict[date, _Identity]


class HotWindow:
    """The newest candles of the series that were requested last. Threads may share it.

    Args:
        most_bytes: Most bytes of all windows. The least recently used ones are removed first.
    """

    def __init__(self, layout: Layout, most_bytes: int = 64_000_000) -> None:
        self._layout = layout
        self._most_bytes = most_bytes
        self._windows: OrderedDict[SeriesKey, _Window] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def __len__(self) -> int:
        """Return the number of series in memory."""
        return len(self._windows)

    def rows(self, key: SeriesKey, start: datetime, end: datetime) -> pa.Table | None:
        """Return all rows of a series of candles from ``start`` to before ``end``, in all columns of the lake.

        Args:
            start: Naive UTC.
            end: Naive UTC.

        Returns:
            None if the window does not reach back to ``start``.

        Raises:
            DamagedFileError: A file of the window is damaged.
        """
        begin = clock.naive_utc(clock.now()) - window_span(key)
        if key.interval is None or start < begin:
            return None
        with self._lock:
            window, before = self._current(key, min(begin, start)), self._windows.get(key)
            if window is not before:
                self._windows[key] = window
                self.bytes += window.table.nbytes - (before.table.nbytes if before is not None else 0)
            self._windows.move_to_end(key)
            while self.bytes > self._most_bytes and self._windows:
                self.bytes -= self._windows.popitem(last=False)[1].table.nbytes
        first, last = np.searchsorted(window.times_us, [_us(start), _us(end)])
        return window.table.slice(int(first), max(0, int(last - first)))

    def _current(self, key: SeriesKey, begin: datetime) -> _Window:
        lake, live = _lake_identity(self._layout, key), _live_identities(self._layout, key)
        known = self._windows.get(key)
        if known is None or known.lake != lake or known.begin > begin:
            return self._read(key, begin, lake, live)
        if known.live == live:
            return known
        return self._continued(key, known, live) or self._read(key, begin, lake, live)

    def _continued(self, key: SeriesKey, known: _Window, live: dict[date, _Identity]) -> _Window | None:
        """Return a window with the rows that the feed appended. None if they do not follow those in memory."""
        tables = [known.table]
        if not known.live.keys() <= live.keys():
            return None
        for day, (inode, size) in sorted(live.items()):
            before = known.live.get(day, (inode, 0))
            if before[0] != inode or before[1] > size:
                return None
            if before[1] < size:
                if clock.now() - _LATE > clock.midnight(day + clock.DAY).replace(tzinfo=UTC):
                    return None  # the day may be final by now, and then the archive decides
                tables.append(read_live_tail(self._layout, key, day, before[1], size).drop_columns([CLOSE_STATE]))
        table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
        window = _Window(known.begin, table, _times(table, key), known.lake, live)
        return window if bool((np.diff(window.times_us) > 0).all()) else None

    def _read(self, key: SeriesKey, begin: datetime, lake: tuple[object, ...], live: dict[date, _Identity]) -> _Window:
        schema = lake_schema(key.market, key.data_type)
        end = clock.naive_utc(clock.now()) + clock.DAY
        table = take_days(self._layout, Request((key,), begin, end, schema)).read(schema, begin, end)
        table = table.combine_chunks()
        return _Window(begin, table, _times(table, key), lake, live)


def window_span(key: SeriesKey) -> timedelta:
    """Return the time that the window of a series of candles covers."""
    return timedelta(microseconds=key.step * _ROWS.get(key.interval or "", _OTHER_ROWS))


def _lake_identity(layout: Layout, key: SeriesKey) -> tuple[object, ...]:
    return tuple(storage.revision(path) for path in (layout.ledger(key), layout.folder(key), layout.months(key)))


def _live_identities(layout: Layout, key: SeriesKey) -> dict[date, _Identity]:
    found = {day: storage.revision(live_file(layout, key, day)) for day in live_days(layout, key)}
    return {day: (revision[2], revision[1]) for day, revision in found.items() if revision is not None}


def _times(table: pa.Table, key: SeriesKey) -> npt.NDArray[np.int64]:
    times: npt.NDArray[np.int64] = table[time_column(key.data_type)].cast(pa.int64()).to_numpy()
    return times


def _us(moment: datetime) -> int:
    return clock.to_us(moment.replace(tzinfo=UTC))
