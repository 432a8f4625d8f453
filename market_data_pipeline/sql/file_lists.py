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
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import LEDGER_SCHEMA as LEDGER_SCHEMA
from market_data_pipeline.lake.partitions import (
    day_files,
    folder_of,
    months_closed,
    series_in_ledgers,
    series_with_files,
)
from market_data_pipeline.lake.reader import labels_of
from market_data_pipeline.model.datasets import data_types_of
from market_data_pipeline.model.places import is_object, place_of
from market_data_pipeline.model.schema import empty_table, lake_schema
from market_data_pipeline.model.series import DataType, Market, SeriesKey

NAMED = "filename = true"

_DAY_FILE = "????-??-??.parquet"


WHAT_TO_DO = "ask-again-or-open-the-catalog-again-or-run-market-data-status"
"""Start of a mark's file name. DuckDB shows the name to users of stale SQL."""

_A_DAY_OBJECT = "2024-01-01-00000100001-0123456789ab.parquet"
_A_DAY, _A_MONTH = "2024-01-01.parquet", "2024-01.parquet"
_IS_DAY, _IS_MONTH = (f"filename[-{len(name) + 1}] = '/'" for name in (_A_DAY, _A_MONTH))
"""SQL that is true for the names of days and months. Check for a month first: /1h/2024-01 has both slashes."""


@dataclass(frozen=True)
class StoredSeries:
    """Series that have files and their closed months, as the SQL over a lake needs them.

    Attributes:
        layout: Layout of the lake.
        months: Closed months of each series, as ``2024-01``, in order.
        objects: The objects of each series below ``lake/``, for SQL that other programs run over a bucket. None means
            that files are found by their names in the lake.
    """

    layout: Layout
    months: Mapping[SeriesKey, Sequence[str]]
    objects: Mapping[SeriesKey, Sequence[str]] | None = None
    _closed: dict[tuple[Market, DataType], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def closed(self, market: Market, data_type: DataType) -> str:
        """Return the paths of the closed months below a folder: ``/monthly/BTCUSDT/1m/2024-01 …``. It is cached."""
        if (market, data_type) not in self._closed:
            of_series = ((f"/monthly/{folder_labels(key)}/", key) for key in self.keys(market, data_type))
            self._closed[market, data_type] = " ".join(
                f"{folder}{month}" for folder, key in of_series for month in self.months[key]
            )
        return self._closed[market, data_type]

    def keys(self, market: Market, data_type: DataType) -> list[SeriesKey]:
        """Return the series of a market and data type, in order."""
        return [key for key in self.months if (key.market, key.data_type) == (market, data_type)]


def stored_series(layout: Layout) -> StoredSeries:
    """List the series that have files, and their closed months."""
    return StoredSeries(layout, {key: months_closed(layout, key) for key in series_with_files(layout)})


def stored_objects(layout: Layout) -> StoredSeries:
    """List the series of a lake in a bucket, with the objects that have their days now."""
    stored = stored_series(layout)
    return StoredSeries(layout, stored.months, {key: _objects_of(layout, key) for key in stored.months})


def _objects_of(layout: Layout, key: SeriesKey) -> list[str]:
    paths = dict.fromkeys(one.path for one in day_files(layout, key).values())
    return [name for path in paths if (name := storage.address(path)) is not None]


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
    return place_of(re.sub(r"\[([*?\[])\]", r"\1", pattern))


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
    if is_object(stored.layout.root):
        return []
    marks = [
        (path, lake_schema(market, data_type))
        for market in Market
        for data_type in data_types_of(market)
        if (files := Files(stored, market, data_type)).keys
        for path in (files.mark, files.no_day)
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
    if is_object(layout.root):  # names are never reused there, so stale SQL finds no file, and fails by itself
        return stored_series(layout), False
    while True:
        stored = stored_series(layout)
        missing = [(mark, schema) for mark, schema in marks_of(stored) if storage.head(mark) is None]
        try:
            for mark, schema in missing:
                parquet.write_table(mark, empty_table(schema))
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
    keys: Sequence[SeriesKey] = field(init=False)
    _closed: str = field(init=False)
    """Paths of the closed months below the folder, without suffix: ``/monthly/BTCUSDT/1m/2024-01 …``."""
    _newest: str = field(init=False)
    """The newest closed month of all series; empty if there is none."""

    def __post_init__(self) -> None:
        # Not cached_property: its lock (until Python 3.12) may be locked in the parent during a fork.
        keys = self.stored.keys(self.market, self.data_type)
        newest = (self.stored.months[key][-1] for key in keys if self.stored.months[key])
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "_closed", self.stored.closed(self.market, self.data_type))
        object.__setattr__(self, "_newest", max(newest, default=""))

    @property
    def folder(self) -> Path:
        """Return the folder of the market and data type."""
        return folder_of(self.stored.layout, self.market, self.data_type)

    @property
    def mark(self) -> Path:
        """Return the path of the mark: a file without rows that exists while this SQL is valid.

        DuckDB takes the columns from it and opens no other file for them. An error shows its name.
        """
        digest = hashlib.sha256(self._closed.encode()).hexdigest()[:16]
        return self.folder / "marks" / f"{WHAT_TO_DO}-{digest}.parquet"

    @property
    def no_day(self) -> Path:
        """Return the path of a day's file without rows. DuckDB refuses a pattern that matches no file."""
        return self.folder.joinpath("marks", *("-" for _ in labels_of(self.data_type)), "0000-00-00.parquet")

    def of_all(self) -> tuple[str, str]:
        """Return SQL for the files of all series, and a condition that is true for those to read.

        Closed months are listed by name, so only days need the condition. DuckDB evaluates it once per file, in 10 µs.
        One text with all months and a function that splits it are bound much faster than a long list.
        """
        if self.stored.objects is not None:
            return self._objects, "true"
        folder, levels = as_pattern(self.folder), "*/" * len(labels_of(self.data_type))
        some = self.marked or any(storage.list_paths(self.folder, f"daily/{levels}{_DAY_FILE}"))
        days = [quoted(f"{folder}/?a*/{levels}{_DAY_FILE}")] if some else []  # in daily/ and marks/
        if not self._closed:
            return self._listed(*days), "true"
        files = f"""{self._listed(*days)} || list_transform(
            string_split({quoted(self._closed)}, ' '), lambda month: {quoted(folder)} || month || '.parquet')"""
        condition = f"""CASE
            WHEN {_IS_MONTH} THEN true
            {self._branches_of_days} END"""
        return files, condition

    def of_series(self, series: str, start: str, last: str) -> tuple[str, str]:
        """Return SQL for the files of one series, and a condition that is true for those with rows from start to last.

        All arguments are SQL. The times may come from a subquery or another table, so names are compared in the
        condition. A series that was unknown when the SQL was made is looked for in all folders.
        """
        if self.stored.objects is not None:
            return self._objects_with(series, start, last)
        unknown = f"WHEN NOT ({self.knows(series)} OR contains(filename, {series})) THEN false"
        return self._listed(self._pattern(series)), self._with_rows(start, last, unknown)

    def of_composed(self, source: str, start: str, last: str) -> tuple[str, str]:
        """Return the same for a known series from which candles are composed; no files if its SQL is NULL."""
        if self.stored.objects is not None:
            return self._objects_with(source, start, last)
        return self._listed(f"coalesce({self._named(source)}, {self._nothing})"), self._with_rows(start, last)

    @property
    def _objects(self) -> str:
        """Return SQL for the list of all objects."""
        names = " ".join(name for key in self.keys for name in (self.stored.objects or {})[key])
        return f"""list_transform(string_split({quoted(names)}, ' '),
            lambda name: {quoted(f"{self.stored.layout.root}/")} || name)"""

    def _objects_with(self, series: str, start: str, last: str) -> tuple[str, str]:
        """Return SQL for the objects of a series, and a condition that is true for those of a range of days.

        Without any, it lists one object that the condition leaves out, because DuckDB refuses an empty list.
        """
        own = f"list_filter({self._objects}, lambda one: contains(one, {series}))"
        days = f"strftime({start}, '%Y-%m-%d')", f"strftime({last}, '%Y-%m-%d')"
        name = "parse_filename(filename)"
        return (
            f"CASE WHEN len({own}) > 0 THEN {own} ELSE {self._objects}[1:1] END",
            f"""contains(filename, {series})
            AND CASE WHEN length({name}) = {len(_A_DAY_OBJECT)} THEN left({name}, 10) BETWEEN {days[0]} AND {days[1]}
            ELSE left({name}, 7) BETWEEN left({days[0]}, 7) AND left({days[1]}, 7) END""",
        )

    def knows(self, series: str) -> str:
        """Return SQL that is true for a series that had files when the SQL was made."""
        return f"contains({quoted(' '.join(f'/{folder_labels(key)}/' for key in self.keys))}, {series})"

    def _pattern(self, series: str) -> str:
        return self._named(f"CASE WHEN {self.knows(series)} THEN {series} ELSE {self._any_series} END")

    def _named(self, series: str) -> str:
        """Return SQL for the pattern of a series' files. It is one for both cadences: one of them may have no file."""
        return f"{quoted(f'{as_pattern(self.folder)}/*ly')} || {series} || '????-??*.parquet'"

    @property
    def _any_series(self) -> str:
        return quoted(f"/{'*/' * len(labels_of(self.data_type))}")

    @property
    def _nothing(self) -> str:
        """Return SQL for files without rows. Without marks, all files are listed instead."""
        return quoted(as_pattern(self.no_day)) if self.marked else self._named(self._any_series)

    def _with_rows(self, start: str, last: str, unknown: str = "") -> str:
        # As text, 2024-01 <= 2024-01-15 <= 2024-01.parquet. So the last day is compared with names without suffix.
        return f"""CASE
            WHEN parse_filename(filename) < strftime({start}, '%Y-%m-%d') THEN false
            WHEN parse_filename(filename, true) > strftime({last}, '%Y-%m-%d') THEN false
            {unknown}
            WHEN {_IS_MONTH} THEN contains({quoted(self._closed)}, {self._through_month("", _A_MONTH)})
            WHEN NOT {_IS_DAY} THEN false
            {self._branches_of_days} END"""

    def _listed(self, *files: str) -> str:
        """Return SQL for a list of files, with the mark first."""
        mark = [quoted(as_pattern(self.mark))] if self.marked else []
        return f"[{', '.join((*mark, *files))}]"

    @property
    def _branches_of_days(self) -> str:
        """Return the last branches of a CASE: true for a day's file unless its month is closed."""
        day = self._through_month("/daily", _A_DAY)  # is part of a closed month's path
        return f"""WHEN filename[-18:-12] > {quoted(self._newest)} THEN true
            ELSE NOT contains({quoted(self._closed)}, {day})"""

    def _through_month(self, cadence: str, name: str) -> str:
        """Return SQL for the part of a path between a folder and the day. The file's name is as long as ``name``."""
        return f"filename[{len(f'{self.folder}{cadence}') + 1}:{len('2024-01') - len(name) - 1}]"


def folder_labels(key: SeriesKey) -> str:
    """Return the folders of a series below its cadence, such as ``BTCUSDT/1m``."""
    return "/".join(filter(None, (key.symbol, key.interval)))
