"""Open candles in their file: one state per series, seen by any reader, and only while a feed shows that it runs."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.errors import StorageError
from market_data_pipeline.lake.forming_candles import (
    FormingCandle,
    FormingWriter,
    forming_file,
    forming_mark,
    read_forming,
)
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline_tests.support.small_lake import series

MINUTES, HOURS = series("BTCUSDT", "1m"), series("BTCUSDT", "1h", "um")
OTHERS = (series("ETHUSDT", "1m"), series("BTCUSDT"), series("BTCUSDT", "1m", "um", "markPriceKlines"))


def forming(key: SeriesKey = MINUTES, close: float = 4.0, as_of_us: int = 1_700_000_030_000_000) -> FormingCandle:
    opened = 1_700_000_000_000_000 // (key.step or 1) * key.step
    values = (opened, 1.0, 5.0, 0.5, close, 2.0, opened + key.step - 1, 8.0, 3, 1.0, 4.0)
    return FormingCandle(key, values, as_of_us)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_a_candle_is_seen_until_it_is_cleared(layout: Layout) -> None:
    assert read_forming(layout, MINUTES) is None
    with FormingWriter(layout, [MINUTES, HOURS, *OTHERS]) as writer:
        writer.beat()
        assert read_forming(layout, MINUTES) is None
        for candle in (forming(), forming(close=4.5), forming(HOURS)):
            writer.put(candle)
            assert read_forming(layout, candle.key) == candle
        assert read_forming(layout, MINUTES) == forming(close=4.5)
        assert [read_forming(layout, key) for key in OTHERS] == [None] * 3
        writer.clear(MINUTES)
        assert read_forming(layout, MINUTES) is None
        assert read_forming(layout, HOURS) is not None
    assert read_forming(layout, HOURS) is None
    assert not forming_file(layout).exists()


def test_its_table_has_the_form_of_the_lake() -> None:
    for market in (Market.SPOT, Market.CM):
        table = forming(series("BTCUSDT", "1m", market)).table()
        assert table.schema == lake_schema(market, MINUTES.data_type)
        assert table.num_rows == 1
        assert table["close"].to_pylist() == [4.0]
        assert table["symbol"].to_pylist() == ["BTCUSDT"]


def test_a_mark_differs_with_each_state(layout: Layout) -> None:
    with FormingWriter(layout, [MINUTES]) as writer:
        writer.beat()
        marks = [forming_mark(layout, MINUTES)]
        for candle in (forming(), forming(close=4.5), forming(close=4.5, as_of_us=1_700_000_031_000_000)):
            writer.put(candle)
            marks.append(forming_mark(layout, MINUTES))
    assert marks[0] == b""
    assert len(set(marks)) == 4


def test_a_feed_without_a_sign_of_life_has_none(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock.now()
    with FormingWriter(layout, [MINUTES]) as writer:
        writer.put(forming())
        assert read_forming(layout, MINUTES) is None  # not one yet
        writer.beat()
        assert read_forming(layout, MINUTES) is not None
        for seconds in (11, -11):
            monkeypatch.setattr(clock, "now", lambda seconds=seconds: now + timedelta(seconds=seconds))
            assert read_forming(layout, MINUTES) is None


def test_the_next_feed_replaces_what_a_killed_one_left(layout: Layout) -> None:
    killed = FormingWriter(layout, [MINUTES])
    killed.beat()
    killed.put(forming())
    assert read_forming(layout, MINUTES) is not None
    os.close(killed._file)
    with FormingWriter(layout, [HOURS, MINUTES]) as writer:
        writer.beat()
        assert read_forming(layout, MINUTES) is None
        writer.put(forming(close=4.5))
        assert read_forming(layout, MINUTES) == forming(close=4.5)


@given(at=st.integers(0, 400), part=st.binary(min_size=1, max_size=200))
def test_damage_is_never_a_candle(tmp_path_factory: pytest.TempPathFactory, at: int, part: bytes) -> None:
    """A file with any bytes in it has the candle that was written, or none."""
    layout = Layout(tmp_path_factory.getbasetemp() / "damaged")
    with FormingWriter(layout, [MINUTES, HOURS]) as writer:
        writer.beat()
        writer.put(forming())
        damaged = bytearray(forming_file(layout).read_bytes())
        damaged[at : at + len(part)] = part
        forming_file(layout).write_bytes(damaged)
        assert read_forming(layout, MINUTES) in (None, forming())
        assert read_forming(layout, HOURS) is None
    again = Layout(tmp_path_factory.getbasetemp() / "again")
    forming_file(again).parent.mkdir(parents=True, exist_ok=True)
    forming_file(again).write_bytes(damaged)
    assert read_forming(again, MINUTES) in (None, forming())
    forming_file(again).unlink()


def test_a_full_disk_is_named(layout: Layout) -> None:
    with FormingWriter(layout, [MINUTES]) as writer:
        os.dup2(full := os.open("/dev/full", os.O_RDWR), writer._file)
        os.close(full)
        with pytest.raises(StorageError, match="cannot be written"):
            writer.beat()
