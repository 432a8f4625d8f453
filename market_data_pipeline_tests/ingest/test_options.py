"""Options: an index every second, and summaries whose time is a day and an hour. Both come from the archive alone."""

from __future__ import annotations

from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from market_data_pipeline import MarketData, UsageError
from market_data_pipeline.checks.integrity import check_integrity
from market_data_pipeline.errors import MalformedError
from market_data_pipeline.lake.checksums import verify_days
from market_data_pipeline.maintenance.due import recent_days
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import Damage, DamagedArchive, MissingDay, MissingRows
from market_data_pipeline.sandbox.zips import make_zip
from market_data_pipeline.sources.binance.zip_reader import read_zip
from market_data_pipeline.universe import load_universe
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import Result, World, days, utc

INDEX = SeriesKey(EXCHANGE, Market.OPTION, DataType.BVOL_INDEX, "BTCBVOLUSDT")
SUMMARY = SeriesKey(EXCHANGE, Market.OPTION, DataType.EOH_SUMMARY, "BTCUSDT")
DAY, LAST = date(2023, 10, 20), date(2023, 10, 23)


def stored(result: Result) -> DayOutcome:
    assert isinstance(result, DayOutcome), result
    return result


def changed(table: pa.Table, name: str, value: Any) -> pa.Table:
    """The table with another value in the first row of a column."""
    at = table.schema.get_field_index(name)
    values = [value, *table.column(name).to_pylist()[1:]]
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


def rules(key: SeriesKey, table: pa.Table) -> list[str]:
    return [finding.rule for finding in check_integrity(key, table) if finding.rule != "blank"]


def test_names_of_options_in_archive_and_sql() -> None:
    assert INDEX.archive_daily(DAY) == "data/option/daily/BVOLIndex/BTCBVOLUSDT/BTCBVOLUSDT-BVOLIndex-2023-10-20.zip"
    assert SUMMARY.archive_daily(DAY) == "data/option/daily/EOHSummary/BTCUSDT/BTCUSDT-EOHSummary-2023-10-20.zip"
    assert (INDEX.data_type.sql_name, SUMMARY.data_type.sql_name) == ("bvol_index", "eoh_summary")


def test_index_has_rows_every_second(world: World) -> None:
    """A pause of some seconds is no gap."""
    start, end = utc(f"{DAY}T12:00"), utc(f"{DAY}T12:00:08")
    world.sandbox.faults.add(MissingRows(start=start, end=end, series="BVOLIndex"))
    one = stored(world.one(INDEX, str(DAY)))
    assert (one.row.rows, one.row.final, one.row.integrity, one.row.verdicts) == (86_400 - 8, True, "info", "")
    assert world.table(INDEX, str(DAY)).column_names == ["symbol", "calc_time", "index_value"]


def test_summary_has_a_row_per_option_and_hour(world: World) -> None:
    one = stored(world.one(SUMMARY, str(DAY)))
    table = world.table(SUMMARY, str(DAY))
    assert (one.row.rows, one.row.final, one.row.verdicts) == (24 * 6, True, "")
    assert pc.hour(table.column("time")).to_pylist() == [hour for hour in range(24) for _ in range(6)]
    (finding,) = one.row.findings_list()
    assert (finding.rule, finding.count) == ("blank", table.column("best_buy_iv").null_count)
    assert 0.0 in table.column("open").to_pylist()  # 0E-8
    assert set(table.column("type").to_pylist()) == {"C", "P"}
    assert not [fault for fault in (found.fault for found in verify_days(world.layout, SUMMARY, [DAY])) if fault]


@pytest.mark.parametrize(("key", "missing"), [(INDEX, 600), (SUMMARY, 1)], ids=["index", "summary"])
def test_missing_rows_are_an_archive_defect(world: World, key: SeriesKey, missing: int) -> None:
    start, end = (utc(f"{DAY}T{at}") for at in (("12:00", "12:10") if key is INDEX else ("12:00", "13:00")))
    world.sandbox.faults.add(MissingRows(start=start, end=end, series=key.data_type))
    one = stored(world.one(key, str(DAY)))
    (finding,) = [found for found in one.row.findings_list() if found.check == "gaps"]
    assert (one.row.verdicts, finding.count) == ("archive_defect", missing)


def test_impossible_values_fail_the_check(world: World) -> None:
    stored(world.one(SUMMARY, str(DAY)))
    table = world.table(SUMMARY, str(DAY))
    wrong = (
        ("type", "X", "option_type"),
        ("volume_usdt", -1.0, "negative"),
        ("best_bid_price", 1e9, "crossed"),
        ("mark_price", float("inf"), "finite"),
        ("high", -1e9, "negative"),
    )
    for name, value, rule in wrong:
        assert rule in rules(SUMMARY, changed(table, name, value))
    assert rules(SUMMARY, changed(table, "delta", -0.7)) == rules(SUMMARY, table) == []
    index = pa.table({"calc_time": pa.array([0, 1], pa.timestamp("us")), "index_value": [0.0, float("nan")]})
    assert rules(INDEX, index) == ["finite", "positive"]


def test_two_rows_of_one_option_and_hour_conflict(world: World) -> None:
    fault = DamagedArchive(days=(DAY,), damage=Damage.CONFLICTING_DUPLICATES, series="EOHSummary")
    world.sandbox.faults.add(fault)
    result = world.one(SUMMARY, str(DAY))
    assert isinstance(result, DayFailure)
    assert result.failure == "conflict"


@pytest.mark.parametrize("hour", ["24", "-1", "", "x"])
def test_hour_outside_of_the_day_is_refused(hour: str) -> None:
    stem = f"BTCUSDT-EOHSummary-{DAY}"
    line = ",".join([str(DAY), hour, "BTC-231027-33000-C", "BTCUSDT", "C", "231027-33000", *["1"] * 20]) + "\n"
    with pytest.raises(MalformedError, match=stem):
        read_zip(make_zip([(f"{stem}.csv", line.encode())]), SUMMARY, stem, DAY, DAY)


def test_day_without_a_file_is_absent(world: World) -> None:
    world.sandbox.faults.add(MissingDay(days=(DAY,), series="BVOLIndex"))
    result = world.one(INDEX, str(DAY))
    assert isinstance(result, DayFailure)
    assert (result.failure, "REST of option has no BVOLIndex" in result.reason) == ("absent", True)


def test_options_are_synced_served_and_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "collect:\n  - {market: option, symbols: [BTCUSDT], EOHSummary: {from: 2023-10-22}}\n"
        "  - {market: option, symbols: [BTCBVOLUSDT], BVOLIndex: {from: 2023-10-25}}\n"
    )
    run = shell(world, monkeypatch, text)
    world.at("2023-10-26T12:00")
    result = run("sync", "--yes")
    assert result.exit_code == 0, result.output
    assert sorted(world.ledger(SUMMARY).rows) == days("2023-10-22", str(LAST))
    assert set(world.ledger(INDEX).rows) >= {date(2023, 10, 25)}
    universe = load_universe(world.root / "universe.yaml")
    due = {key for _, keys in recent_days(utc("2023-10-27T10:00"), 3, universe, world.layout) for key in keys}
    assert due == {INDEX}
    market = MarketData(world.layout.root)
    rows = market.eoh_summary("BTCUSDT", "2023-10-22", "2023-10-26", on_gap="raise")
    assert len(rows) == 2 * 24 * 6
    assert len(market.bvol_index("BTCBVOLUSDT", "2023-10-25", "2023-10-26", on_gap="raise")) == 86_400
    calls = (
        "SELECT count(DISTINCT contract) AS n FROM binance_option.eoh_summary WHERE type = 'C' AND time < '2023-10-23'"
    )
    assert market.sql(calls).arrow().to_pylist() == [{"n": 3}]
    with pytest.raises(UsageError, match="option has no klines"):
        market.klines("BTCUSDT", "1h", "2023-10-22", market="option")
    with pytest.raises(UsageError, match="spot has no BVOLIndex"):
        market.bvol_index("BTCBVOLUSDT", "2023-10-22", market="spot")
    with pytest.raises(UsageError, match="option has no klines"):
        market.universe("2023-10-22", market="option")


def test_symbol_of_options_that_does_not_exist(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shell(
        world, monkeypatch, "collect:\n  - {market: option, symbols: [BTCBVOLUSDT], BVOLIndex: {from: 2024-01}}\n"
    )
    result = run("add", "BTCBVOLUSD", "BVOLIndex", "--market", "option", "--from", "2024-01-01", "--yes")
    assert result.exit_code == 2
    assert "BTCBVOLUSDT" in result.output
