"""Candles of mark price, index price and premium: no volume, a premium below zero, an index by pair."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.checks.integrity import check_integrity
from market_data_pipeline.errors import UsageError
from market_data_pipeline.maintenance.flat_candles import classify_flat_candles
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import (
    ChangedRows,
    Damage,
    DamagedArchive,
    GeneratedSymbol,
    MarketOutage,
    MissingRows,
    Sandbox,
)
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import Result, World, days, klines, utc

PRICES = (DataType.MARK_PRICE_KLINES, DataType.INDEX_PRICE_KLINES, DataType.PREMIUM_INDEX_KLINES)
UNIVERSE = """\
collect:
  - market: um
    symbols: [ETHUSDT]
    premiumIndexKlines: {intervals: [1h], from: 2026-03-01}
"""


def of(data_type: DataType, interval: str = "1h", market: str = "um") -> SeriesKey:
    symbol = "BTCUSDT" if market == "um" else "BTCUSD_PERP"
    return SeriesKey(EXCHANGE, Market(market), data_type, symbol, interval)


def stored(results: list[Result]) -> list[DayOutcome]:
    assert all(isinstance(result, DayOutcome) for result in results), results
    return [result for result in results if isinstance(result, DayOutcome)]


def column(table: pa.Table, name: str) -> list[float]:
    return [float(value) for value in table.column(name).to_pylist() if value is not None]


@pytest.mark.parametrize("market", ["um", "cm"])
@pytest.mark.parametrize("data_type", PRICES)
def test_prices_load_from_archive_and_rest(world: World, data_type: DataType, market: str) -> None:
    world.at("2026-03-04T12:00:30")
    key = of(data_type, "1h", market)
    results = stored(world.ingest(key, days("2026-01-01", "2026-03-04")))
    sources = {str(one.day): one.row.source for one in results}
    assert (sources["2026-01-15"], sources["2026-03-02"], sources["2026-03-04"]) == (
        "archive_monthly",
        "archive_daily",
        "rest",
    )
    assert {(one.row.integrity, one.row.verdicts) for one in results} == {("info", "")}
    assert [one.row.rows for one in results] == [24] * 62 + [12]
    table = world.table(key, "2026-03-02")
    names = ["symbol", "interval", "open_time", "open", "high", "low", "close", "close_time"]
    assert table.column_names == names
    assert set(table.column("symbol").to_pylist()) == {key.symbol}


def test_premium_may_be_below_zero(world: World) -> None:
    key = of(DataType.PREMIUM_INDEX_KLINES, "1m")
    (one,) = stored([world.one(key, "2026-03-02")])
    assert (one.row.integrity, one.row.rows) == ("info", 1440)
    values = column(world.table(key, "2026-03-02"), "low")
    assert min(values) < 0 < max(values)


@pytest.mark.parametrize(("data_type", "rules"), [(PRICES[0], ["negative", "price_range"]), (PRICES[2], [])])
def test_mark_price_below_zero_fails(world: World, data_type: DataType, rules: list[str]) -> None:
    key = of(data_type)
    world.one(key, "2026-03-02")
    table = world.table(key, "2026-03-02")
    low = pc.if_else(pc.equal(table.column("open_time"), table.column("open_time")[3]), -1.0, table.column("low"))
    below = table.set_column(table.schema.get_field_index("low"), table.schema.field("low"), low)
    assert [one.rule for one in check_integrity(key, below)] == [rule for rule in rules if rule == "negative"]


def test_mark_price_is_the_index_with_the_premium(world: World) -> None:
    mark, index, premium = (of(data_type, "1m") for data_type in PRICES)
    tables = []
    for key in (mark, index, premium):
        world.one(key, "2026-03-02")
        tables.append(world.table(key, "2026-03-02"))
    marks, indexes, premiums = (column(table, "close") for table in tables)
    assert all(abs(a - b * (1 + c)) <= 1e-6 * a for a, b, c in zip(marks, indexes, premiums, strict=True))


def test_index_is_requested_by_pair(world: World) -> None:
    key = of(DataType.INDEX_PRICE_KLINES, "1h", "cm")
    world.ingest(key, days("2026-03-02", "2026-03-05"))
    paths = world.asked("indexPriceKlines")
    assert "/data/futures/cm/daily/indexPriceKlines/BTCUSD/1h/BTCUSD-1h-2026-03-02.zip" in paths
    assert not [path for path in paths if "BTCUSD_PERP" in path]
    (request, *_) = [one for one in world.sandbox.requests if one.path.endswith("/dapi/v1/indexPriceKlines")]
    assert request.query["pair"] == "BTCUSD"


def test_missing_candles_are_filled_or_confirmed_absent(world: World) -> None:
    key = of(DataType.MARK_PRICE_KLINES, "1m")
    gone = MissingRows(start=utc("2026-03-02T08:00"), end=utc("2026-03-02T08:10"), series="markPriceKlines")
    archive_only = world.sandbox.faults.add(replace(gone, where="archive"))
    (one,) = stored([world.one(key, "2026-03-02")])
    assert (one.row.verdicts, one.row.rows) == ("healed", 1440)
    world.sandbox.faults.remove(archive_only)
    world.sandbox.faults.add(gone)
    other = SeriesKey(EXCHANGE, Market.UM, DataType.MARK_PRICE_KLINES, "ETHUSDT", "1m")
    (one,) = stored([world.one(other, "2026-03-02")])
    assert (one.row.verdicts, one.row.rows, one.row.gaps) == ("outage", 1430, "info")


def test_prices_do_not_stop_with_trading(world: World) -> None:
    world.sandbox.faults.add(MarketOutage(start=utc("2026-03-02T08:00"), end=utc("2026-03-02T09:00"), series="/um/"))
    key = of(DataType.INDEX_PRICE_KLINES, "1m")
    (one,) = stored([world.one(key, "2026-03-02")])
    assert (one.row.rows, one.row.verdicts, one.row.quiet) == (1440, "", 0)


def test_standstill_of_the_market_ignores_prices(world: World) -> None:
    """Candles without volume say nothing about trading, so the comparison of the market leaves them out."""
    world.one(of(DataType.MARK_PRICE_KLINES, "1m"), "2026-03-02")
    world.one(klines("BTCUSDT", "1m", "um"), "2026-03-02")
    before = world.ledger(of(DataType.MARK_PRICE_KLINES, "1m")).rows
    classify_flat_candles(world.layout, Market.UM)
    assert world.ledger(of(DataType.MARK_PRICE_KLINES, "1m")).rows == before


def test_candles_of_another_interval_are_refused(world: World) -> None:
    world.sandbox.faults.add(
        DamagedArchive(days=(date(2026, 3, 2),), damage=Damage.OTHER_DAY, series="premiumIndexKlines")
    )
    result = world.one(of(DataType.PREMIUM_INDEX_KLINES), "2026-03-02")
    assert isinstance(result, DayFailure)
    assert result.failure == "malformed"


def test_changed_candle_is_reported_with_both_values(world: World) -> None:
    world.at("2026-03-03T07:00")
    key = of(DataType.MARK_PRICE_KLINES)
    world.one(key, "2026-03-02")
    changed = ChangedRows(
        start=utc("2026-03-02T05:00"),
        end=utc("2026-03-02T06:00"),
        series="markPriceKlines",
        where="archive",
        column="close",
    )
    world.sandbox.faults.add(changed)
    world.at("2026-03-03T12:00")
    (one,) = stored([world.one(key, "2026-03-02")])
    (finding,) = [one for one in one.row.findings_list() if one.rule == "disagreement"]
    assert (finding.count, "close" in finding.message) == (1, True)


def test_added_premium_is_served_by_python_and_sql(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shell(world, monkeypatch, UNIVERSE)
    arguments = ("premiumIndexKlines", "markPriceKlines", "indexPriceKlines", "1h", "--market", "um")
    result = run("add", "BTCUSDT", *arguments, "--from", "2026-03-02", "--yes")
    assert result.exit_code == 0, result.output
    market = MarketData(world.layout.root)
    for method in (market.premium_index_klines, market.mark_price_klines, market.index_price_klines):
        assert len(method("BTCUSDT", "1h", "2026-03-02", "2026-03-04", on_gap="raise").df()) == 48
    joined = market.sql(
        "SELECT count(*) AS n FROM binance_um.mark_price_klines AS m JOIN binance_um.index_price_klines AS i "
        'USING (symbol, "interval", open_time)'
    )
    assert joined.arrow().to_pylist()[0]["n"] >= 48


def test_spot_has_no_mark_price(world: World) -> None:
    with pytest.raises(UsageError, match="spot has no markPriceKlines"):
        MarketData(world.root).mark_price_klines("BTCUSDT", "1h", "2026-01-01", market="spot")


def test_prices_before_the_listing_are_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier `from:` fetches mark and index prices that are older than the symbol. `from: listing` does not."""
    new = GeneratedSymbol(
        Market.UM, "NEWUSDT", date(2026, 2, 20), trades_per_day=50, prices_from=date(2026, 2, 18), price_decimals=4
    )
    anchor = GeneratedSymbol(Market.UM, "BTCUSDT", date(2026, 2, 1), trades_per_day=50)
    types = "\n".join(
        f"    {name}: {{intervals: [1h], from: {since}}}"
        for name, since in (
            ("klines", "2026-02-15"),
            ("indexPriceKlines", "2026-02-15"),
            ("markPriceKlines", "listing"),
            ("premiumIndexKlines", "2026-02-15"),
        )
    )
    with Sandbox(symbols=(new, anchor)) as sandbox:
        world = World(tmp_path, sandbox, monkeypatch)
        world.at("2026-03-01T12:00")
        run = shell(world, monkeypatch, f"collect:\n  - market: um\n    symbols: [NEWUSDT]\n{types}\n")
        assert run("universe", "refresh").exit_code == 0
        result = run("backfill", "--through", "2026-02-21", "--yes")
        assert result.exit_code == 0, result.output
        index = SeriesKey(EXCHANGE, Market.UM, DataType.INDEX_PRICE_KLINES, "NEWUSDT", "1h")
        rows = world.ledger(index).rows
        assert [(day, rows[day].outcome) for day in sorted(rows)] == [
            *((day, "not_listed") for day in days("2026-02-15", "2026-02-17")),
            *((day, "held") for day in days("2026-02-18", "2026-02-21")),
        ]
        for data_type in set(PRICES) - {DataType.INDEX_PRICE_KLINES} | {DataType.KLINES}:
            key = SeriesKey(EXCHANGE, Market.UM, data_type, "NEWUSDT", "1h")
            stored_days = [day for day, row in world.ledger(key).rows.items() if row.outcome == "held"]
            assert sorted(stored_days) == days("2026-02-20", "2026-02-21")
        market = MarketData(world.layout.root)
        assert len(market.index_price_klines("NEWUSDT", "1h", "2026-02-15", "2026-02-22", on_gap="raise")) == 4 * 24
        earlier = run("add", "NEWUSDT", "markPriceKlines", "1h", "--market", "um", "--from", "2026-02-17", "--yes")
        assert earlier.exit_code == 2
        assert "Set `from: 2026-02-17` there" in " ".join(earlier.output.split())
