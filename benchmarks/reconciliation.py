"""Rows about reconciliation: a month of minutes rebuilt from aggTrades and compared, from files on this disk."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.data import TRADES_FROM, Archives, days_from
from benchmarks.measure import Cost, measured
from benchmarks.processes import apart, workers
from benchmarks.report import Baseline, Row
from market_data_pipeline import clock
from market_data_pipeline.lake import parquet
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.lineage import source_of
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.reconciliation.bars import DaySides
from market_data_pipeline.reconciliation.rebuild import reconcile_days

KEY = SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BUSYUSDT", "1m")
MOST_DAYS, MINUTES, MINUTE_US = 31, 1440, 60_000_000


def reconcile(archives: Archives, work: Path) -> list[Row]:
    """31 days of 1m klines of um, compared bar by bar with what a million aggTrades a day make of them."""
    scale = archives.scale
    days = days_from(TRADES_FROM, min(MOST_DAYS, scale.kline_days))
    with workers() as pool:
        sides = list(pool.map(write_day, [work] * len(days), days, range(len(days)), [scale.trades] * len(days)))
    runs = [apart(_reconciled, sides) for _ in range(scale.repetitions)]
    with_pandas = apart(_rebuilt_by_pandas, sides)
    what = f"reconcile {len(days)} days of 1m klines with {scale.trades / 1e6:.2g} million aggTrades a day"
    return [
        Row(
            "reconcile",
            what,
            "s",
            [cost.seconds for cost in runs],
            target=20,
            baselines=[Baseline("pandas, file by file, nothing compared", [with_pandas.seconds])],
            details={"cpu_seconds": runs[0].cpu_seconds},
        ),
        Row(
            "reconcile-memory",
            f"{what}: peak memory of the process",
            "MB",
            [cost.peak_mb for cost in runs],
            baselines=[Baseline("pandas, file by file, nothing compared", [with_pandas.peak_mb])],
        ),
    ]


def _reconciled(sides: Sequence[DaySides]) -> Cost:
    with measured() as cost:
        found = reconcile_days(KEY, sides)
    compared, differing = sum(one.bars for one in found), sum(one.differing for one in found)
    if (compared, differing) != (len(sides) * MINUTES, 0):
        raise RuntimeError(f"{compared} bars were compared, and {differing} differ: none should.")
    return cost


def _rebuilt_by_pandas(sides: Sequence[DaySides]) -> Cost:
    import pandas as pd

    with measured() as cost:
        for one in sides:
            trades = pd.read_parquet(one.source).sort_values("agg_trade_id")
            trades["value"] = trades["price"] * trades["quantity"]
            trades["count"] = trades["last_trade_id"] - trades["first_trade_id"] + 1
            bought = trades["quantity"].where(~trades["is_buyer_maker"], 0)
            trades = trades.assign(bought=bought, bought_value=bought * trades["price"])
            minutes = trades.groupby(trades["transact_time"].dt.floor("min"))
            minutes["price"].agg(["first", "max", "min", "last"])
            minutes[["quantity", "value", "bought", "bought_value", "count"]].sum()
    return cost


def write_day(folder: Path, day: date, number: int, count: int) -> DaySides:
    """Write a day of aggTrades and its minutes; of whole numbers throughout, so that sums are exact.

    Args:
        folder: Where the files go, laid out as a lake.
        day: The UTC day.
        number: Of the day; ids go on from one to the next.
        count: aggTrades in the day; a few more where every minute would not have one.
    """
    random, start = np.random.default_rng(number), clock.day_start_us(day)
    count = max(count, 2 * MINUTES)
    each_minute = np.arange(MINUTES) * MINUTE_US
    times = np.sort(np.r_[each_minute, random.integers(0, clock.US_PER_DAY // 1000, count - MINUTES) * 1000])
    price = 6_000_000 + np.cumsum(random.integers(-3, 4, count))
    quantity = random.integers(1, 100_000, count)
    size = 1 + (random.random(count) < 0.3)
    # Some ids lie in no aggTrade, as in the exchange's own.
    last = number * 3 * count + np.cumsum(size + (random.random(count) < 0.0005))
    maker = random.random(count) < 0.5
    trades = [
        number * count + np.arange(count), price / 100, quantity / 1000, last - size + 1, last,
        pa.array(start + times).cast(pa.timestamp("us")), maker,
    ]  # fmt: skip
    heads = np.searchsorted(times, each_minute)
    tails = np.r_[heads[1:], count] - 1
    opened = start + each_minute

    def total(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        sums: npt.NDArray[np.int64] = np.add.reduceat(values, heads)
        return sums

    candles = [
        pa.array(opened).cast(pa.timestamp("us")),
        price[heads] / 100, np.maximum.reduceat(price, heads) / 100, np.minimum.reduceat(price, heads) / 100,
        price[tails] / 100, total(quantity) / 1000, pa.array(opened + MINUTE_US - 1000).cast(pa.timestamp("us")),
        total(price * quantity) / 100_000, total(size), total(quantity * ~maker) / 1000,
        total(price * quantity * ~maker) / 100_000,
    ]  # fmt: skip
    source = source_of(KEY)
    for series, columns in ((source, trades), (KEY, candles)):
        spec, schema = spec_of(series), lake_schema(series.market, series.data_type)
        labels = [label for label in (series.symbol, series.interval) if label is not None]
        words = [pa.array([label] * len(columns[0])).dictionary_encode() for label in labels]
        table = pa.table([*words, *columns], schema=schema)
        parquet.write_table(folder / series.file(day), table, spec=spec)
    return DaySides(day, folder / KEY.file(day), folder / source.file(day))
