"""Jobs of one op that maintain the lake and Dagster's records: ``verify``, ``compact``, ``retain`` and ``prune``.

``verify`` marks stored days whose archive was replaced, and ``repair`` requests the marked days. ``compact`` writes
finished months into one file each. ``retain`` removes days older than ``keep:``. ``prune`` drops old runs. The work
itself does not belong here; see ``run.py``.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Callable, Sequence

import dagster as dg

from market_data_pipeline.defs.platform.heartbeat import HEARTBEAT
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.settings import Settings

VERIFY, COMPACT, PRUNE, RETAIN = "verify", "compact", "prune", "retain"


def build_maintenance_jobs(
    keys: Sequence[SeriesKey], settings: Settings, retained: Sequence[SeriesKey] = ()
) -> dict[str, dg.JobDefinition]:
    """Return the jobs by name. Leave out jobs that would have nothing to do.

    Args:
        keys: The series of the universe. Those without stored days cost nothing.
        settings: The locations of the lake and of the archive, and the retention of runs.
        retained: The series with ``keep:``.
    """
    klines = [key for key in keys if key.data_type is DataType.KLINES]

    def compare(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.maintenance.run import compare_archives

        compare_archives(context, keys, settings)

    def close(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.maintenance.run import compact_lake

        compact_lake(context, klines, settings)

    def drop(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.platform.pruning import prune_records

        prune_records(context, settings)

    def remove_old_days(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.maintenance.run import retain_days

        retain_days(context, settings)

    rows = (
        (
            VERIFY,
            "sweep",
            compare,
            keys,
            "Find archives that were replaced since they were fetched, and mark their days. Reads the listing only.",
        ),
        (
            PRUNE,
            "drop_old_runs",
            drop,
            keys,
            "Drop old runs and superseded results from Dagster's records, and free their space.",
        ),
        (
            COMPACT,
            "close_months",
            close,
            klines,
            "Write the candles of each finished month into one file, so that queries are faster.",
        ),
        (
            RETAIN,
            "remove_old_days",
            remove_old_days,
            retained or (keys if settings.hot_store_keep_days else ()),
            "Remove days older than `keep:`, in the lake and in PostgreSQL. Those that no longer exist elsewhere stay.",
        ),
    )
    return {name: _job_of_one_op(name, op, description, work) for name, op, work, some, description in rows if some}


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
