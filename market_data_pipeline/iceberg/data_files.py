"""Data files of a table: files of the lake under names that are never reused, and their description for Iceberg.

The lake replaces its files in place and removes those of closed days. A snapshot needs the bytes that it names until it
expires. So a table's folder has a hard link to each published file: the same bytes, without a copy. Choosing files
belongs to ``stored_files.py``.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow.parquet as pq
from pyiceberg.conversions import to_bytes
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.typedef import Record
from pyiceberg.types import DateType, PrimitiveType, TimestampType

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError, StorageError
from market_data_pipeline.iceberg.stored_files import StoredFile
from market_data_pipeline.iceberg.tables import TableForm
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.regular_files import reading
from market_data_pipeline.lake.storage import disk
from market_data_pipeline.model import faults

_NAME = re.compile(r"(\d{4}-\d\d(?:-\d\d)?)-([0-9a-f]{12})(?:-[0-9a-f]{8})?\.parquet")
"""A data file: its period, the start of the SHA-256 of its bytes, and the publish that placed it."""

_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of ``link`` on file systems without hard links, or with too many of a file."""


class FileContent(NamedTuple):
    """Content of a file: a period of its series, and the start of the SHA-256 of its bytes."""

    period: str
    sha256: str


def content_of(file: StoredFile) -> FileContent:
    """Return the content of a file of the lake."""
    return FileContent(file.period, file.sha256[:12])


def content_named(location: str) -> FileContent | None:
    """Return the content that a data file's name states. None if another program wrote the file."""
    named = _NAME.fullmatch(location.rpartition("/")[2])
    return FileContent(*named.groups()) if named else None


class ReplacedMeanwhileError(Exception):
    """The lake replaced or removed a file after it was chosen."""


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A file of the lake under a name that is never reused.

    Attributes:
        location: Its URI.
        bytes: Its size.
        footer: Its Parquet footer.
    """

    location: str
    bytes: int
    footer: pq.FileMetaData


class DataFiles(Protocol):
    """Places of the data files of a table. An object store whose names carry the hash needs no links."""

    @property
    def location(self) -> str:
        """Return the table's URI."""

    def place(self, file: StoredFile, publish: str) -> PlacedFile:
        """Give the bytes of a file a name that was never used and never will be.

        Args:
            publish: Eight hexadecimal digits that no other publish has.

        Raises:
            ReplacedMeanwhileError: The lake has another version by now.
            DamagedFileError: The file cannot be read.
        """

    def settle(self) -> None:
        """Flush all placed files to disk, before a commit names them."""

    def listed(self) -> Iterator[tuple[str, float]]:
        """Yield the URI of each file of data or metadata, and its age in seconds."""

    def remove(self, location: str) -> None:
        """Remove a file."""


class LinkedFiles:
    """Data files of a table in a folder, as hard links to files of the lake. Copies, where links are impossible."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._touched = set[Path]()

    @property
    def location(self) -> str:
        """Return the table's URI."""
        return f"file://{self._folder}"

    def place(self, file: StoredFile, publish: str) -> PlacedFile:
        """Link the file; see :meth:`DataFiles.place`."""
        folder = self._folder / "data" / "/".join(_plain(label) for label in _labels(file))
        path = folder / f"{file.period}-{file.sha256[:12]}-{publish}.parquet"
        try:
            _link(file.path, path)
            self._touched.add(folder)
            found = path.stat()
            if (found.st_size, found.st_mtime_ns) != (file.stat.bytes, file.stat.version):
                path.unlink()
                raise ReplacedMeanwhileError
            with reading(path) as opened:
                return PlacedFile(f"file://{path}", found.st_size, pq.read_metadata(opened))
        except FileNotFoundError as error:
            raise ReplacedMeanwhileError from error
        except OSError as error:
            raise _not_written(path, error) from error
        except parquet.UNREADABLE as error:
            path.unlink(missing_ok=True)
            raise parquet.damaged(file.path, error) from error

    def settle(self) -> None:
        """Flush the folders of the links to disk."""
        for folder in self._touched:
            disk.sync_folder(folder)
        self._touched.clear()

    def listed(self) -> Iterator[tuple[str, float]]:
        """Yield the URI and age of each file. A link's age is that of its newest link, so at most the true age."""
        now = time.time()
        for path in self._folder.rglob("*"):
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue
            if path.is_file() and path.parent != self._folder:
                yield f"file://{path}", now - found.st_ctime

    def remove(self, location: str) -> None:
        """Remove a file."""
        storage.remove(Path(location.removeprefix("file://")))


def _labels(file: StoredFile) -> list[str]:
    return [label for label in (file.key.symbol, file.key.interval) if label is not None]


def _plain(label: str) -> str:
    """Return a label as a folder name that no engine takes apart. Some symbols have Chinese signs."""
    return re.sub(r"[^A-Za-z0-9_.-]", lambda sign: f"~{ord(sign[0]):x}", label)


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except FileNotFoundError:  # the folder usually exists, and checking it takes as long as linking
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, path)
        except OSError as error:
            _copy(source, path, error)
    except OSError as error:
        _copy(source, path, error)


def _copy(source: Path, path: Path, error: OSError) -> None:
    if error.errno not in _NO_LINKS:
        raise error
    data, stat = storage.read(source)
    storage.put(path, data)
    os.utime(path, ns=(stat.version, stat.version))  # the caller sees which version was copied


def _not_written(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} cannot be written ({error.strerror or error}). {faults.remedy(error)}.")


# --- description ------------------------------------------------------------------------------------------------------


def described(form: TableForm, file: StoredFile, placed: PlacedFile) -> DataFile:
    """Return the description of a data file: its partition, rows and bounds, all from its footer.

    Raises:
        DamagedFileError: The file has no rows, columns of another series, or rows of another period.
    """
    bounds = _bounds(form, file, placed.footer)
    low, high = (_partition(form, bounds, side) for side in (0, 1))
    if low != high:
        raise _foreign(file, f"it has rows of more than {file.period}")
    labels = [bounds[form.schema.find_field(label).field_id][0] for label in form.labels]
    if labels != _labels(file):
        raise _foreign(file, f"it has rows of {' '.join(map(str, labels))}")
    groups = [placed.footer.row_group(number) for number in range(placed.footer.num_row_groups)]
    rows = placed.footer.num_rows
    data_file = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=placed.location,
        file_format=FileFormat.PARQUET,
        partition=Record(*low),
        record_count=rows,
        file_size_in_bytes=placed.bytes,
        value_counts=dict.fromkeys(bounds, rows),
        null_value_counts=dict.fromkeys(bounds, 0),
        lower_bounds={number: to_bytes(_type(form, number), pair[0]) for number, pair in bounds.items()},
        upper_bounds={number: to_bytes(_type(form, number), pair[1]) for number, pair in bounds.items()},
        split_offsets=[_offset(group) for group in groups],
    )
    data_file.spec_id = form.spec.spec_id
    return data_file


def _type(form: TableForm, number: int) -> PrimitiveType:
    found = form.schema.find_type(number)
    assert isinstance(found, PrimitiveType)  # noqa: S101 - the lake has no nested columns
    return found


def _partition(form: TableForm, bounds: dict[int, tuple[Any, Any]], side: int) -> list[Any]:
    """Return the partition of the lowest or the highest values."""
    return [
        field.transform.transform(form.schema.find_type(field.source_id))(bounds[field.source_id][side])
        for field in form.spec.fields
    ]


def _bounds(form: TableForm, file: StoredFile, footer: pq.FileMetaData) -> dict[int, tuple[Any, Any]]:
    """Return the lowest and highest value of each bounded column, by its number, as Iceberg stores them."""
    positions = {footer.schema.column(at).name: at for at in range(footer.num_columns)}
    if missing := {field.name for field in form.schema.fields} - positions.keys():
        raise _foreign(file, f"the column {min(missing)} is missing")
    found = {}
    try:
        for field in form.schema.fields:
            if field.name not in form.bounded:
                continue
            at = positions[field.name]
            pairs: list[tuple[Any, Any]] = [
                (statistics.min, statistics.max)
                for group in range(footer.num_row_groups)
                if (statistics := parquet.statistics_in(footer, group, at)) is not None and statistics.has_min_max
            ]
            if len(pairs) != footer.num_row_groups or not pairs:
                raise _foreign(file, f"its footer has no bounds of {field.name}")
            low, high = min(pair[0] for pair in pairs), max(pair[1] for pair in pairs)
            found[field.field_id] = (_as_stored(field.field_type, low), _as_stored(field.field_type, high))
    except (ValueError, OverflowError) as error:  # damaged statistics
        raise parquet.damaged(file.path, error) from error
    return found


def _as_stored(kind: object, value: Any) -> Any:
    if isinstance(kind, TimestampType):
        return clock.to_us(value.replace(tzinfo=UTC))
    return clock.day_number(value) if isinstance(kind, DateType) else value


def _offset(group: pq.RowGroupMetaData) -> int:
    first = group.column(0)
    return first.data_page_offset if first.dictionary_page_offset is None else first.dictionary_page_offset


def _foreign(file: StoredFile, reason: str) -> DamagedFileError:
    return parquet.damaged(file.path, ValueError(reason))
