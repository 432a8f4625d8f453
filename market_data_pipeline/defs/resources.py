"""What assets get from outside: the way into ``ingest``, open for as long as one run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import date
from typing import TYPE_CHECKING, Protocol

import dagster as dg

from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.lake.catalog import publish_catalog
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.outcomes import DayFailure, DayOutcome
from market_data_pipeline.series import Listing, SeriesKey
from market_data_pipeline.settings import Settings

if TYPE_CHECKING:
    from market_data_pipeline.ingest import Sources

DayResult = DayOutcome | DayFailure
OnResult = Callable[[DayResult], None]
"""Told of each day as soon as it is done; the command line's progress bar listens here, in the same process."""


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


class Ingestion:
    """The way into ``ingest`` for one run: its HTTP sessions and the hosts that are off are shared by its assets."""

    def __init__(self, settings: Settings, sources: Sources, ingest_days: Ingest, on_result: OnResult | None) -> None:
        self.settings = settings
        self.layout = Layout(settings.root)
        self._sources = sources
        self._ingest = ingest_days
        self._on_result = on_result

    def days(self, key: SeriesKey, days: Sequence[date], listing: Listing) -> Iterator[DayResult]:
        """Bring days of one series into the lake; one result for each day, in order.

        Raises:
            MarketDataError: the series is being written by another run, or the disk refuses.
        """
        results = self._ingest(
            key, days, layout=self.layout, sources=self._sources, listing=listing, settings=self.settings
        )
        for result in results:
            if self._on_result is not None:
                self._on_result(result)
            yield result


def ingestion_resource(
    settings: Settings,
    *,
    open_sources: Callable[[Settings], Sources] | None = None,
    ingest_days: Ingest | None = None,
    on_result: OnResult | None = None,
) -> dg.ResourceDefinition:
    """The resource ``ingestion``: opened at the start of a run, closed at its end.

    Args:
        settings: Where to write and how to ask.
        open_sources: Opens what a run asks; ``ingest.Sources`` by default.
        ingest_days: Stands in for :func:`market_data_pipeline.ingest.ingest`.
        on_result: Told of each day as soon as it is done.
    """

    def open_for_run(context: dg.InitResourceContext) -> Iterator[Ingestion]:
        # Imported by runs only: a code location that is merely looked at needs no HTTP, inflating or rate limits.
        from market_data_pipeline.ingest import Sources, ingest

        with closing((open_sources or Sources)(settings)) as sources:
            yield Ingestion(settings, sources, ingest_days or ingest, on_result)
        publish_views(Layout(settings.root), context.log)

    return dg.ResourceDefinition(
        resource_fn=open_for_run, description="Binance's archive and REST API, and the lake that days are written to."
    )


def publish_views(layout: Layout, log: logging.Logger | None = None) -> None:
    """Bring the SQL views up to what a run has written. A run whose days are held does not fail for the views' sake."""
    try:
        publish_catalog(layout)
    except MarketDataError as error:
        (log or logging.getLogger(__name__)).warning("The views for SQL are not up to date. %s", error)
