"""``make team-demo``: a team on this machine. Two workers share a backfill, and one of them is killed.

PostgreSQL and Redis come from wheels of the extra ``dev``, or Redis from the system. Binance is the sandbox. Nothing is
left running, and nothing outside of a temporary folder changes.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sandbox import Delay, Sandbox
from market_data_pipeline_tests.support.postgres import postgres_server
from market_data_pipeline_tests.support.processes import Desk, until
from market_data_pipeline_tests.support.redis import redis_program, redis_server
from market_data_pipeline_tests.support.team import Team, team_of

_SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
_FIRST, _DAYS = date(2024, 1, 1), 240
_UNIVERSE = f"""\
collect:
  - market: spot
    symbols: [{", ".join(_SYMBOLS)}]
    klines: {{intervals: [1h], from: {_FIRST}}}
"""
_LATENCY_SECONDS = 0.05
_SETTINGS = {"MAX_PARTITIONS_PER_RUN": 60, "CONCURRENT_RUNS": 2, "DOWNLOAD_THREADS": 4}


def main() -> int:
    """Run the demo. Return its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end, too
    if redis_program() is None:
        print("There is no redis-server. Install it: apt-get install redis-server")
        return 2
    keys = [SeriesKey(EXCHANGE, Market.SPOT, DataType.KLINES, symbol, "1h") for symbol in _SYMBOLS]
    days = [_FIRST + timedelta(days=n) for n in range(_DAYS)]
    with (
        tempfile.TemporaryDirectory(prefix="team-demo-") as folder,
        Sandbox() as sandbox,
        postgres_server() as postgres,
        redis_server() as redis,
    ):
        sandbox.faults.add(Delay(latency=_LATENCY_SECONDS))
        desk = Desk(Path(folder) / "data", sandbox, _UNIVERSE, _SETTINGS)
        with team_of(desk, postgres, redis) as team:
            _say(f"PostgreSQL {postgres.port}, Redis {redis.port}, a made-up Binance at {sandbox.url}.")
            for name in ("worker-1@demo", "worker-2@demo"):
                team.start_worker(name)
            team.start_ui()
            _say(f"Dagster's UI is at http://127.0.0.1:{team.port}. Two workers wait for runs.")
            return _backfill(team, desk, keys, days)


def _backfill(team: Team, desk: Desk, keys: list[SeriesKey], days: list[date]) -> int:
    wanted = len(keys) * len(days)
    began = time.monotonic()
    backfill = team.backfill(days, keys)
    _say(f"A backfill of {wanted:,} days in runs of {_SETTINGS['MAX_PARTITIONS_PER_RUN']} days has begun.")

    def stored() -> int:
        return sum(map(len, desk.days_held(keys).values()))

    until(lambda: stored() > wanted // 4, "a quarter of the days", 300, 0.2)
    team.kill_worker("worker-1@demo")
    killed = time.monotonic()
    _say(f"{stored():,} days are stored. Worker 1 is killed with all of its processes, as if its host were gone.")
    until(lambda: any(run["status"] == "FAILURE" for run in team.runs(backfill)), "that it is noticed", 120, 0.5)
    _say(f"Its run is noticed as dead after {time.monotonic() - killed:.0f} s. The other worker starts it again.")
    until(lambda: stored() == wanted and team.is_over(backfill), "the end of the backfill", 600, 0.5)
    runs = team.runs(backfill)
    _say(f"{stored():,} of {wanted:,} days are stored after {time.monotonic() - began:.0f} s, by {len(runs)} runs.")
    recorded = team.postgres.sql(
        "SELECT count(*), count(DISTINCT asset_key || partition) FROM event_logs "
        "WHERE dagster_event_type = 'ASSET_MATERIALIZATION'",
        database=team.database,
    )
    _say(f"Materializations in PostgreSQL, and days that they are of: {recorded.replace('|', ', ')}.")
    return 0 if stored() == wanted else 1


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
