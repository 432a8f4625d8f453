"""A big lake, written directly: what SQL is asked over."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import date
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.data import Archives, days_from, klines, symbol_names
from benchmarks.processes import workers
from market_data_pipeline import clock
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.checksums import content_sha256
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.months import DayInMonth, encode_month
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.provenance import ChecksumStatus, Part, Provenance, Source
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sql.publish import publish_catalog

LAKE_FROM = date(2022, 1, 1)

_MINUTES, _MINUTE_US = 1440, 60_000_000


def lake_days(archives: Archives) -> list[date]:
    """Return the days that the lake has of each symbol."""
    return days_from(LAKE_FROM, archives.scale.lake_days)


def lake_series(archives: Archives) -> list[SeriesKey]:
    """Return its series."""
    return [klines(symbol) for symbol in symbol_names(archives.scale.symbols)]


def big_lake(archives: Archives) -> Path:
    """Return the root of a lake with years of 1m klines of several symbols. It is made once.

    Months of which all days are there are closed, the days of the last have files of their own. Prices are random
    walks. Files and footers are as ``ingest`` leaves them, but for what they say of where the rows
    came from; ledgers, which SQL over rows does not look at, there are none.
    """
    days, keys = lake_days(archives), lake_series(archives)
    root = archives.folder / "lake"
    done = root / "made"
    if not done.exists():
        with workers() as pool:
            for made in [pool.submit(_write_series, root, key, days, seed) for seed, key in enumerate(keys)]:
                made.result()
        publish_catalog(Layout(root))
        done.touch()
    return root


UNIVERSE_FROM = date(2020, 1, 1)
_UNIVERSE_MONTHS, _HISTORIES = 72, 4


def universe_months(archives: Archives) -> list[date]:
    """Return the months that the lake of 1d candles has of each symbol: six years at full size."""
    months = min(_UNIVERSE_MONTHS, archives.scale.months)
    return [clock.months_before(UNIVERSE_FROM, -number) for number in range(months)]


def universe_lake(archives: Archives) -> Path:
    """Return the root of a lake with years of 1d klines of many symbols, in closed months. It is made once.

    Four symbols have random walks. The files of the others are links to theirs.
    """
    root = archives.folder / "universe-lake"
    done, layout = root / "made", Layout(root)
    if not done.exists():
        root.mkdir(parents=True, exist_ok=True)
        (root / "universe.yaml").write_text("collect: []\n")
        keys = [klines(symbol, "1d") for symbol in symbol_names(archives.scale.universe)]
        for seed, key in enumerate(keys[:_HISTORIES]):
            _write_daily(layout, key, universe_months(archives), seed)
        for number, key in enumerate(keys[_HISTORIES:]):
            layout.months(key).mkdir(parents=True, exist_ok=True)
            for path in layout.months(keys[number % _HISTORIES]).iterdir():
                os.link(path, layout.months(key) / path.name)
        done.touch()
    return root


def _write_daily(layout: Layout, key: SeriesKey, months: Sequence[date], seed: int) -> None:
    random, price = np.random.default_rng(seed), 60_000.0
    layout.months(key).mkdir(parents=True, exist_ok=True)
    for month in months:
        made: list[DayInMonth] = []
        for day in clock.days_of_month(month):
            minutes, price = _candles(key, day, price, random)
            table = minutes.slice(0, 1)
            made.append(DayInMonth(_record(key, day, table), table))
        layout.month(key, month).write_bytes(encode_month(made, spec_of(key)))


def _write_series(root: Path, key: SeriesKey, days: Sequence[date], seed: int) -> None:
    layout, spec, random = Layout(root), spec_of(key), np.random.default_rng(seed)
    for folder in (layout.folder(key), layout.months(key)):
        folder.mkdir(parents=True, exist_ok=True)
    price = 60_000.0
    for _, days_of_one in groupby(days, key=lambda day: day.replace(day=1)):
        month: list[DayInMonth] = []
        for day in days_of_one:
            table, price = _candles(key, day, price, random)
            month.append(DayInMonth(_record(key, day, table), table))
        if len(month) == len(clock.days_of_month(month[0].record.day)):
            layout.month(key, month[0].record.day).write_bytes(encode_month(month, spec))
            continue
        for record, table in month:
            encoded = parquet.encode_table(table, record, spec)
            layout.file(key, record.day).write_bytes(encoded)


def _candles(key: SeriesKey, day: date, price: float, random: np.random.Generator) -> tuple[pa.Table, float]:
    """Return a day of candles that start at a price, and the last price."""
    steps = np.exp(random.normal(0, 0.0008, (_MINUTES, 4)).cumsum()).reshape(_MINUTES, 4)
    path = np.round(price * steps, 2)
    volume = np.round(random.gamma(2, 10, _MINUTES), 5)
    taker = np.round(volume * random.uniform(0.2, 0.8, _MINUTES), 5)
    mean = path.mean(axis=1)
    opened = clock.day_start_us(day) + np.arange(_MINUTES) * _MINUTE_US
    columns = {
        "symbol": pa.DictionaryArray.from_arrays(np.zeros(_MINUTES, np.int32), pa.array([key.symbol])),
        "interval": pa.DictionaryArray.from_arrays(np.zeros(_MINUTES, np.int32), pa.array([key.interval])),
        "open_time": pa.array(opened).cast(pa.timestamp("us")),
        "open": path[:, 0],
        "high": path.max(axis=1),
        "low": path.min(axis=1),
        "close": path[:, 3],
        "volume": volume,
        "close_time": pa.array(opened + _MINUTE_US - 1).cast(pa.timestamp("us")),
        "quote_volume": np.round(volume * mean, 8),
        "count": random.integers(50, 5000, _MINUTES),
        "taker_buy_volume": taker,
        "taker_buy_quote_volume": np.round(taker * mean, 8),
    }
    return pa.table(columns, schema=lake_schema(key.market, key.data_type)), float(path[-1, 3])


def _record(key: SeriesKey, day: date, table: pa.Table) -> Provenance:
    sha256, fetched_at = content_sha256(table), clock.now()
    part = Part(
        source=Source.ARCHIVE_DAILY,
        url=key.archive_daily(day),
        first_row=0,
        rows=table.num_rows,
        fetched_at=fetched_at,
        sha256=sha256,
        checksum=ChecksumStatus.VERIFIED,
    )
    first = clock.day_start_us(day)
    return Provenance(
        series=str(key),
        day=day,
        parts=(part,),
        final=True,
        fetched_at=fetched_at,
        rows=table.num_rows,
        first_key=first,
        last_key=first + (_MINUTES - 1) * _MINUTE_US,
        content_sha256=sha256,
    )
