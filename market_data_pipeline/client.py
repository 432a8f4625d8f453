"""``MarketData``: the lake for analysts, from Python and SQL.

What belongs here: what people may ask for (symbols, moments, columns), what is refused and how that is said, and the
types in which answers are handed out. What does not: reading files (``lake/reading.py``), views (``lake/catalog.py``),
downloading (``sync.py``). Nothing here writes to the lake. DuckDB, pandas and polars are imported when asked for.
"""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.errors import MarketDataError, UsageError
from market_data_pipeline.lake import catalog, files, reading
from market_data_pipeline.lake.files import DamagedFileError, FileStat
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import FAILED, HELD, NOT_LISTED, Ledger, LedgerRow
from market_data_pipeline.lake.reading import DayFile
from market_data_pipeline.series import EXCHANGE, INTERVALS, DataType, Market, SeriesKey, interval_us, intervals_of
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.specs import ARCHIVE_BEGINS, lake_schema
from market_data_pipeline.universe import Universe, load_universe

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import polars as pl

Moment = datetime | date | str
"""A date, a datetime or ISO text. Without a zone it is UTC; a date is its midnight."""

_T = TypeVar("_T")

_LISTED_NAMES = 40
"""Names that an error lists before it says how many more there are."""

_TRIES = 3
"""How often DuckDB is asked where a file may have been replaced while it read."""

_REASONS = 5
"""Days that could not be brought whose reasons an error tells."""

_ARCHIVE_HOURS = 3
"""Daily archives appear between 03:00 and 09:00 UTC of the next day."""

_ASK_AGAIN_AFTER = timedelta(hours=1)
"""How long a day that waits for its archive is left alone after it was asked for."""


class MarketData:
    """Binance's market history as it lies in a lake.

    >>> from market_data_pipeline import MarketData
    >>> market = MarketData("data")  # doctest: +SKIP
    >>> market.klines(["BTCUSDT", "ETHUSDT"], "1h", "2024-01-01", "2024-02-01").df()  # doctest: +SKIP
    >>> market.sql("SELECT symbol, max(high) FROM binance_spot.klines GROUP BY symbol").df()  # doctest: +SKIP

    Everywhere, ``start`` is inclusive and ``end`` exclusive, so a date as ``end`` leaves that day out; no ``end`` means
    now. Moments are dates, datetimes or ISO text, in UTC where they have no zone. Rows come ordered by symbol and time;
    the columns ``symbol``, ``interval`` (of klines) and the time are always among them, first.

    Args:
        root: The data folder; None means ``MARKET_DATA_DIR``, or ``data``.

    Raises:
        UsageError: a setting in the environment is wrong.
    """

    def __init__(self, root: str | PathLike[str] | None = None) -> None:
        self._settings = load_settings() if root is None else load_settings(dir=Path(root))
        self._layout = Layout(self._settings.root)
        self._duckdb = _DuckDB(self._layout)

    def klines(
        self,
        symbols: str | Iterable[str],
        interval: str,
        start: Moment,
        end: Moment | None = None,
        market: str = "spot",
        columns: str | Iterable[str] | None = None,
        sync: bool = False,
    ) -> Result:
        """Candles of one interval whose ``open_time`` lies in a range.

        Args:
            symbols: One symbol or several.
            interval: ``1s`` (spot only), ``1m``, ``3m``, … ``1d``.
            start: From when on, inclusive.
            end: Until when, exclusive; None means now.
            market: ``spot``, ``um`` or ``cm``.
            columns: Columns beside symbol, interval and open_time; None means all.
            sync: First bring what the range lacks, through Dagster and on record.

        Raises:
            UsageError: a symbol, interval, market or column is not there, or a moment cannot be meant.
            MarketDataError: with ``sync``, days could not be brought.
        """
        return self._rows(DataType.KLINES, symbols, interval, start, end, market, columns, sync)

    def agg_trades(
        self,
        symbols: str | Iterable[str],
        start: Moment,
        end: Moment | None = None,
        market: str = "spot",
        columns: str | Iterable[str] | None = None,
        sync: bool = False,
    ) -> Result:
        """Aggregated trades whose ``transact_time`` lies in a range, ordered by symbol and ``agg_trade_id``.

        Args:
            symbols: One symbol or several.
            start: From when on, inclusive.
            end: Until when, exclusive; None means now.
            market: ``spot``, ``um`` or ``cm``.
            columns: Columns beside symbol and transact_time; None means all.
            sync: First bring what the range lacks, through Dagster and on record.

        Raises:
            UsageError: a symbol, market or column is not there, or a moment cannot be meant.
            MarketDataError: with ``sync``, days could not be brought.
        """
        return self._rows(DataType.AGG_TRADES, symbols, None, start, end, market, columns, sync)

    def trade_profile(
        self,
        symbols: str | Iterable[str],
        start: Moment,
        end: Moment | None = None,
        market: str = "spot",
        columns: str | Iterable[str] | None = None,
        sync: bool = False,
    ) -> Result:
        """The daily profile of trades (VWAP, point of control, cumulative delta, …), a row a day.

        Args:
            symbols: One symbol or several.
            start: From when on: days whose midnight (UTC) is not before it.
            end: Until when: days whose midnight is before it; None means now.
            market: ``spot``, ``um`` or ``cm``.
            columns: Columns beside symbol and day; None means all.
            sync: First bring what the range lacks, through Dagster and on record: trades, then profiles.

        Raises:
            UsageError: a symbol, market or column is not there, or a moment cannot be meant.
            MarketDataError: with ``sync``, days could not be brought.
        """
        return self._rows(DataType.TRADE_PROFILE, symbols, None, start, end, market, columns, sync)

    def sql(self, query: str) -> Result:
        """Run a query over the views: ``binance_spot.klines``, ``binance_um.agg_trades``, ``quality.coverage``, ….

        All views have all symbols, also those that are no longer collected. For one symbol the macros
        ``binance_spot.candles('BTCUSDT', '1m', '2024-01-01', '2024-02-01')`` and ``binance_spot.trades(…)`` are faster.

        Raises:
            UsageError: DuckDB refuses the query; its words are in the text.
            DamagedFileError: a file that the query needs is damaged; the text names it.
        """
        answer = _Answer(self._duckdb, query)
        answer.relation()  # so that a mistake is said here, and not where the rows are taken
        return answer

    def coverage(self) -> Result:
        """Which days are held, from where, provisional or final, what their checks found, and which days failed.

        One row for each day of each series that was ever asked for: the view ``quality.coverage``, in order.
        """
        return self.sql('FROM quality.coverage ORDER BY exchange, market, data_type, symbol, "interval", day')

    def __repr__(self) -> str:
        return f"MarketData({str(self._layout.root)!r})"

    def _rows(
        self,
        data_type: DataType,
        symbols: str | Iterable[str],
        interval: str | None,
        start: Moment,
        end: Moment | None,
        market: str,
        columns: str | Iterable[str] | None,
        sync: bool,
    ) -> Result:
        in_market = _market(market)
        if data_type is DataType.KLINES:
            _check_interval(in_market, interval)
        wanted = _Wanted(
            tuple(SeriesKey(EXCHANGE, in_market, data_type, symbol, interval) for symbol in _symbols(symbols)),
            *_range(start, end),
            _columns(in_market, data_type, columns),
        )
        if sync:
            _bring(self._settings, self._layout, wanted)
        else:
            _check_held(self._layout, wanted.keys)
        return _Stored(self._layout, self._duckdb, wanted)


class Result(ABC):
    """Rows that were asked for, read each time when they are taken, in the type that is wanted."""

    @abstractmethod
    def arrow(self) -> pa.Table:
        """The rows as an Arrow table; times are zone-aware UTC.

        Raises:
            DamagedFileError: a file cannot be read; the text names it.
        """

    @abstractmethod
    def relation(self) -> duckdb.DuckDBPyRelation:
        """The rows as a lazy DuckDB relation; times are UTC without zone, the session's TimeZone is UTC.

        What is found wrong with a file only when the relation is run is told by DuckDB's own error. If the file was
        replaced in that moment, run it again.

        Raises:
            DamagedFileError: a file cannot be read; the text names it.
        """

    def df(self) -> pd.DataFrame:
        """The rows as a pandas frame; times are zone-aware UTC, symbol and interval of klines categories.

        Raises:
            DamagedFileError: a file cannot be read; the text names it.
        """
        frame: pd.DataFrame = self.arrow().to_pandas(date_as_object=False, split_blocks=True, self_destruct=True)
        return frame

    def pl(self) -> pl.DataFrame:
        """The rows as a polars frame; times are zone-aware UTC.

        Raises:
            DamagedFileError: a file cannot be read; the text names it.
            UsageError: polars is not installed.
        """
        try:
            import polars as pl
        except ImportError:
            raise UsageError(
                "polars is not installed. Install it: pip install 'market-data-pipeline[polars]'"
            ) from None
        return pl.DataFrame(self.arrow())


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What was asked for, checked.

    Attributes:
        keys: Series of one market and data type, in the order of their symbols.
        start: First moment, UTC without zone.
        end: First moment after the range.
        schema: The columns.
    """

    keys: tuple[SeriesKey, ...]
    start: datetime
    end: datetime
    schema: pa.Schema

    @property
    def data_type(self) -> DataType:
        return self.keys[0].data_type

    @property
    def first_day(self) -> date:
        """The first day that can have rows in the range."""
        day = max(self.start.date(), ARCHIVE_BEGINS)
        begun = self.data_type is DataType.TRADE_PROFILE and self.start > _midnight(day)
        return day + timedelta(days=1) if begun else day

    @property
    def last_day(self) -> date:
        """The last day that can have rows in the range; before the first where none can."""
        day = self.end.date()
        return day if self.end > _midnight(day) or day == date.min else day - timedelta(days=1)

    def days_through(self, last: date) -> list[date]:
        """The days of the range up to one, in order."""
        first = self.first_day
        return [first + timedelta(days=n) for n in range((min(last, self.last_day) - first).days + 1)]


class _Stored(Result):
    """Rows of files of the lake."""

    def __init__(self, layout: Layout, connection: _DuckDB, wanted: _Wanted) -> None:
        self._layout = layout
        self._duckdb = connection
        self._wanted = wanted

    def arrow(self) -> pa.Table:
        try:
            return self._read()
        except FileNotFoundError:  # removed since it was listed; one that is replaced is read as it was or as it is
            try:
                return self._read()
            except FileNotFoundError as error:
                raise DamagedFileError(f"Files are being removed while they are read. {error}") from error

    def _read(self) -> pa.Table:
        return _aware(reading.read_days(self._held(), self._wanted.schema, *self._cut))

    def relation(self) -> duckdb.DuckDBPyRelation:
        return self._duckdb.stored(self._sql)

    def _sql(self) -> str:
        first = self._wanted.keys[0]
        paths = [day.path for day in self._held()]
        query = catalog.scan(first.market, first.data_type, paths, self._wanted.schema.names)
        start, end = self._cut
        if start is None or not paths:
            return query
        time = f'"{reading.time_column(first.data_type)}"'
        return f"{query} WHERE {time} >= TIMESTAMP '{start}' AND {time} < TIMESTAMP '{end}'"

    @property
    def _cut(self) -> tuple[datetime, datetime] | tuple[None, None]:
        """Where rows are cut: a profile is of a whole day."""
        wanted = self._wanted
        return (None, None) if wanted.data_type is DataType.TRADE_PROFILE else (wanted.start, wanted.end)

    def _held(self) -> list[DayFile]:
        wanted = self._wanted
        return [
            day
            for key in wanted.keys
            for day in reading.days_held(self._layout, key, wanted.first_day, wanted.last_day)
        ]

    def __repr__(self) -> str:
        wanted, first = self._wanted, self._wanted.keys[0]
        asked = len(wanted.keys) * max(0, (wanted.last_day - wanted.first_day).days + 1)
        name = " ".join(filter(None, (first.market, first.data_type, first.interval)))
        symbols = _listed([key.symbol for key in wanted.keys], 5)
        return (
            f"<{name} of {symbols} from {_plain(wanted.start)} to {_plain(wanted.end)} UTC: "
            f"{len(self._held())} of {asked} days held>"
        )


class _Answer(Result):
    """Rows that a query answers with."""

    def __init__(self, connection: _DuckDB, query: str) -> None:
        self._duckdb = connection
        self._query = query

    def arrow(self) -> pa.Table:
        return _aware(self._duckdb.rows(self._query))

    def relation(self) -> duckdb.DuckDBPyRelation:
        return self._duckdb.answer(self._query)

    def __repr__(self) -> str:
        shown = " ".join(self._query.split())
        columns = ", ".join(self.relation().columns)
        return f"<{shown if len(shown) <= 80 else shown[:79] + '…'}: {columns}>"


_QUERIES = frozenset({"SELECT", "EXPLAIN", "MULTI", "CALL", "PRAGMA"})
"""DuckDB's kinds of statements that only answer; MULTI is PIVOT."""


class _DuckDB:
    """One DuckDB in memory; the lake's views are made in it when first asked for, and kept up with the lake.

    Each thread has its own session, since DuckDB refuses a second call on a session that is at work. Relations made in
    one thread can be joined.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._database: duckdb.DuckDBPyConnection | None = None
        self._sessions = threading.local()
        self._made: list[str] = []
        self._broken: MarketDataError | None = None

    def stored(self, query: Callable[[], str]) -> duckdb.DuckDBPyRelation:
        """A lazy relation over files; the query's text is made anew if a file vanished before it was looked at."""
        return self._run(lambda: self._session().sql(query()))

    def answer(self, query: str) -> duckdb.DuckDBPyRelation:
        """A lazy relation that answers a query over the views."""
        return self._run(lambda: self._answer(query))

    def rows(self, query: str) -> pa.Table:
        """The rows that answer a query over the views."""
        return self._run(lambda: self._answer(query).to_arrow_table())

    def _answer(self, query: str) -> duckdb.DuckDBPyRelation:
        session = self._session()
        kinds = [statement.type.name for statement in session.extract_statements(query)]
        if len(kinds) != 1 or kinds[0] not in _QUERIES:
            what = " and ".join(kinds) or "nothing"
            raise UsageError(
                f"One query is answered at a time (SELECT, FROM, DESCRIBE, …), and nothing else: not {what}."
            )
        self._make_views(session)
        return session.sql(query)

    def _run(self, read: Callable[[], _T]) -> _T:
        import duckdb

        try:
            for _ in range(_TRIES - 1):
                try:
                    return read()
                except duckdb.Error as error:
                    if not catalog.may_have_been_replaced(error):
                        raise
            return read()
        except duckdb.CatalogException as error:
            raise self._broken or catalog.lake_error(error, self._layout) from error
        except duckdb.Error as error:
            raise catalog.lake_error(error, self._layout) from error

    def _session(self) -> duckdb.DuckDBPyConnection:
        import duckdb

        with self._lock:
            if self._database is None:
                self._database = duckdb.connect()
                self._database.execute("SET GLOBAL TimeZone = 'UTC'")
                # A name that is no view must not find a variable of this module.
                self._database.execute("SET GLOBAL python_enable_replacements = false")
            if not hasattr(self._sessions, "own"):
                self._sessions.own = self._database.cursor()
        own: duckdb.DuckDBPyConnection = self._sessions.own
        return own

    def _make_views(self, session: duckdb.DuckDBPyConnection) -> None:
        import duckdb

        statements = catalog.statements(self._layout)
        with self._lock:
            if statements == self._made:
                return
            self._broken = None
            for statement in statements:
                try:
                    session.execute(statement)
                except duckdb.Error as error:
                    # A damaged file keeps its view from being made; the others are of use all the same.
                    self._broken = catalog.lake_error(error, self._layout)
            self._made = statements if self._broken is None else []


def _aware(table: pa.Table) -> pa.Table:
    """The same table with zone-aware times."""
    fields = [
        field.with_type(pa.timestamp(field.type.unit, "UTC"))
        if pa.types.is_timestamp(field.type) and field.type.tz is None
        else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


# --- what may be asked for ---------------------------------------------------------------------------------


def _market(text: str) -> Market:
    if text not in list(Market):
        raise UsageError(f"There is no market {text!r}. {_there_are(text, list(Market))}")
    return Market(text)


def _check_interval(market: Market, interval: str | None) -> None:
    allowed = intervals_of(market)
    if interval not in allowed:
        raise UsageError(f"There is no kline interval {interval!r} in {market}. {_there_are(str(interval), allowed)}")


def _names(what: str, value: object) -> list[str]:
    """One name or several as a list."""
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"{name!r} is not the name of a {what}: give text, or a list of texts.")
    return [str(name) for name in names]


def _symbols(symbols: str | Iterable[str]) -> list[str]:
    names = _names("symbol", symbols)
    if not names:
        raise UsageError("No symbol was asked for.")
    return sorted(set(names))


def _columns(market: Market, data_type: DataType, columns: str | Iterable[str] | None) -> pa.Schema:
    schema = lake_schema(market, data_type)
    if columns is None:
        return schema
    asked = _names("column", columns)
    for name in asked:
        if name not in schema.names:
            raise UsageError(f"There is no column {name!r} in {market} {data_type}. {_there_are(name, schema.names)}")
    first = (*reading.labels_of(data_type), reading.time_column(data_type))
    return pa.schema([schema.field(name) for name in dict.fromkeys((*first, *asked))])


def _range(start: Moment, end: Moment | None) -> tuple[datetime, datetime]:
    first = _moment(start, "start")
    last = clock.naive_utc(clock.now()) if end is None else _moment(end, "end")
    if first > last:
        until = "now" if end is None else "end"
        raise UsageError(f"start ({_plain(first)} UTC) is after {until} ({_plain(last)} UTC).")
    return first, last


def _moment(value: object, name: str) -> datetime:
    moment = _parsed(value, name) if isinstance(value, str) else value
    if isinstance(moment, datetime) and moment == moment:  # pandas' NaT is a datetime that is not equal to itself
        try:
            in_utc = moment if moment.tzinfo is None else moment.astimezone(UTC)
        except OverflowError:
            raise UsageError(f"{name} is {value!r}, which lies outside of the calendar.") from None
        # Made anew, since subclasses such as pandas.Timestamp write themselves and count in their own ways.
        return datetime.combine(in_utc.date(), in_utc.time())
    if isinstance(moment, date) and not isinstance(moment, datetime):
        return _midnight(moment)
    raise UsageError(f"{name} is {value!r}, which is no date. {_HOW_MOMENTS_ARE_WRITTEN}")


_HOW_MOMENTS_ARE_WRITTEN = (
    "Give a date, a datetime, or text such as 2024-01-31, 2024-01-31T12:30 or 2024-01-31T12:30+02:00; "
    "what has no zone is UTC."
)


def _parsed(text: str, name: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"{name} is {text!r}, which is no date. {_HOW_MOMENTS_ARE_WRITTEN}") from None


def _check_held(layout: Layout, keys: Sequence[SeriesKey]) -> None:
    """Refuse series of which nothing was ever asked for.

    Raises:
        UsageError: the text lists the symbols, or the symbol's intervals, that there are.
    """
    for key in keys:
        if not layout.folder(key).is_dir() and not layout.ledger(key).is_file():
            raise UsageError(_not_there(layout, key))


def _not_there(layout: Layout, key: SeriesKey) -> str:
    alike = [
        held for held in catalog.series_held(layout) if (held.market, held.data_type) == (key.market, key.data_type)
    ]
    intervals = sorted((k.interval for k in alike if k.symbol == key.symbol and k.interval), key=list(INTERVALS).index)
    how = "Bring it with sync=True, or with `market-data add`."
    if intervals:
        there_are = _there_are(str(key.interval), intervals)
        return f"{key.symbol} is not held with interval {key.interval} in {key.market}. {there_are} {how}"
    if not alike:
        return f"No {key.market} {key.data_type} are held in {layout.root}. {how}"
    symbols = list(dict.fromkeys(k.symbol for k in alike))
    return f"{key.symbol} is not held in {key.market} {key.data_type}. {_there_are(key.symbol, symbols)} {how}"


def _there_are(asked: str, names: Sequence[str]) -> str:
    by_folded = {name.casefold(): name for name in names}
    close = [by_folded[name] for name in get_close_matches(asked.casefold(), by_folded, n=3)]
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}There are: {_listed(list(names), _LISTED_NAMES)}."


def _listed(names: Sequence[str], most: int) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time())


def _plain(moment: datetime) -> str:
    return moment.isoformat(" ", "minutes" if moment == moment.replace(second=0, microsecond=0) else "auto")


# --- bringing what is lacking ------------------------------------------------------------------------------


def _bring(settings: Settings, layout: Layout, wanted: _Wanted) -> None:
    now = clock.naive_utc(clock.now())
    days = wanted.days_through(now.date())
    lacking: dict[SeriesKey, list[date]] = {}
    for key in wanted.keys:
        found = set(_lacking(layout, key, days, now))
        source = key
        if key.data_type is DataType.TRADE_PROFILE:  # made of trades
            source = SeriesKey(EXCHANGE, key.market, DataType.AGG_TRADES, key.symbol)
            found.update(_lacking(layout, source, days, now))
        if found:
            lacking[source] = sorted(found)
    if lacking:
        lacking = _partitions_of(load_universe(settings.universe), lacking)
    if not lacking:
        return
    from market_data_pipeline.definitions import ignore_notices
    from market_data_pipeline.sync import bring

    with warnings.catch_warnings():
        ignore_notices()
        report = bring(settings, lacking, profiles=wanted.data_type is DataType.TRADE_PROFILE)
    if report.failures:
        reasons = " ".join(failure.reason for failure in report.failures[:_REASONS])
        more = f" And {len(report.failures) - _REASONS} more." if len(report.failures) > _REASONS else ""
        raise MarketDataError(
            f"{len(report.failures)} of {sum(map(len, lacking.values()))} days could not be brought. {reasons}{more} "
            "Without sync=True, what is held is read."
        )


def _partitions_of(universe: Universe, lacking: Mapping[SeriesKey, list[date]]) -> dict[SeriesKey, list[date]]:
    """Leave out the days before a symbol's listing that are no partition in Dagster, since there is nothing to bring.

    Raises:
        UsageError: a day when the symbol may have been listed is before all that is collected.
    """
    first = universe.first_day()
    left: dict[SeriesKey, list[date]] = {}
    for key, days in lacking.items():
        kept = [day for day in days if day >= first or universe.listing(key).covers(day)]
        if kept:
            if key in universe:  # of others, whoever brings them says how to add them
                universe.refuse_before_first(kept[0])
            left[key] = kept
    return left


def _lacking(layout: Layout, key: SeriesKey, days: Sequence[date], now: datetime) -> list[date]:
    """The days for which a source may have more than the lake."""
    ledger = Ledger.read(layout.ledger(key))
    on_disk = files.days_on_disk(layout.folder(key))
    return [day for day in days if not _up_to_date(key, ledger.get(day), on_disk.get(day), now)]


def _up_to_date(key: SeriesKey, row: LedgerRow | None, stat: FileStat | None, now: datetime) -> bool:
    if row is None or row.outcome == FAILED:
        return False
    if row.outcome == HELD and (stat is None or (stat.bytes, stat.mtime_ns) != (row.bytes, row.mtime_ns)):
        return False  # the file was removed or changed behind the ledger's back
    if row.final or row.outcome == NOT_LISTED:
        return True
    if row.asked_at is None:
        return False
    over = _midnight(row.day + timedelta(days=1))
    if now < over:
        return key.interval is not None and _candles_begun(key, now) == _candles_begun(key, row.asked_at)
    if row.asked_at < over:
        return False
    # All of the day is there, provisionally: only its archive can add to it.
    return now < over + timedelta(hours=_ARCHIVE_HOURS) or now - row.asked_at < _ASK_AGAIN_AFTER


def _candles_begun(key: SeriesKey, moment: datetime) -> int:
    """How many candles have begun since 1970; another has closed only if another has begun."""
    return clock.to_us(moment.replace(tzinfo=UTC)) // interval_us(str(key.interval))
