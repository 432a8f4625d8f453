"""The resource ``ingestion``: access to ``ingest``, open for one run.

Opening it does not belong here; see ``ingestion.session``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING, Protocol

import dagster as dg

from market_data_pipeline.defs.platform.heartbeat import HEARTBEAT
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import ListingSpans, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

if TYPE_CHECKING:
    from market_data_pipeline.defs.ingestion.session import Ingestion
    from market_data_pipeline.ingest.sources import Sources
    from market_data_pipeline.model.outcomes import DayResult, OnResult


class Ingest(Protocol):
    """The signature of :func:`market_data_pipeline.ingest.run.ingest`."""

    def __call__(
        self,
        key: SeriesKey,
        days: Sequence[date],
        *,
        layout: Layout,
        sources: Sources,
        listing: ListingSpans,
        settings: Settings,
    ) -> Iterator[DayResult]:
        """Ingest days of one series, in order."""


def ingestion_resource(
    settings: Settings,
    universe: Universe,
    *,
    open_sources: Callable[[Settings], Sources] | None = None,
    ingest_days: Ingest | None = None,
    on_result: OnResult | None = None,
) -> dg.ResourceDefinition:
    """Return the resource ``ingestion``: opened at the start of a run, closed at its end.

    Args:
        settings: The location of the lake and the limits for sources.
        universe: The listing spans of symbols.
        open_sources: Opens the sources of a run. Default: ``ingest.sources.Sources``.
        ingest_days: A replacement for :func:`market_data_pipeline.ingest.run.ingest`.
        on_result: Called after each day.
    """

    def open_for_run(context: dg.InitResourceContext) -> Iterator[Ingestion]:
        from market_data_pipeline.defs.ingestion.session import open_ingestion

        yield from open_ingestion(
            context, settings, universe, open_sources=open_sources, ingest_days=ingest_days, on_result=on_result
        )

    return dg.ResourceDefinition(
        resource_fn=open_for_run,
        required_resource_keys={HEARTBEAT},
        description="Connects a run to Binance's archive and REST API, and to the lake.",
    )
