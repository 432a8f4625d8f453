"""``market-data reconcile``: what somebody at a shell sees of klines that are not what their trades make of them."""

from __future__ import annotations

import json

import dagster as dg
import pyarrow as pa
import pytest

from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.lake import parquet
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines

TRADES_A_DAY = 20_000
"""So that each minute has some."""

MINUTES, FIVE, TRADES = klines("BTCUSDT", "1m", "um"), klines("BTCUSDT", "5m", "um"), agg_trades("BTCUSDT", "um")
WANTED = days("2026-03-02", "2026-03-03")

UNIVERSE = """\
collect:
  - market: um
    symbols: [BTCUSDT]
    klines: {intervals: [1m, 5m], from: 2026-01-01}
    aggTrades: {from: 2026-02-01}
"""
LOCK = "um:\n  BTCUSDT: [{from: 2019-09-08, until: null}]\n"


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """Run the command in a world of its own: today is 2026-03-05, and klines and trades of two days are held."""
    command = shell(world, monkeypatch, UNIVERSE, LOCK)
    for key in (MINUTES, FIVE, TRADES):
        world.ingest(key, WANTED)
    world.forget()
    return command


def alter(world: World, row: int, column: str, value: float) -> None:
    """Write another value into a candle of the second day, as no exchange would have it."""
    path = world.layout.file(MINUTES, WANTED[1])
    provenance, table = parquet.parse_whole(path, path.read_bytes())
    values = table.column(column).to_pylist()
    values[row] = value
    index = table.column_names.index(column)
    parquet.write_table(path, table.set_column(index, table.schema.field(index), pa.array(values)), provenance)


def lines(text: str) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in text.splitlines()]


def test_klines_that_match_trades_are_reported(world: World, market_data: MarketData) -> None:
    result = market_data("reconcile")

    assert result.exit_code == 0, result.output
    assert ["um/klines/BTCUSDT/1m", "2026-03-02", "2026-03-03", "2", "2,880", "0", "0", "0"] in lines(result.stdout)
    assert ["um/klines/BTCUSDT/5m", "2026-03-02", "2026-03-03", "2", "576", "0", "0", "0"] in lines(result.stdout)
    assert "3,456 candles of 4 days compared: all are what they can be rebuilt from." in result.stderr
    assert world.asked() == []


def test_differing_candle_is_shown_and_recorded_with_both_values(world: World, market_data: MarketData) -> None:
    true = float(world.table(MINUTES, "2026-03-03").column("high").to_numpy()[600])
    alter(world, 600, "high", true + 1)

    first = market_data("reconcile", "--interval", "1m")
    second = market_data("reconcile", "--interval", "1m")

    for result in (first, second):  # compared, and read off the record
        assert result.exit_code == 1
        shown = ["um/klines/BTCUSDT/1m", "2026-03-03", "10:00:00", "high", f"{true + 1:.8g}", f"{true:.8g}"]
        assert [*shown, "none", "known"] in lines(result.stdout)
        assert "2,880 candles of 2 days compared: 1 differs, 1 of them for no known reason." in result.stderr
    with open_instance(world.layout) as instance:
        assert len(instance.get_runs()) == 1
        check = dg.AssetCheckKey(asset_key_of(MINUTES), "reconciliation")
        executions = instance.event_log_storage.get_asset_check_execution_history(check, limit=10)
        assert {one.partition: one.status.value for one in executions} == {
            "2026-03-02": "SUCCEEDED",
            "2026-03-03": "FAILED",
        }
    rows = json.loads(
        market_data(
            "sql", "--json", "SELECT day, bars, differing, unexplained, source FROM quality.reconciliation ORDER BY day"
        ).stdout
    )
    source = str(TRADES)
    assert [list(row.values()) for row in rows] == [
        ["2026-03-02", 1440, 0, 0, source],
        ["2026-03-03", 1440, 1, 1, source],
    ]
    query = "SELECT symbol, interval, open_time, column_name, klines, rebuilt FROM quality.reconciliation_differences"
    [row] = json.loads(market_data("sql", "--json", query).stdout)
    assert list(row.values()) == ["BTCUSDT", "1m", "2026-03-03T10:00:00", "high", true + 1, true]


def test_only_the_selected_days_are_compared(market_data: MarketData) -> None:
    result = market_data("reconcile", "--interval", "1m", "--from", "2026-03-03", "--through", "2026-03-03")
    assert "1,440 candles of 1 day compared" in result.stderr


def test_unreadable_file_is_named_and_others_are_compared(world: World, market_data: MarketData) -> None:
    world.layout.file(FIVE, WANTED[0]).write_bytes(b"PAR1")
    result = market_data("reconcile")
    assert result.exit_code == 1
    assert f"{world.layout.file(FIVE, WANTED[0])} is damaged" in result.stderr
    assert "2,880 candles of 2 days compared: all are what they can be rebuilt from." in result.stderr


def test_missing_file_is_named_and_other_days_are_compared(world: World, market_data: MarketData) -> None:
    assert market_data("reconcile").exit_code == 0
    gone = world.layout.file(MINUTES, WANTED[0])
    gone.unlink()

    again = market_data("reconcile", "--again")

    assert again.exit_code == 1
    for key in (MINUTES, FIVE):  # five minutes of the day are made of the same file
        assert f"{key} is not compared on every day: {gone} is gone. Backfill that day" in again.stderr
    assert "1,728 candles of 2 days compared: all are what they can be rebuilt from." in again.stderr

    nothing = market_data("reconcile", "--again", "--through", str(WANTED[0]))
    assert nothing.exit_code == 1
    assert f"{gone} is gone" in nothing.stderr
    assert "There is no day" not in nothing.stderr
    assert market_data("reconcile").exit_code == 0  # all days are as they were compared, and on record


def test_day_that_cannot_be_compared_is_reported_with_its_reason(world: World, market_data: MarketData) -> None:
    no_such = market_data("reconcile", "--interval", "1h")
    assert no_such.exit_code == 2
    assert "no interval '1h'" in no_such.stderr
    (world.root / "universe.yaml").write_text(
        "collect:\n  - {market: um, symbols: [BTCUSDT], klines: {intervals: [1m], from: 2026-01-01}}\n"
    )
    nothing = market_data("reconcile")
    assert nothing.exit_code == 2
    assert "1s and 1m are compared where trades or aggTrades of a symbol are collected" in nothing.stderr


def test_where_no_day_has_both_sides_there_is_nothing_to_compare(market_data: MarketData) -> None:
    result = market_data("reconcile", "--through", "2026-02-20")
    assert result.exit_code == 0
    assert "No day has both sides stored" in result.stderr
