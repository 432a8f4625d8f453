"""Explain failures of the machine: files, disks, databases, memory.

Faults of the data do not belong here.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

from market_data_pipeline.errors import EnvironmentFaultError, MarketDataError

_DATABASES = ("sqlite3", "sqlalchemy", "alembic")
"""Packages whose errors come from a database. Compared by name, because importing them is slow."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn a failure of the machine into a message with its remedy.

    Raises:
        EnvironmentFaultError: Replaces an error that :func:`sentence` knows.
    """
    try:
        yield
    except MarketDataError:
        raise
    except Exception as error:
        text = sentence(error)
        if text is None:
            raise
        raise EnvironmentFaultError(text) from error


def sentence(error: BaseException) -> str | None:
    """Return the message and remedy of an error. None means that the machine did not cause it.

    >>> sentence(PermissionError(13, "Permission denied", "/data/ledger"))
    '/data/ledger cannot be used (Permission denied). Check who may read and write it.'
    >>> sentence(ValueError("a bug")) is None
    True
    """
    for one in chain(error):
        if isinstance(one, MarketDataError):
            return str(one)
        if is_of_database(one):
            return f"A database cannot be used ({reason(one)}). {_database_remedy(str(one))}"
        if isinstance(one, FileNotFoundError) and one.filename is None:
            return "The current folder no longer exists. Change to another one and start again."
        if isinstance(one, OSError) and one.errno not in (None, errno.EPIPE):
            what = one.filename if one.filename is not None else "A file or connection"
            return f"{_text(what)} cannot be used ({one.strerror}). {remedy(one)}."
        if isinstance(one, UnicodeDecodeError):
            return f"A file is not text in UTF-8 ({one}). Save it in that encoding."
        if isinstance(one, ImportError) and str(one.path).endswith(".so"):
            return f"A library cannot be loaded ({one}). Reinstall the package, or give it more memory."
        if isinstance(one, MemoryError):
            return "The memory is used up. Request fewer days or columns, or lower MARKET_DATA_MEMORY_MB."
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, the outermost first."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__


def is_of_database(error: BaseException) -> bool:
    """Return True if an error comes from a database or its driver."""
    return any(kind.__module__.partition(".")[0] in _DATABASES for kind in type(error).__mro__)


def reason(error: BaseException) -> str:
    """Return the database's own message, without the text of the libraries around it."""
    return str(getattr(error, "orig", None) or error).splitlines()[0].rstrip(".")


def _database_remedy(text: str) -> str:
    if "disk is full" in text:
        return "Free some space and start again."
    if "readonly" in text or "unable to open" in text:
        return "Check that its folder can be written to."
    if "locked" in text:
        return "Another process is writing to it. Start again when that process has ended."
    return "Its file is damaged, or another version wrote it."


_REMEDIES = {
    "The disk is full: free some space and start again": (errno.ENOSPC, errno.EDQUOT),
    "It is on a read-only file system: mount that writable, or use another folder": (errno.EROFS,),
    "The disk or network folder has a fault: check it and start again": (
        errno.EIO,
        errno.ESTALE,
        errno.ENODEV,
        errno.ENXIO,
    ),
    "Raise the limit of open files (`ulimit -n`) and start again": (errno.EMFILE, errno.ENFILE),
    "Choose a data folder with a shorter path": (errno.ENAMETOOLONG,),
    "It does not exist: check its name": (errno.ENOENT,),
    "Another kind of file has its name: move that file away": (
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.EEXIST,
    ),
    "Another program uses the port: end that program, or choose another port": (errno.EADDRINUSE,),
    "The memory is used up: end other programs, or lower MARKET_DATA_MEMORY_MB": (errno.ENOMEM,),
}


def remedy(error: OSError) -> str:
    """Return the remedy for an error of a file or folder, as a sentence without a full stop."""
    return next(
        (text for text, numbers in _REMEDIES.items() if error.errno in numbers), "Check who may read and write it"
    )


def _text(path: str | bytes | int | PathLike[str]) -> str:
    return path.decode(errors="replace") if isinstance(path, bytes) else str(path)
