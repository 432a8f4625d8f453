"""Neighbouring days of aggTrades that a killed run left without a look at what lies between them."""

from __future__ import annotations

from datetime import date

import pytest

from market_data_pipeline import clock
from market_data_pipeline.ingest.midnight import Midnight
from market_data_pipeline.outcomes import Action, DayOutcome
from market_data_pipeline.quality.repair import unmet_midnights
from market_data_pipeline.sandbox import MissingRows, RepeatedAtMidnight, Status
from market_data_pipeline_tests.world import World, agg_trades, utc

TRADES = agg_trades("SOLUSDT")
PAIR = [date(2026, 2, 10), date(2026, 2, 11)]
MISSING = MissingRows(
    start=utc("2026-02-10T23:50:00"), end=utc("2026-02-11T00:10:00"), series="aggTrades", where="archive"
)


def leave_unmet(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring both days as a run that is killed right after writing the second one does."""
    with monkeypatch.context() as patch:
        patch.setattr(Midnight, "_meet", lambda *_: {})
        world.ingest(TRADES, PAIR)
    assert all(row.held for row in world.ledger(TRADES).rows.values())
    world.at("2026-03-05T14:00:00")
    assert unmet_midnights(TRADES, world.ledger(TRADES).rows, clock.now()) == PAIR


def goes_on(world: World) -> bool:
    first, second = (world.ledger(TRADES).rows[day] for day in PAIR)
    return second.first_key == (first.last_key or 0) + 1


def test_ids_that_lack_between_them_are_healed_when_they_are_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sandbox.faults.add(MISSING)
    leave_unmet(world, monkeypatch)
    world.forget()

    results = world.ingest(TRADES, PAIR)

    # The earlier day was seen to be cut short by itself.
    actions = [result.action for result in results if isinstance(result, DayOutcome)]
    assert actions == [Action.HELD, Action.EXTENDED]
    assert goes_on(world)
    assert world.ledger(TRADES).rows[PAIR[1]].gaps == "info"
    assert world.asked(".zip") == []
    world.forget()
    world.at("2026-03-06T14:00:00")
    assert unmet_midnights(TRADES, world.ledger(TRADES).rows, clock.now()) == []
    world.ingest(TRADES, PAIR)
    assert world.asked() == []


def test_while_rest_refuses_the_later_day_says_so_and_rests(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sandbox.faults.add(MISSING)
    leave_unmet(world, monkeypatch)
    refusal = world.sandbox.faults.add(Status(path="/api/v3/", status=451))
    world.ingest(TRADES, PAIR)
    assert world.ledger(TRADES).rows[PAIR[1]].verdicts == "unpublished"
    assert unmet_midnights(TRADES, world.ledger(TRADES).rows, utc("2026-03-20T14:00:00")) == []
    world.sandbox.faults.remove(refusal)
    world.at("2026-03-05T16:00:00")
    world.ingest(TRADES, PAIR)
    assert goes_on(world)


def test_a_trade_on_both_sides_stays_on_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sandbox.faults.add(RepeatedAtMidnight(days=[PAIR[1]]))
    leave_unmet(world, monkeypatch)
    world.ingest(TRADES, PAIR)
    assert goes_on(world)
