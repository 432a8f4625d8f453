"""All access to the lake's bytes. The path decides on the store. Its methods are those of :class:`ByteStore`.

File content belongs to ``lake/parquet.py``, paths to ``lake/layout.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import date
from io import BufferedReader
from pathlib import Path
from typing import Any

import pyarrow as pa

from market_data_pipeline.lake.storage.disk import TEMPORARY as TEMPORARY
from market_data_pipeline.lake.storage.disk import Disk
from market_data_pipeline.lake.storage.disk import temporary_folder as temporary_folder
from market_data_pipeline.lake.storage.protocol import ABSENT as ABSENT
from market_data_pipeline.lake.storage.protocol import DAYS as DAYS
from market_data_pipeline.lake.storage.protocol import MONTHS as MONTHS
from market_data_pipeline.lake.storage.protocol import ByteStore as ByteStore
from market_data_pipeline.lake.storage.protocol import Named as Named
from market_data_pipeline.model.day import FileStat
from market_data_pipeline.model.places import ObjectPath
from market_data_pipeline.model.waits import Stop

_DISK = Disk()


def store_of(path: Path) -> ByteStore:
    """Return the store that has a path."""
    if isinstance(path, ObjectPath):
        from market_data_pipeline.lake.storage.objects import objects_of

        return objects_of(path)
    return _DISK


def read(path: Path) -> tuple[bytes, FileStat]:
    """Read a file's bytes with the size and version of these bytes.

    Raises:
        OSError: The file is missing or not regular, or cannot be read.
    """
    return store_of(path).read(path)


def read_range(path: Path, start: int, length: int) -> bytes:
    """Read a part of a file; see :meth:`ByteStore.read_range`."""
    return store_of(path).read_range(path, start, length)


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading its footer or a few of its columns; see :meth:`ByteStore.open_file`."""
    return store_of(path).open_file(path)


def source(path: Path) -> Path | BufferedReader:
    """Return what Arrow reads a big file from: a path, or a file that the caller closes."""
    return store_of(path).source(path)


def address(path: Path) -> str | None:
    """Return where other programs find the bytes of a file now, below the lake; None if there is no such file."""
    return store_of(path).address(path)


def put(path: Path, data: bytes | pa.Buffer, *, if_match: FileStat | None = None, create: bool = False) -> FileStat:
    """Write a file atomically, and return its size and version; see :meth:`ByteStore.put`.

    Raises:
        StorageError: The write failed. The old bytes stay.
    """
    return store_of(path).put(path, data, if_match=if_match, create=create)


def restore(path: Path, data: bytes, stat: FileStat) -> FileStat:
    """Write a file as it was before, and return its version: the same as before, if the store can do that."""
    return store_of(path).restore(path, data, stat)


def head(path: Path) -> FileStat | None:
    """Return size and version of a file; None if there is no such file."""
    return store_of(path).head(path)


def modified_ns(path: Path) -> int | None:
    """Return the time of a file's last change, in nanoseconds since 1970; None if there is no such file."""
    return store_of(path).modified_ns(path)


def revision(path: Path) -> tuple[int, ...] | None:
    """Return numbers that change with a file, or with the names in a folder; None if it does not exist."""
    return store_of(path).revision(path)


def list_dates(folder: Path, form: Named = DAYS) -> dict[date, FileStat]:
    """Return the days, or months, with a file of their own, in order, with its size and version."""
    return store_of(folder).list_dates(folder, form)


def list_named(folder: Path, form: Named = DAYS) -> Iterator[date]:
    """Yield the days, or months, with a file of their own, in any order. It is faster than :func:`list_dates`."""
    return store_of(folder).list_named(folder, form)


def list_names(folder: Path) -> list[str]:
    """Return the names of the files and folders in a folder, in order. A missing folder has none."""
    return store_of(folder).list_names(folder)


def list_paths(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield the files below a folder that match a pattern of :meth:`pathlib.Path.glob`."""
    return store_of(folder).list_paths(folder, pattern)


def real(folder: Path) -> Path:
    """Return where a folder is, without links."""
    return store_of(folder).real(folder)


def links_below(folder: Path, depth: int) -> list[Path]:
    """Return the folders that are links: the folder itself, and those down to some levels below it."""
    return store_of(folder).links_below(folder, depth)


def remove(path: Path) -> None:
    """Remove a file. It may be missing.

    Raises:
        StorageError: The file cannot be removed.
    """
    store_of(path).remove(path)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all files, and its parent if that is empty then. Ignore what cannot be removed."""
    store_of(folder).remove_folder(folder)


def remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and those above it, up to the data folder, as far as they are empty."""
    store_of(folder).remove_empty(folder, root)


def set_aside(path: Path, suffix: str) -> None:
    """Rename a file that no reader can use, so that its name is free."""
    store_of(path).set_aside(path, suffix)


def remove_leftovers(folder: Path, of: str = "", *, older_than_seconds: float = 0) -> None:
    """Remove what killed writers left; see :meth:`ByteStore.remove_leftovers`."""
    store_of(folder).remove_leftovers(folder, of, older_than_seconds=older_than_seconds)


def only_writer(lock: Path, wait_seconds: float, what: str, stop: Stop | None = None) -> AbstractContextManager[Any]:
    """Become the only writer of a series for the duration of the block; see :meth:`ByteStore.only_writer`."""
    return store_of(lock).only_writer(lock, wait_seconds, what, stop)
