"""``market-data status`` speaks of the files that lie in the lake, whatever its ledgers have it."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline_tests.shell import MarketData, shell
from market_data_pipeline_tests.world import World, klines

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1d], from: 2026-03-01}
"""
LOCK = "spot:\n  BTCUSDT: [{from: 2017-08-17, until: null}]\n"
BTC = klines("BTCUSDT", "1d")
DAY = date(2026, 3, 2)


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """Four days are over and held, today is 2026-03-05."""
    run = shell(world, monkeypatch, UNIVERSE, LOCK)
    world.at("2026-03-05T12:00:30")
    assert run("backfill", "--through", "2026-03-04").exit_code in (0, 1)
    return run


def counts(market_data: MarketData) -> dict[str, Any]:
    (status,) = json.loads(market_data("status", "--json").stdout)
    return {name: status[name] for name in ("held", "provisional", "failed", "missing", "rows")}


def written(world: World) -> tuple[bytes, Path]:
    path = world.layout.ledger(BTC)
    return path.read_bytes(), path


def test_a_file_that_was_removed_by_hand_is_held_no_more(world: World, market_data: MarketData) -> None:
    before, (ledger, path) = counts(market_data), written(world)
    world.layout.file(BTC, DAY).unlink()
    assert counts(market_data) == before | {"held": before["held"] - 1, "failed": 1, "rows": before["rows"] - 1}
    assert path.read_bytes() == ledger


def test_a_file_that_was_changed_by_hand_is_not_taken_for_sound(world: World, market_data: MarketData) -> None:
    before = counts(market_data)
    file = world.layout.file(BTC, DAY)
    file.write_bytes(file.read_bytes()[:-100])
    assert counts(market_data) == before | {"held": before["held"] - 1, "failed": 1, "rows": before["rows"] - 1}


def test_a_ledger_that_a_crash_left_behind_does_not_hide_a_file(world: World, market_data: MarketData) -> None:
    before, path = counts(market_data), world.layout.ledger(BTC)
    Ledger(row for row in Ledger.read(path).rows.values() if row.day != DAY).write(path)
    assert counts(market_data) == before
