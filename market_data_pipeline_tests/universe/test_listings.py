"""Symbols that are collected and not in the lock: refused where they do not exist, before any of their days."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from market_data_pipeline.client import MarketData
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import Market
from market_data_pipeline.sandbox import DEFAULT_SYMBOLS, GeneratedSymbol, LateArchive, Sandbox, Status
from market_data_pipeline.universe import load_universe
from market_data_pipeline.universe.listings import with_listings
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import World, days, klines

UNIVERSE = """\
collect:
  - market: spot
    symbols: [{symbols}]
    klines: {{intervals: [1d], from: 2026-02-01}}
"""
LOCK = "spot:\n  ETHUSDT: [{from: 2017-08-17, until: null}]\n"
MISSPELT = UNIVERSE.format(symbols="ETHUSDT, BTCUSTD")
MISTAKE = r"universe\.yaml, line 3: spot has no symbol BTCUSTD\. Similar: BTCUSDT.*market-data universe refresh"


@pytest.mark.parametrize("lock", [LOCK, None], ids=["lock", "no lock"])
@pytest.mark.parametrize("command", ["sync", "backfill"])
def test_misspelt_symbol_is_refused_without_a_request_for_days(
    world: World, monkeypatch: pytest.MonkeyPatch, command: str, lock: str | None
) -> None:
    market_data = shell(world, monkeypatch, MISSPELT, lock)
    result = market_data(command)
    assert result.exit_code == 2, result.output
    assert " ".join(result.stderr.split()).find("line 3: spot has no symbol BTCUSTD. Similar: BTCUSDT") >= 0
    assert "market-data universe refresh" in result.stderr
    assert not world.asked("BTCUSTD")
    assert len(world.asked()) <= 4
    assert not world.layout.root.joinpath("lake").exists()


def test_existing_symbol_is_fetched_despite_a_misspelt_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    market_data = shell(world, monkeypatch, MISSPELT, LOCK)
    result = market_data("backfill", "--symbol", "ETHUSDT", "--from", "2026-03-01", "--through", "2026-03-03")
    assert result.exit_code == 0, result.output


def test_sync_of_a_notebook_refuses_a_misspelt_symbol(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shell(world, monkeypatch, MISSPELT, LOCK)
    with pytest.raises(UsageError, match=f"(?s){MISTAKE}"):
        MarketData(world.layout.root).klines("BTCUSTD", "1d", "2026-03-01", "2026-03-03", sync=True)
    assert not world.asked("BTCUSTD")


def test_a_symbol_that_was_added_by_hand_is_looked_up_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    market_data = shell(world, monkeypatch, UNIVERSE.format(symbols="ETHUSDT, SOLUSDT"), LOCK)
    few_days = ("backfill", "--symbol", "SOLUSDT", "--from", "2026-03-01", "--through", "2026-03-03")
    assert market_data(*few_days).exit_code == 0
    assert load_universe(world.root / "universe.yaml").listings.keys() == {
        (Market.SPOT, "ETHUSDT"),
        (Market.SPOT, "SOLUSDT"),
    }
    world.forget()
    assert market_data(*few_days).exit_code == 0
    assert not world.asked()


def test_without_network_the_lock_decides(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without both nothing is refused."""
    market_data = shell(world, monkeypatch, MISSPELT, LOCK)
    world.sandbox.faults.add(Status(path="/", status=503))
    result = market_data("sync")
    assert result.exit_code == 2, result.output
    said = " ".join(result.stderr.split())
    assert "line 3: universe.lock.yaml does not have spot symbol BTCUSTD. It has ETHUSDT (1 symbols in all)." in said
    assert "`market-data universe refresh`" in said
    assert "cannot be reached to look them up" in said
    (world.root / "universe.lock.yaml").unlink()
    universe = load_universe(world.root / "universe.yaml")
    assert with_listings(world.settings, universe, [klines("BTCUSTD", "1d")], pytest.fail) == universe
    assert universe.start(klines("BTCUSTD", "1d")) == date(2026, 2, 1)


# --- symbols that began today --------------------------------------------------------------------------------------


@pytest.fixture
def new_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world in which a symbol of each market began a few hours ago, so that the archive has nothing of it."""
    began = (Market.SPOT, date(2026, 3, 5)), (Market.UM, date(2026, 3, 4)), (Market.CM, date(2026, 3, 5))
    new = tuple(GeneratedSymbol(market, "NEWUSDT", day, trades_per_day=2_000) for market, day in began)
    with Sandbox(symbols=(*DEFAULT_SYMBOLS, *new)) as sandbox:
        sandbox.faults.add(LateArchive(series="NEWUSDT", days=days("2026-03-04", "2026-03-05"), days_late=9))
        world = World(tmp_path, sandbox, monkeypatch)
        world.at("2026-03-05T12:00:30")
        yield world


@pytest.mark.parametrize(("market", "first"), [("spot", 12), ("um", 36), ("cm", 12)])
def test_symbol_that_began_today_is_added_from_rest(
    new_world: World, monkeypatch: pytest.MonkeyPatch, market: str, first: int
) -> None:
    market_data = shell(new_world, monkeypatch, UNIVERSE.format(symbols="ETHUSDT"), LOCK)
    result = market_data("add", "NEWUSDT", "1h", "--market", market)
    assert result.exit_code == 0, result.output
    universe = load_universe(new_world.root / "universe.yaml")
    listing = universe.listings[Market(market), "NEWUSDT"]
    assert listing.last is None
    key = klines("NEWUSDT", "1h", market)
    assert sum(row.rows for row in new_world.ledger(key).rows.values()) == first
    assert market_data("universe", "refresh").exit_code == 0
    assert load_universe(new_world.root / "universe.yaml").listings[Market(market), "NEWUSDT"] == listing


def test_pattern_takes_a_symbol_once_the_archive_has_it(new_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    market_data = shell(new_world, monkeypatch, UNIVERSE.format(symbols="'N*', ETHUSDT, NEWUSDT"), LOCK)
    result = market_data("universe", "refresh")
    assert result.exit_code == 2
    assert "spot has no symbol N*." in result.stderr
    assert "NEWUSDT" not in result.stderr


def test_symbol_unknown_everywhere_is_refused_without_rest(new_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    market_data = shell(new_world, monkeypatch, UNIVERSE.format(symbols="ETHUSDT"), LOCK)
    new_world.sandbox.faults.add(Status(path=r"^/api/", status=451))
    result = market_data("add", "NEWUSDT", "1h")
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "REST of spot" in said
    assert "Spot has no symbol NEWUSDT. Similar: " in said
    assert "NEWUSDT" not in (new_world.root / "universe.yaml").read_text()
