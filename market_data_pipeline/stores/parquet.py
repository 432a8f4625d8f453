"""The lake as a store: it reads the lake and the live rows, and writes rows from outside into a folder of their own.

Only ingest writes the lake's files, because their rows are verified. A day that is final in the lake is complete:
rows from outside are neither stored nor returned for it. Making days final belongs to ``ingest``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError, UsageError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.day_records import rows_on_record
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_rows import CLOSE_STATE, live_days, read_live_rows
from market_data_pipeline.lake.partitions import day_files_between, stored_dates
from market_data_pipeline.lake.reader import read_days
from market_data_pipeline.model.day import FAILED, HELD, DayFile, DayRecord
from market_data_pipeline.model.places import is_object, place_of
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.settings import load_settings
from market_data_pipeline.stores.base import RowState, SaveReport, Store
from market_data_pipeline.stores.rows import (
    STATE,
    days_among,
    decide,
    first_day_of,
    last_day_of,
    merged,
    micros,
    moment_after,
    naive,
    rows_within,
    stored_rows,
    stored_schema,
    times_of,
    with_state,
    without_state,
)

_T = TypeVar("_T")

_READS = 5
"""Attempts to read files that other processes replace meanwhile."""

_FIRST_DAYS = 2
"""Days that are read first when only the newest rows are wanted. Each further read takes twice as many."""


class ParquetStore(Store):
    """The lake of a data folder, its live rows, and rows from outside next to it.

    Rows of the lake are final or provisional, as their day is. Rows of the live feed are live. Rows that you save are
    at most provisional, and in the folder ``stores`` of the data folder. Only final days hide them and the live rows.

    Args:
        root: The data folder.
        include_live: Read the rows of the live feed, too. They are seen at the time of the row.
        lock_wait_seconds: How long to wait for another process that writes the same series.

    Examples:
        >>> from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
        >>> from market_data_pipeline.stores.parquet import ParquetStore
        >>> key = SeriesKey(EXCHANGE, Market.SPOT, DataType.KLINES, "BTCUSDT", "1h")
        >>> ParquetStore(root).load(key, last=2).num_rows
        2
    """

    def __init__(self, root: Path | str, *, include_live: bool = True, lock_wait_seconds: float = 60) -> None:
        self._layout = Layout(load_settings(dir=place_of(root)).root)
        self._include_live = include_live
        self._lock_wait = lock_wait_seconds

    def save(
        self, key: SeriesKey, rows: pa.Table, state: RowState = RowState.PROVISIONAL, *, seen_at: datetime | None = None
    ) -> SaveReport:
        """Store rows from outside in files of their own; see :meth:`Store.save`.

        Raises:
            UsageError: The rows are not rows of this series, their state is final, or the lake is in a bucket.
            StorageError: The disk refuses.
            SeriesBusyError: Another process writes the same series.
        """
        if state is RowState.FINAL:
            raise UsageError(
                f"Rows of {key} cannot be saved as final, because only a verified archive makes a day of the lake "
                "final. Save them as provisional."
            )
        self._check_folder()
        incoming = stored_rows(key, rows, state, seen_at)
        if not incoming.num_rows:
            return SaveReport()
        numbers = days_among(key, incoming)
        days = [clock.day_of_number(int(number)) for number in np.unique(numbers)]
        folder = self._folder(key)
        with storage.only_writer(folder / "writer.lock", self._lock_wait, f"{key} in {folder}"):
            storage.remove_leftovers(folder)
            final = self._final_days(key, days)
            reports = []
            for day in days:
                some = incoming.filter(pa.array(numbers == clock.day_number(day)))
                if day in final:
                    reports.append(SaveReport(ignored=some.num_rows))
                    continue
                stored = self._outside(key, day)
                decision = decide(key, stored, some)
                if decision.report.written:
                    self._write(key, day, _replaced(key, stored, decision.insert, decision.replace))
                reports.append(decision.report)
        return SaveReport.total(reports)

    def _check_folder(self) -> None:
        if is_object(self._layout.root):
            raise UsageError(
                f"{self._layout.root} is a bucket, and rows from outside are stored next to a lake in a folder. Save "
                "them into PostgresStore, or copy the lake: `market-data copy DIR`."
            )

    def load(
        self,
        key: SeriesKey,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        last: int | None = None,
        least: RowState = RowState.LIVE,
        with_state: bool = False,
    ) -> pa.Table:
        """Return rows of the lake, of the live feed and from outside; see :meth:`Store.load`.

        Raises:
            DamagedFileError: The file of a day is damaged. The message names it.
        """
        rows = _retried(lambda: self._load(key, start, end, last, least))
        return rows if with_state else without_state(rows)

    def exists(self, key: SeriesKey, start: datetime | None = None, end: datetime | None = None) -> bool:
        """Return True if the lake, or the folder next to it, has a closed row in a range."""
        return self.load(key, start, end, last=1).num_rows > 0

    def delete(self, key: SeriesKey, start: datetime | None = None, end: datetime | None = None) -> int:
        """Remove rows from outside, and return their number. The lake's files and the live rows stay."""
        self._check_folder()
        folder, removed = self._folder(key), 0
        if storage.revision(folder) is None:
            return 0
        with storage.only_writer(folder / "writer.lock", self._lock_wait, f"{key} in {folder}"):
            for day in storage.list_dates(folder):
                if not first_day_of(start) <= day <= last_day_of(end):
                    continue
                stored = self._outside(key, day)
                inside = rows_within(key, stored, start, end, RowState.FORMING)
                if inside.num_rows == stored.num_rows:
                    storage.remove(folder / f"{day}.parquet")
                elif inside.num_rows:
                    before = rows_within(key, stored, None, start, RowState.FORMING) if start else stored.slice(0, 0)
                    after = rows_within(key, stored, end, None, RowState.FORMING) if end else stored.slice(0, 0)
                    self._write(key, day, pa.concat_tables([before, after]))
                removed += inside.num_rows
        return removed

    def get_date_range(self, key: SeriesKey) -> tuple[date, date] | None:
        """Return the first and the last UTC day with a file, with live rows, or with closed rows from outside."""
        days = self._days(key)
        return (days[0], days[-1]) if days else None

    def get_missing_dates(self, key: SeriesKey, first: date, last: date) -> list[date]:
        """Return the UTC days without a file, without live rows, and without closed rows from outside."""
        there = set(self._days(key))
        return [day for day in clock.days_between(first, last) if day not in there]

    # --- for stores that join the lake with others ---------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        """Return the data folder."""
        return self._layout

    def records(self, key: SeriesKey, first: date = date.min, last: date = date.max) -> dict[date, DayRecord]:
        """Return the records of the lake's stored days from their files.

        Raises:
            DamagedFileError: The file of a day is damaged. The message names it.
        """
        return _retried(lambda: self._listed(key, first, last)[1])

    # --- files ---------------------------------------------------------------------------------------------------

    def _folder(self, key: SeriesKey) -> Path:
        return self._layout.root / key.folder.replace("lake/", "stores/", 1)

    def _outside(self, key: SeriesKey, day: date) -> pa.Table:
        schema = stored_schema(key)
        path = self._folder(key) / f"{day}.parquet"
        if storage.head(path) is None:
            return schema.empty_table()
        table = parquet.read_table(path, schema.names)
        try:
            return table.cast(schema)
        except (pa.ArrowInvalid, ValueError) as error:
            raise parquet.damaged(path, ValueError("its columns do not have the types of its series")) from error

    def _write(self, key: SeriesKey, day: date, rows: pa.Table) -> None:
        parquet.write_table(self._folder(key) / f"{day}.parquet", rows)

    def _days(self, key: SeriesKey) -> list[date]:
        live = self._live_days(key)  # before the lake: a day leaves the live rows after the lake has it
        of_lake = stored_dates(self._layout, key)
        outside = [day for day in storage.list_dates(self._folder(key)) if day not in of_lake]
        return sorted({*live, *of_lake, *(day for day in outside if _closed(self._outside(key, day)))})

    def _live_days(self, key: SeriesKey) -> list[date]:
        return live_days(self._layout, key) if self._include_live else []

    def _live(self, key: SeriesKey, first: date, last: date) -> pa.Table | None:
        """Return the live rows of days. None if there are none."""
        if not any(first <= day <= last for day in self._live_days(key)):
            return None
        table = read_live_rows(self._layout, key, clock.midnight(first), moment_after(last)).drop_columns([CLOSE_STATE])
        return with_state(table, RowState.LIVE, times_of(key, table)) if table.num_rows else None

    def _listed(self, key: SeriesKey, first: date, last: date) -> tuple[dict[date, DayFile], dict[date, DayRecord]]:
        files = {one.day: one for one in day_files_between(self._layout, key, first, last)}
        if not files:
            return {}, {}
        records = rows_on_record(self._layout, key, files, min(files), max(files))
        for day, record in records.items():
            if day in files and record.outcome == FAILED:
                raise DamagedFileError(record.reason or f"{files[day].path} is damaged.")
        return files, {day: record for day, record in records.items() if day in files and record.outcome == HELD}

    def _final_days(self, key: SeriesKey, days: Iterable[date]) -> set[date]:
        some = sorted(days)
        records = _retried(lambda: self._listed(key, some[0], some[-1])[1])
        return {day for day in some if day in records and records[day].final}

    def _load(
        self, key: SeriesKey, start: datetime | None, end: datetime | None, last: int | None, least: RowState
    ) -> pa.Table:
        first_day, last_day = first_day_of(start), last_day_of(end)
        live = self._live_days(key)
        named = {*live, *stored_dates(self._layout, key), *storage.list_dates(self._folder(key))}
        days = sorted(day for day in named if first_day <= day <= last_day)
        if last is None:
            return rows_within(key, self._rows(key, days, start, end), start, end, least)
        rows: list[pa.Table] = []
        number = _FIRST_DAYS
        while days and sum(table.num_rows for table in rows) < last:
            newest, days = days[-number:], days[:-number]
            rows.insert(0, rows_within(key, self._rows(key, newest, start, end), start, end, least))
            number *= 2
        table = pa.concat_tables(rows) if rows else stored_schema(key).empty_table()
        return table.slice(max(0, table.num_rows - last))

    def _rows(self, key: SeriesKey, days: list[date], start: datetime | None, end: datetime | None) -> pa.Table:
        """Return the rows of days, which are in order. They may include rows outside of the range."""
        if not days:
            return stored_schema(key).empty_table()
        live = self._live(key, days[0], days[-1])  # before the lake, so that no row is in neither
        files, records = self._listed(key, days[0], days[-1])
        bounds = (None, None) if key.data_type is DataType.TRADE_PROFILE else (naive(start), naive(end))
        schema = lake_schema(key.market, key.data_type)
        table = read_days([files[day] for day in days if day in records], schema, *bounds)
        tables = [_with_records(key, table, records)]
        if live is not None:
            final = [clock.day_number(day) for day, record in records.items() if record.final]
            tables.insert(0, live.filter(pa.array(~np.isin(days_among(key, live), final))))
        for day in storage.list_dates(self._folder(key)):
            if days[0] <= day <= days[-1] and not (day in records and records[day].final):
                with suppress(FileNotFoundError):
                    tables.insert(0, self._outside(key, day))
        return merged(key, tables)


def _with_records(key: SeriesKey, table: pa.Table, records: Mapping[date, DayRecord]) -> pa.Table:
    """Add the state of each row's day, and the time at which the day was fetched."""
    days = sorted(records)
    if not days:
        return with_state(table, RowState.PROVISIONAL, clock.now())
    numbers = np.array([clock.day_number(day) for day in days])
    states = np.array([RowState.FINAL if records[day].final else RowState.PROVISIONAL for day in days], np.int64)
    fetched = np.array([micros(_fetched_at(records[day])) for day in days])
    place = np.searchsorted(numbers, days_among(key, table), side="right") - 1
    place = np.maximum(place, 0)
    return with_state(table, states[place], fetched[place])


def _fetched_at(record: DayRecord) -> datetime:
    return record.fetched_at or clock.midnight(record.day)


def _replaced(key: SeriesKey, stored: pa.Table, insert: pa.Table, replace: pa.Table) -> pa.Table:
    """Return the stored rows with those of a decision, which win."""
    tables = [table for table in (stored, insert, replace) if table.num_rows]
    return merged(key, tables) if tables else stored


def _closed(table: pa.Table) -> bool:
    return bool((np.asarray(table[STATE]) >= int(RowState.LIVE)).any())


def _retried(read: Callable[[], _T]) -> _T:
    """Read again if a file vanishes meanwhile, for example because its month was closed."""
    for _ in range(_READS - 1):
        with suppress(FileNotFoundError):
            return read()
    try:
        return read()
    except FileNotFoundError as error:
        raise DamagedFileError(f"Files are removed during the read. {error}") from error
