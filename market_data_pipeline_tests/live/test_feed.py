"""The feed as a process of its own, against a sandbox whose clock runs 60 times as fast."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from market_data_pipeline import clock
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_rows import read_live_rows
from market_data_pipeline.live.rest_answers import rows_of
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import (
    CutSockets,
    DamagedMessages,
    LateClose,
    MessageDamage,
    Sandbox,
    SilentSockets,
    SkewedClock,
    SlowBody,
    Status,
)
from market_data_pipeline.sources.binance.zip_reader import table_from_rest

START = datetime(2026, 3, 1, 23, 52, 30, tzinfo=UTC)
UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT, ETHUSDT]
    klines: {intervals: [1m, 5m], from: 2026-01-01}
    aggTrades: {from: 2026-01-01}
  - market: um
    symbols: [BTCUSDT]
    klines: {intervals: [1m], from: 2026-01-01}
    aggTrades: {from: 2026-01-01}
    markPriceKlines: {intervals: [1m], from: 2026-01-01}
  - market: cm
    symbols: [BTCUSD_PERP]
    klines: {intervals: [1m], from: 2026-01-01}
"""
BTC = SeriesKey(EXCHANGE, Market.SPOT, DataType.KLINES, "BTCUSDT", "1m")
TRADES = SeriesKey(EXCHANGE, Market.SPOT, DataType.AGG_TRADES, "BTCUSDT")
SERIES = (
    BTC,
    SeriesKey(EXCHANGE, Market.SPOT, DataType.KLINES, "BTCUSDT", "5m"),
    SeriesKey(EXCHANGE, Market.SPOT, DataType.KLINES, "ETHUSDT", "1m"),
    SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", "1m"),
    SeriesKey(EXCHANGE, Market.UM, DataType.MARK_PRICE_KLINES, "BTCUSDT", "1m"),
    SeriesKey(EXCHANGE, Market.CM, DataType.KLINES, "BTCUSD_PERP", "1m"),
    TRADES,
    SeriesKey(EXCHANGE, Market.SPOT, DataType.AGG_TRADES, "ETHUSDT"),
    SeriesKey(EXCHANGE, Market.UM, DataType.AGG_TRADES, "BTCUSDT"),
)


class Daemon:
    """The command `market-data live` on a data folder, killed and started as often as a test wants."""

    def __init__(self, root: Path, sandbox: Sandbox) -> None:
        self.layout = Layout(root)
        self.sandbox = sandbox
        (root / "universe.yaml").write_text(UNIVERSE)
        self.environment = {
            **os.environ,
            **sandbox.settings_env(),
            "MARKET_DATA_DIR": str(root),
            "MARKET_DATA_UNIVERSE": str(root / "universe.yaml"),
            "MARKET_DATA_BUDGET_DIR": str(root / "budget"),
            "MARKET_DATA_WEIGHT_SHARE": "1",
            "MARKET_DATA_RETRIES": "1",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "market_data_pipeline.cli", "live", "--speed", "60"]
        self.process = subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE)
        return self.process

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=600)
        sys.stdout.write(errors.decode(errors="replace"))  # pytest shows it if the test fails
        return self.process.returncode

    def status(self) -> dict[str, Any]:
        path = self.layout.root / "live" / "status.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def rows(self, key: SeriesKey) -> pa.Table:
        return read_live_rows(self.layout, key).drop_columns(["close_state"])

    def truth(self, key: SeriesKey, first: int, last: int) -> pa.Table:
        """The generator's rows whose keys are between two, both included."""
        exchange, rows = self.sandbox.site.exchange, []
        for day in (START.date(), self.sandbox.now.date()):
            found = exchange.rows(key, day, "rest")
            rows += found.fields(0, len(found.times))
        rows = [row for row in rows if first <= int(row[0]) <= last]
        unit = 1 if key.market is Market.SPOT else 1_000
        if key.data_type is DataType.AGG_TRADES:
            answers: list[Any] = [
                {
                    **dict(zip("apqfl", (int(r[0]), r[1], r[2], int(r[3]), int(r[4])), strict=True)),
                    "T": int(r[5]) // unit,
                    "m": r[6].lower() == "true",
                    "M": True,
                }
                for r in rows
            ]
        else:
            answers = [
                [int(r[0]) // unit, *r[1:6], int(r[6]) // unit, r[7], int(r[8]), r[9], r[10], r[11]] for r in rows
            ]
        return table_from_rest(answers, key, unit)

    def differences(self, key: SeriesKey) -> tuple[int, int, int]:
        """Numbers of missing, doubled and different rows between the first and the last stored one."""
        stored = rows_of(self.rows(key), key)
        true = rows_of(self.truth(key, int(stored[0][0]), int(stored[-1][0])), key)
        by_key = {row[0]: row for row in stored}
        missing = [row for row in true if row[0] not in by_key]
        other = [row for row in true if row[0] in by_key and by_key[row[0]] != row]
        return len(missing), len(stored) - len(by_key), len(other) + len(by_key.keys() - {row[0] for row in true})

    def has_all_until(self, us: int) -> bool:
        """Return True if the feed has each candle that ended before a moment, and no open gap."""
        series = self.status().get("series", {})
        if len(series) < len(SERIES):
            return False
        for name, state in series.items():
            closed = state["last_closed"]
            step = 300 if name.endswith("/5m") else 60
            if closed is None or state["open_gaps"] or state.get("waiting"):
                return False
            at = datetime.fromisoformat(closed).timestamp() + (step if "klines" in name.lower() else 0)
            if at < us / 1e6 - step:
                return False
        return True


@contextmanager
def running(root: Path) -> Iterator[Daemon]:
    with Sandbox(now=START, speed=60) as sandbox:
        sandbox.weights.budgets = dict.fromkeys(Market, 1_000_000)
        daemon = Daemon(root, sandbox)
        daemon.start()
        try:
            yield daemon
        finally:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.kill()


def until(condition: Callable[[], bool], seconds: float = 900, tell: Callable[[], object] = str) -> None:
    """Wait for another process."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"the feed did not get there in time{tell()}"
        threading.Event().wait(0.1)


def has_rows(daemon: Daemon) -> bool:
    return all(daemon.rows(key).num_rows for key in SERIES)


@pytest.mark.slow
def test_faults_and_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    """Ten minutes and more with all faults, across midnight, and two kills of the feed."""
    with running(tmp_path) as daemon:
        until(lambda: has_rows(daemon))
        faults = daemon.sandbox.faults
        for damage in MessageDamage:
            faults.add(DamagedMessages(damage=damage, share=0.0005 if damage is MessageDamage.OVERSIZED else 0.05))
        faults.add(LateClose(share=0.1))
        faults.add(LateClose(share=0.1, seconds=30))
        faults.add(CutSockets(every=120))
        faults.add(SilentSockets(every=240))
        faults.add(SkewedClock(seconds=60))
        faults.add(Status(path="/stream$", status=503, times=6))
        for _ in range(2):
            ends = clock.to_us(daemon.sandbox.now) + 240_000_000
            until(lambda ends=ends: clock.to_us(daemon.sandbox.now) > ends)  # type: ignore[misc]
            daemon.kill()
            daemon.start()
        ends = clock.to_us(daemon.sandbox.now) + 240_000_000
        until(lambda: clock.to_us(daemon.sandbox.now) > ends)
        faults.clear()
        until(lambda: daemon.has_all_until(ends), tell=daemon.status)
        status = daemon.status()
        assert daemon.kill(signal.SIGTERM) == 143
        assert daemon.sandbox.now.date() > START.date()
        assert {str(key): daemon.differences(key) for key in SERIES} == dict.fromkeys(map(str, SERIES), (0, 0, 0))
        assert set(status["markets"]) == {"spot", "um", "cm"}
        for key in SERIES:
            if key.data_type.has_interval:
                first = daemon.rows(key)["open_time"][0].as_py()
                assert (first.hour, first.minute) == (0, 0)  # candles of today before the start come from REST


@pytest.mark.slow
def test_one_feed_runs_per_data_folder(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        until(lambda: has_rows(daemon))
        first = daemon.process
        second = daemon.start()
        assert b"is being written by another run" in second.communicate(timeout=600)[1]
        assert second.returncode == 1
        daemon.process = first
        assert daemon.kill(signal.SIGTERM) == 143
        assert daemon.sandbox.sockets.connections == []


@pytest.mark.slow
def test_a_signal_ends_a_feed_that_waits_for_rest(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        until(lambda: has_rows(daemon))
        daemon.sandbox.faults.add(SlowBody(path="Klines|klines", seconds=300))
        daemon.sandbox.clear_requests()
        until(lambda: any("lines" in request.path for request in daemon.sandbox.requests))
        assert daemon.kill(signal.SIGTERM) == 143
