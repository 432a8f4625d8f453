"""``market-data compact`` and the job of the same name: what somebody sees of months that are put into one file."""

from __future__ import annotations

import pytest

from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.storage import only_writer
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe import load_universe
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines

HOURS, TRADES = klines("BTCUSDT", "1h"), agg_trades("BTCUSDT")
WANTED = days("2026-01-01", "2026-03-04")
CLOSED = days("2026-01-01", "2026-02-28")
COUNT = "SELECT symbol, count(*) AS candles FROM binance_spot.klines GROUP BY ALL"

LATER = "2099-01-01T12:00:00"
"""The clock of the tests is moved, that of the disk is not."""

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2026-01-01}
    aggTrades: {from: 2026-03-01}
"""
LOCK = "spot:\n  BTCUSDT: [{from: 2017-08-17, until: null}]\n"


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """Run the command in a world of its own: today is 2026-03-05, and candles of 63 days are held."""
    command = shell(world, monkeypatch, UNIVERSE, LOCK)
    world.ingest(HOURS, WANTED)
    world.ingest(TRADES, days("2026-03-01", "2026-03-02"))
    return command


def test_closed_months_lose_their_daily_files_an_hour_later(world: World, market_data: MarketData) -> None:
    before = market_data("sql", COUNT).stdout
    result = market_data("compact")
    assert result.exit_code == 0, result.output
    assert "2 months of 1 series closed, 0 files of days removed. 59 files of days stay for now." in result.stderr
    assert [path.name for path in sorted(world.layout.months(HOURS).iterdir())] == [
        "2026-01.parquet",
        "2026-02.parquet",
    ]
    assert market_data("sql", COUNT).stdout == before
    world.at(LATER)
    assert "0 months of 0 series closed, 59 files of days removed." in market_data("compact").stderr
    assert set(storage.list_dates(world.layout.folder(HOURS))) == set(WANTED).difference(CLOSED)
    assert market_data("sql", COUNT).stdout == before
    assert "0 months of 0 series closed, 0 files of days removed." in market_data("compact").stderr


def test_only_the_selected_series_are_compacted(world: World, market_data: MarketData) -> None:
    result = market_data("compact", "--interval", "1m")
    assert result.exit_code == 2
    assert "1h" in result.output
    assert not world.layout.months(HOURS).exists()


def test_a_lake_without_candles_has_no_month_to_close(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    result = shell(world, monkeypatch, UNIVERSE, LOCK)("compact")
    assert result.exit_code == 0
    assert "there is no month to close" in result.stderr


def test_a_series_that_another_run_writes_is_left_as_it_is(
    world: World, market_data: MarketData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKET_DATA_LOCK_WAIT_SECONDS", "0")
    with only_writer(world.layout.lock(HOURS), 0, "a run"):
        result = market_data("compact")
    assert result.exit_code == 1
    assert "spot/klines/BTCUSDT/1h" in result.stderr
    assert "Wait for that run to end and start again; nothing was lost." in result.stderr
    assert not world.layout.months(HOURS).exists()


def test_closed_month_is_stored_verified_and_not_fetched_again(world: World, market_data: MarketData) -> None:
    market_data("compact")
    world.at(LATER)
    assert "59 files of days removed" in market_data("compact").stderr
    world.at("2026-03-05T12:00:30")
    world.forget()
    assert market_data("backfill", "--data-type", "klines", "--through", "2026-02-28").exit_code == 0
    assert world.asked(".zip") == []
    result = market_data("verify", "--local")
    assert result.exit_code == 0, result.output
    assert "63" in market_data("status").stdout


def test_job_reports_the_months_it_closed(world: World, market_data: MarketData) -> None:
    settings = load_settings()
    definitions = build_definitions(settings, load_universe(settings.universe))
    with open_instance(world.layout) as instance:
        run = definitions.resolve_job_def("compact").execute_in_process(instance=instance)
    assert run.success
    [told] = [event.step_output_data.metadata for event in run.all_events if event.is_successful_output]
    assert told["months closed"].value == 2
    assert told["files of days to remove later"].value == 59
    assert "binance/spot/klines/BTCUSDT/1h" in str(told["closed"].value)
