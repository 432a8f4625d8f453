"""The weight that REST requests may cost: one budget for all processes of a machine, since Binance counts by address.

What was spent is on record in a SQLite file that all processes share, whatever share of the limit each may use; markets
that Binance counts together have one. Binance's own count (``X-MBX-USED-WEIGHT-1M``), which includes other programs
behind the same address, sets it right. Pauses (429) and bans (418) are on record, too, so that no process asks into
them. Nothing of it is believed that this machine's clock contradicts.
"""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from market_data_pipeline.errors import HostOffError
from market_data_pipeline.model import faults
from market_data_pipeline.model.waits import Stop, Wait, in_words
from market_data_pipeline.settings import PREFIX

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

LOOK_AGAIN_SECONDS = 0.5
"""How long a wait lasts before it looks whether there is still something to wait for."""

LONGEST_BAN_SECONDS = 3 * 86_400.0
"""Binance bans an address for at most three days."""

TOLERANCE_SECONDS = 60.0
"""How far in the future a time on record may lie: beyond, it was written while the clock was wrong, and is dropped."""

_MINUTE = 60.0
_NEARLY = 0.95
"""Part of the whole limit at which we wait for the next minute, whoever used it."""

_BUSY_SECONDS = 5.0
"""How long to wait for another process that writes the file."""

_FOLDER = "market-data-pipeline"

USED, PAUSE = "used", "pause until"
"""What is heard from a host: Binance's count of this minute's weight, and until when it wants no request."""

_TABLES = """
CREATE TABLE IF NOT EXISTS spent (at REAL, weight INTEGER);
CREATE TABLE IF NOT EXISTS heard (what TEXT PRIMARY KEY, at REAL, value REAL);
"""


# --- the folder ------------------------------------------------------------------------------------------------------


def shared_folder() -> Path:
    """Return the folder for the budgets of this machine's user, made private if it is new.

    It lies in the user's cache, which is the same for a shell, cron and a service; if that cannot be written, in the
    runtime directory, else below the temporary folder.

    Raises:
        HostOffError: no folder can be made, or the one that is there is not private.
    """
    for folder in _candidates():
        try:
            return private(folder)
        except OSError:
            continue
    raise HostOffError(
        "No folder for the REST budget can be made: neither the home folder nor the temporary one can be written. "
        f"Set {PREFIX}BUDGET_DIR to a folder of your own."
    )


def _candidates() -> Iterator[Path]:
    cache, runtime = (Path(os.environ.get(name) or "") for name in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR"))
    if cache.is_absolute():  # by its specification, others are ignored
        yield cache / _FOLDER
    with suppress(RuntimeError):  # neither HOME nor an entry in the list of users
        if (home := Path.home()) != Path("/") and home.is_absolute():
            yield home / ".cache" / _FOLDER
    if runtime.is_absolute():
        yield runtime / _FOLDER
    yield Path(tempfile.gettempdir()) / f"{_FOLDER}-budget-{os.getuid()}"


def private(folder: Path) -> Path:
    """Make a folder that only this user may enter, or make sure that an existing one is this user's alone to write.

    Raises:
        HostOffError: it is a link, somebody else's, or others may write to it.
        OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    wrong, remedy = "", f"remove it, or set {PREFIX}BUDGET_DIR to a folder of your own"
    if stat.S_ISLNK(found.st_mode):
        wrong = "is a link"
    elif not stat.S_ISDIR(found.st_mode):
        wrong = "is no folder"
    elif found.st_uid != os.geteuid():
        wrong = f"belongs to another user (uid {found.st_uid})"
    elif found.st_mode & 0o022:
        wrong, remedy = "may be written by others", f"`chmod 700 {folder}` makes it yours alone"
    if wrong:
        raise HostOffError(f"The folder of the REST budget, {folder}, {wrong}, so that it is not used; {remedy}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written")
    return folder


# --- the budget ------------------------------------------------------------------------------------------------------


class WeightBudget:
    """The budget of a host, or of hosts that Binance counts together.

    Args:
        host: Name of the host, or of the group.
        per_minute: Binance's limit for one address.
        share: Part of it that all processes together may have used when we take more.
        folder: Where the budget is kept, for all processes.
        stop: What ends its waits.
        patience: Longest pause on record that is waited for, in seconds.

    Raises:
        HostOffError: the folder is not private, or its files cannot be used.
    """

    def __init__(
        self,
        host: str,
        per_minute: int,
        share: float,
        folder: Path,
        stop: Stop | None = None,
        patience: float = math.inf,
    ) -> None:
        stem = re.sub(r"[^A-Za-z0-9.-]", "_", host)
        self._host = host
        self._limit = per_minute
        self.ours = max(1, int(per_minute * share))
        self._stop = stop or Stop()
        self._patience = patience
        try:
            self._folder = private(folder)
        except OSError as error:
            raise HostOffError(
                f"The folder of the REST budget, {folder}, cannot be used ({error.strerror or error}). "
                f"Set {PREFIX}BUDGET_DIR to a folder of your own."
            ) from error
        self._ban = self._folder / f"{stem}.banned-until"
        self._record = _Record(self._folder / f"{stem}.weight.sqlite")

    def acquire(self, weight: int, refuse: Callable[[], None] = lambda: None) -> None:
        """Wait until a request of this weight may be sent.

        Args:
            weight: Of the request.
            refuse: Called before and again and again while waiting; it raises where the request is not to be sent any
                more, so that nobody waits a minute for nothing.

        Raises:
            StoppedError: the run was interrupted meanwhile.
            HostOffError: the record cannot be written.
        """
        refuse()
        self._stop.check()
        wait = Wait(self._stop)
        while (left := self._take(min(weight, self.ours))) is not None:
            seconds, reason = left
            wait.sleep(min(seconds, LOOK_AGAIN_SECONDS), f"Waiting for REST of {self._host}: {reason}.", seconds)
            refuse()

    def _take(self, weight: int) -> tuple[float, str] | None:
        """Put weight on record as spent; where it may not be yet, return how many seconds to wait, and for what."""
        now = time.time()

        def take(record: sqlite3.Connection) -> tuple[float, str] | None:
            _drop_what_cannot_be(record, now, self._limit)
            if (pause := _heard(record, PAUSE) - now) > self._patience:
                raise HostOffError(
                    f"REST of {self._host} asked for a pause, of which {in_words(pause)} are left, and "
                    f"{PREFIX}REST_PAUSE_SECONDS is {self._patience:g}. Days from the archive go on."
                )
            if pause > 0:
                return pause, f"it asked for a pause, of which {in_words(pause)} are left"
            used, spent = _heard(record, USED), _spent(record)
            if used and used + weight > self._limit * _NEARLY:
                left = max(_MINUTE - now % _MINUTE, 0.001)
                return (
                    left,
                    f"{used:.0f} of its {self._limit} weight a minute are used, by whoever asks from this address",
                )
            if (left := _until_free(spent, self.ours - weight, now)) > 0:
                return left, (
                    f"{sum(one for _, one in spent)} of the {self.ours} weight that all your processes may use in a "
                    f"minute ({PREFIX}WEIGHT_SHARE) are used"
                )
            record.execute("INSERT INTO spent VALUES (?, ?)", (now, weight))
            return None

        return self._record.change(take)

    def observe(self, used: int) -> None:
        """Take over Binance's count of what this address has used in the present minute."""
        self._hear(USED, min(max(used, 0), 10 * self._limit))

    def pause(self, seconds: float) -> None:
        """Put on record that the host wants no request for some seconds; a longer pause on record stays."""
        self._hear(PAUSE, time.time() + _plausible(seconds))

    def _hear(self, what: str, value: float) -> None:
        now = time.time()

        def hear(record: sqlite3.Connection) -> None:
            _drop_what_cannot_be(record, now, self._limit)
            if value >= _heard(record, what):
                record.execute("INSERT OR REPLACE INTO heard VALUES (?, ?, ?)", (what, now, value))

        self._record.change(hear)

    def ban(self, seconds: float) -> None:
        """Put on record that the host has banned this address, for three days at most."""
        now = time.time()
        try:
            _replace(self._ban, f"{now + _plausible(seconds)} {now}")
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s). %s. The ban is known to this process only.",
                self._ban,
                error.strerror,
                faults.remedy(error),
            )

    def banned_until(self) -> datetime | None:
        """When the ban on record ends (UTC); None where there is none, or none that can be.

        A ban that ends more than three days from now, or was put on record in the future, is none: the clock was wrong.
        """
        try:
            if not stat.S_ISREG(self._ban.lstat().st_mode):
                return None
            with self._ban.open("rb") as file:
                words = file.read(100).decode("ascii").split()
            until, since = float(words[0]), float(words[-1]) if len(words) > 1 else -math.inf
        except (OSError, ValueError, IndexError):
            return None
        now = time.time()
        latest = now + LONGEST_BAN_SECONDS + TOLERANCE_SECONDS
        if not now < until <= latest or not since <= now + TOLERANCE_SECONDS:
            return None
        return datetime.fromtimestamp(min(until, now + LONGEST_BAN_SECONDS), UTC)

    def close(self) -> None:
        """Let go of the record."""
        self._record.close()


def _replace(path: Path, text: str) -> None:
    """Write a file in one step: other processes read the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _plausible(seconds: float) -> float:
    """A pause or ban as a host may ask for it: no number is a minute, and none is longer than three days."""
    return min(max(seconds, 0.0), LONGEST_BAN_SECONDS) if math.isfinite(seconds) else _MINUTE


def _drop_what_cannot_be(record: sqlite3.Connection, now: float, limit: int) -> None:
    """Remove what is over, what is no number, and what lies in the future: it was written under a wrong clock."""
    latest = now + TOLERANCE_SECONDS
    record.execute(
        "DELETE FROM spent WHERE typeof(at) NOT IN ('real', 'integer') OR NOT at BETWEEN ? AND ?"
        " OR typeof(weight) != 'integer' OR NOT weight BETWEEN 1 AND ?",
        (now - _MINUTE, latest, limit),
    )
    record.execute(
        "DELETE FROM heard WHERE typeof(at) NOT IN ('real', 'integer') OR typeof(value) NOT IN ('real', 'integer')"
        " OR NOT at BETWEEN ? AND ?"
        " OR (what = ? AND (CAST(at / 60 AS INTEGER) != ? OR value < 0))"
        " OR (what = ? AND NOT value BETWEEN at AND at + ?)",
        (now - LONGEST_BAN_SECONDS, latest, USED, int(now // _MINUTE), PAUSE, LONGEST_BAN_SECONDS),
    )


def _heard(record: sqlite3.Connection, what: str) -> float:
    row = record.execute("SELECT value FROM heard WHERE what = ?", (what,)).fetchone()
    return float(row[0]) if row else 0.0


def _spent(record: sqlite3.Connection) -> list[tuple[float, int]]:
    return record.execute("SELECT at, weight FROM spent ORDER BY at").fetchall()


def _until_free(spent: list[tuple[float, int]], room: int, now: float) -> float:
    """How many seconds until so much of what was spent is over that no more than ``room`` is left."""
    left, used = 0.0, sum(weight for _, weight in spent)
    for at, weight in spent:
        if used <= room:
            break
        used -= weight
        left = at + _MINUTE - now + 0.001
    return left


# --- the record on disk ----------------------------------------------------------------------------------------------


class _Record:
    """A SQLite file that processes share; one that is damaged, or was deleted, is made anew.

    Args:
        path: The file.

    Raises:
        HostOffError: the file is a link or somebody else's, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self.change(lambda _: None)

    def change(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Return what ``work`` returns, in a transaction of its own."""
        with self._lock:
            for attempt in range(3):
                try:
                    with self._transaction() as connection:
                        return work(connection)
                except sqlite3.OperationalError as error:
                    if not _is_damage(error):
                        raise self._unusable(error) from error
                    self._make_anew(error, attempt)
                except sqlite3.DatabaseError as error:
                    self._make_anew(error, attempt)
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
        # Only a new file is opened here: to close one drops the locks that SQLite has on it elsewhere in this process.
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        found = os.lstat(self._path)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(0, "it is no file of yours")
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection = connection
        # What a power cut loses is a minute of counting.
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

    def _make_anew(self, error: sqlite3.Error, attempt: int) -> None:
        if attempt == 2:
            raise self._unusable(error) from error
        self._drop()
        if attempt == 0:
            logger.warning("The REST budget's record %s was damaged (%s). It was made anew.", self._path, error)
        for path in (self._path, *(Path(f"{self._path}{end}") for end in ("-journal", "-wal", "-shm"))):
            path.unlink(missing_ok=True)

    def _unusable(self, error: Exception) -> HostOffError:
        said = getattr(error, "strerror", None) or str(error)
        return HostOffError(
            f"The REST budget's record, {self._path}, cannot be used ({said}), so that REST is not asked. "
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
    """Return True if the file is not what this module writes; False if the system refuses."""
    return error.sqlite_errorcode in (
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_SCHEMA,
    )
