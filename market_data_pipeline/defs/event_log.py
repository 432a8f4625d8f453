"""Dagster's SQLite event log with connections that are kept.

The stock class makes an engine and a connection for every event, so nothing is ever cached: a day with its two check
evaluations costs about 50 ms. Kept connections bring that to about 6 ms, with the same files, locks and schema; taking
the class out of ``dagster.yaml`` again loses nothing.

It leans on four private parts of ``dagster._core``: the lock that lets one thread at a time into a storage object, the
set of shards whose schema is made, the method that makes it, and the watcher that Postgres uses. dagster is pinned to
1.13, and the tests of this module go through all of them.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from dagster import StringSource
from dagster._core.storage.event_log import SqliteEventLogStorage, SqlPollingEventWatcher
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._serdes import ConfigurableClassData
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool, Pool, StaticPool

KEPT_SHARDS = 8
"""Files held open; a shard is one run, or the index of all runs, and takes three file handles."""


@dataclass(frozen=True, slots=True)
class _Identity:
    """Which file a connection is to, and of which process: neither may change under a connection."""

    process: int
    device: int
    inode: int


class KeptConnectionEventLogStorage(SqliteEventLogStorage):
    """The SQLite event log of Dagster, with up to :data:`KEPT_SHARDS` connections kept open.

    A power cut may lose the last commits (``synchronous=NORMAL``), a crash of the process none. What is lost is put on
    record again by the next run, since the lake's ledgers know what is held.

    In ``dagster.yaml`` it takes ``home``, the DAGSTER_HOME, and keeps its files where the stock class does by default.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._kept: OrderedDict[str, tuple[Engine, _Identity]] = OrderedDict()  # least recently used first
        self._of_parent: list[Engine] = []
        self._poller: SqlPollingEventWatcher | None = None
        super().__init__(base_dir=base_dir, inst_data=inst_data)

    @classmethod
    def config_type(cls) -> Any:
        """What ``dagster.yaml`` gives: ``home``, which may name an environment variable."""
        return {"home": StringSource}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Make the storage that ``dagster.yaml`` describes. The stock method would make the stock class."""
        return cls(base_dir=str(Path(config_value["home"]) / "history" / "runs"), inst_data=inst_data)

    # --- connections -----------------------------------------------------------------------------------------------

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock:
            engine = self._kept_engine(shard)
            if shard not in self._initialized_dbs:
                self._make_schema(shard)
            if engine is None:
                engine = self._open(shard, StaticPool)
                sa.event.listen(engine, "connect", _be_quick)
            try:
                with engine.begin() as connection:
                    yield connection
            except BaseException:
                # Whatever went wrong, the next event starts with a fresh connection, as it does in the stock class.
                engine.dispose()
                raise
            self._keep(shard, engine)

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
        self._initdb(once)
        once.dispose()
        self._initialized_dbs.add(shard)

    def _open(self, shard: str, pool: type[Pool]) -> Engine:
        return sa.create_engine(
            self.conn_string_for_shard(shard),
            poolclass=pool,
            # One thread at a time is let in, but not always the same one.
            connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
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
        """Stop watching and close all connections."""
        if self._poller is not None:
            self._poller.close()
            self._poller = None
        super().dispose()
        with self._db_lock:
            while self._kept:
                self._close(*self._kept.popitem()[1])


def _be_quick(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")
