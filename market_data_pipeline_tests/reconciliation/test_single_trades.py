"""Where single trades are stored, 1m klines are rebuilt from them and must be equal."""

from __future__ import annotations

from datetime import date, datetime

import pytest

from market_data_pipeline.model.reconciliation import DayReconciled
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.reconciliation.plan import compare, plan
from market_data_pipeline.sandbox import ChangedRows, MissingRows
from market_data_pipeline_tests.support.world import World, agg_trades, klines, utc

DAY = date(2026, 2, 10)


def trades(market: str, symbol: str) -> SeriesKey:
    return SeriesKey(EXCHANGE, Market(market), DataType.TRADES, symbol)


def compared(world: World, key: SeriesKey) -> list[DayReconciled]:
    due = plan(world.layout, key)
    return [one for batch in compare(world.layout, key, due.days, memory_mb=256) for one in batch]


@pytest.mark.parametrize(("market", "symbol"), [("spot", "BTCUSDT"), ("um", "BTCUSDT"), ("cm", "BTCUSD_PERP")])
def test_minutes_follow_from_single_trades(world: World, market: str, symbol: str) -> None:
    key = klines(symbol, "1m", market)
    for series in (key, trades(market, symbol)):
        world.one(series, str(DAY))
    (one,) = compared(world, key)
    assert (one.source, one.bars, one.differing) == (str(trades(market, symbol)), 1440, 0)
    assert plan(world.layout, key).days == ()


def test_changed_trade_is_named_with_both_values(world: World) -> None:
    changed = ChangedRows(start=utc(f"{DAY}T05:00"), end=utc(f"{DAY}T05:01"), series="/trades/", column="price")
    world.sandbox.faults.add(changed)
    key = klines("BTCUSDT", "1m")
    for series in (key, trades("spot", "BTCUSDT")):
        world.one(series, str(DAY))
    (one,) = compared(world, key)
    assert (one.bars, one.differing, one.unexplained) == (1440, 1, 1)
    found = {difference.column: difference for difference in one.differences}
    assert {"open", "high", "low", "close", "quote_volume"} <= found.keys()
    assert {difference.open_time for difference in one.differences} == {datetime(2026, 2, 10, 5)}  # noqa: DTZ001
    assert found["open"].rebuilt == pytest.approx((found["open"].klines or 0) + 1)


def test_missing_trades_explain_the_minutes_without_them(world: World) -> None:
    gone = MissingRows(start=utc(f"{DAY}T08:00"), end=utc(f"{DAY}T08:10"), series="/trades/", where="archive")
    world.sandbox.faults.add(gone)
    key = klines("BTCUSDT", "1m")
    for series in (key, trades("spot", "BTCUSDT")):
        world.one(series, str(DAY))
    (one,) = compared(world, key)
    assert (one.differing, one.unexplained) == (10, 0)
    assert {difference.reason for difference in one.differences} == {"missing_trades"}


def test_days_without_single_trades_are_compared_with_agg_trades(world: World) -> None:
    key, joined, single = klines("BTCUSDT", "1m"), agg_trades("BTCUSDT"), trades("spot", "BTCUSDT")
    for day in ("2026-02-10", "2026-02-11"):
        world.one(key, day)
        world.one(joined, day)
    assert [(one.source, one.differing) for one in compared(world, key)] == [(str(joined), 0)] * 2
    world.one(single, "2026-02-11")
    (one,) = compared(world, key)
    assert (one.day, one.source, one.differing) == (date(2026, 2, 11), str(single), 0)
