"""Single trades: consecutive ids in spot, holes in futures, and the archive alone."""

from __future__ import annotations

from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from market_data_pipeline import MarketData, UsageError, clock
from market_data_pipeline.checks.integrity import check_integrity
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import Damage, DamagedArchive, MissingDay, MissingRows
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import Result, World, agg_trades, days, utc

SPOT = SeriesKey(EXCHANGE, Market.SPOT, DataType.TRADES, "BTCUSDT")
UM = SeriesKey(EXCHANGE, Market.UM, DataType.TRADES, "BTCUSDT")
CM = SeriesKey(EXCHANGE, Market.CM, DataType.TRADES, "BTCUSD_PERP")
EVERY = pytest.mark.parametrize("key", [SPOT, UM, CM], ids=lambda key: str(key.market))


def stored(results: list[Result]) -> list[DayOutcome]:
    assert all(isinstance(result, DayOutcome) for result in results), results
    return [result for result in results if isinstance(result, DayOutcome)]


def values(table: pa.Table, name: str) -> list[Any]:
    return list(table.column(name).to_pylist())


@EVERY
def test_trades_are_those_that_agg_trades_join(world: World, key: SeriesKey) -> None:
    one, other = stored(
        [world.one(key, "2026-02-10"), world.one(agg_trades(key.symbol, str(key.market)), "2026-02-10")]
    )
    assert (one.row.final, one.row.verdicts, one.row.integrity) == (True, "", "info")
    trades, joined = world.table(key, "2026-02-10"), world.table(other.key, "2026-02-10")
    firsts, lasts = (values(joined, name) for name in ("first_trade_id", "last_trade_id"))
    ids = [id_ for first, last in zip(firsts, lasts, strict=True) for id_ in range(first, last + 1)]
    assert values(trades, "id") == ids
    quantities = values(trades, "qty")
    assert sum(quantities) == pytest.approx(sum(values(joined, "quantity")), rel=1e-9)
    assert min(quantities) > 0


def test_ids_of_um_have_holes_that_are_no_gap(world: World) -> None:
    results = stored(world.ingest(UM, days("2026-02-10", "2026-02-12")))
    ids = [id_ for one in results for id_ in values(world.table(UM, str(one.day)), "id")]
    assert ids[-1] - ids[0] + 1 > len(ids)
    assert len(ids) == len(set(ids))
    assert {(one.row.final, one.row.verdicts) for one in results} == {(True, "")}


def test_missing_ids_of_spot_are_an_archive_defect(world: World) -> None:
    gone = MissingRows(start=utc("2026-02-10T08:00"), end=utc("2026-02-10T09:00"), where="archive", series="/trades/")
    world.sandbox.faults.add(gone)
    (one,) = stored([world.one(SPOT, "2026-02-10")])
    assert (one.row.final, one.row.verdicts, one.row.missing > 0) == (True, "archive_defect", True)
    (finding,) = one.row.findings_list()
    assert f"{one.row.missing} trades are missing in the archive" in finding.message
    assert "REST of spot has no trades" in finding.message
    assert not world.asked("/api/v3/historicalTrades")


def test_ids_missing_at_midnight_are_reported(world: World) -> None:
    gone = MissingRows(start=utc("2026-02-11T00:00"), end=utc("2026-02-11T01:00"), where="archive", series="/trades/")
    world.sandbox.faults.add(gone)
    first, second = stored(world.ingest(SPOT, days("2026-02-10", "2026-02-11")))
    assert (first.row.verdicts, second.row.verdicts) == ("", "archive_defect")
    assert second.row.missing == (second.row.first_key or 0) - (first.row.last_key or 0) - 1


@EVERY
def test_repeated_id_with_other_content_is_refused(world: World, key: SeriesKey) -> None:
    day = date(2026, 2, 10)
    world.sandbox.faults.add(DamagedArchive(days=(day,), damage=Damage.CONFLICTING_DUPLICATES, series="/trades/"))
    result = world.one(key, str(day))
    assert isinstance(result, DayFailure)
    assert result.failure == "conflict"
    assert "two different rows have id " in str(result)


def test_repeated_equal_trade_is_stored_once(world: World) -> None:
    day = date(2026, 2, 10)
    world.sandbox.faults.add(DamagedArchive(days=(day,), damage=Damage.DUPLICATES, series="/trades/"))
    (one,) = stored([world.one(UM, str(day))])
    assert ([finding.rule for finding in one.row.findings_list()], one.row.integrity) == (["duplicates"], "warn")


def test_impossible_values_fail_the_check(world: World) -> None:
    stored([world.one(SPOT, "2026-02-10")])
    table = world.table(SPOT, "2026-02-10").slice(0, 3)
    for name, values, rule in (("price", [1.0, -1.0, 1.0], "positive"), ("qty", [1.0, float("nan"), 1.0], "finite")):
        at = table.schema.get_field_index(name)
        broken = table.set_column(at, table.schema.field(name), pa.array(values))
        assert rule in {finding.rule for finding in check_integrity(SPOT, broken) if finding.count == 1}


def test_day_without_archive_waits_for_it(world: World) -> None:
    today = clock.today()
    (one,) = stored([world.one(SPOT, str(today))])
    assert one.row.outcome == "empty"
    world.sandbox.faults.add(MissingDay(days=(date(2026, 1, 10),), series="/trades/"))
    result = world.one(SPOT, "2026-01-10")
    assert isinstance(result, DayFailure)
    assert result.failure == "absent"


def test_added_trades_are_served_by_python_and_sql(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shell(world, monkeypatch, "collect:\n  - {market: spot, symbols: [ETHUSDT], trades: {from: 2026-02-10}}\n")
    result = run("add", "BTCUSDT", "trades", "--from", "2026-02-10", "--through", "2026-02-11", "--yes")
    assert result.exit_code == 0, result.output
    market = MarketData(world.layout.root)
    frame = market.trades("BTCUSDT", "2026-02-10T12:00", "2026-02-11T12:00", on_gap="raise").df()
    query = (
        "SELECT count(*) AS n, sum(qty) AS qty FROM binance_spot.trades WHERE symbol = 'BTCUSDT' "
        "AND time >= '2026-02-10 12:00' AND time < '2026-02-11 12:00'"
    )
    (row,) = market.sql(query).arrow().to_pylist()
    assert (row["n"], row["qty"]) == (len(frame), pytest.approx(frame.qty.sum()))
    (row,) = market.sql("SELECT count(*) AS n FROM binance_spot.trades('BTCUSDT', '2026-02-10')").arrow().to_pylist()
    assert row["n"] == 0  # the macro has the aggTrades, which are not collected here
    with pytest.raises(UsageError, match="Several trades can share a time"):
        market.trades("BTCUSDT", "2026-02-10", "2026-02-11").wide("price")
