"""Names that Dagster keeps: the asset keys of series, and the check and job ``reconciliation``."""

from __future__ import annotations

import dagster as dg

from market_data_pipeline.model.series import SeriesKey

RECONCILIATION = "reconciliation"


def asset_key_of(key: SeriesKey) -> dg.AssetKey:
    """The Dagster asset key of a series, e.g. ``binance/spot/klines/BTCUSDT/1m``."""
    return dg.AssetKey(list(key.asset_path))


def series_of(asset_key: dg.AssetKey) -> SeriesKey:
    """The inverse of :func:`asset_key_of`.

    Raises:
        ValueError: the asset is not a series.
    """
    return SeriesKey.from_asset_path(list(asset_key.path))
