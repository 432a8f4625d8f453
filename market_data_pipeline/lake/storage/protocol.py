"""Protocol of the stores of the lake's bytes. The store on disk is ``disk.py``.

Paths are the lake's own names: those of ``lake/layout.py``. A store may write a name's bytes under another name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import date
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from market_data_pipeline.model.day import FileStat
from market_data_pipeline.model.waits import Stop


class Named(NamedTuple):
    """Form of the names of files: a format that makes a date of a name, and the length of a name."""

    as_date: str
    length: int


DAYS, MONTHS = Named("{}", len("2024-01-01")), Named("{}-01", len("2024-01"))
"""Names of the files of days and of closed months. A month is its first day."""


_VERSIONED = re.compile(r"\d{4}-\d\d(-\d\d)?-[0-9a-f]{11}-[0-9a-f]{12}\.parquet")


def is_version(path: Path) -> bool:
    """Return True if a path is that of one version of a day or month in a bucket."""
    return _VERSIONED.fullmatch(path.name) is not None


ABSENT = FileStat(-1, -1)
"""Version to replace by :meth:`ByteStore.put` if there must be no file."""


class ByteStore(Protocol):
    """Bytes under names. Every change is atomic: a reader sees the old bytes or the new ones."""

    def read(self, path: Path) -> tuple[bytes, FileStat]:
        """Read a file's bytes with the size and version of these bytes.

        Raises:
            OSError: The file is missing or not regular, or cannot be read.
        """

    def read_range(self, path: Path, start: int, length: int) -> bytes:
        """Read a part of a file. It is shorter if the file ends before.

        Raises:
            OSError: As :meth:`read`.
        """

    def open_file(self, path: Path) -> BufferedReader:
        """Open a file for reading its footer or a few of its columns.

        Raises:
            OSError: As :meth:`read`.
        """

    def source(self, path: Path) -> Path | BufferedReader:
        """Return what Arrow reads a big file from: a path, or a file that the caller closes."""

    def address(self, path: Path) -> str | None:
        """Return where other programs find the bytes of a file now, below the lake; None if there is no such file."""

    def put(
        self, path: Path, data: bytes | pa.Buffer, *, if_match: FileStat | None = None, create: bool = False
    ) -> FileStat:
        """Write a file, and return its size and version.

        Args:
            if_match: The version to replace. A write over another one is refused, unless a lock excludes other writers.
            create: Refuse to replace a file.

        Raises:
            FileExistsError: There is a file, and ``create`` is true.
            StorageError: The write failed or was refused. The old bytes stay.
        """

    def restore(self, path: Path, data: bytes, stat: FileStat) -> FileStat:
        """Write a file as it was before, and return its version: the same as before, if the store can do that."""

    def head(self, path: Path) -> FileStat | None:
        """Return size and version of a file; None if there is no such file."""

    def modified_ns(self, path: Path) -> int | None:
        """Return the time of a file's last change, in nanoseconds since 1970; None if there is no such file."""

    def revision(self, path: Path) -> tuple[int, ...] | None:
        """Return numbers that change with a file, or with the names in a folder; None if it does not exist."""

    def list_dates(self, folder: Path, form: Named = DAYS) -> dict[date, FileStat]:
        """Return the days, or months, with a file of their own, in order, with its size and version."""

    def list_named(self, folder: Path, form: Named = DAYS) -> Iterator[date]:
        """Yield the days, or months, with a file of their own, in any order. It is faster than their versions."""

    def list_names(self, folder: Path) -> list[str]:
        """Return the names of the files and folders in a folder, in order. A missing folder has none."""

    def list_paths(self, folder: Path, pattern: str) -> Iterator[Path]:
        """Yield the files below a folder that match a pattern of :meth:`pathlib.Path.glob`."""

    def real(self, folder: Path) -> Path:
        """Return where a folder is, without links."""

    def links_below(self, folder: Path, depth: int) -> list[Path]:
        """Return the folders that are links: the folder itself, and those down to some levels below it."""

    def remove(self, path: Path) -> None:
        """Remove a file. It may be missing.

        Raises:
            StorageError: The file cannot be removed.
        """

    def remove_folder(self, folder: Path) -> None:
        """Remove a folder with all files, and its parent if that is empty then. Ignore what cannot be removed."""

    def remove_empty(self, folder: Path, root: Path) -> None:
        """Remove a folder and those above it, up to the data folder, as far as they are empty."""

    def set_aside(self, path: Path, suffix: str) -> None:
        """Rename a file that no reader can use, so that its name is free.

        Raises:
            OSError: The file cannot be renamed.
        """

    def remove_leftovers(self, folder: Path, of: str = "", *, older_than_seconds: float = 0) -> None:
        """Remove what killed writers left. The caller must have the series' lock.

        Args:
            of: Start of the file name, for a folder that other series write to as well.
            older_than_seconds: Minimum age. Use an hour, for example, if writers take no lock.
        """

    def only_writer(
        self, lock: Path, wait_seconds: float, what: str, stop: Stop | None = None
    ) -> AbstractContextManager[Any]:
        """Become the only writer of a series for the duration of the block. A killed process releases its lock.

        Args:
            wait_seconds: How long to wait for another writer.
            what: Name of the series, for the message.
            stop: Ends the wait early. Process shutdown ends it as well.

        Raises:
            SeriesBusyError: The other writer did not finish in time.
            StoppedError: The wait was ended.
            StorageError: The lock cannot be created.
        """
