"""A team as processes: PostgreSQL, Redis, UI, daemon and workers, and what happens to runs when parts of it fail."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from market_data_pipeline.defs.platform.queues import workers_of
from market_data_pipeline.sandbox import Delay, Sandbox
from market_data_pipeline_tests.support.postgres import postgres_server
from market_data_pipeline_tests.support.processes import Desk, until
from market_data_pipeline_tests.support.redis import redis_program, redis_server
from market_data_pipeline_tests.support.team import Team, team_of
from market_data_pipeline_tests.support.world import days, klines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(redis_program() is None, reason="there is no redis-server: apt-get install redis-server"),
]

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT, ETHUSDT]
    klines: {intervals: [1h], from: 2024-01-01}
"""
BTC, ETH = (klines(f"{name}USDT", "1h") for name in ("BTC", "ETH"))
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    with Sandbox() as sandbox, postgres_server() as postgres, redis_server() as redis:
        sandbox.faults.add(Delay(latency=0.02))
        settings = {"MAX_PARTITIONS_PER_RUN": 30, "CONCURRENT_RUNS": 2, "DOWNLOAD_THREADS": 2}
        desk = Desk(tmp_path / "data", sandbox, UNIVERSE, settings)
        with team_of(desk, postgres, redis) as team:
            yield team


def recorded(team: Team) -> tuple[int, int]:
    """The number of materializations in PostgreSQL, and of the days that they are of."""
    found = team.postgres.sql(
        "SELECT count(*), count(DISTINCT asset_key || partition) FROM event_logs "
        "WHERE dagster_event_type = 'ASSET_MATERIALIZATION'",
        database=team.database,
    )
    first, second = found.split("|")
    return int(first), int(second)


def stored(team: Team) -> int:
    return sum(map(len, team.desk.days_held([BTC, ETH]).values()))


def test_runs_survive_what_happens_to_a_team(team: Team) -> None:
    """One team for all of it: a start of it takes 30 s of the processor."""
    for name in ("one@a", "two@b"):
        team.start_worker(name)
    team.start_ui()
    a_worker_with_another_universe_ends(team)
    a_second_ui_is_refused(team)
    january = days("2024-01-01", "2024-03-30")
    first = team.backfill(january, [BTC, ETH])
    until(lambda: stored(team) > 30, "some days", 300)
    team.kill_worker("one@a")
    noticed = time.monotonic()
    until(lambda: any(run["status"] == "FAILURE" for run in team.runs(first)), "the notice of a dead host", 120, 0.5)
    assert time.monotonic() - noticed < 100  # 12 to 20 s on a machine that has nothing else to do
    until(lambda: team.is_over(first), "the backfill", 400, 0.5)
    assert stored(team) == 2 * len(january)
    assert recorded(team)[1] == 2 * len(january)

    servers_restart_under_a_run(team)
    a_terminated_run_is_canceled(team)


def a_worker_with_another_universe_ends(team: Team) -> None:
    other = team.desk.root / "other.yaml"
    other.write_text(UNIVERSE.replace("ETHUSDT", "SOLUSDT"))
    team.start_worker("three@c", "--queue", "other", settings={"MARKET_DATA_UNIVERSE": str(other)})
    refused = team.workers.pop("three@c")
    until(lambda: "three@c" in {worker.name for worker in workers_of(team.redis.url)}, "a third worker", 180)
    team.desk.run_in(team.environment, "doctor", code=1)
    assert "three@c has another universe.yaml" in team.desk.output()
    refused.send_signal(signal.SIGTERM)
    refused.wait(60)


def a_second_ui_is_refused(team: Team) -> None:
    team.desk.run_in(team.environment | {"MARKET_DATA_DIR": str(team.desk.root / "elsewhere")}, "ui", code=1)
    assert "Two daemons would start each run twice" in team.desk.output()


def servers_restart_under_a_run(team: Team) -> None:
    wanted = days("2024-04-01", "2024-04-30")
    before = recorded(team)[0]
    again = team.backfill(wanted, [BTC])
    until(lambda: len(team.desk.days_held([BTC])[BTC]) > 95, "some days", 300, 0.05)
    team.redis.kill()
    team.postgres.stop()
    team.postgres.start()
    team.redis.start()
    until(lambda: date(2024, 4, 30) in team.desk.days_held([BTC])[BTC], "the last day", 300, 0.5)
    until(lambda: {run["status"] for run in team.runs(again)} == {"SUCCESS"}, "the run", 300, 0.5)
    assert recorded(team)[0] - before == len(wanted)  # none lost, none twice


def a_terminated_run_is_canceled(team: Team) -> None:
    team.desk.sandbox.faults.add(Delay(latency=600, path=r"2024-05-15\.zip"))
    backfill = team.backfill(days("2024-05-10", "2024-05-19"), [BTC])
    until(lambda: [run["status"] for run in team.runs(backfill)] == ["STARTED"], "a run", 120, 0.5)
    (run,) = team.runs(backfill)
    until(lambda: date(2024, 5, 14) in team.desk.days_held([BTC])[BTC], "the days before", 120)
    team.terminate(run["id"])
    until(lambda: team.runs(backfill)[0]["status"] in ENDED, "the end of the run", 60, 0.5)
    assert [one["status"] for one in team.runs(backfill)] == ["CANCELED"]
