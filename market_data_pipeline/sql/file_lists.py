# ruff: noqa: S608 - the SQL is made of the project's own column names and of paths that are quoted.
"""Lists of the lake's files, as SQL: which files a view or a query reads, and the marks that end outdated SQL.

Columns and labels belong to ``sql/views.py``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from market_data_pipeline.errors import StorageError, UsageError
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import SCHEMA as LEDGER_SCHEMA
from market_data_pipeline.lake.partitions import folder_of, months_closed, series_in_ledgers, series_with_files
from market_data_pipeline.lake.reader import labels_of
from market_data_pipeline.model.datasets import closes_months, data_types_of
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import DataType, Market, SeriesKey

_SOON_SEARCHED = 40_000
"""Characters up to which DuckDB searches a text in less time than it takes to look into a map; measured."""

NAMED = "filename = true"

_DAY_FILE = "????-??-??.parquet"


WHAT_TO_DO = "ask-again-or-open-the-catalog-again-or-run-market-data-status"
"""Begins the name of a mark, which DuckDB shows to people whose SQL is outdated."""

_A_DAY, _A_MONTH = "2024-01-01.parquet", "2024-01.parquet"


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


def path_of(pattern: str) -> Path | None:
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
        return empty(market, data_type, columns)
    listed = ", ".join(quoted(as_pattern(path)) for path in (*filter(None, [mark]), *paths))
    return f"SELECT {select_list(data_type, columns)} FROM {read_parquet(f'[{listed}]', NAMED)}"


def select_list(data_type: DataType, columns: Iterable[str]) -> str:
    # DuckDB evaluates a condition on an expression over nothing but `filename` once a file and skips the file without
    # opening it. string_split is the cheapest such expression (measured against split_part, parse_path and regexps).
    """Return the SQL of columns, with symbol and interval taken from the names of files."""
    labels = dict(zip(reversed(labels_of(data_type)), ("-2", "-3"), strict=False))
    return ", ".join(
        f"string_split(filename, '/')[{labels[name]}] AS \"{name}\"" if name in labels else f'"{name}"'
        for name in columns
    )


def empty(market: Market, data_type: DataType, columns: Iterable[str] | None = None) -> str:
    """Return a query without rows that has the types of a market and data type."""
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


def marks_of(held: Held) -> list[tuple[Path, pa.Schema]]:
    """The marks that SQL over a lake reads first, and their columns."""
    marks = [
        (in_sql.mark, lake_schema(market, data_type))
        for market in Market
        for data_type in data_types_of(market)
        if (in_sql := Files(held, market, data_type)).keys
    ]
    return [*marks, (mark_of_ledgers(held.layout), LEDGER_SCHEMA)] if has_ledgers(held.layout) else marks


def mark_of_ledgers(layout: Layout) -> Path:
    """Return the path of the mark that SQL over the ledgers reads first."""
    return layout.root / "lake" / "marks" / f"{WHAT_TO_DO}.parquet"


def has_ledgers(layout: Layout) -> bool:
    """Return True if any series has a ledger."""
    return any(series_in_ledgers(layout))


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
                parquet.write_table(mark, schema.empty_table())
        except StorageError:
            return held, False
        # A mark that came too late would outlive what it stands for: nobody would remove it.
        if not missing or held_now(layout) == held:
            return held, True


@dataclass(frozen=True)
class Files:
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
        """Return the folder of the market and data type."""
        return folder_of(self.held.layout, self.market, self.data_type)

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
        """Return True if months of the data type are closed."""
        return closes_months(self.data_type)

    @property
    def mark(self) -> Path:
        """A file without rows, which is there as long as it is right to read what this SQL reads.

        DuckDB takes the columns from it, so that it opens no other file for them. Its name is what an error shows.
        """
        digest = hashlib.sha256(self._closed.encode()).hexdigest()[:16]
        return self.folder / "marks" / f"{WHAT_TO_DO}-{digest}.parquet"

    def __post_init__(self) -> None:
        # Not cached_property: its lock (until Python 3.12) may be held in a parent when a child is forked.
        keys = self.held.keys(self.market, self.data_type)
        months = [(f"/monthly/{folder_labels(key)}/", month) for key in keys for month in self.held.months[key]]
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


def folder_labels(key: SeriesKey) -> str:
    """Return the folders of a series below its cadence, such as ``BTCUSDT/1m``."""
    return "/".join(filter(None, (key.symbol, key.interval)))
