"""A day of requests to a server that may fetch: none reaches the exchange while the live feed runs without faults.

The day is played minute by minute in full size: ``ECONOMY_SYMBOLS=20 ECONOMY_STEP=1``, 118,000 requests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from starlette.concurrency import run_in_threadpool
from starlette.testclient import TestClient

from market_data_pipeline import clock
from market_data_pipeline.lake.live_rows import CloseState, LiveRow, LiveWriter
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.sandbox import Sandbox
from market_data_pipeline.sandbox.symbols import GeneratedSymbol
from market_data_pipeline.server import fetching
from market_data_pipeline.server.app import build_app
from market_data_pipeline.server.jobs import ServerJobs, fetch_arguments
from market_data_pipeline_tests.support.small_lake import series
from market_data_pipeline_tests.support.world import World, days, utc

SYMBOLS = [f"S{n:02}USDT" for n in range(int(os.environ.get("ECONOMY_SYMBOLS", "2")))]
STEP = timedelta(minutes=int(os.environ.get("ECONOMY_STEP", "240")))
INTERVALS = ("1m", "1h")
BEGIN = utc("2026-03-05T00:00:00")
STORED = days("2026-03-02", "2026-03-04")
UNIVERSE = f"""\
collect:
- market: spot
  symbols: [{", ".join(SYMBOLS)}]
  klines: {{intervals: [1m, 1h], from: 2026-03-02}}
"""
LATEST = "/api/v3/klines"


@dataclass
class Traffic:
    """Clients of a server. They count their own requests for rows, and the rows of the answers.

    Attributes:
        requests: Requests for rows.
        rows: Rows of the answers. An answer that the client has already counts again, as in the server.
    """

    client: TestClient
    requests: int = 0
    rows: int = 0
    _known: dict[str, tuple[str, int]] = field(default_factory=dict)

    def ask(self, path: str, count: Callable[[Any], int], *, remember: bool = False, **given: Any) -> int:
        """Send a request for rows, and return their number. ``remember`` asks only for what changed."""
        name = f"{path} {sorted(given.items())}"
        tag, rows = self._known.get(name, ("", 0))
        answer = self.client.get(path, params=given, headers={"If-None-Match": tag} if tag and remember else {})
        assert answer.status_code in (200, 304), answer.text
        if answer.status_code == 200:
            rows = count(answer)
            self._known[name] = answer.headers["etag"], rows
        self.requests += 1
        self.rows += rows
        return rows


def of_binance(answer: Any) -> int:
    return len(answer.json())


def of_json(answer: Any) -> int:
    return len(answer.json()["columns"]["open_time"])


def of_arrow(answer: Any) -> int:
    return pa.ipc.open_stream(answer.content).read_all().num_rows


@dataclass
class Day:
    """A lake of three days, the live feed of a fourth one, and a server of both that fetches what is missing."""

    world: World
    client: TestClient
    writer: LiveWriter
    live_until: datetime = BEGIN

    def go_on(self) -> datetime:
        """Let time pass. The feed has every candle that closed meanwhile, and sends no request to the exchange."""
        now = self.live_until + STEP
        self.world.at(now.replace(tzinfo=None).isoformat())
        for symbol in SYMBOLS:
            for interval in INTERVALS:
                self.writer.append(series(symbol, interval), self._closed(series(symbol, interval), now))
        self.live_until = now
        return now

    def _closed(self, key: SeriesKey, now: datetime) -> list[LiveRow]:
        rows = self.world.sandbox.site.exchange.rows(key, BEGIN.date(), "rest")
        begin, end = (clock.to_us(moment) for moment in (self.live_until, now))
        first, last = rows.times.searchsorted([begin - key.step + 1, end - key.step + 1])
        found = []
        for text in rows.fields(int(first), int(last)):
            values = (*map(float, text[:11]),)
            whole = {at: int(text[at]) for at in (0, 6, 8)}
            found.append(LiveRow(tuple(whole.get(at, value) for at, value in enumerate(values)), CloseState.CLOSED))
        return found

    def stats(self) -> Any:
        return self.client.get("/api/v1/system/cache-stats").json()


@pytest.fixture
def day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Day]:
    listed = STORED[0] - timedelta(days=30)
    symbols = [GeneratedSymbol(Market.SPOT, name, listed, trades_per_day=3_000) for name in SYMBOLS]
    with Sandbox(symbols=symbols) as sandbox, LiveWriter(World(tmp_path, sandbox, monkeypatch).layout) as writer:
        world = World(tmp_path, sandbox, monkeypatch)
        world.at("2026-03-05T09:00:00")
        for symbol in SYMBOLS:
            for interval in INTERVALS:
                world.ingest(series(symbol, interval), STORED)
        (tmp_path / "universe.yaml").write_text(UNIVERSE)
        world.set(universe=tmp_path / "universe.yaml", serve_cache_strategy="auto")
        world.at(BEGIN.replace(tzinfo=None).isoformat())
        world.forget()
        with TestClient(build_app(world.settings), base_url="http://localhost") as client:
            yield Day(world, client, writer)


def clients_of_one_step(traffic: Traffic, now: datetime, random: Random) -> None:
    """Requests as bots and charts send them: the newest candles of each symbol above all, and some history."""
    for symbol in SYMBOLS:
        for _ in range(2):  # two bots
            assert traffic.ask(LATEST, of_binance, symbol=symbol, interval="1m", limit=500) == 500
        traffic.ask(LATEST, of_binance, symbol=symbol, interval="1h", limit=100, remember=True)
        traffic.ask(f"/api/v1/market/candles/{symbol}/5m", of_json, limit=200, remember=True)
    symbol = random.choice(SYMBOLS)
    start = utc("2026-03-02T00:00:00") + timedelta(minutes=random.randrange(3 * 1440))
    span: dict[str, Any] = {
        "start_time": start.isoformat(),
        "end_time": min(now, start + timedelta(hours=12)).isoformat(),
    }
    traffic.ask(f"/api/v1/market/candles/{symbol}/1m", of_arrow, **span, limit=720, format="arrow")
    traffic.ask(LATEST, of_binance, symbol=symbol, interval="1m", startTime=int(start.timestamp() * 1000), limit=1000)


def test_a_day_of_requests_sends_none_to_the_exchange(day: Day) -> None:
    traffic, random = Traffic(day.client), Random(1)
    while day.live_until < BEGIN + timedelta(days=1) - STEP:
        clients_of_one_step(traffic, day.go_on(), random)
    assert day.world.sandbox.requests == []
    stats = day.stats()
    assert stats["requests"]["exchange"] == stats["rows"]["exchange"] == 0
    assert stats["hit_rate"] == {"requests": 1.0, "rows": 1.0}
    assert sum(stats["requests"].values()) == traffic.requests
    assert sum(stats["rows"].values()) == traffic.rows
    assert stats["requests"]["hot"] > 0
    assert stats["encoded"]["hits"] >= len(SYMBOLS)


def test_only_a_lost_day_is_fetched_and_it_counts(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that fetches runs in this process. The numbers of the server are those of the exchange's log."""
    key, lost = series(SYMBOLS[0], "1h"), STORED[1]
    day.world.layout.file(key, lost).unlink()
    day.world.at("2026-03-05T09:00:00")

    async def command(jobs: ServerJobs, arguments: Sequence[str]) -> tuple[int, bytes, str]:
        assert tuple(arguments) == fetch_arguments(key, lost, lost)
        await run_in_threadpool(day.world.ingest, key, [lost])
        return 0, b"", ""

    monkeypatch.setattr(ServerJobs, "_command", command)
    monkeypatch.setattr(fetching, "DEADLINE_SECONDS", 60.0)
    traffic = Traffic(day.client)
    for hour in range(100):
        start = utc("2026-03-02T00:00:00") + timedelta(minutes=hour)
        traffic.ask(f"/api/v1/market/candles/{key.symbol}/1m", of_json, start_time=start.isoformat(), limit=30)
    assert day.world.sandbox.requests == []
    span: dict[str, Any] = {"start_time": "2026-03-02", "end_time": "2026-03-05"}
    for _ in range(2):
        assert traffic.ask(f"/api/v1/market/candles/{key.symbol}/1h", of_json, **span) == 72
    asked = day.world.asked()
    assert asked
    assert all(str(lost) in path for path in asked)
    stats = day.stats()
    assert (stats["requests"]["exchange"], stats["rows"]["exchange"]) == (1, 24)
    assert (sum(stats["requests"].values()), sum(stats["rows"].values())) == (traffic.requests, traffic.rows)
    assert stats["hit_rate"]["requests"] == pytest.approx(1 - 1 / 102, abs=1e-6)
    assert stats["hit_rate"]["rows"] == pytest.approx(1 - 24 / traffic.rows, abs=1e-6)
