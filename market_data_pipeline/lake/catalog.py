# ruff: noqa: S608 - the SQL is made of the project's own column names and of paths and symbols that are quoted.
"""The lake as SQL: views and macros over its files, and the DuckDB file ``catalog.duckdb`` that holds them.

What belongs here: SQL text made from the layout, and the publication of that text as a file. The catalog holds no data
and is derived from the folders, so it can be deleted at any time. It is built elsewhere and swapped in by rename; no
process opens the published file for writing, since a DuckDB writer shuts out every reader.

The SQL keeps to what DuckDB 1.4 understands too. In it, times are TIMESTAMP in UTC without zone.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from market_data_pipeline.day import HELD, FileStat
from market_data_pipeline.errors import MarketDataError, UsageError
from market_data_pipeline.findings import Verdict
from market_data_pipeline.lake import files
from market_data_pipeline.lake.files import DamagedFileError, StorageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import SCHEMA as LEDGER_SCHEMA
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.on_disk import days_on_disk, months_closed, read_whole
from market_data_pipeline.lake.on_record import SERIES_LABELS
from market_data_pipeline.lake.reading import labels_of, time_column
from market_data_pipeline.lake.states import EXPLAINED, STATE_SQL
from market_data_pipeline.regular_files import read_regular
from market_data_pipeline.schemas import lake_schema
from market_data_pipeline.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.specs import closes_months, data_types_of

if TYPE_CHECKING:
    import duckdb

_T = TypeVar("_T")

LOCK_WAIT_SECONDS = 60.0

_TRIES = 3
"""How often DuckDB is asked where a file may have been replaced while it read."""

_SOON_SEARCHED = 40_000
"""Characters up to which DuckDB searches a text in less time than it takes to look into a map; measured."""

_NAMED = "filename = true"

_DAY_FILE = "????-??-??.parquet"

# --- what there is -----------------------------------------------------------------------------------------


def series_held(layout: Layout) -> list[SeriesKey]:
    """Every series that was ever asked for or has a file, in order: from the ledgers, and from the lake's folders.

    Folders and files that cannot be a series are passed over.
    """
    return sorted({*_series_in_ledgers(layout), *series_with_files(layout)})


def series_with_files(layout: Layout) -> list[SeriesKey]:
    """The series that have at least one day's file, in order."""
    found = []
    for market in Market:
        for data_type in data_types_of(market):
            for cadence in ("daily", "monthly"):
                symbols = _folder(layout, market, data_type) / cadence
                for symbol in _names(symbols):
                    # Without an interval, the days lie in the symbol's own folder.
                    intervals = _names(symbols / symbol) if data_type.has_interval else [None]
                    found += [key for i in intervals if (key := _series(market, data_type, symbol, i))]
    return sorted(key for key in set(found) if files.has_days(layout.folder(key)) or months_closed(layout, key))


@dataclass(frozen=True)
class Held:
    """The series that have files, and which of their months are closed, as SQL over a lake has to know them.

    Attributes:
        layout: Where the lake lies.
        months: The closed months of each series, as ``2024-01``, in order.
    """

    layout: Layout
    months: Mapping[SeriesKey, Sequence[str]]

    def keys(self, market: Market, data_type: DataType) -> list[SeriesKey]:
        """Return the series of a market and data type, in order."""
        return [key for key in self.months if (key.market, key.data_type) == (market, data_type)]


def held_now(layout: Layout) -> Held:
    """List the series that have files, and their closed months."""
    return Held(layout, {key: months_closed(layout, key) for key in series_with_files(layout)})


def _series_in_ledgers(layout: Layout) -> Iterator[SeriesKey]:
    for market in Market:
        for data_type in data_types_of(market):
            folder = layout.root / "ledger" / EXCHANGE / market / data_type
            for name in _names(folder):
                in_it = _names(folder / name) if data_type.has_interval else [name]
                for ledger in in_it:
                    stem = ledger.removesuffix(".parquet")
                    if stem == ledger:
                        continue  # e.g. the series' lock
                    labels = (name, stem) if data_type.has_interval else (stem, None)
                    key = _series(market, data_type, *labels)
                    if key is not None:
                        yield key


def _series(market: Market, data_type: DataType, symbol: str, interval: str | None) -> SeriesKey | None:
    try:
        return SeriesKey(EXCHANGE, market, data_type, symbol, interval)
    except UsageError:
        return None


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


# --- SQL text ----------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """A string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def as_pattern(path: str | Path) -> str:
    """Return a pattern that matches a path and no other.

    Raises:
        UsageError: The path has a backslash. DuckDB has no pattern for it.
    """
    text = str(path)
    if "\\" in text:
        raise UsageError(
            f"SQL cannot read below {text}: DuckDB takes the backslash in the path for an escape. "
            "Move the data to a folder without one."
        )
    return re.sub(r"([*?\[])", r"[\1]", text)


def read_parquet(files: str, *options: str) -> str:
    """Return SQL that reads Parquet files with the columns that are in them, whatever their paths look like.

    DuckDB takes a folder ``day=2026-11-30`` on the way to a file for a column, unless it is told otherwise.

    Args:
        files: SQL for a path, a pattern or a list of them.
        options: Further options of DuckDB's function, such as ``filename = true``.
    """
    return f"read_parquet({', '.join((files, 'hive_partitioning = false', *options))})"


def _as_path(pattern: str) -> Path | None:
    """The path that :func:`as_pattern` made a pattern of; None for one with wildcards, which stands for many files."""
    if re.search(r"[*?\[]", re.sub(r"\[[*?\[]\]", "", pattern)):
        return None
    return Path(re.sub(r"\[([*?\[])\]", r"\1", pattern))


def scan(
    market: Market, data_type: DataType, paths: Sequence[Path], columns: Iterable[str], mark: Path | None = None
) -> str:
    """A query that reads given files, in their order, with symbol and interval taken from their paths.

    Args:
        market: The market of the files.
        data_type: Their data type.
        paths: The files, all of which must exist; none gives a typed empty result.
        columns: Names of the columns to read, labels included.
        mark: From :func:`newest_mark`, called before the files were listed. It is read first.
    """
    if not paths:
        return _empty(market, data_type, columns)
    listed = ", ".join(quoted(as_pattern(path)) for path in (*filter(None, [mark]), *paths))
    return f"SELECT {_select_list(data_type, columns)} FROM {read_parquet(f'[{listed}]', _NAMED)}"


def _select_list(data_type: DataType, columns: Iterable[str]) -> str:
    # DuckDB evaluates a condition on an expression over nothing but `filename` once a file and skips the file without
    # opening it. string_split is the cheapest such expression (measured against split_part, parse_path and regexps).
    labels = dict(zip(reversed(labels_of(data_type)), ("-2", "-3"), strict=False))
    return ", ".join(
        f"string_split(filename, '/')[{labels[name]}] AS \"{name}\"" if name in labels else f'"{name}"'
        for name in columns
    )


def _empty(market: Market, data_type: DataType, columns: Iterable[str] | None = None) -> str:
    schema = lake_schema(market, data_type)
    names = schema.names if columns is None else columns
    typed = ", ".join(f'CAST(NULL AS {_sql_type(schema.field(name).type)}) AS "{name}"' for name in names)
    return f"SELECT {typed} WHERE false"


def _sql_type(arrow: pa.DataType) -> str:
    if pa.types.is_dictionary(arrow) or pa.types.is_string(arrow):
        return "VARCHAR"
    if pa.types.is_timestamp(arrow):
        return "TIMESTAMP"
    return {pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN", pa.date32(): "DATE"}[arrow]


def statements(held: Held, corrections: str = "", *, marked: bool = True, published: bool = False) -> list[str]:
    """The SQL that makes every schema, view and macro over a lake.

    The text changes when a series gets its first file or a month is closed, and not when a series gets more files, so
    it tells whether a catalog is still right.

    Args:
        held: What the lake has.
        corrections: Name of a table that stands for the ledgers of the series in it (``on_record.CORRECTED``). Without,
            views of the quality are what the ledgers say.
        marked: Whether the SQL reads the marks of :func:`marks_of`, which must be there.
        published: Whether the SQL is kept in the catalog of the folder, which people may copy and move.
    """
    layout = held.layout
    place = _in_its_place(layout) if published else ""
    made: list[str] = []
    for market in Market:
        schema = f"{EXCHANGE}_{market}"
        made.append(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        for data_type in data_types_of(market):
            view = f"CREATE OR REPLACE VIEW {schema}.{data_type.sql_name}"
            in_sql = _Files(held, market, data_type, marked, place)
            made.append(f"{view} AS {_view(in_sql)}")
            if data_type in _MACROS:
                made.append(_macro(schema, in_sql))
    made.append("CREATE SCHEMA IF NOT EXISTS quality")
    days = _ledger_days(layout, marked=marked) if _has_ledgers(layout) else _no_ledger_days(_LEDGER_NAMES)
    if corrections:
        days = (
            f"SELECT * FROM ({days}) WHERE concat_ws('/', {_named(_LEDGER_LABELS)}) NOT IN (SELECT series FROM "
            f"{corrections}) UNION ALL SELECT {_named(_LEDGER_NAMES)} FROM {corrections}"
        )
    days = _where(days, place)
    with_rows = f"SELECT * FROM ({days}) WHERE outcome = {quoted(HELD)}"
    verdicts, explained = (", ".join(map(quoted, sorted(some))) for some in (Verdict, EXPLAINED))
    made.append(f"CREATE OR REPLACE VIEW quality.coverage AS {_coverage(days)}")
    made.append(f"CREATE OR REPLACE VIEW quality.findings AS {_FINDINGS.format(days=days)}")
    made.append(
        f"CREATE OR REPLACE VIEW quality.gaps AS {_GAPS.format(days=days, verdicts=verdicts, explained=explained)}"
    )
    compared = _where(_reconciled_days(layout), place)
    made.append(
        f"CREATE OR REPLACE VIEW quality.reconciliation AS {_RECONCILIATION.format(days=compared, held=with_rows)}"
    )
    differences = _RECONCILIATION_DIFFERENCES.format(days=compared)
    made.append(f"CREATE OR REPLACE VIEW quality.reconciliation_differences AS {differences}")
    if published:
        made.append(f"CREATE SEQUENCE quality.{_identifier(layout.root)}")
    return made


def _in_its_place(layout: Layout) -> str:
    """Return SQL that is true, or an error if the catalog that it is in lies in another folder than the lake.

    The SQL of a catalog names files by their whole paths, so that of a copy would read the original's. No function
    tells a view which catalog it is in. So each has a sequence that is named after its folder, and all catalogs of
    this name that are open must lie there.
    """
    root = str(layout.root)
    places = ", ".join(quoted(place) for place in dict.fromkeys((root, os.path.realpath(root))))
    why = quoted(f"This catalog is of {root}, but was opened as ")
    remedy = quoted(
        f". If the data was copied or moved, run `market-data status` with MARKET_DATA_DIR set to its folder and open "
        f"the catalog again. If not, open {layout.catalog}."
    )
    return (
        f"(SELECT CASE WHEN bool_and(parse_dirpath(d.path) IN ({places})) THEN true "
        f"ELSE error(concat({why}, string_agg(d.path, ' and '), {remedy})) END "
        "FROM duckdb_sequences() AS s JOIN duckdb_databases() AS d USING (database_oid) "
        f"WHERE s.schema_name = 'quality' AND s.sequence_name = {quoted(root)})"
    )


def _where(query: str, condition: str) -> str:
    return f"SELECT * FROM ({query}) WHERE {condition}" if condition else query


def _identifier(name: str | Path) -> str:
    return '"' + str(name).replace('"', '""') + '"'


def marks_of(held: Held) -> list[tuple[Path, pa.Schema]]:
    """The marks that SQL over a lake reads first, and their columns."""
    marks = [
        (in_sql.mark, lake_schema(market, data_type))
        for market in Market
        for data_type in data_types_of(market)
        if (in_sql := _Files(held, market, data_type)).keys
    ]
    return [*marks, (_mark_of_ledgers(held.layout), LEDGER_SCHEMA)] if _has_ledgers(held.layout) else marks


def _mark_of_ledgers(layout: Layout) -> Path:
    return layout.root / "lake" / "marks" / f"{_WHAT_TO_DO}.parquet"


def _has_ledgers(layout: Layout) -> bool:
    return any(_series_in_ledgers(layout))


def marked_now(layout: Layout) -> tuple[Held, bool]:
    """List what a lake has, and write the marks of it that are missing.

    Returns:
        What the lake has, and whether its marks are there. A reader who may not write goes without.
    """
    while True:
        held = held_now(layout)
        missing = [(mark, schema) for mark, schema in marks_of(held) if not mark.exists()]
        try:
            for mark, schema in missing:
                files.write_table(mark, schema.empty_table())
        except StorageError:
            return held, False
        # A mark that came too late would outlive what it stands for: nobody would remove it.
        if not missing or held_now(layout) == held:
            return held, True


def newest_mark(layout: Layout, market: Market, data_type: DataType) -> Path | None:
    """Return a mark that goes before days do that are there now; None if nobody has written one.

    A lazy relation that reads it first says "ask again" in DuckDB's error, and not the name of a day that is gone.
    """
    found = {
        mark: stat.mtime_ns
        for mark in (_folder(layout, market, data_type) / "marks").glob(f"{_WHAT_TO_DO}-*.parquet")
        if (stat := files.stat(mark)) is not None
    }
    return max(found, key=found.__getitem__, default=None)


def _folder(layout: Layout, market: Market, data_type: DataType) -> Path:
    return layout.root / "lake" / EXCHANGE / market / data_type


def _view(files: _Files) -> str:
    if not files.keys:
        return _empty(files.market, files.data_type)
    columns = _select_list(files.data_type, lake_schema(files.market, files.data_type).names)
    where = " AND ".join(files.conditions()) or "true"
    return f"SELECT {columns} FROM {read_parquet(files.listed(files.everything), _NAMED)} WHERE {where}"


@dataclass(frozen=True)
class _Files:
    """The files of one market and data type, as SQL finds them.

    Which months are closed is part of the SQL, so that what it reads is whole at any moment: days are read until the
    SQL knows of the month's file, and from then on that. Who goes on with SQL of an earlier time, in a catalog that was
    opened before, reads the days, which stay for a while. Long before they are removed, the mark that such SQL reads
    first is, so that it fails instead of finding fewer rows.
    """

    held: Held
    market: Market
    data_type: DataType
    marked: bool = True
    place: str = ""
    keys: Sequence[SeriesKey] = field(init=False)
    _closed_months: Sequence[tuple[str, str]] = field(init=False)
    """What is closed: ``/monthly/BTCUSDT/1m/`` and ``2024-01``, in order."""
    _closed: str = field(init=False)
    """The same as one text; nothing where none is."""

    @property
    def folder(self) -> Path:
        return _folder(self.held.layout, self.market, self.data_type)

    @property
    def everything(self) -> str:
        """SQL for a pattern of all files."""
        levels = "*/" * len(labels_of(self.data_type))
        return quoted(f"{self._cadences}/{levels}{self._name}")

    def of_series(self, series: str) -> str:
        """SQL for a pattern of the files of a series, which is given as SQL, too."""
        return f"{quoted(f'{self._cadences}/')} || {series} || {quoted('/' + self._name)}"

    @property
    def _cadences(self) -> str:
        return f"{as_pattern(self.folder)}/{'*ly' if self.closes else 'daily'}"

    @property
    def _name(self) -> str:
        return "????-??*.parquet" if self.closes else _DAY_FILE

    def listed(self, pattern: str) -> str:
        """SQL for all that is read where a pattern is meant."""
        return f"[{quoted(as_pattern(self.mark))}, {pattern}]" if self.marked else pattern

    @property
    def closes(self) -> bool:
        return closes_months(self.data_type)

    @property
    def mark(self) -> Path:
        """A file without rows, which is there as long as it is right to read what this SQL reads.

        DuckDB takes the columns from it, so that it opens no other file for them. Its name is what an error shows.
        """
        digest = hashlib.sha256(self._closed.encode()).hexdigest()[:16]
        return self.folder / "marks" / f"{_WHAT_TO_DO}-{digest}.parquet"

    def __post_init__(self) -> None:
        # Not cached_property: its lock (until Python 3.12) may be held in a parent when a child is forked.
        keys = self.held.keys(self.market, self.data_type)
        months = [(f"/monthly/{_labels_of(key)}/", month) for key in keys for month in self.held.months[key]]
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "_closed_months", months)
        object.__setattr__(self, "_closed", " ".join(series + month for series, month in months))

    @property
    def _closed_by_month(self) -> str:
        """SQL for a map from months to the series of which they are closed."""
        by_month: dict[str, list[str]] = {}
        for series, month in self._closed_months:
            by_month.setdefault(month, []).append(series)
        text = ", ".join(f"{quoted(month)}: {quoted(' '.join(series))}" for month, series in by_month.items())
        return f"MAP {{{text}}}"

    def _is_closed(self, name: str) -> str:
        """SQL for whether the month of a file is closed, whose name is as long as another."""
        # A file whose name is a month's is of one only in the folder of months; for that of a day the rest is enough.
        begin, end = len(f"{self.folder}/{'' if name == _A_MONTH else 'daily/'}"), len(name) + 1
        after_month = end - len("2024-01")
        if len(self._closed) <= _SOON_SEARCHED:
            return f"contains({quoted(self._closed)}, filename[{begin}:-{after_month}])"
        series, month = f"filename[{begin}:-{end}]", f"filename[-{end - 1}:-{after_month}]"
        return f"contains(coalesce(map_extract({self._closed_by_month}, {month})[1], ''), {series})"

    def conditions(self) -> list[str]:
        """What is true of the files that are read, in SQL over nothing but their names: each is asked once a file.

        Each step takes DuckDB two microseconds a file, so there are few, and names are cut by place.
        """
        return [*self._of_its_kind(), *filter(None, [self.place])]

    def _of_its_kind(self) -> list[str]:
        if not self.closes:
            return []
        # A month's name is asked for first, since the slash before it may be where that of a day would be: /1h/2024-01.
        of_month, of_day = (f"filename[-{len(name) + 1}] = '/'" for name in (_A_MONTH, _A_DAY))
        if not self._closed:
            return [f"NOT {of_month} AND {of_day}"]

        month, day = self._is_closed(_A_MONTH), self._is_closed(_A_DAY)
        return [f"CASE WHEN {of_month} THEN {month} WHEN {of_day} THEN NOT {day} ELSE false END"]

    def conditions_of(self, labels: Sequence[str], start: str, last: str) -> list[str]:
        """What is true of the files of a series that may have rows from one moment to another, all given as SQL.

        DuckDB works them out for each file, and takes longer over a function than over opening it: so whole names are
        compared, and it is one condition. Each function costs time once more when the query is bound, so a name is
        written by one that is given all of it as a format.
        """
        series = ", '/', ".join(labels)
        folder = str(self.folder).replace("%", "%%")

        def between(cadence: str, first: str, last_: str) -> str:
            begin = f"concat({quoted(f'{folder}/{cadence}/')}, {series}, "
            return f"filename BETWEEN strftime({start}, {begin}'/{first}')) AND strftime({last}, {begin}'/{last_}'))"

        days = between("daily", "%Y-%m-%d", "%Y-%m-%d.parquet")
        if not self.closes:
            return [days]
        of_day = f"length(filename) = length(concat({quoted(f'{self.folder}/daily/')}, {series})) + {len(_A_DAY) + 1}"
        if not self._closed:
            return [days, of_day]
        months = between("monthly", "%Y-%m", "%Y-%m.parquet")
        month, day = self._is_closed(_A_MONTH), self._is_closed(_A_DAY)
        return [f"CASE WHEN {months} THEN {month} WHEN {days} THEN {of_day} AND NOT {day} ELSE false END"]


_WHAT_TO_DO = "ask-again-or-open-the-catalog-again-or-run-market-data-status"
"""Begins the name of a mark, which DuckDB shows to people whose SQL is outdated."""

_A_DAY, _A_MONTH = "2024-01-01.parquet", "2024-01.parquet"


def _labels_of(key: SeriesKey) -> str:
    return "/".join(filter(None, (key.symbol, key.interval)))


_MACROS = {DataType.KLINES: "candles", DataType.AGG_TRADES: "trades"}


def _macro(schema: str, files: _Files) -> str:
    """A table macro for one series from ``a`` (inclusive) to ``b`` (exclusive); NULL means no bound.

    It lists the folders of one series where a view lists all, and skips the files outside by their names. The folders
    are known by the series that had files when the catalog was made. For any other series the macro lists every
    folder: slower, right all the same, and empty instead of an error for a series that does not exist.
    """
    labels = labels_of(files.data_type)
    head = f"CREATE OR REPLACE MACRO {schema}.{_MACROS[files.data_type]}({', '.join(labels)}, a, b := NULL) AS TABLE"
    if not files.keys:
        return f"{head} {_empty(files.market, files.data_type)}"
    series = " || '/' || ".join(f'"{label}"' for label in labels)
    known = ", ".join(quoted(_labels_of(key)) for key in files.keys)
    pattern = f"CASE WHEN list_contains([{known}], {series}) THEN {files.of_series(series)} ELSE {files.everything} END"
    columns = ", ".join(
        f'"{name}" AS "{name}"' if name in labels else f'r."{name}"'
        for name in lake_schema(files.market, files.data_type).names
    )
    # What is NULL is passed over by both, and what is infinite has a name of a file.
    start, end = f"greatest({_moment('a')}, {_FIRST})", f"least({_moment('b')}, {_LAST})"
    time = f'r."{time_column(files.data_type)}"'
    last = f"({end} - INTERVAL 1 MICROSECOND)"
    of_files = files.conditions_of([f'"{label}"' for label in labels], start, last)
    conditions = [*of_files, f"{time} >= {start}", f"{time} < {end}", *filter(None, [files.place])]
    return (
        f"{head} SELECT {columns} FROM {read_parquet(files.listed(pattern), _NAMED)} AS r "
        f"WHERE {' AND '.join(conditions)}"
    )


_FIRST, _LAST = "TIMESTAMP '1000-01-01'", "TIMESTAMP '9999-12-31'"


def _moment(argument: str) -> str:
    """Return SQL for an argument as TIMESTAMP in UTC, whatever it is of and whatever the session's zone.

    As text, a TIMESTAMPTZ ends with its offset, and all else has one only if somebody wrote it. DuckDB drops the offset
    of a text that becomes a TIMESTAMP, and takes the session's zone for what a TIMESTAMPTZ becomes.
    """
    text = f"CAST({argument} AS VARCHAR)"
    in_utc = f"make_timestamp(epoch_us(CAST({text} AS TIMESTAMPTZ)))"
    return f"CASE WHEN {text} GLOB '*:*[+A-Za-z-]*' THEN {in_utc} ELSE CAST({argument} AS TIMESTAMP) END"


_LEDGER_LABELS = SERIES_LABELS
_LEDGER_TYPES = {
    "day": "DATE",
    "final": "BOOLEAN",
    **dict.fromkeys(("fetched_at", "asked_at"), "TIMESTAMP"),
    **dict.fromkeys(("rows", "bytes", "missing", "quiet", "attempts", "first_key", "last_key"), "BIGINT"),
}
_COVERAGE = (
    "day",
    "state",
    "outcome",
    "final",
    "rows",
    "bytes",
    "source",
    "checksum",
    "integrity",
    "gaps",
    "verdicts",
    "missing",
    "quiet",
    "failure",
    "reason",
    "attempts",
    "fetched_at",
    "asked_at",
    "first_key",
    "last_key",
    "content_sha256",
    "archive_sha256",
    "etag",
    "last_modified",
    "replaced_by",
)
_LEDGER_COLUMNS = (*(name for name in _COVERAGE if name != "state"), "findings")
_LEDGER_NAMES = (*_LEDGER_LABELS, *_LEDGER_COLUMNS)


def _named(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _coverage(days: str) -> str:
    columns = (f'{STATE_SQL} AS "state"' if name == "state" else f'"{name}"' for name in _COVERAGE)
    return f"SELECT {_named(_LEDGER_LABELS)}, {', '.join(columns)} FROM ({days})"


def _no_ledger_days(names: Iterable[str]) -> str:
    typed = (f'CAST(NULL AS {_LEDGER_TYPES.get(name, "VARCHAR")}) AS "{name}"' for name in names)
    return f"SELECT {', '.join(typed)} WHERE false"


_FOUND = """
WITH found AS (
    SELECT exchange, market, data_type, symbol, "interval", day, unnest(from_json(findings, '[{{
        "check": "VARCHAR", "rule": "VARCHAR", "severity": "VARCHAR", "count": "BIGINT", "message": "VARCHAR",
        "ranges": [{{"first": "BIGINT", "last": "BIGINT", "count": "BIGINT"}}], "evidence": "VARCHAR"
    }}]')) AS f
    FROM ({days}) WHERE findings <> '[]'
)"""

_FINDINGS = (
    _FOUND
    + """, ranged AS (
    SELECT *, unnest(CASE WHEN len(f.ranges) > 0 THEN f.ranges ELSE [NULL] END) AS r FROM found
)
SELECT exchange, market, data_type, symbol, "interval", day,
    f."check" AS check_name, f.rule AS rule, f.severity AS severity, f."count" AS "count", f.message AS message,
    coalesce(f.evidence, '') AS evidence,
    r."first" AS first_key, r."last" AS last_key, r."count" AS range_count,
    CASE WHEN "interval" IS NOT NULL THEN make_timestamp(r."first") END AS first_time,
    CASE WHEN "interval" IS NOT NULL THEN make_timestamp(r."last") END AS last_time
FROM ranged
"""
)

# A finding keeps its first ranges only, and its count is of all: the rest has a row without bounds, so that sums are
# right.
_GAPS = (
    _FOUND
    + """, gap AS (
    SELECT *, f."count" - coalesce(list_sum([r."count" FOR r IN f.ranges]), 0) AS beyond
    FROM found WHERE f."check" = 'gaps' AND f.rule IN ({verdicts})
), ranged AS (
    SELECT *, unnest(CASE WHEN beyond > 0 OR len(f.ranges) = 0
        THEN list_append(f.ranges, {{'first': NULL, 'last': NULL, 'count': beyond}}) ELSE f.ranges END) AS r
    FROM gap
)
SELECT exchange, market, data_type, symbol, "interval", day, f.rule AS verdict,
    CASE WHEN "interval" IS NOT NULL THEN make_timestamp(r."first") END AS "first",
    CASE WHEN "interval" IS NOT NULL THEN make_timestamp(r."last") END AS "last",
    CASE WHEN "interval" IS NULL THEN r."first" END AS first_id,
    CASE WHEN "interval" IS NULL THEN r."last" END AS last_id,
    CAST(r."count" AS BIGINT) AS "count", f.severity AS severity, f.rule IN ({explained}) AS explained,
    coalesce(f.evidence, '') AS evidence
FROM ranged
"""
)


def _ledger_days(layout: Layout, *, marked: bool) -> str:
    folder = layout.root / "ledger"
    mark = [_mark_of_ledgers(layout)] if marked else []
    # Ledgers of older versions may lack columns.
    every = f"{_no_ledger_days(_LEDGER_COLUMNS)} UNION ALL BY NAME SELECT * FROM {_of_series(folder, mark)}"
    return f"SELECT {_labels_below(folder)}, {_named(_LEDGER_COLUMNS)} FROM ({every})"


def _of_series(folder: Path, marks: Iterable[Path] = ()) -> str:
    listed = ", ".join(map(quoted, (*map(as_pattern, marks), f"{as_pattern(folder)}/**/*.parquet")))
    return read_parquet(f"[{listed}]", _NAMED, "union_by_name = true")


def _labels_below(folder: Path) -> str:
    """The labels of a series, read off the path of its one file below a folder that is laid out as the ledgers are."""
    depth = len(folder.parts)  # the leading "/" splits into one part too
    part = [f"string_split(filename, '/')[{depth + i}]" for i in range(1, 6)]
    without_suffix = "left({0}, len({0}) - len('.parquet'))"
    of_candles = f"{part[2]} IN ({', '.join(quoted(data_type) for data_type in DataType if data_type.has_interval)})"
    labels = (
        part[0],
        part[1],
        part[2],
        f"CASE WHEN {of_candles} THEN {part[3]} ELSE {without_suffix.format(part[3])} END",
        f"CASE WHEN {of_candles} THEN {without_suffix.format(part[4])} END",
    )
    return ", ".join(f'{sql} AS "{name}"' for sql, name in zip(labels, _LEDGER_LABELS, strict=True))


_RECONCILED_TYPES = {
    "day": "DATE",
    "source": "VARCHAR",
    **dict.fromkeys(("bars", "differing", "explained"), "BIGINT"),
    "contract_size": "DOUBLE",
    "compared_at": "TIMESTAMP",
    **dict.fromkeys(("klines_sha256", "source_sha256"), "VARCHAR"),
    "differences": (
        'STRUCT("open_time" TIMESTAMP, "column" VARCHAR, "klines" DOUBLE, "rebuilt" DOUBLE, "reason" VARCHAR, '
        '"ids" VARCHAR)[]'
    ),
}
# Both sides are looked up by the name of their series: a plain key, so that DuckDB joins by hash.
_RECONCILIATION = """
WITH known AS (
    SELECT concat_ws('/', exchange, market, data_type, symbol, "interval") AS series, day, content_sha256 FROM ({held})
)
SELECT exchange, market, data_type, symbol, "interval", r.day AS day, r.source AS source, bars, differing, explained,
    differing - explained AS unexplained, contract_size, compared_at, klines_sha256, source_sha256,
    coalesce(k.content_sha256 = klines_sha256 AND s.content_sha256 = source_sha256, false) AS "current"
FROM ({days}) AS r
LEFT JOIN known AS k
    ON k.series = concat_ws('/', exchange, market, data_type, symbol, "interval") AND k.day = r.day
LEFT JOIN known AS s ON s.series = r.source AND s.day = r.day
"""
_RECONCILIATION_DIFFERENCES = """
WITH found AS (SELECT exchange, market, data_type, symbol, "interval", day, unnest(differences) AS d FROM ({days}))
SELECT exchange, market, data_type, symbol, "interval", day, d.open_time AS open_time, d."column" AS column_name,
    d.klines AS klines, d.rebuilt AS rebuilt, nullif(d.reason, '') AS reason, nullif(d.ids, '') AS ids
FROM found
"""


def _reconciled_days(layout: Layout) -> str:
    folder = layout.reconciliation
    named = _named(_RECONCILED_TYPES)
    types = {**dict.fromkeys(_LEDGER_LABELS, "VARCHAR"), **_RECONCILED_TYPES}
    nothing = ", ".join(f'CAST(NULL AS {type_}) AS "{name}"' for name, type_ in types.items())
    if not any(folder.rglob("*.parquet")):
        return f"SELECT {nothing} WHERE false"
    return f"SELECT {_labels_below(folder)}, {named} FROM {_of_series(folder)}"


# --- publication -------------------------------------------------------------------------------------------

_LEFT_AFTER_SECONDS = 3600
"""Age from which a temporary file beside the marks counts as left: readers write marks without a lock."""


def publish_catalog(layout: Layout) -> Path:
    """Bring ``catalog.duckdb`` up to the lake; return its path.

    Where it is right already, that is found out by listing folders, and nothing is written. Readers that have the old
    file open go on with it. Several processes may publish at once. DuckDB 1.4 can read the file.

    Raises:
        StorageError: the root cannot be written to.
        SeriesBusyError: another process has been publishing for too long.
        DamagedFileError: the columns of the ledgers cannot be read off them; the old catalog stays.
    """
    if not _is_published(held_now(layout)):
        lock = layout.catalog.with_suffix(".lock")
        with files.only_writer(lock, LOCK_WAIT_SECONDS, "The catalog"):
            # Looked at again under the lock, so that the last to publish has seen the newest files.
            held = held_now(layout)
            for mark, schema in marks_of(held):
                files.remove_leftovers(mark.parent, older_than_seconds=_LEFT_AFTER_SECONDS)
                if not mark.exists():
                    files.write_table(mark, schema.empty_table())
            if not _is_published(held):
                _publish(layout, statements(held, published=True))
    return layout.catalog


def refresh_catalog(layout: Layout) -> None:
    """Bring a catalog that there is up to the lake; leave it as it is if the folder cannot be written."""
    if layout.catalog.exists():
        with suppress(MarketDataError):
            publish_catalog(layout)


def retire_catalogs(layout: Layout) -> datetime | None:
    """Have SQL of an earlier time fail from now on: it looks for days that are to be removed.

    Whoever has the catalog open that is published now goes on with it.

    Returns:
        When the oldest of what is retired was published (UTC); None where there was nothing to retire.

    Raises:
        StorageError: the system refuses.
    """
    current = {mark for mark, _ in marks_of(held_now(layout))}
    retired = []
    for market in Market:
        for data_type in data_types_of(market):
            for mark in (_folder(layout, market, data_type) / "marks").glob("*.parquet"):
                stat = files.stat(mark)
                if mark not in current and stat is not None:
                    retired.append(stat.mtime_ns)
                    files.remove(mark)
    return datetime.fromtimestamp(min(retired) / 1e9, UTC) if retired else None


@contextmanager
def _scratch(layout: Layout) -> Iterator[Path]:
    if "?" in str(layout.root):  # DuckDB cannot write there: it takes what follows for parameters
        with tempfile.TemporaryDirectory(prefix="catalog-") as folder:
            yield Path(folder)
    else:
        with files.temporary_folder(layout.root) as path:
            yield path


def _publish(layout: Layout, wanted: Sequence[str]) -> None:
    import duckdb

    with _scratch(layout) as folder:
        path = folder / "catalog.duckdb"
        with duckdb.connect() as connection:
            connection.execute(f"ATTACH {quoted(str(path))} AS built (STORAGE_VERSION 'v1.0.0')")
            connection.execute("USE built")
            try:
                connection.execute("BEGIN")  # one commit, and so one wait for the disk
                for statement in wanted:
                    connection.execute(statement)
                connection.execute("COMMIT")
            except duckdb.Error as error:
                raise lake_error(error, layout) from error
            connection.execute("CHECKPOINT built")
            connection.execute("USE memory")
            connection.execute("DETACH built")
        built = path.read_bytes()
    stat = files.write_bytes(layout.catalog, built)
    files.write_bytes(_signature_file(layout), _signature(wanted, stat).encode())


_NAMED_FILE = re.compile(r"""['"]([^'"]+\.parquet)['"]""")


def may_have_been_replaced(error: duckdb.Error) -> bool:
    """Whether an error can come of a file that was replaced, or removed, while DuckDB read it.

    DuckDB 1.5 and 2.0 open each file twice, once for the footer and once for the data. Where it is replaced in between,
    they report invalid data; wrong rows were never seen. Asked again, they answer.
    """
    import duckdb

    return type(error) is duckdb.Error or isinstance(error, duckdb.IOException) or bool(_NAMED_FILE.search(str(error)))


def retrying(read: Callable[[], _T], layout: Layout) -> _T:
    """What DuckDB reads; asked again where a file may have been replaced while it read.

    Raises:
        DamagedFileError: a file cannot be read, or is gone; the text names it.
        UsageError: the query cannot be run.
    """
    import duckdb

    try:
        for _ in range(_TRIES - 1):
            try:
                return read()
            except duckdb.Error as error:
                if not may_have_been_replaced(error):
                    raise
        return read()
    except duckdb.Error as error:
        raise lake_error(error, layout) from error


def lake_error(error: duckdb.Error, layout: Layout | None = None) -> MarketDataError:
    """What an error of DuckDB means to people: a damaged file, or a query that cannot be run.

    Args:
        error: What DuckDB raised.
        layout: The lake: which files are its own, and where to look for the damaged one if DuckDB does not name it.
    """
    import duckdb

    text = str(error).partition("\n")[0]
    if _WHAT_TO_DO in text:
        return MarketDataError("Months were closed since the query was made, so it would miss their days. Ask again.")
    named = _NAMED_FILE.search(text)
    if named and "No files found" not in text:
        return files.damaged(Path(named[1]), error)
    path = _as_path(named[1]) if named else None
    if layout is not None and path is not None and path.is_relative_to(layout.root):
        return DamagedFileError(f"{path} is gone. Backfill that day to bring it back.")
    if type(error) is duckdb.Error:  # a footer or a page that makes no sense; DuckDB does not say whose
        return (layout and _first_damaged(layout)) or DamagedFileError(
            f"A file of the lake cannot be read: {text}. If it was being replaced, ask again."
        )
    return UsageError(f"The query cannot be run. {error}")


def _first_damaged(layout: Layout) -> DamagedFileError | None:
    """The first damaged file among those that are not as the ledgers know them."""
    for key in series_with_files(layout):
        ledger = Ledger.read(layout.ledger(key))
        for day, held in days_on_disk(layout, key).items():
            row = ledger.get(day)
            if row is not None and row.speaks_of(held.stat):
                continue
            try:
                read_whole(held)
            except DamagedFileError as damaged:
                return damaged
    return None


def _is_published(held: Held) -> bool:
    """Return True if the catalog is the one of a lake that has this, and its marks are there."""
    stat = files.stat(held.layout.catalog)
    try:
        return (
            stat is not None
            and read_regular(_signature_file(held.layout)).decode()
            == _signature(statements(held, published=True), stat)
            and all(mark.exists() for mark, _ in marks_of(held))
        )
    except (OSError, ValueError):
        return False


def _signature_file(layout: Layout) -> Path:
    # Beside the catalog, since to look into it would need DuckDB, its locks and 20 ms.
    return layout.catalog.with_suffix(".signature")


def _signature(wanted: Sequence[str], stat: FileStat) -> str:
    text = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    return f"{text} {stat.bytes} {stat.mtime_ns}\n"
