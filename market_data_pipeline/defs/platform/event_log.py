"""Dagster's SQLite event log with connections that are kept, events that are written together, and little of each day.

The stock class makes an engine and a connection for every event, so nothing is ever cached, and commits three times or
more, and has SQLAlchemy make two statements anew: a day with its two check evaluations costs about 50 ms. Here it costs
a tenth, with the same locks and schema.

The stock class also stores each event of an asset twice and each evaluation of a check three times, as 1 to 4 kB of
JSON, and gives each run a file of its own, which takes 110 kB empty: 37 kB for a day. Here it is 3 kB:

- Runs have no file of their own. All events lie in the index. A run that has a file, from before, goes on in it.
- The JSON of events is packed (``packing``).
- When a run ends, its plans that came true and its evaluations that passed leave the log, in which the empty outputs of
  checks never were. The day's materialization and the history of its checks say the same.

``unpacking`` makes it what the stock class reads, where ``dagster.yaml`` names this class no more.

It leans on private parts of ``dagster._core``: the lock that lets one thread at a time into a storage object, the set
of shards whose schema is made, the method that makes it, those that make a row of an event, keep an asset's row and
store what was planned and found of checks, the one that looks for events in all runs, two tables, and the watcher that
Postgres uses. dagster is pinned to 1.13, and the tests of this module go through all of them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
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

KEPT_SHARDS = 8
"""Files held open: the index, and those of runs that have one; each takes three file handles."""

TOGETHER = 100
"""Events written in one transaction, at most: other processes wait for so long."""

WAIT_SECONDS = 1.0
"""How long a check's evaluation may wait for others."""


WAL_BYTES = 1_000_000
"""What the write-ahead log of a file is cut down to once it was written back."""

PACKED = 1
"""``PRAGMA user_version`` of an index that holds packed values."""

_MANY = frozenset({DagsterEventType.ASSET_MATERIALIZATION, DagsterEventType.ASSET_CHECK_EVALUATION})
"""Events of which a run over days has as many as days."""

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
"""An evaluation takes the place of what was planned. Made once: SQLAlchemy takes longer over it than SQLite."""


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
"""Drops a run's plans to materialize partitions that it has materialized."""

_PLANNED_CHECKS = SqlEventLogStorageTable.delete().where(
    _EVENTS.run_id == sa.bindparam("run"),
    _EVENTS.dagster_event_type == DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED.value,
)
"""Drops a run's plans to check. The table of checks has each of them, or the evaluation in its place."""

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


@dataclass(frozen=True, slots=True)
class _Identity:
    """Which file a connection is to, and of which process: neither may change under a connection."""

    process: int
    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class _Writing:
    """Events being written together: by which thread, and the connections in whose transactions."""

    thread: int
    transactions: ExitStack
    connections: dict[str, Connection] = field(default_factory=dict)
    newest: dict[tuple[AssetKey | None, DagsterEventType | None], tuple[EventLogEntry, int]] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class _Evaluations:
    """Of a run: checks that were evaluated, the names of their outputs, and the events of evaluations that passed."""

    checks: set[AssetCheckKey] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    passed: list[int] = field(default_factory=list)


class _Waiting:
    """Events that are written with the next one."""

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
        """Whether there are many, or the first has waited long enough for whoever looks on."""
        return len(self) >= TOGETHER or time.monotonic() - self._since > WAIT_SECONDS

    def take(self) -> list[EventLogEntry]:
        """All of them; none in a fork, whose parent writes them."""
        with self._lock:
            taken, self._events = self._events, []
            return taken if self._process == os.getpid() else []


class KeptConnectionEventLogStorage(SqliteEventLogStorage):
    """The SQLite event log of Dagster, with up to :data:`KEPT_SHARDS` connections kept open.

    A power cut may lose the last commits (``synchronous=NORMAL``), a killed process the evaluations of its last second.
    What is lost is put on record again by the next run, since the lake's ledgers know what is held.

    ``path_for_shard`` names the file that a run would have; most have none, and are read from the index.

    In ``dagster.yaml`` it takes ``home``, the DAGSTER_HOME, and keeps its files where the stock class does by default.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._kept: OrderedDict[str, tuple[Engine, _Identity]] = OrderedDict()  # least recently used first
        self._of_parent: list[Engine] = []
        self._writing: _Writing | None = None
        self._waiting = _Waiting()
        self._wrong: sa.exc.SQLAlchemyError | None = None
        self._of_runs: dict[str, _Evaluations] = {}  # that have not ended
        self._known_to_exist: set[str] = set()
        self._poller: SqlPollingEventWatcher | None = None
        # What Dagster has together, an asset's materializations in a run over days, it then hands over together.
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", str(TOGETHER))
        super().__init__(base_dir=base_dir, inst_data=inst_data)

    guards_webserver = True

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Put the guard before the web server, which calls this before it serves: every one of this home has it."""
        from market_data_pipeline.defs.platform.guard import guard_webserver

        guard_webserver()
        super().optimize_for_webserver(statement_timeout, pool_recycle, max_overflow)

    @classmethod
    def config_type(cls) -> Any:
        """What ``dagster.yaml`` gives: ``home``, which may name an environment variable."""
        return {"home": StringSource}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Make the storage that ``dagster.yaml`` describes. The stock method would make the stock class."""
        return cls(base_dir=str(Path(config_value["home"]) / "history" / "runs"), inst_data=inst_data)

    # --- writing ---------------------------------------------------------------------------------------------------

    # The stock class writes an event in three transactions or more, and asks the database for its schema in each.

    def store_event(self, event: EventLogEntry) -> None:
        """Write an event; a check's evaluation waits for the event after it, so that many are written together."""
        if event.run_id and event.dagster_event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
            self._waiting.add(event)
            if not self._waiting.is_due():
                return
            self.store_event_batch([])
        else:
            self.store_event_batch([event])

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Write events together: to their runs' files, and what they tell of assets to the index."""
        waiting = self._waiting.take()
        try:
            self._write([*waiting, *events])
        except sa.exc.SQLAlchemyError:
            if not waiting:
                raise
            for event in waiting:  # so that what is wrong with one keeps nothing else from being written
                self._write_or_tell_later(event)
            self._write(events)
        if self._wrong is not None and len(events) <= 1:  # a batch that raises is written once more by Dagster
            wrong, self._wrong = self._wrong, None
            raise wrong

    def _write_or_tell_later(self, event: EventLogEntry) -> None:
        try:
            self._write([event])
        except sa.exc.SQLAlchemyError as error:
            self._wrong = self._wrong or error

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
            super().store_event(event)  # to the run's file, and what tells of assets, checks and its state to the index

    def _tidy(self, run_id: str) -> None:
        """Drop of a run that has ended what other rows say as well."""
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
        """What the stock class does for each of many events of one kind, with a statement for all of them."""
        rows = [self._event_to_row(event) for event in events]
        if self._file_of(run_id) != INDEX_SHARD_NAME:
            with self.run_connection(run_id) as run:
                run.execute(SqlEventLogStorageTable.insert(), rows)
        with self.index_connection() as index:
            index.execute(SqlEventLogStorageTable.insert(), rows)
            # Nobody else writes in this transaction, so the ids of its rows follow one another.
            last = index.execute(sa.select(sa.func.last_insert_rowid())).scalar_one()
            numbered = list(zip(events, range(last - len(rows) + 1, last + 1), strict=True))
            if kind is DagsterEventType.ASSET_MATERIALIZATION:
                self._store_asset_event_tags(index, events, [event_id for _, event_id in numbered])
                for event, event_id in numbered:
                    self._store_asset_event(index, event, event_id)
                return
            for (event, event_id), row in zip(numbered, rows, strict=True):
                if index.execute(_EVALUATED, _evaluated(event, event_id, row)).rowcount != 1:  # nobody planned it
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
        """Return True if an event says that a check has yielded its output, which is always empty."""
        if event.dagster_event_type is not DagsterEventType.STEP_OUTPUT or event.run_id not in self._of_runs:
            return False
        name = event.get_dagster_event().step_output_data.step_output_handle.output_name
        return name in self._of_runs[event.run_id].outputs

    def _store_asset_check_evaluation_planned(self, event: EventLogEntry, event_id: int | None) -> None:
        # The stock method writes the event as JSON anew for each day.
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
        # The row that an asset has shows the newest event of each kind: none but the last of a batch stays in it.
        which = (event.dagster_event.asset_key, event.dagster_event_type)
        self._writing.newest.pop(which, None)
        self._writing.newest[which] = event, event_id

    def has_table(self, table_name: str) -> bool:
        """Whether the index has a table, which stays so."""
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
        """Until it is left, this thread's connections are those of one transaction for each file."""
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
        # The stock method opens the file of each run. Here the index has all events, but for those that runs with a
        # file of their own kept to themselves.
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
        if self._waiting:  # whoever reads finds what was told before
            self.store_event_batch([])
        with self._db_lock, self._transaction(shard) as connection:
            yield connection

    @contextmanager
    def _transaction(self, shard: str) -> Iterator[Connection]:
        engine = self._kept_engine(shard)
        if shard not in self._initialized_dbs:
            self._make_schema(shard)
        if engine is None:
            engine = self._open(shard, StaticPool)
            sa.event.listen(engine, "connect", _be_quick)
            if shard == INDEX_SHARD_NAME:
                sa.event.listen(engine, "connect", _say_packed)
        try:
            with engine.begin() as connection:
                yield connection
        except BaseException:
            # Whatever went wrong, the next event starts with a fresh connection, as it does in the stock class.
            engine.dispose()
            raise
        self._keep(shard, engine)

    def _file_of(self, run_id: str) -> str:
        """Return the shard that a run's events lie in: its own if it has a file from before, else the index."""
        own = run_id != INDEX_SHARD_NAME and Path(self.path_for_shard(run_id)).exists()
        return run_id if own else INDEX_SHARD_NAME

    def _kept_engine(self, shard: str) -> Engine | None:
        """Take out the shard's engine, unless the file was wiped or replaced, or this process is a fork."""
        identity = self._identity(shard)
        if identity is None:
            self._initialized_dbs.discard(shard)
        engine, known = self._kept.pop(shard, (None, None))
        if engine is not None and known != identity:
            self._close(engine, known)
            return None
        return engine

    def _keep(self, shard: str, engine: Engine) -> None:
        identity = self._identity(shard)
        if identity is None:
            engine.dispose()
            return
        self._kept[shard] = engine, identity
        while len(self._kept) > KEPT_SHARDS:
            self._close(*self._kept.popitem(last=False)[1])

    def _close(self, engine: Engine, identity: _Identity | None) -> None:
        if identity is not None and identity.process != os.getpid():
            # The connection is the parent's: SQLite forbids even closing it here, so it is only kept from being used.
            self._of_parent.append(engine)
        else:
            engine.dispose()

    def _identity(self, shard: str) -> _Identity | None:
        try:
            found = Path(self.path_for_shard(shard)).stat()
        except FileNotFoundError:
            return None
        return _Identity(os.getpid(), found.st_dev, found.st_ino)

    def _make_schema(self, shard: str) -> None:
        # With the stock pool, since making the schema opens a second connection inside the first.
        Path(self.path_for_shard(shard)).parent.mkdir(parents=True, exist_ok=True)
        once = self._open(shard, NullPool)
        self._initdb(once, for_index_shard=shard == INDEX_SHARD_NAME)
        once.dispose()
        self._initialized_dbs.add(shard)

    def _initdb(self, engine: Engine, for_index_shard: bool = False) -> None:
        if for_index_shard:
            # A new file can then give back pages one by one, without being written anew. It changes no old one.
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA auto_vacuum=INCREMENTAL")
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        super()._initdb(engine, for_index_shard)

    def _open(self, shard: str, pool: type[Pool]) -> Engine:
        return sa.create_engine(
            self.conn_string_for_shard(shard),
            poolclass=pool,
            # One thread at a time is let in, but not always the same one.
            connect_args={
                "timeout": SQLITE_BUSY_TIMEOUT_SECONDS,
                "check_same_thread": False,
                "factory": PackingConnection,
            },
        )

    # --- watching --------------------------------------------------------------------------------------------------

    # The stock watcher looks at the .db file, which a kept connection in WAL mode leaves untouched (33 of 494 events
    # were missed): ask the tables instead, as Postgres does.

    def watch(self, run_id: str, cursor: str | None, callback: Callable[..., None]) -> None:
        """Call back for each new event of a run."""
        if self._poller is None:
            self._poller = SqlPollingEventWatcher(self)
        self._poller.watch_run(run_id, cursor, callback)

    def end_watch(self, run_id: str, handler: Callable[..., None]) -> None:
        """Stop calling back."""
        if self._poller is not None:
            self._poller.unwatch_run(run_id, handler)

    def dispose(self) -> None:
        """Write what waits, stop watching and close all connections."""
        if self._waiting:
            self.store_event_batch([])
        if self._poller is not None:
            self._poller.close()
            self._poller = None
        super().dispose()
        with self._db_lock:
            while self._kept:
                self._close(*self._kept.popitem()[1])


def _be_quick(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")


def _say_packed(connection: Any, _record: object) -> None:
    if connection.execute("PRAGMA user_version").fetchone()[0] != PACKED:
        connection.execute(f"PRAGMA user_version={PACKED}")


def _ends_a_run(event: EventLogEntry) -> bool:
    return event.dagster_event is not None and event.dagster_event.event_type_value in _ENDED


def give_pages_back(connection: Connection) -> None:
    """Cut free pages off a file that was made to do so. Others keep them for what is written next."""
    driver: Any = connection.connection.dbapi_connection
    driver.executescript("PRAGMA incremental_vacuum")  # `execute` would take a single step, which frees one page
