"""Locks between processes, on any file system.

The kernel releases a lock when its process ends. If the file system has no locks, a marker file replaces them. It names
its process, so that a marker of an ended process is ignored. A team of hosts also has each lock in PostgreSQL
(``team/session.py``). Rules for writers belong to ``lake/storage``.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from market_data_pipeline.team.current import current_team, team_name

logger = logging.getLogger(__name__)

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""Errors of `flock` on NFS without lockd, Lustre without `-o flock`, and some FUSE and SMB mounts."""

_reported: set[tuple[int, str]] = set()
"""File systems without a feature, and the texts that this process has already logged about them."""


@contextmanager
def held(lock: Path, wait_seconds: float = 0) -> Iterator[None]:
    """Lock a path for the duration of the block.

    Args:
        lock: The lock file. Its folder must exist.
        wait_seconds: How long to wait for another process.

    Raises:
        filelock.Timeout: Another process has the lock.
        OSError: The lock file cannot be created.
    """
    taken = _acquired(lock, wait_seconds)
    try:
        _sign(lock)
        yield
    finally:
        taken.release()


@contextmanager
def held_by_all(lock: Path) -> Iterator[None]:
    """Lock a path of the lake for the duration of the block: on this host, and for all hosts of a team.

    Raises:
        filelock.Timeout: Another process has the lock.
        OSError: The lock file cannot be created.
        EnvironmentFaultError: The team's PostgreSQL cannot be reached.
    """
    with held(lock):
        team = current_team()
        name = team_name(lock) if team is not None else None
        if team is None or name is None:
            yield
            return
        taken = team.take(name)
        if taken is None:
            raise Timeout(str(lock))
        try:
            yield
        finally:
            team.release(taken)


def fence(lock: Path) -> AbstractContextManager[None]:
    """Refuse to write if this process has lost the lock of a path to another host.

    Raises:
        SeriesBusyError: It has, when the block begins.
    """
    team = current_team()
    name = team_name(lock) if team is not None else None
    return nullcontext() if team is None or name is None else team.fenced(name)


def is_running(process: int) -> bool:
    """Return True if a process of this machine runs."""
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def holder(lock: Path) -> str:
    """Return the name of the process that has a lock, for messages."""
    team = current_team()
    name = team_name(lock) if team is not None else None
    if team is not None and name is not None:
        return team.holder(name)
    try:
        with lock.open("rb") as file:
            return f"process {int(file.read(20))}"
    except (OSError, ValueError):
        return "another process"


def _sign(lock: Path) -> None:
    # For the messages of waiting processes only, so errors are ignored.
    with suppress(OSError):
        handle = os.open(lock, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(handle, f"{os.getpid()}\n".encode())
        finally:
            os.close(handle)


def _acquired(lock: Path, wait_seconds: float) -> BaseFileLock:
    hard = FileLock(lock, fallback_to_soft=False)
    try:
        hard.acquire(timeout=wait_seconds)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warn_once(lock.parent, _NO_LOCKS_TEXT, error)
    else:
        return hard
    # A separate name: the lock file itself stays on disk after use, but an existing marker means locked.
    soft = SoftFileLock(f"{lock}.soft")
    soft.acquire(timeout=wait_seconds)
    return soft


_NO_LOCKS_TEXT = (
    "The file system of %s has no locks (%s). Marker files take their place: do not write to it from two machines at "
    "the same time."
)


def warn_once(folder: Path, text: str, error: OSError) -> None:
    """Log once per process that the file system of a folder does not have a feature.

    Args:
        text: Format of the message, with places for the folder and the error.
    """
    what = folder.stat().st_dev, text
    if what not in _reported:
        _reported.add(what)
        logger.warning(text, folder, os.strerror(error.errno or 0))
