"""Jobs of one op that look after the lake and the records: ``verify``, ``compact`` and ``prune``.

``verify`` finds out which archives of days that are held were replaced since, by the archive's listing. It marks those
days in the ledgers; the schedule ``repair`` requests what is marked. `market-data verify` does both. ``compact`` puts
the candles of months that are over into a file a month. ``prune`` drops old runs from Dagster's records.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Callable, Sequence

import dagster as dg

from market_data_pipeline.defs.platform.heartbeat import LIFE
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings


def build_verify_job(keys: Sequence[SeriesKey], settings: Settings, name: str, description: str) -> dg.JobDefinition:
    """The job that compares the archives of series with their ledgers.

    Args:
        keys: The series; those of which nothing is held cost no request.
        settings: Where the ledgers lie, and where the archive is.
        name: Of the job.
        description: Of the job.
    """

    def work(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.maintenance.run import compare_archives

        compare_archives(context, keys, settings)

    return _job_of_one_op(name, "sweep", description, work)


def build_compact_job(keys: Sequence[SeriesKey], settings: Settings, name: str, description: str) -> dg.JobDefinition:
    """The job that closes months.

    Args:
        keys: The series; those that stay in days are passed over.
        settings: Where the lake is.
        name: Of the job.
        description: Of the job.
    """

    def work(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.maintenance.run import close_months

        close_months(context, keys, settings)

    return _job_of_one_op(name, "close_months", description, work)


def build_prune_job(settings: Settings, name: str, description: str) -> dg.JobDefinition:
    """Return the job that drops old runs.

    Args:
        settings: How long runs are kept.
        name: Of the job.
        description: Of the job.
    """

    def work(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.platform.pruning import prune_records

        prune_records(context, settings)

    return _job_of_one_op(name, "drop_old_runs", description, work)


def _job_of_one_op(
    name: str, op: str, description: str, work: Callable[[dg.OpExecutionContext], None]
) -> dg.JobDefinition:
    @dg.op(name=op, out=dg.Out(dg.Nothing), required_resource_keys={LIFE}, description=description)
    def only(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.platform.faults import failing_in_words

        with failing_in_words():
            work(context)

    @dg.job(name=name, description=description)
    def job() -> None:
        only()

    return job
