from __future__ import annotations

from urllib.parse import unquote
from xml.etree import ElementTree as ET

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.coverage.candles import DOWN, HEIGHT, UP, Candle, candles_markdown, candles_svg, merge_candles

prices = st.floats(1e-8, 1e9)


def klines(rows: list[tuple[float, float]]) -> pa.Table:
    return pa.table(
        {
            "open": [first for first, _ in rows],
            "high": [max(row) for row in rows],
            "low": [min(row) for row in rows],
            "close": [last for _, last in rows],
        }
    )


@settings(max_examples=30)
@given(rows=st.lists(st.tuples(prices, prices), min_size=1, max_size=1500))
def test_any_day_is_a_picture_of_under_4_kb(rows: list[tuple[float, float]]) -> None:
    markdown = candles_markdown(klines(rows))
    assert markdown is not None
    assert len(markdown) < 4096
    svg = ET.fromstring(unquote(markdown.partition("svg+xml,")[2].rstrip(")")))  # our own bytes
    assert svg.tag.endswith("svg")


def test_merged_candle_has_the_first_open_and_the_last_close() -> None:
    rows = [(1.0, 2.0), (2.0, 9.0), (9.0, 0.5), (0.5, 3.0)]
    assert merge_candles(klines(rows), most=2) == [Candle(1, 9, 1, 9), Candle(9, 9, 0.5, 3)]


def test_candles_that_rise_are_green_and_those_that_fall_red() -> None:
    assert UP in candles_svg([Candle(1, 2, 1, 2)])
    assert DOWN not in candles_svg([Candle(1, 2, 1, 2)])
    assert DOWN in candles_svg([Candle(2, 2, 1, 1)])


def test_a_day_at_one_price_is_a_line_in_the_middle() -> None:
    assert f"M240,{HEIGHT // 2}V{HEIGHT // 2 + 1}" in candles_svg([Candle(5, 5, 5, 5)])


def test_a_day_without_candles_has_no_picture() -> None:
    assert candles_markdown(klines([])) is None
