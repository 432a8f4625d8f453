"""``python -m benchmarks.serving_load``: many clients at once, for as long as you like, against a server of its own.

It prints errors, the 99th percentile, memory and open files of the server over time. Nothing of it may grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from random import Random

import click
import numpy as np

from benchmarks.data import symbol_names
from benchmarks.served import ServedLake, binance_path, make_served_lake, rows_path, served_lake
from market_data_pipeline import clock

_REPORT_SECONDS = 15.0
_MOST_GROWTH = 1.2
"""Greatest factor by which memory may be larger at the end than after the first third."""


@dataclass
class Tally:
    """Answers of all clients since the last report, and over all of the run."""

    times: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    answers: int = 0

    def line(self, second: float, served: ServedLake) -> str:
        """Return a line of the report, and begin the next one."""
        times, self.times = self.times, []
        self.answers += len(times)
        p50, p99 = np.percentile(times, [50, 99]) if times else (0.0, 0.0)
        number = sum(self.errors.values())
        return (
            f"{second:6.0f} s {len(times):8,} answers  p50 {p50:7.1f} ms  p99 {p99:7.1f} ms  {number:5,} errors  "
            f"{served.memory_mb:6.1f} MB  {served.process.num_fds():5,} files  {served.process.num_threads():3} threads"
        )


class Client:
    """One client with a connection of its own, and with habits of its own."""

    def __init__(self, number: int, port: int, symbols: list[str], days: list[date]) -> None:
        self._random = Random(number)
        self._port = port
        self._symbols = symbols
        self._days = days
        self._own = self._random.choice(symbols)
        self._tags: dict[str, str] = {}
        self._idle = False

    async def run(self, tally: Tally, until: float, pause: float) -> None:
        """Send requests until a time of the loop. A broken connection is an error, and is opened again."""
        while time.monotonic() < until:
            writer = None
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                self._idle = False
                while time.monotonic() < until:
                    await self._ask(reader, writer, tally)
                    self._idle = True
                    await asyncio.sleep(self._random.expovariate(1 / pause))
                    if self._random.random() < 0.01:
                        break  # clients come and go
            except (OSError, asyncio.IncompleteReadError) as error:
                if isinstance(error, asyncio.IncompleteReadError) and not error.partial and self._idle:
                    continue  # the server closed a connection that was idle for long: clients connect again
                tally.errors[type(error).__name__] += 1
                await asyncio.sleep(pause)
            finally:
                if writer is not None:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tally: Tally) -> None:
        path, headers = self._request()
        if path in self._tags:
            headers += f"If-None-Match: {self._tags[path]}\r\n"
        begun = time.perf_counter()
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = head[9:12]
        found = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        if status != "304":
            await reader.readexactly(int(found.get("content-length", "0")))
        tally.times.append(1000 * (time.perf_counter() - begun))
        tally.statuses[status] += 1
        if status == "503" and "retry-after" in found:
            await asyncio.sleep(float(found["retry-after"]))  # too many requests wait: it is to be sent again later
        elif status not in ("200", "304"):
            tally.errors[f"{status} {path.partition('?')[0]}"] += 1
        elif "etag" in found and len(self._tags) < 50:
            self._tags[path] = found["etag"]

    def _request(self) -> tuple[str, str]:
        random, symbol = self._random, self._own
        chosen = random.random()
        if chosen < 0.45:  # a bot that polls its symbol
            return f"/api/v3/klines?symbol={symbol}&interval=1m&limit=500", ""
        if chosen < 0.65:  # a chart
            return f"/api/v1/market/candles/{symbol}/{random.choice(['1m', '5m', '15m', '1h'])}?limit=300", ""
        start = clock.midnight(random.choice(self._days)) + timedelta(minutes=random.randrange(600))
        symbol = random.choice(self._symbols)
        if chosen < 0.80:  # history, each time another part
            return binance_path(symbol, start, 500), random.choice(["", "Accept-Encoding: gzip\r\n"])
        if chosen < 0.90:
            return rows_path(symbol, start, 800), "Accept: application/vnd.apache.arrow.stream\r\n"
        others = ("/api/v3/exchangeInfo", f"/api/v3/ticker/24hr?symbol={symbol}", "/api/v1/system/series", "/metrics")
        return random.choice(others), ""


async def _load(
    served: ServedLake, symbols: list[str], days: list[date], clients: int, seconds: float, pause: float
) -> bool:
    tally, begun = Tally(), time.monotonic()
    until = begun + seconds
    running = [
        asyncio.create_task(Client(n, served.port, symbols, days).run(tally, until, pause)) for n in range(clients)
    ]
    memories = list[float]()
    while time.monotonic() < until:
        await asyncio.sleep(min(_REPORT_SECONDS, max(0.0, until - time.monotonic())))
        click.echo(tally.line(time.monotonic() - begun, served))
        memories.append(served.memory_mb)
    await asyncio.gather(*running)
    click.echo(tally.line(time.monotonic() - begun, served))
    statuses = ", ".join(f"{number:,} of {status}" for status, number in sorted(tally.statuses.items()))
    click.echo(f"{tally.answers:,} answers: {statuses}. {tally.answers / seconds:,.0f} a second.")
    for what, number in tally.errors.most_common(10):
        click.echo(f"{number:,} × {what}")
    grown = memories[-1] / memories[len(memories) // 3]
    click.echo(f"Memory at the end is {grown:.2f} times that after a third.")
    return not tally.errors and grown <= _MOST_GROWTH


@click.command()
@click.option("--clients", default=200, show_default=True, help="Clients at the same time.")
@click.option("--seconds", default=300.0, show_default=True, help="How long they send requests.")
@click.option("--pause", default=1.0, show_default=True, help="Mean seconds between two requests of a client.")
@click.option("--symbols", default=100, show_default=True, help="Symbols of the lake.")
def main(clients: int, seconds: float, pause: float, symbols: int) -> None:
    """Load a server. Exit code 1 if a request failed, or if memory grows."""
    names = symbol_names(symbols)
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        days = make_served_lake(Path(folder), names, 8)
        with served_lake(Path(folder)) as served:
            done = asyncio.run(_load(served, names, days, clients, seconds, pause))
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
