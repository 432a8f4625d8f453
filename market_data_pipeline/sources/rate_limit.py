"""Weight budget of REST: one per host for all processes of a machine, because Binance counts per IP address.

Processes share a SQLite file of spent weight, Binance's own count (``X-MBX-USED-WEIGHT-1M``), pauses (429) and bans
(418). A team shares them in PostgreSQL, by public address. Records that contradict the clock are dropped. Sending
requests does not belong here (``http.py``).
"""

from __future__ import annotations

import logging
import math
import os
import re
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from market_data_pipeline.errors import HostOffError
from market_data_pipeline.model.waits import Stop, Wait, as_duration
from market_data_pipeline.settings import PREFIX, load_settings
from market_data_pipeline.team.current import current_team
from market_data_pipeline.team.session import TeamSession

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_LOOK_AGAIN_SECONDS = 0.5
"""Seconds between two checks of a wait's reason."""

LONGEST_BAN_SECONDS = 3 * 86_400.0
"""Longest ban of an address by Binance: three days."""

_TOLERANCE_SECONDS = 60.0
"""Recorded times further in the future were written under a wrong clock, and are dropped."""

_MINUTE = 60.0
_NEARLY = 0.95
"""Part of Binance's limit at which we wait for the next minute. Other programs' weight counts, too."""

_BUSY_SECONDS = 5.0
"""Seconds to wait for another process that writes the file."""

_FOLDER = "market-data-pipeline"

USED, PAUSE, BAN = "used", "pause until", "banned until"
"""Facts reported by a host: Binance's count of this minute's weight, and the end of a pause or of a ban."""

_TABLES = """
CREATE TABLE IF NOT EXISTS spent (at REAL, weight INTEGER);
CREATE TABLE IF NOT EXISTS heard (what TEXT PRIMARY KEY, at REAL, value REAL);
"""


# --- the folder ------------------------------------------------------------------------------------------------------


def shared_folder() -> Path:
    """Return the folder for the budgets of this user. Create it, private, if it is new.

    It is in the user's cache folder, which a shell, cron and a service share. If that is not writable, it is in the
    runtime folder, else in the temporary folder.

    Raises:
        HostOffError: No folder can be created, or the existing one is not private.
    """
    for folder in _candidates():
        try:
            return private(folder)
        except OSError:
            continue
    raise HostOffError(
        "Cannot create a folder for the REST budget: neither the home folder nor the temporary folder is writable. "
        f"Set {PREFIX}BUDGET_DIR to a folder of your own."
    )


def _candidates() -> Iterator[Path]:
    cache, runtime = (Path(os.environ.get(name) or "") for name in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR"))
    if cache.is_absolute():  # the XDG specification ignores relative paths
        yield cache / _FOLDER
    with suppress(RuntimeError):  # neither HOME nor an entry in the user database
        if (home := Path.home()) != Path("/") and home.is_absolute():
            yield home / ".cache" / _FOLDER
    if runtime.is_absolute():
        yield runtime / _FOLDER
    yield Path(tempfile.gettempdir()) / f"{_FOLDER}-budget-{os.getuid()}"


def private(folder: Path) -> Path:
    """Create a folder that only this user may enter, or check that only this user may write to an existing one.

    Raises:
        HostOffError: It is a link, belongs to another user, or others may write to it.
        OSError: It cannot be created.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    remove = f"Remove it, or set {PREFIX}BUDGET_DIR to a folder of your own"
    faults_of_it = (
        (stat.S_ISLNK(found.st_mode), "is a link", remove),
        (not stat.S_ISDIR(found.st_mode), "is not a folder", remove),
        (found.st_uid != os.geteuid(), f"belongs to another user (uid {found.st_uid})", remove),
        (bool(found.st_mode & 0o022), "is writable by others", f"Run `chmod 700 {folder}`"),
    )
    for is_so, wrong, remedy in faults_of_it:
        if is_so:
            raise HostOffError(f"The REST budget folder {folder} {wrong} and is not used. {remedy}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} is not writable")
    return folder


# --- the budget ------------------------------------------------------------------------------------------------------


class BudgetFacts(Protocol):
    """Facts of a host within a transaction."""

    def drop_implausible(self, now: float, limit: int, seconds: float) -> None:
        """Delete records that expired, are not numbers, or lie in the future (written under a wrong clock)."""

    def heard(self, what: str) -> float:
        """Return the value that the host reported last, or 0."""

    def hear(self, what: str, at: float, value: float) -> None:
        """Record what the host reported."""

    def spent(self) -> list[tuple[float, int]]:
        """Return the times and weights of requests, oldest first."""

    def spend(self, at: float, weight: int) -> None:
        """Record a request."""


class BudgetRecord(Protocol):
    """Record that processes share."""

    def now(self) -> float:
        """Return the seconds since 1970 by the clock that all processes of this record share."""

    def change(self, work: Callable[[BudgetFacts], _T]) -> _T:
        """Call ``work`` in its own transaction, and return its result."""

    def close(self) -> None:
        """Close the record."""


def budget_record(host: str, folder: Path | None) -> BudgetRecord:
    """Return the record of a host: in the team's PostgreSQL, or in a folder of this user (None: the usual one).

    Raises:
        HostOffError: The folder is not private, or its files are unusable.
    """
    team = current_team()
    if team is not None:
        return _TeamRecord(team, f"{load_settings().rest_address}/{host}")
    folder = folder or shared_folder()
    try:
        path = private(folder) / f"{re.sub(r'[^A-Za-z0-9.-]', '_', host)}.weight.sqlite"
    except OSError as error:
        raise HostOffError(
            f"The REST budget folder {folder} is unusable ({error.strerror or error}). "
            f"Set {PREFIX}BUDGET_DIR to a folder of your own."
        ) from error
    return _Record(path)


class WeightBudget:
    """Weight budget of a host, or of hosts that Binance counts together.

    Args:
        per_minute: Binance's weight limit per minute for one address.
        share: Part of the limit that all processes together may use.
        folder: Folder of the record on one machine. None means the usual one.
        patience: Longest recorded pause to wait for, in seconds.
        seconds: Length of the limit's span, if it is not a minute.

    Raises:
        HostOffError: The folder is not private, or its files are unusable.
    """

    def __init__(
        self,
        host: str,
        per_minute: int,
        share: float,
        folder: Path | None,
        stop: Stop | None = None,
        patience: float = math.inf,
        seconds: float = _MINUTE,
    ) -> None:
        self._host = host
        self._limit = per_minute
        self._seconds = seconds
        self.ours = max(1, int(per_minute * share))
        self._stop = stop or Stop()
        self._patience = patience
        self._record = budget_record(host, folder)

    def acquire(self, weight: int, refuse: Callable[[], None] = lambda: None) -> None:
        """Wait until a request of this weight may be sent.

        Args:
            refuse: Called at the start and repeatedly while waiting. It raises to cancel the request, so that no thread
                waits a minute in vain.

        Raises:
            StoppedError: The run was interrupted meanwhile.
            HostOffError: The budget file is not writable.
        """
        refuse()
        self._stop.check()
        wait = Wait(self._stop)
        while (left := self._take(min(weight, self.ours))) is not None:
            seconds, reason = left
            wait.sleep(min(seconds, _LOOK_AGAIN_SECONDS), f"Waiting for {self._host} (REST): {reason}.", seconds)
            refuse()

    def _take(self, weight: int) -> tuple[float, str] | None:
        """Record weight as spent, or return the seconds to wait and the reason."""
        now = self._record.now()

        def take(record: BudgetFacts) -> tuple[float, str] | None:
            record.drop_implausible(now, self._limit, self._seconds)
            if (pause := record.heard(PAUSE) - now) > self._patience:
                raise HostOffError(
                    f"{self._host} (REST) requested a pause with {as_duration(pause)} left, longer than "
                    f"{PREFIX}REST_PAUSE_SECONDS ({self._patience:g}). Days from the archive continue."
                )
            if pause > 0:
                return pause, f"it requested a pause, {as_duration(pause)} left"
            used = record.heard(USED)
            spent = record.spent()
            if used and used + weight > self._limit * _NEARLY:
                reason = f"this address used {used:.0f} of the {self._limit} weight per minute"
                return max(_MINUTE - now % _MINUTE, 0.001), reason
            if (left := _until_free(spent, self.ours - weight, now, self._seconds)) > 0:
                return left, (
                    f"your processes used {sum(one for _, one in spent)} of their {self.ours} {self._unit} "
                    f"({PREFIX}WEIGHT_SHARE)"
                )
            record.spend(now, weight)
            return None

        return self._record.change(take)

    @property
    def _unit(self) -> str:
        return "weight per minute" if self._seconds == _MINUTE else f"requests in {as_duration(self._seconds)}"

    def observe(self, used: int) -> None:
        """Record Binance's count of the weight that this address used in the current minute."""
        self._hear(USED, min(max(used, 0), 10 * self._limit))

    def pause(self, seconds: float) -> None:
        """Record that the host wants no request for some seconds. A longer recorded pause stays."""
        self._hear(PAUSE, self._record.now() + _plausible(seconds))

    def _hear(self, what: str, value: float) -> None:
        now = self._record.now()

        def hear(record: BudgetFacts) -> None:
            record.drop_implausible(now, self._limit, self._seconds)
            if value >= record.heard(what):
                record.hear(what, now, value)

        self._record.change(hear)

    def ban(self, seconds: float) -> None:
        """Record that the host banned this address, for at most three days."""
        self._hear(BAN, self._record.now() + _plausible(seconds))

    def banned_until(self) -> datetime | None:
        """Return the end of the recorded ban (UTC). None if there is no valid one.

        A ban that ends more than three days from now, or was recorded in the future, is ignored: the clock was wrong.
        """
        now = self._record.now()

        def ban(record: BudgetFacts) -> float:
            record.drop_implausible(now, self._limit, self._seconds)
            return record.heard(BAN)

        until = self._record.change(ban)
        return datetime.fromtimestamp(min(until, now + LONGEST_BAN_SECONDS), UTC) if until > now else None

    def close(self) -> None:
        """Close the record."""
        self._record.close()


def _plausible(seconds: float) -> float:
    """Return the seconds of a pause or ban, at most three days. A number that is not finite means a minute."""
    return min(max(seconds, 0.0), LONGEST_BAN_SECONDS) if math.isfinite(seconds) else _MINUTE


def _until_free(spent: list[tuple[float, int]], room: int, now: float, seconds: float) -> float:
    """Return the seconds until enough spent weight expires that at most ``room`` is left."""
    left, used = 0.0, sum(weight for _, weight in spent)
    for at, weight in spent:
        if used <= room:
            break
        used -= weight
        left = at + seconds - now + 0.001
    return left


# --- the record on disk ----------------------------------------------------------------------------------------------


class _FileFacts:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def drop_implausible(self, now: float, limit: int, seconds: float) -> None:
        latest = now + _TOLERANCE_SECONDS
        self._connection.execute(
            "DELETE FROM spent WHERE typeof(at) NOT IN ('real', 'integer') OR NOT at BETWEEN ? AND ?"
            " OR typeof(weight) != 'integer' OR NOT weight BETWEEN 1 AND ?",
            (now - seconds, latest, limit),
        )
        self._connection.execute(
            "DELETE FROM heard WHERE typeof(at) NOT IN ('real', 'integer') OR typeof(value) NOT IN ('real', 'integer')"
            " OR NOT at BETWEEN ? AND ?"
            " OR (what = ? AND (CAST(at / 60 AS INTEGER) != ? OR value < 0))"
            " OR (what IN (?, ?) AND NOT value BETWEEN at AND at + ?)",
            (now - LONGEST_BAN_SECONDS, latest, USED, int(now // _MINUTE), PAUSE, BAN, LONGEST_BAN_SECONDS),
        )

    def heard(self, what: str) -> float:
        row = self._connection.execute("SELECT value FROM heard WHERE what = ?", (what,)).fetchone()
        return float(row[0]) if row else 0.0

    def hear(self, what: str, at: float, value: float) -> None:
        self._connection.execute("INSERT OR REPLACE INTO heard VALUES (?, ?, ?)", (what, at, value))

    def spent(self) -> list[tuple[float, int]]:
        return self._connection.execute("SELECT at, weight FROM spent ORDER BY at").fetchall()

    def spend(self, at: float, weight: int) -> None:
        self._connection.execute("INSERT INTO spent VALUES (?, ?)", (at, weight))


class _Record:
    """SQLite file that processes share. A damaged or deleted one is recreated.

    Raises:
        HostOffError: The file is a link, belongs to another user, or is not writable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self.change(lambda _: None)

    def now(self) -> float:
        return time.time()

    def change(self, work: Callable[[BudgetFacts], _T]) -> _T:
        with self._lock:
            for attempt in range(3):
                try:
                    with self._transaction() as connection:
                        return work(_FileFacts(connection))
                except sqlite3.OperationalError as error:
                    if not _is_damage(error):
                        raise self._unusable(error) from error
                    self._recreate(error, attempt)
                except sqlite3.DatabaseError as error:
                    self._recreate(error, attempt)
                except OSError as error:
                    raise self._unusable(error) from error
        raise AssertionError("the last attempt returns or raises")  # pragma: no cover

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._opened == self._there():
            return self._connection
        self._drop()
        # Open only a new file here: closing a file drops the locks that SQLite has on it elsewhere in this process.
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        found = os.lstat(self._path)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(0, "it is not a file of yours")
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection = connection
        # A power cut loses a minute of counting.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = TRUNCATE").close()
        connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
        self._opened = (found.st_dev, found.st_ino)
        return connection

    def _there(self) -> tuple[int, int] | None:
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _recreate(self, error: sqlite3.Error, attempt: int) -> None:
        if attempt == 2:
            raise self._unusable(error) from error
        self._drop()
        if attempt == 0:
            logger.warning("The REST budget file %s was damaged (%s). It was recreated.", self._path, error)
        for path in (self._path, *(Path(f"{self._path}{end}") for end in ("-journal", "-wal", "-shm"))):
            path.unlink(missing_ok=True)

    def _unusable(self, error: Exception) -> HostOffError:
        why = getattr(error, "strerror", None) or str(error)
        return HostOffError(
            f"The REST budget file {self._path} is unusable ({why}), so no REST request is sent. "
            f"Remove it, or set {PREFIX}BUDGET_DIR to a folder of your own."
        )

    def _drop(self) -> None:
        connection, self._connection, self._opened = self._connection, None, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def close(self) -> None:
        with self._lock:
            self._drop()


def _is_damage(error: sqlite3.OperationalError) -> bool:
    """Return True if this module did not write the content. Return False if the system refuses access."""
    return error.sqlite_errorcode in (
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_SCHEMA,
    )


# --- the record of a team --------------------------------------------------------------------------------------------


class _TeamFacts:
    def __init__(self, cursor: Any, host: str) -> None:
        self._cursor, self._host = cursor, host

    def drop_implausible(self, now: float, limit: int, seconds: float) -> None:  # noqa: ARG002 - only we write numbers
        latest = now + _TOLERANCE_SECONDS
        self._cursor.execute(
            "DELETE FROM market_data.spent WHERE host = %s AND NOT at BETWEEN %s AND %s",
            (self._host, now - seconds, latest),
        )
        self._cursor.execute(
            "DELETE FROM market_data.heard WHERE host = %s AND (NOT at BETWEEN %s AND %s"
            " OR (what = %s AND floor(at / 60) <> %s) OR (what IN (%s, %s) AND NOT value BETWEEN at AND at + %s))",
            (self._host, now - LONGEST_BAN_SECONDS, latest, USED, now // _MINUTE, PAUSE, BAN, LONGEST_BAN_SECONDS),
        )

    def heard(self, what: str) -> float:
        self._cursor.execute("SELECT value FROM market_data.heard WHERE host = %s AND what = %s", (self._host, what))
        row = self._cursor.fetchone()
        return float(row[0]) if row else 0.0

    def hear(self, what: str, at: float, value: float) -> None:
        self._cursor.execute(
            "INSERT INTO market_data.heard (host, what, at, value) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (host, what) DO UPDATE SET at = EXCLUDED.at, value = EXCLUDED.value",
            (self._host, what, at, value),
        )

    def spent(self) -> list[tuple[float, int]]:
        self._cursor.execute("SELECT at, weight FROM market_data.spent WHERE host = %s ORDER BY at", (self._host,))
        return [(float(at), int(weight)) for at, weight in self._cursor.fetchall()]

    def spend(self, at: float, weight: int) -> None:
        self._cursor.execute("INSERT INTO market_data.spent VALUES (%s, %s, %s)", (self._host, at, weight))


class _TeamRecord:
    """Tables in the team's PostgreSQL, by PostgreSQL's clock: the clocks of hosts differ by seconds."""

    def __init__(self, team: TeamSession, host: str) -> None:
        self._team, self._host = team, host

    def now(self) -> float:
        return self._team.now()

    def change(self, work: Callable[[BudgetFacts], _T]) -> _T:
        def alone(cursor: Any) -> _T:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"budget/{self._host}",))
            return work(_TeamFacts(cursor, self._host))

        return self._team.transaction(alone)

    def close(self) -> None:
        """Leave the connection open: the process's locks need it."""
