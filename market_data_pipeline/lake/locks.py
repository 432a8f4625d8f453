"""Locks between processes, on file systems with locks and on those without.

The kernel releases a lock when its process ends, however it ends. Where the file system has no such locks, a marker
file takes their place. It names its process, so that a marker whose process is gone counts for nothing.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock

logger = logging.getLogger(__name__)

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""Errors of `flock` on NFS without lockd, Lustre without `-o flock`, and some FUSE and SMB mounts."""

_reported: set[int] = set()
"""File systems of which this process has reported that they have no locks."""


@contextmanager
def held(lock: Path, wait_seconds: float = 0) -> Iterator[None]:
    """Hold the lock at a path.

    Args:
        lock: The lock file. Its folder must exist.
        wait_seconds: How long to wait for another process.

    Raises:
        filelock.Timeout: another process holds it.
        OSError: the lock file cannot be made.
    """
    taken = _acquired(lock, wait_seconds)
    try:
        _sign(lock)
        yield
    finally:
        taken.release()


def holder(lock: Path) -> str:
    """Name the process that holds a lock, for messages."""
    try:
        with lock.open("rb") as file:
            return f"process {int(file.read(20))}"
    except (OSError, ValueError):
        return "another process"


def _sign(lock: Path) -> None:
    # Whoever waits can say for whom. It is no part of the lock, so that a fault is none.
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
        _report(lock, error)
    else:
        return hard
    # A name of its own: the lock file itself stays on the disk after use, and a marker that exists is a lock.
    soft = SoftFileLock(f"{lock}.soft")
    soft.acquire(timeout=wait_seconds)
    return soft


def _report(lock: Path, error: OSError) -> None:
    file_system = lock.parent.stat().st_dev
    if file_system not in _reported:
        _reported.add(file_system)
        logger.warning(
            "The file system of %s has no locks (%s). Marker files take their place: do not write to it from two "
            "machines at the same time.",
            lock.parent,
            os.strerror(error.errno or 0),
        )
