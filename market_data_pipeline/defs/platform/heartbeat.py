"""Runs whose process is no more: how they are recognized and closed.

Dagster on one machine does not find out that a run's process was killed (a power cut, SIGKILL, a closed terminal): the
run counts as running forever, takes one of the few places for concurrent runs, and keeps `repair` from asking for more.
Whoever opens the records closes such runs, and so does each tick of `repair`. Here each run's process holds a file
locked, which the operating system lets go of when the process ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import dagster as dg
from filelock import Timeout

LIFE = "life"
_UNFINISHED = (
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


def life_resource() -> dg.ResourceDefinition:
    """The resource ``life``, which every asset requires (series through ``ingestion``): it holds the run's file."""

    def open_for_run(context: dg.InitResourceContext) -> Iterator[None]:
        with says_it_lives(context.instance, context.run.run_id if context.run else None):
            yield None

    return dg.ResourceDefinition(resource_fn=open_for_run, description="Lets others see that this run's process lives.")


def close_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Close runs whose process ended without finishing them, as failed; return their ids.

    A run without a file is left alone: it is about to start, or about to be reported finished.
    """
    from market_data_pipeline.lake import locks

    closed = []
    for run in instance.get_runs(dg.RunsFilter(statuses=list(_UNFINISHED))):
        path = _life_of(instance, run.run_id)
        if not path.exists():
            continue
        try:
            with locks.held(path):
                now = instance.get_run_by_id(run.run_id)
                if now is not None and not now.is_finished:  # it may have ended since it was listed
                    instance.report_run_failed(
                        now,
                        "The process of this run ended without finishing it. What it brought is held; run it again.",
                    )
                    closed.append(run.run_id)
        except Timeout:
            continue
        path.unlink(missing_ok=True)
    return closed


def _life_of(instance: dg.DagsterInstance, run_id: str) -> Path:
    return Path(instance.root_directory) / "alive" / f"{run_id}.lock"


@contextmanager
def says_it_lives(instance: dg.DagsterInstance | None, run_id: str | None) -> Iterator[None]:
    """Hold a run's file locked, which says to others that its process lives.

    A run in this process is held from before it is created until after it is reported finished: killed at any moment
    between, it is closed by the next to look. The resource, within that, finds the file locked already.

    Args:
        instance: Dagster's records; nothing is held for those that are in memory only.
        run_id: The run, which need not exist yet; None for what is no run.
    """
    if instance is None or run_id is None or not instance.is_persistent:
        yield
        return
    from market_data_pipeline.lake import locks

    path = _life_of(instance, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as life:
        owner = False
        with suppress(Timeout):  # held by the process that started this run, or by another step's: one sign is enough
            life.enter_context(locks.held(path))
            owner = True
        yield
        if owner:
            path.unlink(missing_ok=True)
