"""Errors of DuckDB over files of the lake: retry a read whose file was replaced, and name the damaged file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from market_data_pipeline.errors import DamagedFileError, MarketDataError, UsageError
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.partitions import days_on_disk, read_whole, series_with_files
from market_data_pipeline.sql.file_lists import WHAT_TO_DO, path_of

if TYPE_CHECKING:
    import duckdb


_T = TypeVar("_T")

_TRIES = 3
"""How often DuckDB is asked where a file may have been replaced while it read."""


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
    if WHAT_TO_DO in text:
        return MarketDataError("Months were closed since the query was made, so it would miss their days. Ask again.")
    named = _NAMED_FILE.search(text)
    if named and "No files found" not in text:
        return parquet.damaged(Path(named[1]), error)
    path = path_of(named[1]) if named else None
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
