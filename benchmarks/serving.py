"""Rows about the server: a real process on loopback, and a client that waits for each answer.

Compared with the same rows read by DuckDB from the same files, in a process that has its imports done.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from benchmarks.data import Archives, klines, serving, symbol_names
from benchmarks.ingestion import ingest_into
from benchmarks.processes import apart
from benchmarks.report import Baseline, Row
from market_data_pipeline.settings import PREFIX

_TIMES = 30
_STARTS_SECONDS = 120
_ARROW = {"Accept": "application/vnd.apache.arrow.stream"}


def serve(archives: Archives, work: Path) -> list[Row]:
    """``market-data serve`` over a lake of 1m klines: cached, unchanged, and encoded anew as JSON and as Arrow."""
    days, symbols = archives.query_days, symbol_names(archives.scale.symbols)
    lake = work / "lake"
    with serving(archives.symbols()) as origin:
        apart(ingest_into, lake, origin.env, dict.fromkeys([klines(symbol) for symbol in symbols], days))
    begin = datetime.combine(days[0], datetime.min.time())
    minutes = len(days) * 1440
    few, many = min(500, minutes // 2), min(10_000, minutes // 2)

    def paths(rows: int) -> list[str]:
        """Return requests of which no two are the same."""
        starts = [begin + timedelta(minutes=(n * 37) % (minutes - rows)) for n in range(_TIMES)]
        return [_path(symbols[n % len(symbols)], start, rows) for n, start in enumerate(starts)]

    with _running(lake) as (ask, memory_mb):
        same = _path(symbols[0], begin, few)
        tag = ask(same, {})
        hot = [_timed(ask, same, {}) for _ in range(_TIMES * 4)]
        unchanged = [_timed(ask, same, {"If-None-Match": tag}) for _ in range(_TIMES * 4)]
        for path in paths(few // 2):
            ask(path, {})  # every symbol was read once
        anew = [_timed(ask, path, {}) for path in paths(few)]
        big_json = [_timed(ask, path, {}) for path in paths(many)]
        big_arrow = [_timed(ask, path, _ARROW) for path in paths(many)]
        memory = memory_mb()
    by_duckdb = {rows: apart(_duckdb_times, lake, symbols[0], begin, rows) for rows in (few, many)}
    return [
        _row("serve-hot", f"{few:,} candles as JSON, asked for before", hot, 1, by_duckdb[few]),
        _row("serve-304", "the same, which the client has", unchanged, 2, by_duckdb[few]),
        _row("serve-anew", f"{few:,} other candles as JSON", anew, 4, by_duckdb[few]),
        _row("serve-json", f"{many:,} candles as JSON", big_json, 30, by_duckdb[many]),
        _row("serve-arrow", f"{many:,} candles as an Arrow stream", big_arrow, 15, by_duckdb[many]),
        Row("serve-memory", f"memory of the server after all of this, {len(symbols)} symbols", "MB", [memory], 250),
    ]


def _row(name: str, what: str, runs: list[float], target: float, duckdb_runs: list[float]) -> Row:
    baseline = Baseline("DuckDB, the same files, to Arrow", duckdb_runs)
    return Row(name, what, "ms", runs, target=target, baselines=[baseline])


def _path(symbol: str, start: datetime, rows: int) -> str:
    end = start + timedelta(minutes=rows)
    return f"/api/v1/market/candles/{symbol}/1m?start_time={start.isoformat()}&end_time={end.isoformat()}&limit={rows}"


_Ask = Callable[[str, Mapping[str, str]], str]


def _timed(ask: _Ask, path: str, headers: Mapping[str, str]) -> float:
    begun = time.perf_counter()
    ask(path, headers)
    return 1000 * (time.perf_counter() - begun)


@contextmanager
def _running(lake: Path) -> Iterator[tuple[_Ask, Callable[[], float]]]:
    import psutil

    port = free_port()
    command = [sys.executable, "-m", "market_data_pipeline.cli", "serve", "--port", str(port)]
    environment = os.environ | {f"{PREFIX}DIR": str(lake)}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with closing(connection), subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(port, process)

            def ask(path: str, headers: Mapping[str, str]) -> str:
                connection.request("GET", path, headers=dict(headers))
                answer = connection.getresponse()
                answer.read()
                if answer.status not in (200, 304):
                    raise RuntimeError(f"{path} was answered with {answer.status}.")
                return answer.headers["ETag"] or ""

            yield ask, lambda: psutil.Process(process.pid).memory_info().rss / 1e6
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


def _duckdb_times(lake: Path, symbol: str, begin: datetime, rows: int) -> list[float]:
    import duckdb
    import pyarrow as pa

    files: Sequence[str] = [str(path) for path in (lake / "lake").rglob(f"{symbol}/1m/*.parquet")]
    query = "SELECT * FROM read_parquet(?) WHERE open_time >= ? AND open_time < ?"
    times = []
    with duckdb.connect() as session:
        for n in range(_TIMES):
            start = begin + timedelta(minutes=n)
            begun = time.perf_counter()
            found: pa.Table = pa.table(session.sql(query, params=[files, start, start + timedelta(minutes=rows)]))
            times.append(1000 * (time.perf_counter() - begun))
            if found.num_rows != rows:
                raise RuntimeError(f"DuckDB found {found.num_rows} rows instead of {rows}.")
    return times
