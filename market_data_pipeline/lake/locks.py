"""Locks between processes, on any file system.

The kernel releases a lock when its process ends. If the file system has no locks, a marker file replaces them. It names
its process, so that a marker of an ended process is ignored. Rules for writers belong to ``lake/storage.py``.
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
"""File systems without locks that this process has already reported."""


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


def holder(lock: Path) -> str:
    """Return the name of the process that has a lock, for messages."""
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
        _report(lock, error)
    else:
        return hard
    # A separate name: the lock file itself stays on disk after use, but an existing marker means locked.
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
