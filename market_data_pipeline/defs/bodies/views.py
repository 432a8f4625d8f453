"""The views for SQL, after whatever has written."""

from __future__ import annotations

import logging

from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.lake.catalog import publish_catalog
from market_data_pipeline.lake.layout import Layout


def publish_views(layout: Layout, log: logging.Logger | None = None) -> None:
    """Bring the SQL views up to what a run has written. A run whose days are held does not fail for the views' sake."""
    try:
        publish_catalog(layout)
    except MarketDataError as error:
        (log or logging.getLogger(__name__)).warning("The views for SQL are not up to date. %s", error)
