"""Rows about verify: every file of a lake is read and proven against its footer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.data import Archives, klines, serving, settings_of, symbol_names
from benchmarks.ingestion import ingest_into
from benchmarks.measure import Cost, measured
from benchmarks.processes import apart, workers
from benchmarks.report import Baseline, Row
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.checksums import content_sha256
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.maintenance.scrub import verify_local
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.series import SeriesKey

_WEEK = 7


def verify(archives: Archives, work: Path) -> list[Row]:
    """``market-data verify --local`` over a week of a million aggTrades a day, and a year of ten symbols' 1m klines.

    Schema, order and first and last key of the rows, and the sha256 of their values. As many processes read as the
    machine has cores where there is much to read, as in the command, and their start is timed; pandas reads the same
    files and compares nothing. The year of 1m klines is that of one symbol, under each of their names.
    """
    scale = archives.scale
    first, *others = map(klines, symbol_names(scale.symbols))
    trades = {archives.trade_series: archives.trade_days[:_WEEK]}
    candles = dict.fromkeys([first, *others], archives.kline_days)
    archives.trades()
    with serving(archives.klines()) as origin:
        apart(ingest_into, work, origin.env, {**trades, first: archives.kline_days})
    with workers() as pool:
        for made in [pool.submit(_copy, work, first, other, archives.kline_days) for other in others]:
            made.result()
    return [
        _row("verify-trades", "aggTrades", work, origin.env, trades, scale.repetitions),
        _row("verify-klines", "1m klines", work, origin.env, candles, scale.repetitions),
    ]


def _copy(lake: Path, key: SeriesKey, other: SeriesKey, days: Sequence[date]) -> None:
    """Write the days of a series as those of another symbol."""
    layout, spec = Layout(lake), spec_of(key)
    layout.folder(other).mkdir(parents=True)
    for day in days:
        path = layout.file(key, day)
        record, table = parquet.parse_whole(path, path.read_bytes())
        labels = pa.DictionaryArray.from_arrays(np.zeros(len(table), np.int32), pa.array([other.symbol]))
        number = table.schema.get_field_index("symbol")
        table = table.set_column(number, table.schema.field(number), labels)
        record = record.model_copy(update={"series": str(other), "content_sha256": content_sha256(table)})
        encoded = parquet.encode_table(table, record, spec)
        layout.file(other, day).write_bytes(encoded)


def _row(
    name: str,
    what: str,
    lake: Path,
    env: Mapping[str, str],
    days: Mapping[SeriesKey, Sequence[date]],
    times: int,
) -> Row:
    keys = list(days)
    runs = [apart(_prove, lake, env, keys) for _ in range(times)]
    rows = runs[0][0]
    with_pandas = apart(_read_by_pandas, lake, days)
    number = sum(map(len, days.values()))
    return Row(
        name,
        f"prove {number:,} files with {rows / 1e6:.2g} million {what} against their footers",
        "rows/s",
        [rows / cost.seconds for _, cost in runs],
        target=2e6,
        better="higher",
        baselines=[Baseline("pandas, file by file, nothing compared", [rows / with_pandas.seconds])],
        details={"peak_mb": runs[0][1].peak_mb},
    )


def _prove(lake: Path, env: Mapping[str, str], keys: Sequence[SeriesKey]) -> tuple[int, Cost]:
    with measured() as cost:
        report = verify_local(settings_of(env, lake), keys, processes=0)
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
