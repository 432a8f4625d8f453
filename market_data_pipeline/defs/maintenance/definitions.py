"""Jobs of one op that maintain the lake and Dagster's records: ``verify``, ``compact`` and ``prune``.

``verify`` marks stored days whose archive was replaced, and ``repair`` requests the marked days. ``compact`` writes
finished months into one file each. ``prune`` drops old runs. The work itself does not belong here; see ``run.py``.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Callable, Sequence

import dagster as dg

from market_data_pipeline.defs.platform.heartbeat import HEARTBEAT
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings


def build_verify_job(keys: Sequence[SeriesKey], settings: Settings, name: str, description: str) -> dg.JobDefinition:
    """Return the job that compares the archives of series with their ledgers.

    Args:
        keys: The series. Those without stored days cost no request.
        settings: The locations of the ledgers and of the archive.
        name: The name of the job.
        description: The text for the UI.
    """

    def work(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.maintenance.run import compare_archives

        compare_archives(context, keys, settings)

    return _job_of_one_op(name, "sweep", description, work)


def build_compact_job(keys: Sequence[SeriesKey], settings: Settings, name: str, description: str) -> dg.JobDefinition:
    """Return the job that closes months.

    Args:
        keys: The series. Those that are stored by day are skipped.
        settings: The location of the lake.
        name: The name of the job.
        description: The text for the UI.
    """

    def work(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.maintenance.run import close_months

        close_months(context, keys, settings)

    return _job_of_one_op(name, "close_months", description, work)


def build_prune_job(settings: Settings, name: str, description: str) -> dg.JobDefinition:
    """Return the job that drops old runs.

    Args:
        settings: The retention of runs.
        name: The name of the job.
        description: The text for the UI.
    """

    def work(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.platform.pruning import prune_records

        prune_records(context, settings)

    return _job_of_one_op(name, "drop_old_runs", description, work)


def _job_of_one_op(
    name: str, op: str, description: str, work: Callable[[dg.OpExecutionContext], None]
) -> dg.JobDefinition:
    @dg.op(name=op, out=dg.Out(dg.Nothing), required_resource_keys={HEARTBEAT}, description=description)
    def only(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.platform.faults import failing_in_words

        with failing_in_words():
            work(context)

    @dg.job(name=name, description=description)
    def job() -> None:
        only()

    return job
