"""Dagster's SQLite event log with open connections, batched events and packed JSON.

A day with two check evaluations costs about 5 ms and 3 kB here, and about 50 ms and 37 kB in the stock class, with the
same locks and schema. It uses private parts of ``dagster._core``, which is pinned to 1.13. The tests run all of them.
Choosing what to record does not belong here.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from dagster import (
    AssetCheckKey,
    AssetCheckSpec,
    AssetKey,
    DagsterEventType,
    EventLogEntry,
    EventLogRecord,
    EventRecordsFilter,
    RunShardedEventsCursor,
    StringSource,
)
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log import SqlEventLogStorage, SqliteEventLogStorage, SqlPollingEventWatcher
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._serdes import ConfigurableClassData, serialize_value
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool, Pool, StaticPool

from market_data_pipeline.defs.platform.packing import PackingConnection, pack

_TOGETHER = 100
"""Maximum number of events in one transaction. Other processes wait for it."""

_WAIT_SECONDS = 1.0
"""Maximum number of seconds that a check's evaluation waits for others."""

_WAL_BYTES = 1_000_000
"""Bytes to which the write-ahead log of a file is cut after a checkpoint."""

_PACKED = 1
"""``PRAGMA user_version`` of an index with packed values."""

_MANY = frozenset({DagsterEventType.ASSET_MATERIALIZATION, DagsterEventType.ASSET_CHECK_EVALUATION})
"""Types of events that a run over days has once per day."""

_CHECKS = AssetCheckExecutionsTable.c

_EVALUATED = (
    AssetCheckExecutionsTable.update()
    .where(
        _CHECKS.asset_key == sa.bindparam("asset"),
        _CHECKS.check_name == sa.bindparam("check"),
        _CHECKS.run_id == sa.bindparam("run"),
        _CHECKS.partition.is_not_distinct_from(sa.bindparam("day")),
    )
    .values(
        execution_status=sa.bindparam("status"),
        evaluation_event=sa.bindparam("event"),
        evaluation_event_timestamp=sa.bindparam("at"),
        evaluation_event_storage_id=sa.bindparam("event_id"),
        materialization_event_storage_id=sa.bindparam("materialization_id"),
    )
)
"""Replace a planned check by its evaluation. Compiled once: SQLAlchemy takes longer for it than SQLite."""


_EVENTS = SqlEventLogStorageTable.c

_PLAN = SqlEventLogStorageTable.alias("plan")

_CAME_TRUE = SqlEventLogStorageTable.delete().where(
    _EVENTS.id.in_(
        sa.select(_PLAN.c.id).where(
            _PLAN.c.run_id == sa.bindparam("run"),
            _PLAN.c.dagster_event_type == DagsterEventType.ASSET_MATERIALIZATION_PLANNED.value,
            _PLAN.c.partition.is_not(None),
            sa.select(_EVENTS.id)
            .where(
                _EVENTS.asset_key == _PLAN.c.asset_key,
                _EVENTS.dagster_event_type == DagsterEventType.ASSET_MATERIALIZATION.value,
                _EVENTS.partition == _PLAN.c.partition,
                _EVENTS.run_id == _PLAN.c.run_id,
            )
            .correlate(_PLAN)
            .exists(),
        )
    )
)
"""Delete the plans of a run to materialize partitions that it has materialized."""

_PLANNED_CHECKS = SqlEventLogStorageTable.delete().where(
    _EVENTS.run_id == sa.bindparam("run"),
    _EVENTS.dagster_event_type == DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED.value,
)
"""Delete the plans of a run to check. The table of checks has each plan, or its evaluation."""

_ENDED = {f"PIPELINE_{status.value}" for status in FINISHED_STATUSES}
"""Types of events that end a run."""


def _evaluated(event: EventLogEntry, event_id: int, row: Mapping[str, Any]) -> dict[str, Any]:
    evaluation = event.get_dagster_event().asset_check_evaluation_data
    target = evaluation.target_materialization_data
    status = AssetCheckExecutionRecordStatus.SUCCEEDED if evaluation.passed else AssetCheckExecutionRecordStatus.FAILED
    return {
        "asset": evaluation.asset_key.to_string(),
        "check": evaluation.check_name,
        "run": row["run_id"],
        "day": evaluation.partition,
        "status": status.value,
        "event": row["event"],
        "at": row["timestamp"],
        "event_id": event_id,
        "materialization_id": target.storage_id if target else None,
    }


_Identity = tuple[int, int, int]
"""Process, device and inode of the index. None may change under a connection."""


@dataclass(frozen=True, slots=True)
class _Writing:
    """A batch of events in progress: its thread, and the connections with their transactions."""

    thread: int
    transactions: ExitStack
    connections: dict[str, Connection] = field(default_factory=dict)
    newest: dict[tuple[AssetKey | None, DagsterEventType | None], tuple[EventLogEntry, int]] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class _Evaluations:
    """Checks of a run that were evaluated, the names of their outputs, and the ids of evaluations that passed."""

    checks: set[AssetCheckKey] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    passed: list[int] = field(default_factory=list)


class _Waiting:
    """Events that are written together with the next one."""

    def __init__(self) -> None:
        self._events: list[EventLogEntry] = []
        self._since = 0.0
        self._process = os.getpid()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: EventLogEntry) -> None:
        with self._lock:
            if not self._events:
                self._since, self._process = time.monotonic(), os.getpid()
            self._events.append(event)

    def is_due(self) -> bool:
        """Return True if there are many events, or the first has waited long enough."""
        return len(self) >= _TOGETHER or time.monotonic() - self._since > _WAIT_SECONDS

    def take(self) -> list[EventLogEntry]:
        """Return all events and forget them. A fork returns none, because its parent writes them."""
        with self._lock:
            taken, self._events = self._events, []
            return taken if self._process == os.getpid() else []


# Private parts of `dagster._core` in use: the lock that admits one thread at a time to a storage object, the set of
# shards with a schema and the method that creates it, the methods that make a row of an event, update an asset's row
# and store checks, the one that finds events in all runs, two tables, and the watcher of Postgres.


class KeptConnectionEventLogStorage(SqliteEventLogStorage):
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
        self._writing: _Writing | None = None
        self._waiting = _Waiting()
        self._error: sa.exc.SQLAlchemyError | None = None
        self._of_runs: dict[str, _Evaluations] = {}  # unfinished runs only
        self._known_to_exist: set[str] = set()
        self._poller: SqlPollingEventWatcher | None = None
        # Dagster then passes all materializations of a run over days in batches.
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", str(_TOGETHER))
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

    def store_event(self, event: EventLogEntry) -> None:
        """Write an event. The evaluation of a check waits for the next event, so that many are written together."""
        if event.run_id and event.dagster_event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
            self._waiting.add(event)
            if not self._waiting.is_due():
                return
            self.store_event_batch([])
        else:
            self.store_event_batch([event])

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Write events together: to their runs' files, and those of assets to the index."""
        waiting = self._waiting.take()
        try:
            self._write([*waiting, *events])
        except sa.exc.SQLAlchemyError:
            if not waiting:
                raise
            for event in waiting:  # one by one, so that a faulty event blocks no others
                self._write_or_raise_later(event)
            self._write(events)
        if self._error is not None and len(events) <= 1:  # Dagster writes a batch that raises once more
            error, self._error = self._error, None
            raise error

    def _write_or_raise_later(self, event: EventLogEntry) -> None:
        try:
            self._write([event])
        except sa.exc.SQLAlchemyError as error:
            self._error = self._error or error

    def _write(self, events: Sequence[EventLogEntry]) -> None:
        with self._one_transaction() as writing:
            for (run_id, kind), some in groupby(events, key=attrgetter("run_id", "dagster_event_type")):
                alike = list(some)
                if run_id and kind in _MANY and len(alike) > 1:
                    self._store_alike(run_id, kind, alike)
                else:
                    for event in alike:
                        self._store_one(event)
            for event, event_id in writing.newest.values():
                super()._store_asset_event(writing.connections[INDEX_SHARD_NAME], event, event_id)
        for run_id in {event.run_id for event in events if _ends_a_run(event)}:
            self._tidy(run_id)

    def _store_one(self, event: EventLogEntry) -> None:
        if self._is_of_check(event):
            return
        if self._file_of(event.run_id) == INDEX_SHARD_NAME:
            SqlEventLogStorage.store_event(self, event)
        else:
            # To the run's file. Events of assets, checks and the run's status also go to the index.
            super().store_event(event)

    def _tidy(self, run_id: str) -> None:
        """Delete events of a finished run that other rows repeat."""
        passed = [{"passed": event_id} for event_id in self._of_runs.pop(run_id, _Evaluations()).passed]
        with self._one_transaction(), self.index_connection() as index:
            index.execute(_CAME_TRUE, {"run": run_id})
            index.execute(_PLANNED_CHECKS, {"run": run_id})
            if passed:
                index.execute(SqlEventLogStorageTable.delete().where(_EVENTS.id == sa.bindparam("passed")), passed)
        with self._one_transaction(), self.index_connection() as index:
            give_pages_back(index)

    def _event_to_row(self, event: EventLogEntry) -> dict[str, Any]:
        row: dict[str, Any] = super()._event_to_row(event)
        return row | {"event": pack(row["event"])}

    def _store_alike(self, run_id: str, kind: DagsterEventType, events: Sequence[EventLogEntry]) -> None:
        """Store many events of one type with one statement for all of them."""
        rows = [self._event_to_row(event) for event in events]
        if self._file_of(run_id) != INDEX_SHARD_NAME:
            with self.run_connection(run_id) as run:
                run.execute(SqlEventLogStorageTable.insert(), rows)
        with self.index_connection() as index:
            index.execute(SqlEventLogStorageTable.insert(), rows)
            # The ids of its rows are consecutive, because only this transaction writes.
            last = index.execute(sa.select(sa.func.last_insert_rowid())).scalar_one()
            numbered = list(zip(events, range(last - len(rows) + 1, last + 1), strict=True))
            if kind is DagsterEventType.ASSET_MATERIALIZATION:
                self._store_asset_event_tags(index, events, [event_id for _, event_id in numbered])
                for event, event_id in numbered:
                    self._store_asset_event(index, event, event_id)
                return
            for (event, event_id), row in zip(numbered, rows, strict=True):
                if index.execute(_EVALUATED, _evaluated(event, event_id, row)).rowcount != 1:  # not planned
                    self._update_asset_check_evaluation(event, event_id)
                else:
                    self._note(event, event_id)

    def _update_asset_check_evaluation(self, event: EventLogEntry, event_id: int | None) -> None:
        super()._update_asset_check_evaluation(event, event_id)
        self._note(event, event_id)

    def _note(self, event: EventLogEntry, event_id: int | None) -> None:
        evaluation = event.get_dagster_event().asset_check_evaluation_data
        noted = self._of_runs.setdefault(event.run_id, _Evaluations())
        if evaluation.asset_check_key not in noted.checks:
            noted.checks.add(evaluation.asset_check_key)
            spec = AssetCheckSpec(evaluation.check_name, asset=evaluation.asset_key)
            noted.outputs.add(spec.get_python_identifier())
        if event_id is not None and evaluation.passed:
            noted.passed.append(event_id)

    def _is_of_check(self, event: EventLogEntry) -> bool:
        """Return True if an event reports the output of a check, which is always empty."""
        if event.dagster_event_type is not DagsterEventType.STEP_OUTPUT or event.run_id not in self._of_runs:
            return False
        name = event.get_dagster_event().step_output_data.step_output_handle.output_name
        return name in self._of_runs[event.run_id].outputs

    def _store_asset_check_evaluation_planned(self, event: EventLogEntry, event_id: int | None) -> None:
        # The stock method serializes the event for each day.
        planned = event.get_dagster_event().asset_check_planned_data
        at: object = self._event_insert_timestamp(event)  # type: ignore[no-untyped-call]
        row = {
            "asset_key": planned.asset_key.to_string(),
            "check_name": planned.check_name,
            "run_id": event.run_id,
            "execution_status": AssetCheckExecutionRecordStatus.PLANNED.value,
            "evaluation_event": pack(serialize_value(event)),
            "evaluation_event_timestamp": at,
            "evaluation_event_storage_id": event_id,
        }
        days = planned.partitions_subset.get_partition_keys() if planned.partitions_subset else [None]
        with self.index_connection() as index:
            index.execute(AssetCheckExecutionsTable.insert(), [row | {"partition": day} for day in days])

    def _store_asset_event(self, conn: Connection, event: EventLogEntry, event_id: int) -> None:
        if self._writing is None or event.dagster_event is None:
            super()._store_asset_event(conn, event, event_id)
            return
        # The row of an asset has the newest event of each type, so only the last of a batch is written.
        which = (event.dagster_event.asset_key, event.dagster_event_type)
        self._writing.newest.pop(which, None)
        self._writing.newest[which] = event, event_id

    def has_table(self, table_name: str) -> bool:
        """Return True if the index has a table. Cache a True."""
        if table_name not in self._known_to_exist and super().has_table(table_name):
            self._known_to_exist.add(table_name)
        return table_name in self._known_to_exist

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        known = f"asset_keys.{column_name}"
        if known not in self._known_to_exist and super()._has_asset_key_col_on_connection(conn, column_name):
            self._known_to_exist.add(known)
        return known in self._known_to_exist

    @contextmanager
    def _one_transaction(self) -> Iterator[_Writing]:
        """Use one transaction per file for this thread's connections, until the context ends."""
        with self._db_lock:
            try:
                with ExitStack() as transactions:
                    self._writing = _Writing(threading.get_ident(), transactions)
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
        if writing is not None and writing.thread == threading.get_ident():
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


def _ends_a_run(event: EventLogEntry) -> bool:
    return event.dagster_event is not None and event.dagster_event.event_type_value in _ENDED


def give_pages_back(connection: Connection) -> None:
    """Cut free pages off a file that can free single pages. Other files reuse them."""
    driver: Any = connection.connection.dbapi_connection
    driver.executescript("PRAGMA incremental_vacuum")  # `execute` would run one step and free only one page
