"""Asset factories: one asset for each series of the universe, and a tradeProfile for each aggTrades series.

Code that runs inside an asset does not belong here; see ``ingestion.run``.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import dagster as dg

from market_data_pipeline.defs.keys import asset_key_of, encode_symbol
from market_data_pipeline.defs.platform.heartbeat import HEARTBEAT
from market_data_pipeline.defs.reconciliation import definitions
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.datasets import MARKETS, WORDS, ColumnKind, lake_columns
from market_data_pipeline.model.lineage import profile_of, source_of
from market_data_pipeline.model.series import DataType, Market, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

IO_MANAGER = "lake"
INGESTION = "ingestion"
OWNER = "team:market-data"

_MARKET_NAMES: Mapping[Market, str] = {
    Market.SPOT: "spot",
    Market.UM: "USDⓈ-margined futures (um)",
    Market.CM: "coin-margined futures (cm)",
    Market.OPTION: "options",
}


_CHECK_DESCRIPTIONS: Mapping[str, str] = {
    "integrity": "The day is as the exchange published it, and its rows are plausible.\n\nVerifies checksum, schema, "
    "order and uniqueness of times inside the day, and the range of prices and volumes. Files that cannot be verified "
    "are not stored. Rows that only look wrong are stored as published. The metadata has the reason.",
    "gaps": "Every gap and every run of flat candles in the day has a verdict.\n\n`outage`, `suspended`, `quiet`, "
    "`not_listed` and `healed` (gap-filled from REST) pass. `unpublished` (not known yet) warns. `archive_defect` and "
    "`unexplained` fail. The metadata has the evidence for each range.",
}


def ingestion_resource(
    settings: Settings,
    universe: Universe,
    ingest_days: Callable[..., Any] | None = None,
    on_result: Callable[[Any], None] | None = None,
) -> dg.ResourceDefinition:
    """Return the resource ``ingestion``: access to ``ingest``, opened at the start of a run, closed at its end.

    Args:
        settings: The location of the lake and the limits for sources.
        universe: The listing spans of symbols.
        ingest_days: A replacement for :func:`market_data_pipeline.ingest.run.ingest`.
        on_result: Called with the result of each day.
    """

    def open_for_run(context: dg.InitResourceContext) -> Iterator[Any]:
        from market_data_pipeline.defs.ingestion.session import open_ingestion

        yield from open_ingestion(context, settings, universe, ingest_days, on_result)

    return dg.ResourceDefinition(
        resource_fn=open_for_run,
        required_resource_keys={HEARTBEAT},
        description="Connects a run to Binance's archive and REST API, and to the lake.",
    )


def backfill_policy(settings: Settings, *, derived: bool) -> dg.BackfillPolicy:
    """Return the policy that limits the days in one run of a backfill.

    A derived asset with the same policy would share the run of its source. One bad day of the source would then skip it
    and fail all its days. A different policy gives it runs of its own, for good days only.
    """
    return dg.BackfillPolicy.multi_run(settings.max_partitions_per_run + derived)


def build_series_asset(
    key: SeriesKey,
    partitions_def: dg.DailyPartitionsDefinition,
    settings: Settings,
    *,
    reconciled: bool = False,
) -> dg.AssetsDefinition:
    """Return the asset of a series that Binance publishes, with the checks ``integrity`` and ``gaps`` for each day.

    Args:
        key: The series.
        partitions_def: The days of the series.
        settings: The location of the lake.
        reconciled: True adds the check ``reconciliation``, because the source of the klines is collected too.
    """
    asset_key = asset_key_of(key)
    layout = Layout(settings.root)
    check_specs = [
        dg.AssetCheckSpec(name, asset=asset_key, description=description, partitions_def=partitions_def)
        for name, description in _CHECK_DESCRIPTIONS.items()
    ]
    if reconciled:
        check_specs.append(definitions.reconciliation_spec(key, asset_key, partitions_def))

    @dg.asset(
        key=asset_key,
        partitions_def=partitions_def,
        backfill_policy=backfill_policy(settings, derived=False),
        check_specs=check_specs,
        io_manager_key=IO_MANAGER,
        required_resource_keys={INGESTION},
        group_name=_group(key),
        kinds={"binance", "parquet"},
        owners=[OWNER],
        tags=_tags(key),
        metadata=_definition_metadata(key, layout),
        description=_describe(key, layout),
    )
    def series(context: dg.AssetExecutionContext) -> Iterator[Any]:
        from market_data_pipeline.defs.ingestion.run import fetch_days

        yield from fetch_days(context, getattr(context.resources, INGESTION), key, layout, reconciled=reconciled)

    return series


def build_trade_profile_asset(
    source: SeriesKey, partitions_def: dg.DailyPartitionsDefinition, settings: Settings
) -> dg.AssetsDefinition:
    """Return the tradeProfile asset of an aggTrades series: one row a day, loaded and stored by the IO manager."""
    key = profile_of(source)
    layout = Layout(settings.root)

    # `trades` and the result have no type annotations: Dagster would import DuckDB and Arrow to read them. Without an
    # annotation the IO manager loads a DuckDB relation. It writes any table.
    @dg.asset(
        key=asset_key_of(key),
        ins={"trades": dg.AssetIn(asset_key_of(source))},
        partitions_def=partitions_def,
        backfill_policy=backfill_policy(settings, derived=True),
        io_manager_key=IO_MANAGER,
        required_resource_keys={HEARTBEAT},
        group_name=_group(key),
        kinds={"duckdb", "parquet"},
        owners=[OWNER],
        tags=_tags(key),
        metadata=_definition_metadata(key, layout),
        description=_describe(key, layout),
    )
    def profile(context: dg.AssetExecutionContext, trades: Any) -> Any:
        from market_data_pipeline.defs.ingestion.run import make_profile

        return make_profile(context, trades, key, layout, settings.profile_level)

    return profile


# --- texts in the UI ---------------------------------------------------------------------------------------------


def _group(key: SeriesKey) -> str:
    return f"{key.market.value}_{key.data_type.sql_name}"


def _tags(key: SeriesKey) -> dict[str, str]:
    tags = {"market": key.market.value, "data_type": key.data_type.value, "symbol": encode_symbol(key.symbol)}
    return tags | ({"interval": key.interval} if key.interval else {})


def _definition_metadata(key: SeriesKey, layout: Layout) -> dict[str, Any]:
    return {
        "dagster/column_schema": column_schema(key.market, key.data_type),
        "dagster/table_name": f"{key.sql_schema}.{key.data_type.sql_name}",
        "folder": dg.MetadataValue.path(str(layout.folder(key))),
    }


def _describe(key: SeriesKey, layout: Layout) -> str:
    where = [f"symbol = '{key.symbol}'", *([f"\"interval\" = '{key.interval}'"] if key.interval else [])]
    view = f"{key.sql_schema}.{key.data_type.sql_name}"
    market = _MARKET_NAMES[key.market]
    headline = WORDS[key.data_type].headline.format(symbol=key.symbol, interval=key.interval, market=market)
    more = ""
    arguments = ", ".join(f'"{one}"' for one in filter(None, (key.symbol, key.interval, "2024-01-01")))
    python = f'MarketData().{key.data_type.sql_name}({arguments}, market="{key.market}").df()'
    if key.data_type is DataType.AGG_TRADES:
        more = "A row has all fills of one order at one price and time.\n\n"
    elif key.data_type is DataType.TRADE_PROFILE:
        more = (
            f"Computed from `{asset_key_of(source_of(key)).to_user_string()}`. Columns: VWAP, high, low, point of "
            "control (the price level with the most volume), volume bought and sold by takers, cumulative delta "
            "and the number of trades.\n\n"
        )
        python = f"MarketData().sql(\"FROM {view} WHERE symbol = '{key.symbol}'\").df()"
    has_volumes = any(column.name in _VOLUMES for column in lake_columns(key.market, key.data_type))
    return (
        f"{headline}\n\n{more}Each partition is one UTC day. Times are UTC.{_units(key) if has_volumes else ''}\n\n"
        f"**Files:** `{layout.folder(key)}/<day>.parquet`\n\n"
        f'**SQL:** `market-data sql "FROM {view} WHERE {" AND ".join(where)} LIMIT 10"`\n\n'
        f"**Python:** `{python}`"
    )


_VOLUMES = ("volume", "quantity")


def _units(key: SeriesKey) -> str:
    if MARKETS[key.market].inverse:
        return " Contracts are inverse. `volume` is in contracts, and VWAP is Σq / Σ(q/p)."
    return " Volumes are in the base asset."


_COLUMNS: Mapping[str, str] = {
    "symbol": "Symbol as Binance spells it. The same in every row of a file.",
    "interval": "Kline interval. The same in every row of a file.",
    "open_time": "Start of the candle (UTC).",
    "open": "Price of the first trade.",
    "high": "Highest price.",
    "low": "Lowest price.",
    "close": "Price of the last trade.",
    "volume": "Traded quantity.",
    "close_time": "Last moment of the candle (UTC).",
    "quote_volume": "Traded value in the quote asset. Beyond 15 digits the last place is rounded.",
    "base_volume": "Traded quantity in the base asset.",
    "count": "Number of trades.",
    "taker_buy_volume": "Quantity bought by takers.",
    "taker_buy_quote_volume": "Value bought by takers, in the quote asset.",
    "taker_buy_base_volume": "Quantity bought by takers, in the base asset.",
    "agg_trade_id": "Id of the aggregated trade. Ids are consecutive.",
    "price": "Price. It is 0 in Binance's sentinel rows (spot), which mean no trade.",
    "quantity": "Quantity.",
    "first_trade_id": "Id of the first trade in it.",
    "last_trade_id": "Id of the last trade in it.",
    "transact_time": "Time of the trade (UTC).",
    "is_buyer_maker": "True if the seller was the taker.",
    "is_best_match": "Binance's flag of the best price match (spot only).",
    "id": "Id of the trade. Ids of spot are consecutive, those of futures have holes.",
    "qty": "Quantity, for cm in contracts.",
    "quote_qty": "Value in the quote asset.",
    "base_qty": "Quantity in the base asset.",
    "time": "Time of the trade, of the forced order, or the hour of the summary (UTC).",
    "create_time": "Start of the period of five minutes (UTC).",
    "sum_open_interest": "Open interest at the end of the period, in the base asset, for cm in contracts.",
    "sum_open_interest_value": "The same as a value in the quote asset, for cm in the base asset.",
    "count_toptrader_long_short_ratio": "Long to short accounts of the top traders.",
    "sum_toptrader_long_short_ratio": "Long to short positions of the top traders.",
    "count_long_short_ratio": "Long to short accounts of all traders.",
    "sum_taker_long_short_vol_ratio": "Volume bought to volume sold by takers in the period.",
    "timestamp": "Time of the snapshot (UTC).",
    "percentage": "Edge of the band in percent of the price. Negative bands are bids.",
    "depth": "Quantity between the price and the edge, in the base asset, for cm in contracts.",
    "notional": "The same as a value in the quote asset, for cm in the base asset.",
    "update_id": "Id of the change of the order book.",
    "best_bid_price": "Best bid.",
    "best_bid_qty": "Quantity at the best bid, for cm and options in contracts.",
    "best_ask_price": "Best ask.",
    "best_ask_qty": "Quantity at the best ask, for cm and options in contracts.",
    "transaction_time": "Time of the change (UTC).",
    "event_time": "Time of its message (UTC).",
    "side": "SELL: a long position was liquidated. BUY: a short one.",
    "order_type": "Type of the order.",
    "time_in_force": "Time in force of the order.",
    "original_quantity": "Ordered quantity, for cm in contracts.",
    "average_price": "Average price of its fills.",
    "order_status": "Status of the order.",
    "last_fill_quantity": "Quantity of its last fill.",
    "accumulated_fill_quantity": "Filled quantity.",
    "calc_time": "Time of the funding, some milliseconds late, or of the index (UTC).",
    "funding_interval_hours": "Hours between two fundings. REST does not have it: there, the hours since the last one.",
    "last_funding_rate": "Funding rate. Longs pay shorts if it is positive.",
    "index_value": "Volatility in percent a year.",
    "contract": "Symbol of the option, such as BTC-231027-33000-C.",
    "type": "C: the right to buy. P: the right to sell.",
    "strike": "Expiry and strike price as Binance writes them.",
    "volume_contracts": "Traded quantity in contracts.",
    "volume_usdt": "Traded value in USDT.",
    "best_buy_iv": "Implied volatility of the best bid.",
    "best_sell_iv": "Implied volatility of the best ask.",
    "mark_price": "Mark price.",
    "mark_iv": "Implied volatility of the mark price.",
    "delta": "Change of the option's price with the underlying's.",
    "gamma": "Change of delta with the underlying's price.",
    "vega": "Change of the option's price with the volatility.",
    "theta": "Change of the option's price with time, per day.",
    "openinterest_contracts": "Open interest in contracts.",
    "openinterest_usdt": "Open interest in USDT.",
    "day": "The UTC day.",
    "vwap": "Volume-weighted average price: Σpq / Σq, in cm Σq / Σ(q/p).",
    "point_of_control": "Lower edge of the price level with the most volume. Ties go to the lowest level.",
    "point_of_control_volume": "Volume at that level.",
    "level_size": "Height of a price level.",
    "buy_volume": "Volume of trades whose buyer was the taker.",
    "sell_volume": "Volume of trades whose seller was the taker.",
    "cumulative_delta": "Buy volume minus sell volume.",
    "trades": "Number of trades inside the aggregated ones.",
    "agg_trades": "Number of aggregated trades, without sentinel rows.",
}

_SQL_TYPES: Mapping[ColumnKind, str] = {
    "time": "TIMESTAMP",
    "day": "DATE",
    "int": "BIGINT",
    "float": "DOUBLE",
    "bool": "BOOLEAN",
    "word": "VARCHAR",
    "text": "VARCHAR",
}


_IN_CONTRACTS = {"quantity", "volume", "taker_buy_volume", "buy_volume", "sell_volume", "point_of_control_volume"}


@cache
def column_schema(market: Market, data_type: DataType) -> dg.TableSchema:
    """Return the columns of a series with SQL types and descriptions. Volumes of cm are marked as contracts."""
    contracts = MARKETS[market].inverse
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=column.name,
                type=_SQL_TYPES[column.kind],
                description=_COLUMNS[column.name]
                + (" In contracts." if contracts and column.name in _IN_CONTRACTS else ""),
            )
            for column in lake_columns(market, data_type)
        ]
    )
