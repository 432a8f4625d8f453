"""Prune Dagster's records: drop old runs, retain the newest materialization and check result of each partition.

The row of a run stays if it has the newest materialization, attempt or check result of a partition, so that links in
the UI work. Its log is dropped. Each transaction leaves whole records, so the next prune finishes one that was killed.
Scheduling prunes does not belong here.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.schedules import SqliteScheduleStorage
from filelock import Timeout

from market_data_pipeline import clock
from market_data_pipeline.defs.platform.event_log import KeptConnectionEventLogStorage
from market_data_pipeline.defs.platform.packing import PACKED_COLUMNS, pack
from market_data_pipeline.defs.platform.records import size_of_records
from market_data_pipeline.defs.platform.renaming import rename_assets
from market_data_pipeline.errors import MarketDataError, UsageError
from market_data_pipeline.lake import locks
from market_data_pipeline.settings import Settings

if TYPE_CHECKING:
    from market_data_pipeline.defs.platform.team_storage import TeamEventLogStorage

_RUNS_AT_ONCE = 20
"""Runs dropped in one transaction. It is short, because other processes wait for it."""

_ROWS_AT_ONCE = 500

_PAGES_AT_ONCE = 2_000
"""Pages of 4 kB freed in one transaction."""

_WAIT_SECONDS = 30.0
"""Seconds to wait for another process's transaction."""

_FINISHED = ", ".join(f"'{status.value}'" for status in FINISHED_STATUSES)

_WORTHWHILE = 0.1
"""Share of free pages from which a file that cannot free single pages is rewritten."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """Result of a prune, or of a dry run.

    Attributes:
        runs: Old runs dropped.
        kept: Old runs whose rows stay, because they have the newest result of a partition.
        events: Events dropped: the logs of old runs.
        evaluations: Check results dropped.
        ticks: Ticks of schedules and sensors dropped.
        before: Bytes of all records before.
        after: Bytes of all records after. An estimate in a dry run.
        waiting: The reason why some space is not freed yet. None if all of it is.
    """

    runs: int
    kept: int
    events: int
    evaluations: int
    ticks: int
    before: int
    after: int
    waiting: str | None = None


def prune(
    instance: dg.DagsterInstance, before: datetime, *, dry_run: bool = False, run_id: str | None = None
) -> Pruned:
    """Drop runs that ended before a time, with their logs and superseded results. Free their space.

    Args:
        instance: Dagster's records, from ``home.open_instance``.
        before: Runs that ended earlier are old. Runs in progress, and those of backfills in progress, are never old.
        run_id: The calling run. It does not delay freeing space.

    Raises:
        UsageError: The records are in another database than SQLite files or the team's PostgreSQL.
        MarketDataError: Another prune is in progress.
        sqlite3.Error: A file cannot be used. No current result is lost, and the same call continues where it stopped.
    """
    if getattr(instance.event_log_storage, "is_of_team", False):
        from market_data_pipeline.defs.platform.team_pruning import prune_team

        dropped, size, after = prune_team(
            cast("TeamEventLogStorage", instance.event_log_storage), before, dry_run=dry_run
        )
        return Pruned(*dropped, before=size, after=after, waiting="PostgreSQL frees it by autovacuum")
    home = Path(instance.root_directory)
    index, runs, schedules = _files(instance)
    size = size_of_records(home)
    try:
        with locks.held(home / "prune.lock"), ExitStack() as stack:
            events = stack.enter_context(_open(index))
            history = stack.enter_context(_open(runs))
            ticks = stack.enter_context(_open(schedules))
            _choose(events, history, before)
            dropped = _count(events, ticks, before)
            if dry_run:
                spared = _spared(events, index.parent)
                return Pruned(*dropped, before=size, after=max(size - spared, 0))
            _drop(instance, events, history, index.parent, before)
            with _transaction(ticks):
                ticks.execute(f"DELETE FROM job_ticks WHERE {_OLD_TICKS}", [_moment(before)])  # noqa: S608
            if isinstance(instance.event_log_storage, KeptConnectionEventLogStorage):
                _pack(events)
            waiting = _give_back({index: events, runs: history, schedules: ticks}, history, run_id)
    except Timeout:
        raise MarketDataError(f"Another prune of {home} is in progress. Wait until it has finished.") from None
    return Pruned(*dropped, before=size, after=size_of_records(home), waiting=waiting)


def prune_records(context: dg.OpExecutionContext, settings: Settings) -> None:
    """Prune as configured, and report the result.

    Raises:
        MarketDataError: The records cannot be pruned.
    """
    if not context.instance.is_persistent:
        context.log.info("There is nothing to prune, because these records are in memory only.")
        return
    rename_assets(context.instance)
    before = clock.now() - timedelta(days=settings.keep_runs_days)
    done = prune(context.instance, before, run_id=context.run_id)
    context.log.info(
        "Dropped %d runs that ended before %s and the logs of %d others. Size: %.1f MB before, %.1f MB now. %s",
        done.runs,
        f"{before:%Y-%m-%d}",
        done.kept,
        done.before / 1e6,
        done.after / 1e6,
        f"Some space is not freed yet: {done.waiting}." if done.waiting else "",
    )
    context.add_output_metadata({name: value for name, value in asdict(done).items() if value is not None})


# --- files ---------------------------------------------------------------------------------------------------------


_T = TypeVar("_T")


def _sqlite(storage: object, kind: type[_T]) -> _T:
    if isinstance(storage, kind):
        return storage
    raise UsageError(
        f"Dagster's records are in {type(storage).__name__}, and prune supports only SQLite. "
        "Drop old runs with `dagster run delete`, and free their space with the tools of the database."
    )


def _files(instance: dg.DagsterInstance) -> tuple[Path, Path, Path]:
    """Return the files of events, runs and ticks."""
    events = _sqlite(instance.event_log_storage, SqliteEventLogStorage)
    runs = _sqlite(instance.run_storage, SqliteRunStorage)
    ticks = _sqlite(instance.schedule_storage, SqliteScheduleStorage)
    with runs.connect() as history, ticks.connect() as schedules:
        names = [str(connection.engine.url.database) for connection in (history, schedules)]
    with events.index_connection():
        pass  # creates the file if it is missing
    return Path(events.path_for_shard("index")), Path(names[0]), Path(names[1])


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA temp_store=MEMORY")
        yield connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _portions(values: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


# --- retention ----------------------------------------------------------------------------------------------------


def _choose(events: sqlite3.Connection, history: sqlite3.Connection, before: datetime) -> None:
    """Create temporary tables of the index's connection: ``old`` has runs whose logs are dropped.

    ``stays`` has ids of events that stay, ``results`` ids of check results, and ``named`` the runs whose rows stay.
    Rows stored later are newer than anything in them, so they can only supersede more of it.
    """
    old = history.execute(
        f"SELECT run_id FROM runs WHERE status IN ({_FINISHED}) "  # noqa: S608 - Dagster's own words
        "AND coalesce(end_time, strftime('%s', update_timestamp) + 0.0) < ? AND coalesce(backfill_id, '') NOT IN "
        "(SELECT key FROM bulk_actions WHERE status IN ('REQUESTED', 'CANCELING', 'FAILING'))",
        [before.timestamp()],
    )
    events.execute("CREATE TEMP TABLE old (run_id TEXT PRIMARY KEY) WITHOUT ROWID")
    events.executemany("INSERT INTO old VALUES (?)", old)
    events.executescript("""
        CREATE TEMP TABLE stays (id INTEGER PRIMARY KEY);
        INSERT OR IGNORE INTO stays SELECT max(id) FROM event_logs
            WHERE dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_OBSERVATION') AND asset_key IS NOT NULL
            GROUP BY asset_key, dagster_event_type, partition;
        -- The newest attempt: the UI shows a partition as failed if it was planned and not materialized since.
        INSERT OR IGNORE INTO stays SELECT max(id) FROM event_logs
            WHERE dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_MATERIALIZATION_PLANNED')
            AND asset_key IS NOT NULL GROUP BY asset_key, partition;
        -- Ids of events are cursors and must never decrease.
        INSERT OR IGNORE INTO stays SELECT id FROM event_logs ORDER BY id DESC LIMIT 1;
        CREATE TEMP TABLE results (id INTEGER PRIMARY KEY);
        INSERT OR IGNORE INTO results SELECT max(id) FROM asset_check_executions
            WHERE execution_status IN ('SUCCEEDED', 'FAILED') GROUP BY asset_key, check_name, partition;
        INSERT OR IGNORE INTO results SELECT max(id) FROM asset_check_executions
            GROUP BY asset_key, check_name, partition;
        CREATE TEMP TABLE named (run_id TEXT PRIMARY KEY) WITHOUT ROWID;
        INSERT OR IGNORE INTO named SELECT run_id FROM event_logs JOIN stays USING (id) JOIN old USING (run_id);
        INSERT OR IGNORE INTO named
            SELECT run_id FROM asset_check_executions JOIN results USING (id) JOIN old USING (run_id);
        INSERT OR IGNORE INTO named SELECT last_run_id FROM asset_keys JOIN old ON run_id = last_run_id;
    """)


_GOES = "run_id IN (SELECT run_id FROM old) AND id NOT IN (SELECT id FROM stays)"
_SUPERSEDED = "run_id IN (SELECT run_id FROM old) AND id NOT IN (SELECT id FROM results)"


def _count(events: sqlite3.Connection, ticks: sqlite3.Connection, before: datetime) -> tuple[int, int, int, int, int]:
    """Return the number of runs dropped, runs retained, events, evaluations and ticks."""

    def one(connection: sqlite3.Connection, sql: str, *values: object) -> int:
        return int(connection.execute(sql, values).fetchone()[0])

    kept = one(events, "SELECT count(*) FROM named")
    return (
        one(events, "SELECT count(*) FROM old") - kept,
        kept,
        one(events, f"SELECT count(*) FROM event_logs WHERE {_GOES}"),  # noqa: S608
        one(events, f"SELECT count(*) FROM asset_check_executions WHERE {_SUPERSEDED}"),  # noqa: S608
        one(ticks, f"SELECT count(*) FROM job_ticks WHERE {_OLD_TICKS}", _moment(before)),  # noqa: S608
    )


def _spared(events: sqlite3.Connection, folder: Path) -> int:
    """Estimate the freed bytes. A row adds 300 bytes to its event, or 400 to its evaluation."""
    (logs,) = events.execute(
        f"SELECT coalesce(sum(length(event) + 300), 0) FROM event_logs WHERE {_GOES}"  # noqa: S608
    ).fetchone()
    (checks,) = events.execute(
        f"SELECT coalesce(sum(length(evaluation_event) + 400), 0) FROM asset_check_executions WHERE {_SUPERSEDED}"  # noqa: S608
    ).fetchone()
    own = (_shard_files(folder, run_id) for (run_id,) in events.execute("SELECT run_id FROM old"))
    return int(logs + checks) + sum(path.stat().st_size for paths in own for path in paths)


# --- dropping ------------------------------------------------------------------------------------------------------


def _drop(
    instance: dg.DagsterInstance,
    events: sqlite3.Connection,
    history: sqlite3.Connection,
    folder: Path,
    before: datetime,
) -> None:
    ours = isinstance(instance.event_log_storage, KeptConnectionEventLogStorage)
    old = [run_id for (run_id,) in events.execute("SELECT run_id FROM old ORDER BY run_id")]
    named = {run_id for (run_id,) in events.execute("SELECT run_id FROM named")}
    superseded = events.execute(f"SELECT id FROM asset_check_executions WHERE {_SUPERSEDED}").fetchall()  # noqa: S608
    for rows in _portions(superseded, _ROWS_AT_ONCE):
        with _transaction(events):
            events.executemany("DELETE FROM asset_check_executions WHERE id = ?", rows)
    for some in _portions(old, _RUNS_AT_ONCE):
        marks = ", ".join("?" * len(some))
        goes = f"run_id IN ({marks}) AND id NOT IN (SELECT id FROM stays)"  # noqa: S608
        with _transaction(events):
            events.execute(
                "DELETE FROM asset_event_tags WHERE event_id IN (SELECT id FROM event_logs "  # noqa: S608
                f"WHERE dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_OBSERVATION') AND {goes})",
                some,
            )
            events.execute(f"DELETE FROM event_logs WHERE {goes}", some)  # noqa: S608
        # Rows of runs go after their events, so that the next prune finds the run again if this one is killed.
        _drop_rows(history, [run_id for run_id in some if run_id not in named])
        for run_id in some:
            for path in _shard_files(folder, run_id):
                if ours or run_id not in named:
                    path.unlink(missing_ok=True)
                elif path.suffix == ".db":
                    _empty(path)
            shutil.rmtree(Path(instance.storage_directory()) / run_id, ignore_errors=True)
            with suppress(NotImplementedError):
                instance.compute_log_manager.delete_logs(prefix=[run_id])
    if len(old) > len(named):
        _drop_backfills(history, before)
        _drop_snapshots(history)


def _drop_rows(history: sqlite3.Connection, run_ids: Iterable[str]) -> None:
    gone = [(run_id,) for run_id in run_ids]
    with _transaction(history):
        history.executemany("DELETE FROM run_tags WHERE run_id = ?", gone)
        history.executemany("DELETE FROM runs WHERE run_id = ?", gone)


def _shard_files(folder: Path, run_id: str) -> list[Path]:
    """Return the files that only this run has. All runs had such files before their events went into the index."""
    names = (folder / f"{run_id}.db{suffix}" for suffix in ("", "-wal", "-shm"))
    return [path for path in names if path.exists()]


def _empty(shard: Path) -> None:
    """Empty the file of a run whose row stays. The stock event log does not notice a missing file."""
    with _open(shard) as connection:
        connection.execute("DELETE FROM event_logs")
        connection.execute("VACUUM")


def _drop_backfills(history: sqlite3.Connection, before: datetime) -> None:
    """Drop finished backfills without runs."""
    with _transaction(history):
        history.execute(
            "DELETE FROM bulk_actions WHERE status NOT IN ('REQUESTED', 'CANCELING', 'FAILING') "
            "AND key NOT IN (SELECT backfill_id FROM runs WHERE backfill_id IS NOT NULL) "
            "AND timestamp < ?",
            [_moment(before)],
        )
        history.execute("DELETE FROM backfill_tags WHERE backfill_id NOT IN (SELECT key FROM bulk_actions)")


def _drop_snapshots(history: sqlite3.Connection) -> None:
    """Drop snapshots of jobs and plans that no run refers to, directly or through another snapshot."""
    with _transaction(history):
        there = {str(name) for (name,) in history.execute("SELECT snapshot_id FROM snapshots")}
        bodies = (str(body) for (body,) in history.execute("SELECT run_body FROM runs"))
        wanted = _names_in(bodies) & there
        found = set(wanted)
        while found:
            parents = _names_in(_snapshot_bodies(history, found)) & there
            found = parents - wanted
            wanted |= found
        history.executemany("DELETE FROM snapshots WHERE snapshot_id = ?", [(name,) for name in there - wanted])


def _names_in(texts: Iterable[str]) -> set[str]:
    return {name for text in texts for name in re.findall(r'_snapshot_id": "([0-9a-f]{40})"', text)}


def _snapshot_bodies(history: sqlite3.Connection, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        for (body,) in history.execute("SELECT snapshot_body FROM snapshots WHERE snapshot_id = ?", [name]):
            yield zlib.decompress(body).decode()


_OLD_TICKS = (
    "timestamp < ? AND status <> 'STARTED' AND id NOT IN "
    "(SELECT max(id) FROM job_ticks GROUP BY job_origin_id, selector_id)"
)
"""The newest tick of each schedule and sensor stays, because the daemon continues from it."""


def _moment(at: datetime) -> str:
    """Return a time as SQLAlchemy stores it."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


# --- space ---------------------------------------------------------------------------------------------------------


def _pack(events: sqlite3.Connection) -> None:
    """Pack events that were stored by versions without packing."""
    for table, column in PACKED_COLUMNS:
        after = 0
        while rows := events.execute(
            f"SELECT id, {column} FROM {table} WHERE id > ? AND typeof({column}) = 'text' ORDER BY id LIMIT ?",  # noqa: S608
            [after, _ROWS_AT_ONCE],
        ).fetchall():
            after = rows[-1][0]
            with _transaction(events):
                events.executemany(
                    # Only unchanged values: a planned check may have its result by now.
                    f"UPDATE {table} SET {column} = ? WHERE id = ? AND {column} = ?",  # noqa: S608
                    [(pack(text), row_id, text) for row_id, text in rows],
                )


def _give_back(files: dict[Path, sqlite3.Connection], history: sqlite3.Connection, run_id: str | None) -> str | None:
    """Cut free pages off the files. Return the reason if some cannot be cut yet."""
    waiting = None
    for path, connection in files.items():
        pages, free, mode = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "auto_vacuum")
        )
        if mode:
            for _ in range(-(-free // _PAGES_AT_ONCE)):
                connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")
        elif free > _WORTHWHILE * pages:
            waiting = _rewrite(path, connection, history, run_id) or waiting
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return waiting


def _rewrite(path: Path, connection: sqlite3.Connection, history: sqlite3.Connection, run_id: str | None) -> str | None:
    """Rewrite a file without its free pages, once. From then on it can free single pages.

    All other writers wait meanwhile, so it is postponed while runs are in progress.
    """
    (at_work,) = history.execute(
        f"SELECT count(*) FROM runs WHERE status NOT IN ({_FINISHED}) AND run_id IS NOT ?",  # noqa: S608
        [run_id],
    ).fetchone()
    if at_work:
        return f"{path.name} is rewritten by the next prune without a run in progress"
    if shutil.disk_usage(path.parent).free < 2 * path.stat().st_size:
        return f"the disk has no room to rewrite {path.name}"
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute("VACUUM")
    return None
