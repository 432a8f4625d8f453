"""``market-data status`` and coverage in SQL speak of the files that lie in the lake, whatever its ledgers have it."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from market_data_pipeline.client import MarketData as Client
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, klines

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


def test_file_removed_by_hand_is_no_longer_stored(world: World, market_data: MarketData) -> None:
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


def states(world: World) -> dict[str, tuple[str, bool]]:
    """The state of each day in ``quality.coverage``, and whether it is final."""
    rows = market(world).sql("SELECT day, state, final FROM quality.coverage ORDER BY day").arrow().to_pylist()
    return {str(row["day"]): (row["state"], row["final"]) for row in rows}


def market(world: World) -> Client:
    return Client(world.layout.root)


@pytest.mark.usefixtures("market_data")
def test_coverage_in_sql_counts_the_files_on_disk(world: World) -> None:
    before = states(world)
    file = world.layout.file(BTC, DAY)
    kept, stat = file.read_bytes(), file.stat()
    notebook = market(world)

    def shown() -> tuple[Any, ...]:
        query = f"SELECT state, outcome, final, failure, reason FROM quality.coverage WHERE day = DATE '{DAY}'"
        ((row),) = notebook.sql(query).arrow().to_pylist()
        return tuple(row.values())

    assert shown()[:3] == ("final", "held", True)
    file.unlink()
    gone = shown()
    assert gone[:4] == ("failed", "failed", False, "gone")
    assert "Backfill that day to restore it" in gone[4]
    assert states(world) == before | {str(DAY): ("failed", False)}
    assert notebook.sql("SELECT count(*) AS n FROM binance_spot.klines").arrow()["n"].to_pylist() == [len(before) - 1]
    file.write_bytes(kept)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert shown()[:3] == ("final", "held", True)
    assert states(world) == before


@pytest.mark.usefixtures("market_data")
@pytest.mark.parametrize("lost", ["a day", "all"])
def test_coverage_in_sql_has_days_lost_to_the_ledger_in_a_crash(world: World, lost: str) -> None:
    before, path = states(world), world.layout.ledger(BTC)
    if lost == "all":
        path.unlink()
    else:
        Ledger(row for row in Ledger.read(path).rows.values() if row.day != DAY).write(path)
    assert states(world) == before
