"""``market-data serve --live``: the feed in the server's process, beside a sandbox whose clock a test moves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner, Result
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from market_data_pipeline import clock
from market_data_pipeline.cli import main
from market_data_pipeline.errors import SeriesBusyError, StorageError
from market_data_pipeline.lake.feed_status import read_status
from market_data_pipeline.lake.forming_candles import forming_file
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_rows import LiveWriter
from market_data_pipeline.live import in_thread
from market_data_pipeline.live.feed import Feed
from market_data_pipeline.live.in_thread import FeedThread
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import LateClose, Sandbox
from market_data_pipeline.server.app import build_app
from market_data_pipeline.server.live_hub import LiveHub
from market_data_pipeline.server.run import serving
from market_data_pipeline_tests.server.test_serve import answers, free_port
from market_data_pipeline_tests.support.live_server import SECONDS, LiveServer
from market_data_pipeline_tests.support.processes import MARKET_DATA, running, until
from market_data_pipeline_tests.support.small_lake import SmallLake
from market_data_pipeline_tests.support.world import settings_of, utc

START = utc("2026-03-01T00:02:00")
SERIES = [
    SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", "1m"),
    SeriesKey(EXCHANGE, Market.UM, DataType.AGG_TRADES, "BTCUSDT"),
    SeriesKey(EXCHANGE, Market.SPOT, DataType.KLINES, "BTCUSDT", "1m"),
    SeriesKey(EXCHANGE, Market.SPOT, DataType.AGG_TRADES, "BTCUSDT"),
]
UM, UM_TRADES, SPOT, SPOT_TRADES = SERIES


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox(now=START, speed=60) as sandbox:
        monkeypatch.setattr(clock, "now", lambda: sandbox.now)
        yield sandbox


@contextmanager
def followed(root: Path, sandbox: Sandbox, keys: list[SeriesKey] | None = None) -> Iterator[LiveServer]:
    """A server with a feed of a sandbox in the same process."""
    settings = settings_of(root, sandbox, weight_share=1, universe=root / "universe.yaml")
    hub = LiveHub(keys or SERIES)
    with FeedThread(Feed(settings, hub.series, 60, hub), hub), serving(build_app(settings, hub=hub)) as url:
        requests.get(f"{url}/health", timeout=SECONDS)
        lake = SmallLake(root)
        with LiveWriter(lake.layout) as writer:
            yield LiveServer(url, hub, lake, writer)


def messages(socket: ClientConnection, enough: Callable[[dict[str, Any]], bool]) -> dict[str, dict[str, Any]]:
    """Return the trades and the closed candles of a connection by stream and key, up to one of them."""
    found: dict[str, dict[str, Any]] = {}
    while True:
        message = json.loads(socket.recv(timeout=SECONDS))
        stream, data = message["stream"], message["data"]
        if data["e"] == "aggTrade":
            found[f"{stream} {data['a']}"] = data
        elif data["k"]["x"]:
            found[f"{stream} {data['k']['t']}"] = data
            if enough(data):
                return found


def numbers(message: dict[str, Any], *, with_ids: bool) -> Any:
    """The values of a message as numbers."""
    of_candle = message.get("k")
    if of_candle is None:
        return [float(message[name]) for name in "apqflTm"]
    return [float(of_candle[name]) for name in ("t", "T", *"ohlcvnqVQ", *("fL" if with_ids else ""))]


@pytest.mark.parametrize("path", ["", "/market"])
def test_messages_are_those_of_the_exchange(tmp_path: Path, sandbox: Sandbox, path: str) -> None:
    """All trades and closed candles, field by field, without fields that are not documented.

    What is late, because the machine is busy, comes from REST: with another event time, eight decimals, and no ids.
    """
    address = f"{path}/stream?streams=btcusdt@kline_1m/btcusdt@aggTrade"
    own = connect(sandbox.url.replace("http", "ws", 1) + address, max_queue=None, proxy=None, ping_interval=None)
    with own as exchange, followed(tmp_path, sandbox) as server, server.socket(address) as served:
        minutes = iter(range(4))
        mine = messages(served, lambda _: next(minutes) == 3)
        last = max(int(name.rpartition(" ")[2]) for name in mine if "@kline" in name)
        theirs = messages(exchange, lambda data: data["k"]["t"] >= last)
    shared = [name for name in mine if name in theirs]
    assert {name.partition(" ")[0] for name in shared} == {"btcusdt@kline_1m", "btcusdt@aggTrade"}
    for name in shared:
        with_ids = mine[name].get("k", {}).get("f") != -1
        assert numbers(mine[name], with_ids=with_ids) == numbers(theirs[name], with_ids=with_ids)
    documented = [{key: value for key, value in theirs[name].items() if key not in ("nq", "st")} for name in shared]
    assert any(mine[name] == message for name, message in zip(shared, documented, strict=True))


def test_a_published_candle_is_readable_at_once(tmp_path: Path, sandbox: Sandbox) -> None:
    """Over the socket, as an event, and in an answer that is requested after either."""
    with followed(tmp_path, sandbox, [UM]) as server, server.socket("/market/ws/btcusdt@kline_1m") as socket:
        with server.events("candles/BTCUSDT/1m?market=um") as events:
            while True:
                event = events.next()["data"]
                if event["state"] == "live":
                    break
                assert event["state"] == "forming"
            while not (sent := json.loads(socket.recv(timeout=SECONDS))["k"])["x"]:
                pass
        for opened in (event["open_time"], sent["t"] * 1_000):
            url = f"{server.url}/api/v1/market/candles/BTCUSDT/1m?market=um&limit=100"
            answer = requests.get(url, timeout=SECONDS).json()
            assert opened in answer["columns"]["open_time"]


def test_a_candle_of_rest_is_sent_without_ids(tmp_path: Path, sandbox: Sandbox) -> None:
    """Its close never came. REST has no trade ids."""
    sandbox.faults.add(LateClose())
    with followed(tmp_path, sandbox, [UM]) as server, server.socket("/market/ws/btcusdt@kline_1m") as socket:
        while not (sent := json.loads(socket.recv(timeout=SECONDS))["k"])["x"]:
            pass
    assert (sent["f"], sent["L"]) == (-1, -1)
    assert sent["n"] > 0
    row = sandbox.site.exchange.rows(UM, START.date(), "rest")
    at = next(fields for fields in row.fields(0, 1440) if int(fields[0]) == sent["t"] * 1_000)
    assert [float(sent[name]) for name in "ohlcvqVQ"] == [float(at[n]) for n in (1, 2, 3, 4, 5, 7, 9, 10)]


def test_the_open_candle_is_in_answers(tmp_path: Path, sandbox: Sandbox) -> None:
    with followed(tmp_path, sandbox, [UM]) as server:

        def states() -> list[str]:
            answer = requests.get(
                f"{server.url}/api/v1/market/candles/BTCUSDT/1m?market=um&include_forming=true", timeout=SECONDS
            )
            return [span["state"] for span in answer.json().get("states", [])]

        until(lambda: states()[-1:] == ["forming"], "the candle is open", SECONDS, 0.01)
    assert read_status(Layout(tmp_path)) is not None


# --- the feed in its thread -------------------------------------------------------------------------------------------


def test_a_second_feed_is_refused_at_the_start(tmp_path: Path, sandbox: Sandbox) -> None:
    settings = settings_of(tmp_path, sandbox)
    hub = LiveHub(SERIES)
    second = FeedThread(Feed(settings, SERIES, 60, hub), hub)
    with followed(tmp_path, sandbox), pytest.raises(SeriesBusyError, match="live feed of"), second:
        pass
    assert not hub.runs
    with FeedThread(Feed(settings, SERIES, 60, hub), hub):  # free again
        assert hub.runs


def test_a_feed_that_fails_starts_again(tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams end meanwhile, so clients know. Afterwards, the feed goes on where it was."""
    monkeypatch.setattr(in_thread, "_PAUSES", (0.2,))
    write, failing = LiveWriter.append, threading.Event()

    def append(self: LiveWriter, *given: Any) -> int:
        if failing.is_set():
            raise StorageError("The disk is full.")
        return write(self, *given)

    monkeypatch.setattr(LiveWriter, "append", append)
    with followed(tmp_path, sandbox, [UM, UM_TRADES]) as server:
        with server.socket("/market/ws/btcusdt@kline_1m") as socket:
            assert json.loads(socket.recv(timeout=SECONDS))["e"] == "kline"
            failing.set()
            with suppress(Exception):
                while True:
                    socket.recv(timeout=SECONDS)
            assert socket.close_code == 1013
        failing.clear()
        until(lambda: server.hub.runs, "the feed runs again", SECONDS, 0.01)
        with server.socket("/market/ws/btcusdt@kline_1m") as socket:
            assert json.loads(socket.recv(timeout=SECONDS))["e"] == "kline"


def test_a_feed_that_cannot_begin_is_an_error(tmp_path: Path, sandbox: Sandbox) -> None:
    (tmp_path / "live").write_text("a file in place of the folder")
    hub = LiveHub(SERIES)
    with pytest.raises(StorageError), FeedThread(Feed(settings_of(tmp_path, sandbox), SERIES, 60, hub), hub):
        pass


# --- the command ------------------------------------------------------------------------------------------------------


def invoked(root: Path, *arguments: str, universe: str = "") -> Result:
    (root / "universe.yaml").write_text(universe or "collect: []\n")
    environment = {"MARKET_DATA_DIR": str(root), "MARKET_DATA_UNIVERSE": str(root / "universe.yaml")}
    return CliRunner().invoke(main, ["serve", "--live", *arguments], env=environment)


def test_without_the_extra_a_sentence_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("market_data_pipeline.live") or "websocket" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "msgspec", None)
    result = invoked(tmp_path)
    assert result.exit_code == 2
    assert 'pip install "market-data-pipeline[server,live]"' in result.output


def test_a_universe_without_streams_is_refused(tmp_path: Path) -> None:
    result = invoked(tmp_path)
    assert result.exit_code == 2
    assert "universe.yaml" in result.output
    assert "Traceback" not in result.output


UNIVERSE = """\
collect:
  - market: um
    symbols: [BTCUSDT]
    klines: {intervals: [1m], from: 2026-01-01}
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_ends_at_a_signal_and_starts_again(tmp_path: Path) -> None:
    """With a client that follows a stream. A feed of its own is refused meanwhile."""
    with Sandbox(now=datetime.now(UTC), speed=1) as sandbox:
        (tmp_path / "universe.yaml").write_text(UNIVERSE)
        environment = {**os.environ, **sandbox.settings_env(), "MARKET_DATA_DIR": str(tmp_path / "data")}
        environment |= {"MARKET_DATA_UNIVERSE": str(tmp_path / "universe.yaml"), "MARKET_DATA_WEIGHT_SHARE": "1"}
        environment["MARKET_DATA_BUDGET_DIR"] = str(tmp_path / "budget")
        for number in range(2):
            port = free_port()
            command = [MARKET_DATA, "serve", "--live", "--port", str(port)]
            with running(command, environment, tmp_path) as process:
                until(lambda port=port, of=process: answers(port) or of.poll() is not None, "it answers", 120)  # type: ignore[misc]
                address = f"ws://127.0.0.1:{port}/market/ws/btcusdt@kline_1m"
                with connect(address, proxy=None, ping_interval=None) as socket:
                    assert json.loads(socket.recv(timeout=120))["e"] == "kline"
                    if number == 0:
                        second = subprocess.run(
                            [MARKET_DATA, "live"], env=environment, capture_output=True, check=False
                        )
                        assert second.returncode == 1
                        assert b"is being written by another run" in second.stderr
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(30) == 0
                    with suppress(ConnectionClosed):
                        while True:
                            socket.recv(timeout=SECONDS)
                    assert socket.close_code in (1001, 1012)
        assert not forming_file(Layout(tmp_path / "data")).exists()
    text = "".join(path.read_text() for path in tmp_path.glob("output-*"))
    assert "Following 1 series (1 × um klines)" in text
    assert "Traceback" not in text
