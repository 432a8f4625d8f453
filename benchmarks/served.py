"""A lake of candles up to now, and a server of it in a process of its own, for benchmarks and for load."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.data import klines
from market_data_pipeline import clock
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import PREFIX
from market_data_pipeline_tests.support.small_lake import SmallLake

_STARTS_SECONDS = 120
_MINUTES = 1440


def make_served_lake(root: Path, symbols: Sequence[str], days: int) -> list[date]:
    """Write minutes of symbols: final days, and today up to now. Return the final days."""
    lake, today = SmallLake(root), clock.today()
    past = [today - timedelta(days=n) for n in range(days, 0, -1)]
    since = (clock.now() - clock.midnight(today).replace(tzinfo=UTC)) // timedelta(minutes=1)
    for n, symbol in enumerate(symbols):
        key = klines(symbol)
        records = [lake.write_file(key, day, table=made_candles(key, day, _MINUTES, n)) for day in past]
        if since:
            records.append(lake.write_file(key, today, final=False, table=made_candles(key, today, since, n)))
        lake.note(key, *records)
    return past


def made_candles(key: SeriesKey, day: date, rows: int, seed: int) -> pa.Table:
    """Return made-up minutes from a midnight on. Prices have two decimals, volumes three."""
    random = np.random.default_rng((seed, day.toordinal()))
    times = np.arange(rows, dtype=np.int64) * 60_000_000 + clock.day_start_us(day)
    columns: list[Any] = []
    for one in lake_schema(key.market, key.data_type):
        if one.name in ("symbol", "interval"):
            columns.append(pa.array([getattr(key, one.name)] * rows).dictionary_encode().cast(one.type))
        elif pa.types.is_timestamp(one.type):
            columns.append(pa.array(times + (59_999_999 if one.name == "close_time" else 0)).cast(one.type))
        elif pa.types.is_integer(one.type):
            columns.append(pa.array(random.integers(1, 10**4, rows)).cast(one.type))
        else:
            is_price = one.name in ("open", "high", "low", "close")
            whole, unit = random.integers(1, 10**7, rows), 100 if is_price else 1_000
            columns.append(pa.array(whole / unit).cast(one.type))
    return pa.table(columns, schema=lake_schema(key.market, key.data_type))


@dataclass
class ServedLake:
    """A running server.

    Attributes:
        port: On loopback.
    """

    process: psutil.Process
    port: int
    _socket: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, path: str, headers: Mapping[str, str] | None = None) -> str:
        """Send a request, wait for the whole answer, and return its ``ETag``.

        Raises:
            RuntimeError: The status is neither 200 nor 304.
        """
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._read()
        status, _, lines = data[:end].decode("latin-1").partition("\r\n")
        found = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines.split("\r\n") if line)
        }
        wanted = end + 4 + int(found.get("content-length", "0"))
        if " 304 " not in status:
            while len(data) < wanted:
                data += self._read()
        if " 200 " not in status and " 304 " not in status:
            raise RuntimeError(f"{path} was answered with {status}: {data[end : end + 500]!r}")
        return found.get("etag", "")

    def _read(self) -> bytes:
        return self._socket.recv(1 << 18) or _gone()

    def timed(self, path: str, headers: Mapping[str, str] | None = None) -> float:
        """Return the milliseconds of a request."""
        begun = time.perf_counter()
        self.ask(path, headers)
        return 1000 * (time.perf_counter() - begun)

    @property
    def cpu_seconds(self) -> float:
        """Return the processor time of the server so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    @property
    def memory_mb(self) -> float:
        """Return the resident memory of the server."""
        return float(self.process.memory_info().rss / 1e6)

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


def _gone() -> bytes:
    raise RuntimeError("The server closed the connection.")


@contextmanager
def served_lake(root: Path, **settings: str) -> Iterator[ServedLake]:
    """Run ``market-data serve`` over a data folder as long as the block runs."""
    port = free_port()
    command = [sys.executable, "-m", "market_data_pipeline.cli", "serve", "--port", str(port)]
    given = {"dir": str(root), "universe": str(root / "universe.yaml"), **settings}
    environment = os.environ | {PREFIX + name.upper(): value for name, value in given.items()}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(port, process)
            served = ServedLake(psutil.Process(process.pid), port)
            yield served
            served.close()
        finally:
            process.terminate()


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers.

    Raises:
        RuntimeError: It does not.
    """
    end = time.monotonic() + _STARTS_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("The server did not start.")


def rows_path(symbol: str, start: datetime, rows: int) -> str:
    """Return the native path of candles."""
    end = start + timedelta(minutes=rows)
    return f"/api/v1/market/candles/{symbol}/1m?start_time={start.isoformat()}&end_time={end.isoformat()}&limit={rows}"


def binance_path(symbol: str, start: datetime, rows: int) -> str:
    """Return Binance's path of the same candles."""
    begin = clock.to_us(start.replace(tzinfo=UTC)) // 1000
    last = begin + rows * 60_000 - 1
    return f"/api/v3/klines?symbol={symbol}&interval=1m&startTime={begin}&endTime={last}&limit={rows}"
