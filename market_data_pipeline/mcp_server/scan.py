"""Estimate what a query would read, from its plan and the ledgers, and refuse too much.

Running it belongs to ``query_process.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from market_data_pipeline.errors import QueryLimitError
from market_data_pipeline.mcp_server.answers import AnswerLimits
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import DataType, Market

_VIEW = re.compile(r"\bbinance_(\w+?)\W*\.\W*(\w+)", re.IGNORECASE)
_LITERAL = re.compile(r"'([^']*)'")
_MACROS = {"candles": DataType.KLINES.sql_name, "trades": DataType.AGG_TRADES.sql_name}
"""Macros by their name in SQL, with the view whose files they read. ``trades`` without parentheses is a view."""

STORED_DAYS = (
    'SELECT market, data_type, symbol, "interval", count(*) AS days, CAST(sum(rows) AS BIGINT) AS rows '
    "FROM quality.coverage WHERE outcome = 'held' GROUP BY ALL"
)
"""The stored days and rows of each series."""


@dataclass(frozen=True, slots=True)
class SeriesSize:
    """Stored days and rows of a series."""

    market: str
    data_type: str
    symbol: str
    interval: str | None
    days: int
    rows: int


def sizes_named(query: str, sizes: Iterable[SeriesSize]) -> list[SeriesSize]:
    """Return the series that a query names by view, symbol and interval. A part that it does not name selects all.

    The text is matched, not parsed: the result is for estimates and for notes on what is missing.
    """
    found = [size for size in sizes if (size.market, DataType(size.data_type).sql_name) in _views_in(query)]
    literals = set(_LITERAL.findall(query))
    found = [size for size in found if size.symbol in literals] or found
    return [size for size in found if size.interval in literals] or found


def _views_in(query: str, *, macros: bool = True) -> set[tuple[str, str]]:
    """Return market and name of the views that a query names, and of those whose files its macros read."""
    found = set()
    for match in _VIEW.finditer(query):
        market, name = match[1].lower(), match[2].lower()
        is_call = query[match.end() :].lstrip('" \n').startswith("(")
        if macros or not is_call:
            found.add((market, _MACROS.get(name, name) if is_call else name))
    return found


@dataclass(frozen=True, slots=True)
class ScanEstimate:
    """Files and rows that a query would read."""

    files: int
    rows: int


def estimated(plan: str, query: str, sizes: Sequence[SeriesSize]) -> ScanEstimate:
    """Return what a query would read.

    Args:
        plan: DuckDB's plan of the query as JSON.
        query: Its text.
        sizes: The stored series.
    """
    named = sizes_named(query, sizes)
    rows_of_day = sum(size.rows for size in named) / max(1, sum(size.days for size in named))
    files = rows = 0
    for node in _scans(json.loads(plan)):
        known = node.get("extra_info", {})
        scanned = str(known.get("Scanning Files", "")).partition("/")[0]
        if scanned.isdecimal():
            files += int(scanned)
            rows += round(int(scanned) * rows_of_day)
        else:  # no file is left out
            every = _of_widest_view(known.get("Projections", []), query, sizes)
            files += sum(size.days for size in every)
            rows += sum(size.rows for size in every)
    return ScanEstimate(files, rows)


def _of_widest_view(columns: str | list[str], query: str, sizes: Sequence[SeriesSize]) -> list[SeriesSize]:
    """Return the series of the view that a scan of these columns reads. Scans of ledgers read none.

    The plan does not name the view. Among several with these columns, it may be the one with the most rows. It is not
    the view of a macro, because macros leave out files.
    """
    views = _views_in(query, macros=False)
    wanted = {columns} if isinstance(columns, str) else set(columns)
    found: dict[tuple[str, str], list[SeriesSize]] = {}
    for size in sizes:
        view = (size.market, DataType(size.data_type).sql_name)
        if view in views and wanted <= {
            "filename",
            *lake_schema(Market(size.market), DataType(size.data_type)).names,
        }:
            found.setdefault(view, []).append(size)
    return max(found.values(), key=lambda some: sum(size.rows for size in some), default=[])


def _scans(plan: Any) -> Iterator[dict[str, Any]]:
    waiting = list(plan) if isinstance(plan, list) else [plan]
    while waiting:
        node = waiting.pop()
        if "PARQUET" in str(node.get("name")).upper():
            yield node
        waiting += node.get("children", [])


def refuse_too_much(estimate: ScanEstimate, limits: AnswerLimits, advice: str) -> None:
    """Refuse a query that would read too much.

    Args:
        advice: A sentence on how to narrow the query.

    Raises:
        QueryLimitError: It would read more files or rows than allowed.
    """
    if estimate.files > limits.scan_files or estimate.rows > limits.scan_rows:
        raise QueryLimitError(
            f"The query would read about {estimate.files:,} files with {estimate.rows:,} rows, and was not run. "
            f"At most {limits.scan_files:,} files and {limits.scan_rows:,} rows are read. {advice}"
        )


NARROW_SQL = (
    "Narrow it: read one symbol and a range of time with a macro, such as "
    "binance_spot.candles('BTCUSDT', '1h', '2024-01-01', '2024-02-01') or binance_spot.trades('BTCUSDT', '2024-01-01', "
    "'2024-01-02'), or filter symbol and interval with =. A filter on the time of a view does not leave out files."
)
"""Advice for queries over views."""
