"""One view of the stored days and the live rows of a request, without a seam.

Rows move in one direction: from live to provisional to final. The highest state of a row counts, and a final day has no
live rows. Live rows of a day are removed only after the lake has them, so a day's file and its live rows are read
together, and again if the file changed meanwhile. Writing live rows belongs to ``live``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.client.request import Request
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import partitions, reader
from market_data_pipeline.lake.checksums import content_sha256
from market_data_pipeline.lake.day_records import facts_on_record
from market_data_pipeline.lake.forming_candles import FormingCandle, read_forming
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_eviction import overlap_of
from market_data_pipeline.lake.live_rows import CLOSE_STATE, live_days, read_live_rows
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import HELD, DayFile
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey

LIVE = "live"
"""State of a row that the lake does not have yet."""

FORMING = "forming"
"""State of a candle that is still open."""

_TRIES = 100
"""A day's file changes a few times a day. More changes during one read are a fault."""


@dataclass(frozen=True)
class LiveDay:
    """A day with live rows: all rows of the lake, and those that only the live feed has.

    Attributes:
        table: The rows of the day in the lake's columns, ordered by key.
        is_live: True for each row that the lake does not have.
        differs: True for each stored row that the live feed has with other values.
        stored: The day's file. None if the lake does not have the day.
        ends_open: True if the last row is a candle that is still open.
    """

    key: SeriesKey
    day: date
    table: pa.Table
    is_live: npt.NDArray[np.bool_]
    differs: npt.NDArray[np.bool_]
    stored: DayFile | None = None
    ends_open: bool = False

    def rows(self, schema: pa.Schema, start: datetime | None, end: datetime | None) -> pa.Table:
        """Return the rows from ``start`` to before ``end``, in the columns of a schema."""
        table = self.table
        times = table[reader.time_column(self.key.data_type)]
        if start is not None and start > clock.midnight(self.day):
            table = table.filter(pc.greater_equal(times, pa.scalar(start, times.type)))
            times = table[reader.time_column(self.key.data_type)]
        if end is not None and end < clock.midnight(self.day + clock.DAY):
            table = table.filter(pc.less(times, pa.scalar(end, times.type)))
        return table.select(schema.names)

    @cached_property
    def content_sha256(self) -> str:
        """Return the hash that the ledger will have if the day is stored with these rows, without an open candle."""
        return content_sha256(self.table.slice(0, self.closed_rows))

    @property
    def closed_rows(self) -> int:
        """Return the number of rows without an open candle."""
        return self.table.num_rows - self.ends_open

    def with_forming(self, candle: FormingCandle) -> LiveDay:
        """Return the day with an open candle after its rows."""
        rows = pa.concat_tables([self.table, candle.table()]).unify_dictionaries().combine_chunks()
        is_live, differs = np.append(self.is_live, True), np.append(self.differs, False)
        return replace(self, table=rows, is_live=is_live, differs=differs, ends_open=True)

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        """Return the keys of the rows: open times in microseconds UTC, or ids of trades."""
        return _numbers(self.table, spec_of(self.key).key)

    @property
    def times_us(self) -> npt.NDArray[np.int64]:
        """Return the times of the rows in microseconds UTC."""
        return _numbers(self.table, spec_of(self.key).time)


@dataclass(frozen=True)
class Snapshot:
    """The days of a request.

    Attributes:
        stored: Days of the lake whose file has all of their rows, by series and day.
        live: Days with live rows that the lake does not have, by series and day.
    """

    stored: Sequence[DayFile]
    live: Sequence[LiveDay] = ()
    _places: dict[SeriesKey, int] = field(default_factory=dict)

    def pieces(self) -> Iterator[Sequence[DayFile] | LiveDay]:
        """Yield runs of stored days, and days with live rows, by series and day."""
        if not self.live:
            if self.stored:
                yield self.stored
            return
        ordered: list[DayFile | LiveDay] = [*self.stored, *self.live]
        ordered.sort(key=lambda one: (self._places[one.key], one.day))
        run: list[DayFile] = []
        for one in ordered:
            if isinstance(one, LiveDay):
                if run:
                    yield run
                    run = []
                yield one
            else:
                run.append(one)
        if run:
            yield run

    def read(self, schema: pa.Schema, start: datetime | None, end: datetime | None) -> pa.Table:
        """Read the rows from ``start`` to before ``end``, ordered by series and time.

        Raises:
            DamagedFileError: A file is unreadable.
            FileNotFoundError: A file was removed since.
        """
        if not self.live:
            return reader.read_days(self.stored, schema, start, end)

        def read(piece: Sequence[DayFile] | LiveDay) -> pa.Table:
            if isinstance(piece, LiveDay):
                return piece.rows(schema, start, end)
            return reader.read_days(piece, schema, start, end)

        pieces = list(self.pieces())
        if len(pieces) < 3:
            tables = list(map(read, pieces))
        else:
            with ThreadPoolExecutor(2) as threads:
                tables = list(threads.map(read, pieces))
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables).unify_dictionaries()


def take_days(layout: Layout, wanted: Request, *, live: bool = True, forming: bool = False) -> Snapshot:
    """List the stored days of a request, and read its live rows.

    Args:
        live: False leaves live rows out.
        forming: Include candles that are still open. It needs ``live``.

    Raises:
        DamagedFileError: A day that also has live rows is damaged. Or files change faster than they can be read.
    """
    for _ in range(_TRIES):
        # Before the rows: a candle that closes meanwhile is then a row, and not left out.
        found_open = [one for key in wanted.keys if (one := read_forming(layout, key)) is not None] if forming else []
        found = _take(layout, wanted, live=live)
        if found is not None:
            try:
                return _with_open_candles(layout, wanted, found, found_open)
            except FileNotFoundError:
                continue
    raise DamagedFileError("Files are replaced during the read. Read again.")


def take_live_days(layout: Layout, wanted: Request) -> list[LiveDay]:
    """Return the days of a request with live rows that the lake does not have.

    Raises:
        DamagedFileError: As :func:`take_days`.
    """
    days = [day for key in wanted.keys for day in _live_days(layout, key, wanted.first_day, wanted.last_day)]
    if not days:
        return []
    begin, over = clock.midnight(min(days)), clock.midnight(max(days) + clock.DAY)
    part = replace(wanted, start=max(wanted.start, begin), end=min(wanted.end, over))
    return list(take_days(layout, part).live)


def _take(layout: Layout, wanted: Request, *, live: bool) -> Snapshot | None:
    """Return a snapshot. None if it may have a seam: a day's file changed while its live rows were read."""
    first, last = wanted.first_day, wanted.last_day
    days = {key: found for key in wanted.keys if live and (found := _live_days(layout, key, first, last))}
    stored = {key: partitions.day_files_between(layout, key, first, last) for key in wanted.keys}
    merged: list[LiveDay] = []
    for key, some in days.items():
        on_disk = {file.day: file for file in stored[key]}
        try:
            # The newest day first: rows that arrive meanwhile then leave no gap before midnight.
            of_key = [_merged(layout, key, day, on_disk.get(day)) for day in reversed(some)]
        except FileNotFoundError:
            return None
        merged += [one for one in reversed(of_key) if one is not None]
    if live:
        for key in wanted.keys:
            if _live_days(layout, key, first, last) != days.get(key, []):
                return None
            if key in days:
                since = days[key][0]
                now = partitions.day_files_between(layout, key, since, last)
                if now != [file for file in stored[key] if file.day >= since]:
                    return None
    replaced = {(one.key, one.day) for one in merged}
    kept = [file for some in stored.values() for file in some if (file.key, file.day) not in replaced]
    return Snapshot(kept, merged, {key: place for place, key in enumerate(wanted.keys)})


def _with_open_candles(layout: Layout, wanted: Request, taken: Snapshot, candles: Sequence[FormingCandle]) -> Snapshot:
    """Return a snapshot with the open candles of a request, except those that are rows by now.

    Raises:
        FileNotFoundError: The file of a day was removed since.
    """
    for candle in candles:
        day = candle.opened.date()
        if not wanted.start <= candle.opened < wanted.end:
            continue
        found = next((one for one in taken.live if (one.key, one.day) == (candle.key, day)), None)
        of_day = found or _day_to_extend(layout, candle.key, day, taken)
        if of_day is None or (of_day.table.num_rows and int(of_day.keys[-1]) >= candle.open_us):
            continue
        live = [*(one for one in taken.live if one is not found), of_day.with_forming(candle)]
        stored = [file for file in taken.stored if (file.key, file.day) != (candle.key, day)]
        taken = replace(taken, stored=stored, live=live)
    return taken


def _day_to_extend(layout: Layout, key: SeriesKey, day: date, taken: Snapshot) -> LiveDay | None:
    """Return a day without live rows of its own. None if it is final: the archive has all of its rows."""
    stored = next((file for file in taken.stored if (file.key, file.day) == (key, day)), None)
    schema, none = lake_schema(key.market, key.data_type), np.zeros(0, np.bool_)
    if stored is None:
        return LiveDay(key, day, schema.empty_table(), none, none)
    record = facts_on_record(layout, key, {day: stored}, day, day).get(day)
    if record is None or record.outcome != HELD or record.final:
        return None
    table = reader.read_days([stored], schema)
    none = np.zeros(table.num_rows, np.bool_)
    return LiveDay(key, day, table, none, none, stored)


def _live_days(layout: Layout, key: SeriesKey, first: date, last: date) -> list[date]:
    return [day for day in live_days(layout, key) if first <= day <= last]


def _merged(layout: Layout, key: SeriesKey, day: date, stored: DayFile | None) -> LiveDay | None:
    """Return the rows of a day. None if the lake has all of them, or the day is final."""
    start = clock.day_start_us(day)
    live = read_live_rows(layout, key, start, start + clock.US_PER_DAY).drop_columns([CLOSE_STATE])
    if live.num_rows == 0:
        return None
    if stored is None:
        return LiveDay(key, day, live, np.ones(live.num_rows, np.bool_), np.zeros(live.num_rows, np.bool_))
    record = facts_on_record(layout, key, {day: stored}, day, day).get(day)
    if record is None or record.outcome != HELD or record.final:
        return None  # a damaged file has its own error when it is read
    table = reader.read_days([stored], lake_schema(key.market, key.data_type))
    is_stored, differs = overlap_of(key, live, table)
    fresh = live.filter(pa.array(~is_stored))
    if fresh.num_rows == 0:
        return None
    name = spec_of(key).key
    rows = pa.concat_tables([table, fresh]).unify_dictionaries()
    keys = _numbers(rows, name)
    order = np.argsort(keys, kind="stable")
    if bool((np.diff(order) != 1).any()):
        rows, keys = rows.take(order), keys[order]
    is_live = np.isin(keys, _numbers(fresh, name))
    return LiveDay(key, day, rows.combine_chunks(), is_live, np.isin(keys, _numbers(live, name)[differs]), stored)


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = table[name].cast(pa.int64()).to_numpy()
    return numbers
