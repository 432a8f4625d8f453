"""Rows of the live feed: one append-only file per series and UTC day below ``live/``, until the lake has the day.

Rows have a fixed width and a check each, so a torn tail is ignored. Other processes see appended rows at once.
The file has no order and may repeat a key: the last row of a key counts. Which rows to write belongs to the feed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.errors import StorageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.reader import labels_of, time_column
from market_data_pipeline.model import faults
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.schema import WORD, lake_schema
from market_data_pipeline.model.series import SeriesKey

_MAGIC = b"MDPLIVE1"
_HEADER_BYTES = 16
_STATE, _CHECK = "_state", "_check"
_PRIME = 0x9E3779B97F4A7C15
CLOSE_STATE = "close_state"
"""Name of the column that :func:`read_live_rows` adds: a :class:`CloseState`."""

Records = npt.NDArray[Any]


class CloseState(StrEnum):
    """Basis of a live row. All of them are replaced by the archive's rows."""

    CLOSED = "closed"
    """The exchange sent it as closed: a candle with ``x=true``, or a trade."""
    PROVEN = "proven"
    """It was sent as closed, and equals the candle made of its trades."""
    REST = "rest"
    """It is an answer of REST: it was late, missing or contested."""


_STATES = tuple(CloseState)


@dataclass(frozen=True, slots=True)
class LiveRow:
    """A row to append.

    Attributes:
        values: In the order of the lake's columns, without labels. Times are microseconds since 1970 (UTC).
    """

    values: tuple[float | int | bool, ...]
    state: CloseState


def live_file(layout: Layout, key: SeriesKey, day: date) -> Path:
    """Return the path of the live rows of a day."""
    return live_folder(layout, key) / f"{day.isoformat()}.rows"


def live_folder(layout: Layout, key: SeriesKey) -> Path:
    """Return the folder of the live rows of a series."""
    parts = (key.exchange, key.market, key.data_type, key.symbol, key.interval)
    return layout.local.joinpath("live", *filter(None, parts))


def live_days(layout: Layout, key: SeriesKey) -> list[date]:
    """Return the days with live rows, in order."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in live_folder(layout, key).iterdir():
            with suppress(ValueError):
                if entry.suffix == ".rows":
                    found.append(date.fromisoformat(entry.stem))
    return sorted(found)


def read_live_rows(
    layout: Layout, key: SeriesKey, since: datetime | int = 0, until: datetime | int | None = None
) -> pa.Table:
    """Return the live rows of a series, one per key and ordered by key, while another process may write.

    Args:
        since: First time of the rows, inclusive: naive UTC, or microseconds since 1970.
        until: End of the times, exclusive. None means no end.

    Returns:
        The lake's columns, and ``close_state``. Without live rows, an empty table.
    """
    low, high = _us(since), 1 << 62 if until is None else _us(until)
    records = [
        _read(live_file(layout, key, day), key)
        for day in live_days(layout, key)
        if clock.day_start_us(day) + clock.US_PER_DAY > low and clock.day_start_us(day) < high
    ]
    found = np.concatenate([*records]) if records else np.zeros(0, _dtype(key))
    times = found[time_column(key.data_type)]
    return _table(_last_of_each(found[(times >= low) & (times < high)], spec_of(key).key), key)


def read_live_tail(layout: Layout, key: SeriesKey, day: date, since: int, until: int) -> pa.Table:
    """Return the live rows of a day between two sizes of its file, one per key and ordered by key.

    Args:
        since: Bytes of the file that were read before. 0 means none.
        until: Bytes of the file now. A row that ends after them is left out.

    Returns:
        The table of :func:`read_live_rows`.
    """
    width, path = _dtype(key).itemsize, live_file(layout, key, day)
    first = max(0, since - _HEADER_BYTES) // width
    count = max(0, until - _HEADER_BYTES) // width - first
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            file.seek(_HEADER_BYTES + first * width)
            data = header + file.read(max(0, count) * width)
    except FileNotFoundError:
        data = b""
    return _table(_last_of_each(_sound(data, key), spec_of(key).key), key)


def table_of_values(key: SeriesKey, rows: Sequence[tuple[float | int | bool, ...]]) -> pa.Table:
    """Return rows as a table of the lake. Each is in the order of the lake's columns, without labels."""
    return _table(np.array([(*row, 0, 0) for row in rows], _dtype(key)), key).drop_columns([CLOSE_STATE])


def remove_live_rows(layout: Layout, key: SeriesKey, day: date) -> None:
    """Remove the live rows of a day. Call it only if the lake has all of them.

    Raises:
        StorageError: The file cannot be removed.
    """
    path = live_file(layout, key, day)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be removed ({error.strerror}). Nothing else was changed.") from error


class LiveWriter:
    """The one writer of the live rows below a data folder. Rows are visible at once, and durable after :meth:`sync`.

    Args:
        most_open: Most files that are open together.
    """

    def __init__(self, layout: Layout, most_open: int = 256) -> None:
        self._layout = layout
        self._most_open = most_open
        self._open: dict[Path, int] = {}
        self._unsynced: set[Path] = set()

    def append(self, key: SeriesKey, rows: Iterable[LiveRow]) -> int:
        """Append rows of a series, each to the file of its day. Return their number.

        Raises:
            StorageError: The disk is full or the folder is not writable. Rows of this call may be stored in part.
        """
        records = _records(key, list(rows))
        days = records[time_column(key.data_type)] // clock.US_PER_DAY
        for number in np.unique(days):
            path = live_file(self._layout, key, clock.day_of_number(int(number)))
            try:
                _write_all(self._handle(path, key), records[days == number].tobytes())
            except OSError as error:
                self._close(path)  # the next append removes the torn row
                raise StorageError(
                    f"{path} cannot be written ({error.strerror or error}). {faults.remedy(error)}. "
                    "Rows that were stored before are untouched."
                ) from error
            self._unsynced.add(path)
        return len(records)

    def sync(self) -> None:
        """Make all appended rows durable. Call it every second or so, from any thread that does not append."""
        unsynced, self._unsynced = self._unsynced, set()
        for path in unsynced:
            with suppress(OSError):  # closed since, which synced it, or a file system without fsync
                os.fsync(self._open.get(path, -1))

    def release(self, key: SeriesKey, day: date) -> None:
        """Close the file of a day, so that it can be removed."""
        self._close(live_file(self._layout, key, day))

    def close(self) -> None:
        """Make all rows durable and close all files."""
        for path in list(self._open):
            self._close(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _handle(self, path: Path, key: SeriesKey) -> int:
        if (found := self._open.get(path)) is not None:
            return found
        while len(self._open) >= self._most_open:
            self._close(next(iter(self._open)))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            _mend(handle, key)
        except OSError:
            os.close(handle)
            raise
        self._open[path] = handle
        return handle

    def _close(self, path: Path) -> None:
        handle = self._open.pop(path, None)
        if handle is not None:
            with suppress(OSError):
                os.fsync(handle)
            os.close(handle)


def _mend(handle: int, key: SeriesKey) -> None:
    """Write the header of a new file, or cut a torn row from the end of an older one."""
    size, header = os.fstat(handle).st_size, _header(key)
    if size < _HEADER_BYTES or os.pread(handle, _HEADER_BYTES, 0) != header:
        os.ftruncate(handle, 0)  # a killed writer left a part of the header, or the columns are of another version
        _write_all(handle, header)
        return
    torn = (size - _HEADER_BYTES) % _dtype(key).itemsize
    if torn:
        os.ftruncate(handle, size - torn)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


@cache
def _header(key: SeriesKey) -> bytes:
    columns = repr(_dtype(key).descr).encode()
    return _MAGIC + hashlib.blake2b(columns, digest_size=_HEADER_BYTES - len(_MAGIC)).digest()


@cache
def _dtype(key: SeriesKey) -> np.dtype[Any]:
    """Return the type of a row: eight bytes per column, so that the check is a sum of words."""
    schema, labels = lake_schema(key.market, key.data_type), labels_of(key.data_type)
    columns = [
        (field.name, "<f8" if pa.types.is_floating(field.type) else "<i8")
        for field in schema
        if field.name not in labels
    ]
    return np.dtype([*columns, (_STATE, "<i8"), (_CHECK, "<u8")])


def _checks(records: Records) -> npt.NDArray[np.uint64]:
    """Return the check of each row: words times odd numbers, so that moved, lost or zero words change it."""
    words = records.view(np.uint64).reshape(len(records), records.dtype.itemsize // 8)[:, :-1]
    factors = (np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(2) + np.uint64(1)) * np.uint64(_PRIME)
    with np.errstate(over="ignore"):
        checks: npt.NDArray[np.uint64] = (words * factors).sum(axis=1, dtype=np.uint64) + np.uint64(_PRIME)
    return checks


def _records(key: SeriesKey, rows: Sequence[LiveRow]) -> Records:
    records = np.array([(*row.values, _STATES.index(row.state), 0) for row in rows], _dtype(key))
    records[_CHECK] = _checks(records)
    return records


def _read(path: Path, key: SeriesKey) -> Records:
    """Return the rows of a file whose check is right."""
    try:
        return _sound(path.read_bytes(), key)
    except FileNotFoundError:  # removed since it was listed
        return np.zeros(0, _dtype(key))


def _sound(data: bytes, key: SeriesKey) -> Records:
    """Return the rows in the bytes of a file, header included, whose check is right."""
    dtype = _dtype(key)
    if data[:_HEADER_BYTES] != _header(key):
        return np.zeros(0, dtype)
    count = (len(data) - _HEADER_BYTES) // dtype.itemsize
    records = np.frombuffer(data, dtype, count, _HEADER_BYTES)
    good = (_checks(records) == records[_CHECK]) & (records[_STATE] >= 0) & (records[_STATE] < len(_STATES))
    return records if bool(good.all()) else records[good]


def _last_of_each(records: Records, key_column: str) -> Records:
    keys = records[key_column]
    if len(keys) < 2 or bool((keys[1:] > keys[:-1]).all()):
        return records
    ordered = records[np.argsort(keys, kind="stable")]
    keys = ordered[key_column]
    last: Records = ordered[np.append(keys[1:] != keys[:-1], True)]
    return last


def _table(records: Records, key: SeriesKey) -> pa.Table:
    schema, labels = lake_schema(key.market, key.data_type), labels_of(key.data_type)
    of_label = dict(zip(labels, (key.symbol, key.interval or ""), strict=False))
    columns: list[pa.Array[Any]] = []
    for field in schema:
        if field.name in labels:
            columns.append(_words(np.zeros(len(records), np.int32), (of_label[field.name],)))
        else:
            values = np.ascontiguousarray(records[field.name])
            if pa.types.is_boolean(field.type):
                columns.append(pa.array(values.astype(np.bool_)))
            else:
                columns.append(pa.array(values).cast(field.type))
    states = _words(records[_STATE].astype(np.int32), tuple(str(state) for state in _STATES))
    return pa.table([*columns, states], schema=schema.append(pa.field(CLOSE_STATE, WORD, nullable=False)))


def _words(indices: npt.NDArray[np.int32], words: tuple[str, ...]) -> pa.Array[Any]:
    numbers: Any = pa.array(indices, pa.int32())
    return pa.DictionaryArray.from_arrays(numbers, pa.array(words, pa.string()))


def _us(moment: datetime | int) -> int:
    if isinstance(moment, int):
        return moment
    return clock.to_us(moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment)
