"""Flat candles that may be a fault of the archive alone: REST is asked before they are explained, once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

import pyarrow.compute as pc
import pytest

from market_data_pipeline.cli import main  # noqa: F401 - loaded once, for all tests
from market_data_pipeline.lake import parquet
from market_data_pipeline.model.day import Classified, after, record_of
from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.series import Market
from market_data_pipeline.model.states import DayState, state_of
from market_data_pipeline.sandbox import FlatRows, MarketOutage, Status
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, agg_trades, klines, utc

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
UNIVERSE = """\
collect:
  - market: {market}
    symbols: [{symbols}]
    klines: {{intervals: [1m], from: 2026-03-02}}
"""
DAY = date(2026, 3, 3)
START, END = utc("2026-03-03T10:00:00"), utc("2026-03-03T10:20:00")
BACKFILL = ("backfill", "--from", "2026-03-03", "--through", "2026-03-03")


def commands(
    world: World, monkeypatch: pytest.MonkeyPatch, market: str = "um", symbols: Sequence[str] = SYMBOLS
) -> MarketData:
    lock = "".join([f"{market}:\n", *(f"  {one}: [{{from: 2020-10-01, until: null}}]\n" for one in symbols)])
    return shell(world, monkeypatch, UNIVERSE.format(market=market, symbols=", ".join(symbols)), lock)


def verdicts(world: World, symbol: str, market: str = "um") -> dict[str, Finding]:
    row = world.ledger(klines(symbol, "1m", market)).rows[DAY]
    return {
        one.rule: one for one in row.findings_list() if one.check == "gaps" and (one.count > 5 or one.rule != "quiet")
    }


def state(world: World, symbol: str, market: str = "um") -> DayState:
    row = world.ledger(klines(symbol, "1m", market)).rows[DAY]
    return state_of(row.outcome, row.final, row.verdicts)


def traded(world: World, symbol: str, market: str = "um") -> int:
    """Trades of the twenty minutes."""
    table = world.table(klines(symbol, "1m", market), str(DAY))
    return int(pc.sum(table["count"].slice(600, 20)).as_py())


@pytest.mark.parametrize("market", ["um", "spot"])
@pytest.mark.parametrize("command", [("sync",), BACKFILL])
def test_flat_in_the_archive_alone_is_filled_in_from_rest(
    world: World, monkeypatch: pytest.MonkeyPatch, command: Sequence[str], market: str
) -> None:
    market_data = commands(world, monkeypatch, market)
    world.sandbox.faults.add(FlatRows(series=f"^binance/{market}/", start=START, end=END))
    assert market_data(*command).exit_code == 0
    for symbol in SYMBOLS:
        found = verdicts(world, symbol, market)
        assert set(found) <= {"healed", "quiet"}
        assert 15 <= found["healed"].count <= 20  # nobody traded a symbol in one or another minute
        assert found["healed"].evidence == "they are flat in the archive, but REST has trades in them"
        assert state(world, symbol, market) is DayState.HEALED
        assert traded(world, symbol, market) > 0
        row = world.ledger(klines(symbol, "1m", market)).rows[DAY]
        (filled,) = (one for one in row.findings_list() if one.rule == "flat_filled")
        assert "volume 0.0 → " in filled.evidence
    world.forget()
    world.at("2026-03-05T12:01:20")
    assert market_data(*BACKFILL).exit_code == 0
    assert not world.asked()


def test_outage_flat_in_rest_too_is_suspended_and_requested_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    market_data = commands(world, monkeypatch)
    world.sandbox.faults.add(MarketOutage(series="^binance/um/", start=START, end=END))
    assert market_data(*BACKFILL).exit_code == 0
    for symbol in SYMBOLS:
        finding = verdicts(world, symbol)["suspended"]
        assert finding.count == 20
        assert finding.evidence.endswith("; REST has no trade there either")
        assert state(world, symbol) is DayState.OUTAGE
    world.forget()
    world.at("2026-03-06T12:00:30")
    assert market_data(*BACKFILL).exit_code == 0
    assert not world.asked()


def test_flat_candles_are_unexplained_until_rest_answers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    market_data = commands(world, monkeypatch)
    world.sandbox.faults.add(FlatRows(series="^binance/um/", start=START, end=END))
    off = world.sandbox.faults.add(Status(path="/fapi/", status=451))
    market_data(*BACKFILL)
    for symbol in SYMBOLS:
        assert verdicts(world, symbol)["unconfirmed"].count == 20
        assert state(world, symbol) is DayState.INCOMPLETE
        assert world.ledger(klines(symbol, "1m", "um")).rows[DAY].gaps == "warn"
    world.sandbox.faults.remove(off)
    market_data(*BACKFILL)
    assert state(world, "BTCUSDT") is DayState.INCOMPLETE  # it rests for an hour
    world.at("2026-03-05T14:00:30")
    market_data(*BACKFILL)
    assert [state(world, symbol) for symbol in SYMBOLS] == [DayState.HEALED] * 3


def as_version_0_1_left_it(world: World) -> None:
    """Let all say of the day what they said before REST was asked about flat candles."""
    for symbol in SYMBOLS:
        key = klines(symbol, "1m", "um")
        ledger, path = world.ledger(key), world.layout.file(key, DAY)
        said = [
            one.model_copy(update={"evidence": one.evidence.removesuffix("; REST has no trade there either")})
            for one in ledger.rows[DAY].findings_list()
            if one.rule != "flat_confirmed"
        ]
        record, table = parquet.parse_whole(path, path.read_bytes())
        found = tuple(one for one in record.findings if one.rule != "flat_confirmed")
        record = record.model_copy(update={"findings": found})
        stored = record_of(record, parquet.write_table(path, table, record))
        ledger.put(after(stored, stored.day, Classified(tuple(said))))
        ledger.write(world.layout.ledger(key))
    judged = world.layout.classified(Market.UM)
    judged.write_text(judged.read_text().replace(" asked", ""))


def test_days_of_version_0_1_are_incomplete_until_rest_answers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    market_data = commands(world, monkeypatch)
    world.sandbox.faults.add(MarketOutage(series="^binance/um/", start=START, end=END))
    assert market_data(*BACKFILL).exit_code == 0
    as_version_0_1_left_it(world)
    assert [state(world, symbol) for symbol in SYMBOLS] == [DayState.OUTAGE] * 3

    off = world.sandbox.faults.add(Status(path="/fapi/", status=451))
    result = market_data("backfill", "--from", "2026-03-02", "--through", "2026-03-03")
    assert result.exit_code == 3
    assert "3 days incomplete: 60 candles unconfirmed" in result.stderr
    assert [state(world, symbol) for symbol in SYMBOLS] == [DayState.INCOMPLETE] * 3

    world.sandbox.faults.remove(off)
    world.at("2026-03-05T14:00:30")  # it rests for an hour
    assert market_data("sync").exit_code == 0
    assert [state(world, symbol) for symbol in SYMBOLS] == [DayState.OUTAGE] * 3


def test_stored_trades_with_flat_rest_candles_are_a_defect(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    universe = UNIVERSE.format(market="um", symbols=", ".join(SYMBOLS)) + "    aggTrades: {from: 2026-03-02}\n"
    market_data = shell(world, monkeypatch, universe)
    world.sandbox.faults.add(FlatRows(series="^binance/um/klines", start=START, end=END, where="both"))
    market_data(*BACKFILL)
    assert len(world.table(agg_trades("BTCUSDT", "um"), str(DAY)))
    for symbol in SYMBOLS:
        defect = verdicts(world, symbol)["archive_defect"]
        assert "stored aggTrades took place there" in defect.evidence
        assert state(world, symbol) is DayState.INCOMPLETE


def test_later_symbol_is_requested_after_others_were_filled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others show trades there by then, so that it would seem that nobody traded this one."""
    world.sandbox.faults.add(FlatRows(series="^binance/um/", start=START, end=END))
    market_data = commands(world, monkeypatch, symbols=SYMBOLS[:2])
    market_data(*BACKFILL)
    assert state(world, "BTCUSDT") is DayState.HEALED
    result = market_data("add", "SOLUSDT", "1m", "--market", "um", "--from", "2026-03-03", "--through", "2026-03-03")
    assert result.exit_code == 0, result.output
    assert state(world, "SOLUSDT") is DayState.HEALED


@pytest.mark.parametrize(("flat", "verdict"), [(FlatRows, "healed"), (MarketOutage, "quiet")])
def test_lone_symbol_is_requested_for_an_unusual_flat_run(
    world: World, monkeypatch: pytest.MonkeyPatch, flat: type[FlatRows] | type[MarketOutage], verdict: str
) -> None:
    world.sandbox.faults.add(flat(series="^binance/um/", start=START, end=END))
    market_data = commands(world, monkeypatch, symbols=SYMBOLS[:1])
    assert market_data(*BACKFILL).exit_code == 0
    assert verdicts(world, "BTCUSDT")[verdict].count == 20


def test_candles_of_rest_are_not_replaced_by_flat_archive_ones(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sandbox.faults.add(FlatRows(series="^binance/um/", start=START, end=END))
    key = klines("BTCUSDT", "1m", "um")
    world.at("2026-03-04T00:30:00")  # before the archive has it
    assert not world.one(key, str(DAY)).row.final
    world.at("2026-03-05T12:00:30")
    row = world.one(key, str(DAY)).row
    assert (row.final, row.verdicts) == (True, "healed")
    assert traded(world, "BTCUSDT") > 0


def test_schedules_request_rest_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in the UI judges in the coverage of a market."""
    from market_data_pipeline.defs.definitions import build_definitions
    from market_data_pipeline.defs.in_process import materialize_coverage, materialize_days
    from market_data_pipeline.defs.platform.home import open_instance
    from market_data_pipeline.universe import load_universe

    commands(world, monkeypatch)
    world.sandbox.faults.add(FlatRows(series="^binance/um/", start=START, end=END))
    definitions = build_definitions(world.settings, load_universe(world.root / "universe.yaml"))
    keys = [klines(symbol, "1m", "um") for symbol in SYMBOLS]
    with open_instance(world.layout) as instance:
        assert materialize_days(instance, definitions, keys, DAY, DAY + timedelta(1), log_level="CRITICAL").success
        assert state(world, "BTCUSDT") is DayState.FINAL
        assert materialize_coverage(instance, definitions, [Market.UM], log_level="CRITICAL").success
    assert [state(world, symbol) for symbol in SYMBOLS] == [DayState.HEALED] * 3
