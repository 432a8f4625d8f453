"""The job ``verify``: which archives of days that are held were replaced since, by the archive's listing.

It marks those days in the ledgers; the schedule ``repair`` requests what is marked. `market-data verify` does both.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Sequence

import dagster as dg

from market_data_pipeline.defs.runs import LIFE
from market_data_pipeline.series import SeriesKey
from market_data_pipeline.settings import Settings


def build_verify_job(keys: Sequence[SeriesKey], settings: Settings, name: str, description: str) -> dg.JobDefinition:
    """The job that compares the archives of series with their ledgers.

    Args:
        keys: The series; those of which nothing is held cost no request.
        settings: Where the ledgers lie, and where the archive is.
        name: Of the job.
        description: Of the job.
    """

    @dg.op(
        name="sweep",
        out=dg.Out(dg.Nothing),
        required_resource_keys={LIFE},
        description=description,
    )
    def sweep_op(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.bodies.verification import compare_archives

        compare_archives(context, keys, settings)

    @dg.job(name=name, description=description)
    def verify() -> None:
        sweep_op()

    return verify
