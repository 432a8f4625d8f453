"""``market-data remove`` and ``market-data retain``: series and days leave, and nothing else does."""

from __future__ import annotations

import json
from datetime import date

import pytest

from market_data_pipeline import MarketData as Client
from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.defs.in_process import days_on_record
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.partitions import day_files, known_series
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline.reconciliation.record import read_reconciled
from market_data_pipeline.sandbox.faults import MissingDay
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe import load_universe
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines

HOURS, DAYS, TRADES = klines("BTCUSDT", "1h"), klines("BTCUSDT", "1d"), agg_trades("BTCUSDT")
PROFILE = profile_of(TRADES)
UNIVERSE = """\
# mine
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h, 1d], from: 2026-03-01}   # candles
    aggTrades: {from: 2026-03-01}
"""
LOCK = "spot:\n  BTCUSDT: [{from: 2017-08-17, until: null}]\n"
DELISTED = "spot:\n  BTCUSDT: [{from: 2017-08-17, until: 2026-03-03}]\n"


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """Run the command in a world of its own: today is 2026-03-05."""
    return shell(world, monkeypatch, UNIVERSE, LOCK)


def universe(world: World) -> str:
    return (world.root / "universe.yaml").read_text()


def keep(world: World, age: str) -> None:
    path = world.root / "universe.yaml"
    path.write_text(UNIVERSE.replace("aggTrades: {from: 2026-03-01}", f"aggTrades: {{from: 2026-03-01, keep: {age}}}"))


def test_without_data_only_the_universe_changes(world: World, market_data: MarketData) -> None:
    world.ingest(DAYS, days("2026-03-01", "2026-03-03"))
    result = market_data("remove", "BTCUSDT", "1d", "--yes")
    assert result.exit_code == 0, result.output
    assert universe(world) == UNIVERSE.replace("[1h, 1d]", "[1h]")
    assert list(day_files(world.layout, DAYS)) == days("2026-03-01", "2026-03-03")
    assert "Stored days stay readable" in result.stderr
    assert Client(world.layout.root).klines("BTCUSDT", "1d", "2026-03-01", "2026-03-04").df().shape[0] == 3


def test_data_goes_with_ledger_quarantine_and_records(world: World, market_data: MarketData) -> None:
    assert market_data("backfill", "BTCUSDT", "1d", "1h", "--through", "2026-03-03").exit_code == 0
    (world.layout.quarantine(DAYS)).mkdir(parents=True)
    (world.layout.quarantine(DAYS) / "BTCUSDT-1d-2026-03-01.0123456789ab.zip").write_bytes(b"PK")
    dry = market_data("remove", "BTCUSDT", "1d", "--data", "--dry-run", "--json")
    assert dry.exit_code == 0, dry.output
    [row] = json.loads(dry.stdout)
    assert (row["series"], row["days"], row["gone_days"], row["leaves_universe"]) == (str(DAYS), 3, 0, True)
    assert universe(world) == UNIVERSE
    assert len(day_files(world.layout, DAYS)) == 3

    asked = market_data("remove", "BTCUSDT", "1d", "--data", input="n\n")
    assert asked.exit_code == 1
    assert "Remove 1 series from the universe and 3 days from the lake?" in asked.stderr
    assert len(day_files(world.layout, DAYS)) == 3

    result = market_data("remove", "BTCUSDT", "1d", "--data", input="y\n")
    assert result.exit_code == 0, result.output
    assert known_series(world.layout) == [HOURS]
    left = [path for path in world.layout.root.rglob("*") if "1d" in path.parts or path.name == "1d.parquet"]
    assert left == []
    with open_instance(world.layout) as instance:
        assert days_on_record(instance, DAYS) == set()
        assert days_on_record(instance, HOURS) == set(days("2026-03-01", "2026-03-03"))
    assert market_data("sql", "SELECT DISTINCT interval FROM binance_spot.klines").stdout.count("1d") == 0


def test_days_that_binance_no_longer_has_are_named(world: World, market_data: MarketData) -> None:
    (world.root / "universe.lock.yaml").write_text(DELISTED)
    world.ingest(DAYS, days("2026-03-01", "2026-03-03"))
    world.sandbox.faults.add(MissingDay(series=f"^{DAYS}$", days=(date(2026, 3, 2),)))
    refused = market_data("remove", "BTCUSDT", "1d", "--data", "--yes")
    assert refused.exit_code == 2
    assert "Binance no longer has 1 day: 2026-03-02." in refused.stderr
    assert "--even-if-gone" in refused.stderr
    assert refused.stdout == ""
    assert universe(world) == UNIVERSE
    second = market_data("remove", "BTCUSDT", "1d", "--data", input="y\nn\n")
    assert second.exit_code == 1
    assert "1 day cannot be fetched again. Remove the only copy?" in second.stderr
    assert len(day_files(world.layout, DAYS)) == 3
    assert market_data("remove", "BTCUSDT", "1d", "--data", "--yes", "--even-if-gone").exit_code == 0
    assert not day_files(world.layout, DAYS)


def test_an_archive_that_cannot_be_listed_counts_as_gone(
    world: World, market_data: MarketData, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.root / "universe.lock.yaml").write_text(DELISTED)
    world.ingest(DAYS, days("2026-03-01", "2026-03-03"))
    monkeypatch.setenv("MARKET_DATA_VISION_LISTING_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MARKET_DATA_RETRIES", "0")
    refused = market_data("remove", "BTCUSDT", "1d", "--data", "--yes")
    assert refused.exit_code == 2
    assert "Binance may not have 3 days" in refused.stderr
    assert len(day_files(world.layout, DAYS)) == 3


def test_removed_trades_leave_their_profile(world: World, market_data: MarketData) -> None:
    assert market_data("sync").exit_code in (0, 3)
    assert len(day_files(world.layout, PROFILE)) >= 3
    result = market_data("remove", "BTCUSDT", "aggTrades", "--data", "--yes", "--even-if-gone")
    assert result.exit_code == 0, result.output
    assert TRADES not in known_series(world.layout)
    assert len(day_files(world.layout, PROFILE)) >= 3
    assert "aggTrades" not in universe(world)
    profiles = Client(world.layout.root).trade_profile("BTCUSDT", "2026-03-01", "2026-03-04").df()
    assert len(profiles) == 3


def test_a_symbol_must_be_named_and_one_market(world: World, market_data: MarketData) -> None:
    assert "Name at least one symbol" in market_data("remove", "--data").stderr
    both = UNIVERSE.replace("market: spot", "market: [spot, um]")
    (world.root / "universe.yaml").write_text(both)
    (world.root / "universe.lock.yaml").write_text(LOCK + LOCK.replace("spot", "um"))
    result = market_data("remove", "BTCUSDT", "--yes")
    assert result.exit_code == 2
    assert "BTCUSDT is in spot and um. Add --market." in result.stderr
    assert universe(world) == both


def test_klines_stay_reconciled_without_their_trades(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    market_data = shell(world, monkeypatch, UNIVERSE.replace("[1h, 1d]", "[1m]"), LOCK)
    minutes = klines("BTCUSDT", "1m")
    world.ingest(minutes, days("2026-03-02", "2026-03-02"))
    world.ingest(TRADES, days("2026-03-01", "2026-03-03"))
    assert market_data("reconcile").exit_code == 0
    before = read_reconciled(world.layout.reconciled(minutes))
    assert list(before) == days("2026-03-02", "2026-03-02")
    assert market_data("remove", "BTCUSDT", "aggTrades", "--data", "--yes").exit_code == 0
    assert market_data("reconcile").exit_code in (0, 2)
    assert read_reconciled(world.layout.reconciled(minutes)) == before


# --- retention ---------------------------------------------------------------------------------------------------


def test_days_older_than_keep_go_and_are_not_fetched_again(world: World, market_data: MarketData) -> None:
    assert market_data("backfill", "--through", "2026-03-04").exit_code in (0, 3)
    keep(world, "2 days")
    assert "Nothing was removed, because of --dry-run." in market_data("retain", "--dry-run").stderr
    assert len(day_files(world.layout, TRADES)) == 4
    [row] = json.loads(market_data("retain", "--dry-run", "--json").stdout)
    assert (row["series"], row["days"], row["last"]) == (str(TRADES), 2, "2026-03-02")
    result = market_data("retain", "--yes")
    assert result.exit_code == 0, result.output
    assert "Removed 2 days of 1 series" in result.stderr
    assert list(day_files(world.layout, TRADES)) == days("2026-03-03", "2026-03-04")
    assert sorted(world.ledger(TRADES).rows) == days("2026-03-03", "2026-03-04")
    assert list(day_files(world.layout, HOURS)) == days("2026-03-01", "2026-03-04")
    with open_instance(world.layout) as instance:
        assert days_on_record(instance, TRADES) == set(days("2026-03-03", "2026-03-04"))
        assert days_on_record(instance, HOURS) == set(days("2026-03-01", "2026-03-04"))
    world.forget()
    assert market_data("backfill", "--through", "2026-03-04").exit_code in (0, 3)
    assert world.asked("aggTrades-2026-03-01") == []
    assert "No day is older than `keep:`." in market_data("retain").stderr


def test_days_without_a_second_copy_stay_in_the_lake(world: World, market_data: MarketData) -> None:
    (world.root / "universe.lock.yaml").write_text(DELISTED)
    world.ingest(TRADES, days("2026-03-01", "2026-03-03"))
    world.sandbox.faults.add(MissingDay(series=f"^{TRADES}$", days=(date(2026, 3, 1),)))
    keep(world, "2 days")
    result = market_data("retain", "--yes")
    assert result.exit_code == 0, result.output
    assert "Binance no longer has 1 day: 2026-03-01." in result.stderr
    assert "1 day left in the lake. Add --even-if-gone" in result.stderr
    assert list(day_files(world.layout, TRADES)) == days("2026-03-01", "2026-03-01") + days("2026-03-03", "2026-03-03")
    assert market_data("retain", "--yes", "--even-if-gone").exit_code == 0
    assert list(day_files(world.layout, TRADES)) == days("2026-03-03", "2026-03-03")


def test_a_closed_month_goes_with_its_last_day(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "collect: [{market: spot, symbols: BTCUSDT, klines: {intervals: 1h, from: 2026-01-01, keep: 20 days}}]\n"
    market_data = shell(world, monkeypatch, text, LOCK)
    world.ingest(HOURS, days("2026-01-01", "2026-03-04"))
    assert market_data("compact").exit_code == 0
    assert storage.list_dates(world.layout.months(HOURS), storage.MONTHS).keys() == {
        date(2026, 1, 1),
        date(2026, 2, 1),
    }
    result = market_data("retain", "--yes")
    assert result.exit_code == 0, result.output
    assert list(day_files(world.layout, HOURS)) == days("2026-02-01", "2026-03-04")
    first = market_data("sql", "SELECT CAST(min(open_time) AS DATE) AS first FROM binance_spot.klines")
    assert "2026-02-01" in first.stdout


def test_the_schedule_removes_the_same_days(world: World, market_data: MarketData) -> None:
    world.ingest(TRADES, days("2026-03-01", "2026-03-04"))
    keep(world, "2 days")
    settings = load_settings()
    definitions = build_definitions(settings, load_universe(settings.universe))
    with open_instance(world.layout) as instance:
        result = definitions.resolve_job_def("retain").execute_in_process(instance=instance)
    assert result.success
    assert list(day_files(world.layout, TRADES)) == days("2026-03-03", "2026-03-04")
