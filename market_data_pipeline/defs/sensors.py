"""Sensors: what the archive has published since.

A day from REST is provisional until its archive is there, mostly between 03:00 and 09:00 of the next day; publication
has stalled for nine days, too, and days come out of order. The sensor asks the archive's listing, and requests those
days whose archive is in it: no other day costs a download.
"""

from __future__ import annotations

import dagster as dg

from market_data_pipeline.defs.jobs import INGEST_ALL, Jobs
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe


def build_sensors(jobs: Jobs, settings: Settings, universe: Universe) -> list[dg.SensorDefinition]:
    """The sensor ``archive_published``, where there is anything to collect."""
    if INGEST_ALL not in jobs:
        return []

    @dg.sensor(
        name="archive_published",
        job=jobs[INGEST_ALL],
        minimum_interval_seconds=settings.archive_minutes * 60,
        description=(
            "Days that wait for their archive are looked for in the archive's listing, one request for a series; those "
            "that are there are fetched and become final."
        ),
    )
    def archive_published(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from market_data_pipeline.defs.maintenance.published import look

        return look(context, settings, universe)

    return [archive_published]
