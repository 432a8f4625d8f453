"""Take a snapshot of exchangeInfo and store it."""

from __future__ import annotations

from contextlib import closing

import dagster as dg

from market_data_pipeline import clock
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import Market
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.binance.rest import RestApi
from market_data_pipeline.sql.publish import publish_views
from market_data_pipeline.universe.exchange_info import snapshot_of, store_snapshot


def take_snapshot(context: dg.AssetExecutionContext, market: Market, settings: Settings) -> dg.MaterializeResult[None]:
    """Store today's snapshot of a market, unless there is one."""
    layout = Layout(settings.root)
    with closing(RestApi(market, settings)) as rest:
        table = snapshot_of(rest.exchange_info(), clock.now())
    is_new = store_snapshot(layout, market, table)
    if not is_new:
        context.log.info("Today's snapshot of %s is already stored.", market)
    publish_views(layout, context.log)
    trading = table["status"].to_pylist().count("TRADING")
    return dg.MaterializeResult(metadata={"symbols": table.num_rows, "symbols trading": trading, "stored": is_new})
