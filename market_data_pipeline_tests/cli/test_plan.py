"""``market-data plan``: what a backfill will cost, compared with what it then costs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests

from market_data_pipeline.cli.plan import plan_of
from market_data_pipeline.coverage.holdings import StoredDays
from market_data_pipeline.defs.platform.records import EMPTY_HOME_BYTES, size_of_records
from market_data_pipeline.model.series import DataType, Market, SeriesKey
from market_data_pipeline.sandbox import MarketOutage, MissingRows, Status
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, utc
from market_data_pipeline_tests.support.world import days as days_from_to

TRADES_A_DAY = 20_000
"""Whose size is what a plan expects of them."""

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


WITH_HALTS = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [15m, 1h], from: 2020-02-01}
  - market: um
    symbols: [BTCUSDT]
    markPriceKlines: {intervals: [1h], from: 2020-02-01}
    fundingRate: {from: 2020-02-01}
"""


def test_plan_expects_the_gaps_of_known_halts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An incomplete day of a month costs its daily zip too, and a request for the missing candles."""
    for start, end in (("2020-02-09T02:00", "2020-02-09T03:00"), ("2020-02-19T11:35", "2020-02-19T17:30")):
        world.sandbox.faults.add(MarketOutage(start=utc(start), end=utc(end), series="^binance/spot"))
    market_data = shell(world, monkeypatch, WITH_HALTS, LOCK, retries="0")
    days = ("--from", "2020-02-01", "--through", "2020-02-29")
    plan = planned(market_data, *days)
    world.forget()
    assert market_data("backfill", *days, "--yes").exit_code == 0
    rest = [path for path in world.asked("/klines") if "/api/v3/" in path]
    assert (total(plan, "gap_requests"), len(rest)) == (4, 4)
    zips = [path for path in world.asked(".zip") if path.endswith(".zip")]
    assert total(plan, "files") == len(zips) == 4 + 4
    assert total(plan, "requests") == pytest.approx(len(world.asked()), rel=0.1)
    served = [requests.get(f"{world.settings.vision_url}/{path[path.index('data/') :]}", timeout=60) for path in zips]
    assert total(plan, "bytes") == pytest.approx(sum(len(one.content) for one in served), rel=0.1)


def test_open_gaps_of_final_days_are_planned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """REST was down when the days were fetched. The next backfill requests their missing rows, and nothing else."""
    gone = MissingRows(start=utc("2026-02-10"), end=utc("2026-02-13"), where="archive", series="markPriceKlines")
    world.sandbox.faults.add(replace(gone, start=utc("2026-02-10T05:00"), end=utc("2026-02-10T07:00")))
    world.sandbox.faults.add(replace(gone, start=utc("2026-02-12T05:00"), end=utc("2026-02-12T06:00")))
    down = world.sandbox.faults.add(Status(status=503, path="/fapi/v1/markPriceKlines", times=None))
    text = "collect:\n  - {market: um, symbols: [BTCUSDT], markPriceKlines: {intervals: [1h], from: 2026-02-10}}\n"
    market_data = shell(world, monkeypatch, text, LOCK, retries="0")
    days = ("--from", "2026-02-10", "--through", "2026-02-13")
    assert market_data("backfill", *days, "--yes").exit_code == 3
    world.sandbox.faults.remove(down)
    world.at("2026-03-05T18:00")
    (row,) = planned(market_data, *days)
    assert (row["days"], row["files"], row["requests"], row["gap_requests"]) == (0, 0, 2, 2)
    world.forget()
    assert market_data("backfill", *days, "--yes").exit_code == 0
    assert len(world.asked("/fapi/v1/markPriceKlines")) == 2
    assert world.asked(".zip") == []


def test_gaps_are_expected_as_often_as_stored(world: World) -> None:
    """Half of the stored days lacked rows. REST of metrics takes five requests for a day."""
    days, true = np.arange(20_000, 20_010), np.ones(10, dtype=bool)
    held = StoredDays(days, true, true, ~true, ~true, ~true, days, days, ~true, np.arange(10) % 2 == 0)
    key = SeriesKey("binance", Market.UM, DataType.METRICS, "BTCUSDT")
    plan = plan_of(key, days_from_to("2024-11-01", "2024-11-20"), held)
    assert (plan.files, plan.gap_requests, plan.requests) == (20, 50, 2 * 20 + 50)


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
