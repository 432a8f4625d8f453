"""Live rows in ``MarketData``: one result with the lake's rows, in every type, and in other processes at once."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from market_data_pipeline import GapError, GapWarning, MarketData, UsageError, clock
from market_data_pipeline.lake.forming_candles import FormingCandle, FormingWriter
from market_data_pipeline.lake.live_rows import LiveWriter
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline_tests.client.test_market_data import as_arrow
from market_data_pipeline_tests.support.live_world import live_rows_of
from market_data_pipeline_tests.support.small_lake import TRADES_A_DAY, SmallLake, day_table, days_from, series

BTC, ETH, TRADES = series("BTCUSDT", "1h"), series("ETHUSDT", "1h"), series("BTCUSDT")
D1, D2, D3 = days_from("2024-01-01", 3)


class LiveLake:
    """Hourly candles of BTC and ETH: a final day, a provisional one until 10:00, and live rows from 08:00 to 14:00."""

    def __init__(self, root: Path) -> None:
        self.lake = SmallLake(root)
        self.writer = LiveWriter(self.lake.layout)
        for key in (BTC, ETH):
            self.lake.put(key, [D1])
            self.provisional(key, D2, 10)
            self.live(key, D2, 8, 14)
        self.lake.put(TRADES, [D1])
        self.live(TRADES, D2, 0, 40)
        self.market = MarketData(root)

    def provisional(self, key: SeriesKey, day: date, rows: int) -> None:
        table = day_table(key, day).slice(0, rows)
        fetched = clock.naive_from_us(clock.day_start_us(day) + rows * 3_600_000_000).replace(tzinfo=clock.now().tzinfo)
        self.lake.note(key, self.lake.write_file(key, day, final=False, fetched_at=fetched, table=table))

    def live(self, key: SeriesKey, day: date, first: int, until: int, version: int = 0) -> None:
        self.writer.append(key, live_rows_of(day_table(key, day, version).slice(first, until - first), key))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LiveLake]:
    made = LiveLake(tmp_path / "data")
    yield made
    made.writer.close()


def hours(table: pa.Table) -> list[int]:
    begin = clock.day_start_us(D1)
    opened: list[Any] = table["open_time"].cast(pa.int64()).to_pylist()
    return [(at - begin) // 3_600_000_000 for at in opened]


def test_live_rows_follow_stored_ones_without_a_seam(world: LiveLake) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", GapWarning)
        rows = world.market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02T14:00").arrow()
    assert hours(rows) == list(range(38))
    assert rows["open"].to_pylist() == [*range(24), *range(14)]


@pytest.mark.filterwarnings("ignore::market_data_pipeline.GapWarning")
@pytest.mark.parametrize(
    "ask",
    [
        lambda m: m.klines(["ETHUSDT", "BTCUSDT"], "1h", "2024-01-01T05:00", "2024-01-02T12:00"),
        lambda m: m.klines("BTCUSDT", "1h", "2024-01-02T11:00", "2024-01-02T13:00", columns="close"),
        lambda m: m.klines("BTCUSDT", "1h", "2024-01-02T20:00", "2024-01-03"),
        lambda m: m.agg_trades("BTCUSDT", "2024-01-01T05:00", "2024-01-02T07:00"),
        lambda m: m.klines(["ETHUSDT", "BTCUSDT"], "4h", "2024-01-01", "2024-01-03"),
    ],
    ids=["symbols", "columns", "no rows", "trades", "composed"],
)
def test_every_type_has_the_live_rows(world: LiveLake, ask: Callable[[MarketData], Any]) -> None:
    result = ask(world.market)
    expected = as_arrow(result, "arrow")
    for face in ("df", "pl", "relation"):
        assert as_arrow(result, face).equals(expected), face
    assert len(result) == expected.num_rows
    scanned = result.scan().collect().to_arrow()
    assert [column.to_pylist() for column in scanned.columns] == [column.to_pylist() for column in expected.columns]
    result._repr_html_()


@pytest.mark.filterwarnings("ignore::market_data_pipeline.GapWarning")
def test_composed_candles_have_live_parts(world: LiveLake) -> None:
    rows = world.market.klines("BTCUSDT", "4h", "2024-01-02", "2024-01-03").arrow()
    assert rows["parts"].to_pylist() == [4, 4, 4, 2]
    assert rows["complete"].to_pylist() == [True, True, True, False]
    states = world.market.klines("BTCUSDT", "4h", "2024-01-02", "2024-01-03").states()
    assert states.df()["state"].tolist() == ["provisional", "live"]
    assert world.market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-03").wide("open").shape == (14, 1)


@pytest.mark.filterwarnings("ignore::market_data_pipeline.GapWarning")
def test_live_rows_can_be_left_out(world: LiveLake) -> None:
    span = ("2024-01-01", "2024-01-03")
    assert len(world.market.klines("BTCUSDT", "1h", *span, include_live=False)) == 34
    assert len(world.market.klines("BTCUSDT", "1h", *span, final_only=True)) == 24
    assert len(world.market.klines("BTCUSDT", "4h", *span, include_live=False)) == 9
    assert len(world.market.agg_trades("BTCUSDT", *span, include_live=False)) == TRADES_A_DAY
    assert len(world.market.agg_trades("BTCUSDT", *span)) == TRADES_A_DAY + 40


def test_states_name_final_provisional_and_live_rows(world: LiveLake) -> None:
    world.live(BTC, D2, 9, 10, version=5)
    result = world.market.klines("BTCUSDT", "1h", "2024-01-01T12:00", "2024-01-02T13:00", on_gap="ignore")
    found = [tuple(row.values()) for row in result.states().df().astype(str).to_dict("records")]
    assert found == [
        ("BTCUSDT", "2024-01-01 12:00:00+00:00", "2024-01-02 00:00:00+00:00", "final", "archive_daily", "0"),
        ("BTCUSDT", "2024-01-02 00:00:00+00:00", "2024-01-02 10:00:00+00:00", "provisional", "rest", "1"),
        ("BTCUSDT", "2024-01-02 10:00:00+00:00", "2024-01-02 13:00:00+00:00", "live", "live", "0"),
    ]
    assert result.arrow()["close"].to_pylist()[21] == 0  # the provisional row, not the live one
    assert "1 with live rows" in repr(result)


def test_a_final_day_has_no_live_rows(world: LiveLake) -> None:
    """The archive decides, also where the live feed has rows that it lacks."""
    final = day_table(BTC, D2, version=7)
    keep = np.arange(24) != 12
    world.lake.put_table(BTC, D2, final.filter(pa.array(keep)))
    rows = world.market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-03", on_gap="ignore").arrow()
    assert hours(rows) == [24 + hour for hour in range(24) if hour != 12]
    assert set(rows["close"].to_pylist()) == {7}


@pytest.mark.filterwarnings("ignore::market_data_pipeline.GapWarning")
def test_the_version_changes_with_each_live_row(world: LiveLake) -> None:
    def version() -> str:
        return world.market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-03", columns="close").version

    before = version()
    assert version() == before
    world.live(BTC, D2, 14, 15)
    after = version()
    assert after != before
    world.provisional(BTC, D2, 15)
    assert version() == after  # the same rows in another place
    world.live(BTC, D2, 15, 24)
    whole = version()
    world.lake.put_table(BTC, D2, day_table(BTC, D2))
    assert version() == whole


@pytest.mark.filterwarnings("ignore::market_data_pipeline.GapWarning")
def test_a_version_is_of_the_rows_that_were_read(world: LiveLake) -> None:
    result = world.market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-03")
    result.arrow()
    before = result.version
    world.live(BTC, D2, 14, 15)
    assert result.version == before
    result.arrow()
    assert result.version != before


def test_rows_between_lake_and_feed_are_a_gap(world: LiveLake) -> None:
    world.live(BTC, D2, 17, 20)
    with pytest.raises(GapError) as told:
        world.market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-02T20:00", on_gap="raise")
    assert [(gap.verdict, gap.first.hour, gap.last.hour, gap.count) for gap in told.value.gaps] == [
        ("unpublished", 14, 16, 3)
    ]


def test_missing_live_trades_are_a_gap(world: LiveLake) -> None:
    world.live(TRADES, D2, 45, 50)
    with pytest.raises(GapError) as told:
        world.market.agg_trades("BTCUSDT", "2024-01-02", "2024-01-02T11:46", on_gap="raise")
    first = day_table(TRADES, D2)["agg_trade_id"][40].as_py()
    assert [gap.ids for gap in told.value.gaps] == [(first, first + 4)]


def test_a_series_may_have_live_rows_alone(tmp_path: Path) -> None:
    key = series("SOLUSDT", "1h")
    market = MarketData(tmp_path)
    with pytest.raises(UsageError, match="are stored"):
        market.klines("SOLUSDT", "1h", "2024-01-01", "2024-01-02")
    with LiveWriter(SmallLake(tmp_path).layout) as writer:
        writer.append(key, live_rows_of(day_table(key, D1).slice(0, 3), key))
    assert hours(market.klines("SOLUSDT", "1h", "2024-01-01", "2024-01-01T03:00", on_gap="raise").arrow()) == [0, 1, 2]


# --- open candles -----------------------------------------------------------------------------------------------------


class OpenCandle:
    """An open candle of BTC at some hours after the first day, written by a feed that runs."""

    def __init__(self, world: LiveLake, hour: int, close: float = 9.0) -> None:
        self.writer = FormingWriter(world.lake.layout, [BTC, ETH])
        opened = clock.day_start_us(D1) + hour * 3_600_000_000
        values = (opened, 9.0, 9.0, 9.0, close, 1.0, opened + 3_600_000_000 - 1, 1.0, 1, 1.0, 1.0)
        self.writer.put(FormingCandle(BTC, values, opened + 1_000_000))
        self.writer.beat()

    def __enter__(self) -> FormingWriter:
        return self.writer

    def __exit__(self, *error: object) -> None:
        self.writer.close()


@pytest.mark.filterwarnings("ignore::market_data_pipeline.GapWarning")
def test_an_open_candle_is_the_last_row_if_requested(world: LiveLake) -> None:
    span = ("2024-01-02T12:00", "2024-01-03")
    with OpenCandle(world, 38):
        result = world.market.klines(["ETHUSDT", "BTCUSDT"], "1h", *span, include_forming=True)
        rows = result.arrow()
        assert hours(rows) == [36, 37, 38, 36, 37]
        assert rows["close"].to_pylist() == [0, 0, 9, 0, 0]
        for face in ("df", "pl", "relation"):
            assert as_arrow(result, face).equals(as_arrow(result, "arrow")), face
        assert len(result) == 5
        assert result.wide("close").shape == (3, 2)
        states = [tuple(row.values()) for row in result.states().df().astype(str).to_dict("records")]
        assert [state[3:5] for state in states] == [("live", "live"), ("forming", "live"), ("live", "live")]
        assert states[1][1:3] == ("2024-01-02 14:00:00+00:00", "2024-01-02 15:00:00+00:00")
        closed = world.market.klines(["ETHUSDT", "BTCUSDT"], "1h", *span)
        assert hours(closed.arrow()) == [36, 37, 36, 37]
        assert closed.version == result.version
        composed = world.market.klines("BTCUSDT", "4h", *span, include_forming=True).arrow()
        assert composed["parts"].to_pylist() == [2]
    assert hours(result.arrow()) == [36, 37, 36, 37]


@pytest.mark.filterwarnings("ignore::market_data_pipeline.GapWarning")
@pytest.mark.parametrize(("hour", "found"), [(37, [36, 37]), (20, [36, 37]), (48, [36, 37])])
def test_a_row_replaces_an_open_candle(world: LiveLake, hour: int, found: list[int]) -> None:
    """A candle that closed meanwhile, an older one, and one after the requested range."""
    with OpenCandle(world, hour):
        rows = world.market.klines("BTCUSDT", "1h", "2024-01-02T12:00", "2024-01-03", include_forming=True).arrow()
    assert hours(rows) == found
    assert rows["close"].to_pylist() == [0, 0]


@pytest.mark.filterwarnings("ignore::market_data_pipeline.GapWarning")
def test_an_open_candle_follows_any_day(world: LiveLake) -> None:
    """The first candle of a day without rows, and one after a day that is stored without live rows."""
    with OpenCandle(world, 48):
        result = world.market.klines("BTCUSDT", "1h", "2024-01-02T13:00", "2024-01-04", include_forming=True)
        assert hours(result.arrow()) == [37, 48]
        assert result.version == world.market.klines("BTCUSDT", "1h", "2024-01-02T13:00", "2024-01-04").version
    world.provisional(BTC, D3, 2)
    with OpenCandle(world, 50):
        result = world.market.klines("BTCUSDT", "1h", "2024-01-03", "2024-01-04", include_forming=True)
        assert hours(result.arrow()) == [48, 49, 50]
        assert result.states().df()["state"].tolist() == ["provisional", "forming"]
        assert result.version == world.market.klines("BTCUSDT", "1h", "2024-01-03", "2024-01-04").version
    world.lake.put_table(BTC, D3, day_table(BTC, D3).slice(0, 2))
    with OpenCandle(world, 50):
        result = world.market.klines("BTCUSDT", "1h", "2024-01-03", "2024-01-04", include_forming=True)
        assert hours(result.arrow()) == [48, 49]  # the day is final


def test_an_open_candle_needs_live_rows(world: LiveLake) -> None:
    for final_only in (True, False):
        with pytest.raises(UsageError, match="include_forming"):
            world.market.klines(
                "BTCUSDT", "1h", "2024-01-02", include_forming=True, final_only=final_only, include_live=final_only
            )


_READER = """
import sys
from market_data_pipeline import MarketData
market = MarketData(sys.argv[1])
for line in sys.stdin:
    rows = market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-03", columns="close", on_gap="ignore").arrow()
    print(rows.num_rows, flush=True)
"""


def test_another_process_sees_a_row_at_once(world: LiveLake) -> None:
    """The process reads after the append, without waiting for anything: the row is there."""
    command = [sys.executable, "-c", _READER, str(world.lake.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def rows_seen() -> int:
            print("read", file=process.stdin, flush=True)
            return int(process.stdout.readline() if process.stdout is not None else "")

        assert rows_seen() == 38
        for hour in range(14, 18):
            world.live(BTC, D2, hour, hour + 1)
            assert rows_seen() == 24 + hour + 1
        process.stdin.close()
        assert process.wait(600) == 0
