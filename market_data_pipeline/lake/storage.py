"""Storage of the lake: atomic replacement of files, listing of days, and the lock of a series' writer.

A file is written beside its final place under a name that no ``*.parquet`` pattern picks up, flushed to the disk,
and renamed. A killed process leaves at most such a temporary file, which the series' next writer removes.
What is inside of a file belongs to ``lake/parquet.py``.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from pathlib import Path
from shutil import rmtree
from stat import S_ISREG
from typing import IO

import pyarrow as pa
from filelock import Timeout

from market_data_pipeline.errors import SeriesBusyError, StorageError
from market_data_pipeline.lake import locks
from market_data_pipeline.lake.regular_files import open_regular
from market_data_pipeline.model import faults
from market_data_pipeline.model.day import FileStat
from market_data_pipeline.model.waits import Stop, Wait, in_words

logger = logging.getLogger(__name__)

TEMPORARY = ".tmp"

_LOOK_AGAIN_SECONDS = 0.05
"""How often a lock that another process holds is tried again."""


def stat(path: Path) -> FileStat | None:
    """Size and modification time of a file, None where there is none, or something else than a regular file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if not S_ISREG(found.st_mode):
        return None
    return FileStat(found.st_size, found.st_mtime_ns)


def replace_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> FileStat:
    """Let ``write`` fill a new file and put it in the place of ``path`` in one step.

    Raises:
        StorageError: the disk is full or the folder is not writable; ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    try:
        try:
            with _new_file(temporary) as file:
                write(file)
                file.flush()
                _flush(file.fileno(), path.parent)
                found = os.fstat(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(_storage_message(path, error)) from error
    return FileStat(found.st_size, found.st_mtime_ns)


def _new_file(path: Path) -> IO[bytes]:
    try:
        return path.open("xb")
    except FileNotFoundError:  # as a rule the folder is there, and to make sure of it takes as long as to open the file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def remove(path: Path) -> None:
    """Remove a file, which may be gone already.

    Raises:
        StorageError: the system refuses.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be removed ({error.strerror}). Nothing else was changed.") from error


def _storage_message(path: Path, error: OSError) -> str:
    return (
        f"{path} cannot be written ({error.strerror or error}). {faults.remedy(error)}. "
        "What was stored before is untouched."
    )


_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
"""Errors of `fsync` on file systems that do not have it, such as some FUSE and SMB mounts."""

_reported: set[int] = set()
"""File systems of which this process has reported that they cannot flush files."""


def _sync_folder(folder: Path) -> None:
    # The rename is durable only when the folder is. Some file systems do not let anybody open or sync a folder.
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {*_NO_SYNC, errno.EPERM, errno.EACCES, errno.EISDIR}:
            raise
    finally:
        os.close(handle)


def _flush(handle: int, folder: Path) -> None:
    """Flush a file to the disk, as far as the file system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        if (file_system := os.fstat(handle).st_dev) not in _reported:
            _reported.add(file_system)
            logger.warning(
                "The file system of %s cannot flush files (%s). A power cut may lose the files written last: after "
                "one, `market-data verify --local` finds them.",
                folder,
                error.strerror,
            )


def write_bytes(path: Path, data: bytes | pa.Buffer) -> FileStat:
    """Write a file whole, atomically."""
    return replace_atomically(path, lambda file: file.write(data))


def read_bytes(path: str) -> tuple[bytes, FileStat]:
    """A file's bytes, and the size and time of the version that they are of; in half of the time of a ``Path``.

    Raises:
        OSError: the file is not there, or the system refuses to read it.
    """
    file = open_regular(path)
    try:
        found = os.fstat(file)
        data = os.read(file, found.st_size)
        while len(data) < found.st_size and (more := os.read(file, found.st_size - len(data))):
            data += more
    finally:
        os.close(file)
    return data, FileStat(found.st_size, found.st_mtime_ns)


_DAY, _MONTH = ("{}", len("2024-01-01")), ("{}-01", len("2024-01"))
"""How the names of days and of closed months are read as dates, and how long they are."""


def days_on_disk(folder: Path) -> dict[date, FileStat]:
    """The days of a series that have a file of their own, with what tells its version apart; in order."""
    return _with_stat(folder, *_DAY)


def days_named(folder: Path) -> list[date]:
    """The days of a series that have a file of their own, in order, without a look at the files themselves."""
    return sorted(day for day, _ in _named(folder, *_DAY))


def has_days(folder: Path) -> bool:
    """Whether a series has a day with a file of its own."""
    return any(_named(folder, *_DAY))


def months_on_disk(folder: Path) -> dict[date, FileStat]:
    """The closed months of a series, by their first day, with what tells the file's version apart; in order."""
    return _with_stat(folder, *_MONTH)


def months_named(folder: Path) -> list[date]:
    """The closed months of a series, by their first day, in order, without a look at the files themselves."""
    return sorted(month for month, _ in _named(folder, *_MONTH))


def _with_stat(folder: Path, as_date: str, length: int) -> dict[date, FileStat]:
    found = {}
    for of, entry in _named(folder, as_date, length):
        with suppress(FileNotFoundError):  # removed since it was listed
            info = entry.stat()
            found[of] = FileStat(info.st_size, info.st_mtime_ns)
    return dict(sorted(found.items()))


def _named(folder: Path, as_date: str, length: int) -> Iterator[tuple[date, os.DirEntry[str]]]:
    """The regular files of a folder whose names are dates."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, _, suffix = entry.name.partition(".")
                if suffix != "parquet" or len(stem) != length:
                    continue
                try:
                    of = date.fromisoformat(as_date.format(stem))
                except ValueError:
                    continue
                if entry.is_file():
                    yield of, entry
    except (FileNotFoundError, NotADirectoryError):
        return


def remove_leftovers(folder: Path, of: str = "", *, older_than_seconds: float = 0) -> None:
    """Remove temporary files that killed writers left. Only the holder of the series' lock may call this.

    Args:
        folder: Where to look.
        of: Name of the one file whose leftovers are meant, in a folder that other series write to as well.
        older_than_seconds: The least age. An hour, say, where writers take no lock.
    """
    if folder.is_dir():
        for path in folder.glob(f".*{TEMPORARY}"):
            if path.name.startswith(f".{of}"):
                with suppress(FileNotFoundError):  # another has just removed it
                    if not older_than_seconds or time.time() - path.stat().st_mtime > older_than_seconds:
                        path.unlink()


@contextmanager
def only_writer(lock: Path, wait_seconds: float, what: str, stop: Stop | None = None) -> Iterator[None]:
    """Be the only writer of a series; a killed process lets go by itself.

    Args:
        lock: The lock file.
        wait_seconds: How long to wait for another writer.
        what: Name of the series, for the message.
        stop: What ends the wait; the end of the process does so, too.

    Raises:
        SeriesBusyError: the other writer did not finish in time.
        StoppedError: the wait was ended.
        StorageError: the lock file cannot be made.
    """
    with ExitStack() as held:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            wait, ends = Wait(stop or Stop()), time.monotonic() + wait_seconds
            while True:
                try:
                    held.enter_context(locks.held(lock))
                    break
                except Timeout:
                    if (left := ends - time.monotonic()) <= 0:
                        raise
                    told = f"Waiting for {locks.holder(lock)}, which writes {what}, for up to {in_words(left)} more."
                    wait.sleep(min(left, _LOOK_AGAIN_SECONDS), told)
        except Timeout:
            raise SeriesBusyError(
                f"{what} is being written by another run ({locks.holder(lock)}) and was not free within "
                f"{wait_seconds:g} s. "
                "Wait for that run to end and start again; nothing was lost."
            ) from None
        except OSError as error:
            raise StorageError(_storage_message(lock, error)) from error
        remove_leftovers(lock.parent, f"{lock.stem}.")
        yield


@contextmanager
def temporary_folder(root: Path) -> Iterator[Path]:
    """Make a folder below the data folder for the time of a work. Those of killed processes are removed first.

    Raises:
        StorageError: the folder cannot be made.
    """
    place = root / "tmp"
    folder = place / f"{os.getpid()}-{secrets.token_hex(4)}"
    lock = folder.with_suffix(".lock")
    with ExitStack() as held:
        try:
            place.mkdir(parents=True, exist_ok=True)
            for other in place.glob("*.lock"):
                with suppress(Timeout), locks.held(other):
                    rmtree(other.with_suffix(""), ignore_errors=True)
                    other.unlink(missing_ok=True)
            held.enter_context(locks.held(lock))
            folder.mkdir()
        except OSError as error:
            raise StorageError(_storage_message(folder, error)) from error
        held.callback(lock.unlink, missing_ok=True)
        held.callback(rmtree, folder, ignore_errors=True)
        yield folder
