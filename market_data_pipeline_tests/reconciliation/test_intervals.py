"""Stored intervals of one symbol are compared with each other, also where 1m is not stored."""

from __future__ import annotations

from datetime import date, datetime

import pytest

from market_data_pipeline.model.reconciliation import DayReconciled
from market_data_pipeline.model.series import INTERVALS, SeriesKey
from market_data_pipeline.reconciliation.plan import compare, plan
from market_data_pipeline.sandbox import ChangedRows
from market_data_pipeline_tests.support.world import World, klines, utc

DAY = date(2026, 2, 10)


def compared(world: World, key: SeriesKey) -> list[DayReconciled]:
    due = plan(world.layout, key)
    return [one for batch in compare(world.layout, key, due.days, memory_mb=256) for one in batch]


@pytest.mark.parametrize(
    ("finer", "longer"), [("5m", "15m"), ("3m", "15m"), ("15m", "30m"), ("1h", "4h"), ("4h", "1d"), ("8h", "1d")]
)
def test_interval_follows_from_the_finer_one(world: World, finer: str, longer: str) -> None:
    ours, source = klines("BTCUSDT", longer), klines("BTCUSDT", finer)
    for key in (ours, source):
        world.one(key, str(DAY))
    (one,) = compared(world, ours)
    assert (one.source, one.bars, one.differing) == (str(source), 86_400 // INTERVALS[longer], 0)


def test_changed_candle_is_reported_with_both_values(world: World) -> None:
    changed = ChangedRows(start=utc(f"{DAY}T02:30"), end=utc(f"{DAY}T02:31"), series="klines/BTCUSDT/15m", column="low")
    world.sandbox.faults.add(changed)
    quarters, finer = klines("BTCUSDT", "15m"), klines("BTCUSDT", "5m")
    for key in (quarters, finer):
        world.one(key, str(DAY))
    (one,) = compared(world, quarters)
    (found,) = one.differences
    assert (one.differing, one.unexplained) == (1, 1)
    assert (found.open_time, found.column) == (datetime(2026, 2, 10, 2, 30), "low")  # noqa: DTZ001
    assert found.klines == pytest.approx((found.rebuilt or 0) + 1)


@pytest.mark.parametrize(("wrong", "sound"), [("15m", "5m"), ("5m", "15m")])
def test_intervals_that_disagree_differ_from_one_minute(world: World, wrong: str, sound: str) -> None:
    """Both are compared with 1m where it is stored. If they disagree, one of them differs from it."""
    changed = ChangedRows(
        start=utc(f"{DAY}T02:30"), end=utc(f"{DAY}T02:31"), series=f"klines/BTCUSDT/{wrong}$", column="low"
    )
    world.sandbox.faults.add(changed)
    keys = {interval: klines("BTCUSDT", interval) for interval in ("1m", wrong, sound)}
    for key in keys.values():
        world.one(key, str(DAY))
    (agreeing,), (differing,) = compared(world, keys[sound]), compared(world, keys[wrong])
    assert {agreeing.source, differing.source} == {str(keys["1m"])}
    assert (agreeing.differing, differing.differing, differing.unexplained) == (0, 1, 1)
    (found,) = differing.differences
    assert (found.open_time, found.column) == (datetime(2026, 2, 10, 2, 30), "low")  # noqa: DTZ001
    assert found.klines == pytest.approx((found.rebuilt or 0) + 1)


def test_longest_interval_that_divides_is_the_source(world: World) -> None:
    day = klines("BTCUSDT", "1d")
    for interval in ("3m", "1h", "8h", "1d"):
        world.one(klines("BTCUSDT", interval), str(DAY))
    (one,) = compared(world, day)
    assert (one.source, one.differing) == (str(klines("BTCUSDT", "8h")), 0)


def test_intervals_that_do_not_divide_are_not_compared(world: World) -> None:
    for interval in ("8h", "12h"):
        world.one(klines("BTCUSDT", interval), str(DAY))
    assert plan(world.layout, klines("BTCUSDT", "12h")).days == ()
