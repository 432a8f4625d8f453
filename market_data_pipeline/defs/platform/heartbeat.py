"""Heartbeat of runs: find runs whose process was killed, and close them.

Dagster on one machine does not notice a killed process. The run counts as running forever, takes one of the few places
for concurrent runs, and blocks `repair`. So each run's process locks a file, which the operating system unlocks when
the process ends. Starting runs does not belong here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import dagster as dg
from filelock import Timeout

HEARTBEAT = "life"
"""Name of the resource. Assets and recorded runs refer to it."""

_UNFINISHED = (
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


def heartbeat_resource() -> dg.ResourceDefinition:
    """Return the resource ``life``, which locks the run's file. All assets require it, directly or by ``ingestion``."""

    def open_for_run(context: dg.InitResourceContext) -> Iterator[None]:
        with heartbeat(context.instance, context.run.run_id if context.run else None):
            yield None

    return dg.ResourceDefinition(
        resource_fn=open_for_run, description="Marks this run as alive, so that a killed run can be closed."
    )


def close_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Close runs whose process ended without finishing them, as failed. Return their ids.

    A run without a file is skipped: it is about to start, or about to be reported as finished.
    """
    from market_data_pipeline.lake import locks

    closed = []
    for run in instance.get_runs(dg.RunsFilter(statuses=list(_UNFINISHED))):
        path = _lock_path(instance, run.run_id)
        if not path.exists():
            continue
        try:
            with locks.held(path):
                now = instance.get_run_by_id(run.run_id)
                if now is not None and not now.is_finished:  # it may have ended since
                    instance.report_run_failed(
                        now,
                        "The process of this run ended before the run did. Finished days are stored. Run it again.",
                    )
                    closed.append(run.run_id)
        except Timeout:
            continue
        path.unlink(missing_ok=True)
    return closed


def _lock_path(instance: dg.DagsterInstance, run_id: str) -> Path:
    return Path(instance.root_directory) / "alive" / f"{run_id}.lock"


@contextmanager
def heartbeat(instance: dg.DagsterInstance | None, run_id: str | None) -> Iterator[None]:
    """Lock a run's file, so that other processes see that it is alive.

    A run in this process is locked from before it is created until after it is reported as finished. If it is killed in
    between, the next process that looks closes it. The resource, inside of that, finds the file locked already.

    Args:
        instance: Dagster's records. Records in memory need no lock.
        run_id: The run, which need not exist yet. None if there is no run.
    """
    if instance is None or run_id is None or not instance.is_persistent:
        yield
        return
    from market_data_pipeline.lake import locks

    path = _lock_path(instance, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locked:
        owner = False
        with suppress(Timeout):  # locked by the process or by another step of this run: one lock is enough
            locked.enter_context(locks.held(path))
            owner = True
        yield
        if owner:
            path.unlink(missing_ok=True)
