"""Compression of the JSON of Dagster's events: connections that pack it on write and unpack it on read.

An event's JSON is 1 to 4 kB, nearly all of it names of classes and fields. A compressor that knows these names makes
100 to 300 bytes of it. Other values stay as Dagster wrote them. Reading and writing events belongs in ``event_log``.
"""

from __future__ import annotations

import binascii
import sqlite3
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

PACKED_MARK = b"\x01"
"""First byte of a packed value: the version of :data:`_KNOWN`."""

PACKED_COLUMNS = (
    ("event_logs", "event"),
    ("asset_check_executions", "evaluation_event"),
    ("asset_keys", "last_materialization"),
    ("asset_keys", "cached_status_data"),
)
"""Tables and columns of the event log with such JSON."""

_LEAST = 200
"""Minimum length of a text to pack."""

_BEGINS = '{"__class__": "'
"""Start of Dagster's own serialization."""

_KNOWN = "".join(Path(__file__).with_name("packing.txt").read_text("utf-8").splitlines()).encode()
"""Pieces of Dagster's events, the most frequent last. Values on disk were packed with exactly these, so the file must
not change. Other pieces need another file and another mark.
"""

_BEGUN = zlib.compressobj(6, zlib.DEFLATED, wbits=-14, memLevel=6, zdict=_KNOWN)
"""A compressor that has read the known pieces. Copying it and packing an event takes 30 µs, a new one 140 µs."""


def pack(text: str) -> bytes:
    """Compress an event's JSON."""
    deflate = _BEGUN.copy()
    return b"".join((PACKED_MARK, deflate.compress(text.encode()), deflate.flush()))


def unpack(packed: bytes) -> str:
    """Return the JSON that :func:`pack` was given.

    Raises:
        sqlite3.DatabaseError: The value was packed by a newer version, or is damaged.
    """
    if packed[:1] != PACKED_MARK:
        raise sqlite3.DatabaseError(
            f"A value of Dagster's records starts with {packed[:1]!r}. A newer version packed it."
        )
    inflate = zlib.decompressobj(-zlib.MAX_WBITS, zdict=_KNOWN)
    try:
        text = inflate.decompress(packed[1:]) + inflate.flush()
    except zlib.error as error:
        raise sqlite3.DatabaseError(f"A value of Dagster's records is damaged: {error}.") from error
    if not inflate.eof:
        raise sqlite3.DatabaseError("A value of Dagster's records is truncated.")
    return text.decode()


TEXT_MARK = "\x01"
"""First character of a value that is packed as text, for PostgreSQL. No JSON begins with it."""


def pack_to_text(text: str) -> str:
    """Compress an event's JSON, for a column of text."""
    return TEXT_MARK + binascii.b2a_base64(pack(text), newline=False).decode()


def unpack_text(value: str) -> str:
    """Return the JSON of a value of a column of text. Other values come back as they are.

    >>> unpack_text(pack_to_text('{"a": 1}')), unpack_text("2024-01-01")
    ('{"a": 1}', '2024-01-01')

    Raises:
        sqlite3.DatabaseError: The value was packed by a newer version, or is damaged.
    """
    return unpack(binascii.a2b_base64(value[1:])) if value[:1] == TEXT_MARK else value


def is_of_events(value: object) -> bool:
    """Return True if a value is JSON of Dagster's events that is worth packing."""
    return type(value) is str and len(value) >= _LEAST and value.startswith(_BEGINS)


def _packed(value: Any) -> Any:
    return pack(value) if is_of_events(value) else value


def _row_packed(values: Any) -> Any:
    return tuple(map(_packed, values)) if isinstance(values, (tuple, list)) else values


def _unpacked(_cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
    for value in row:
        if type(value) is bytes:
            return tuple(unpack(value) if type(value) is bytes else value for value in row)
    return row


class _Cursor(sqlite3.Cursor):
    """Pack parameters."""

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        return super().execute(sql, _row_packed(parameters))

    def executemany(self, sql: str, seq_of_parameters: Iterable[Any], /) -> Self:
        return super().executemany(sql, map(_row_packed, seq_of_parameters))


class PackingConnection(sqlite3.Connection):
    """A connection whose cursors pack and unpack Dagster's JSON, for ``sqlite3.connect(factory=)``.

    It takes positional parameters through cursors, as SQLAlchemy passes them, and reads no other binary values.
    """

    def cursor(self, factory: Any = None) -> Any:
        """Return a cursor that packs and unpacks."""
        cursor = super().cursor(_Cursor if factory is None else factory)
        cursor.row_factory = _unpacked
        return cursor
