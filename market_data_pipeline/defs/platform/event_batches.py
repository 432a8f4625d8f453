"""Batched events of Dagster's event log, for SQLite and for PostgreSQL: many in a transaction, and none twice.

A run over days has thousands of events of two types. They are written with one statement for many, and those that
other rows repeat leave the log at the end of the run. It uses private parts of ``dagster._core``, which is pinned to
1.13. Connections do not belong here (``event_log.py``, ``team_storage.py``).
"""

from __future__ import annotations

import os
import threading
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from dagster import AssetCheckKey, AssetCheckSpec, AssetKey, DagsterEventType, EventLogEntry
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._serdes import serialize_value
from sqlalchemy.engine import Connection

EVENTS_TOGETHER = 100
"""Maximum number of events in one transaction. Other processes wait for it."""

_WAIT_SECONDS = 1.0
"""Maximum number of seconds that a check's evaluation waits for others."""

_MANY = frozenset({DagsterEventType.ASSET_MATERIALIZATION, DagsterEventType.ASSET_CHECK_EVALUATION})
"""Types of events that a run over days has once per day."""

_CHECKS = AssetCheckExecutionsTable.c

EVALUATED = (
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


@dataclass(frozen=True, slots=True)
class EventBatch:
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
        return len(self) >= EVENTS_TOGETHER or time.monotonic() - self._since > _WAIT_SECONDS

    def take(self) -> list[EventLogEntry]:
        """Return all events and forget them. A fork returns none, because its parent writes them."""
        with self._lock:
            taken, self._events = self._events, []
            return taken if self._process == os.getpid() else []


class BatchedEvents(SqlEventLogStorage):
    """Write events together. A storage inherits from this class first, and from one of Dagster's second."""

    def _begin_batches(self) -> None:
        """Prepare this part of a storage. Call it before the constructor of Dagster's class."""
        self._writing: EventBatch | None = None
        self._waiting = _Waiting()
        self._error: sa.exc.SQLAlchemyError | None = None
        self._of_runs: dict[str, _Evaluations] = {}  # unfinished runs only
        self._known_to_exist: set[str] = set()
        # Dagster then passes all materializations of a run over days in batches.
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", str(EVENTS_TOGETHER))

    @abstractmethod
    def _one_transaction(self) -> AbstractContextManager[EventBatch]:
        """Use one transaction per file for this thread's connections, until the context ends."""

    @abstractmethod
    def _store_one(self, event: EventLogEntry) -> None:
        """Store one event in the transaction."""

    @abstractmethod
    def _insert(
        self, run_id: str, rows: Sequence[Mapping[str, Any]], stay: Sequence[bool]
    ) -> tuple[Connection, Sequence[int]]:
        """Insert rows of events in the transaction. Return the connection to the index, and their ids.

        Args:
            stay: False for rows that leave the log at the end of the run. They need an id, but no row.
        """

    @abstractmethod
    def _evaluate(self, index: Connection, evaluated: Sequence[Mapping[str, Any]]) -> set[int]:
        """Replace planned checks by their evaluations. Return the ids of the events of those that were not planned."""

    @abstractmethod
    def _packed(self, text: str) -> str | bytes:
        """Return the JSON of an event as it is stored."""

    @property
    def _is_writing(self) -> bool:
        """Return True if this thread has a transaction in progress."""
        return self._writing is not None and self._writing.thread == threading.get_ident()

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
        self._write_rows(events)
        for run_id in {event.run_id for event in events if ends_a_run(event)}:
            self._tidy(run_id)

    def _write_rows(self, events: Sequence[EventLogEntry]) -> None:
        with self._one_transaction() as writing:
            for (run_id, kind), some in groupby(events, key=attrgetter("run_id", "dagster_event_type")):
                alike = list(some)
                if run_id and kind in _MANY and len(alike) > 1:
                    self._store_alike(run_id, kind, alike)
                else:
                    for event in alike:
                        self._store_one(event)
            if writing.newest:
                with self.index_connection() as index:
                    for event, event_id in writing.newest.values():
                        super()._store_asset_event(index, event, event_id)

    def _tidy(self, run_id: str) -> None:
        """Delete events of a finished run that other rows repeat."""
        passed = [{"passed": event_id} for event_id in self._of_runs.pop(run_id, _Evaluations()).passed]
        with self._one_transaction(), self.index_connection() as index:
            index.execute(_CAME_TRUE, {"run": run_id})
            index.execute(_PLANNED_CHECKS, {"run": run_id})
            if passed:
                index.execute(SqlEventLogStorageTable.delete().where(_EVENTS.id == sa.bindparam("passed")), passed)

    def _store_alike(self, run_id: str, kind: DagsterEventType, events: Sequence[EventLogEntry]) -> None:
        """Store many events of one type with one statement for all of them."""
        rows = [self._event_to_row(event) for event in events]
        stay = [kind is not DagsterEventType.ASSET_CHECK_EVALUATION or not _has_passed(event) for event in events]
        index, ids = self._insert(run_id, rows, stay)
        numbered = list(zip(events, ids, strict=True))
        if kind is DagsterEventType.ASSET_MATERIALIZATION:
            self._store_asset_event_tags(index, events, ids)
            for event, event_id in numbered:
                self._store_asset_event(index, event, event_id)
            return
        evaluated = [_evaluated(event, event_id, row) for (event, event_id), row in zip(numbered, rows, strict=True)]
        not_planned = self._evaluate(index, evaluated)
        for event, event_id in numbered:
            if event_id in not_planned:
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
            "evaluation_event": self._packed(serialize_value(event)),
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
        if table_name not in self._known_to_exist and super().has_table(table_name):  # type: ignore[safe-super]
            self._known_to_exist.add(table_name)
        return table_name in self._known_to_exist

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        known = f"asset_keys.{column_name}"
        if known not in self._known_to_exist and super()._has_asset_key_col_on_connection(conn, column_name):
            self._known_to_exist.add(known)
        return known in self._known_to_exist


def _has_passed(event: EventLogEntry) -> bool:
    return bool(event.get_dagster_event().asset_check_evaluation_data.passed)


def ends_a_run(event: EventLogEntry) -> bool:
    """Return True if an event is the last of its run."""
    return event.dagster_event is not None and event.dagster_event.event_type_value in _ENDED
