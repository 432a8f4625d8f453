"""Rewrite Dagster's records for its stock event log: unpacked, with one file per run. Packing does not belong here."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS

from market_data_pipeline.defs.platform.packing import PACKED_COLUMNS, unpack

_ROWS_AT_ONCE = 500


def unpack_records(storage: SqliteEventLogStorage) -> None:
    """Unpack everything that this project's event log has packed. Do nothing if there is nothing packed.

    Each transaction leaves readable rows. The mark of packed records is removed last, so the next call finishes one
    that was killed.

    Args:
        storage: The stock event log over the same files.
    """
    index = Path(storage.path_for_shard(INDEX_SHARD_NAME))
    with closing(_open(index)) as connection:
        if not connection.execute("PRAGMA user_version").fetchone()[0]:
            return
        for table, column in PACKED_COLUMNS:
            _unpack_column(connection, table, column)
        for run_id in storage.get_all_run_ids():
            with closing(_open(Path(storage.path_for_shard(run_id)))) as shard:
                _unpack_column(shard, "event_logs", "event")
        names = connection.execute("SELECT DISTINCT run_id FROM event_logs WHERE run_id IS NOT NULL").fetchall()
        for (run_id,) in names:
            _write_shard(storage, connection, run_id)
        connection.execute("PRAGMA user_version=0")


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=SQLITE_BUSY_TIMEOUT_SECONDS)


def _unpack_column(connection: sqlite3.Connection, table: str, column: str) -> None:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchone():
        return
    packed = f"SELECT id, {column} FROM {table} WHERE typeof({column}) = 'blob' LIMIT {_ROWS_AT_ONCE}"  # noqa: S608
    while rows := connection.execute(packed).fetchall():
        with connection:
            connection.executemany(
                f"UPDATE {table} SET {column} = ? WHERE id = ?",  # noqa: S608
                [(unpack(value), row_id) for row_id, value in rows],
            )


def _write_shard(storage: SqliteEventLogStorage, index: sqlite3.Connection, run_id: str) -> None:
    """Write a run's events into a file of its own, unless that file has events."""
    names = [column.name for column in SqlEventLogStorageTable.c if column.name != "id"]
    columns = ", ".join(f'"{name}"' for name in names)
    with storage.run_connection(run_id) as shard:
        if shard.execute(sa.select(SqlEventLogStorageTable.c.id).limit(1)).first() is not None:
            return
        rows = index.execute(f"SELECT {columns} FROM event_logs WHERE run_id = ? ORDER BY id", [run_id])  # noqa: S608
        marks = ", ".join("?" * len(names))
        for row in rows:
            shard.exec_driver_sql(f"INSERT INTO event_logs ({columns}) VALUES ({marks})", row)  # noqa: S608
