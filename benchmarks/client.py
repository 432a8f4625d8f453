"""Rows about queries in Python: what analysts wait for, in a process that has its imports done.

Warm: it has asked once before. Cold: it asks for the first time, and no file is in the memory of the system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.baselines import pandas_read, polars_read, repeated
from benchmarks.data import Archives, klines, serving, symbol_names
from benchmarks.ingestion import ingest_into
from benchmarks.measure import measured
from benchmarks.processes import apart, as_a_notebook
from benchmarks.report import Baseline, Row
from market_data_pipeline import MarketData
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import SeriesKey

if TYPE_CHECKING:
    import pandas as pd

_OHLCV = ["open", "high", "low", "close", "volume"]
_LABELLED = ["symbol", "interval", "open_time", *_OHLCV]


@as_a_notebook()
def queries(archives: Archives, work: Path) -> list[Row]:
    """``MarketData.klines(…).df()`` over a lake of 10 symbols with 90 days of 1m klines each.

    All of it with open, high, low, close, volume; all of it with all columns; one symbol and one day; the last 500
    candles of one symbol, which lie in two days. Compared with pandas reading the same files one by one, and polars
    reading them all at once.
    """
    scale, days = archives.scale, archives.query_days
    symbols = symbol_names(scale.symbols)
    lake, times = work / "lake", 2 * scale.repetitions + 1
    keys = [klines(symbol) for symbol in symbols]
    with serving(archives.symbols()) as origin:
        apart(ingest_into, lake, origin.env, dict.fromkeys(keys, days))
    first, day = days[0], days[len(days) // 2]
    now = datetime.combine(days[-1], datetime.min.time()) + timedelta(hours=3)
    everything = [(key, day) for key in keys for day in days]
    volume = f"{len(days)} days × {len(symbols)} symbols of 1m klines to pandas"

    def asking(symbols: list[str], start: date, end: date, columns: list[str] | None, rows: int) -> _Question:
        asked = {"symbols": symbols, "interval": "1m", "start": start, "end": end, "columns": columns}
        return _Question(asked, rows)

    end, minutes = days[-1] + timedelta(days=1), len(days) * 1440 * len(symbols)
    ohlcv, whole, one, last = apart(
        _answer_times,
        lake,
        [
            asking(symbols, first, end, _OHLCV, minutes),
            asking(symbols, first, end, None, minutes),
            asking(symbols[:1], day, day + timedelta(days=1), None, 1440),
            asking(symbols[:1], now - timedelta(minutes=500), now, None, 500),
        ],
        times,
    )
    two_days = [(keys[0], days[-2]), (keys[0], days[-1])]
    files = [(everything, _LABELLED), (everything, None), ([(keys[0], day)], None), (two_days, None)]
    beside = [
        {name: apart(read, lake, days, columns, min(times, 3)) for name, read in _OTHERS.items()}
        for days, columns in files
    ]
    question = asking(symbols, first, end, _OHLCV, minutes)
    cold = [_cold(lake, everything, partial(_first_answer, lake, question)) for _ in range(scale.repetitions)]
    cold_pandas = _cold(lake, everything, partial(_first_of_pandas, lake, everything))
    return [
        _row("query-ohlcv", f"{volume}: open, high, low, close, volume", "s", ohlcv, beside[0], 0.25),
        _row(
            "query-ohlcv-cold",
            f"the same in a fresh process, with no file in memory{_forgets()}",
            "s",
            cold,
            {"pandas, file by file": [cold_pandas]},
            0.6,
        ),
        _row("query-all", f"{volume}: all columns", "s", whole, beside[1], 0.5),
        _row("query-day", "one symbol, one day of 1m klines to pandas: all columns", "ms", one, beside[2], 6),
        _row("query-last", "the last 500 1m candles of one symbol to pandas: all columns", "ms", last, beside[3], 6),
    ]


_OTHERS = {"pandas, file by file": pandas_read, "polars, all files at once": polars_read}


def _row(
    name: str, what: str, unit: str, seconds: list[float], beside: Mapping[str, list[float]], target: float
) -> Row:
    scale = 1000 if unit == "ms" else 1
    baselines = [Baseline(other, [scale * value for value in runs]) for other, runs in beside.items()]
    return Row(name, what, unit, [scale * value for value in seconds], target=target, baselines=baselines)


def _forgets() -> str:
    return "" if hasattr(os, "posix_fadvise") else " (this system cannot be told to forget them)"


def _cold(lake: Path, files: Sequence[tuple[SeriesKey, date]], ask: Callable[[], float]) -> float:
    layout = Layout(lake)
    for key, day in files:
        forget(layout.file(key, day))
    return apart(ask)


def forget(path: Path) -> None:
    """Have the system drop a file, which is on the disk, from its memory."""
    if hasattr(os, "posix_fadvise"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def _first_answer(lake: Path, question: _Question) -> float:
    import duckdb
    import pyarrow.dataset  # noqa: F401

    # What notebooks import first; a first frame makes DuckDB import what it needs of pandas.
    with duckdb.connect() as session:
        session.sql("SELECT 1 AS one").df()
    with measured() as cost:
        rows = len(_answer(MarketData(lake), question))
    if rows != question.rows:
        raise RuntimeError(f"{question.rows} rows were asked for, and {rows} came: {question.asked}.")
    return cost.seconds


def _first_of_pandas(lake: Path, days: Sequence[tuple[SeriesKey, date]]) -> float:
    import pandas as pd

    layout = Layout(lake)
    with measured() as cost:
        pd.concat([pd.read_parquet(layout.file(key, day), columns=_LABELLED) for key, day in days], ignore_index=True)
    return cost.seconds


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of ``MarketData.klines``, and how many rows must come."""

    asked: Mapping[str, Any]
    rows: int


def _answer_times(lake: Path, questions: Sequence[_Question], times: int) -> list[list[float]]:
    market = MarketData(lake)
    for question in questions:
        rows = len(_answer(market, question))
        if rows != question.rows:
            raise RuntimeError(f"{question.rows} rows were asked for, and {rows} came: {question.asked}.")
    return [repeated(partial(_answer, market, question), times) for question in questions]


def _answer(market: MarketData, question: _Question) -> pd.DataFrame:
    return market.klines(**question.asked).df()
