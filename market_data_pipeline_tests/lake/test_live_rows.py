"""Live rows on disk: appended, read at once, and safe from torn ends."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_rows import (
    CloseState,
    LiveRow,
    LiveWriter,
    live_days,
    live_file,
    read_live_rows,
    remove_live_rows,
)
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey

CANDLES = SeriesKey(EXCHANGE, Market.SPOT, DataType.KLINES, "BTCUSDT", "1m")
TRADES = SeriesKey(EXCHANGE, Market.SPOT, DataType.AGG_TRADES, "BTCUSDT")
DAY = date(2026, 3, 1)
START = clock.day_start_us(DAY)
MINUTE = 60_000_000


def candle(minute: int, close: float = 1.5, state: CloseState = CloseState.CLOSED) -> LiveRow:
    opened = START + minute * MINUTE
    return LiveRow((opened, 1.0, 2.0, 0.5, close, 9.25, opened + MINUTE - 1, 10.0, 7, 4.5, 5.5), state)


def minutes(root: Path) -> list[int]:
    opened: list[Any] = read_live_rows(Layout(root), CANDLES)["open_time"].cast(pa.int64()).to_pylist()
    return [(at - START) // MINUTE for at in opened]


def test_rows_are_visible_at_once(tmp_path: Path) -> None:
    with LiveWriter(Layout(tmp_path)) as writer:
        assert writer.append(CANDLES, [candle(0), candle(1, state=CloseState.PROVEN)]) == 2
        table = read_live_rows(Layout(tmp_path), CANDLES)
    assert table.drop_columns(["close_state"]).schema.equals(lake_schema(Market.SPOT, DataType.KLINES))
    assert table["close_state"].to_pylist() == ["closed", "proven"]
    row = table.drop_columns(["close_state"]).to_pylist()[0]
    assert (row["symbol"], row["interval"], row["open_time"]) == ("BTCUSDT", "1m", clock.midnight(DAY))
    assert (row["close"], row["count"], row["taker_buy_quote_volume"]) == (1.5, 7, 5.5)


def test_trades_have_the_lakes_columns(tmp_path: Path) -> None:
    with LiveWriter(Layout(tmp_path)) as writer:
        writer.append(TRADES, [LiveRow((5, 1.5, 2.0, 7, 8, START + 1, True, True), CloseState.CLOSED)])
    table = read_live_rows(Layout(tmp_path), TRADES).drop_columns(["close_state"])
    assert table.schema.equals(lake_schema(Market.SPOT, DataType.AGG_TRADES))
    assert table["is_buyer_maker"].to_pylist() == [True]


def test_last_row_of_a_key_counts(tmp_path: Path) -> None:
    with LiveWriter(Layout(tmp_path)) as writer:
        writer.append(CANDLES, [candle(2), candle(1), candle(0)])
        writer.append(CANDLES, [candle(1, close=1.75, state=CloseState.REST)])
    table = read_live_rows(Layout(tmp_path), CANDLES)
    assert minutes(tmp_path) == [0, 1, 2]
    assert table["close"].to_pylist() == [1.5, 1.75, 1.5]
    assert table["close_state"].to_pylist() == ["closed", "rest", "closed"]


def test_days_have_files_of_their_own(tmp_path: Path) -> None:
    with LiveWriter(Layout(tmp_path), most_open=1) as writer:
        writer.append(CANDLES, [candle(1439), candle(1440)])
        writer.append(CANDLES, [candle(1438), candle(1441)])
    assert live_days(Layout(tmp_path), CANDLES) == [DAY, date(2026, 3, 2)]
    midnight = clock.midnight(date(2026, 3, 2))
    assert read_live_rows(Layout(tmp_path), CANDLES, since=midnight).num_rows == 2
    assert read_live_rows(Layout(tmp_path), CANDLES, until=midnight).num_rows == 2
    remove_live_rows(Layout(tmp_path), CANDLES, DAY)
    assert minutes(tmp_path) == [1440, 1441]


def test_without_rows_the_table_is_empty(tmp_path: Path) -> None:
    assert read_live_rows(Layout(tmp_path), CANDLES).num_rows == 0
    assert live_days(Layout(tmp_path), CANDLES) == []


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 16 + 4 * 13 * 8))
def test_a_torn_end_loses_only_torn_rows(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """A file cut at any byte has the whole rows before it, and the next writer continues after them."""
    root = tmp_path_factory.mktemp("torn")
    with LiveWriter(Layout(root)) as writer:
        writer.append(CANDLES, [candle(minute) for minute in range(4)])
    path = live_file(Layout(root), CANDLES, DAY)
    width = (path.stat().st_size - 16) // 4
    os.truncate(path, min(cut, path.stat().st_size))
    whole = max(min(cut, 16 + 4 * width) - 16, 0) // width
    assert minutes(root) == list(range(whole))
    with LiveWriter(Layout(root)) as writer:
        writer.append(CANDLES, [candle(9)])
    assert minutes(root) == [*range(whole), 9]


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 13 * 8 - 1), bit=st.integers(0, 7))
def test_a_damaged_row_is_ignored(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    root = tmp_path_factory.mktemp("damaged")
    with LiveWriter(Layout(root)) as writer:
        writer.append(CANDLES, [candle(minute) for minute in range(3)])
    path = live_file(Layout(root), CANDLES, DAY)
    data = bytearray(path.read_bytes())
    width = (len(data) - 16) // 3
    data[16 + width + at] ^= 1 << bit
    path.write_bytes(data)
    assert minutes(root) == [0, 2]


def test_zeros_after_a_power_cut_are_no_rows(tmp_path: Path) -> None:
    with LiveWriter(Layout(tmp_path)) as writer:
        writer.append(CANDLES, [candle(0)])
    with live_file(Layout(tmp_path), CANDLES, DAY).open("ab") as file:
        file.write(bytes(4096))
    assert minutes(tmp_path) == [0]
