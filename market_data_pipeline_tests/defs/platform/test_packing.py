"""Packed events read as they were written, whatever is in them."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.defs.platform import packing
from market_data_pipeline.defs.platform.packing import PackingConnection, pack, unpack

EVENT = json.dumps({"__class__": "EventLogEntry", "message": "x" * 300, "run_id": "äöü \u0000"})


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert unpack(pack(text)) == text


def test_packing_dictionary_never_changes() -> None:
    """Values on disk were packed with it. Other pieces need another mark, and a reader of both."""
    assert packing.PACKED_MARK == b"\x01"
    assert hashlib.sha256(packing._KNOWN).hexdigest() == (
        "4fbab7ec9dde65175dcf2ef61e29589b1a296e80a476ad70c4b8491ccd2088ef"
    )


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"\x02" + pack(EVENT)[1:], "A newer version packed it"),
        (pack(EVENT)[:-3], "truncated"),
        (b"\x01\xff\xff\xff", "damaged"),
        (b"", "A newer version"),
    ],
)
def test_unreadable_value_reports_the_reason(value: bytes, why: str) -> None:
    with pytest.raises(sqlite3.DatabaseError, match=why):
        unpack(value)


def test_connections_pack_events_and_nothing_else() -> None:
    with (
        closing(sqlite3.connect(":memory:", factory=PackingConnection)) as connection,
        closing(connection.cursor()) as cursor,
    ):
        cursor.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, value)")
        values = [EVENT, "short", '{"__class__": "Short"}', "y" * 500, None, 7, 1.5]
        cursor.executemany("INSERT INTO t (value) VALUES (?)", [(value,) for value in values])
        kinds = cursor.execute("SELECT typeof(value) FROM t ORDER BY id").fetchall()
        assert [kind for (kind,) in kinds] == ["blob", "text", "text", "text", "null", "integer", "real"]

        query = "SELECT value FROM t ORDER BY id"
        whole = [(value,) for value in values]
        assert cursor.execute(query).fetchall() == whole
        assert list(cursor.execute(query)) == whole
        cursor.execute(query)
        assert [cursor.fetchone(), *cursor.fetchmany(), *cursor.fetchmany(2), *cursor.fetchall()] == whole
        assert cursor.fetchone() is None
