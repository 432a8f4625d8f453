"""Gaps are exact: what is reported missing plus what is there is what was expected, once each."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.checks.gaps import flat_candles, missing_candles, missing_ids, seems_cut
from market_data_pipeline.checks.ordering import ints
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import INTERVALS, ListingSpans, SeriesKey, interval_us
from market_data_pipeline.sources.binance.zip_reader import label_columns
from market_data_pipeline_tests.support.world import agg_trades, klines

DAY = date(2026, 3, 2)
START = clock.day_start_us(DAY)
END = START + clock.US_PER_DAY


def candles(key: SeriesKey, opened: list[int], flat: frozenset[int] = frozenset()) -> pa.Table:
    """Candles at these open times; those in ``flat`` without a trade."""
    rows, step = len(opened), interval_us(key.interval or "")
    volume = np.array([0.0 if at in flat else 2.0 for at in opened])
    values: dict[str, Any] = {
        "open_time": pa.array(np.array(opened, dtype=np.int64)).cast(pa.timestamp("us")),
        "close_time": pa.array(np.array(opened, dtype=np.int64) + step - 1).cast(pa.timestamp("us")),
        "count": pa.array(np.array([0 if at in flat else 3 for at in opened], dtype=np.int64)),
        "volume": volume,
        "quote_volume": volume,
        "taker_buy_volume": volume / 2,
        "taker_buy_quote_volume": volume / 2,
    }
    names = [c.name for c in spec_of(key).columns if c.kind != "ignore"]
    columns = [values.get(name, np.ones(rows)) for name in names]
    return pa.table([*label_columns(key, rows), *columns], schema=lake_schema(key.market, key.data_type))


def trades(key: SeriesKey, ids: list[int], times: list[int] | None = None) -> pa.Table:
    """Trades with these ids, a microsecond apart if not at given times."""
    rows = len(ids)
    at = pa.array(times or START + np.arange(rows, dtype=np.int64)).cast(pa.timestamp("us"))
    values: dict[str, Any] = {"transact_time": at, "is_buyer_maker": pa.array([True] * rows)}
    values |= {name: pa.array(ids, pa.int64()) for name in ("agg_trade_id", "first_trade_id", "last_trade_id")}
    values |= {"is_best_match": pa.array([True] * rows)}
    names = [c.name for c in spec_of(key).columns]
    columns = [values.get(name, np.ones(rows)) for name in names]
    return pa.table([*label_columns(key, rows), *columns], schema=lake_schema(key.market, key.data_type))


@given(st.sampled_from(["15m", "30m", "1h", "2h", "4h", "8h", "1d"]), st.data())
def test_missing_and_present_make_up_the_day(interval: str, data: st.DataObject) -> None:
    key = klines("BTCUSDT", interval)
    step = interval_us(interval)
    whole = list(range(START, END, step))
    present = [at for at in whole if data.draw(st.booleans())]
    flat = frozenset(at for at in present if data.draw(st.booleans()))
    table = candles(key, present, flat)
    missing = missing_candles(key, table, DAY, END, ListingSpans())
    assert sorted([*present, *missing.inside.tolist()]) == whole
    assert len(missing) == len(missing.inside)
    assert frozenset(flat_candles(table).tolist()) == flat


@given(st.sets(st.integers(0, 200), min_size=1))
def test_ids_that_are_jumped_are_the_ones_reported(ids: set[int]) -> None:
    key = agg_trades("BTCUSDT")
    ordered = sorted(ids)
    missing = [
        jumped
        for first, last in missing_ids(ints(trades(key, ordered), "agg_trade_id"))
        for jumped in range(first, last + 1)
    ]
    assert sorted(ordered + missing) == list(range(ordered[0], ordered[-1] + 1))


@pytest.mark.parametrize("minutes", [0, 1, 59, 60, 61, 719])
def test_only_closed_candles_of_today_are_expected(minutes: int) -> None:
    key = klines("BTCUSDT", "1h")
    known = START + minutes * 60_000_000
    missing = missing_candles(key, candles(key, []), DAY, known, ListingSpans())
    assert missing.inside.tolist() == [START + n * 3_600_000_000 for n in range(minutes // 60)]


def test_nothing_is_missing_before_first_candle_of_listing_day() -> None:
    key = klines("BTCUSDT", "1h")
    present = [START + n * interval_us("1h") for n in range(7, 24) if n != 9]
    missing = missing_candles(key, candles(key, present), DAY, END, ListingSpans(((DAY, None),)))
    assert missing.before.tolist() == [START + n * interval_us("1h") for n in range(7)]
    assert missing.after.tolist() == []
    assert missing.inside.tolist() == [START + 9 * interval_us("1h")]


def test_every_interval_divides_the_day() -> None:
    assert all(86_400 % seconds == 0 for seconds in INTERVALS.values())


@pytest.mark.parametrize(
    ("hours", "cut"),
    [
        (range(24), False),  # ends an hour before midnight, as it pauses all day long
        ([*range(9), 9.5], True),  # ends at 09:30, after pauses of an hour at most
        ([3], False),  # one trade a day: nothing to compare with but ten minutes
    ],
)
def test_day_that_ends_far_too_early_looks_cut(hours: list[float], cut: bool) -> None:
    """A day ends far earlier than its longest pause allows."""
    times = [START + int(hour * 3_600_000_000) for hour in hours]
    table = trades(agg_trades("BTCUSDT"), list(range(len(times))), times)
    assert seems_cut(ints(table, "transact_time"), DAY) is cut
