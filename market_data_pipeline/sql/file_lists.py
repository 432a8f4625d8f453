# ruff: noqa: S608 - the SQL has only the project's own column names and quoted paths.
"""File lists as SQL: the files that a view or query reads, and the marks that invalidate stale SQL.

Views and macros belong to ``sql/views.py``.
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
"""Length of a text (characters) up to which DuckDB searches it faster than a map (measured)."""

NAMED = "filename = true"

_DAY_FILE = "????-??-??.parquet"


WHAT_TO_DO = "ask-again-or-open-the-catalog-again-or-run-market-data-status"
"""Start of a mark's file name. DuckDB shows the name to users of stale SQL."""

_A_DAY, _A_MONTH = "2024-01-01.parquet", "2024-01.parquet"


@dataclass(frozen=True)
class StoredSeries:
    """Series that have files and their closed months, as the SQL over a lake needs them.

    Attributes:
        layout: Layout of the lake.
        months: Closed months of each series, as ``2024-01``, in order.
    """

    layout: Layout
    months: Mapping[SeriesKey, Sequence[str]]

    def keys(self, market: Market, data_type: DataType) -> list[SeriesKey]:
        """Return the series of a market and data type, in order."""
        return [key for key in self.months if (key.market, key.data_type) == (market, data_type)]


def stored_series(layout: Layout) -> StoredSeries:
    """List the series that have files, and their closed months."""
    return StoredSeries(layout, {key: months_closed(layout, key) for key in series_with_files(layout)})


def quoted(text: str) -> str:
    """Return a string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def as_pattern(path: str | Path) -> str:
    """Return a pattern that matches exactly this path.

    Raises:
        UsageError: The path has a backslash. DuckDB has no pattern for it.
    """
    text = str(path)
    if "\\" in text:
        raise UsageError(
            f"SQL cannot read below {text}: DuckDB treats the backslash in the path as an escape. "
            "Move the data to a folder without one."
        )
    return re.sub(r"([*?\[])", r"[\1]", text)


def read_parquet(files: str, *options: str) -> str:
    """Return SQL that reads Parquet files with exactly their own columns, whatever their paths.

    By default, DuckDB turns a folder ``day=2026-11-30`` in the path into a column.

    Args:
        files: SQL for a path, a pattern or a list of them.
        options: Further options of DuckDB's function, such as ``filename = true``.
    """
    return f"read_parquet({', '.join((files, 'hive_partitioning = false', *options))})"


def path_of(pattern: str) -> Path | None:
    """Return the path of a pattern from :func:`as_pattern`; None if the pattern has wildcards."""
    if re.search(r"[*?\[]", re.sub(r"\[[*?\[]\]", "", pattern)):
        return None
    return Path(re.sub(r"\[([*?\[])\]", r"\1", pattern))


def scan(
    market: Market, data_type: DataType, paths: Sequence[Path], columns: Iterable[str], mark: Path | None = None
) -> str:
    """Return a query that reads the given files in order, with symbol and interval from their paths.

    Args:
        market: The market of the files.
        data_type: The data type of the files.
        paths: The files. All must exist. Without any, the result is empty and typed.
        columns: Names of the columns to read, labels included.
        mark: Mark to read first. Call :func:`newest_mark` for it before you list the files.
    """
    if not paths:
        return empty(market, data_type, columns)
    listed = ", ".join(quoted(as_pattern(path)) for path in (*filter(None, [mark]), *paths))
    return f"SELECT {select_list(data_type, columns)} FROM {read_parquet(f'[{listed}]', NAMED)}"


def select_list(data_type: DataType, columns: Iterable[str]) -> str:
    """Return the SQL of columns, with symbol and interval taken from the names of files."""
    # DuckDB evaluates a condition over `filename` alone once per file, and skips the file without opening it.
    # string_split is the cheapest such expression (measured against split_part, parse_path and regexps).
    labels = dict(zip(reversed(labels_of(data_type)), ("-2", "-3"), strict=False))
    return ", ".join(
        f"string_split(filename, '/')[{labels[name]}] AS \"{name}\"" if name in labels else f'"{name}"'
        for name in columns
    )


def empty(market: Market, data_type: DataType, columns: Iterable[str] | None = None) -> str:
    """Return a query without rows, with the column types of a market and data type."""
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


def marks_of(stored: StoredSeries) -> list[tuple[Path, pa.Schema]]:
    """Return the marks that SQL over a lake reads first, with their schemas."""
    marks = [
        (in_sql.mark, lake_schema(market, data_type))
        for market in Market
        for data_type in data_types_of(market)
        if (in_sql := Files(stored, market, data_type)).keys
    ]
    return [*marks, (mark_of_ledgers(stored.layout), LEDGER_SCHEMA)] if has_ledgers(stored.layout) else marks


def mark_of_ledgers(layout: Layout) -> Path:
    """Return the path of the mark that SQL over the ledgers reads first."""
    return layout.root / "lake" / "marks" / f"{WHAT_TO_DO}.parquet"


def has_ledgers(layout: Layout) -> bool:
    """Return True if any series has a ledger."""
    return any(series_in_ledgers(layout))


def marked_now(layout: Layout) -> tuple[StoredSeries, bool]:
    """List the series of a lake, and write its missing marks.

    Returns:
        The stored series, and True if all marks exist. Without write access, SQL works without marks.
    """
    while True:
        stored = stored_series(layout)
        missing = [(mark, schema) for mark, schema in marks_of(stored) if not mark.exists()]
        try:
            for mark, schema in missing:
                parquet.write_table(mark, schema.empty_table())
        except StorageError:
            return stored, False
        # If the lake changed meanwhile, a new mark may already be stale, and nothing would remove it.
        if not missing or stored_series(layout) == stored:
            return stored, True


@dataclass(frozen=True)
class Files:
    """The files of one market and data type, as SQL.

    The closed months are part of the SQL, so that its result is complete at any moment. SQL reads a month's file if it
    lists the month as closed, and the days' own files otherwise. Stale SQL in an open catalog still reads the days'
    files, which stay for a while. The mark of this SQL is removed long before the files, so that it fails instead of
    returning fewer rows.
    """

    stored: StoredSeries
    market: Market
    data_type: DataType
    marked: bool = True
    place: str = ""
    keys: Sequence[SeriesKey] = field(init=False)
    _closed_months: Sequence[tuple[str, str]] = field(init=False)
    """Closed months, as ``/monthly/BTCUSDT/1m/`` and ``2024-01``, in order."""
    _closed: str = field(init=False)
    """Closed months as one text; empty if there are none."""

    @property
    def folder(self) -> Path:
        """Return the folder of the market and data type."""
        return folder_of(self.stored.layout, self.market, self.data_type)

    @property
    def everything(self) -> str:
        """Return SQL for a pattern of all files."""
        levels = "*/" * len(labels_of(self.data_type))
        return quoted(f"{self._cadences}/{levels}{self._name}")

    def of_series(self, series: str) -> str:
        """Return SQL for a pattern of the files of a series. ``series`` is SQL as well."""
        return f"{quoted(f'{self._cadences}/')} || {series} || {quoted('/' + self._name)}"

    @property
    def _cadences(self) -> str:
        return f"{as_pattern(self.folder)}/{'*ly' if self.closes else 'daily'}"

    @property
    def _name(self) -> str:
        return "????-??*.parquet" if self.closes else _DAY_FILE

    def listed(self, pattern: str) -> str:
        """Return SQL for the files of a pattern, with the mark first."""
        return f"[{quoted(as_pattern(self.mark))}, {pattern}]" if self.marked else pattern

    @property
    def closes(self) -> bool:
        """Return True if months of the data type are closed."""
        return closes_months(self.data_type)

    @property
    def mark(self) -> Path:
        """Return the path of the mark: a file without rows that exists while this SQL is valid.

        DuckDB takes the columns from it and opens no other file for them. An error shows its name.
        """
        digest = hashlib.sha256(self._closed.encode()).hexdigest()[:16]
        return self.folder / "marks" / f"{WHAT_TO_DO}-{digest}.parquet"

    def __post_init__(self) -> None:
        # Not cached_property: its lock (until Python 3.12) may be locked in the parent during a fork.
        keys = self.stored.keys(self.market, self.data_type)
        months = [(f"/monthly/{folder_labels(key)}/", month) for key in keys for month in self.stored.months[key]]
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "_closed_months", months)
        object.__setattr__(self, "_closed", " ".join(series + month for series, month in months))

    @property
    def _closed_by_month(self) -> str:
        """Return SQL for a map from each month to the series that closed it."""
        by_month: dict[str, list[str]] = {}
        for series, month in self._closed_months:
            by_month.setdefault(month, []).append(series)
        text = ", ".join(f"{quoted(month)}: {quoted(' '.join(series))}" for month, series in by_month.items())
        return f"MAP {{{text}}}"

    def _is_closed(self, name: str) -> str:
        """Return SQL that is true if a file's month is closed. The file's name is as long as ``name``."""
        # A month's name counts only in the folder of months. For a day's name, the rest of the path is enough.
        begin, end = len(f"{self.folder}/{'' if name == _A_MONTH else 'daily/'}"), len(name) + 1
        after_month = end - len("2024-01")
        if len(self._closed) <= _SOON_SEARCHED:
            return f"contains({quoted(self._closed)}, filename[{begin}:-{after_month}])"
        series, month = f"filename[{begin}:-{end}]", f"filename[-{end - 1}:-{after_month}]"
        return f"contains(coalesce(map_extract({self._closed_by_month}, {month})[1], ''), {series})"

    def conditions(self) -> list[str]:
        """Return SQL conditions over ``filename`` alone that are true for the files to read.

        DuckDB evaluates each once per file. Each step takes 2 µs per file, so there are few, and names are cut by
        position.
        """
        return [*self._of_its_kind(), *filter(None, [self.place])]

    def _of_its_kind(self) -> list[str]:
        if not self.closes:
            return []
        # Check for a month's name first. Its slash may be at the position of a day's slash: /1h/2024-01.
        of_month, of_day = (f"filename[-{len(name) + 1}] = '/'" for name in (_A_MONTH, _A_DAY))
        if not self._closed:
            return [f"NOT {of_month} AND {of_day}"]

        month, day = self._is_closed(_A_MONTH), self._is_closed(_A_DAY)
        return [f"CASE WHEN {of_month} THEN {month} WHEN {of_day} THEN NOT {day} ELSE false END"]

    def conditions_of(self, labels: Sequence[str], start: str, last: str) -> list[str]:
        """Return SQL conditions that are true for a series' files with rows from start to last. All arguments are SQL.

        DuckDB evaluates them for each file, and a function takes longer than opening the file. So whole names are
        compared, in one condition. Each function also takes time when the query is bound, so one function formats the
        whole name.
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
