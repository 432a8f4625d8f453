"""Rows about queries: what analysts wait for, in a process that has its imports done and has asked once before."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.baselines import pandas_read, repeated
from benchmarks.data import Archives, klines, serving, symbol_names
from benchmarks.ingestion import ingest_into
from benchmarks.measure import apart
from benchmarks.report import Baseline, Row

_OHLCV = ["open", "high", "low", "close", "volume"]
_LABELLED = ["symbol", "interval", "open_time", *_OHLCV]


def queries(archives: Archives, work: Path) -> list[Row]:
    """``MarketData.klines(…).df()`` over a lake of 10 symbols with 90 days of 1m klines each.

    All of it with open, high, low, close, volume; all of it with all columns; one symbol and one day; the last 500
    candles of one symbol, which lie in two days. Compared with pandas reading the same files one by one.
    """
    scale, days = archives.scale, archives.query_days
    symbols = symbol_names(scale.symbols)
    lake, times = work / "lake", 2 * scale.repetitions + 1
    keys = [klines(symbol) for symbol in symbols]
    with serving(archives.daily) as origin:
        apart(ingest_into, lake, origin.env, dict.fromkeys(keys, days))
    first, day = days[0], days[len(days) // 2]
    now = datetime.combine(days[-1], datetime.min.time()) + timedelta(hours=3)
    everything = [(key, day) for key in keys for day in days]
    volume = f"{len(days)} days × {len(symbols)} symbols of 1m klines to pandas"

    def ours(symbols: list[str], start: date, end: date, columns: list[str] | None, rows: int) -> list[float]:
        asked = {"symbols": symbols, "interval": "1m", "start": start, "end": end, "columns": columns}
        return apart(_ask, lake, asked, rows, times)

    end, minutes = days[-1] + timedelta(days=1), len(days) * 1440 * len(symbols)
    all_columns = apart(pandas_read, lake, everything, None, min(times, 3))
    one_day = apart(pandas_read, lake, [(keys[0], day)], None, times)
    two_days = apart(pandas_read, lake, [(keys[0], days[-2]), (keys[0], days[-1])], None, times)
    return [
        Row(
            "query-ohlcv",
            f"{volume}: open, high, low, close, volume",
            "s",
            ours(symbols, first, end, _OHLCV, minutes),
            target=0.5,
            baselines=[
                Baseline("pandas, file by file", apart(pandas_read, lake, everything, _LABELLED, min(times, 3)))
            ],
        ),
        Row(
            "query-all",
            f"{volume}: all columns",
            "s",
            ours(symbols, first, end, None, minutes),
            baselines=[Baseline("pandas, file by file", all_columns)],
        ),
        _in_ms(
            "query-day",
            "one symbol, one day of 1m klines to pandas: all columns",
            ours(symbols[:1], day, day + timedelta(days=1), None, 1440),
            one_day,
        ),
        _in_ms(
            "query-last",
            "the last 500 1m candles of one symbol to pandas: all columns",
            ours(symbols[:1], now - timedelta(minutes=500), now, None, 500),
            two_days,
        ),
    ]


def _in_ms(name: str, what: str, seconds: list[float], beside: list[float]) -> Row:
    baseline = Baseline("pandas, file by file", [1000 * value for value in beside])
    return Row(name, what, "ms", [1000 * value for value in seconds], baselines=[baseline])


def _ask(lake: Path, asked: Mapping[str, Any], rows: int, times: int) -> list[float]:
    from market_data_pipeline import MarketData

    market = MarketData(lake)
    answer = market.klines(**asked).df()
    if len(answer) != rows:
        raise RuntimeError(f"{rows} rows were asked for, and {len(answer)} came.")
    return repeated(lambda: market.klines(**asked).df(), times)
