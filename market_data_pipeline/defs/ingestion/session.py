"""The session of the resource ``ingestion``: opened for a run, closed after it.

Fetching does not belong here; see ``ingest``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from datetime import date

import dagster as dg

from market_data_pipeline.clock import days_between
from market_data_pipeline.coverage.condition import record_collected
from market_data_pipeline.defs.keys import is_series, series_of
from market_data_pipeline.defs.partitions import span_of
from market_data_pipeline.ingest.prefetch import Prefetcher
from market_data_pipeline.ingest.run import ingest
from market_data_pipeline.ingest.sources import Sources
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.outcomes import DayResult, OnResult
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.model.waits import reporting
from market_data_pipeline.settings import Settings
from market_data_pipeline.sql.publish import publish_views
from market_data_pipeline.universe import Universe
from market_data_pipeline.universe.daily_volumes import collect_daily_volumes

_VOLUMES_SECONDS = 300.0
"""Age from which a run updates the daily volumes. A question reads files of newer runs itself."""

Ingest = Callable[[SeriesKey, Sequence[date]], Iterator[DayResult]]
"""Ingest days of one series. Yield one result for each day, in order."""


def open_ingestion(
    context: dg.InitResourceContext,
    settings: Settings,
    universe: Universe,
    ingest_days: Callable[..., Iterator[DayResult]] | None,
    on_result: OnResult | None,
) -> Iterator[Ingest]:
    """Yield the access to ``ingest`` for one run, whose assets share its connections. Then publish the SQL views.

    Args:
        context: The context of the resource.
        settings: The location of the lake and the limits for sources.
        universe: The listing spans of symbols.
        ingest_days: A replacement for ``ingest.run.ingest``.
        on_result: Called after each day.
    """
    layout, wanted = Layout(settings.root), series_wanted(context.run)
    longest = max((len(days) for _, days in wanted), default=1)
    with closing(Sources(settings)) as sources:

        def fetch(key: SeriesKey, days: Sequence[date]) -> Generator[DayResult]:
            yield from (ingest_days or ingest)(
                key, days, layout=layout, sources=sources, listing=universe.listing(key), settings=settings
            )

        def report_each(key: SeriesKey, days: Sequence[date]) -> Iterator[DayResult]:
            with sources.stop.if_interrupted():
                for result in ahead.days(key, days):
                    if on_result is not None:
                        on_result(result)
                    yield result

        # Days of one series are fetched in parallel. The next series starts while one reports its days.
        with (
            closing(Prefetcher(fetch, wanted, max(2, sources.at_a_time // longest))) as ahead,
            reporting(context.log.warning if context.log else lambda _: None),
        ):
            yield report_each
    record_collected(layout, universe)
    publish_views(layout, context.log)
    collect_daily_volumes(layout, (key for key, _ in wanted), older_than_seconds=_VOLUMES_SECONDS)


def series_wanted(run: dg.DagsterRun | None) -> list[tuple[SeriesKey, list[date]]]:
    """Return the series that a run will fetch, in the order of its steps, with the days of each."""
    if run is None or not run.asset_selection:
        return []
    span = span_of(run.tags)
    if span is None:
        return []
    found = (series_of(asset) for asset in run.asset_selection if is_series(asset))
    days = days_between(*span)
    return [(key, days) for key in sorted(found) if key.data_type is not DataType.TRADE_PROFILE]
