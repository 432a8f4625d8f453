"""Asset keys of series, and the name of the check and job ``reconciliation``. Other names do not belong here."""

from __future__ import annotations

import dagster as dg

from market_data_pipeline.model.series import SeriesKey

RECONCILIATION = "reconciliation"


def asset_key_of(key: SeriesKey) -> dg.AssetKey:
    """Return the asset key of a series, e.g. ``binance/spot/klines/BTCUSDT/1m``."""
    return dg.AssetKey(list(key.asset_path))


def series_of(asset_key: dg.AssetKey) -> SeriesKey:
    """Return the series of an asset key: the inverse of :func:`asset_key_of`.

    Raises:
        ValueError: The asset is not a series.
    """
    return SeriesKey.from_asset_path(list(asset_key.path))
