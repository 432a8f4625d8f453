"""The window of newest candles in memory: the same rows as the lake and the live rows, after every change."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from market_data_pipeline import MarketData, clock
from market_data_pipeline.client.hot_window import HotWindow
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_eviction import evict_final_days
from market_data_pipeline.lake.live_rows import LiveWriter
from market_data_pipeline_tests.support.live_world import live_rows_of
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, series

KEY = series("BTCUSDT", "1h")


@pytest.fixture
def lake(tmp_path: Path) -> SmallLake:
    """Ten final days before today."""
    lake = SmallLake(tmp_path / "data")
    lake.put(KEY, [clock.today() - timedelta(days=n) for n in range(10, 0, -1)])
    return lake


def both(window: HotWindow, lake: SmallLake, start: datetime, end: datetime) -> tuple[list[object], list[object]]:
    """The opens of the window, and those of ``MarketData``."""
    hot = window.rows(KEY, start, end)
    assert hot is not None
    read = MarketData(lake.root).klines("BTCUSDT", "1h", start, end, on_gap="ignore").arrow()
    assert hot["open_time"].cast(pa.int64()).to_pylist() == read["open_time"].cast(pa.int64()).to_pylist()
    return hot["open"].to_pylist(), read["open"].to_pylist()


def test_a_window_follows_the_feed_and_the_lake(lake: SmallLake) -> None:
    window, today = HotWindow(Layout(lake.root)), clock.today()
    start, end = clock.midnight(today) - timedelta(hours=3), clock.midnight(today) + timedelta(hours=24)
    live = live_rows_of(day_table(KEY, today), KEY)
    with LiveWriter(lake.layout) as writer:
        for hour in range(5):
            writer.append(KEY, [live[hour]])
            hot, read = both(window, lake, start, end)
            assert hot == read == [21, 22, 23, *range(hour + 1)]
        writer.append(KEY, [live[7], live[6]])  # out of order, and with a gap
        hot, read = both(window, lake, start, end)
        assert hot == read == [21, 22, 23, 0, 1, 2, 3, 4, 6, 7]
        lake.put_table(KEY, today, day_table(KEY, today, version=3))
        hot, read = both(window, lake, start, end)
        assert hot == read == [21, 22, 23, *range(24)]
        writer.release(KEY, today)
        assert [one.evicted for one in evict_final_days(lake.layout, KEY, today + clock.DAY)] == [True]
        assert both(window, lake, start, end)[0] == hot


def test_older_rows_are_not_in_the_window(lake: SmallLake) -> None:
    window, now = HotWindow(Layout(lake.root)), clock.naive_utc(clock.now())
    assert window.rows(KEY, now - timedelta(days=31), now) is None
    assert len(window) == 0


def test_windows_take_bounded_memory(lake: SmallLake) -> None:
    other = series("ETHUSDT", "1h")
    lake.put(other, [clock.today() - timedelta(days=1)])
    window, now = HotWindow(Layout(lake.root)), clock.naive_utc(clock.now())
    assert window.rows(KEY, now - timedelta(days=3), now) is not None
    small = HotWindow(Layout(lake.root), most_bytes=window.bytes + 1)
    for key in (KEY, other):
        assert small.rows(key, now - timedelta(days=3), now) is not None
    assert len(small) == 1
    assert 0 < small.bytes < window.bytes
