"""Heartbeat of runs: find runs whose process was killed, and close them.

Dagster on one machine does not notice a killed process. The run counts as running forever, takes one of the few places
for concurrent runs, and blocks `repair`. So each run's process locks a file, which the operating system unlocks when
the process ends. In a team it is a lock in PostgreSQL, which every host can try. Starting runs does not belong here.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import dagster as dg
from filelock import Timeout

from market_data_pipeline.team.current import current_team
from market_data_pipeline.team.session import TeamSession

logger = logging.getLogger(__name__)

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

    team = current_team()
    if team is not None:
        return _close_dead_runs_of_team(instance, team)
    closed = []
    for run in instance.get_runs(dg.RunsFilter(statuses=list(_UNFINISHED))):
        path = _lock_path(instance, run.run_id)
        if not path.exists():
            continue
        try:
            with locks.held(path):
                now = instance.get_run_by_id(run.run_id)
                if now is not None and not now.is_finished:  # it may have ended since
                    instance.report_run_failed(now, _ENDED_EARLY)
                    closed.append(run.run_id)
        except Timeout:
            continue
        path.unlink(missing_ok=True)
    return closed


_ENDED_EARLY = "The process of this run ended before the run did. Finished days are stored. Run it again."

_SETTLED_SECONDS = 30.0
"""Time after a start of PostgreSQL in which living runs take their locks again."""


def _close_dead_runs_of_team(instance: dg.DagsterInstance, team: TeamSession) -> list[str]:
    alive_or_dead = team.names(_RUN)
    if not alive_or_dead or team.up_seconds() < _SETTLED_SECONDS:
        return []
    unfinished = [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=list(_UNFINISHED)))]
    started = [run_id for run_id in unfinished if lock_name(run_id) in alive_or_dead]
    return [run_id for run_id in started if bury(instance, team, run_id, _ENDED_EARLY)]


def lock_name(run_id: str) -> str:
    """Return the name of a run's lock in PostgreSQL."""
    return f"{_RUN}{run_id}"


_RUN = "run/"


def bury(instance: dg.DagsterInstance, team: TeamSession, run_id: str, reason: str) -> bool:
    """Report a run as failed if no process has its lock. A host that was only frozen is interrupted when it wakes up.

    Returns:
        True if the run was reported.
    """
    lock = team.take(lock_name(run_id))
    if lock is None:
        return False
    try:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        instance.report_run_failed(run, reason)
        return True
    finally:
        team.release(lock)


def _lock_path(instance: dg.DagsterInstance, run_id: str) -> Path:
    return Path(instance.root_directory) / "alive" / f"{run_id}.lock"


@contextmanager
def heartbeat(instance: dg.DagsterInstance | None, run_id: str | None) -> Iterator[bool]:
    """Lock a run's file, so that other processes see that it is alive.

    A run in this process is locked from before it is created until after it is reported as finished. If it is killed in
    between, the next process that looks closes it. The resource, inside of that, finds the file locked already.

    Args:
        instance: Dagster's records. Records in memory need no lock.
        run_id: The run, which need not exist yet. None if there is no run.

    Yields:
        False if a process of another host of the team has the lock. The run must not be executed here.
    """
    if instance is None or run_id is None or not instance.is_persistent:
        yield True
        return
    team = current_team()
    if team is not None:
        name = lock_name(run_id)
        lock = team.take(name, on_lost=_interrupt)  # None: often this process has it, and one lock is enough
        try:
            yield lock is not None or team.holds(name)
        finally:
            if lock is not None:
                team.release(lock, forget=True)
        return
    from market_data_pipeline.lake import locks

    path = _lock_path(instance, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locked:
        owner = False
        with suppress(Timeout):  # locked by the process or by another step of this run: one lock is enough
            locked.enter_context(locks.held(path))
            owner = True
        yield True
        if owner:
            path.unlink(missing_ok=True)


def _interrupt() -> None:
    """Interrupt this process's run, which was closed and may run on another host by now."""
    logger.warning("This run was closed while its host was cut off from PostgreSQL. It is interrupted.")
    if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
        os.kill(os.getpid(), signal.SIGINT)
