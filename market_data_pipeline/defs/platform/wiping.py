"""Wipe removed days and series from Dagster's records, so that the UI does not show them as stored.

Logs of runs stay. Removing files does not belong here; see ``maintenance/retention.py``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from datetime import date
from pathlib import Path

import dagster as dg
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS

from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.partitions import partition_of
from market_data_pipeline.model.series import SeriesKey


def wipe_series(instance: dg.DagsterInstance, key: SeriesKey) -> None:
    """Wipe all events and check results of a series' asset."""
    instance.wipe_assets([asset_key_of(key)])


def wipe_days(instance: dg.DagsterInstance, key: SeriesKey, days: Iterable[date]) -> None:
    """Wipe the events and check results of days of a series' asset, in one transaction.

    Databases other than SQLite may not support it. Then the events stay, and so does the UI's mark of the days.
    """
    names = [partition_of(day) for day in days]
    storage = instance.event_log_storage
    if not instance.is_persistent or not isinstance(storage, SqliteEventLogStorage):
        with suppress(NotImplementedError):
            instance.wipe_asset_partitions(asset_key_of(key), names)
        return
    path = Path(storage.path_for_shard(INDEX_SHARD_NAME))
    if not path.exists():
        return
    asset = asset_key_of(key).to_string()
    with closing(sqlite3.connect(path, timeout=SQLITE_BUSY_TIMEOUT_SECONDS, isolation_level=None)) as index:
        index.execute("PRAGMA synchronous=NORMAL")
        index.execute("CREATE TEMP TABLE going (partition TEXT PRIMARY KEY) WITHOUT ROWID")
        index.executemany("INSERT OR IGNORE INTO going VALUES (?)", ((name,) for name in names))
        index.execute("BEGIN IMMEDIATE")
        try:
            for statement in _STATEMENTS:
                index.execute(statement, {"asset": asset})
        except BaseException:
            index.execute("ROLLBACK")
            raise
        index.execute("COMMIT")


_OF_DAYS = "asset_key = :asset AND partition IN (SELECT partition FROM going)"
_EVALUATION = "evaluation_event_storage_id"

_STATEMENTS = (
    f"DELETE FROM asset_event_tags WHERE event_id IN (SELECT id FROM event_logs WHERE {_OF_DAYS})",  # noqa: S608
    # Evaluations in the log have no asset key. The table of checks has their ids.
    f"DELETE FROM event_logs WHERE id IN (SELECT {_EVALUATION} FROM asset_check_executions WHERE {_OF_DAYS})",  # noqa: S608
    f"DELETE FROM asset_check_executions WHERE {_OF_DAYS}",  # noqa: S608
    f"DELETE FROM event_logs WHERE {_OF_DAYS}",  # noqa: S608
    "UPDATE asset_keys SET cached_status_data = NULL WHERE asset_key = :asset",
)
