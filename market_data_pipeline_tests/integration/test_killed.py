"""A backfill that is killed again and again and then finished: nothing is lost, halved or fetched in vain."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import pytest

from market_data_pipeline.defs.in_process import days_on_record
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.checksums import content_sha256
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.provenance import Provenance
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox import Delay, Sandbox
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.processes import Desk, until
from market_data_pipeline_tests.support.world import agg_trades, days, klines, symbols_with

pytestmark = pytest.mark.slow

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1m], from: 2024-01-01}
    aggTrades: {from: 2024-01-01}
  - market: um
    symbols: [ETHUSDT]
    klines: {intervals: [1h], from: 2024-01-01}
"""
LOCK = """\
spot:
  BTCUSDT: [{from: 2017-08-17, until: null}]
um:
  ETHUSDT: [{from: 2019-11-27, until: null}]
"""
KEYS = (klines("BTCUSDT", "1m"), agg_trades("BTCUSDT"), klines("ETHUSDT", "1h", "um"))
WANTED = days("2024-01-11", "2024-01-31")  # no whole month, so that each day has an archive of its own
BACKFILL = ("backfill", "--from", str(WANTED[0]), "--through", str(WANTED[-1]))
THREADS = 4
KILLS = sized(3, 12)
SETTINGS = {"DOWNLOAD_THREADS": THREADS, "MAX_PARTITIONS_PER_RUN": 7}
"""Several Dagster runs a series, so that kills meet events and ledgers, too, and not only downloads."""


@dataclass(frozen=True)
class Attempt:
    """A process that was started, and what the lake held when it was."""

    started: datetime
    held: dict[SeriesKey, set[date]]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(symbols=symbols_with(500)) as sandbox:
        sandbox.faults.add(Delay(latency=0.02))
        yield sandbox


def desk_in(root: Path, sandbox: Sandbox) -> Desk:
    """A data folder whose universe knows when its symbols were listed, so that no listing is asked for."""
    desk = Desk(root, sandbox, UNIVERSE, SETTINGS)
    (root / "universe.lock.yaml").write_text(LOCK)
    return desk


def test_backfill_killed_repeatedly_ends_like_an_undisturbed_one(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = desk_in(tmp_path / "whole", sandbox)
    whole.run(*BACKFILL)
    undisturbed = len(sandbox.requests)
    assert undisturbed == 2 * len(KEYS) * len(WANTED)  # each zip and its CHECKSUM

    sandbox.clear_requests()
    desk = desk_in(tmp_path / "killed", sandbox)
    chance = random.Random(20240106)
    attempts = []
    for _ in range(KILLS):
        attempts.append(Attempt(datetime.now(UTC), desk.days_held(KEYS)))
        kill_somewhere(desk, sandbox, chance, undisturbed // KILLS)
    held = desk.days_held(KEYS)
    assert any(0 < len(attempt.held[key]) < len(WANTED) for attempt in attempts for key in KEYS)
    assert held != {key: set(WANTED) for key in KEYS}  # so that there is something left to finish
    attempts.append(Attempt(datetime.now(UTC), held))
    desk.run(*BACKFILL)

    the_lakes_are_equal(desk, whole)
    nothing_was_asked_for_in_vain(sandbox, attempts)
    assert [path for path in desk.root.rglob("*") if path.name.endswith(".tmp")] == []
    everything_is_on_record(desk, monkeypatch)


def kill_somewhere(desk: Desk, sandbox: Sandbox, chance: random.Random, requests: int) -> None:
    """Start the backfill and kill it: some requests and some moments after it began to work, or even before."""
    before = len(sandbox.requests)
    after = chance.randint(0, requests)
    with desk.market_data(*BACKFILL) as process:
        if after:
            until(
                lambda: len(sandbox.requests) >= before + after or process.poll() is not None,
                f"{after} requests",
                seconds=900,
                pause=0.002,
            )
        time.sleep(chance.uniform(0, 0.15 if after else 2))
        assert process.poll() is None, "it ended before it was killed"
        process.kill()


def the_lakes_are_equal(one: Desk, other: Desk) -> None:
    for key in KEYS:
        folder = one.layout.folder(key)
        assert {path.name for path in folder.iterdir()} == {path.name for path in other.layout.folder(key).iterdir()}
        ledger = Ledger.read(one.layout.ledger(key))
        assert sorted(ledger.rows) == WANTED
        for day in WANTED:
            path, other_path = one.layout.file(key, day), other.layout.file(key, day)
            table = parquet.read_table(path)
            assert table.equals(parquet.read_table(other_path)), path
            record = parquet.read_provenance(path)
            assert record.content_sha256 == content_sha256(table)
            assert timeless(record) == timeless(parquet.read_provenance(other_path))
            row = ledger.rows[day]
            assert (row.is_stored_final, row.content_sha256) == (True, record.content_sha256)


def timeless(record: Provenance) -> Provenance:
    """A record without the moments at which it was made."""
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    parts = tuple(part.model_copy(update={"fetched_at": moment}) for part in record.parts)
    return record.model_copy(update={"fetched_at": moment, "parts": parts})


def nothing_was_asked_for_in_vain(sandbox: Sandbox, attempts: list[Attempt]) -> None:
    """No attempt asks for a day that was held when it began; a kill costs those days only that were in flight."""
    day_of = {key.archive_daily(day): (key, day) for key in KEYS for day in WANTED}
    asked = [
        (request.at, *day_of[request.path.removeprefix("/")])
        for request in sandbox.requests
        if request.path.endswith(".zip")
    ]
    ends = [attempt.started for attempt in attempts[1:]] + [datetime.now(UTC)]
    last = {key: set(WANTED) for key in KEYS}
    for attempt, end, held_then in zip(
        attempts, ends, [attempt.held for attempt in attempts[1:]] + [last], strict=True
    ):
        mine = [(key, day) for at, key, day in asked if attempt.started <= at < end]
        assert len(mine) == len(set(mine)), "one attempt asked for a day twice"
        assert [(key, day) for key, day in mine if day in attempt.held[key]] == []
        lost = [(key, day) for key, day in mine if day not in held_then[key]]
        assert len(lost) <= 2 * THREADS, lost  # so many are in work, being downloaded or written


def everything_is_on_record(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    # Opening a home names it in the environment; afterwards it is as before.
    monkeypatch.setenv("DAGSTER_HOME", str(desk.layout.dagster_home))
    monkeypatch.setenv("MARKET_DATA_DIR", str(desk.root))
    with open_instance(desk.layout) as instance:
        for key in KEYS:
            assert days_on_record(instance, key) == set(WANTED)
        statuses = [run.status for run in instance.get_runs()]
        assert set(statuses) == {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE}
        assert 1 <= statuses.count(dg.DagsterRunStatus.FAILURE) <= KILLS
