"""Run SQL in a process of its own: a query that DuckDB cannot end takes the process with it, not the server.

The door is that of ``MarketData.sql``: one SELECT, no other files, limits of memory and time. The tools belong to
``tools.py``.
"""

from __future__ import annotations

import os
import re
import threading
import time
from concurrent.futures import BrokenExecutor
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from market_data_pipeline.client import MarketData
from market_data_pipeline.client.session import Limits
from market_data_pipeline.client.watchdog import ended_beyond
from market_data_pipeline.errors import QueryLimitError
from market_data_pipeline.lake.arrow_memory import REUSE_MEMORY
from market_data_pipeline.maintenance.pool import end_with_parent
from market_data_pipeline.mcp_server.answers import AnswerLimits, cut, json_rows
from market_data_pipeline.mcp_server.scan import (
    NARROW_SQL,
    STORED_DAYS,
    SeriesSize,
    estimated,
    refuse_too_much,
    sizes_named,
)
from market_data_pipeline.settings import PREFIX, load_settings

if TYPE_CHECKING:
    from loky import ProcessPoolExecutor

_START_SECONDS = 60.0
"""Time for a new process to start, in addition to the time of its query."""


@dataclass(frozen=True, slots=True)
class QueryAnswer:
    """Rows of a query.

    Attributes:
        rows: The rows as JSON.
        truncated: True if there are more.
        types: Type of each column.
        series: The stored series that the query names.
    """

    rows: list[dict[str, Any]]
    truncated: bool
    types: dict[str, str]
    series: list[SeriesSize]


class QueryProcess:
    """Runs queries over a data folder in another process, one at a time. It starts at the first query."""

    def __init__(self, root: Path, limits: AnswerLimits) -> None:
        self._root = root
        self._limits = limits
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._parent: Connection | None = None

    def answer(self, query: str, limit: int) -> QueryAnswer:
        """Return the first rows of a query.

        Raises:
            QueryLimitError: The query would read too much, or needs more time or memory than allowed.
            UsageError: The text is no query, or DuckDB refuses it.
            DamagedFileError: A file that the query reads is damaged.
        """
        with self._lock:
            started = self._started()
            task = started.submit(_answer, self._root, query, limit, self._limits)
            try:
                found: QueryAnswer = task.result(timeout=self._limits.seconds * 2 + _START_SECONDS)
            except (BrokenExecutor, TookTooLong) as error:
                self._end()
                raise QueryLimitError(
                    f"The query went far beyond {self._limits.seconds:g} seconds or "
                    f"{load_settings().sql_memory_mb:,} MB of memory, so its process was ended. Request fewer days or "
                    "columns."
                ) from error
            return found

    def close(self) -> None:
        """End the process. A query that is running fails."""
        self._end()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            from loky import ProcessPoolExecutor

            theirs, self._parent = Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(
                1,
                initializer=end_with_parent,
                initargs=(theirs,),
                env={**REUSE_MEMORY, f"{PREFIX}SQL_SECONDS": f"{self._limits.seconds:g}"},
            )
        return self._pool

    def _end(self) -> None:
        pool, parent, self._pool, self._parent = self._pool, self._parent, None, None
        if pool is not None:
            pool.shutdown(kill_workers=True)
        if parent is not None:
            parent.close()


_SIZES_KEPT_SECONDS = 60.0
"""Age up to which sizes of series are used again. Reading them opens each ledger, and they only serve estimates."""

_markets: dict[Path, MarketData] = {}
_sizes: dict[Path, tuple[float, list[SeriesSize]]] = {}


def _sizes_of(root: Path, market: MarketData) -> list[SeriesSize]:
    read_at, sizes = _sizes.get(root, (-_SIZES_KEPT_SECONDS, []))
    if time.monotonic() - read_at >= _SIZES_KEPT_SECONDS:
        sizes = [SeriesSize(**row) for row in market.sql(STORED_DAYS).arrow().to_pylist()]
        _sizes[root] = time.monotonic(), sizes
    return sizes


def _answer(root: Path, query: str, limit: int, limits: AnswerLimits) -> QueryAnswer:
    """Answer a query in the worker."""
    if root not in _markets:
        _markets[root] = MarketData(root)
    market = _markets[root]
    with ended_beyond(Limits.of(load_settings()), lambda _: os._exit(1)):
        market.sql(query)  # report a mistake in the text itself
        sizes = _sizes_of(root, market)
        text = query
        if not re.match(r"\s*EXPLAIN\b", query, re.IGNORECASE):
            plan = market.sql(f"EXPLAIN (FORMAT json) {query}").arrow()["explain_value"][0].as_py()
            refuse_too_much(estimated(plan, query, sizes), limits, NARROW_SQL)
            text = f"FROM (\n{query.rstrip().rstrip(';')}\n) LIMIT {limit + 1}"
        table = market.sql(text).arrow()
        types = {field.name: str(field.type) for field in table.schema}
        return QueryAnswer(*cut(json_rows(table), limit, limits.characters), types, sizes_named(query, sizes))
