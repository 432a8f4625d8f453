"""Move Dagster's records of assets to their present keys, without a run and without a download.

Version 0.1 named assets otherwise (``keys.renamed``). An asset's events, check results and row change in one
transaction, so a call that was killed leaves whole assets and the next one continues. Steps in
logs of old runs are not renamed. Records in other databases than SQLite files neither: ``sync`` records the days again.
"""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path

import dagster as dg
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS

from market_data_pipeline.defs.keys import renamed
from market_data_pipeline.defs.platform.packing import pack, unpack

logger = logging.getLogger(__name__)

_MANY = 100_000
"""Number of events from which a log line announces the work. 10,000 events take about a second."""

_INPUT = re.compile(r"(dagster/input_(?:data_version|event_pointer)/)([^\"]+)")
"""Tags of a materialization that name a source by its key."""


def rename_assets(instance: dg.DagsterInstance, seconds: float | None = None) -> int:
    """Rename all assets in Dagster's records that have a key of version 0.1. Return the number of renamed assets.

    Without such assets it reads one small table. If the present key has records, too, they are merged.

    Args:
        instance: Dagster's records.
        seconds: Time after which no further asset is renamed. A later call continues. Default: no limit.
    """
    storage = instance.event_log_storage
    if not instance.is_persistent or not isinstance(storage, SqliteEventLogStorage):
        return 0
    path = Path(storage.path_for_shard(INDEX_SHARD_NAME))
    if not path.exists():
        return 0
    end = None if seconds is None else time.monotonic() + seconds
    done = 0
    with closing(sqlite3.connect(path, timeout=SQLITE_BUSY_TIMEOUT_SECONDS, isolation_level=None)) as index:
        index.execute("PRAGMA synchronous=NORMAL")
        pairs = list(_old_assets(index))
        if pairs:
            _announce(index, len(pairs))
        for old, new in pairs:
            if end is not None and time.monotonic() > end:
                break
            _rename(index, old, new)
            done += 1
    return done


def _old_assets(index: sqlite3.Connection) -> Iterable[tuple[Sequence[str], Sequence[str]]]:
    """Yield the old and the new path of each asset to rename."""
    if not index.execute("SELECT 1 FROM sqlite_master WHERE name = 'asset_keys'").fetchone():
        return
    for (name,) in index.execute("SELECT asset_key FROM asset_keys ORDER BY id").fetchall():
        old = json.loads(name)
        if (new := renamed(old)) is not None:
            yield old, new.path


def _announce(index: sqlite3.Connection, assets: int) -> None:
    (newest,) = index.execute("SELECT coalesce(max(id), 0) FROM event_logs").fetchone()
    if newest > _MANY:
        logger.warning("Renaming %d assets in Dagster's records, once. Nothing is downloaded.", assets)


def _rename(index: sqlite3.Connection, old: Sequence[str], new: Sequence[str]) -> None:
    was, now = json.dumps(list(old)), json.dumps(list(new))

    def text_renamed(text: str) -> str:
        text = text.replace(f'"path": {was}', f'"path": {now}')
        return _INPUT.sub(_input_renamed, text) if "dagster/input_" in text else text

    index.execute("BEGIN IMMEDIATE")
    try:
        # Evaluations in the log have no asset key. The table of checks has their ids.
        _rewrite(
            index,
            "event_logs",
            "event",
            "asset_key = :was OR id IN (SELECT evaluation_event_storage_id FROM asset_check_executions "
            "WHERE asset_key = :was)",
            was,
            text_renamed,
        )
        _rewrite(index, "asset_check_executions", "evaluation_event", "asset_key = :was", was, text_renamed)
        _rewrite(index, "asset_keys", "last_materialization", "asset_key = :was", was, text_renamed)
        for row_id, tag in index.execute(
            "SELECT id, key FROM asset_event_tags WHERE asset_key = ? AND key LIKE 'dagster/input_%'", [was]
        ).fetchall():
            index.execute("UPDATE asset_event_tags SET key = ? WHERE id = ?", [_INPUT.sub(_input_renamed, tag), row_id])
        for table in ("event_logs", "asset_check_executions", "asset_event_tags"):
            # One run has one result of a check and day. `REPLACE` is for records without a run.
            index.execute(f"UPDATE OR REPLACE {table} SET asset_key = ? WHERE asset_key = ?", [now, was])  # noqa: S608
        _merge_rows(index, was, now)
    except BaseException:
        index.execute("ROLLBACK")
        raise
    index.execute("COMMIT")


def _input_renamed(found: re.Match[str]) -> str:
    new = renamed(found[2].split("/"))
    return found[1] + (found[2] if new is None else new.to_user_string())


def _rewrite(
    index: sqlite3.Connection, table: str, column: str, where: str, was: str, text_renamed: Callable[[str], str]
) -> None:
    """Rename the asset in a column of Dagster's JSON, packed or not."""
    rows = index.execute(
        f"SELECT id, {column} FROM {table} WHERE {column} IS NOT NULL AND ({where})",  # noqa: S608
        {"was": was},
    ).fetchall()
    index.executemany(
        f"UPDATE {table} SET {column} = ? WHERE id = ?",  # noqa: S608
        (
            (pack(text_renamed(unpack(value))) if isinstance(value, bytes) else text_renamed(value), row_id)
            for row_id, value in rows
        ),
    )


def _merge_rows(index: sqlite3.Connection, was: str, now: str) -> None:
    """Rename an asset's row. If the new key has a row, drop the one with the older materialization."""
    newest = index.execute(
        "SELECT id FROM asset_keys WHERE asset_key IN (?, ?) ORDER BY last_materialization_timestamp DESC, id DESC",
        [was, now],
    ).fetchone()[0]
    index.execute("DELETE FROM asset_keys WHERE asset_key IN (?, ?) AND id <> ?", [was, now, newest])
    # The cached status has the partitions of the old definition. Dagster computes it again.
    index.execute("UPDATE asset_keys SET asset_key = ?, cached_status_data = NULL WHERE id = ?", [now, newest])
