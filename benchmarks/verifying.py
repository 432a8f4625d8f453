"""Rows about verify: every file of a lake is read and proven against its footer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from benchmarks.data import Archives, klines, serving, settings_of, symbol_names
from benchmarks.ingestion import ingest_into
from benchmarks.measure import Cost, apart, measured
from benchmarks.report import Baseline, Row
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.series import SeriesKey
from market_data_pipeline.verify import prove_local


def verify(archives: Archives, work: Path) -> list[Row]:
    """``market-data verify --local`` over a week of a million aggTrades a day, and over many small files of 1m klines.

    Schema, order and first and last key of the rows, and the sha256 of their values. As many processes read as the
    machine has cores where files are many, as the command does; pandas reads the same files and compares nothing. Of
    small files, a thousand of which are read in a second, opening and the start of those processes are the most part.
    """
    scale = archives.scale
    first, *others = symbol_names(scale.symbols)
    trades = {archives.trade_series: archives.trade_days}
    candles = {klines(first): archives.kline_days, **{klines(name): archives.query_days for name in others}}
    with serving(archives.daily) as origin:
        apart(ingest_into, work, origin.env, {**trades, **candles})
    return [
        _row("verify-trades", "aggTrades", work, origin.env, trades, scale.repetitions, target=2e6),
        _row("verify-klines", "1m klines", work, origin.env, candles, scale.repetitions),
    ]


def _row(
    name: str,
    what: str,
    lake: Path,
    env: Mapping[str, str],
    days: Mapping[SeriesKey, Sequence[date]],
    times: int,
    target: float | None = None,
) -> Row:
    keys = list(days)
    runs = [apart(_prove, lake, env, keys) for _ in range(times)]
    rows = runs[0][0]
    with_pandas = apart(_read_by_pandas, lake, days)
    files = sum(map(len, days.values()))
    return Row(
        name,
        f"prove {files:,} files with {rows / 1e6:.2g} million {what} against their footers",
        "rows/s",
        [rows / cost.seconds for _, cost in runs],
        target=target,
        better="higher",
        baselines=[Baseline("pandas, file by file, nothing compared", [rows / with_pandas.seconds])],
        details={"peak_mb": runs[0][1].peak_mb},
    )


def _prove(lake: Path, env: Mapping[str, str], keys: Sequence[SeriesKey]) -> tuple[int, Cost]:
    with measured() as cost:
        report = prove_local(settings_of(env, lake), keys, processes=os.cpu_count() or 1)
    if not report.all_well:
        raise RuntimeError(f"Files that were just written are not what they say: {report.faults}")
    return report.rows, cost


def _read_by_pandas(lake: Path, days: Mapping[SeriesKey, Sequence[date]]) -> Cost:
    import pandas as pd

    layout = Layout(lake)
    with measured() as cost:
        for key, wanted in days.items():
            for day in wanted:
                pd.read_parquet(layout.file(key, day))
    return cost
