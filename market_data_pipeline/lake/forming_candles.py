"""Candles that are still open: one small file below ``live/``, one slot per series, overwritten by the live feed.

They are never stored as rows. A reader in any process sees the newest state of a slot, or none if no feed runs.
The feed decides which candles are still open (``live/candles.py``).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Self

import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.errors import StorageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_rows import table_of_values
from market_data_pipeline.lake.reader import labels_of
from market_data_pipeline.model import faults
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import DataType, Market, SeriesKey

_MAGIC = b"MDPOPEN1"
_SLOT_BYTES = 128
"""A slot never crosses a page, so a write of it is visible as a whole. The check covers file systems without pages."""
_HEADER = struct.Struct("<8sqq")
_CHECK_BYTES = 8
_YOUNG_US = 10_000_000
"""Age of the feed's last sign of life up to which its slots count."""
_MOST_OPEN = 32
_TRIES = 5


@dataclass(frozen=True, slots=True)
class FormingCandle:
    """The newest state of a candle that is still open.

    Attributes:
        values: In the order of the lake's columns, without labels. Times are microseconds since 1970 (UTC).
        as_of_us: Time of the exchange's message, in microseconds since 1970 (UTC).
    """

    key: SeriesKey
    values: tuple[float | int, ...]
    as_of_us: int

    @property
    def open_us(self) -> int:
        """Return the open time in microseconds since 1970 (UTC)."""
        return int(self.values[0])

    @property
    def opened(self) -> datetime:
        """Return the open time, UTC without a zone."""
        return clock.naive_from_us(self.open_us)

    @property
    def until(self) -> datetime:
        """Return the first moment after the candle, UTC without a zone."""
        return clock.naive_from_us(self.open_us + self.key.step)

    def table(self) -> pa.Table:
        """Return the candle as a table of one row, in all columns of the lake."""
        return table_of_values(self.key, [self.values])


def forming_file(layout: Layout) -> Path:
    """Return the path of the file."""
    return layout.local / "live" / "forming"


def can_form(key: SeriesKey) -> bool:
    """Return True if a series has open candles: klines alone. Streams of other prices have no candles."""
    return key.data_type is DataType.KLINES


class FormingWriter:
    """The one writer of the file. It replaces that of an earlier feed, and removes its own at the end.

    Args:
        keys: Series that may have an open candle. Others than klines are left out.

    Raises:
        StorageError: The file cannot be written.
    """

    def __init__(self, layout: Layout, keys: Iterable[SeriesKey]) -> None:
        self._path = forming_file(layout)
        names = [str(key) for key in sorted({key for key in keys if can_form(key)})]
        index = json.dumps(names).encode()
        self._index_bytes = len(index)
        self._slots = _slots(names, len(index))
        size = max(self._slots.values(), default=0) + _SLOT_BYTES
        storage.put(self._path, (_header(len(index), 0) + index).ljust(size, b"\0"))
        self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)

    def put(self, candle: FormingCandle) -> None:
        """Replace the open candle of a series.

        Raises:
            StorageError: The file cannot be written.
        """
        values = _packer(candle.key.market).pack(*candle.values, candle.as_of_us)
        self._write(_digest(values) + values, self._slots[str(candle.key)])

    def clear(self, key: SeriesKey) -> None:
        """Leave a series without an open candle.

        Raises:
            StorageError: The file cannot be written.
        """
        self._write(bytes(_SLOT_BYTES), self._slots[str(key)])

    def beat(self) -> None:
        """Show that the feed runs. Readers ignore all slots a few seconds after the last sign.

        Raises:
            StorageError: The file cannot be written.
        """
        self._write(_header(self._index_bytes, clock.to_us(clock.now())), 0)

    def close(self) -> None:
        """Remove the file: nothing is known of open candles any more."""
        os.close(self._file)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, data: bytes, offset: int) -> None:
        try:
            os.pwrite(self._file, data, offset)
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be written ({error.strerror or error}). {faults.remedy(error)}. "
                "Rows that were stored before are untouched."
            ) from error


def read_forming(layout: Layout, key: SeriesKey) -> FormingCandle | None:
    """Return the open candle of a series. None if the feed does not run, does not follow it, or has none now.

    Read it before the rows of the series: a row with its open time, or a later one, replaces it.
    """
    data = _slot(layout, key)
    if data is None:
        return None
    *values, as_of_us = _packer(key.market).unpack(data)
    return FormingCandle(key, tuple(values), as_of_us)


def forming_mark(layout: Layout, key: SeriesKey) -> bytes:
    """Return bytes that differ as soon as the open candle of a series does. They are empty if there is none."""
    return _slot(layout, key) or b""


def _slot(layout: Layout, key: SeriesKey) -> bytes | None:
    """Return the values of a slot whose check is right."""
    if not can_form(key):
        return None
    path = forming_file(layout)
    opened = _current(path)
    offset = None if opened is None else opened.slots.get(str(key))
    if opened is None or offset is None:
        return None
    size = _packer(key.market).size
    try:
        *_, beat_us = _HEADER.unpack(os.pread(opened.handle, _HEADER.size, 0).ljust(_HEADER.size))
        if abs(clock.to_us(clock.now()) - beat_us) > _YOUNG_US:
            return None
        for _ in range(_TRIES):  # a slot may be written meanwhile
            data = os.pread(opened.handle, _CHECK_BYTES + size, offset)
            if not any(data):
                return None
            if data[:_CHECK_BYTES] == _digest(data[_CHECK_BYTES:]):
                return data[_CHECK_BYTES:]
    except OSError:  # a network file system that lost the file
        pass
    return None


class _Opened:
    """An open file of slots. It closes when nobody refers to it, because threads may read it until then."""

    def __init__(self, path: Path) -> None:
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(self.handle)
        self.identity = found.st_dev, found.st_ino
        magic, index_bytes, _ = _HEADER.unpack(os.read(self.handle, _HEADER.size).ljust(_HEADER.size))
        names = json.loads(os.read(self.handle, min(max(index_bytes, 0), found.st_size))) if magic == _MAGIC else []
        self.slots = _slots(names if isinstance(names, list) else [], index_bytes)

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self.handle)


_open: OrderedDict[Path, _Opened] = OrderedDict()
_lock = threading.Lock()


def _current(path: Path) -> _Opened | None:
    """Return the file of the feed that started last. None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - several times as fast as that of a Path
    except OSError:
        with _lock:
            _open.pop(path, None)
        return None
    known = _open.get(path)
    # An inode is not used again while it is open here.
    if known is not None and known.identity == (found.st_dev, found.st_ino):
        return known
    try:
        opened = _Opened(path)
    except (OSError, ValueError):  # removed since, or damaged
        return None
    with _lock:
        _open[path] = opened
        while len(_open) > _MOST_OPEN:
            _open.popitem(last=False)
    return opened


def _slots(names: Iterable[str], index_bytes: int) -> dict[str, int]:
    """Return the offset of each slot."""
    begin = -(-(_HEADER.size + index_bytes) // _SLOT_BYTES) * _SLOT_BYTES
    return {str(name): begin + number * _SLOT_BYTES for number, name in enumerate(names)}


def _header(index_bytes: int, beat_us: int) -> bytes:
    return _HEADER.pack(_MAGIC, index_bytes, beat_us)


@cache
def _packer(market: Market) -> struct.Struct:
    """Return the form of a slot's values: those of the lake's columns, and the time of the message."""
    schema, labels = lake_schema(market, DataType.KLINES), labels_of(DataType.KLINES)
    columns = "".join("d" if pa.types.is_floating(one.type) else "q" for one in schema if one.name not in labels)
    return struct.Struct(f"<{columns}q")


def _digest(values: bytes) -> bytes:
    return hashlib.blake2b(values, digest_size=_CHECK_BYTES).digest()
