"""Dagster's records in PostgreSQL: runs, events and ticks over one small pool of connections per process.

The stock classes connect two to five times per event and store each event as 1 to 4 kB of text. Here a day with two
checks costs about as much as in our SQLite class. A lost connection is waited for, and a batch is written once:
PostgreSQL is asked if the transaction that was cut off has committed. Grouping events belongs to ``event_batches.py``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import groupby
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from dagster import AssetKey, DagsterEvent, EventLogEntry, StringSource
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage
from psycopg2 import InterfaceError, OperationalError, extensions, extras
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import QueuePool

from market_data_pipeline.defs.platform.event_batches import BatchedEvents, EventBatch, ends_a_run
from market_data_pipeline.defs.platform.packing import is_of_events, pack_to_text, unpack_text
from market_data_pipeline.team.address import with_limits
from market_data_pipeline.team.session import PATIENCE_SECONDS, is_passing

_T = TypeVar("_T")

_POOL, _OVERFLOW = 1, 10
"""Connections of a process that stay open, and most further ones at a time. A run uses one, at times two."""

_TRUSTED_SECONDS = 1.0
"""A connection that rested for longer is tried before its use."""

_LONGEST_PAUSE_SECONDS = 2.0

_TEXT = 25
"""PostgreSQL's number of the type ``text``."""

_INDEX = (
    "CREATE INDEX IF NOT EXISTS market_data_check_history "
    "ON asset_check_executions (asset_key, check_name, partition, id)"
)
"""The page of an asset shows the newest result of a check for each partition. Dagster has no index for it."""

_EVALUATE = """
UPDATE asset_check_executions AS stored SET execution_status = given.status, evaluation_event = given.event,
    evaluation_event_timestamp = given.at, evaluation_event_storage_id = given.event_id,
    materialization_event_storage_id = given.materialization_id
FROM (VALUES %s) AS given (asset, "check", run, day, status, event, at, event_id, materialization_id)
WHERE stored.asset_key = given.asset AND stored.check_name = given."check" AND stored.run_id = given.run
    AND stored.partition = given.day
RETURNING given.event_id
"""
_GIVEN = (
    "(%(asset)s, %(check)s, %(run)s, %(day)s, %(status)s, %(event)s, %(at)s::timestamp, %(event_id)s::bigint, "
    "%(materialization_id)s::bigint)"
)

_NEW_IDS = sa.text(
    "SELECT nextval(pg_get_serial_sequence('event_logs', 'id')) FROM generate_series(1, :number) ORDER BY 1"
)

_OF_DAYS = "asset_key = :asset AND partition = ANY(:days)"
_EVALUATIONS = f"SELECT evaluation_event_storage_id FROM asset_check_executions WHERE {_OF_DAYS}"  # noqa: S608
_WIPE = (
    f"DELETE FROM asset_event_tags WHERE event_id IN (SELECT id FROM event_logs WHERE {_OF_DAYS})",  # noqa: S608
    # Evaluations in the log have no asset key. The table of checks has their ids.
    f"DELETE FROM event_logs WHERE id IN ({_EVALUATIONS})",  # noqa: S608
    f"DELETE FROM asset_check_executions WHERE {_OF_DAYS}",  # noqa: S608
    f"DELETE FROM event_logs WHERE {_OF_DAYS}",  # noqa: S608
    "UPDATE asset_keys SET cached_status_data = NULL WHERE asset_key = :asset",
)


# --- connections -----------------------------------------------------------------------------------------------------


class _PackingCursor(extensions.cursor):
    """Pack the JSON of events in parameters."""

    def execute(self, query: Any, vars: Any = None) -> Any:  # noqa: A002 - the driver's name
        return super().execute(query, _packed(vars))

    def executemany(self, query: Any, vars_list: Any) -> Any:
        return super().executemany(query, map(_packed, vars_list))

    def mogrify(self, query: Any, vars: Any = None) -> Any:  # noqa: A002 - the driver's name
        return super().mogrify(query, _packed(vars))


def _packed(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: pack_to_text(value) if is_of_events(value) else value for name, value in values.items()}
    if isinstance(values, (tuple, list)):
        return tuple(pack_to_text(value) if is_of_events(value) else value for value in values)
    return values


def _text_of(value: Any, _cursor: object) -> str | None:
    return None if value is None else unpack_text(value)


_UNPACKING = extensions.new_type((_TEXT,), "TEXT", _text_of)

_engines: dict[tuple[int, str, int], Engine] = {}
_engines_turn = threading.Lock()
_OF_PARENT: list[object] = []
"""Connections of a parent process. To close one here would end it for the parent."""


def _engine(url: str, statement_ms: int = 0, **pool: int) -> Engine:
    """Return the engine of this process for a database. All storages share its connections."""
    known = os.getpid(), url, statement_ms
    with _engines_turn:
        if known not in _engines:
            _engines[known] = _new_engine(url, statement_ms, **{"pool_size": _POOL, "max_overflow": _OVERFLOW} | pool)
        return _engines[known]


def _new_engine(url: str, statement_ms: int, **pool: int) -> Engine:
    limited = with_limits(
        url, connect_timeout=10, keepalives_idle=30, keepalives_interval=10, keepalives_count=3, tcp_user_timeout=60_000
    )
    engine = sa.create_engine(
        f"postgresql+psycopg2:{limited.partition(':')[2]}",  # SQLAlchemy would take psycopg 3 by itself
        isolation_level="AUTOCOMMIT",
        poolclass=QueuePool,
        executemany_mode="values_plus_batch",
        connect_args={"cursor_factory": _PackingCursor, "application_name": "market-data records"},
        **pool,
    )

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        extensions.register_type(_UNPACKING, connection)
        record.info["process"], record.info["used"] = os.getpid(), time.monotonic()
        if statement_ms:
            with connection.cursor() as cursor:
                cursor.execute(f"SET statement_timeout = {int(statement_ms)}")
            connection.commit()

    @sa.event.listens_for(engine, "checkin")
    def returned(_connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @sa.event.listens_for(engine, "checkout")
    def taken(connection: Any, record: Any, proxy: Any) -> None:
        if record.info["process"] != os.getpid():
            _OF_PARENT.append(connection)
            record.dbapi_connection = proxy.dbapi_connection = None
            raise sa.exc.DisconnectionError("The connection belongs to the parent process.")
        if time.monotonic() - record.info["used"] > _TRUSTED_SECONDS:
            try:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1")
            except Exception as error:
                raise sa.exc.DisconnectionError("The connection was lost.") from error

    return engine


def _patiently(work: Callable[[], _T]) -> _T:
    """Call until PostgreSQL can be reached, for at most a minute."""
    ends, pause = time.monotonic() + PATIENCE_SECONDS, 0.1
    while True:
        try:
            return work()
        except (sa.exc.DBAPIError, OperationalError, InterfaceError) as error:
            if not _is_lost(error) or time.monotonic() > ends:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _is_lost(error: Exception) -> bool:
    cause = getattr(error, "orig", error)  # SQLAlchemy does not wrap those of setting up a transaction
    return isinstance(cause, (OperationalError, InterfaceError)) and is_passing(cause)


@contextmanager
def _connected(engine: Engine) -> Iterator[Connection]:
    with ExitStack() as stack:
        yield stack.enter_context(closing(_patiently(engine.connect)))


# --- storages --------------------------------------------------------------------------------------------------------

# Private parts of `dagster_postgres` in use: the engine of a storage, and the methods that create its tables.


class TeamEventLogStorage(BatchedEvents, PostgresEventLogStorage):
    """The event log in PostgreSQL, with open connections and batched events. Its JSON is packed.

    At the end of a run, its fulfilled plans and its passed evaluations leave the log, as in our SQLite class.
    """

    guards_webserver = True
    is_of_team = True

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._begin_batches()
        self._turn = threading.RLock()
        self._runs_written: list[str] = []
        self._transaction_id: str | None = None
        super().__init__(postgres_url, should_autocreate_tables=False, inst_data=inst_data)
        self._engine = _engine(postgres_url)

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Add the guard to the web server, and give it more connections."""
        from market_data_pipeline.defs.platform.guard import guard_webserver

        guard_webserver()
        self._engine = _of_webserver(self.postgres_url, statement_timeout, pool_recycle, max_overflow)

    # --- writing ---

    def _write(self, events: Sequence[EventLogEntry]) -> None:
        # Daemons follow the ends of runs by their ids. An end in a transaction of its own is seen as soon as its id.
        for ends, some in groupby(events, key=ends_a_run):
            for part in [[one] for one in some] if ends else [list(some)]:
                super()._write(part)

    def _write_rows(self, events: Sequence[EventLogEntry]) -> None:
        self._runs_written = sorted({event.run_id for event in events if event.run_id})
        self._once(lambda: super(TeamEventLogStorage, self)._write_rows(events))

    def _tidy(self, run_id: str) -> None:
        self._runs_written = []
        _patiently(lambda: super(TeamEventLogStorage, self)._tidy(run_id))

    def _once(self, write: Callable[[], None]) -> None:
        """Write in one transaction. After a lost connection, write again unless it has committed."""

        def write_unless_committed() -> None:
            if not self._has_committed():
                write()

        self._transaction_id = None
        _patiently(write_unless_committed)

    def _has_committed(self) -> bool:
        """Return True if there was a transaction, which was cut off after it had committed."""
        number = self._transaction_id
        if number is None:
            return False
        status = "in progress"
        while status == "in progress":  # PostgreSQL has not noticed the lost connection yet
            with _connected(self._engine) as connection:
                found = connection.execute(sa.text("SELECT pg_xact_status(CAST(:number AS xid8))"), {"number": number})
                status = str(found.scalar())
            if status == "in progress":
                time.sleep(0.2)
        self._transaction_id = None
        return status == "committed"

    @contextmanager
    def _one_transaction(self) -> Iterator[EventBatch]:
        with self._turn:
            try:
                with ExitStack() as stack:
                    connection = stack.enter_context(closing(self._engine.connect()))
                    connection = connection.execution_options(isolation_level="READ COMMITTED")
                    stack.enter_context(connection.begin())
                    # Readers follow the events of a run by their ids, so its writers take turns.
                    turns = "".join(
                        f", pg_advisory_xact_lock(hashtextextended('events of ' || :run{n}, 0))"
                        for n in range(len(self._runs_written))
                    )
                    self._transaction_id = connection.execute(
                        sa.text(f"SELECT CAST(pg_current_xact_id() AS text){turns}"),
                        {f"run{n}": run_id for n, run_id in enumerate(self._runs_written)},
                    ).scalar_one()
                    self._writing = EventBatch(threading.get_ident(), stack, {"": connection})
                    yield self._writing
            finally:
                self._writing = None

    def _store_one(self, event: EventLogEntry) -> None:
        if not self._is_of_check(event):
            SqlEventLogStorage.store_event(self, event)

    def _packed(self, text: str) -> str:
        return pack_to_text(text)

    def _insert(
        self, run_id: str, rows: Sequence[Mapping[str, Any]], stay: Sequence[bool]
    ) -> tuple[Connection, Sequence[int]]:
        with self.run_connection(run_id) as connection:
            found = connection.execute(_NEW_IDS, {"number": len(rows)})
            ids = [int(event_id) for (event_id,) in found]
            # A row that is deleted again would leave its space behind.
            numbered = [{**row, "id": event_id} for row, event_id, stays in zip(rows, ids, stay, strict=True) if stays]
            if numbered:
                connection.execute(SqlEventLogStorageTable.insert(), numbered)
            return connection, ids

    def _evaluate(self, index: Connection, evaluated: Sequence[Mapping[str, Any]]) -> set[int]:
        of_days = [one for one in evaluated if one["day"] is not None]
        replaced: set[int] = set()
        if of_days:
            with closing(index.connection.cursor()) as cursor:
                found = extras.execute_values(cursor, _EVALUATE, of_days, _GIVEN, page_size=len(of_days), fetch=True)
                replaced = {event_id for (event_id,) in found}
        return {one["event_id"] for one in evaluated} - replaced

    def wipe_asset_partitions(self, asset_key: AssetKey, partition_keys: Sequence[str]) -> None:
        """Wipe the events and check results of partitions, in one transaction."""
        given = {"asset": asset_key.to_string(), "days": list(partition_keys)}
        with self.index_transaction() as connection:
            for statement in _WIPE:
                connection.execute(sa.text(statement), given)

    # --- connections ---

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        if self._writing is not None and self._is_writing:
            yield self._writing.connections[""]
            return
        if self._waiting:  # readers must see all events stored before
            self.store_event_batch([])
        with _connected(self._engine) as connection:
            yield connection

    def dispose(self) -> None:
        """Write waiting events, stop watching, and close the connections that rest."""
        if self._waiting:
            self.store_event_batch([])
        super().dispose()
        self._engine.dispose()


class TeamRunStorage(PostgresRunStorage):
    """Runs in PostgreSQL, over the connections of the process."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(postgres_url, should_autocreate_tables=False, inst_data=inst_data)
        self._engine = _engine(postgres_url)

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Use the connections of the web server."""
        self._engine = _of_webserver(self.postgres_url, statement_timeout, pool_recycle, max_overflow)

    def connect(self) -> Any:
        """Return a connection as a context. It is waited for."""
        return _connected(self._engine)

    def handle_run_event(self, run_id: str, event: DagsterEvent, *args: Any, **kwargs: Any) -> None:
        """Update the row of a run. It is repeated if the connection is lost: the result is the same."""
        _patiently(lambda: super(TeamRunStorage, self).handle_run_event(run_id, event, *args, **kwargs))


class TeamScheduleStorage(PostgresScheduleStorage):
    """Ticks in PostgreSQL, over the connections of the process."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(postgres_url, should_autocreate_tables=False, inst_data=inst_data)
        self._engine = _engine(postgres_url)

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Use the connections of the web server."""
        self._engine = _of_webserver(self.postgres_url, statement_timeout, pool_recycle, max_overflow)

    def connect(self, run_id: str | None = None) -> Any:  # noqa: ARG002 - Dagster's signature
        """Return a connection as a context. It is waited for."""
        return _connected(self._engine)


def _of_webserver(url: str, statement_timeout: int, pool_recycle: int, max_overflow: int) -> Engine:
    return _engine(url, statement_timeout, pool_size=5, pool_recycle=pool_recycle, max_overflow=max_overflow)


class TeamStorage(DagsterStorage, ConfigurableClass):
    """All records of Dagster in one database. In ``dagster.yaml`` it takes ``postgres``, the URL."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._events = TeamEventLogStorage(postgres_url)
        self._runs = TeamRunStorage(postgres_url)
        self._ticks = TeamScheduleStorage(postgres_url)
        self._make_tables(_engine(postgres_url))
        super().__init__()  # type: ignore[no-untyped-call]

    def _make_tables(self, engine: Engine) -> None:
        there = sa.text("SELECT to_regclass('market_data_check_history') IS NOT NULL")
        with _connected(engine) as connection:
            if connection.execute(there).scalar_one():
                return
            # Processes that start together take turns.
            connection.execute(sa.text("SELECT pg_advisory_lock(hashtextextended('dagster tables', 0))"))
            try:
                names = set(sa.inspect(connection).get_table_names())
                if "event_logs" not in names:
                    self._events._init_db()
                    self._events.reindex_events()
                    self._events.reindex_assets()
                if "runs" not in names:
                    self._runs._init_db()
                    self._runs.migrate()
                    self._runs.optimize()
                if "instigators" not in names:
                    self._ticks._init_db()
                connection.execute(sa.text(_INDEX))
            finally:
                connection.execute(sa.text("SELECT pg_advisory_unlock(hashtextextended('dagster tables', 0))"))

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Return the configuration that Dagster made this from."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> Any:
        """Return the configuration in ``dagster.yaml``: ``postgres``, which may name an environment variable."""
        return {"postgres": StringSource}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Return the storage that ``dagster.yaml`` describes."""
        return cls(config_value["postgres"], inst_data)

    @property
    def event_log_storage(self) -> TeamEventLogStorage:
        """Return the event log."""
        return self._events

    @property
    def run_storage(self) -> TeamRunStorage:
        """Return the runs."""
        return self._runs

    @property
    def schedule_storage(self) -> TeamScheduleStorage:
        """Return the ticks."""
        return self._ticks
