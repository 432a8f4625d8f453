"""A team on one machine: PostgreSQL, Redis, UI and daemon, and workers, each as processes of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import requests

from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline_tests.support import processes
from market_data_pipeline_tests.support.postgres import PostgresServer
from market_data_pipeline_tests.support.processes import MARKET_DATA, Desk, running, until
from market_data_pipeline_tests.support.redis import RedisServer

_LAUNCH = """
mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }
"""
_BACKFILL = """
query($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status error { message } runs { id status startTime creationTime } } } }
"""
_TERMINATE = """
mutation($id: String!) { terminateRun(runId: $id) { __typename } }
"""


@dataclass
class Team:
    """Hosts over one lake.

    Attributes:
        desk: The data folder, the universe, and what stands in for Binance.
        postgres: Records and locks.
        redis: The broker.
        database: Name of the database.
    """

    desk: Desk
    postgres: PostgresServer
    redis: RedisServer
    database: str = "team"
    port: int = 0
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def settings(self) -> dict[str, str]:
        """The settings of each host."""
        url = self.postgres.url_of(self.database)
        return {"MARKET_DATA_POSTGRES": url, "MARKET_DATA_BROKER": self.redis.url}

    @property
    def environment(self) -> dict[str, str]:
        """The environment of each process."""
        quick = str(Path(processes.__file__).with_name("quick_daemon"))
        return {**self.desk.environment, **self.settings, "PYTHONPATH": quick}

    def start_ui(self) -> subprocess.Popen[bytes]:
        """Start UI and daemon, and wait until they answer."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        process = self._start("ui", "--port", str(self.port))
        until(lambda: process.poll() is not None or self._is_up(), "the webserver", 400, 0.5)
        assert process.poll() is None, self.desk.output()
        return process

    def start_worker(self, name: str, *options: str, settings: Mapping[str, str] | None = None) -> None:
        """Start a worker. It needs some seconds until it takes a run."""
        self.workers[name] = self._start("worker", "--name", name, *options, settings=settings)

    def kill_worker(self, name: str) -> None:
        """Kill a worker with all of its processes, as a power cut does with its host."""
        os.killpg(self.workers[name].pid, signal.SIGKILL)
        self.workers.pop(name).wait()

    def _start(self, *command: str, settings: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        environment = {**self.environment, **(settings or {})}
        return self._open.enter_context(running([MARKET_DATA, *command], environment, self.desk.root))

    # --- as the pages of the UI do ---

    def backfill(self, wanted: Sequence[date], keys: Sequence[SeriesKey]) -> str:
        """Start a backfill. Return its id."""
        given = {
            "partitionNames": [day.isoformat() for day in wanted],
            "assetSelection": [{"path": list(asset_key_of(key).path)} for key in keys],
            "fromFailure": False,
            "tags": [],
        }
        launched = self.ask(_LAUNCH, p=given)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return str(launched["backfillId"])

    def runs(self, backfill: str) -> list[dict[str, Any]]:
        """The runs of a backfill."""
        found: list[dict[str, Any]] = self.ask(_BACKFILL, id=backfill)["partitionBackfillOrError"]["runs"]
        return found

    def status(self, backfill: str) -> str:
        """The status of a backfill."""
        return str(self.ask(_BACKFILL, id=backfill)["partitionBackfillOrError"]["status"])

    def is_over(self, backfill: str) -> bool:
        """Whether a backfill has ended."""
        return self.status(backfill) not in ("REQUESTED", "FAILING", "CANCELING")

    def terminate(self, run_id: str) -> None:
        """End a run, as the button does."""
        self.ask(_TERMINATE, id=run_id)

    def ask(self, query: str, **variables: Any) -> Any:
        """Send a query to the webserver."""
        url = f"http://127.0.0.1:{self.port}/graphql"
        answer = requests.post(url, json={"query": query, "variables": variables}, timeout=120).json()
        assert not answer.get("errors"), answer["errors"]
        return answer["data"]

    def _is_up(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/server_info", timeout=5).ok
        except requests.ConnectionError:
            return False


@contextmanager
def team_of(desk: Desk, postgres: PostgresServer, redis: RedisServer, database: str = "team") -> Iterator[Team]:
    """A team over a data folder. All of its processes end with the block."""
    postgres.sql(f"CREATE DATABASE {database}")
    team = Team(desk, postgres, redis, database)
    try:
        with team._open:
            yield team
    except BaseException:
        sys.stdout.write(desk.output()[-20_000:])
        raise
