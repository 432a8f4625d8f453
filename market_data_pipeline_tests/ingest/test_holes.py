"""Days within a listing that no source has: explained where the archive has later ones and REST has no candle."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import duckdb
import pytest

from market_data_pipeline.coverage.summary import cover, states_of
from market_data_pipeline.model.outcomes import Action, DayFailure
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.model.states import DayState, state_of
from market_data_pipeline.sandbox import GeneratedSymbol, MissingDay, Sandbox, Status
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines

HOLE = days("2026-01-20", "2026-01-22")
AROUND = days("2026-01-18", "2026-01-24")
RECENT = days("2026-02-24", "2026-02-25")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """COCOSUSDT was away for three days long ago, and for two days of late."""
    away = ((HOLE[0], HOLE[-1]), (RECENT[0], RECENT[-1]))
    symbols = [
        GeneratedSymbol(market, "COCOSUSDT", date(2025, 12, 1), trades_per_day=500, breaks=away)
        for market in (Market.SPOT, Market.UM)
    ]
    with Sandbox(symbols=symbols) as sandbox:
        world = World(tmp_path, sandbox, monkeypatch)
        world.at("2026-03-05T12:00:30")
        yield world


KEYS = [
    klines("COCOSUSDT", "1h"),
    klines("COCOSUSDT", "1m", "um"),
    agg_trades("COCOSUSDT"),
    agg_trades("COCOSUSDT", "um"),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_hole_is_explained_and_not_requested_again(world: World, key: SeriesKey) -> None:
    results = {result.day: result for result in world.ingest(key, AROUND)}
    for day in HOLE:
        result = results[day]
        assert result.action is Action.EMPTY, result  # type: ignore[union-attr]
        assert (result.row.final, result.row.verdicts) == (True, "outage")
        (finding,) = result.row.findings_list()
        assert "the next is 2026-01-23), and REST has no candle with trades" in finding.evidence
        assert state_of(result.row.outcome, result.row.final, result.row.verdicts) is DayState.OUTAGE
    world.forget()
    again = {result.day: result for result in world.ingest(key, AROUND)}
    assert not world.asked()
    assert [again[day].action for day in HOLE] == [Action.EMPTY] * 3  # type: ignore[union-attr]
    rows, today, wanted = world.ledger(key).rows, date(2026, 3, 5), [(AROUND[0], AROUND[-1])]
    covered = cover(key, rows, states_of(rows, wanted, today), wanted, today, 10)
    assert (covered.failed, covered.missing, covered.breaks, covered.days_missing) == ((), (), (), 0)
    with duckdb.connect(str(publish_catalog(world.layout)), read_only=True) as connection:
        told = connection.execute("SELECT day, explained FROM quality.gaps WHERE verdict = 'outage' ORDER BY day")
        assert told.fetchall() == [(day, True) for day in HOLE]
        told = connection.execute("SELECT day FROM quality.coverage WHERE state = 'outage' ORDER BY day")
        assert told.fetchall() == [(day,) for day in HOLE]


def test_hole_is_not_explained_while_rest_is_off(world: World) -> None:
    key = KEYS[0]
    off = world.sandbox.faults.add(Status(path="/api/v3", status=451))
    assert isinstance(world.one(key, str(HOLE[0])), DayFailure)
    world.sandbox.faults.remove(off)
    assert world.one(key, str(HOLE[0])).row.final


def test_hole_is_not_explained_by_a_listing_that_does_not_answer(world: World) -> None:
    world.sandbox.faults.add(Status(path=r"^/$", status=503))
    assert isinstance(world.one(KEYS[0], str(HOLE[0])), DayFailure)


def test_days_of_late_may_still_come(world: World) -> None:
    assert isinstance(world.one(KEYS[0], str(RECENT[0])), DayFailure)


def test_last_days_of_a_symbol_are_no_hole(world: World) -> None:
    missing = MissingDay(series="klines/COCOSUSDT", days=days("2026-01-18", "2026-03-04"))
    world.sandbox.faults.add(missing)
    assert isinstance(world.one(KEYS[0], str(HOLE[0])), DayFailure)


def test_trades_that_took_place_are_no_hole(world: World) -> None:
    """The archive lacks a day of futures trades that REST no longer serves, and has candles with trades."""
    world.sandbox.faults.add(MissingDay(series="aggTrades/COCOSUSDT", days=days("2026-01-18", "2026-01-18")))
    result = world.one(KEYS[3], "2026-01-18")
    assert isinstance(result, DayFailure)
    assert result.failure == "absent"


def test_archive_that_comes_after_all_is_taken(world: World) -> None:
    """A day that was settled without rows is fetched once the listing has its archive, as the sweep marks it."""
    from dataclasses import replace

    key, day = KEYS[0], AROUND[0]
    gone = world.sandbox.faults.add(MissingDay(series="klines/COCOSUSDT", days=[day]))
    empty = world.one(key, str(HOLE[0])).row
    world.sandbox.faults.remove(gone)
    ledger = world.ledger(key)
    ledger.put(replace(empty, day=day, replaced_by="another", attempts=0))
    ledger.write(world.layout.ledger(key))
    assert world.one(key, str(day)).row.is_stored_final


def test_command_ends_well(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    market_data = shell(
        world,
        monkeypatch,
        "collect:\n  - {market: spot, symbols: [COCOSUSDT], klines: {intervals: [1h], from: 2026-01-18}}\n",
    )
    result = market_data("backfill", "--from", "2026-01-18", "--through", "2026-01-24")
    assert result.exit_code == 0, result.output
    assert "failed" not in result.stderr
