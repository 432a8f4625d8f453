"""A real server on loopback with the hub of a feed, and what a test publishes there in the feed's place."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

from market_data_pipeline import clock
from market_data_pipeline.lake.live_rows import LiveRow, LiveWriter
from market_data_pipeline.model.live_updates import CandleUpdate, TradeUpdate
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.server.app import build_app
from market_data_pipeline.server.live_hub import LiveHub
from market_data_pipeline.server.run import serving
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.support.live_world import live_rows_of
from market_data_pipeline_tests.support.processes import until
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, series

HOURS, MINUTES, TRADES = series("BTCUSDT", "1h"), series("BTCUSDT", "1m", "um"), series("BTCUSDT")
PERPETUAL = series("BTCUSD_PERP", "1m", "cm")
SECONDS = 600
"""Time in which something must arrive. It is long, because machines can be full."""


@dataclass
class LiveServer:
    """A server, its hub, and the writer of the live rows in its lake."""

    url: str
    hub: LiveHub
    lake: SmallLake
    writer: LiveWriter

    @property
    def sockets(self) -> str:
        """The address of its sockets, without a path."""
        return self.url.replace("http", "ws", 1)

    @contextmanager
    def socket(self, path: str, **options: Any) -> Iterator[ClientConnection]:
        """Connect to a path, with an unbounded queue of messages."""
        given = {"max_queue": None, "ping_interval": None, "compression": None, "proxy": None, **options}
        with connect(f"{self.sockets}{path}", **given) as one:
            yield one

    @contextmanager
    def events(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[Events]:
        """Connect to a path below ``/api/v1/market/stream``, or to one that begins with a slash."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=SECONDS)
        whole = path if path.startswith("/") else f"/api/v1/market/stream/{path}"
        connection.request("GET", whole, headers=dict(headers or {}))
        answer = connection.getresponse()
        try:
            yield Events(connection, answer)
        finally:
            answer.close()
            connection.close()

    def refused(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        """Return the status and the problem with which a stream is refused."""
        with self.events(path, headers) as events:
            assert events.answer.headers["content-type"] == "application/problem+json"
            return events.answer.status, json.loads(events.answer.read()) | dict(events.answer.headers)

    def followed(self, key: SeriesKey = HOURS, clients: int = 1) -> None:
        """Wait until clients follow a series."""
        until(lambda: len(self.hub._followers.get(key, ())) == clients, f"{clients} clients follow", SECONDS, 0.01)

    def stored(self, hours: int) -> list[tuple[Any, ...]]:
        """Append the last hours that are over as live rows, and return their values."""
        now = clock.naive_utc(clock.now()).replace(minute=0, second=0, microsecond=0)
        rows: list[LiveRow] = []
        for n in range(hours, 0, -1):
            at = now - timedelta(hours=n)
            rows += live_rows_of(day_table(HOURS, at.date()).slice(at.hour, 1), HOURS)
        self.writer.append(HOURS, rows)
        return [row.values for row in rows]


@dataclass
class Events:
    """An answer of events."""

    connection: http.client.HTTPConnection
    answer: http.client.HTTPResponse

    def next(self) -> dict[str, Any]:
        """Return the next event as its fields, with its data parsed. Comments and ``retry`` are skipped."""
        found: dict[str, Any] = {}
        while True:
            line = self.answer.readline().decode()
            assert line, "the connection ended"
            name, _, value = line.rstrip("\n").partition(": ")
            if name in ("id", "event", "data"):
                found[name] = json.loads(value) if name == "data" else value
            elif line == "\n" and found:
                return found


@contextmanager
def live_server(lake: SmallLake, **options: Any) -> Iterator[LiveServer]:
    """Serve a lake with the hub of a feed that runs."""
    hub = LiveHub([HOURS, MINUTES, TRADES, PERPETUAL])
    hub.began()
    app = build_app(load_settings(dir=lake.root, universe=lake.root / "universe.yaml"), hub=hub, **options)
    with serving(app) as url, LiveWriter(lake.layout) as writer:
        with urlopen(f"{url}/health", timeout=SECONDS):  # it answers, so the hub is open
            pass
        yield LiveServer(url, hub, lake, writer)


def candle(key: SeriesKey = HOURS, close: float = 4.0, opened: int = 0, *, closed: bool = False) -> CandleUpdate:
    """A candle with some close. Without ``opened``, the current one."""
    opened = opened or clock.to_us(clock.now()) // key.step * key.step
    values = (opened, 1.0, 5.0, 0.5, close, 2.0, opened + key.step - 1_000, 8.0, 3, 1.0, 4.0)
    texts = ("1.00", "5.00", "0.50", f"{close:.2f}", "2.000", "8.0", "1.000", "4.0")
    return CandleUpdate(key, opened + 1_500_000, closed, values, texts, 17, 19)


def trade(number: int, quantity: str = "0.5000") -> TradeUpdate:
    """A trade of spot."""
    at = 1_700_000_000_000_000 + number * 1_000_000
    values = (number, 62445.66, float(quantity), number * 2, number * 2 + 1, at, number % 2 == 0, True)
    return TradeUpdate(TRADES, at + 2_000, values, ("62445.66000000", quantity))
