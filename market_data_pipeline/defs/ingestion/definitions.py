"""Assets by factory: one for each series of the universe, and a derived tradeProfile for each aggTrades series."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, assert_never

import dagster as dg

from market_data_pipeline.defs.ingestion import checks
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.platform.heartbeat import LIFE
from market_data_pipeline.defs.reconciliation import definitions
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.datasets import MARKETS, Kind, lake_columns
from market_data_pipeline.model.lineage import profile_of, source_of
from market_data_pipeline.model.series import DataType, Market, SeriesKey
from market_data_pipeline.settings import Settings

IO_MANAGER = "lake"
INGESTION = "ingestion"
OWNER = "team:market-data"

MARKET_NAMES: Mapping[Market, str] = {
    Market.SPOT: "spot",
    Market.UM: "USDⓈ-margined futures (um)",
    Market.CM: "coin-margined futures (cm)",
}


def backfill_policy(settings: Settings, *, derived: bool) -> dg.BackfillPolicy:
    """How many days one run of a backfill takes.

    A derived asset with the same policy would share the run of its source, where one bad day skips it and fails all
    its days. With an unequal policy it gets runs of its own, and only the good days are asked for.
    """
    return dg.BackfillPolicy.multi_run(settings.max_partitions_per_run + derived)


def build_series_asset(
    key: SeriesKey,
    partitions_def: dg.DailyPartitionsDefinition,
    settings: Settings,
    *,
    reconciled: bool = False,
) -> dg.AssetsDefinition:
    """The asset of a series that Binance publishes, with its checks ``integrity`` and ``gaps`` for each day.

    Args:
        key: The series.
        partitions_def: Of the project.
        settings: Where the lake is.
        reconciled: Whether it has the check ``reconciliation``: what it is rebuilt from is collected, too.
    """
    asset_key = asset_key_of(key)
    layout = Layout(settings.root)
    check_specs = checks.specs_of_checks(asset_key, partitions_def)
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
        from market_data_pipeline.defs.ingestion.run import bring

        yield from bring(context, getattr(context.resources, INGESTION), key, layout, reconciled=reconciled)

    return series


def build_trade_profile_asset(
    source: SeriesKey, partitions_def: dg.DailyPartitionsDefinition, settings: Settings
) -> dg.AssetsDefinition:
    """The derived tradeProfile of an aggTrades series: one row a day, loaded and written by the IO manager."""
    key = profile_of(source)
    layout = Layout(settings.root)

    # Neither `trades` nor what comes back is annotated with its type: Dagster would import DuckDB and Arrow to read it.
    # Where no type is asked for, the IO manager loads a relation of DuckDB; it writes any table.
    @dg.asset(
        key=asset_key_of(key),
        ins={"trades": dg.AssetIn(asset_key_of(source))},
        partitions_def=partitions_def,
        backfill_policy=backfill_policy(settings, derived=True),
        io_manager_key=IO_MANAGER,
        required_resource_keys={LIFE},
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


# --- what the UI tells of an asset -------------------------------------------------------------------------------


def _group(key: SeriesKey) -> str:
    return f"{key.market.value}_{key.data_type.sql_name}"


def _tags(key: SeriesKey) -> dict[str, str]:
    tags = {"market": key.market.value, "data_type": key.data_type.value, "symbol": key.asset_path[3]}
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
    market = MARKET_NAMES[key.market]
    match key.data_type:
        case DataType.KLINES:
            what = f"Candles of {key.interval} of **{key.symbol}** in Binance {market}, one row for each interval."
            python = f'MarketData().klines("{key.symbol}", "{key.interval}", "2024-01-01", market="{key.market}").df()'
        case DataType.AGG_TRADES:
            what = (
                f"Aggregated trades of **{key.symbol}** in Binance {market}: one row for all fills of one order at "
                "one price and moment."
            )
            python = f'MarketData().agg_trades("{key.symbol}", "2024-01-01", market="{key.market}").df()'
        case DataType.TRADE_PROFILE:
            what = (
                f"A row a day made of `{source_of(key)}`: VWAP, high, low, point of control (the price level with the "
                "most volume), volume bought and sold by takers, cumulative delta and the number of trades."
            )
            python = f"MarketData().sql(\"FROM {view} WHERE symbol = '{key.symbol}'\").df()"
        case other:
            assert_never(other)
    units = (
        "Contracts are inverse: `volume` is in contracts, VWAP is Σq / Σ(q/p)."
        if MARKETS[key.market].inverse
        else "Volumes are in the base asset."
    )
    return (
        f"{what} Each partition is one UTC day; times are UTC. {units}\n\n"
        f"**Files:** `{layout.folder(key)}/<day>.parquet`\n\n"
        f'**SQL:** `market-data sql "FROM {view} WHERE {" AND ".join(where)} LIMIT 10"`\n\n'
        f"**Python:** `{python}`"
    )


_COLUMNS: Mapping[str, str] = {
    "symbol": "Symbol as Binance spells it; the same in every row of a file.",
    "interval": "Kline interval; the same in every row of a file.",
    "open_time": "Start of the candle (UTC).",
    "open": "Price of the first trade.",
    "high": "Highest price.",
    "low": "Lowest price.",
    "close": "Price of the last trade.",
    "volume": "Traded quantity.",
    "close_time": "Last moment of the candle (UTC).",
    "quote_volume": "Traded value in the quote asset; rounded in the last place beyond 15 digits.",
    "base_volume": "Traded quantity in the base asset.",
    "count": "Number of trades.",
    "taker_buy_volume": "Quantity bought by takers.",
    "taker_buy_quote_volume": "Value bought by takers, in the quote asset.",
    "taker_buy_base_volume": "Quantity bought by takers, in the base asset.",
    "agg_trade_id": "Id of the aggregated trade; ids follow one another without a hole.",
    "price": "Price; 0 in Binance's sentinel rows (spot), which stand for no trade.",
    "quantity": "Quantity.",
    "first_trade_id": "Id of the first trade in it.",
    "last_trade_id": "Id of the last trade in it.",
    "transact_time": "When it was traded (UTC).",
    "is_buyer_maker": "True where the seller was the taker.",
    "is_best_match": "Binance's flag of the best price match (spot only).",
    "day": "The UTC day.",
    "vwap": "Volume-weighted average price: Σpq / Σq, in cm Σq / Σ(q/p).",
    "point_of_control": "Lower edge of the price level with the most volume; the lowest one of equals.",
    "point_of_control_volume": "Volume at that level.",
    "level_size": "Height of a price level.",
    "buy_volume": "Volume where the buyer was the taker.",
    "sell_volume": "Volume where the seller was the taker.",
    "cumulative_delta": "Buy volume minus sell volume.",
    "trades": "Number of trades inside the aggregated ones.",
    "agg_trades": "Number of aggregated trades, sentinel rows left out.",
}

_SQL_TYPES: Mapping[Kind, str] = {
    "time": "TIMESTAMP",
    "day": "DATE",
    "int": "BIGINT",
    "float": "DOUBLE",
    "bool": "BOOLEAN",
    "word": "VARCHAR",
}


@cache
def column_schema(market: Market, data_type: DataType) -> dg.TableSchema:
    """Columns of a series with their SQL types and what they mean; volumes of cm are said to be in contracts."""
    contracts = MARKETS[market].inverse
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=column.name,
                type=_SQL_TYPES[column.kind],
                description=_COLUMNS[column.name]
                + (" In contracts." if contracts and _in_contracts(column.name) else ""),
            )
            for column in lake_columns(market, data_type)
        ]
    )


def _in_contracts(name: str) -> bool:
    return name in {"quantity", "volume", "taker_buy_volume", "buy_volume", "sell_volume", "point_of_control_volume"}
