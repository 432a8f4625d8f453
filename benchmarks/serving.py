"""Rows about the server: a real process on loopback, and a client that waits for each answer.

Compared with the same rows read by DuckDB from the same files, and by PostgreSQL from a table with an index.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import psycopg
import pyarrow as pa

from benchmarks.data import Archives, klines, symbol_names
from benchmarks.processes import apart
from benchmarks.report import Baseline, Row
from benchmarks.served import ServedLake, binance_path, made_candles, make_served_lake, rows_path, served_lake
from market_data_pipeline import clock
from market_data_pipeline.stores.base import RowState
from market_data_pipeline.stores.postgres import PostgresStore
from market_data_pipeline_tests.support.postgres import postgres_server

_FEW, _MANY = 500, 10_000
_DAYS = 8
_SYMBOLS = 100
_TIMES = 100
_HOT_TIMES = 2_000
_ARROW = {"Accept": "application/vnd.apache.arrow.stream"}


def serve(archives: Archives, work: Path) -> list[Row]:
    """``market-data serve`` over 1m candles of 100 symbols: cached, unchanged, the newest, and history."""
    symbols = symbol_names(_SYMBOLS if archives.scale.judged else 2)
    times = _TIMES if archives.scale.judged else 10
    lake = work / "lake"
    days = make_served_lake(lake, symbols, _DAYS)
    begin, minutes = clock.midnight(days[0]), len(days) * 1440

    def starts(rows: int) -> list[tuple[str, datetime]]:
        """Return symbols and moments of which no two are the same."""
        return [
            (symbols[n % len(symbols)], begin + timedelta(minutes=(n * 37 + n // len(symbols)) % (minutes - rows)))
            for n in range(times)
        ]

    with served_lake(lake) as served:
        for symbol in symbols:  # each was read once
            served.ask(rows_path(symbol, begin, 10))
            served.ask(f"/api/v1/market/candles/{symbol}/1m?limit=10")
        same = f"/api/v1/market/candles/{symbols[0]}/1m?limit={_FEW}"
        tag = served.ask(same)
        hot = [served.timed(same) for _ in range(times * 4)]
        unchanged = [served.timed(same, {"If-None-Match": tag}) for _ in range(times * 4)]
        rate = _rate(served, same, _HOT_TIMES if archives.scale.judged else 50)
        newest = [
            served.timed(f"/api/v1/market/candles/{symbols[n % len(symbols)]}/1m?limit={_FEW - n // len(symbols) - 1}")
            for n in range(times)
        ]
        of_binance = [served.timed(binance_path(*one, _FEW)) for one in starts(_FEW)]
        big_json = [served.timed(rows_path(*one, _MANY)) for one in starts(_MANY)]
        big_arrow = [served.timed(rows_path(*one, _MANY), _ARROW) for one in starts(_MANY)]
        memory = served.memory_mb
    duckdb = {rows: Baseline(_DUCKDB, apart(_duckdb_times, lake, symbols[0], begin, rows)) for rows in (_FEW, _MANY)}
    postgres = _postgres_baselines(symbols[: min(len(symbols), 10)], days, times)
    few, many = [duckdb[_FEW], postgres[_FEW]], [duckdb[_MANY], postgres[_MANY]]
    return [
        Row("serve-hot", f"the newest {_FEW} candles as JSON, asked for before", "ms", hot, 1, baselines=few),
        Row("serve-rate", "the same, by processor time of the server", "requests/s", rate, 3_000, "higher"),
        Row("serve-304", "the same, which the client has", "ms", unchanged, 2, baselines=few),
        Row("serve-newest", f"the newest {_FEW} candles of another symbol as JSON", "ms", newest, 4, baselines=few),
        Row("serve-binance", f"{_FEW} candles of history as Binance's JSON", "ms", of_binance, 8, baselines=few),
        Row(
            "serve-binance-p99", "the slowest of a hundred of them", "ms", [_p99(of_binance)], 30, baselines=_p99s(few)
        ),
        Row("serve-json", f"{_MANY:,} candles of history as JSON", "ms", big_json, 30, baselines=many),
        Row("serve-arrow", f"{_MANY:,} candles of history as an Arrow stream", "ms", big_arrow, 15, baselines=many),
        Row("serve-memory", f"memory of the server after all of this, {len(symbols)} symbols", "MB", [memory], 250),
    ]


_DUCKDB = "DuckDB, the same files, to Arrow"


def _rate(served: ServedLake, path: str, times: int) -> list[float]:
    found = []
    for _ in range(3):
        before = served.cpu_seconds
        for _ in range(times):
            served.ask(path)
        found.append(times / max(served.cpu_seconds - before, 0.01))
    return found


def _p99(runs: Iterable[float]) -> float:
    return float(np.percentile(list(runs), 99))


def _p99s(baselines: Iterable[Baseline]) -> list[Baseline]:
    return [Baseline(one.what, [_p99(one.runs)]) for one in baselines]


def _duckdb_times(lake: Path, symbol: str, begin: datetime, rows: int) -> list[float]:
    import duckdb

    files: Sequence[str] = [str(path) for path in (lake / "lake").rglob(f"{symbol}/1m/*.parquet")]
    query = "SELECT * FROM read_parquet(?) WHERE open_time >= ? AND open_time < ?"
    with duckdb.connect() as session:

        def read(start: datetime) -> int:
            found: pa.Table = pa.table(session.sql(query, params=[files, start, start + timedelta(minutes=rows)]))
            return found.num_rows

        return _times(read, begin, rows, 30)


def _postgres_baselines(symbols: Sequence[str], days: Sequence[date], times: int) -> dict[int, Baseline]:
    """Read the same rows from PostgreSQL, as tuples, by the key of a table with 10 symbols."""
    where = "symbol = %s AND interval = '1m' AND open_time >= %s AND open_time < %s"
    query = f"SELECT * FROM binance_spot.klines WHERE {where}"
    with postgres_server("fsync=off") as server:
        with PostgresStore(server.url) as store:
            for n, symbol in enumerate(symbols):
                for day in days:
                    store.save(klines(symbol), made_candles(klines(symbol), day, 1440, n), RowState.FINAL)
        server.sql("VACUUM ANALYZE binance_spot.klines")
        with psycopg.connect(server.url) as connection, connection.cursor(binary=True) as cursor:

            def read(start: datetime, *, rows: int) -> int:
                begin = start.replace(tzinfo=UTC)
                values = (symbols[0], begin, begin + timedelta(minutes=rows))
                return len(cursor.execute(query, values, prepare=True).fetchall())

            begin, name = clock.midnight(days[0]), "PostgreSQL, binary rows as tuples"
            return {
                rows: Baseline(name, _times(partial(read, rows=rows), begin, rows, min(times, 30)))
                for rows in (_FEW, _MANY)
            }


def _times(read: Callable[[datetime], int], begin: datetime, rows: int, times: int) -> list[float]:
    found = []
    for n in range(times):
        start = begin + timedelta(minutes=n)
        begun = time.perf_counter()
        number = read(start)
        found.append(1000 * (time.perf_counter() - begun))
        if number != rows:
            raise RuntimeError(f"{number} rows were found instead of {rows}.")
    return found
