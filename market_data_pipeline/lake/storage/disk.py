"""The lake on disk: atomic replacement of files, listing of days, and the lock of a series' writer.

A file is written to a temporary name that no ``*.parquet`` pattern matches, flushed to disk and renamed. A killed
process leaves at most this temporary file, and the series' next writer removes it.
File content belongs to ``lake/parquet.py``.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from io import BufferedReader
from pathlib import Path
from shutil import rmtree
from stat import S_ISREG
from typing import IO

import pyarrow as pa
from filelock import Timeout

from market_data_pipeline.errors import SeriesBusyError, StorageError
from market_data_pipeline.lake import locks
from market_data_pipeline.lake.regular_files import open_regular, reading
from market_data_pipeline.lake.storage.protocol import DAYS, Named
from market_data_pipeline.model import faults
from market_data_pipeline.model.day import FileStat
from market_data_pipeline.model.waits import Stop, Wait, as_duration

TEMPORARY = ".tmp"

_RETRY_SECONDS = 0.05
"""Interval between attempts to take a lock."""


def replace_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> FileStat:
    """Let ``write`` fill a new file, then replace ``path`` with it atomically.

    Raises:
        StorageError: The disk is full or the folder is not writable. ``path`` is unchanged.
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
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(_storage_message(path, error)) from error
    return FileStat(found.st_size, found.st_mtime_ns)


def _new_file(path: Path) -> IO[bytes]:
    try:
        return path.open("xb")
    except FileNotFoundError:  # the folder usually exists, and checking it takes as long as opening the file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _storage_message(path: Path, error: OSError) -> str:
    return (
        f"{path} cannot be written ({error.strerror or error}). {faults.remedy(error)}. "
        "What was stored before is untouched."
    )


_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
"""Errors of `fsync` on file systems without it, such as some FUSE and SMB mounts."""


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk. A rename or link in it is durable only then. Some file systems cannot."""
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
    """Flush a file to disk if the file system supports it."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        locks.warn_once(folder, _NO_FLUSH_TEXT, error)


_NO_FLUSH_TEXT = (
    "The file system of %s cannot flush files (%s). A power cut may lose the files written last. Run "
    "`market-data verify --local` after one to find them."
)


def _entries(folder: Path, form: Named) -> Iterator[tuple[date, os.DirEntry[str]]]:
    """Yield the regular files of a folder that are named by date."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, _, suffix = entry.name.partition(".")
                if suffix != "parquet" or len(stem) != form.length:
                    continue
                with suppress(ValueError):
                    of = date.fromisoformat(form.as_date.format(stem))
                    if entry.is_file():
                        yield of, entry
    except (FileNotFoundError, NotADirectoryError):
        return


def _folders_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_dir()]
    except OSError:
        return []


@contextmanager
def temporary_folder(root: Path) -> Iterator[Path]:
    """Create a temporary folder below the data folder for the duration of the block. Remove those of killed processes.

    Raises:
        StorageError: The folder cannot be created.
    """
    place = root / "tmp"
    folder = place / f"{os.getpid()}-{secrets.token_hex(4)}"
    lock = folder.with_suffix(".lock")
    with ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            for other in place.glob("*.lock"):
                with suppress(Timeout), locks.held(other):
                    rmtree(other.with_suffix(""), ignore_errors=True)
                    other.unlink(missing_ok=True)
            stack.enter_context(locks.held(lock))
            folder.mkdir()
        except OSError as error:
            raise StorageError(_storage_message(folder, error)) from error
        stack.callback(lock.unlink, missing_ok=True)
        stack.callback(rmtree, folder, ignore_errors=True)
        yield folder


class Disk:
    """Files in a folder of this machine. Paths are those of the files."""

    @staticmethod
    def read(path: Path) -> tuple[bytes, FileStat]:
        """Read a file's bytes with size and modification time of that version, faster than ``Path.read_bytes``.

        Raises:
            OSError: The file is missing or not regular, or the system cannot read it.
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

    @staticmethod
    def read_range(path: Path, start: int, length: int) -> bytes:
        """Read a part of a file. It is shorter if the file ends before."""
        file = open_regular(path)
        try:
            return os.pread(file, length, start)
        finally:
            os.close(file)

    @staticmethod
    def open_file(path: Path) -> BufferedReader:
        """Open a file for reading its footer or a few of its columns."""
        return reading(path)

    @staticmethod
    def source(path: Path) -> Path:
        """Return what Arrow reads a file from: the path, which it opens itself."""
        return path

    @staticmethod
    def address(path: Path) -> str | None:
        """Return the path of a file, if it exists."""
        return str(path) if Disk.head(path) is not None else None

    @staticmethod
    def put(
        path: Path,
        data: bytes | pa.Buffer,
        *,
        if_match: FileStat | None = None,  # noqa: ARG004 - a lock excludes other writers
        create: bool = False,
    ) -> FileStat:
        """Write a file atomically."""
        if create and path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        return replace_atomically(path, lambda file: file.write(data))

    @staticmethod
    def restore(path: Path, data: bytes, stat: FileStat) -> FileStat:
        """Write a file as it was before, with its modification time."""
        Disk.put(path, data)
        os.utime(path, ns=(stat.version, stat.version))
        return stat

    @staticmethod
    def head(path: Path) -> FileStat | None:
        """Return size and modification time of a regular file; None if there is no such file."""
        try:
            found = os.stat(path)  # noqa: PTH116 - several times as fast as that of a Path
        except FileNotFoundError:
            return None
        if not S_ISREG(found.st_mode):
            return None
        return FileStat(found.st_size, found.st_mtime_ns)

    @staticmethod
    def modified_ns(path: Path) -> int | None:
        """Return the time of a file's last change, in nanoseconds since 1970; None if there is no such file."""
        found = Disk.head(path)
        return None if found is None else found.version  # the version of a file on disk is this time

    @staticmethod
    def revision(path: Path) -> tuple[int, ...] | None:
        """Return numbers that change with a file, or with the names in a folder; None if it does not exist."""
        try:
            found = os.stat(path)  # noqa: PTH116 - several times as fast as that of a Path
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns

    @staticmethod
    def list_dates(folder: Path, form: Named = DAYS) -> dict[date, FileStat]:
        """Return the days, or months, with a file of their own, in order, with its size and modification time."""
        found = {}
        for of, entry in _entries(folder, form):
            with suppress(FileNotFoundError):  # removed since it was listed
                info = entry.stat()
                found[of] = FileStat(info.st_size, info.st_mtime_ns)
        return dict(sorted(found.items()))

    @staticmethod
    def list_named(folder: Path, form: Named = DAYS) -> Iterator[date]:
        """Yield the days, or months, with a file of their own, in any order and without a stat of the files."""
        return (of for of, _ in _entries(folder, form))

    @staticmethod
    def list_names(folder: Path) -> list[str]:
        """Return the names of the files and folders in a folder, in order. A missing folder has none."""
        try:
            with os.scandir(folder) as entries:
                return sorted(entry.name for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return []

    @staticmethod
    def list_paths(folder: Path, pattern: str) -> Iterator[Path]:
        """Yield the files below a folder that match a pattern of :meth:`pathlib.Path.glob`."""
        return folder.glob(pattern)

    @staticmethod
    def real(folder: Path) -> Path:
        """Return where a folder is, without links."""
        return folder.resolve()

    @staticmethod
    def links_below(folder: Path, depth: int) -> list[Path]:
        """Return the folders that are links: the folder itself, and those down to some levels below it."""
        found, below = [], [folder]
        for _ in range(depth):
            found += [one for one in below if one.is_symlink()]
            below = [Path(entry) for one in below for entry in _folders_in(one)]
        return found

    @staticmethod
    def remove(path: Path) -> None:
        """Remove a file. It may be missing.

        Raises:
            StorageError: The file cannot be removed.
        """
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{path} cannot be removed ({error.strerror}). Nothing else was changed.") from error

    @staticmethod
    def remove_folder(folder: Path) -> None:
        """Remove a folder with all files, and its parent if that is empty then. Ignore what cannot be removed."""
        rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # the symbol has other intervals
            folder.parent.rmdir()

    @staticmethod
    def remove_empty(folder: Path, root: Path) -> None:
        """Remove a folder and those above it, up to the data folder, as far as they are empty."""
        while folder != root:
            with suppress(OSError):
                folder.rmdir()
            folder = folder.parent

    @staticmethod
    def set_aside(path: Path, suffix: str) -> None:
        """Rename a file that no reader can use, so that its name is free."""
        path.replace(path.with_name(path.name + suffix))

    @staticmethod
    def remove_leftovers(folder: Path, of: str = "", *, older_than_seconds: float = 0) -> None:
        """Remove temporary files of killed writers. The caller must have the series' lock.

        Args:
            of: Start of the file name, for a folder that other series write to as well.
            older_than_seconds: Minimum age. Use an hour, for example, if writers take no lock.
        """
        if folder.is_dir():
            for path in folder.glob(f".*{TEMPORARY}"):
                if path.name.startswith(f".{of}"):
                    with suppress(FileNotFoundError):  # another process has just removed it
                        if not older_than_seconds or time.time() - path.stat().st_mtime > older_than_seconds:
                            path.unlink()

    @staticmethod
    @contextmanager
    def only_writer(lock: Path, wait_seconds: float, what: str, stop: Stop | None = None) -> Iterator[None]:
        """Become the only writer of a series for the duration of the block. A killed process releases its lock.

        Args:
            wait_seconds: How long to wait for another writer.
            what: Name of the series, for the message.
            stop: Ends the wait early. Process shutdown ends it as well.

        Raises:
            SeriesBusyError: The other writer did not finish in time.
            StoppedError: The wait was ended.
            StorageError: The lock file cannot be created.
        """
        with ExitStack() as stack:
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                wait, ends = Wait(stop or Stop()), time.monotonic() + wait_seconds
                while True:
                    try:
                        stack.enter_context(locks.held_by_all(lock))
                        break
                    except Timeout:
                        if (left := ends - time.monotonic()) <= 0:
                            raise
                        who = locks.holder(lock)
                        text = f"Waiting for {who}, which writes {what}, for up to {as_duration(left)} more."
                        wait.sleep(min(left, _RETRY_SECONDS), text)
            except Timeout:
                raise SeriesBusyError(
                    f"{what} is being written by another run ({locks.holder(lock)}) and was not free within "
                    f"{wait_seconds:g} s. "
                    "Wait for that run to end and start again; nothing was lost."
                ) from None
            except OSError as error:
                raise StorageError(_storage_message(lock, error)) from error
            Disk.remove_leftovers(lock.parent, f"{lock.stem}.")
            yield
