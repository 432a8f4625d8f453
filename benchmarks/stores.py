"""Rows about PostgreSQL as a store of hot rows, next to plain psycopg on the same server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa

from benchmarks.baselines import in_turn
from benchmarks.data import Archives, klines
from benchmarks.report import Baseline, Row
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.stores.base import RowState
from market_data_pipeline.stores.postgres import PostgresStore
from market_data_pipeline_tests.support.postgres import postgres_server

_LAST = 500
_MOST_DAYS = 70
_READS = 40
"""Reads in each repetition: one alone takes too little time to be measured on a busy machine."""

_NAMES = (
    *("symbol", "interval", "open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume"),
    *("count", "taker_buy_volume", "taker_buy_quote_volume", "state", "seen_at"),
)
_COLUMNS = ", ".join(f'"{name}"' for name in _NAMES)
_UPSERT = (
    f"INSERT INTO binance_spot.klines AS old ({_COLUMNS}) SELECT {_COLUMNS} FROM incoming "
    "ON CONFLICT (symbol, interval, open_time) DO UPDATE SET "
    + ", ".join(f'"{name}" = EXCLUDED."{name}"' for name in _NAMES[3:])
    + " WHERE EXCLUDED.state > old.state"
)


def postgres(archives: Archives, _: Path) -> list[Row]:
    """Save 1m candles of a symbol, raise them from live to provisional, and read the last 500.

    Plain psycopg copies rows into a temporary table and upserts from there. It reads binary rows of a prepared
    statement. Both use one connection each to a server on the same machine with its default settings, so that each
    commit is on disk.
    """
    rows = min(archives.scale.kline_days, _MOST_DAYS) * 1440
    with postgres_server() as server, PostgresStore(server.url) as store, psycopg.connect(server.url) as plain:
        times = min(archives.scale.repetitions, 3)
        ours, theirs = [klines(f"OURS{n}USDT") for n in range(times)], [klines(f"PLAIN{n}USDT") for n in range(times)]
        store.save(klines("FIRSTUSDT"), _candles(klines("FIRSTUSDT"), 1000, 1))
        saved = [_seconds(store.save, key, _candles(key, rows, 1), RowState.LIVE) for key in ours]
        copied = [_seconds(_copy, plain, _candles(key, rows, 1), RowState.LIVE) for key in theirs]
        raised = [_seconds(store.save, key, _candles(key, rows, 2), RowState.PROVISIONAL) for key in ours]
        upserted = [_seconds(_copy, plain, _candles(key, rows, 2), RowState.PROVISIONAL) for key in theirs]
        server.sql("VACUUM ANALYZE binance_spot.klines")
        last = in_turn(
            [_many(lambda: _all_there(store.load(ours[0], last=_LAST))), _many(lambda: _last(plain, ours[0]))],
            2 * times + 1,
        )
    ms = [[1000 * value / _READS for value in some] for some in last]
    return [
        Row(
            f"postgres-{name}",
            f"{rows:,} 1m candles: {what}",
            "rows/s",
            [rows / seconds for seconds in mine],
            target=50_000,
            better="higher",
            baselines=[Baseline("psycopg: COPY, then INSERT … ON CONFLICT", [rows / one for one in other])],
        )
        for name, what, mine, other in (
            ("save", "save new ones", saved, copied),
            ("upsert", "replace live ones by provisional ones", raised, upserted),
        )
    ] + [
        Row(
            "postgres-last",
            f"the last {_LAST} of {rows:,} 1m candles as Arrow",
            "ms",
            ms[0],
            target=5,
            baselines=[Baseline("psycopg: binary rows of a prepared statement, as tuples", ms[1])],
        )
    ]


def _candles(key: SeriesKey, rows: int, version: int) -> pa.Table:
    random = np.random.default_rng(version)
    times = np.arange(rows, dtype=np.int64) * 60_000_000 + 1_700_000_040_000_000
    columns: list[Any] = []
    for field in lake_schema(key.market, key.data_type):
        if field.name in ("symbol", "interval"):
            columns.append(pa.array([getattr(key, field.name)] * rows).dictionary_encode().cast(field.type))
        elif pa.types.is_timestamp(field.type):
            columns.append(pa.array(times + (59_999_000 if field.name == "close_time" else 0)).cast(field.type))
        else:
            columns.append(pa.array(random.integers(1, 10**9, rows) / 100).cast(field.type, safe=False))
    return pa.table(columns, schema=lake_schema(key.market, key.data_type))


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def _many(read: Callable[[], object]) -> Callable[[], None]:
    def reads() -> None:
        for _ in range(_READS):
            read()

    return reads


def _copy(connection: psycopg.Connection, table: pa.Table, state: RowState) -> None:
    seen_at = datetime.now(UTC)
    columns: list[Sequence[Any]] = []
    for column in table.columns:
        values: Any = column.cast(pa.timestamp("us", "UTC")) if pa.types.is_timestamp(column.type) else column
        columns.append(values.to_pylist())
    kinds = ["text", "text", "timestamptz", *["float8"] * 5, "timestamptz", "float8", "int8", "float8", "float8"]
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE incoming (LIKE binance_spot.klines) ON COMMIT DROP")
        with cursor.copy(f"COPY incoming ({_COLUMNS}) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types([*kinds, "int2", "timestamptz"])
            for row in zip(*columns, strict=True):
                copy.write_row((*row, int(state), seen_at))
        cursor.execute(_UPSERT)
    connection.commit()


def _last(connection: psycopg.Connection, key: SeriesKey) -> None:
    query = (
        f"SELECT * FROM (SELECT {_COLUMNS} FROM binance_spot.klines WHERE symbol = %s AND interval = %s "
        "ORDER BY open_time DESC LIMIT %s) AS newest ORDER BY open_time"
    )
    with connection.cursor(binary=True) as cursor:
        rows = cursor.execute(query, (key.symbol, key.interval, _LAST), prepare=True).fetchall()
    connection.commit()
    _all_there(rows)


def _all_there(rows: Sequence[object] | pa.Table) -> None:
    if len(rows) != _LAST:
        raise AssertionError(f"{len(rows)} rows instead of {_LAST}")
