"""Every access to a file below the root. Replacements are atomic: a reader sees the old file or the new one.

A file is written beside its final place under a name that no ``*.parquet`` pattern picks up, flushed to the disk, and
renamed. A process that is killed leaves at most such a temporary file, which the series' next writer removes.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from pathlib import Path
from shutil import rmtree
from stat import S_ISREG
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import Timeout

from market_data_pipeline import __version__, faults
from market_data_pipeline.day import FileStat
from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.lake import locks
from market_data_pipeline.lake.provenance import FOOTER_KEY, Provenance
from market_data_pipeline.regular_files import open_regular, reading
from market_data_pipeline.specs import Spec
from market_data_pipeline.stopping import Stop, Wait, in_words

logger = logging.getLogger(__name__)

ROW_GROUP_ROWS = 122_880
"""DuckDB's vector group: measured as the best compromise of size and reading a slice of a day."""

TEMPORARY = ".tmp"

_LOOK_AGAIN_SECONDS = 0.05
"""How often a lock that another process holds is tried again."""

_EPOCH = date(1970, 1, 1).toordinal()


class StorageError(MarketDataError):
    """The disk refuses: it is full, or a folder cannot be written to. What was there before is untouched."""


class DamagedFileError(MarketDataError):
    """A file of the lake cannot be read as what it should be."""


class SeriesBusyError(MarketDataError):
    """Another process has been writing the same series for longer than we may wait."""


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


def encode_table(table: pa.Table, provenance: Provenance | None = None, spec: Spec | None = None) -> pa.Buffer:
    """A table as Parquet, with provenance in the footer.

    Args:
        table: What to write.
        provenance: The record for the footer.
        spec: How the columns are encoded and compressed; without one by zstd.
    """
    # Encoded in memory and written in one piece: Arrow would call back into Python for each of some hundred small ones.
    encoded = pa.BufferOutputStream()
    with pq.ParquetWriter(encoded, table.schema, **parquet_options(table.schema, spec)) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        _sign(writer, provenance)
    return encoded.getvalue()


def _sign(writer: pq.ParquetWriter, provenance: Provenance | None) -> None:
    if provenance is not None:
        stamped = provenance.model_copy(update={"writer_version": __version__})
        record: Any = {FOOTER_KEY: stamped.model_dump_json(exclude_none=True).encode()}  # bytes, unlike the stubs say
        writer.add_key_value_metadata(record)


class EncodingAhead:
    """What :func:`encode_table` makes of a big table, made by a thread while the table's blocks come.

    Args:
        schema: Of the table.
        spec: How the columns are encoded and compressed.
    """

    def __init__(self, schema: pa.Schema, spec: Spec) -> None:
        self._encoded = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._encoded, schema, **parquet_options(schema, spec))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._groups: list[Future[None]] = []
        self._rest: list[pa.Table] = []
        self._rows = 0

    def take(self, block: pa.Table) -> None:
        """The table's next rows."""
        self._rest.append(block)
        self._rows += block.num_rows
        while self._rows >= ROW_GROUP_ROWS:
            rows = pa.concat_tables(self._rest)
            self._write(rows.slice(0, ROW_GROUP_ROWS))
            self._rest = [rows.slice(ROW_GROUP_ROWS)]
            self._rows -= ROW_GROUP_ROWS

    def _write(self, rows: pa.Table) -> None:
        self._groups.append(self._thread.submit(self._writer.write_table, rows, row_group_size=ROW_GROUP_ROWS))

    def end(self) -> None:
        """There are no more rows."""
        if self._rows:
            self._write(pa.concat_tables(self._rest))

    def signed(self, provenance: Provenance) -> pa.Buffer:
        """The file, all of whose rows came, with its record in the footer."""
        for group in self._groups:
            group.result()
        _sign(self._writer, provenance)
        self._writer.close()
        return self._encoded.getvalue()

    def close(self) -> None:
        """Let go of it, whether or not it was signed."""
        self._thread.shutdown(cancel_futures=True)
        self._writer.close()


def parquet_options(schema: pa.Schema, spec: Spec | None = None) -> dict[str, Any]:
    """How the files of the lake are compressed and encoded, as Arrow's Parquet writer takes it."""
    labels = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    compression = spec.compression if spec else "zstd"
    return {
        "compression": compression,
        "compression_level": 1 if compression == "zstd" else None,
        "use_dictionary": [*labels, *(spec.dictionary if spec else ())],
        "column_encoding": dict.fromkeys(spec.delta, "DELTA_BINARY_PACKED") if spec else None,
        # Ledgers and the like have no hash on record elsewhere: pages tell of themselves that they lost a bit.
        "write_page_checksum": spec is None,
    }


def write_table(
    path: Path, table: pa.Table, provenance: Provenance | None = None, spec: Spec | None = None
) -> FileStat:
    """Write a table as :func:`encode_table` has it, atomically.

    Raises:
        StorageError: the disk refuses; ``path`` is as it was.
    """
    return write_bytes(path, encode_table(table, provenance, spec))


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a file of the lake whole.

    Args:
        path: The file.
        columns: Those to read, in order; all where not given.

    Raises:
        DamagedFileError: it is not there or not readable, or lacks a column; the text names it and says what to do.
    """
    try:
        with reading(path) as file:
            table = _read_parquet(file, columns)
        return table if columns is None else table.select(columns)
    except KeyError as error:
        raise damaged(path, ValueError(f"it lacks a column ({error.args[0]})")) from error
    except UNREADABLE as error:  # also a name of a column that lost a bit and is no longer UTF-8
        raise damaged(path, error) from error


def _read_parquet(source: IO[bytes] | pa.NativeFile, columns: list[str] | None = None) -> pa.Table:
    # In this thread. Those of Arrow, in which its `read_table` reads, let go of a Python file only after the rows are
    # there: where the script ends meanwhile, the process ends by SIGABRT ("terminate called without an active
    # exception").
    with pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True) as file:
        return file.read(columns=columns, use_threads=False)


def days_of(table: pa.Table) -> list[date]:
    """The column ``day`` as dates; thirty times as fast as Arrow makes them one by one."""
    days: list[Any] = table["day"].cast(pa.int32()).to_pylist()
    return [date.fromordinal(_EPOCH + day) for day in days]


def us_of(table: pa.Table, name: str) -> list[int | None]:
    """A column of times (us) as microseconds since 1970, which are made thirty times as fast as datetimes."""
    us: list[int | None] = table[name].cast(pa.int64()).to_pylist()
    return us


def read_encoded(parquet: pa.Buffer) -> pa.Table:
    """The rows of a file that :func:`encode_table` made."""
    return _read_parquet(pa.BufferReader(parquet))


def read_provenance(path: Path) -> Provenance:
    """Read the record in a file's footer.

    Raises:
        DamagedFileError: the file is not there, not Parquet, or has no valid record.
    """
    try:
        with reading(path) as file:
            metadata = pq.read_metadata(file).metadata or {}
        return Provenance.model_validate_json(metadata[FOOTER_KEY])
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise damaged(path, error) from error


def read_whole(path: Path) -> tuple[Provenance, pa.Table]:
    """Read a file's record and its rows, opening it once.

    Raises:
        DamagedFileError: the file is not there, not readable, or has no valid record.
    """
    try:
        data, _ = read_bytes(str(path))
    except OSError as error:
        raise damaged(path, error) from error
    return parse_whole(path, data)


def parse_whole(path: Path, data: bytes) -> tuple[Provenance, pa.Table]:
    """Return the record and the rows of a file whose bytes were read.

    Raises:
        DamagedFileError: they are not readable, or have no valid record.
    """
    try:
        with opened(data) as (reader, metadata):
            return record_in(metadata), reader.read_all(use_threads=False)
    except UNREADABLE as error:
        raise damaged(path, error) from error


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


UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError)
"""What is raised in reading a file that is not what it should be; see :func:`damaged`."""


@contextmanager
def opened(data: bytes) -> Iterator[tuple[pq.ParquetReader, pq.FileMetaData]]:
    """A reader of a file's bytes, and what its footer says.

    Not a ``ParquetFile``, which makes an index of nested columns first, in the time of decoding one.
    """
    reader = pq.ParquetReader()
    reader.open(pa.BufferReader(data), use_memory_map=False, pre_buffer=False)
    try:
        yield reader, reader.metadata
    finally:
        reader.close()


def statistics_in(metadata: pq.FileMetaData, group: int, column: int) -> pq.Statistics | None:
    """Return the statistics that a footer has of a column in a row group; None if there are none.

    Raises:
        ValueError: the footer is damaged. Arrow would end the process when it is asked for the statistics.
    """
    chunk, described = metadata.row_group(group).column(column), metadata.schema.column(column)
    if chunk.physical_type != described.physical_type:
        raise ValueError(f"its footer has two types for the column {described.name}")
    return chunk.statistics


def record_in(metadata: pq.FileMetaData) -> Provenance:
    """The record that a footer has."""
    return Provenance.model_validate_json((metadata.metadata or {})[FOOTER_KEY])


_OF_THE_FILE = (None, errno.ENOENT, errno.EISDIR)
"""Errors of the system that speak of the file itself; all others speak of the machine, and the file may be good."""


def damaged(path: Path, error: Exception) -> DamagedFileError:
    """The fault of a file that cannot be read as what it should be."""
    if isinstance(error, OSError) and error.errno not in _OF_THE_FILE and not isinstance(error, pa.ArrowException):
        return DamagedFileError(f"{path} cannot be read ({error.strerror}). {faults.remedy(error)}.")
    reason = (
        "it has no record of where it came from" if isinstance(error, KeyError) else str(error).strip() or repr(error)
    )
    return DamagedFileError(
        f"{path} is damaged or was not written by this pipeline: {reason}. Backfill that day to replace it."
    )


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
