"""DuckDB errors over files of the lake: retry a read whose file was replaced, and name the damaged file.

Building SQL belongs to ``sql/views.py`` and ``sql/file_lists.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from market_data_pipeline.errors import DamagedFileError, MarketDataError, UsageError
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.partitions import day_files, read_day_file, series_with_files
from market_data_pipeline.model.places import place_of
from market_data_pipeline.sql.file_lists import WHAT_TO_DO, path_of

if TYPE_CHECKING:
    import duckdb


_T = TypeVar("_T")

_TRIES = 3
"""Number of attempts if a file may have been replaced during a read."""

_NAMED_FILE = re.compile(r"""['"]([^'"]+\.parquet)['"]""")


def may_have_been_replaced(error: duckdb.Error) -> bool:
    """Return True if the error may come from a file that was replaced or removed while DuckDB read it.

    DuckDB 1.5 and 2.0 open each file twice, for the footer and for the data. If it is replaced in between, they report
    invalid data. They never returned wrong rows. A retry succeeds.
    """
    import duckdb

    return type(error) is duckdb.Error or isinstance(error, duckdb.IOException) or bool(_NAMED_FILE.search(str(error)))


def retrying(read: Callable[[], _T], layout: Layout) -> _T:
    """Read from DuckDB, and retry if a file may have been replaced meanwhile.

    Raises:
        DamagedFileError: A file is unreadable or missing. The message names it.
        UsageError: The query cannot be run.
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
    """Convert a DuckDB error for users: a damaged file, or a query that cannot be run.

    Args:
        error: The DuckDB error.
        layout: Layout of the lake. If given, its files are searched for a damaged one that DuckDB does not name.
    """
    import duckdb

    text = str(error).partition("\n")[0]
    if WHAT_TO_DO in text:
        return MarketDataError(
            "Months were closed or removed after the query was built, so it would miss days. Run it again."
        )
    named = _NAMED_FILE.search(text)
    if named and "No files found" not in text:
        return parquet.damaged(place_of(named[1]), error)
    path = path_of(named[1]) if named else None
    if layout is not None and path is not None and path.is_relative_to(layout.root):
        return DamagedFileError(f"{path} is gone. Backfill that day to restore it.")
    if type(error) is duckdb.Error:  # an invalid footer or page, in a file that DuckDB does not name
        return (layout and _first_damaged(layout)) or DamagedFileError(
            f"A file of the lake cannot be read: {text}. If it was being replaced, run the query again."
        )
    return UsageError(f"The query cannot be run. {error}")


def _first_damaged(layout: Layout) -> DamagedFileError | None:
    """Return the first damaged file among those that differ from their ledger."""
    for key in series_with_files(layout):
        ledger = Ledger.read(layout.ledger(key))
        for day, stored in day_files(layout, key).items():
            row = ledger.get(day)
            if row is not None and row.matches_file(stored.stat):
                continue
            try:
                read_day_file(stored)
            except DamagedFileError as damaged:
                return damaged
    return None
