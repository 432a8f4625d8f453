"""The inside of zips: what is not Binance's file is refused, whatever is wrong with it, and no row is lost."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress
from datetime import date

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import ints
from market_data_pipeline.errors import MalformedError
from market_data_pipeline.sources.binance.zip_reader import read_zip, read_zips
from market_data_pipeline_tests.support.world import klines

KEY, DAY, STEM = klines("BTCUSDT", "1h"), date(2026, 3, 2), "BTCUSDT-1h-2026-03-02"
HOUR_US = 3_600_000_000
HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)
ROWS = "".join(
    f"{at},1.0,2.0,0.5,1.5,10.0,{at + HOUR_US - 1},15.0,5,4.0,6.0,0\n"
    for at in range(clock.day_start_us(DAY), clock.day_start_us(DAY) + 24 * HOUR_US, HOUR_US)
)


SECONDS, SECOND_US, SECONDS_STEM = klines("BTCUSDT", "1s"), 1_000_000, "BTCUSDT-1s-2026-03-02"
MANY_ROWS = [
    f"{at},{at % 977}.25,2.0,0.5,1.5,10.0,{at + SECOND_US - 1},15.0,5,4.0,6.0,0\n"
    for at in range(clock.day_start_us(DAY), clock.day_start_us(DAY) + 86_400 * SECOND_US, SECOND_US)
]
"""Some 5 MB, which is read in blocks."""


def zipped(text: str, stem: str = STEM) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{stem}.csv", text)
    return stream.getvalue()


def read_seconds(data: bytes) -> pa.Table:
    return read_zip(data, SECONDS, SECONDS_STEM, DAY, DAY)


WHOLE = zipped(ROWS)


@pytest.mark.parametrize("text", [ROWS, f"{HEADER}\n{ROWS}", ROWS.rstrip("\n")], ids=["plain", "header", "no newline"])
def test_every_row_is_read_with_a_header_or_without(text: str) -> None:
    assert read_zip(zipped(text), KEY, STEM, DAY, DAY).num_rows == 24


@pytest.mark.parametrize("begin", ["\ufeff", "-", " ", '"'])
def test_a_first_row_that_is_no_header_is_not_taken_for_one(begin: str) -> None:
    with pytest.raises(MalformedError, match="neither a header nor a number"):
        read_zip(zipped(begin + ROWS), KEY, STEM, DAY, DAY)


OTHER = STEM.replace("03-02", "03-03")


@pytest.mark.parametrize("text", [ROWS, f"{HEADER}\n{ROWS}", ROWS.rstrip("\n")], ids=["plain", "header", "no newline"])
def test_every_row_is_read_with_those_of_another_zip(text: str) -> None:
    alone = read_zip(zipped(text), KEY, STEM, DAY, DAY)
    assert read_zips({STEM: zipped(text), OTHER: zipped(ROWS, OTHER)}, KEY, 24).equals(pa.concat_tables([alone, alone]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEADER,
        ROWS.partition("\n")[2],
        ROWS + ROWS,
        ROWS.partition("\n")[2] + "\n",
        ROWS.replace(",5,", ","),
        ROWS.replace("000,", "000000,"),
        f"{ROWS.partition(chr(10))[2]}{HEADER}\n",
    ],
    ids=["empty", "header only", "short", "long", "empty line", "columns", "unit", "header at the end"],
)
def test_zips_that_are_not_alike_are_not_read_together(text: str) -> None:
    with pytest.raises(MalformedError):
        read_zips({OTHER: zipped(ROWS, OTHER), STEM: zipped(text)}, KEY, 24)


@given(at=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_a_zip_with_a_byte_changed_is_read_or_refused(at: int, byte: int) -> None:
    data = bytearray(WHOLE)
    data[at] = byte
    with suppress(MalformedError):
        assert read_zip(bytes(data), KEY, STEM, DAY, DAY).num_rows == 24


def test_a_zip_of_a_later_version_is_refused() -> None:
    version = WHOLE.index(b"PK\x01\x02") + 6
    with pytest.raises(MalformedError, match="is broken: zip file version"):
        read_zip(WHOLE[:version] + b"\xff" + WHOLE[version + 1 :], KEY, STEM, DAY, DAY)


@pytest.mark.parametrize("before", ["", f"{HEADER}\n"], ids=["plain", "header"])
def test_the_rows_of_a_big_zip_are_read_in_their_order(before: str) -> None:
    table = read_seconds(zipped(before + "".join(MANY_ROWS), SECONDS_STEM))
    start = clock.day_start_us(DAY)
    assert ints(table, "open_time").tolist() == list(range(start, start + 86_400 * SECOND_US, SECOND_US))
    assert table["open"].to_pylist() == [float(row.split(",")[1]) for row in MANY_ROWS]


@pytest.mark.parametrize("at", [0, 43_200, 86_399])
def test_a_wrong_row_anywhere_in_a_big_zip_is_refused(at: int) -> None:
    rows = [*MANY_ROWS[:at], "1,2,3\n", *MANY_ROWS[at + 1 :]]
    with pytest.raises(MalformedError, match=r"Expected 12 columns, got 3.*a row of klines in spot has 12 columns"):
        read_seconds(zipped("".join(rows), SECONDS_STEM))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_big_zip_that_was_cut_within_is_refused(share: float) -> None:
    data = bytearray(zipped("".join(MANY_ROWS), SECONDS_STEM))
    at = int(len(data) * share)
    data[at : at + 4_000] = bytes(len(data[at : at + 4_000]))
    with pytest.raises(MalformedError, match="is broken"):
        read_seconds(bytes(data))
