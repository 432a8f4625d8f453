"""Dagster's SQLite event log with open connections, batched events and packed JSON.

A day with two check evaluations costs about 5 ms and 3 kB here, and about 50 ms and 37 kB in the stock class, with the
same locks and schema. It uses private parts of ``dagster._core``, which is pinned to 1.13. The tests run all of them.
Choosing what to write together belongs to ``event_batches.py``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from dagster import (
    EventLogEntry,
    EventLogRecord,
    EventRecordsFilter,
    RunShardedEventsCursor,
    StringSource,
)
from dagster._core.storage.event_log import SqlEventLogStorage, SqliteEventLogStorage, SqlPollingEventWatcher
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._serdes import ConfigurableClassData
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool, Pool, StaticPool

from market_data_pipeline.defs.platform.event_batches import EVALUATED, BatchedEvents, EventBatch
from market_data_pipeline.defs.platform.packing import PackingConnection, pack

_WAL_BYTES = 1_000_000
"""Bytes to which the write-ahead log of a file is cut after a checkpoint."""

_PACKED = 1
"""``PRAGMA user_version`` of an index with packed values."""

_Identity = tuple[int, int, int]
"""Process, device and inode of the index. None may change under a connection."""


# Private parts of `dagster._core` in use: the lock that admits one thread at a time to a storage object, the set of
# shards with a schema and the method that creates it, the methods that make a row of an event, update an asset's row
# and store checks, the one that finds events in all runs, two tables, and the watcher of Postgres.


class KeptConnectionEventLogStorage(BatchedEvents, SqliteEventLogStorage):
    """The SQLite event log of Dagster, with an open connection to the index.

    The stock class opens an engine and a connection for each event, commits at least three times, and compiles two
    statements again. It stores each event of an asset twice and each evaluation three times, as JSON of 1 to 4 kB. It
    also gives each run a file, which takes 110 kB when empty. This class differs in three ways:

    - Runs have no file of their own. All events are in the index. A run that has a file from before continues in it.
    - The JSON of events is packed (``packing``).
    - At the end of a run, its fulfilled plans and its passed evaluations leave the log. Empty outputs of checks are
      never written. The day's materialization and the history of its checks have the same information.

    A power cut may lose the last commits (``synchronous=NORMAL``), and a killed process the evaluations of its last
    second. The next run records them again, because the lake's ledgers know the stored days.

    ``path_for_shard`` names the file that a run would have. Most runs have none and are read from the index.
    ``unpacking`` restores files for the stock class when ``dagster.yaml`` no longer names this class.

    In ``dagster.yaml`` it takes ``home``, the DAGSTER_HOME. Its files are where the stock class has them by default.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._kept: tuple[Engine, _Identity | None] | None = None  # of the index
        self._of_parent: list[Engine] = []
        self._poller: SqlPollingEventWatcher | None = None
        self._begin_batches()
        super().__init__(base_dir=base_dir, inst_data=inst_data)

    guards_webserver = True

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Add the guard to the web server. Each web server of this home calls this before it serves."""
        from market_data_pipeline.defs.platform.guard import guard_webserver

        guard_webserver()
        super().optimize_for_webserver(statement_timeout, pool_recycle, max_overflow)

    @classmethod
    def config_type(cls) -> Any:
        """Return the configuration in ``dagster.yaml``: ``home``, which may name an environment variable."""
        return {"home": StringSource}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Return the storage that ``dagster.yaml`` describes. The stock method would return the stock class."""
        return cls(base_dir=str(Path(config_value["home"]) / "history" / "runs"), inst_data=inst_data)

    # --- writing ---------------------------------------------------------------------------------------------------

    # The stock class writes an event in at least three transactions and reads the schema in each.

    def _store_one(self, event: EventLogEntry) -> None:
        if self._is_of_check(event):
            return
        if self._file_of(event.run_id) == INDEX_SHARD_NAME:
            SqlEventLogStorage.store_event(self, event)
        else:
            # To the run's file. Events of assets, checks and the run's status also go to the index.
            SqliteEventLogStorage.store_event(self, event)

    def _tidy(self, run_id: str) -> None:
        super()._tidy(run_id)
        with self._one_transaction(), self.index_connection() as index:
            give_pages_back(index)

    def _event_to_row(self, event: EventLogEntry) -> dict[str, Any]:
        row: dict[str, Any] = super()._event_to_row(event)
        return row | {"event": pack(row["event"])}

    def _packed(self, text: str) -> bytes:
        return pack(text)

    def _insert(
        self,
        run_id: str,
        rows: Sequence[Mapping[str, Any]],
        stay: Sequence[bool],  # noqa: ARG002 - the log of a run in progress shows all of them
    ) -> tuple[Connection, Sequence[int]]:
        if self._file_of(run_id) != INDEX_SHARD_NAME:
            with self.run_connection(run_id) as run:
                run.execute(SqlEventLogStorageTable.insert(), rows)
        with self.index_connection() as index:
            index.execute(SqlEventLogStorageTable.insert(), rows)
            # The ids of its rows are consecutive, because only this transaction writes.
            last = index.execute(sa.select(sa.func.last_insert_rowid())).scalar_one()
        return index, range(last - len(rows) + 1, last + 1)

    def _evaluate(self, index: Connection, evaluated: Sequence[Mapping[str, Any]]) -> set[int]:
        return {one["event_id"] for one in evaluated if index.execute(EVALUATED, one).rowcount != 1}

    @contextmanager
    def _one_transaction(self) -> Iterator[EventBatch]:
        """Use one transaction per file for this thread's connections, until the context ends."""
        with self._db_lock:
            try:
                with ExitStack() as transactions:
                    self._writing = EventBatch(threading.get_ident(), transactions)
                    yield self._writing
            finally:
                self._writing = None

    # --- reading ---------------------------------------------------------------------------------------------------

    def _get_run_sharded_event_records(
        self, event_records_filter: EventRecordsFilter, limit: int | None = None, ascending: bool = False
    ) -> Sequence[EventLogRecord]:
        # The stock method opens the file of each run. Here the index has all events, except some of runs with a file of
        # their own.
        after = event_records_filter.after_cursor
        if isinstance(after, RunShardedEventsCursor):
            event_records_filter = event_records_filter._replace(after_cursor=after.id)
        return SqlEventLogStorage.get_event_records(self, event_records_filter, limit, ascending)

    # --- connections -----------------------------------------------------------------------------------------------

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        shard = self._file_of(shard)
        writing = self._writing
        if writing is not None and self._is_writing:
            if shard not in writing.connections:
                writing.connections[shard] = writing.transactions.enter_context(self._transaction(shard))
            yield writing.connections[shard]
            return
        if self._waiting:  # readers must see all events stored before
            self.store_event_batch([])
        with self._db_lock, self._transaction(shard) as connection:
            yield connection

    @contextmanager
    def _transaction(self, shard: str) -> Iterator[Connection]:
        if not Path(self.path_for_shard(shard)).exists():
            self._initialized_dbs.discard(shard)
        engine = self._take_kept() if shard == INDEX_SHARD_NAME else None
        if shard not in self._initialized_dbs:
            self._make_schema(shard)
        if engine is None:
            engine = self._open(shard, StaticPool)
            sa.event.listen(engine, "connect", _set_fast_sync)
            if shard == INDEX_SHARD_NAME:
                sa.event.listen(engine, "connect", _mark_as_packed)
        try:
            with engine.begin() as connection:
                yield connection
        except BaseException:
            # After any error the next event starts with a fresh connection, as in the stock class.
            engine.dispose()
            raise
        if shard == INDEX_SHARD_NAME:
            self._close_kept()
            self._kept = engine, self._identity()
        else:
            engine.dispose()

    def _file_of(self, run_id: str) -> str:
        """Return the shard with a run's events: its own if it has a file from before, else the index."""
        own = run_id != INDEX_SHARD_NAME and Path(self.path_for_shard(run_id)).exists()
        return run_id if own else INDEX_SHARD_NAME

    def _take_kept(self) -> Engine | None:
        """Take the open engine, unless the index was deleted or replaced, or this process is a fork."""
        identity = self._identity()
        if self._kept is not None and identity is not None and self._kept[1] == identity:
            engine, self._kept = self._kept[0], None
            return engine
        self._close_kept()
        return None

    def _close_kept(self) -> None:
        if self._kept is not None:
            (engine, identity), self._kept = self._kept, None
            if identity is not None and identity[0] != os.getpid():
                # The connection is the parent's. SQLite forbids even closing it here, so only stop using it.
                self._of_parent.append(engine)
            else:
                engine.dispose()

    def _identity(self) -> _Identity | None:
        try:
            found = Path(self.path_for_shard(INDEX_SHARD_NAME)).stat()
        except FileNotFoundError:
            return None
        return os.getpid(), found.st_dev, found.st_ino

    def _make_schema(self, shard: str) -> None:
        # Use the stock pool, because creating the schema opens a second connection inside the first.
        Path(self.path_for_shard(shard)).parent.mkdir(parents=True, exist_ok=True)
        once = self._open(shard, NullPool)
        self._initdb(once, for_index_shard=shard == INDEX_SHARD_NAME)
        once.dispose()
        self._initialized_dbs.add(shard)

    def _initdb(self, engine: Engine, for_index_shard: bool = False) -> None:
        if for_index_shard:
            # A new file can then free single pages without being rewritten. Older files do not change.
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA auto_vacuum=INCREMENTAL")
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        super()._initdb(engine, for_index_shard)

    def _open(self, shard: str, pool: type[Pool]) -> Engine:
        return sa.create_engine(
            self.conn_string_for_shard(shard),
            poolclass=pool,
            # Only one thread at a time uses it, but not always the same one.
            connect_args={
                "timeout": SQLITE_BUSY_TIMEOUT_SECONDS,
                "check_same_thread": False,
                "factory": PackingConnection,
            },
        )

    # --- watching --------------------------------------------------------------------------------------------------

    # The stock watcher looks at the .db file. An open connection in WAL mode does not change it, so 33 of 494 events
    # were missed. Poll the tables instead, as for Postgres.

    def watch(self, run_id: str, cursor: str | None, callback: Callable[..., None]) -> None:
        """Call ``callback`` for each new event of a run."""
        if self._poller is None:
            self._poller = SqlPollingEventWatcher(self)
        self._poller.watch_run(run_id, cursor, callback)

    def end_watch(self, run_id: str, handler: Callable[..., None]) -> None:
        """Stop the calls of ``watch``."""
        if self._poller is not None:
            self._poller.unwatch_run(run_id, handler)

    def dispose(self) -> None:
        """Write waiting events, stop watching and close all connections."""
        if self._waiting:
            self.store_event_batch([])
        if self._poller is not None:
            self._poller.close()
            self._poller = None
        super().dispose()
        with self._db_lock:
            self._close_kept()


def _set_fast_sync(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")


def _mark_as_packed(connection: Any, _record: object) -> None:
    if connection.execute("PRAGMA user_version").fetchone()[0] != _PACKED:
        connection.execute(f"PRAGMA user_version={_PACKED}")


def give_pages_back(connection: Connection) -> None:
    """Cut free pages off a file that can free single pages. Other files reuse them."""
    driver: Any = connection.connection.dbapi_connection
    driver.executescript("PRAGMA incremental_vacuum")  # `execute` would run one step and free only one page
