"""``run_ingest``: the days that it requests, and the days that it leaves alone."""

from __future__ import annotations

import os
from collections.abc import Callable

import dagster as dg
import pytest

from market_data_pipeline.defs.in_process import Report, run_ingest
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline.model.outcomes import Action
from market_data_pipeline.sandbox import MarketOutage
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines, utc

BTC = klines("BTCUSDT", "1h")
UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2022-01-01}
"""
WANTED = days("2026-03-01", "2026-03-03")


@pytest.fixture
def brought(world: World) -> Callable[[str], Report]:
    """Bring three days of one series, whose listing is given as it stands in the lock file."""
    universe = world.root / "universe.yaml"
    universe.write_text(UNIVERSE)
    world.set(universe=universe)

    def run(spans: str = "{from: 2017-08-17, until: null}") -> Report:
        universe.with_name("universe.lock.yaml").write_text(f"spot:\n  BTCUSDT: [{spans}]\n")
        return run_ingest(world.settings, {BTC: WANTED})

    return run


def test_lost_ledger_is_rebuilt_for_stored_and_recorded_days(world: World, brought: Callable[[], Report]) -> None:
    brought()
    before = world.ledger(BTC).rows
    world.layout.ledger(BTC).unlink()
    world.forget()
    assert brought().count(Action.HELD) == 3
    assert world.asked() == []
    assert world.ledger(BTC).rows == before


def test_days_that_turn_out_to_be_listed_are_fetched(world: World, brought: Callable[[str], Report]) -> None:
    assert brought("{from: 2017-08-17, until: 2026-02-27}").count(Action.NOT_LISTED) == 3
    world.forget()
    assert brought("{from: 2017-08-17, until: 2026-02-27}").count(Action.NOT_LISTED) == 3
    assert world.asked() == []
    relisted = brought("{from: 2017-08-17, until: 2026-02-27}, {from: 2026-03-02, until: null}")
    assert (relisted.count(Action.NOT_LISTED), relisted.count(Action.FETCHED)) == (1, 2)


def test_gaps_check_shows_the_market_verdict_at_once(world: World) -> None:
    """The flat candles are classified within the run."""
    keys = [klines(symbol, "1m", "um") for symbol in ("BTCUSDT", "ETHUSDT")]
    wanted, outage = dict.fromkeys(keys, WANTED), WANTED[1]
    world.set(universe=world.root / "universe.yaml")
    world.settings.universe.write_text(
        "collect: [{market: um, symbols: [BTCUSDT, ETHUSDT], klines: {intervals: [1m], from: 2026-02-01}}]"
    )
    world.sandbox.faults.add(
        MarketOutage(start=utc(f"{outage}T10:00"), end=utc(f"{outage}T10:20"), series="/um/", flat=True)
    )
    numbers = []
    for _ in range(2):
        run_ingest(world.settings, wanted, coverage=True)
        with open_instance(world.layout) as instance:
            for key in keys:
                check = dg.AssetCheckKey(asset_key_of(key), "gaps")
                records = instance.event_log_storage.get_asset_check_execution_history(check, limit=100)
                told = [one for one in records if one.partition == str(outage)]
                numbers.append(len(told))
                assert told[0].event is not None
                assert told[0].event.dagster_event is not None
                evaluation = told[0].event.dagster_event.asset_check_evaluation_data
                assert evaluation.passed
                assert "suspended" in evaluation.metadata
                assert "every other stored symbol was flat or missing" in (evaluation.description or "")
                newest, _ = instance.fetch_materializations(
                    dg.AssetRecordsFilter(asset_key_of(key), asset_partitions=[str(outage)]), limit=10
                ).records  # the second is of the day with what REST answered
                assert evaluation.target_materialization_data is not None
                assert evaluation.target_materialization_data.storage_id == newest.storage_id
    assert numbers == [2, 2, 2, 2], "once by its own run, once by the first that looked at the market"


def test_failed_profile_names_the_file(world: World) -> None:
    trades = agg_trades("BTCUSDT")
    world.set(universe=world.root / "universe.yaml")
    world.settings.universe.write_text(
        "collect:\n  - {market: spot, symbols: [BTCUSDT], aggTrades: {from: 2026-02-01}}\n"
    )
    run_ingest(world.settings, {trades: WANTED})
    path = world.layout.file(trades, WANTED[1])
    stat = path.stat()
    path.write_bytes(b"PAR1" + bytes(stat.st_size - 4))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a disk does that loses bits
    report = run_ingest(world.settings, {trades: WANTED}, profiles=True)
    assert report.count(Action.HELD) == 3
    assert {failure.day for failure in report.failures} == set(WANTED)
    assert {failure.key for failure in report.failures} == {profile_of(trades)}
    assert all(f"{WANTED[1]}.parquet" in failure.reason for failure in report.failures)
