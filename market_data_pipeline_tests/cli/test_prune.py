"""``market-data prune``: records stay small, nothing is fetched again, and mistakes are told in words."""

from __future__ import annotations

import re

import pytest

from market_data_pipeline.defs.in_process import days_on_record
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.defs.platform.records import BYTES_A_DAY, size_of_records
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, days, klines

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1d], from: 2026-03-01}
"""
LOCK = "spot:\n  BTCUSDT: [{from: 2017-08-17, until: null}]\n"
BTC = klines("BTCUSDT", "1d")


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    return shell(world, monkeypatch, UNIVERSE, LOCK)


def runs(world: World) -> list[str]:
    with open_instance(world.layout) as instance:
        return [run.run_id for run in instance.get_runs()]


def test_after_a_prune_nothing_is_fetched_or_run_again(world: World, market_data: MarketData) -> None:
    world.at("2026-03-05T09:00:30")
    assert market_data("backfill", "--through", "2026-03-04").exit_code == 0
    for hour in (10, 11, 12):  # today grows
        world.at(f"2026-03-05T{hour}:00:30")
        assert market_data("backfill", "--from", "2026-03-05").exit_code == 0
    assert len(runs(world)) == 4
    world.at("2126-01-01T00:00:00")  # Dagster dates runs by the machine's clock

    foreseen = market_data("prune", "--dry-run").stderr
    assert "Would drop 2 runs older than 90d" in foreseen
    assert len(runs(world)) == 4
    assert "Dropped 2 runs older than 90d" in market_data("prune", "--runs-older-than", "90d").stderr
    kept = runs(world)
    assert len(kept) == 2

    world.at("2026-03-05T12:00:40")
    world.forget()
    again = market_data("backfill", "--through", "2026-03-04")
    assert "all there" in again.stderr
    assert runs(world) == kept
    assert world.asked(".zip") == []
    with open_instance(world.layout) as instance:
        assert days_on_record(instance, BTC) == set(days("2026-03-01", "2026-03-05"))


@pytest.mark.parametrize("age", ["90", "d", "-3d", "90 days", "1e3d", "9999999d", "900000w", "٣d"])
def test_an_age_that_cannot_be_is_refused(world: World, market_data: MarketData, age: str) -> None:
    result = market_data("prune", "--runs-older-than", age)
    assert result.exit_code == 2
    assert "--runs-older-than" in result.stderr
    assert not world.layout.dagster_home.exists()


def test_where_there_are_no_records_none_are_made(world: World, market_data: MarketData) -> None:
    result = market_data("prune")
    assert (result.exit_code, "There are no records" in result.stderr) == (0, True)
    assert not world.layout.dagster_home.exists()


def test_a_day_costs_at_most_4_kb(world: World, market_data: MarketData) -> None:
    """What 60 days more take, with two checks each: files as they lie there once the command has ended."""
    world.at("2026-06-10T09:00:30")
    sizes = []
    for first, last in (("2026-03-01", "2026-03-02"), ("2026-03-03", "2026-05-01")):
        assert market_data("backfill", "--from", first, "--through", last).exit_code == 0
        sizes.append(size_of_records(world.layout.dagster_home))
    assert (sizes[1] - sizes[0]) / 60 < BYTES_A_DAY
    told = market_data("status").stdout
    assert re.search(r"Dagster's records: \d+\.\d kB, \d+\.\d kB for each day\.", told), told
