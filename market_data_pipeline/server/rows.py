"""Where rows come from: the seam between the faces of the server and what stores rows.

The lake is the one source, with the rows of the live feed that it does not have yet.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Protocol

from market_data_pipeline.client.pages import PageRequest, Pages, RowsPage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.sql.intervals import PARTS
from market_data_pipeline.universe.config import listings_near


class RowSource(Protocol):
    """Answers requests with rows, their states, what is missing, and a version."""

    def known_series(self, request: PageRequest) -> SeriesKey | None:
        """Return the result of :meth:`series_of` if it is known at once; else None."""

    def series_of(self, request: PageRequest) -> SeriesKey:
        """Return the stored series that answers a request. Composed candles have another interval than their series.

        Raises:
            UsageError: A name does not exist, or nothing is stored.
        """

    def fingerprint(self, key: SeriesKey) -> str:
        """Return a text that changes as soon as an answer may change. It takes microseconds, and reads no rows."""

    def forming_mark(self, key: SeriesKey) -> bytes:
        """Return bytes that differ as soon as the open candle of a series does. It takes microseconds."""

    def read(self, request: PageRequest) -> RowsPage:
        """Read a page. This blocks.

        Raises:
            UsageError: A name does not exist, or nothing is stored.
            DamagedFileError: A file is damaged.
        """

    def delivered(self, key: SeriesKey, start: datetime, last: date) -> int:
        """Return the sum over the stored days from a moment to a last day. This blocks."""


class LakeSource:
    """The lake of a data folder as a source of rows."""

    def __init__(self, settings: Settings) -> None:
        universe = settings.universe
        self._pages = Pages(Layout(settings.root), universe, lambda: listings_near(universe))
        self._series: dict[tuple[object, ...], tuple[str, SeriesKey]] = {}

    def known_series(self, request: PageRequest) -> SeriesKey | None:
        """Return the series that answers a request. None if it is not known, or a series was added or removed since."""
        known = self._series.get(_name(request))
        return known[1] if known is not None and known[0] == self._pages.stamp(request) else None

    def series_of(self, request: PageRequest) -> SeriesKey:
        """Return the stored series that answers a request, and remember it."""
        stamp, series = self._pages.stamp(request), self._pages.source_of(request)
        if len(self._series) >= _KEPT_SERIES:
            self._series.clear()
        self._series[_name(request)] = (stamp, series)
        return series

    def fingerprint(self, key: SeriesKey) -> str:
        """Return a text that changes as soon as a day of the series is stored, removed or recorded in another way."""
        return self._pages.fingerprint(key)

    def forming_mark(self, key: SeriesKey) -> bytes:
        """Return bytes that differ as soon as the open candle of a series does."""
        return self._pages.forming_mark(key)

    def read(self, request: PageRequest) -> RowsPage:
        """Read a page of stored rows, and of rows of the live feed."""
        return self._pages.read(request)

    def delivered(self, key: SeriesKey, start: datetime, last: date) -> int:
        """Return the sum over the stored days from a moment to a last day."""
        return self._pages.delivered(key, start, last)


_KEPT_SERIES = 4096


def _name(request: PageRequest) -> tuple[object, ...]:
    composed = request.columns is not None and bool({*PARTS}.intersection(request.columns))
    return request.market, request.data_type, request.symbol, request.interval, composed
