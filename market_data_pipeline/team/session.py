"""A process's connection to the PostgreSQL of its team: locks that end with the process, and fences.

A lock is a session-level advisory lock and a row with a token. PostgreSQL frees the lock when the process is killed
(at once) or its host vanishes (after about 10 s). The next process that takes it raises the token, so a process that
woke up without its lock is refused at its next fence. PgBouncer in transaction mode has no such locks.
Choosing what to lock does not belong here.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from market_data_pipeline.errors import EnvironmentFaultError, SeriesBusyError, UsageError
from market_data_pipeline.model.waits import Stop, Wait
from market_data_pipeline.team.address import secrets_of, shown, with_limits

if TYPE_CHECKING:
    from psycopg2 import extensions

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

PATIENCE_SECONDS = 60.0
"""Longest wait for a PostgreSQL that restarts, is full, or cannot be reached."""

_LONGEST_PAUSE_SECONDS = 2.0
_WATCH_SECONDS = 3.0
"""Seconds between two looks at the locks of this process."""

_REGAIN_SECONDS = 15.0
"""Longest wait for PostgreSQL to notice that our earlier connection is gone. Its keepalives take 11 s."""

_CLOCK_SECONDS = 60.0
"""Age from which PostgreSQL's clock is read again."""

_TABLES = """
CREATE SCHEMA IF NOT EXISTS market_data;
CREATE TABLE IF NOT EXISTS market_data.locks (
    name text PRIMARY KEY, token bigint NOT NULL, holder text NOT NULL, taken_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS market_data.spent (host text NOT NULL, at double precision NOT NULL, weight int NOT NULL);
CREATE INDEX IF NOT EXISTS spent_of_host ON market_data.spent (host, at);
CREATE TABLE IF NOT EXISTS market_data.heard (
    host text NOT NULL, what text NOT NULL, at double precision NOT NULL, value double precision NOT NULL,
    PRIMARY KEY (host, what)
);
"""

_TAKE = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
_GIVE_BACK = "SELECT pg_advisory_unlock(hashtextextended(%s, 0))"
_RAISE = (
    "INSERT INTO market_data.locks AS stored (name, token, holder) VALUES (%s, 1, %s) "
    "ON CONFLICT (name) DO UPDATE SET token = stored.token + 1, holder = EXCLUDED.holder, taken_at = now() "
    "RETURNING token"
)


@dataclass
class TeamLock:
    """A lock that this process has taken.

    Attributes:
        name: Its name, equal on all hosts.
        token: Number of this possession. A later one has a higher number.
        lost: True if another process took it since, after this one was cut off.
    """

    name: str
    token: int
    on_lost: Callable[[], None] | None = None
    lost: bool = False
    unsure_since: float | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Facts about a PostgreSQL server.

    Attributes:
        version: Its version.
        used: Connections in use, by all programs.
        allowed: Its max_connections.
        size: Bytes of the database.
        keeps_sessions: False behind a pooler in transaction mode, where locks have no effect.
    """

    version: str
    used: int
    allowed: int
    size: int
    keeps_sessions: bool


class TeamSession:
    """One connection, shared by the threads of this process.

    Args:
        url: ``postgresql://user@host:port/database``.
        patience_seconds: Longest wait for an unreachable server.
    """

    def __init__(self, url: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        # The server closes a connection whose host vanished after 5 + 3 x 2 s, and so does the client.
        self._url = with_limits(
            url,
            connect_timeout=10,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=10000,
        )
        self._secrets = secrets_of(url)
        self._patience = patience_seconds
        self.name = shown(url)
        self._turn = threading.RLock()
        self._connection: extensions.connection | None = None
        self._held: dict[str, TeamLock] = {}
        self._watcher: threading.Thread | None = None
        self._clock: tuple[float, float] | None = None
        self._closed = threading.Event()
        self._process = os.getpid()

    # --- locks -----------------------------------------------------------------------------------------------------

    def take(self, name: str, on_lost: Callable[[], None] | None = None) -> TeamLock | None:
        """Take a lock. Return None if a process of any host, or another thread of this one, has it.

        Args:
            on_lost: Called from another thread if the lock is lost to another process.
        """

        def work(cursor: extensions.cursor) -> TeamLock | None:
            if name in self._held or not _one(cursor, _TAKE, name):
                return None
            try:
                token = int(_one(cursor, _RAISE, name, _this_process()))
            except BaseException:
                with suppress(Exception):
                    cursor.execute(_GIVE_BACK, (name,))
                raise
            self._held[name] = lock = TeamLock(name, token, on_lost)
            return lock

        lock = self._do(work)
        self._watch()
        return lock

    def release(self, lock: TeamLock, *, forget: bool = False) -> None:
        """Release a lock.

        Args:
            forget: Also delete its row. Only for names that are never taken again.
        """
        with self._turn:
            if self._held.get(lock.name) is lock:
                del self._held[lock.name]
            if lock.lost or self._connection is None:
                return  # it ended with its connection
            with suppress(Exception), self._connection.cursor() as cursor:
                if forget:
                    cursor.execute("DELETE FROM market_data.locks WHERE name = %s", (lock.name,))
                cursor.execute(_GIVE_BACK, (lock.name,))

    def holds(self, name: str) -> bool:
        """Return True if this process has a lock."""
        with self._turn:
            return name in self._held

    @contextmanager
    def fenced(self, name: str) -> Iterator[None]:
        """Write under a lock of this process: no other process can take it over before the block ends.

        Without the lock in this process, the block runs unfenced.

        Raises:
            SeriesBusyError: The lock was lost to another process, for example while this host was frozen.
        """
        with self._turn:
            lock = self._held.get(name)
            if lock is None:
                yield
                return
            self._do(lambda cursor: self._begin_fence(cursor, lock))
            try:
                yield
            finally:
                # Without the connection, its transaction has ended by itself.
                with suppress(Exception), self._open().cursor() as cursor:
                    cursor.execute("COMMIT")

    def _begin_fence(self, cursor: extensions.cursor, lock: TeamLock) -> None:
        cursor.execute("ROLLBACK")
        while lock.unsure_since is not None and not lock.lost:
            self._regain(cursor, lock)
            if lock.unsure_since is not None:
                time.sleep(0.2)
        cursor.execute("BEGIN")
        found = _one(cursor, "SELECT token FROM market_data.locks WHERE name = %s FOR UPDATE", lock.name)
        if lock.lost or found != lock.token:
            cursor.execute("ROLLBACK")
            self._lose(lock)
            raise SeriesBusyError(
                f"This process lost its lock of {lock.name} to another one, because it was cut off from PostgreSQL at "
                f"{self.name}. Nothing was written since. Start again: stored days are not fetched twice."
            )

    def is_free(self, name: str) -> bool:
        """Return True if a lock was taken before, and nobody has it now."""

        def work(cursor: extensions.cursor) -> bool:
            if name in self._held:
                return False
            return bool(
                _one(
                    cursor,
                    "SELECT EXISTS (SELECT FROM market_data.locks WHERE name = %s) "
                    "AND pg_try_advisory_xact_lock(hashtextextended(%s, 0))",
                    name,
                    name,
                )
            )

        return self._do(work)

    def is_held(self, name: str) -> bool:
        """Return True if a process of any host has a lock."""

        def work(cursor: extensions.cursor) -> bool:
            free = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))"
            return name in self._held or not _one(cursor, free, name)

        return self._do(work)

    def names(self, prefix: str) -> list[str]:
        """Return the names of locks that were taken and not forgotten, below a prefix."""

        def work(cursor: extensions.cursor) -> list[str]:
            cursor.execute("SELECT name FROM market_data.locks WHERE starts_with(name, %s) ORDER BY name", (prefix,))
            return [name for (name,) in cursor.fetchall()]

        return self._do(work)

    def holder(self, name: str) -> str:
        """Return the process that took a lock last, for messages."""
        found = self._do(lambda cursor: _one(cursor, "SELECT holder FROM market_data.locks WHERE name = %s", name))
        return str(found) if found else "another process"

    def up_seconds(self) -> float:
        """Return the seconds since PostgreSQL started. Locks of before are regained within a few."""
        return float(
            self._do(lambda c: _one(c, "SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())"))
        )

    def now(self) -> float:
        """Return the seconds since 1970 by PostgreSQL's clock, which all hosts share."""
        if self._clock is None or time.monotonic() - self._clock[0] > _CLOCK_SECONDS:
            found = float(self._do(lambda cursor: _one(cursor, "SELECT extract(epoch FROM clock_timestamp())")))
            self._clock = time.monotonic(), found
        return self._clock[1] + time.monotonic() - self._clock[0]

    def facts(self) -> ServerFacts:
        """Return facts about the server."""

        def work(cursor: extensions.cursor) -> ServerFacts:
            first, second = (_one(cursor, "SELECT pg_backend_pid()") for _ in range(2))
            cursor.execute(
                "SELECT current_setting('server_version'), (SELECT count(*) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend'), current_setting('max_connections')::int, "
                "pg_database_size(current_database())"
            )
            row: Any = cursor.fetchone()
            return ServerFacts(str(row[0]), int(row[1]), int(row[2]), int(row[3]), keeps_sessions=first == second)

        return self._do(work)

    # --- work ------------------------------------------------------------------------------------------------------

    def transaction(self, work: Callable[[extensions.cursor], _T]) -> _T:
        """Call with a cursor in a transaction of its own. It is repeated if the connection is lost before its end."""

        def whole(cursor: extensions.cursor) -> _T:
            cursor.execute("BEGIN")
            try:
                result = work(cursor)
            except BaseException:
                with suppress(Exception):
                    cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")
            return result

        return self._do(whole)

    def _do(self, work: Callable[[extensions.cursor], _T], stop: Stop | None = None) -> _T:
        """Call with a cursor. Repeat it on a new connection, for at most the session's patience."""
        driver = _driver()
        wait, ends, pause = Wait(stop or Stop()), time.monotonic() + self._patience, 0.1
        while True:
            try:
                with self._turn, self._open().cursor() as cursor:
                    return work(cursor)
            except (driver.OperationalError, driver.InterfaceError) as error:
                passing = is_passing(error)
                with self._turn:
                    if passing or self._connection is None or self._connection.closed:
                        self._drop()
                    else:  # the connection is good, and has the locks of this process
                        with suppress(Exception), self._connection.cursor() as cursor:
                            cursor.execute("ROLLBACK")
                if not passing or time.monotonic() >= ends:
                    raise EnvironmentFaultError(self._sentence(error)) from error
            except driver.Error as error:
                raise EnvironmentFaultError(self._sentence(error)) from error
            wait.sleep(pause, f"Waiting for PostgreSQL at {self.name}.")
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _open(self) -> extensions.connection:
        if self._process != os.getpid():  # a fork: the connection and its locks are the parent's
            _ABANDONED.append(self._connection)
            self._connection, self._held, self._watcher, self._process = None, {}, None, os.getpid()
        if self._connection is None or self._connection.closed:
            connection = _driver().connect(self._url, application_name="market-data locks")
            connection.autocommit = True
            with connection.cursor() as cursor:
                # Of the server's side of the connection: they end the locks of a host that vanished.
                cursor.execute(
                    "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; "
                    "SET tcp_user_timeout = 10000; SET lock_timeout = '30s'; SET TimeZone = 'UTC'; "
                    "SELECT to_regclass('market_data.heard')"
                )
                if cursor.fetchone() == (None,):
                    cursor.execute(
                        "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('market_data tables', 0)); "
                        f"{_TABLES} COMMIT"
                    )
                for lock in self._held.values():
                    self._regain(cursor, lock)
            self._connection = connection
        return self._connection

    def _regain(self, cursor: extensions.cursor, lock: TeamLock) -> None:
        """Take a lock again after the connection was lost, if no other process took it meanwhile."""
        token = _one(cursor, "SELECT token FROM market_data.locks WHERE name = %s", lock.name)
        if lock.lost or token != lock.token:
            self._lose(lock)
        elif _one(cursor, _TAKE, lock.name):
            lock.unsure_since = None
            if _one(cursor, "SELECT token FROM market_data.locks WHERE name = %s", lock.name) != lock.token:
                cursor.execute(_GIVE_BACK, (lock.name,))
                self._lose(lock)
        else:  # our earlier connection may still have it: PostgreSQL has not noticed its end yet
            lock.unsure_since = lock.unsure_since or time.monotonic()
            if time.monotonic() - lock.unsure_since > _REGAIN_SECONDS:
                self._lose(lock)

    def _lose(self, lock: TeamLock) -> None:
        if not lock.lost:
            lock.lost = True
            logger.warning("The lock of %s was lost to another process.", lock.name)
            if lock.on_lost is not None:
                lock.on_lost()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()

    # --- watching --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look at the connection from time to time, so that a lost one is replaced and its locks are regained."""
        with self._turn:
            if self._watcher is None or not self._watcher.is_alive():
                self._watcher = threading.Thread(target=self._watching, name="team-locks", daemon=True)
                self._watcher.start()

    def _watching(self) -> None:
        while not self._closed.wait(_WATCH_SECONDS):
            with self._turn:
                if not self._held:
                    continue
                try:
                    with self._open().cursor() as cursor:
                        cursor.execute("SELECT 1")
                        for lock in self._held.values():
                            if lock.unsure_since is not None and not lock.lost:
                                self._regain(cursor, lock)
                except Exception:  # noqa: BLE001 - the next look, or the next call, tries again
                    self._drop()

    def close(self) -> None:
        """Close the connection, which releases all locks."""
        self._closed.set()
        with self._turn:
            self._held.clear()
            if self._process == os.getpid() and self._connection is not None:
                with suppress(Exception), self._connection.cursor() as cursor:
                    cursor.execute("SELECT pg_advisory_unlock_all()")  # the server notices a closed connection later
                self._drop()

    def _sentence(self, error: Exception) -> str:
        text = str(error)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        found = re.search(r"(?:FATAL|ERROR|PANIC): *([^\n]*)", text)
        why = (found[1] if found else text.split("\n")[0]).strip().rstrip(".")
        remedy = next((remedy for words, remedy in _REMEDIES if re.search(words, why)), _CHECK_ADDRESS)
        return f"PostgreSQL at {self.name} cannot be used ({why}). {remedy}"


_ABANDONED: list[object] = []
"""Connections of a parent process. To close one here would end it for the parent."""

_CHECK_ADDRESS = "Check MARKET_DATA_POSTGRES, and that the server runs. Stored days are safe: start again afterwards."

_NO_ROOM = "It has no free connection: raise its max_connections, or run fewer workers. Stored days are safe."

_REMEDIES = (
    (r"too many|reserved|remaining connection", _NO_ROOM),
    (r"password|authentication|role .* does not exist", "Check the user and password in MARKET_DATA_POSTGRES."),
    (r"database .* does not exist", "Create the database, or correct its name in MARKET_DATA_POSTGRES."),
    (r"permission denied", "Grant the user the right to create schemas and tables in the database."),
    (r"read-only", "It is a read-only copy: use the address of its primary server."),
)


def is_passing(error: Exception) -> bool:
    """Return True if another attempt may succeed: a lost connection, a restart, too many connections."""
    state = getattr(error, "pgcode", None)
    if state:
        return str(state).startswith(("08", "57P", "40")) or state == "53300"
    fatal = re.search(r"FATAL: *([^\n]*)", str(error))
    if fatal is None:
        return True
    passing = r"starting up|shutting down|accepting connections|recovery|too many|reserved|remaining|terminat"
    return re.search(passing, fatal[1]) is not None


def _one(cursor: extensions.cursor, statement: str, *values: object) -> Any:
    cursor.execute(statement, values)
    row = cursor.fetchone()
    return row[0] if row else None


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _driver() -> Any:
    try:
        import psycopg2
    except ImportError:
        raise UsageError(
            'MARKET_DATA_POSTGRES needs the extra postgres. Install it: pip install "market-data-pipeline[postgres]"'
        ) from None
    return psycopg2
