"""A worker: take runs from queues and execute them in a warm process, one at a time per slot.

Its processes import everything before their first run. A run that this host cannot execute as it was meant, because it
has another version or universe, goes back to its queue, and the worker ends. Launching belongs to
``platform/launcher.py``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import dagster as dg
from dagster._cli.api import _execute_run_command_body
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import unpack_value

from market_data_pipeline.defs.platform.heartbeat import heartbeat, lock_name
from market_data_pipeline.defs.platform.home import end_all_with_this_process, open_instance, prepare_home
from market_data_pipeline.defs.platform.queues import TASK, TASK_STATE, Build, broker_app, build_of, queue_of
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.settings import PREFIX, Settings, load_settings
from market_data_pipeline.team.current import current_team, leave_team

logger = logging.getLogger(__name__)

_WAITING = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.NOT_STARTED)


def run_worker(settings: Settings, name: str, queues: Sequence[str], slots: int) -> None:
    """Take runs until a signal ends the worker. Runs in progress are finished first, or interrupted by a second signal.

    Args:
        settings: With ``postgres`` and ``broker``.
        name: Name of the worker, unique in the team.
        queues: The queues to take from.
        slots: Runs at the same time.

    Raises:
        UsageError: A setting is missing, or this host differs from the one that launches runs.
    """
    if not settings.broker:
        raise UsageError(f"A worker needs {PREFIX}POSTGRES and {PREFIX}BROKER, equal on all hosts. See scaling.md.")
    from celery import signals
    from celery.worker.control import inspect_command

    layout = Layout(settings.root)
    prepare_home(layout)
    open_instance(layout).dispose()  # PostgreSQL answers, and its tables are there
    leave_team()  # each process of the worker has a connection of its own
    end_all_with_this_process()
    app = broker_app(settings.broker)
    refusal = layout.dagster_home / f"worker-{os.getpid()}.refused"
    refusal.unlink(missing_ok=True)

    @app.task(name=TASK, bind=True)  # type: ignore[untyped-decorator]
    def execute(task: Any, arguments: Any, launched_by: dict[str, str]) -> None:
        run_id = unpack_value(arguments, as_type=ExecuteRunArgs).run_id
        if found := _execute(run_id, Build(**launched_by), task.request.hostname):
            with dg.DagsterInstance.get() as instance:
                run = instance.get_run_by_id(run_id)
            if run is not None:  # else it was deleted
                app.send_task(TASK, args=[arguments, launched_by], task_id=run_id, queue=queue_of(run))
            refusal.write_text(found, "utf-8")
            app.control.broadcast("shutdown", destination=[task.request.hostname])

    @inspect_command(name=TASK_STATE)  # type: ignore[untyped-decorator]
    def state(_: Any) -> dict[str, Any]:
        return {"build": build_of(load_settings()).as_message(), "queues": list(queues)}

    @signals.worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def warm_up(**_: Any) -> None:
        _import_everything()

    worker = app.Worker(
        hostname=name,
        queues=",".join(queues),
        concurrency=slots,
        loglevel=logging.WARNING,
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    worker.start()
    if refusal.exists():
        text = refusal.read_text("utf-8")
        refusal.unlink()
        raise UsageError(text)
    if worker.exitcode:
        sys.exit(worker.exitcode)


def _execute(run_id: str, launched_by: Build, worker: str) -> str:
    """Execute a run, unless another worker has it or it has ended. Return the reason if this host cannot."""
    settings = load_settings()
    here = build_of(settings)
    if differs := here.differs(launched_by):
        return (
            f"This worker has {differs}, compared with the host that launches runs. It takes no runs. Install the same "
            f"version and universe on all hosts, and start it again. The run {run_id[:8]} waits for another worker."
        )
    _forget_other_universe(here)
    team = current_team()
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(run_id)
        if run is None or run.status not in _WAITING or team is None or team.is_held(lock_name(run_id)):
            logger.warning("The run %s was delivered again, or has ended. It is left out.", run_id)
            return ""
        with heartbeat(instance, run_id) as is_ours:
            if not is_ours:  # it was delivered to another worker at the same moment
                logger.warning("The run %s is executed by another worker. It is left out.", run_id)
                return ""
            instance.report_engine_event(f"The worker {worker} has taken the run.", run)
            _execute_run_command_body(run_id, instance, lambda _: None, set_exit_code_on_failure=True)
    return ""


_loaded: Build | None = None


def _forget_other_universe(here: Build) -> None:
    """Load the definitions of the code location again if the universe changed since this process loaded them."""
    global _loaded
    if _loaded is not None and _loaded != here:
        from dagster._core.definitions.reconstruct import ReconstructableJob

        ReconstructableJob.get_definition.cache_clear()
        ReconstructableJob.get_repository_definition.cache_clear()
        for module in [name for name in sys.modules if name == "market_data_pipeline.definitions"]:
            del sys.modules[module]
        sys.modules.pop("market_data_pipeline.defs.definitions", None)
    _loaded = here


def _import_everything() -> None:
    """Import what runs import, in a process of the worker, so that its first run starts as fast as the next."""
    import market_data_pipeline.defs.definitions
    import market_data_pipeline.defs.ingestion.run
    import market_data_pipeline.defs.ingestion.session
    import market_data_pipeline.ingest.run
    import market_data_pipeline.sql.publish  # noqa: F401

    with dg.DagsterInstance.get():
        pass
