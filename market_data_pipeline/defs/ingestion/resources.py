"""What assets get from outside: the way into ``ingest``, open for as long as one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING, Protocol

import dagster as dg

from market_data_pipeline.defs.platform.heartbeat import LIFE
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import Listing, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

if TYPE_CHECKING:
    from market_data_pipeline.defs.ingestion.session import Ingestion
    from market_data_pipeline.ingest import Sources
    from market_data_pipeline.model.outcomes import DayResult, OnResult


class Ingest(Protocol):
    """The signature of :func:`market_data_pipeline.ingest.ingest`."""

    def __call__(
        self,
        key: SeriesKey,
        days: Sequence[date],
        *,
        layout: Layout,
        sources: Sources,
        listing: Listing,
        settings: Settings,
    ) -> Iterator[DayResult]:
        """Bring days of one series into the lake, in order."""


def ingestion_resource(
    settings: Settings,
    universe: Universe,
    *,
    open_sources: Callable[[Settings], Sources] | None = None,
    ingest_days: Ingest | None = None,
    on_result: OnResult | None = None,
) -> dg.ResourceDefinition:
    """The resource ``ingestion``: opened at the start of a run, closed at its end.

    Args:
        settings: Where to write and how to ask.
        universe: When symbols were listed.
        open_sources: Opens what a run asks; ``ingest.Sources`` by default.
        ingest_days: Stands in for :func:`market_data_pipeline.ingest.ingest`.
        on_result: Told of each day as soon as it is done.
    """

    def open_for_run(context: dg.InitResourceContext) -> Iterator[Ingestion]:
        from market_data_pipeline.defs.ingestion.session import open_ingestion

        yield from open_ingestion(
            context, settings, universe, open_sources=open_sources, ingest_days=ingest_days, on_result=on_result
        )

    return dg.ResourceDefinition(
        resource_fn=open_for_run,
        required_resource_keys={LIFE},
        description="Binance's archive and REST API, and the lake that days are written to.",
    )
