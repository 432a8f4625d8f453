"""The sensor that requests days as soon as their archive is published.

A REST day is provisional until its archive appears, mostly between 03:00 and 09:00 UTC of the next day. Publication has
also stalled for nine days, and days appear out of order. The sensor requests only days in the archive's listing.
Code of a tick does not belong here; see ``maintenance.published``.
"""

from __future__ import annotations

import dagster as dg

from market_data_pipeline.defs.jobs import INGEST_ALL, Jobs
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe


def build_sensors(jobs: Jobs, settings: Settings, universe: Universe) -> list[dg.SensorDefinition]:
    """Return the sensor ``archive_published`` if there is anything to collect."""
    if INGEST_ALL not in jobs:
        return []

    @dg.sensor(
        name="archive_published",
        job=jobs[INGEST_ALL],
        minimum_interval_seconds=settings.archive_minutes * 60,
        description=(
            "Fetch archives as soon as Binance publishes them.\n\nLooks for provisional days in the archive's listing, "
            "with one request per series. Days with an archive are fetched and become final."
        ),
    )
    def archive_published(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from market_data_pipeline.defs.maintenance.published import look

        return look(context, settings, universe)

    return [archive_published]
