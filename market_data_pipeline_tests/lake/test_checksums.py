"""The hash of a day's content stands in every footer: it must be the same in every version, and however rows lie."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from market_data_pipeline.lake.checksums import content_sha256

ROWS = 12


def labels(*names: str) -> pa.Array[Any]:
    return pa.DictionaryArray.from_arrays(np.arange(ROWS, dtype=np.int32) % len(names), pa.array(names))


@pytest.fixture
def table() -> pa.Table:
    numbers = np.arange(ROWS)
    return pa.table(
        {
            "symbol": labels("BTCUSDT"),
            "interval": labels("1m", "1h"),
            "open_time": pa.array(numbers * 60_000_000).cast(pa.timestamp("us")),
            "day": pa.array(numbers.astype(np.int32)).cast(pa.date32()),
            "count": pa.array(numbers),
            "close": pa.array(numbers / 8),
            "is_buyer_maker": pa.array(numbers % 3 == 0),
        }
    )


def test_it_is_made_of_names_and_values_as_documented(table: pa.Table) -> None:
    numbers = np.arange(ROWS)
    digest = hashlib.sha256(b"symbol\0BTCUSDTinterval\x001m,1h")
    for name, values in {
        "open_time": (numbers * 60_000_000).astype("<i8"),
        "day": numbers.astype("<i4"),
        "count": numbers.astype("<i8"),
        "close": (numbers / 8).astype("<f8"),
        "is_buyer_maker": (numbers % 3 == 0).astype("u1"),
    }.items():
        digest.update(name.encode() + b"\0" + values.tobytes())
    assert content_sha256(table) == digest.hexdigest()


def test_it_is_what_it_was_in_the_lakes_that_there_are(table: pa.Table) -> None:
    assert content_sha256(table) == "e3c85e549ec7b70ea71bcafb8f495bdb26eb5f4cc990e0b8fd175fb02f7bdb60"
    missing = pa.table({"close": pa.array([1.5, None, 2.5]), "time": pa.array([1, None, 3]).cast(pa.timestamp("us"))})
    assert content_sha256(missing) == "bb14f3b227bacc569e6224f1b5b1c98fa2dc69d26e2658bd8035fe2f7e5a72fc"


def test_it_does_not_depend_on_how_rows_lie_in_memory(table: pa.Table) -> None:
    whole = content_sha256(table)
    beside = pa.concat_tables([table.slice(3), table, table.slice(0, 5)])
    assert content_sha256(beside.combine_chunks().slice(ROWS - 3, ROWS)) == whole
    assert content_sha256(pa.concat_tables([table.slice(0, 5), table.slice(5)])) == whole
    assert content_sha256(table.slice(0, ROWS - 1)) != whole


def test_a_table_without_rows_has_one_too(table: pa.Table) -> None:
    names = b"".join(name.encode() + b"\0" for name in table.column_names)
    assert content_sha256(table.slice(0, 0)) == hashlib.sha256(names).hexdigest()
    assert content_sha256(table.schema.empty_table()) == hashlib.sha256(names).hexdigest()


def test_unused_dictionary_labels_do_not_change_the_checksum() -> None:
    used = pa.DictionaryArray.from_arrays(pa.array([1, 1], pa.int32()), pa.array(["ETHUSDT", "BTCUSDT"]))
    assert content_sha256(pa.table({"symbol": used})) == hashlib.sha256(b"symbol\0BTCUSDT").hexdigest()
