"""The tables of the SQL schema ``universe``: daily volumes and listings of all markets, refreshed from the lake."""

from __future__ import annotations

from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.errors import DamagedFileError, StorageError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.datasets import published_types
from market_data_pipeline.model.series import DataType, Market
from market_data_pipeline.universe.aliases import known_aliases
from market_data_pipeline.universe.daily_volumes import refresh_daily_volumes
from market_data_pipeline.universe.membership import MarketHistory, listings_without_candles
from market_data_pipeline.universe.resolved import Listings


def market_history(layout: Layout, market: Market, listings: Listings) -> MarketHistory | None:
    """Return the history of a market from its stored 1d candles; None if none of them has trades.

    Raises:
        DamagedFileError: A candle file is unreadable.
    """
    if DataType.KLINES not in published_types(market):
        return None
    volumes = refresh_daily_volumes(layout, market)
    if not pc.max(volumes["count"]).as_py():
        return None
    return MarketHistory(market, volumes, listings, known_aliases())


def refresh_tables(layout: Layout, listings: Listings) -> pa.Table:
    """Store the daily volumes and the listings of all markets, and return the listings.

    Without write access to the data folder, nothing is stored.

    Args:
        listings: Listings of the lock.

    Raises:
        DamagedFileError: A candle file is unreadable.
    """
    parts = []
    for market in Market:
        history = market_history(layout, market, listings)
        parts.append(history.listings() if history else listings_without_candles(market, listings, known_aliases()))
    table = pa.concat_tables(parts)
    if not table.equals(_stored(layout, table.schema)):
        with suppress(StorageError):
            parquet.write_table(layout.listings, table)
    return table


def _stored(layout: Layout, schema: pa.Schema) -> pa.Table:
    if storage.head(layout.listings) is not None:
        with suppress(DamagedFileError, pa.ArrowException, KeyError):  # what cannot be used is made again
            return parquet.read_table(layout.listings).replace_schema_metadata()
    return schema.empty_table()
