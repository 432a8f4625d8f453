"""The job ``compact``: the candles of months that are over, in a file a month."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Sequence

import dagster as dg

from market_data_pipeline.defs.runs import LIFE
from market_data_pipeline.series import SeriesKey
from market_data_pipeline.settings import Settings


def build_compact_job(keys: Sequence[SeriesKey], settings: Settings, name: str, description: str) -> dg.JobDefinition:
    """The job that closes months.

    Args:
        keys: The series; those that stay in days are passed over.
        settings: Where the lake is.
        name: Of the job.
        description: Of the job.
    """

    @dg.op(
        name="close_months",
        out=dg.Out(dg.Nothing),
        required_resource_keys={LIFE},
        description=description,
    )
    def close_months_op(context: dg.OpExecutionContext) -> None:
        from market_data_pipeline.defs.bodies.compaction import close_months

        close_months(context, keys, settings)

    @dg.job(name=name, description=description)
    def compact() -> None:
        close_months_op()

    return compact
