"""DuckDB behind ``MarketData``: one in memory for rows of files, and a locked one for SQL over the lake's views.

Each opens its own connections when it is first asked, one for each thread. After a fork the child opens new ones.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from market_data_pipeline.client.queries import check_query
from market_data_pipeline.client.request import SeriesSelection
from market_data_pipeline.errors import MarketDataError, QueryLimitError, UsageError
from market_data_pipeline.lake import partitions, storage
from market_data_pipeline.lake.day_records import CORRECTED, corrected, with_others
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.locks import is_running
from market_data_pipeline.model import faults
from market_data_pipeline.model.schema import empty_table
from market_data_pipeline.model.series import EXCHANGE
from market_data_pipeline.settings import Settings
from market_data_pipeline.sql import errors, file_lists, views
from market_data_pipeline.sql.object_files import attach_objects

if TYPE_CHECKING:
    import duckdb


_T = TypeVar("_T")

_CORRECTIONS = "main.as_on_disk"

_ROWS_AT_ONCE = 122_880
"""Rows of an answer that DuckDB hands out together: a row group of it."""

_ROWS_FETCHED = 1024

_CHECKED_KEPT = 256
"""Texts that are remembered as queries: each is asked for twice, when it is begun and when its rows are taken."""

_SPILL = ".sql-"
"""How the folders begin in which DuckDB puts what does not fit its memory: below the root, removed at the end."""

_LEFT_AFTER_SECONDS = 3600

_FORK_WAITS_SECONDS = 5.0
"""How long a fork waits for queries of other threads."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a query. 0 seconds means as long as it needs."""

    memory_mb: int
    disk_mb: int
    seconds: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits that the settings set."""
        return cls(settings.sql_memory_mb, settings.sql_disk_mb, settings.sql_seconds)


Params = Sequence[object] | Mapping[str, object] | None
"""Values for the ``?`` or the ``$name`` of a query."""


class DuckDB:
    """A DuckDB in memory, for relations over files of the lake.

    Each thread has its own session, because DuckDB refuses a second call on a session that is at work. You can join
    relations that one thread made. Pickled, it is closed.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._forget()
        _open_ones.add(self)

    def stored(self, query: Callable[[], str]) -> duckdb.DuckDBPyRelation:
        """Return a lazy relation over files. ``query`` is called again if a file vanishes before it is opened."""
        return self._run(lambda: self._session().sql(query()))

    def of_parts(self, parts: Callable[[], Iterable[str | pa.Table]]) -> duckdb.DuckDBPyRelation:
        """Return a lazy relation over SQL and tables, in order. ``parts`` is called again if a file vanishes."""

        def read() -> duckdb.DuckDBPyRelation:
            session = self._session()
            of_each = (session.sql(one) if isinstance(one, str) else session.from_arrow(one) for one in parts())
            return reduce(lambda before, after: before.union(after), of_each)

        return self._run(read)

    def count_parts(self, parts: Callable[[], Iterable[str | pa.Table]]) -> int:
        """Return the number of rows of SQL and tables, without reading the columns of files."""

        def read() -> int:
            session = self._session()
            return sum(count_rows(session.query(one)) if isinstance(one, str) else one.num_rows for one in parts())

        return self._run(read)

    def rows_over(self, query: Callable[[], tuple[str, Mapping[str, pa.Table]]]) -> pa.Table:
        """Return the rows of a query over files and named tables. ``query`` is called again if a file vanishes."""

        def read() -> pa.Table:
            session = self._session()
            text, tables = query()
            try:
                for name, table in tables.items():
                    session.register(name, table)
                found: pa.Table = session.sql(text).to_arrow_table()
            finally:
                for name in tables:
                    session.unregister(name)
            return found

        return self._run(read)

    def of_table(self, table: pa.Table) -> duckdb.DuckDBPyRelation:
        """Return a relation over an Arrow table."""
        return self._run(lambda: self._session().from_arrow(table))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._layout,)

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._database: duckdb.DuckDBPyConnection | None = None
        self._sessions = threading.local()
        self._every_session: list[tuple[threading.Thread, duckdb.DuckDBPyConnection]] = []

    def _begin_anew(self, *, close: bool) -> None:
        """Forget what the parent of this forked process had open, so that what was made with it raises at once.

        DuckDB's threads are not in the child. To close its database would wait for them, so that is never done.
        """
        if self._database is not None:
            _keep_for_ever(self._database)
        for _, session in self._every_session:
            _keep_for_ever(session)
            if close:
                with suppress(Exception):  # a relation is read in it, by another thread of the parent
                    session.close()
        self._forget()

    def _run(self, read: Callable[[], _T]) -> _T:
        with faults.explained(), _gate.passed():
            return errors.retrying(read, self._layout)

    def _connect(self) -> duckdb.DuckDBPyConnection:
        import duckdb

        database = duckdb.connect()
        attach_objects(database, self._layout.root)
        database.execute("SET GLOBAL TimeZone = 'UTC'")
        # A name that is no view must not find a variable of this module.
        database.execute("SET GLOBAL python_enable_replacements = false")
        return database

    def _session(self) -> duckdb.DuckDBPyConnection:
        if not hasattr(self._sessions, "own"):
            self._sessions.own = self._new_session()
        own: duckdb.DuckDBPyConnection = self._sessions.own
        return own

    def _new_session(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if self._database is None:
                self._database = self._connect()
            session = self._database.cursor()
            living = [(thread, its) for thread, its in self._every_session if thread.is_alive()]
            self._every_session = [*living, (threading.current_thread(), session)]
        return session


def count_rows(relation: duckdb.DuckDBPyRelation) -> int:
    """Return the number of rows of a relation."""
    [(number,)] = relation.count("*").fetchall()
    return int(number)


def _keep_for_ever(thing: object) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


_open_ones: weakref.WeakSet[DuckDB] = weakref.WeakSet()


class _Gate:
    """Lets a fork wait for what other threads do in DuckDB, whose locks a child would find locked for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}
        self._forking = False
        self.clear = True

    @contextmanager
    def passed(self) -> Iterator[None]:
        """Be inside, which is not begun while this process forks."""
        thread = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: not self._forking or thread in self._inside)
            self._inside[thread] = self._inside.get(thread, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._inside[thread] -= 1
                if not self._inside[thread]:
                    del self._inside[thread]
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in, and wait for a while until nobody is inside."""
        own = threading.get_ident()
        with self._changed:
            self._forking = True
            self.clear = self._changed.wait_for(lambda: not self._inside.keys() - {own}, _FORK_WAITS_SECONDS)

    def open(self) -> None:
        """Let everybody in again."""
        with self._changed:
            self._forking = False
            self._changed.notify_all()


_gate = _Gate()


def _after_fork() -> None:
    global _gate
    clear, _gate = _gate.clear, _Gate()
    for one in list(_open_ones):
        one._begin_anew(close=clear)


os.register_at_fork(before=lambda: _gate.close(), after_in_parent=lambda: _gate.open(), after_in_child=_after_fork)


class Views(DuckDB):
    """The lake's views, for queries that somebody wrote.

    A text must be a query (``client/queries.py``). It runs in a DuckDB that reads the files of the views and no others,
    whose settings are locked, and that has the limits of :class:`Limits`. The views are made when they are first asked
    for, and follow the lake.
    """

    def __init__(self, layout: Layout, limits: Limits) -> None:
        self._limits = limits
        super().__init__(layout)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._layout, self._limits)

    def within(
        self,
        use: Callable[[duckdb.DuckDBPyRelation], _T],
        query: str,
        params: Params = None,
        selection: SeriesSelection | None = None,
    ) -> _T:
        """Return what a function makes of the lazy relation that answers a query, within the limit of time."""
        with self.in_time():
            return self.read(query, use, params, selection)

    def read(
        self,
        query: str,
        use: Callable[[duckdb.DuckDBPyRelation], _T],
        params: Params = None,
        selection: SeriesSelection | None = None,
    ) -> _T:
        """Return what a function makes of the relation. It is called again if a file was replaced meanwhile.

        Args:
            query: The query.
            use: The function.
            params: Values of the query.
            selection: Series that the query reads from the ``quality`` views. None means all.
        """
        return self._run(lambda: use(self._answer(query, params, selection)))

    def streamed(self, query: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """Return the names of the columns, and the rows as DuckDB gets to them. Use it within :meth:`in_time`."""
        session = self._session()

        def begin() -> tuple[list[str], list[tuple[Any, ...]]]:
            self._prepare(session, query)
            session.execute(query)
            names = [column[0] for column in session.description or ()]
            return names, session.fetchmany(_ROWS_FETCHED) if names else []

        names, first = self._run(begin)
        return names, chain(first, _rows_left(session))

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Interrupt what this thread's session does when the time is over, and say DuckDB's errors in words.

        Raises:
            QueryLimitError: a query needs more time, memory or disk than it may take.
            UsageError: a query cannot be run.
            DamagedFileError: a file of the lake is damaged.
        """
        import duckdb

        over = threading.Event()

        def interrupt() -> None:
            over.set()
            session.interrupt()

        session = self._session()
        timer = threading.Timer(self._limits.seconds, interrupt) if self._limits.seconds else None
        try:
            if timer is not None:
                timer.daemon = True
                timer.start()
            yield
        except (duckdb.Error, MarketDataError) as error:
            if over.is_set() and isinstance(error.__cause__ or error, duckdb.InterruptException):
                raise QueryLimitError(
                    f"The query took longer than {self._limits.seconds:g} seconds. Ask for less, or set "
                    "MARKET_DATA_SQL_SECONDS to a higher number (0: no limit)."
                ) from error
            if isinstance(error, MarketDataError):
                raise
            raise self._said(error) from error
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()  # it has the session, which must not outlive the interpreter

    def _said(self, error: duckdb.Error) -> MarketDataError:
        """Return what an error of DuckDB means to people."""
        import duckdb

        text = str(error).partition("\n")[0]
        if isinstance(error, duckdb.OutOfMemoryException) or str(self._spill) in text:
            return QueryLimitError(
                f"The query needs more than {self._limits.memory_mb} MB of memory and {self._limits.disk_mb} MB in "
                f"{self._layout.root}. Ask for less, or set MARKET_DATA_SQL_MEMORY_MB and MARKET_DATA_SQL_DISK_MB to "
                "higher numbers."
            )
        if isinstance(error, duckdb.PermissionException):
            return UsageError(
                f"The query cannot be run. It may read the files of the views in {self._layout.root}, and no others. "
                f"{text}. `market-data sql --unrestricted` reads other files, too."
            )
        return errors.lake_error(error, self._layout)

    def bounded(self, answer: duckdb.DuckDBPyRelation) -> pa.Table:
        """Return the rows of a relation. DuckDB's own limit of memory is not one of what it hands out."""
        reader = answer.to_arrow_reader(_ROWS_AT_ONCE)
        batches, left = [], self._limits.memory_mb * 1_000_000
        try:
            for batch in reader:
                left -= batch.nbytes
                if left < 0:
                    raise QueryLimitError(
                        f"The answer is larger than {self._limits.memory_mb} MB. Ask for less, or set "
                        "MARKET_DATA_SQL_MEMORY_MB to a higher number."
                    )
                batches.append(batch)
        except (OSError, pa.ArrowException) as error:
            raise _of_duckdb(error) from error
        finally:
            reader.close()
        return pa.Table.from_batches(batches, reader.schema)

    def _answer(
        self, query: str, params: Params = None, selection: SeriesSelection | None = None
    ) -> duckdb.DuckDBPyRelation:
        session = self._session()
        self._prepare(session, query, selection)
        return session.sql(query) if params is None else session.sql(query, params=params)

    def _prepare(
        self, session: duckdb.DuckDBPyConnection, query: str, selection: SeriesSelection | None = None
    ) -> None:
        """Refuse what is no query, and bring the views up to the lake."""
        if query not in self._checked:
            if not hasattr(self._sessions, "parser"):  # of its own: the session may have an answer that is being read
                self._sessions.parser = self._new_session()
            check_query(self._sessions.parser, query)
            if len(self._checked) >= _CHECKED_KEPT:
                self._checked.clear()
            self._checked.add(query)
        self._make_views(session, query, selection)

    def _run(self, read: Callable[[], _T]) -> _T:
        import duckdb

        try:
            return super()._run(read)
        except MarketDataError as error:
            cause = error.__cause__
            if isinstance(cause, duckdb.CatalogException) and not self._is_every:
                with self.every_view():  # a name may be computed, and an error lists the names that exist
                    return self._run(read)
            if self._broken is not None and isinstance(cause, duckdb.CatalogException):
                raise self._broken from error  # the view could not be made
            if isinstance(cause, duckdb.OutOfMemoryException | duckdb.PermissionException | duckdb.IOException):
                raise self._said(cause) from cause
            raise

    def _forget(self) -> None:
        super()._forget()
        self._made: dict[tuple[str, str], str] = {}
        self._checked: set[str] = set()
        self._broken: MarketDataError | None = None
        self._corrections = empty_table(CORRECTED)
        # Of this process and object alone: DuckDB's names of files in it are the same in every process.
        self._spill = self._layout.local / f"{_SPILL}{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def _connect(self) -> duckdb.DuckDBPyConnection:
        database = super()._connect()
        _remove_left_spills(self._layout.local)
        folders = ", ".join(file_lists.quoted(f"{folder}/") for folder in _folders_of_views(self._layout))
        for setting in (
            f"memory_limit = '{self._limits.memory_mb}MB'",
            f"temp_directory = {file_lists.quoted(str(self._spill))}",
            f"max_temp_directory_size = '{self._limits.disk_mb}MB'",
            "allow_persistent_secrets = false",
            "allow_community_extensions = false",
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            f"allowed_directories = [{folders}]",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            database.execute(f"SET GLOBAL {setting}")
        return database

    def _correct(self, session: duckdb.DuckDBPyConnection, corrections: pa.Table) -> None:
        if corrections.num_rows and not corrections.equals(self._corrections):
            session.register("found", corrections)
            session.execute(f"CREATE OR REPLACE TABLE {_CORRECTIONS} AS FROM found")
            session.unregister("found")
        self._corrections = corrections

    def _make_views(self, session: duckdb.DuckDBPyConnection, query: str, selection: SeriesSelection | None) -> None:
        """Bring the views that a query names up to the lake.

        Ledgers that do not speak of the files that lie there are corrected in the views of ``quality``, which takes a
        look into the folder of each series.

        Args:
            session: To make them in.
            query: The query.
            selection: Series whose ledgers are corrected. None means all.
        """
        text = query.casefold()
        is_needed = _needed_by(text, every=self._is_every)
        as_on_disk = "quality" in text
        known = partitions.known_series(self._layout) if as_on_disk else []
        keys = [key for key in known if selection is None or selection.takes(key)]
        corrections = corrected(self._layout, keys)
        with self._lock:
            if as_on_disk:
                others = self._corrections if selection is not None else empty_table(CORRECTED)
                self._correct(session, with_others(corrections, keys, others))
            held, marked = file_lists.marked_now(self._layout)
            self._broken = None
            corrections_now = _CORRECTIONS if self._corrections.num_rows else ""
            for one in views.definitions(held, corrections_now, marked=marked):
                if is_needed(one):
                    self._make(session, one)

    def _make(self, session: duckdb.DuckDBPyConnection, one: views.Definition) -> None:
        import duckdb

        name, sql = (one.schema, one.name), one.sql()
        if self._made.get(name) == sql:
            return
        try:
            session.execute(views.create_schema(one.schema))
            session.execute(sql)
            self._made[name] = sql
        except duckdb.InterruptException:
            raise
        except duckdb.Error as error:
            # A damaged file keeps its view from being made; the others are of use all the same.
            self._broken = errors.lake_error(error, self._layout)

    @contextmanager
    def every_view(self) -> Iterator[None]:
        """Make every view for queries of this thread, also those that the text does not name."""
        before, self._sessions.every = self._is_every, True
        try:
            yield
        finally:
            self._sessions.every = before

    @property
    def _is_every(self) -> bool:
        return getattr(self._sessions, "every", False)


class Unrestricted(Views):
    """The lake's views in a DuckDB without bounds: any SQL, any file, any time. It is for one's own shell."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout, Limits(memory_mb=0, disk_mb=0, seconds=0))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._layout,)

    def _prepare(
        self, session: duckdb.DuckDBPyConnection, query: str, selection: SeriesSelection | None = None
    ) -> None:
        self._make_views(session, query, selection)

    def _connect(self) -> duckdb.DuckDBPyConnection:
        return DuckDB._connect(self)


def _of_duckdb(error: Exception) -> duckdb.Error:
    """Return an error of DuckDB as DuckDB raises it; Arrow raises one of its own with the same text."""
    import duckdb

    kinds = {
        "IO Error": duckdb.IOException,
        "Invalid Error": duckdb.Error,
        "INTERRUPT Error": duckdb.InterruptException,
        "Out of Memory Error": duckdb.OutOfMemoryException,
        "Permission Error": duckdb.PermissionException,
    }
    text = str(error)
    return kinds.get(text.partition(":")[0], duckdb.DataError)(text)


_LISTS_NAMES = re.compile(
    r"duckdb_|information_schema|pragma|pg_|sqlite_|\b(show|describe|summarize|query|query_table)\b"
)
"""Words of queries that may need views that they do not name."""


def _needed_by(text: str, *, every: bool) -> Callable[[views.Definition], bool]:
    """Return a function that returns True for the views that a query may need: those it names, or all.

    Args:
        text: The query in lower case.
        every: All views are needed.
    """
    if every or _LISTS_NAMES.search(text):
        return lambda _: True
    return lambda one: one.schema in text and one.name in text


def _rows_left(session: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while rows := session.fetchmany(_ROWS_FETCHED):
        yield from rows


def _folders_of_views(layout: Layout) -> list[str]:
    """Return the folders whose files the views read, as patterns too, and where links in them lead."""
    folders = [layout.root / "lake", layout.root / "ledger", layout.reconciliation, layout.universe]
    folders += [layout.collected.parent]
    # Below the exchange are folders of markets, data types, cadences, symbols and intervals.
    folders += storage.links_below(layout.root / "lake" / EXCHANGE, 5)
    folders += [storage.real(folder) for folder in folders]
    return list(dict.fromkeys(name for folder in folders for name in (str(folder), file_lists.as_pattern(folder))))


def _remove_left_spills(root: Path) -> None:
    """Remove what processes that were killed had put there."""
    for folder in root.glob(f"{_SPILL}*"):
        process = folder.name.removeprefix(_SPILL).partition("-")[0]
        if process.isdecimal():
            with suppress(OSError):
                if not is_running(int(process)) and time.time() - folder.stat().st_mtime > _LEFT_AFTER_SECONDS:
                    shutil.rmtree(folder)
