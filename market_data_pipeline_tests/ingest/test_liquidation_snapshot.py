"""Forced orders: rows without a key that stand twice, another tree of the bucket, and a type that ended."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.checks.integrity import check_integrity
from market_data_pipeline.lake.checksums import content_sha256, verify_days
from market_data_pipeline.maintenance.due import recent_days
from market_data_pipeline.model.datasets import archived_spans
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.series import EXCHANGE, DataType, ListingSpans, Market, SeriesKey
from market_data_pipeline.sandbox import MissingDay
from market_data_pipeline.universe import load_universe
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import Result, World, utc

UM = SeriesKey(EXCHANGE, Market.UM, DataType.LIQUIDATION_SNAPSHOT, "BTCUSDT")
CM = SeriesKey(EXCHANGE, Market.CM, DataType.LIQUIDATION_SNAPSHOT, "BTCUSD_PERP")
DAY = date(2024, 3, 20)


def stored(result: Result) -> DayOutcome:
    assert isinstance(result, DayOutcome), result
    return result


def values(table: pa.Table, name: str) -> list[Any]:
    return list(table.column(name).to_pylist())


def test_rows_that_stand_twice_are_stored_once(world: World) -> None:
    one, other = stored(world.one(UM, str(DAY))), stored(world.one(CM, str(DAY)))
    (finding,) = one.row.findings_list()
    assert (finding.rule, finding.count, one.row.integrity) == ("duplicates", one.row.rows, "warn")
    assert (len(other.row.findings_list()), other.row.integrity, other.row.final) == (0, "info", True)
    table = world.table(UM, str(DAY))
    assert len({tuple(row.values()) for row in table.to_pylist()}) == table.num_rows
    assert set(values(table, "side")) == {"BUY", "SELL"}
    assert not [fault for fault in (found.fault for found in verify_days(world.layout, UM, [DAY])) if fault]


def test_um_comes_from_its_own_tree(world: World) -> None:
    world.one(UM, str(DAY))
    assert UM.archive_daily(DAY) == "data3/liquidationSnapshot/BTCUSDT/BTCUSDT-liquidationSnapshot-2024-03-20.zip"
    assert world.asked("/data3/liquidationSnapshot/BTCUSDT/")
    assert CM.archive_daily(DAY).startswith("data/futures/cm/daily/liquidationSnapshot/BTCUSD_PERP/")


def test_changed_text_changes_the_hash_of_the_content(world: World) -> None:
    stored(world.one(CM, str(DAY)))
    table = world.table(CM, str(DAY))
    at = table.schema.get_field_index("order_status")
    words = ["CANCELED", *values(table, "order_status")[1:]]
    assert content_sha256(table.set_column(at, table.schema.field(at), pa.array(words))) != content_sha256(table)


def test_impossible_orders_fail_the_check(world: World) -> None:
    stored(world.one(CM, str(DAY)))
    table = world.table(CM, str(DAY))
    wrong = (("side", "HOLD", "side"), ("price", -1.0, "positive"), ("original_quantity", 0.0001, "overfilled"))
    for name, value, rule in wrong:
        at = table.schema.get_field_index(name)
        changed = table.set_column(at, table.schema.field(at), pa.array([value, *values(table, name)[1:]]))
        assert [one.rule for one in check_integrity(CM, changed)] == [rule]


def test_day_without_a_file_is_absent(world: World) -> None:
    world.sandbox.faults.add(MissingDay(days=(DAY,), series="liquidationSnapshot"))
    result = world.one(CM, str(DAY))
    assert isinstance(result, DayFailure)
    assert result.failure == "absent"


@pytest.mark.parametrize(
    ("listed", "left"),
    [
        (((date(2019, 9, 8), None),), ((date(2023, 6, 25), date(2024, 3, 31)),)),
        (((date(2020, 1, 1), date(2023, 8, 1)),), ((date(2023, 6, 25), date(2023, 8, 1)),)),
        (((date(2020, 1, 1), date(2021, 1, 1)), (date(2024, 1, 1), None)), ((date(2024, 1, 1), date(2024, 3, 31)),)),
        ((), ((date(2023, 6, 25), date(2024, 3, 31)),)),
    ],
)
def test_spans_end_with_the_type(listed: Any, left: Any) -> None:
    assert archived_spans(UM, ListingSpans(listed)).spans == left


def test_symbol_listed_after_the_end_has_no_day() -> None:
    spans = archived_spans(UM, ListingSpans(((date(2025, 1, 1), None),)))
    days = [date(2023, 1, 1) + timedelta(days=n) for n in range(1_500)]
    assert not any(spans.covers(day) for day in days)


def test_ended_type_is_fetched_once_and_never_due(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "collect:\n  - {market: um, symbols: [BTCUSDT], liquidationSnapshot: {from: 2024-03-25}}\n"
    run = shell(world, monkeypatch, text)
    world.at("2024-04-02T12:00")
    result = run("sync", "--yes")
    assert result.exit_code == 0, result.output
    assert sorted(world.ledger(UM).rows) == [date(2024, 3, 25) + timedelta(days=n) for n in range(7)]
    universe = load_universe(world.root / "universe.yaml")
    assert not any(keys for _, keys in recent_days(utc("2024-04-04T10:00"), 3, universe, world.layout))
    rows = MarketData(world.layout.root).liquidation_snapshot("BTCUSDT", "2024-03-25", "2024-04-02", on_gap="raise")
    assert len(rows) == sum(row.rows for row in world.ledger(UM).rows.values())
    later = run("add", "BTCUSDT", "liquidationSnapshot", "--market", "um", "--from", "2024-04-01", "--yes")
    assert later.exit_code == 2
    assert "2024-03-31" in later.output
