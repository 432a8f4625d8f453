"""Reading files that must be regular ones: a named pipe would wait for ever, and a device may have no end.

Small, since reading the universe needs it and nothing else of the lake. Writing, and Parquet, belong in
``storage.py``.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading, and return its descriptor; links are followed.

    Raises:
        OSError: The file is not there or not regular, or the system refuses to open it.
    """
    # Without O_NONBLOCK, opening a named pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse_irregular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_irregular(found: os.stat_result, path: str | Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def reading(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: As :func:`open_regular`.
    """
    _refuse_irregular(path.stat(), path)
    return path.open("rb")


def read_regular(path: Path) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        OSError: As :func:`open_regular`.
    """
    with reading(path) as file:
        return file.read()
