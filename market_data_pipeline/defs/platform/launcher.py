"""A run launcher for many hosts: each run goes to a queue, and any worker takes it.

Signs of life are locks in PostgreSQL. So a killed process, a vanished host and a frozen one are noticed alike, with any
broker. Executing a run belongs to ``worker.py``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from dagster import DagsterRun, StringSource
from dagster._core.events import EngineEventData
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData, pack_value

from market_data_pipeline.defs.platform.heartbeat import lock_name
from market_data_pipeline.defs.platform.queues import PUBLISH_POLICY, TASK, TASK_TAG, broker_app, build_of, queue_of
from market_data_pipeline.errors import MarketDataError, UsageError
from market_data_pipeline.settings import load_settings
from market_data_pipeline.team.current import current_team
from market_data_pipeline.team.session import TeamSession

if TYPE_CHECKING:
    from celery import Celery

_SILENT_SECONDS = 12.0
"""Time without a sign of life after which a run counts as dead. After a restart of PostgreSQL, runs need 3 to 6 s."""


class WorkerRunLauncher(RunLauncher, ConfigurableClass):
    """Launch runs on workers (``market-data worker``). In ``dagster.yaml`` it takes ``broker``, the URL."""

    def __init__(self, broker: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._broker = broker
        self._made: Celery | None = None
        self._silent_since: dict[str, float] = {}
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Return the configuration that Dagster made this from."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> Any:
        """Return the configuration in ``dagster.yaml``: ``broker``, which may name an environment variable."""
        return {"broker": StringSource}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Return the launcher that ``dagster.yaml`` describes."""
        return cls(config_value["broker"], inst_data)

    @property
    def _app(self) -> Celery:
        if self._made is None:
            self._made = broker_app(self._broker)
        return self._made

    @property
    def _team(self) -> TeamSession:
        team = current_team()
        if team is None:
            raise UsageError("Workers need MARKET_DATA_POSTGRES. Set it for every process of Dagster.")
        return team

    def launch_run(self, context: LaunchRunContext) -> None:
        """Send a run to its queue. The broker is tried for half a minute."""
        run = context.dagster_run
        origin = run.job_code_origin
        if origin is None:
            raise MarketDataError(f"The run {run.run_id} has no code location, so no worker can execute it.")
        arguments = ExecuteRunArgs(
            job_origin=origin,
            run_id=run.run_id,
            instance_ref=None,
            set_exit_code_on_failure=True,
        )
        queue = queue_of(run)
        # The tag comes first: a run that a worker has taken at once can be ended, too.
        self._instance.add_run_tags(run.run_id, {TASK_TAG: run.run_id})
        self._app.send_task(
            TASK,
            args=[pack_value(arguments), build_of(load_settings()).as_message()],
            task_id=run.run_id,
            queue=queue,
            retry=True,
            retry_policy=PUBLISH_POLICY,
        )
        self._instance.report_engine_event(
            f"The run is in the queue {queue} of the workers.", run, EngineEventData({"queue": queue}), cls=type(self)
        )

    def terminate(self, run_id: str) -> bool:
        """End a run, wherever it is. Return False if it has ended, or was not started by this launcher."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or TASK_TAG not in run.tags:
            return False
        self._instance.report_run_canceling(run)
        self._app.control.revoke(run.tags[TASK_TAG], terminate=True, signal="SIGTERM")
        if not self._team.is_held(lock_name(run_id)):  # it waits in the queue: no worker begins a finished run
            self._instance.report_run_canceled(run)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Return True: run monitoring checks each run in progress."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Return if a run's process is alive. A dead one loses its lock, so that it stays dead if it wakes up."""
        team, name = self._team, lock_name(run.run_id)
        if team.is_held(name):
            self._silent_since.pop(run.run_id, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        silent = time.monotonic() - self._silent_since.setdefault(run.run_id, time.monotonic())
        if silent < _SILENT_SECONDS:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        holder = team.holder(name)
        lock = team.take(name)
        if lock is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        team.release(lock)
        self._silent_since.pop(run.run_id, None)
        return CheckRunHealthResult(
            WorkerStatus.FAILED,
            f"There was no sign of life of {holder} for {silent:.0f} s. Finished days are stored, and the "
            "run is started again.",
        )
