"""DuckDB behind ``MarketData``: one in memory, with a session for each thread and the lake's views."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from market_data_pipeline import faults
from market_data_pipeline.errors import MarketDataError, UsageError
from market_data_pipeline.lake import catalog
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.on_record import CORRECTED, corrected

if TYPE_CHECKING:
    import duckdb

_T = TypeVar("_T")

_QUERIES = frozenset({"SELECT", "EXPLAIN", "MULTI", "CALL", "PRAGMA"})
"""DuckDB's kinds of statements that only answer; MULTI is PIVOT."""

_CORRECTIONS = "main.as_on_disk"


class DuckDB:
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
        self._corrections = CORRECTED.empty_table()

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
        self._make_views(session, as_on_disk="quality" in query.casefold())
        return session.sql(query)

    def _run(self, read: Callable[[], _T]) -> _T:
        import duckdb

        try:
            with faults.in_words():
                return catalog.retrying(read, self._layout)
        except MarketDataError as error:
            if self._broken is not None and isinstance(error.__cause__, duckdb.CatalogException):
                raise self._broken from error  # the view could not be made
            raise

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

    def _correct(self, session: duckdb.DuckDBPyConnection, corrections: pa.Table) -> None:
        if corrections.num_rows and not corrections.equals(self._corrections):
            session.register("found", corrections)
            session.execute(f"CREATE OR REPLACE TABLE {_CORRECTIONS} AS FROM found")
            session.unregister("found")
        self._corrections = corrections

    def _make_views(self, session: duckdb.DuckDBPyConnection, *, as_on_disk: bool) -> None:
        """Bring the views up to the lake.

        Args:
            session: To make them in.
            as_on_disk: Whether ledgers that do not speak of the files that lie there are corrected in the views, which
                takes a look into the folder of each series.
        """
        import duckdb

        corrections = corrected(self._layout, catalog.series_held(self._layout)) if as_on_disk else None
        with self._lock:
            if corrections is not None:
                self._correct(session, corrections)
            held, marked = catalog.marked_now(self._layout)
            statements = catalog.statements(held, _CORRECTIONS if self._corrections.num_rows else "", marked=marked)
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
