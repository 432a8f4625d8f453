"""The inside of zips: what is not Binance's file is refused, whatever is wrong with it, and no row is lost."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.sources.archive import read_zip
from market_data_pipeline.sources.errors import MalformedError
from market_data_pipeline_tests.world import klines

KEY, DAY, STEM = klines("BTCUSDT", "1h"), date(2026, 3, 2), "BTCUSDT-1h-2026-03-02"
HOUR_US = 3_600_000_000
HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)
ROWS = "".join(
    f"{at},1.0,2.0,0.5,1.5,10.0,{at + HOUR_US - 1},15.0,5,4.0,6.0,0\n"
    for at in range(clock.day_start_us(DAY), clock.day_start_us(DAY) + 24 * HOUR_US, HOUR_US)
)


def zipped(text: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{STEM}.csv", text)
    return stream.getvalue()


WHOLE = zipped(ROWS)


@pytest.mark.parametrize("text", [ROWS, f"{HEADER}\n{ROWS}", ROWS.rstrip("\n")], ids=["plain", "header", "no newline"])
def test_every_row_is_read_with_a_header_or_without(text: str) -> None:
    assert read_zip(zipped(text), KEY, STEM, DAY, DAY).num_rows == 24


@pytest.mark.parametrize("begin", ["\ufeff", "-", " ", '"'])
def test_a_first_row_that_is_no_header_is_not_taken_for_one(begin: str) -> None:
    with pytest.raises(MalformedError, match="neither a header nor a number"):
        read_zip(zipped(begin + ROWS), KEY, STEM, DAY, DAY)


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
