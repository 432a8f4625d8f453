"""Rows about importing older caches: one file of candles, and one of trades. No network."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data import Archives
from benchmarks.report import Baseline, Row
from market_data_pipeline import clock
from market_data_pipeline.imports.old_files import Selected
from market_data_pipeline.imports.run import import_folder
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import Market
from market_data_pipeline.settings import Settings

_FIRST = date(2024, 1, 1)
_MOST_DAYS = 100


def import_speed(archives: Archives, work: Path) -> list[Row]:
    """Import candles of 1m, and a day of aggTrades. The baseline reads and writes the same file."""
    candles = _candles(min(_MOST_DAYS, 1 + archives.scale.trades // 1440))
    trades = _trades(archives.scale.trades)
    return [
        _row("import-candles", "candles of 1m", work / "candles", "BTCUSDT/1m.parquet", candles, archives),
        _row("import-trades", "aggTrades", work / "trades", f"BTCUSDT/backfill_{_FIRST}.parquet", trades, archives),
    ]


def _row(name: str, things: str, work: Path, path: str, table: pa.Table, archives: Archives) -> Row:
    cache = work / "cache"
    (cache / path).parent.mkdir(parents=True)
    pq.write_table(table, cache / path)
    speeds, bare = list[float](), list[float]()
    for repetition in range(archives.scale.repetitions):
        root = work / str(repetition)
        settings = Settings(_env_file=None, dir=root)  # type: ignore[call-arg]
        selected = Selected(market=Market.SPOT)

        def run(root: Path = root, settings: Settings = settings, selected: Selected = selected) -> None:
            done = import_folder(cache, selected, layout=Layout(root), settings=settings, listings={})
            stored = sum(file.rows for file in done.files)
            if stored != table.num_rows:
                raise AssertionError(f"{stored:,} of {table.num_rows:,} rows were stored: {done.files}")

        speeds.append(table.num_rows / _seconds(run))
        bare.append(table.num_rows / _seconds(lambda: pq.write_table(pq.read_table(cache / path), io.BytesIO())))
    what = f"{things} of a Parquet file: read, checked and stored as days, per second of processor time"
    return Row(name, what, "rows/s", speeds, 300e3, "higher", [Baseline("pyarrow read and write alone", bare)])


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _candles(days: int) -> pa.Table:
    rows = days * 1440
    times = clock.day_start_us(_FIRST) + np.arange(rows) * 60_000_000
    close = 40_000 + np.random.default_rng(1).normal(size=rows).cumsum().round(2)
    volume = np.arange(rows) % 97 + 1.0
    columns = {
        "timestamp": times // 1000,
        "open": close,
        "high": close + 1,
        "low": close - 1,
        "close": close,
        "volume": volume,
        "close_time": times // 1000 + 59_999,
        "quote_asset_volume": volume * close,
        "trades": np.arange(rows) % 50 + 1,
        "taker_buy_base_asset_volume": volume / 2,
        "taker_buy_quote_asset_volume": volume * close / 2,
    }
    return pa.table(columns)


def _trades(rows: int) -> pa.Table:
    ids = np.arange(rows)
    columns = {
        "a": ids,
        "p": 40_000 + np.random.default_rng(1).normal(size=rows).cumsum().round(2),
        "q": (ids % 97 + 1) / 1000,
        "f": ids,
        "l": ids,
        "T": clock.day_start_us(_FIRST) // 1000 + ids * 86_400_000 // rows,
        "m": ids % 3 == 0,
        "M": ids % 3 >= 0,
    }
    return pa.table(columns)
