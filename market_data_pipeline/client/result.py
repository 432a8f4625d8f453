"""Results of ``MarketData``: rows in the type that you want. Checking a request belongs to ``request.py``."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.client import versions as day_records
from market_data_pipeline.client.composition import Composition
from market_data_pipeline.client.request import Request, SeriesSelection, format_moment, listed, refuse_unknown
from market_data_pipeline.client.session import DuckDB, Params, Views, count_rows
from market_data_pipeline.client.snapshot import LiveDay, Snapshot, take_days
from market_data_pipeline.client.states import STATES, state_rows
from market_data_pipeline.errors import DamagedFileError, MarketDataError, UsageError
from market_data_pipeline.lake import reader
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model import faults
from market_data_pipeline.model.datasets import has_shared_times
from market_data_pipeline.model.day import DayFile
from market_data_pipeline.model.places import is_object
from market_data_pipeline.model.schema import may_be_null
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.sql import file_lists, views

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import polars as pl


_SHOWN = 5
"""Rows that a notebook shows."""


class Result(ABC):
    """Rows that you requested. Each call reads them again, in the type that you want.

    A result has the Arrow PyCapsule interface, so ``pl.DataFrame(result)``, ``pa.table(result)`` and
    ``duckdb.sql("FROM result")`` work. A notebook shows its first rows.
    """

    @abstractmethod
    def arrow(self) -> pa.Table:
        """Return the rows as an Arrow table, with zone-aware times in UTC.

        Raises:
            DamagedFileError: A file cannot be read. The text names it.
        """

    @abstractmethod
    def relation(self) -> duckdb.DuckDBPyRelation:
        """Return the rows as a lazy DuckDB relation, with times in UTC without a zone.

        The relation belongs to the process that created it. Faults of a file that appear when the relation runs have
        DuckDB's own error. Run it again if the file was replaced at that moment. Create the relation again if the error
        names a file ``ask-again-…``: days were moved into the file of a month, or the data folder moved. The relation
        of a query reads only the files of the views, and has no time limit.

        Raises:
            DamagedFileError: A file cannot be read. The text names it.

        Examples:
            >>> market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02").relation().count("*").fetchall()
            [(24,)]
        """

    def df(self) -> pd.DataFrame:
        """Return the rows as a pandas frame, with zone-aware times in UTC. Labels of klines are categories.

        Times have the default unit of pandas: nanoseconds in pandas 2, microseconds in pandas 3.

        Raises:
            DamagedFileError: A file cannot be read. The text names it.

        Examples:
            >>> market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02").df().shape[0]
            24
        """
        frame: pd.DataFrame = self.arrow().to_pandas(date_as_object=False, split_blocks=True, self_destruct=True)
        return _in_its_unit(frame)

    def pl(self) -> pl.DataFrame:
        """Return the rows as a polars frame, with zone-aware times in UTC.

        Raises:
            DamagedFileError: A file cannot be read. The text names it.
            UsageError: polars is not installed.

        Examples:
            >>> market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02").pl().height
            24
        """
        frame: pl.DataFrame = _polars().DataFrame(self.arrow())
        return frame

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows. No column is read for it."""

    @abstractmethod
    def _first_rows(self) -> pa.Table:
        """Return as many rows as a notebook shows."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Return the rows for any library that reads Arrow streams."""
        rows: Any = self.arrow()  # its stubs leave this method untyped
        return rows.__arrow_c_stream__(requested_schema)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the result in words, and its first rows."""
        shown = _in_its_unit(self._first_rows().to_pandas(date_as_object=False))
        return f"<p>{escape(repr(self))}</p>{shown.to_html(index=False, border=0)}"


class StoredRows(Result):
    """Rows of stored days, and rows of the live feed that the lake does not have yet."""

    def __init__(
        self,
        layout: Layout,
        connection: DuckDB,
        wanted: Request,
        *,
        final_only: bool = False,
        include_live: bool = True,
        include_forming: bool = False,
    ) -> None:
        """Create the result of a request. ``MarketData`` does this.

        Args:
            connection: DuckDB for relations.
            final_only: Leave out days that are not final, and live rows.
            include_live: Include rows that only the live feed has.
            include_forming: Include candles that are still open.
        """
        self._layout = layout
        self._duckdb = connection
        self._wanted = wanted
        self._final_only = final_only
        self._include_live = include_live and not final_only
        self._include_forming = include_forming
        self._taken: Snapshot | None = None
        self._left_out: dict[str, list[date]] = {}
        """Days by symbol that ``final_only`` leaves out, although the file of their month is read."""

    def __len__(self) -> int:
        """Return the number of rows. No column of a file is read for it.

        Raises:
            DamagedFileError: a file cannot be read; the text names it.
        """
        return self._duckdb.count_parts(self._parts)

    def _first_rows(self) -> pa.Table:
        return _aware(self._duckdb.of_parts(self._parts).limit(_SHOWN).to_arrow_table())

    def wide(self, column: str) -> pd.DataFrame:
        """Return one column as a pandas frame with a row for each time and a column for each symbol.

        Args:
            column: The column, e.g. ``close``.

        Returns:
            A frame whose index is ``open_time`` (UTC), or ``day`` of profiles. Where a symbol has no row, it is NaN.

        Raises:
            UsageError: The rows have no such column, or are trades, of which several share a time.
            DamagedFileError: A file cannot be read. The text names it.

        Examples:
            >>> market.klines(["BTCUSDT", "ETHUSDT"], "1h", "2024-01-01", "2024-01-02").wide("close").shape
            (24, 2)
        """
        wanted = self._wanted
        if has_shared_times(wanted.data_type):
            raise UsageError(f"Several {wanted.data_type} can share a time, so they have no wide form. Use df().")
        time = reader.time_column(wanted.data_type)
        labels = (*reader.labels_of(wanted.data_type), time)
        values = [name for name in wanted.schema.names if name not in labels]
        refuse_unknown("column", column, values, " to spread")
        schema = pa.schema([wanted.schema.field(name) for name in (*labels, column)])
        narrow = StoredRows(
            self._layout,
            self._duckdb,
            replace(wanted, schema=schema),
            final_only=self._final_only,
            include_live=self._include_live,
            include_forming=self._include_forming,
        )
        frame = narrow.df()
        self._taken = narrow._taken
        return frame.assign(symbol=frame["symbol"].astype(str)).pivot(index=time, columns="symbol", values=column)

    def scan(self) -> pl.LazyFrame:
        """Return the rows as a lazy polars frame over the files, so that polars reads only what a query needs.

        Times are zone-aware UTC. The frame names the files as they are now: make it again once days were stored since.

        Raises:
            UsageError: polars is not installed.

        Examples:
            >>> market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02").scan().select("close").collect().height
            24
        """
        polars = _polars()
        wanted = self._wanted
        frames = [self._lazy(polars, piece) for piece in self._take().pieces()]
        frames = frames or [polars.DataFrame(_aware(wanted.schema.empty_table())).lazy()]
        found: pl.LazyFrame = frames[0] if len(frames) == 1 else polars.concat(frames, how="vertical_relaxed")
        return found

    def _lazy(self, polars: Any, piece: Sequence[DayFile] | LiveDay) -> Any:
        wanted = self._wanted
        start, end = self._cut
        if isinstance(piece, LiveDay):
            return polars.DataFrame(_aware(piece.rows(wanted.schema, start, end))).lazy()
        paths = list(dict.fromkeys(day.path for day in piece))
        if is_object(paths[0]):  # the store reads them, so polars gets the rows
            return polars.DataFrame(_aware(reader.read_days(piece, wanted.schema, start, end))).lazy()
        frame: pl.LazyFrame = polars.scan_parquet(paths, hive_partitioning=False, glob=False)
        if start is not None:
            time = polars.col(reader.time_column(wanted.data_type))
            frame = frame.filter((time >= start) & (time < end))
            for symbol, days in self._left_out.items():
                frame = frame.filter(~((polars.col("symbol") == symbol) & time.dt.date().is_in(days)))
        times = [field.name for field in wanted.schema if pa.types.is_timestamp(field.type)]
        return frame.select(wanted.schema.names).with_columns(polars.col(times).dt.replace_time_zone("UTC"))

    @property
    def series(self) -> tuple[SeriesKey, ...]:
        """Return the stored series whose rows these are."""
        return self._wanted.keys

    @property
    def version(self) -> str:
        """Return a hash over the contents of the days that were read, to cite in a backtest.

        It covers the rows that were read last, or those of now if none were read yet. It changes if a day of the
        range is added, removed or stored with other values, and with each live row of such a day. It does not depend on
        the columns, and stays the same if live rows become provisional, or a provisional day final, with equal rows.

        Raises:
            MarketDataError: A day was replaced after its rows were read, so their hash is no longer known.
            DamagedFileError: A file does not match its record. The text names it.

        Examples:
            >>> len(market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02").version)
            64
        """
        with faults.explained():
            taken = self._snapshot() if self._taken is None else self._taken
            version = day_records.version_of(self._layout, taken.stored, taken.live)
        if version is None:
            raise MarketDataError(
                "A day was replaced after its rows were read, so their version is no longer known. Read the rows "
                "again, then their version."
            )
        return version

    def arrow(self) -> pa.Table:
        """Return the rows as an Arrow table."""
        with faults.explained():
            try:
                return self._read()
            except FileNotFoundError:  # removed after it was listed
                try:
                    return self._read()
                except FileNotFoundError as error:
                    raise DamagedFileError(f"Files are removed during the read. {error}") from error

    def _read(self) -> pa.Table:
        return _aware(self._take().read(self._wanted.schema, *self._cut))

    def states(self) -> Result:
        """Return the states of the rows: one row per span of time in which all rows have one state.

        The columns are ``symbol``, ``start`` (inclusive), ``end`` (exclusive), ``state``, ``source`` and ``differing``.
        A state is ``final``, ``provisional`` (replaced when the archive has the day), ``live`` (only the live feed
        has the row) or ``forming`` (the candle is still open). ``differing`` is the number of live rows of a span whose
        stored row has other values. The result has the stored row.

        Raises:
            DamagedFileError: A file does not match its record. The text names it.

        Examples:
            >>> market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-03").states().df()["state"].tolist()
            ['final']
        """
        return TableResult(self._duckdb, self._states(), f"states of {self!r}")

    def _states(self) -> pa.Table:
        with faults.explained():
            return pa.Table.from_pylist(state_rows(self._layout, self._wanted, self._snapshot()), STATES)

    def relation(self) -> duckdb.DuckDBPyRelation:
        """Return the rows as a lazy DuckDB relation. Live rows are those of now."""
        return self._duckdb.of_parts(self._parts)

    def _parts(self, *, live: bool = True) -> Iterator[str | pa.Table]:
        """Yield the rows in order: SQL over files, and tables. ``live=False`` leaves live rows out."""
        mark = self._mark()
        pieces = list(self._take(live=live).pieces())
        for piece in pieces or [[]]:
            if isinstance(piece, LiveDay):
                yield piece.rows(self._wanted.schema, *self._cut)
            else:
                yield self._sql_of(piece, mark)

    def _mark(self) -> Path | None:
        """Return the mark to read first. It must be older than the list of files."""
        first = self._wanted.keys[0]
        return views.newest_mark(self._layout, first.market, first.data_type)

    def _sql_of(self, days: Sequence[DayFile], mark: Path | None) -> str:
        first = self._wanted.keys[0]
        paths = list(dict.fromkeys(day.path for day in days))
        query = file_lists.scan(first.market, first.data_type, paths, self._wanted.schema.names, mark)
        start, end = self._cut
        if start is None or end is None or not paths:
            return query
        time = f'"{reader.time_column(first.data_type)}"'
        conditions = []
        if not _is_whole(days, start, end):
            conditions.append(f"{time} >= TIMESTAMP '{start}' AND {time} < TIMESTAMP '{end}'")
        for symbol, days_left_out in self._left_out.items():
            dates = ", ".join(f"DATE '{day}'" for day in days_left_out)
            conditions.append(f"NOT (symbol = {file_lists.quoted(symbol)} AND CAST({time} AS DATE) IN ({dates}))")
        if conditions:
            query += f" WHERE {' AND '.join(conditions)}"
        return query

    @property
    def _cut(self) -> tuple[datetime, datetime] | tuple[None, None]:
        """Return the first moment and the moment after the last one; None for profiles, which cover whole days."""
        wanted = self._wanted
        return (None, None) if wanted.data_type is DataType.TRADE_PROFILE else (wanted.start, wanted.end)

    def _take(self, *, live: bool = True) -> Snapshot:
        self._taken = self._snapshot(live=live)
        return self._taken

    def _snapshot(self, *, live: bool = True) -> Snapshot:
        with_live = live and self._include_live
        forming = with_live and self._include_forming
        taken = take_days(self._layout, self._wanted, live=with_live, forming=forming)
        if not self._final_only:
            return taken
        final = day_records.final_only(self._layout, taken.stored)
        self._left_out = {}
        for day in {file for file in taken.stored if file.of_month}.difference(final):
            self._left_out.setdefault(day.key.symbol, []).append(day.day)
        return Snapshot(final)

    def __repr__(self) -> str:
        wanted, first = self._wanted, self._wanted.keys[0]
        asked = len(wanted.keys) * max(0, (wanted.last_day - wanted.first_day).days + 1)
        name = " ".join(filter(None, (first.market, first.data_type, first.interval)))
        symbols = listed([key.symbol for key in wanted.keys], 5)
        try:
            taken = self._snapshot()
            held = f"{len(taken.stored) + sum(one.stored is not None for one in taken.live)} of {asked} days stored"
            held += " and final" if self._final_only else ""
            held += f", {len(taken.live)} with live rows" if taken.live else ""
        except MarketDataError as error:
            held = str(error)
        return f"<{name} of {symbols} from {format_moment(wanted.start)} to {format_moment(wanted.end)} UTC: {held}>"


def _is_whole(files: Sequence[DayFile], start: datetime, end: datetime) -> bool:
    """Return True if the files that are read have no row outside a range: then DuckDB need not compare times."""
    days, in_months = {day.day for day in files}, {day.day for day in files if day.of_month}
    if in_months:
        days |= {min(in_months).replace(day=1), clock.days_of_month(max(in_months))[-1]}
    return bool(days) and start <= clock.midnight(min(days)) and clock.midnight(max(days) + clock.DAY) <= end


class ComposedRows(Result):
    """Candles of any interval, composed from stored ones.

    ``parts`` is the number of stored candles in a candle. ``complete`` is True if none of them is missing.
    """

    def __init__(
        self,
        layout: Layout,
        connection: DuckDB,
        composition: Composition,
        *,
        final_only: bool = False,
        include_live: bool = True,
    ) -> None:
        """Create the result of a request. ``MarketData`` does this.

        Args:
            connection: DuckDB for queries and relations.
            final_only: Leave out stored days that are not final, and live rows.
            include_live: Include rows that only the live feed has.
        """
        self._duckdb = connection
        self._composition = composition
        self._sources = [
            StoredRows(layout, connection, one, final_only=final_only, include_live=include_live)
            for one in composition.sources
        ]

    def __len__(self) -> int:
        """Return the number of candles.

        Raises:
            DamagedFileError: A file cannot be read. The text names it.
        """
        counted = self._duckdb.rows_over(lambda: self._query("SELECT count(*) FROM ({})"))
        return int(counted[0][0].as_py())

    def arrow(self) -> pa.Table:
        """Return the rows as an Arrow table."""
        return self._typed(self._duckdb.rows_over(self._query))

    def relation(self) -> duckdb.DuckDBPyRelation:
        """Return the rows as a lazy DuckDB relation. If there are live rows, the candles are composed at once."""
        _, tables = self._query()
        if tables:
            return self._duckdb.of_table(self._duckdb.rows_over(self._query))
        return self._duckdb.stored(
            lambda: self._query(live=False)[0]
        )  # rows that arrive from now on are not part of it

    def scan(self) -> pl.LazyFrame:
        """Return the rows as a lazy polars frame. The candles are composed at once.

        Raises:
            UsageError: polars is not installed.
            DamagedFileError: A file cannot be read. The text names it.
        """
        return self.pl().lazy()

    def wide(self, column: str) -> pd.DataFrame:
        """Return one column as a pandas frame with a row for each ``open_time`` and a column for each symbol.

        Args:
            column: The column, e.g. ``close``.

        Raises:
            UsageError: The rows have no such column.
            DamagedFileError: A file cannot be read. The text names it.

        Examples:
            >>> market.klines(["BTCUSDT", "ETHUSDT"], "3h", "2024-01-01", "2024-01-02").wide("close").shape
            (8, 2)
        """
        labels = ("symbol", "interval", "open_time")
        refuse_unknown("column", column, [name for name in self._composition.names if name not in labels], " to spread")
        frame = self.df()
        return frame.assign(symbol=frame["symbol"].astype(str)).pivot(
            index="open_time", columns="symbol", values=column
        )

    @property
    def series(self) -> tuple[SeriesKey, ...]:
        """Return the stored series from which the candles are composed."""
        return tuple(key for source in self._sources for key in source.series)

    @property
    def version(self) -> str:
        """Return a hash over the contents of the stored days, the interval and the time zone.

        It changes if a day of the range is added, removed or stored with other values.

        Raises:
            MarketDataError: A day was replaced after its rows were read, so their hash is no longer known.
            DamagedFileError: A file does not match its record. The text names it.
        """
        composition = self._composition
        parts = (composition.interval, composition.zone, *(source.version for source in self._sources))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _first_rows(self) -> pa.Table:
        return self._typed(self._duckdb.rows_over(lambda: self._query(f"{{}} LIMIT {_SHOWN}")))

    def states(self) -> Result:
        """Return the states of the stored candles, in the form of :meth:`StoredRows.states`."""
        tables = pa.concat_tables([source._states() for source in self._sources])
        return TableResult(self._duckdb, tables, f"states of {self!r}")

    def _query(self, form: str = "{}", *, live: bool = True) -> tuple[str, Mapping[str, pa.Table]]:
        """Return the query of the candles, and the tables that it reads besides files, by name.

        Args:
            form: SQL around the query.
            live: False leaves live rows out.
        """
        queries, tables = [], dict[str, pa.Table]()
        for source, rows in zip(self._composition.sources, self._sources, strict=True):
            parts = []
            for part in rows._parts(live=live):
                if isinstance(part, str):
                    parts.append(f"({part})")
                else:
                    name = f"live_{len(tables)}"
                    tables[name] = part
                    parts.append(f"(FROM {name})")
            rows_sql = parts[0][1:-1] if len(parts) == 1 else " UNION ALL ".join(parts)
            queries.append(self._composition.query(source, rows_sql))
        if len(queries) == 1:
            return form.format(f"FROM ({queries[0]})"), tables  # in order already
        of_all = " UNION ALL ".join(f"({query})" for query in queries)
        return form.format(f"FROM ({of_all}) ORDER BY symbol, open_time"), tables

    def _typed(self, table: pa.Table) -> pa.Table:
        for index, name in enumerate(table.column_names):
            if name in ("symbol", "interval"):
                table = table.set_column(index, name, table[name].combine_chunks().dictionary_encode())
        return _aware(table)

    def __repr__(self) -> str:
        wanted, composition = self._composition.wanted, self._composition
        name = f"{wanted.keys[0].market} {wanted.data_type} {composition.interval}"
        zone = "" if composition.zone == "UTC" else f" in {composition.zone}"
        symbols = listed([key.symbol for key in wanted.keys], 5)
        sources = ", ".join(map(repr, self._sources))
        return (
            f"<{name}{zone} of {symbols} from {format_moment(wanted.start)} to {format_moment(wanted.end)} UTC, "
            f"composed from {sources}>"
        )


class TableResult(Result):
    """Rows that were computed."""

    def __init__(self, connection: DuckDB, table: pa.Table, name: str) -> None:
        """Create the result.

        Args:
            connection: DuckDB for relations.
            name: Name in words, for notebooks.
        """
        self._duckdb = connection
        self._table = table
        self._name = name

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._table.num_rows

    def _first_rows(self) -> pa.Table:
        return _aware(self._table.slice(0, _SHOWN))

    def arrow(self) -> pa.Table:
        """Return the rows as an Arrow table."""
        return _aware(self._table)

    def relation(self) -> duckdb.DuckDBPyRelation:
        """Return the rows as a DuckDB relation."""
        return self._duckdb.of_table(self._table)

    def __repr__(self) -> str:
        return f"<{self._name}: {len(self)} rows>"


class QueryResult(Result):
    """Rows that answer a query."""

    def __init__(
        self, views: Views, query: str, params: Params = None, selection: SeriesSelection | None = None
    ) -> None:
        """Create the result.

        Args:
            views: The lake's views.
            query: The query.
            params: Values of the query.
            selection: Series that the query reads from the ``quality`` views. None means all.
        """
        self._views = views
        self._query = query
        self._asked = params, selection

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._views.within(count_rows, self._query, *self._asked)

    def _first_rows(self) -> pa.Table:
        table = self._views.within(lambda rows: rows.limit(_SHOWN).to_arrow_table(), self._query, *self._asked)
        return _aware(table)

    def arrow(self) -> pa.Table:
        """Return the rows as an Arrow table."""
        return _aware(self._views.within(self._views.bounded, self._query, *self._asked))

    def relation(self) -> duckdb.DuckDBPyRelation:
        """Return the rows as a lazy DuckDB relation."""
        with self._views.every_view():  # it may be joined with others
            return self._views.within(lambda rows: rows, self._query, *self._asked)

    def check(self) -> None:
        """Bind the query, so that a mistake is reported.

        Raises:
            UsageError: The text is no query, or DuckDB refuses it.
        """
        self._views.within(lambda _: None, self._query, *self._asked)

    def __repr__(self) -> str:
        shown = " ".join(self._query.split())
        columns = ", ".join(self._views.within(lambda rows: rows.columns, self._query, *self._asked))
        return f"<{shown if len(shown) <= 80 else shown[:79] + '…'}: {columns}>"


def _polars() -> Any:
    try:
        import polars as pl
    except ImportError:
        raise UsageError("polars is not installed. Install it: pip install 'market-data-pipeline[polars]'") from None
    return pl


def _in_its_unit(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame that merges on times with those of its pandas: pandas 2 refuses to merge microseconds."""
    import pandas as pd

    if int(pd.__version__.partition(".")[0]) < 3:
        for name in frame.select_dtypes("datetimetz").columns:
            with suppress(pd.errors.OutOfBoundsDatetime):  # years that nanoseconds do not have
                frame[name] = frame[name].dt.as_unit("ns")
    return frame


def _aware(table: pa.Table) -> pa.Table:
    """Return the table with zone-aware times, and nullable columns that match those of other sources."""
    fields = [
        field.with_type(pa.timestamp(field.type.unit, "UTC"))
        if pa.types.is_timestamp(field.type) and field.type.tz is None
        else field
        for field in may_be_null(table.schema)
    ]
    return table.cast(pa.schema(fields))
