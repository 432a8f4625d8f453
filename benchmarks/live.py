"""Rows about the live feed: how many messages become stored rows, and how soon a candle can be read."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_sockets

from benchmarks.data import Archives
from benchmarks.processes import FRESH
from benchmarks.report import Baseline, Row
from benchmarks.served import free_port, wait_for
from market_data_pipeline import MarketData, clock
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_rows import LiveWriter
from market_data_pipeline.live.effects import Append
from market_data_pipeline.live.market import make_feed
from market_data_pipeline.model.binance_dialect import kline_message
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.settings import PREFIX
from market_data_pipeline.sources.binance.websocket import StreamDecoder

_START_US = 1_772_366_400_000_000
_TOGETHER = 50
"""Messages that arrive together, so their rows are written together."""


def live_messages(archives: Archives, work: Path) -> list[Row]:
    """AggTrades of one symbol: decode, check ids, make candles of 1m, and append rows. Beside ``json.loads`` alone."""
    trades = SeriesKey(EXCHANGE, Market.UM, DataType.AGG_TRADES, "BTCUSDT")
    candles = SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", "1m")
    messages = [_message(number) for number in range(min(archives.scale.trades, 100_000))]
    speeds, bare = list[float](), list[float]()
    for repetition in range(archives.scale.repetitions):
        decoder = StreamDecoder(Market.UM, [trades, candles], 1_000)
        feed = make_feed([trades, candles], {candles: _START_US}, {trades: 0})
        began = time.process_time()
        with LiveWriter(Layout(work / str(repetition))) as writer:
            for at in range(0, len(messages), _TOGETHER):
                effects = [
                    effect
                    for message in messages[at : at + _TOGETHER]
                    for effect in feed.take(decoder.decode(message), _START_US)
                ]
                writer.append(trades, [row for effect in effects if isinstance(effect, Append) for row in effect.rows])
        speeds.append(len(messages) / (time.process_time() - began))
        began = time.process_time()
        for message in messages:
            json.loads(message)
        bare.append(len(messages) / (time.process_time() - began))
    what = "aggTrades of a stream: decoded, made into candles and stored, per second of one core"
    return [Row("live-messages", what, "messages/s", speeds, 20e3, "higher", [Baseline("json.loads alone", bare)])]


def _message(number: int) -> bytes:
    at = _START_US // 1_000 + number * 5
    facts = {"a": number, "p": "62445.66", "q": "0.118", "f": number, "l": number, "T": at, "m": number % 3 == 0}
    data = {"e": "aggTrade", "E": at + 155, "s": "BTCUSDT", **facts, "nq": "0.118", "st": 1}
    return json.dumps({"stream": "btcusdt@aggTrade", "data": data}).encode()


# --- how soon a candle can be read ---------------------------------------------------------------------------------

_SYMBOLS = 20
"""Symbols whose candles close in the same moment."""
_PAUSE_SECONDS = 0.05
"""Time between two such moments."""
_SECOND_US = 1_000_000
_STEADY_SECONDS = 1.0
_LONGEST_SECONDS = 120.0
_WORST = 0.99


def live_readable(archives: Archives, work: Path) -> list[Row]:
    """Candles of 20 symbols close together, 20 times a second, and the last one of them is read.

    The feed runs in ``market-data serve --live``. One reader asks that process over HTTP, another reads the data folder
    with ``MarketData`` in a process of its own. Both poll, one after the other, and nothing waits for anything else.
    """
    rounds = 400 if archives.scale.judged else 30
    what = f"from the frame of a closed candle until {{}} has it, worst 1 % of {rounds:,}"
    symbols = [f"SYM{number:02}USDT" for number in range(_SYMBOLS)]
    root = work / "data"
    root.mkdir(parents=True)
    universe = root / "universe.yaml"
    universe.write_text(
        f"collect:\n  - market: spot\n    symbols: [{', '.join(symbols)}]\n"
        "    klines: {intervals: [1s], from: 2024-01-01}\n"
    )
    with _exchange(symbols) as exchange, _serving_live(root, universe, exchange.url) as url:
        exchange.followed.wait(60)
        time.sleep(_STEADY_SECONDS)
        base = clock.to_us(clock.now()) // _SECOND_US * _SECOND_US - 1_200 * _SECOND_US
        by_http = _latencies(exchange, base, rounds, _read_by_http, url, symbols[-1])
        base += rounds * _SECOND_US
        by_folder = _latencies(exchange, base, rounds, _read_in_folder, str(root), symbols[-1])
    return [
        _readable("live-readable", what.format("the server of the same process"), by_http),
        _readable("live-readable-apart", what.format("MarketData in another process"), by_folder),
    ]


def _readable(name: str, what: str, latencies: list[float]) -> Row:
    return Row(name, what, "ms", [_worst(latencies)], 250, details={"median": sorted(latencies)[len(latencies) // 2]})


def _worst(latencies: list[float]) -> float:
    return sorted(latencies)[min(len(latencies) - 1, int(len(latencies) * _WORST))]


class _Exchange:
    """Sends candles to a feed, when it is told to."""

    def __init__(self, symbols: list[str]) -> None:
        self.followed = threading.Event()
        self.url = ""
        self._symbols = symbols
        self._socket: ServerConnection | None = None

    def follow(self, socket: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            for text in socket:
                socket.send(json.dumps({"result": None, "id": json.loads(text)["id"]}))
                self._socket = socket
                self.followed.set()

    def close(self, opened_us: int) -> float:
        """Send the close of all candles. Return the time before the first one was sent."""
        if self._socket is None:
            raise RuntimeError("No feed is connected.")
        close = f"{opened_us // _SECOND_US % 90 + 100}.00"
        texts = ("100.00", "200.00", "99.00", close, "3.5", "350.0", "1.5", "150.0")
        began = time.monotonic()
        for symbol in self._symbols:
            times = opened_us, opened_us + _SECOND_US - 1
            message = kline_message(symbol, "1s", opened_us + _SECOND_US, times, (1, 3), texts, 3, closed=True)
            self._socket.send(json.dumps({"stream": f"{symbol.lower()}@kline_1s", "data": message}))
        return began


@contextmanager
def _exchange(symbols: list[str]) -> Iterator[_Exchange]:
    exchange = _Exchange(symbols)
    with serve_sockets(exchange.follow, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        exchange.url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        yield exchange
        server.shutdown()


@contextmanager
def _serving_live(root: Path, universe: Path, streams: str) -> Iterator[str]:
    port, nowhere = free_port(), f"http://127.0.0.1:{free_port()}"
    given = {"DIR": str(root), "UNIVERSE": str(universe), "BUDGET_DIR": str(root / "budget"), "RETRIES": "0"}
    given |= {"SPOT_STREAM_URL": streams, "SPOT_URL": nowhere, "TIMEOUT_SECONDS": "1"}
    command = [sys.executable, "-m", "market_data_pipeline.cli", "serve", "--live", "--port", str(port)]
    environment = os.environ | {f"{PREFIX}{name}": value for name, value in given.items()}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _latencies(
    exchange: _Exchange,
    base_us: int,
    rounds: int,
    read: Callable[[Connection, str, str, int, int], None],
    place: str,
    symbol: str,
) -> list[float]:
    """Return the milliseconds from each close until a reader in another process has it."""
    ours, theirs = FRESH.Pipe()
    exchange.close(base_us)  # the series has a row
    last = base_us + (rounds - 1) * _SECOND_US
    reader = FRESH.Process(target=read, args=(theirs, place, symbol, base_us, last), daemon=True)
    reader.start()
    ours.recv()
    sent = []
    for number in range(1, rounds):
        sent.append(exchange.close(base_us + number * _SECOND_US))
        time.sleep(_PAUSE_SECONDS)
    seen: dict[int, float] = ours.recv()
    reader.join()
    if len(seen) != rounds - 1:
        raise RuntimeError(f"Only {len(seen)} of {rounds - 1} candles were readable after {_LONGEST_SECONDS:g} s.")
    return [1_000 * (seen[base_us + (number + 1) * _SECOND_US] - at) for number, at in enumerate(sent)]


def _read_by_http(to: Connection, url: str, symbol: str, base_us: int, last_us: int) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)

    def newest() -> int:
        connection.request("GET", f"/api/v1/market/candles/{symbol}/1s?limit=1&columns=close")
        times = json.loads(connection.getresponse().read()).get("columns", {}).get("open_time", [])
        return int(times[-1]) if times else 0

    _poll(to, newest, base_us, last_us)


def _read_in_folder(to: Connection, root: str, symbol: str, base_us: int, last_us: int) -> None:
    market = MarketData(root)
    start = clock.naive_from_us(base_us) - timedelta(seconds=1)

    def newest() -> int:
        rows = market.klines(symbol, "1s", start, columns="close", on_gap="ignore").arrow()
        return int(rows["open_time"][-1].value) if rows.num_rows else 0

    _poll(to, newest, base_us, last_us)


def _poll(to: Connection, newest: Callable[[], int], base_us: int, last_us: int) -> None:
    """Ask for the newest candle until it is the last one, and send the time at which each one was there."""
    end = time.monotonic() + _LONGEST_SECONDS
    while newest() < base_us and time.monotonic() < end:
        time.sleep(0.001)
    to.send(None)
    seen: dict[int, float] = {}
    known = base_us
    while known < last_us and time.monotonic() < end:
        found, now = newest(), time.monotonic()
        for opened in range(known + _SECOND_US, found + 1, _SECOND_US):
            seen[opened] = now
        known = max(known, found)
        time.sleep(0.001)
    to.send(seen)
