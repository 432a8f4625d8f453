"""Gaps are exact: what is reported missing plus what is there is what was expected, once each."""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.findings import Finding, Severity
from market_data_pipeline.quality.gaps import check_gaps
from market_data_pipeline.series import INTERVALS, Listing, SeriesKey, interval_us
from market_data_pipeline.sources.archive import label_columns
from market_data_pipeline.specs import spec_of
from market_data_pipeline_tests.world import agg_trades, klines

DAY = date(2026, 3, 2)
START = clock.day_start_us(DAY)
END = START + clock.US_PER_DAY


def candles(key: SeriesKey, opened: list[int], flat: frozenset[int] = frozenset()) -> pa.Table:
    """Candles at these open times; those in ``flat`` without a trade."""
    rows, step = len(opened), interval_us(key.interval or "")
    volume = np.array([0.0 if at in flat else 2.0 for at in opened])
    values: dict[str, object] = {
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
    return pa.table([*label_columns(key, rows), *columns], schema=spec_of(key).schema)


def trades(key: SeriesKey, ids: list[int]) -> pa.Table:
    """Trades with these ids, a microsecond apart."""
    rows = len(ids)
    at = pa.array(START + np.arange(rows, dtype=np.int64)).cast(pa.timestamp("us"))
    values: dict[str, object] = {"transact_time": at, "is_buyer_maker": pa.array([True] * rows)}
    values |= {name: pa.array(ids, pa.int64()) for name in ("agg_trade_id", "first_trade_id", "last_trade_id")}
    values |= {"is_best_match": pa.array([True] * rows)}
    names = [c.name for c in spec_of(key).columns]
    columns = [values.get(name, np.ones(rows)) for name in names]
    return pa.table([*label_columns(key, rows), *columns], schema=spec_of(key).schema)


def by_rule(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.rule: finding for finding in findings}


def spread(finding: Finding | None, step: int) -> list[int]:
    """All keys in a finding's ranges."""
    ranges = finding.ranges if finding else ()
    return [key for r in ranges for key in range(r.first, r.last + 1, step)]


@given(st.sampled_from(["15m", "30m", "1h", "2h", "4h", "8h", "1d"]), st.data())
def test_missing_and_present_make_up_the_day(interval: str, data: st.DataObject) -> None:
    key = klines("BTCUSDT", interval)
    step = interval_us(interval)
    whole = list(range(START, END, step))
    present = [at for at in whole if data.draw(st.booleans())]
    flat = frozenset(at for at in present if data.draw(st.booleans()))
    found = by_rule(check_gaps(key, candles(key, present, flat), DAY, END, Listing()))
    missing = spread(found.get("unpublished"), step)
    assert sorted(present + missing) == whole
    assert found["unpublished"].count == len(missing) if missing else "unpublished" not in found
    assert frozenset(spread(found.get("quiet"), step)) == flat
    if "quiet" in found:
        assert found["quiet"].severity is Severity.INFO


@given(st.sets(st.integers(0, 200), min_size=1))
def test_ids_that_are_jumped_are_the_ones_reported(ids: set[int]) -> None:
    key = agg_trades("BTCUSDT")
    ordered = sorted(ids)
    found = by_rule(check_gaps(key, trades(key, ordered), DAY, END, Listing()))
    missing = spread(found.get("unpublished"), 1)
    assert sorted(ordered + missing) == list(range(ordered[0], ordered[-1] + 1))


@pytest.mark.parametrize("minutes", [0, 1, 59, 60, 61, 719])
def test_of_today_only_closed_candles_are_expected(minutes: int) -> None:
    key = klines("BTCUSDT", "1h")
    known = START + minutes * 60_000_000
    found = by_rule(check_gaps(key, candles(key, []), DAY, known, Listing()))
    assert spread(found.get("unpublished"), interval_us("1h")) == [
        START + n * 3_600_000_000 for n in range(minutes // 60)
    ]


def test_before_the_first_candle_of_the_listing_day_nothing_is_missing() -> None:
    key = klines("BTCUSDT", "1h")
    present = [START + n * interval_us("1h") for n in range(7, 24) if n != 9]
    found = by_rule(check_gaps(key, candles(key, present), DAY, END, Listing(((DAY, None),))))
    assert found["not_listed"].count == 7
    assert found["unpublished"].count == 1


def test_every_interval_divides_the_day() -> None:
    assert all(86_400 % seconds == 0 for seconds in INTERVALS.values())
