"""Candles with gaps, and the candles that pandas composes from them: a second opinion on ``sql/intervals.py``."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import INTERVALS, SeriesKey
from market_data_pipeline_tests.support.small_lake import SmallLake

VOLUMES = ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")
PANDAS = {"7m": "7min", "45m": "45min", "3h": "3h", "1d": "D", "3d": "72h", "1w": "W-MON", "1mo": "MS"}
"""Intervals of the tests in the words of pandas."""


def put_candles(lake: SmallLake, key: SeriesKey, days: list[date], seed: int, missing: float = 0.2) -> pd.DataFrame:
    """Write days of random candles, of which some are missing and some have no trades. Return the rows."""
    random, step = np.random.default_rng(seed), INTERVALS[key.interval or ""] * 1_000_000
    frames = []
    for day in days:
        times = clock.day_start_us(day) + np.arange(0, clock.US_PER_DAY, step)
        times = times[random.random(len(times)) >= missing]
        times = times if len(times) else np.array([clock.day_start_us(day)])
        rows = len(times)
        prices = np.sort(random.integers(1, 100_000, (4, rows)), axis=0) / 100
        traded = random.random(rows) > 0.1
        columns: dict[str, Any] = {
            "open_time": times,
            "close_time": times + step - 1000,
            "open": np.where(traded, prices[1], prices[3]),
            "high": prices[3],
            "low": np.where(traded, prices[0], prices[3]),
            "close": np.where(traded, prices[2], prices[3]),
            "count": np.where(traded, random.integers(1, 99, rows), 0),
        }
        schema = lake_schema(key.market, key.data_type)
        for name in (field.name for field in schema if field.name.endswith("_volume") or field.name == "volume"):
            columns[name] = np.where(traded, random.integers(1, 10**9, rows) / 1e5, 0.0)
        arrays = [
            pa.array([getattr(key, field.name)] * rows).dictionary_encode()
            if field.name in ("symbol", "interval")
            else pa.array(columns[field.name]).cast(field.type)
            for field in schema
        ]
        lake.put_table(key, day, pa.table(arrays, schema=schema))
        frames.append(pd.DataFrame(columns))
    frame = pd.concat(frames, ignore_index=True)
    frame.index = pd.DatetimeIndex(pd.to_datetime(frame["open_time"], unit="us", utc=True))
    return frame


def composed_by_pandas(rows: pd.DataFrame, interval: str, step: int, zone: str = "UTC") -> pd.DataFrame:
    """Compose candles from rows that are ``step`` seconds apart. The index is ``open_time`` in the zone."""
    rule, origin = PANDAS[interval], pd.Timestamp("1970-01-02" if interval == "3d" else "1970-01-01", tz=zone)
    options: dict[str, Any] = (
        {"origin": origin} if interval in ("7m", "45m", "3h", "3d") else {"label": "left", "closed": "left"}
    )
    groups = rows.tz_convert(zone).resample(rule, **options)
    ends = {"1d": pd.DateOffset(days=1), "3d": pd.DateOffset(days=3), "1w": pd.DateOffset(days=7)}
    length = ends.get(interval) or (pd.DateOffset(months=1) if interval == "1mo" else pd.Timedelta(rule))
    found = {}
    for label, group in groups:
        if len(group):
            begin: Any = label
            traded = group[group["count"] > 0]
            priced = traded if len(traded) else group
            end = begin + length
            found[begin] = {
                "close_time": end - pd.Timedelta(milliseconds=1),
                "open": priced["open"].iloc[0],
                "high": priced["high"].max(),
                "low": priced["low"].min(),
                "close": priced["close"].iloc[-1],
                **{name: group[name].sum() for name in VOLUMES},
                "count": group["count"].sum(),
                "parts": len(group),
                "complete": len(group) == (end - begin) / pd.Timedelta(seconds=step),
            }
    return pd.DataFrame.from_dict(found, orient="index")


def assert_composed(frame: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Assert that rows with zone-aware times are the expected ones."""
    frame = frame.set_index("open_time").drop(columns=["symbol", "interval"])
    assert list(frame.index) == list(expected.index)
    assert list(frame["close_time"]) == list(expected["close_time"])
    for name in ("open", "high", "low", "close", "count", "parts", "complete"):
        assert frame[name].tolist() == expected[name].tolist(), name
    for name in VOLUMES:
        np.testing.assert_allclose(frame[name], expected[name], rtol=1e-12, err_msg=name)
