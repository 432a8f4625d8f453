"""Futures trades, which REST serves for a day or two only: asked for in time, and not in vain."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from market_data_pipeline import clock
from market_data_pipeline.defs.maintenance.published import is_time
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.maintenance.due import days_to_repair
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.needs import needs, reach_of
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox import MissingDay, MissingRows, Status
from market_data_pipeline.universe import load_universe
from market_data_pipeline_tests.support.world import World, agg_trades, utc

UM, CM, SPOT = agg_trades("BTCUSDT", "um"), agg_trades("BTCUSD_PERP", "cm"), agg_trades("BTCUSDT")
DAY = "2026-03-03"


def hole(first: str = "10:00", end: str = "10:20", where: Literal["archive", "both"] = "archive") -> MissingRows:
    return MissingRows(start=utc(f"{DAY}T{first}"), end=utc(f"{DAY}T{end}"), series="aggTrades", where=where)


def verdicts(row: DayRecord) -> dict[str, str]:
    return {found.rule: found.evidence for found in row.findings_list() if found.check == "gaps"}


def due(world: World, row: DayRecord, key: SeriesKey) -> bool:
    return needs(row, clock.now(), reach_of(key)).is_due


@pytest.mark.parametrize("key", [UM, CM], ids=str)
def test_a_hole_is_filled_in_when_the_archive_appears(world: World, key: SeriesKey) -> None:
    world.sandbox.faults.add(hole())
    world.at("2026-03-04T09:00:00")
    assert verdicts(world.one(key, DAY).row) == {"healed": "REST has them"}


@pytest.mark.parametrize(("key", "hours"), [(UM, 48), (CM, 24)], ids=str)
def test_hole_out_of_reach_of_rest_is_final_without_a_request(world: World, key: SeriesKey, hours: int) -> None:
    world.sandbox.faults.add(hole())
    world.at("2026-03-05T20:00:00")
    row = world.one(key, DAY).row
    [(rule, evidence)] = verdicts(row).items()
    assert rule == row.verdicts == "archive_defect"
    assert f"aggTrades of the last {hours} h; only another archive can have them" in evidence
    assert row.gaps == "error"
    assert world.asked("/v1/aggTrades") == []
    world.forget()
    for moment in ("2026-03-06T12:00:00", "2026-03-20T12:00:00", "2027-03-05T12:00:00"):
        world.at(moment)
        assert not due(world, row, key)
        assert needs(row, clock.now(), reach_of(key)).is_met
        assert world.one(key, DAY).row == row
    assert world.asked() == []


def test_hole_partly_in_reach_of_rest_is_filled_in_part(world: World) -> None:
    world.at("2026-03-04T09:00:00")
    truth = World(world.root / "truth", world.sandbox, world._monkeypatch).one(CM, DAY).row
    world.sandbox.faults.add(hole("06:00", "12:00"))
    row = world.one(CM, DAY).row
    assert list(verdicts(row)) == ["healed", "archive_defect"]
    defect = next(found for found in row.findings_list() if found.rule == "archive_defect")
    assert row.rows == truth.rows - defect.count
    assert 0 < defect.count < truth.rows / 2
    oldest = clock.to_us(utc("2026-03-03T09:10:00"))
    moments: list[Any] = world.table(CM, DAY)["transact_time"].to_pylist()
    times = [clock.to_us(moment.replace(tzinfo=utc(DAY).tzinfo)) for moment in moments]
    assert any(oldest <= at < clock.to_us(utc("2026-03-03T09:30:00")) for at in times)


def test_hole_missing_from_rest_stays_unexplained(world: World) -> None:
    world.sandbox.faults.add(hole(where="both"))
    world.at("2026-03-04T09:00:00")
    assert list(verdicts(world.one(UM, DAY).row)) == ["unexplained"]


def test_spot_reaches_back_without_limit(world: World) -> None:
    world.sandbox.faults.add(hole())
    assert list(verdicts(world.one(SPOT, DAY).row)) == ["healed"]
    assert reach_of(SPOT) is None


def test_hole_is_requested_hourly_in_reach_and_classified_once(world: World) -> None:
    """It is classified when REST no longer reaches it."""
    world.sandbox.faults.add(hole())
    world.sandbox.faults.add(Status(path="/fapi/", status=503))
    world.at("2026-03-04T09:00:00")
    row = world.one(UM, DAY).row
    assert list(verdicts(row)) == ["unpublished"]
    world.set(retries=0)
    for hour in (10, 11, 12, 13, 20):
        world.at(f"2026-03-04T{hour}:00:00")
        assert due(world, row, UM), hour
        row = world.one(UM, DAY).row
        assert list(verdicts(row)) == ["unpublished"]
        assert not due(world, row, UM), "the pause of this attempt"
    assert row.attempts == 6
    world.at("2026-03-06T00:45:00")
    world.forget()
    assert due(world, row, UM), "REST serves it no more: once, for its verdict"
    row = world.one(UM, DAY).row
    assert list(verdicts(row)) == ["archive_defect"]
    assert world.asked("/fapi/") == []
    assert not due(world, row, UM)


def test_a_day_without_an_archive_waits_for_it(world: World) -> None:
    world.sandbox.faults.add(MissingDay(days=[date(2026, 3, 2)]))
    result = world.one(UM, "2026-03-02")
    assert result.row.failure == "unpublished"
    assert "the archive has no file for it (404), and: REST of um only serves aggTrades of the last 48 h" in str(
        result.row.reason
    )
    assert world.asked("/fapi/v1/aggTrades") == []
    world.at("2026-05-05T12:00:00")
    assert world.one(UM, "2026-03-02").row.failure == "absent"


def test_the_sensor_looks_at_each_tick_while_rest_could_fill_in() -> None:
    day, reach = date(2026, 3, 3), reach_of(UM)
    at = datetime(2026, 3, 4, 13, 0, tzinfo=utc(DAY).tzinfo)
    tick = timedelta(minutes=30)
    assert all(is_time(day, at + n * tick, at + (n + 1) * tick, reach) for n in range(20))
    assert not all(is_time(day, at + n * tick, at + (n + 1) * tick) for n in range(20))
    assert not is_time(day, None, at - timedelta(hours=12), reach), "no archive is there an hour after midnight"


def test_repair_requests_futures_trades_within_the_day(world: World, tmp_path: Path) -> None:
    path = tmp_path / "universe.yaml"
    path.write_text("collect:\n  - {market: um, symbols: [BTCUSDT], aggTrades: {from: 2026-03-01}}\n")
    world.sandbox.faults.add(hole())
    world.sandbox.faults.add(Status(path="/fapi/", status=503))
    world.at("2026-03-04T09:10:00")
    for _ in range(3):
        world.one(UM, DAY)
    assert Ledger.read(world.layout.ledger(UM)).rows[date(2026, 3, 3)].attempts == 1, "within the pause nobody asks"
    universe = load_universe(path, resolve=False)
    for moment, wanted in (("2026-03-04T09:45:00", {}), ("2026-03-04T10:45:00", {UM: [date(2026, 3, 3)]})):
        assert days_to_repair(utc(moment), universe, world.layout) == wanted
