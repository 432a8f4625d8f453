"""The feed in this process, against a sandbox whose clock a test moves: no second of the test depends on speed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from market_data_pipeline import MarketData, clock
from market_data_pipeline.errors import SeriesBusyError, UsageError
from market_data_pipeline.lake.feed_status import read_status
from market_data_pipeline.lake.forming_candles import read_forming
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_rows import read_live_rows
from market_data_pipeline.live.feed import Feed
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import Sandbox, SkewedClock
from market_data_pipeline_tests.support.world import settings_of, utc

CANDLES = SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", "1m")
TRADES = SeriesKey(EXCHANGE, Market.UM, DataType.AGG_TRADES, "BTCUSDT")
START = utc("2026-03-01T00:02:00")


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox(now=START, speed=60) as sandbox:
        monkeypatch.setattr(clock, "now", lambda: sandbox.now)
        yield sandbox


async def until(condition: Callable[[], bool], seconds: float = 600) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def follow(root: Path, sandbox: Sandbox, test: Callable[[Layout], Awaitable[None]]) -> None:
    """Run a feed while a test runs."""

    async def main() -> None:
        stop = asyncio.Event()
        feed = Feed(settings_of(root, sandbox, weight_share=1), [CANDLES, TRADES], 60)
        running = asyncio.create_task(feed.run(stop))
        testing = asyncio.ensure_future(test(Layout(root)))
        await asyncio.wait([running, testing], return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        await running
        await testing

    asyncio.run(main())


def opened(layout: Layout) -> list[int]:
    found: list[Any] = read_live_rows(layout, CANDLES)["open_time"].cast(pa.int64()).to_pylist()
    return found


def test_rows_and_status_appear_while_the_feed_runs(tmp_path: Path, sandbox: Sandbox) -> None:
    async def test(layout: Layout) -> None:
        await until(lambda: len(opened(layout)) >= 5 and read_live_rows(layout, TRADES).num_rows > 20)
        await until(lambda: bool((read_status(layout) or {}).get("series")))

    follow(tmp_path, sandbox, test)
    status = read_status(Layout(tmp_path))
    assert status is not None
    assert set(status["series"]) == {str(CANDLES), str(TRADES)}
    assert status["markets"]["um"].get("unreadable", 0) == 0
    found = opened(Layout(tmp_path))
    assert found == list(range(clock.day_start_us(START.date()), found[-1] + 1, 60_000_000))
    assert "proven" in read_live_rows(Layout(tmp_path), CANDLES)["close_state"].to_pylist()


def test_the_open_candle_is_read_as_forming(tmp_path: Path, sandbox: Sandbox) -> None:
    """It changes with the messages, closes as a live row, and is gone when the feed ends."""
    found: dict[int, set[float]] = {}

    def look() -> bool:
        candle = read_forming(Layout(tmp_path), CANDLES)
        if candle is not None:
            found.setdefault(candle.open_us, set()).add(float(candle.values[5]))
        return len(found) >= 4

    async def test(layout: Layout) -> None:
        await until(look)
        await until(lambda: len(opened(layout)) > 2 and opened(layout)[-1] >= max(found))
        rows = MarketData(tmp_path).klines("BTCUSDT", "1m", START, market="um", include_forming=True, on_gap="ignore")
        await until(lambda: rows.states().df()["state"].tolist()[-1] == "forming")

    follow(tmp_path, sandbox, test)
    assert max(map(len, found.values())) > 1
    volumes: list[Any] = read_live_rows(Layout(tmp_path), CANDLES)["volume"].to_pylist()
    closed = dict(zip(opened(Layout(tmp_path)), volumes, strict=True))
    assert all(max(seen) <= closed[at] for at, seen in found.items())
    assert read_forming(Layout(tmp_path), CANDLES) is None


def test_an_announced_shutdown_loses_nothing(tmp_path: Path, sandbox: Sandbox) -> None:
    """A second connection opens before the first ends, so REST has nothing to answer for."""

    async def test(layout: Layout) -> None:
        await until(lambda: read_live_rows(layout, TRADES).num_rows > 10)
        first = sandbox.sockets.connections[0]
        sandbox.sockets.announce_shutdown(3_600)
        await until(lambda: len(sandbox.sockets.connections) == 2)
        await until(lambda: first not in sandbox.sockets.connections)
        seen = read_live_rows(layout, TRADES).num_rows
        await until(lambda: read_live_rows(layout, TRADES).num_rows > seen + 10)

    follow(tmp_path, sandbox, test)
    ids: list[Any] = read_live_rows(Layout(tmp_path), TRADES)["agg_trade_id"].to_pylist()
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert [r.path for r in sandbox.requests if r.path.endswith("aggTrades")] == []


def test_a_clock_that_is_a_minute_off_changes_nothing(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.faults.add(SkewedClock(seconds=60))

    async def test(layout: Layout) -> None:
        await until(lambda: len(opened(layout)) >= 8)

    follow(tmp_path, sandbox, test)
    exchange = sandbox.site.exchange
    true = {int(row[0]): float(row[4]) for row in exchange.rows(CANDLES, START.date(), "rest").fields(0, 1440)}
    table = read_live_rows(Layout(tmp_path), CANDLES)
    stored = dict(zip(opened(Layout(tmp_path)), table["close"].to_pylist(), strict=True))
    assert stored == {at: true[at] for at in stored}
    assert max(stored) + 60_000_000 <= clock.to_us(sandbox.now + timedelta(seconds=1))


def test_a_second_feed_is_refused(tmp_path: Path, sandbox: Sandbox) -> None:
    async def test(layout: Layout) -> None:
        await until(lambda: read_status(layout) is not None)
        with pytest.raises(SeriesBusyError, match="live feed of"):
            await Feed(settings_of(tmp_path, sandbox), [CANDLES], 60).run(asyncio.Event())

    follow(tmp_path, sandbox, test)


def test_a_universe_without_streams_is_refused(tmp_path: Path, sandbox: Sandbox) -> None:
    metrics = SeriesKey(EXCHANGE, Market.UM, DataType.METRICS, "BTCUSDT")
    with pytest.raises(UsageError, match=r"universe\.yaml"):
        Feed(settings_of(tmp_path, sandbox), [metrics])
