"""``market-data plan``: what a backfill will cost, compared with what it then costs."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from market_data_pipeline.defs.platform.records import EMPTY_HOME_BYTES, size_of_records
from market_data_pipeline.sandbox import Status
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1m, 1h], from: 2025-12-20}
  - market: um
    symbols: [BTCUSDT]
    metrics: {from: 2026-02-20}
    fundingRate: {from: 2026-01-01}
"""
LOCK = """\
spot:
  BTCUSDT: [{from: 2017-08-17, until: null}]
um:
  BTCUSDT: [{from: 2019-09-08, until: null}]
"""
DAYS = ("--through", "2026-03-03")


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    return shell(world, monkeypatch, UNIVERSE, LOCK, retries="0")


def planned(market_data: MarketData, *options: str) -> list[dict[str, Any]]:
    result = market_data("plan", *options, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def total(rows: list[dict[str, Any]], name: str) -> float:
    return sum(float(row[name]) for row in rows)


def test_backfill_costs_what_was_planned_within_a_tenth(world: World, market_data: MarketData) -> None:
    plan = planned(market_data, *DAYS)
    assert [path for path in world.asked() if path.endswith((".zip", ".CHECKSUM"))] == []
    assert not world.layout.root.joinpath("lake").exists()
    world.forget()

    assert market_data("backfill", *DAYS, "--yes").exit_code == 0

    zips = world.asked(".zip")
    assert total(plan, "files") == len([path for path in zips if path.endswith(".zip")])
    assert total(plan, "requests") == pytest.approx(len(world.asked()), rel=0.1)
    files = sum(file.stat().st_size for file in world.layout.root.glob("lake/binance/*/*/daily/**/*.parquet"))
    records = size_of_records(world.layout.dagster_home)
    assert total(plan, "disk") + EMPTY_HOME_BYTES == pytest.approx(files + records, rel=0.1)
    keys = [path[path.index("data/") :] for path in zips if path.endswith(".zip")]
    served = [len(requests.get(f"{world.settings.vision_url}/{key}", timeout=60).content) for key in keys]
    assert total(plan, "bytes") == pytest.approx(sum(served), rel=0.1)  # the sandbox lists round sizes of some types


def test_offline_plan_asks_nothing_and_is_close(world: World, market_data: MarketData) -> None:
    listed = planned(market_data, *DAYS)
    world.forget()
    offline = planned(market_data, "--offline", *DAYS)
    assert world.asked() == []
    assert total(offline, "requests") == total(listed, "requests")
    assert total(offline, "bytes") == pytest.approx(total(listed, "bytes"), rel=0.2)
    assert {row["listed"] for row in offline} == {False}


def test_stored_days_cost_nothing(market_data: MarketData) -> None:
    month = ("BTCUSDT", "1h", "--from", "2026-01", "--through", "2026-01")
    assert market_data("backfill", *month).exit_code == 0
    (row,) = planned(market_data, *month)
    assert (row["days"], row["files"], row["requests"], row["disk"]) == (0, 0, 0, 0)


def test_table_names_disk_records_and_minutes(market_data: MarketData) -> None:
    result = market_data("plan", "1h", "--from", "2026-01", "--through", "2026-01")
    assert result.exit_code == 0
    assert "31 days in about 1 min at 100 Mbit/s." in result.stdout
    assert "Dagster's records" in result.stdout


def test_listing_that_fails_leaves_an_estimate(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(
        Status(status=503, path=urlsplit(world.settings.vision_listing_url).path or "/", times=None)
    )
    result = market_data("plan", "1h", "--from", "2026-01", "--through", "2026-01", "--json")
    assert json.loads(result.stdout)[0]["listed"] is False
    assert "estimates without the listing" in result.stderr
