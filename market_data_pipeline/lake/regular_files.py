"""Read regular files only. Reading a named pipe would block forever, and a device may have no end.

The module is small because the universe needs it without the rest of the lake. Writing belongs to ``storage.py``,
Parquet to ``parquet.py``.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading and return its descriptor. Follow links.

    Raises:
        OSError: The file is missing or not regular, or the system cannot open it.
    """
    # Without O_NONBLOCK, opening a named pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def reading(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: As :func:`open_regular`.
    """
    return os.fdopen(open_regular(path), "rb")


def read_regular(path: Path) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        OSError: As :func:`open_regular`.
    """
    with reading(path) as file:
        return file.read()
