"""Format ``freqtrade``: feather files of a data folder such as ``user_data/data/binance``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.export.pairs import Pair, Pairs
from market_data_pipeline.export.rows import SeriesRows
from market_data_pipeline.model.series import DataType, Market, SeriesKey

_TIME = pa.timestamp("ns", "UTC")
_PRICES = ("open", "high", "low", "close")
_CANDLE_FIELDS: dict[str, pa.DataType] = {"date": _TIME, **dict.fromkeys((*_PRICES, "volume"), pa.float64())}
_TRADE_FIELDS: dict[str, pa.DataType] = {
    "timestamp": pa.int64(),
    **dict.fromkeys(("id", "type", "side"), pa.string()),
    **dict.fromkeys(("price", "amount", "cost"), pa.float64()),
}
_CANDLES, _TRADES = pa.schema(_CANDLE_FIELDS), pa.schema(_TRADE_FIELDS)

FREQTRADE_KINDS = {
    DataType.KLINES: "futures",
    DataType.MARK_PRICE_KLINES: "mark",
    DataType.INDEX_PRICE_KLINES: "index",
    DataType.PREMIUM_INDEX_KLINES: "premiumIndex",
    DataType.FUNDING_RATE: "funding_rate",
    DataType.AGG_TRADES: "trades",
    DataType.TRADES: "trades",
}
"""The word for a data type of futures in the name of a file."""

_FUNDING_TIMEFRAME = "1h"
"""Timeframe in the name of a file of funding rates, as in freqtrade's own downloads."""

_AT_ONCE = 1 << 16
"""Rows of one compressed batch of a file."""


def freqtrade_path(key: SeriesKey, pairs: Pairs) -> str:
    """Return the path of a series' file below the target."""
    name, kind = _pair_name(pairs.of(key)), FREQTRADE_KINDS[key.data_type]
    folder = "" if key.market is Market.SPOT else "futures/"
    if kind == "trades":
        return f"{folder}{name}-trades.feather"
    timeframe = key.interval or _FUNDING_TIMEFRAME
    return f"{folder}{name}-{timeframe}{f'-{kind}' if folder else ''}.feather"


def write_freqtrade(series: SeriesRows, folder: Path, pairs: Pairs) -> None:
    """Write a series as one feather file."""
    path = folder / freqtrade_path(series.key, pairs)
    path.parent.mkdir(parents=True, exist_ok=True)
    convert, schema = {
        DataType.FUNDING_RATE: (_funding, _CANDLES),
        DataType.AGG_TRADES: (_trades, _TRADES),
        DataType.TRADES: (_trades, _TRADES),
    }.get(series.key.data_type, (_candles, _CANDLES))
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with path.open("wb") as file, pa.ipc.new_file(file, schema, options=options) as writer:
        for _, table in series.parts():
            writer.write_table(convert(table), max_chunksize=_AT_ONCE)


def _pair_name(pair: Pair) -> str:
    """Return a pair in the form of file names: ``BTC_USDT``, of futures ``BTC_USDT_USDT``."""
    delivery = f"-{pair.delivery:%y%m%d}" if pair.delivery else ""
    return "_".join(filter(None, (pair.base, pair.quote, pair.settle))) + delivery


def _candles(table: pa.Table) -> pa.Table:
    # Volume of cm is in contracts there, and freqtrade has the base asset.
    volumes = [table[name] for name in ("base_volume", "volume") if name in table.column_names]
    volume = volumes[0] if volumes else _zeros(table)
    return pa.table([table["open_time"].cast(_TIME), *(table[name] for name in _PRICES), volume], schema=_CANDLES)


def _funding(table: pa.Table) -> pa.Table:
    """Return rates in the form of candles: the rate is the open.

    Binance's times are late by some milliseconds. The mark candle of the same time must have the same one.
    """
    time = pc.round_temporal(table["calc_time"], unit="minute").cast(_TIME)
    zeros = _zeros(table)
    return pa.table([time, table["last_funding_rate"], zeros, zeros, zeros, zeros], schema=_CANDLES)


def _zeros(table: pa.Table) -> pa.Array[Any]:
    return pa.repeat(0.0, table.num_rows)


def _trades(table: pa.Table) -> pa.Table:
    of_orders = "agg_trade_id" in table.column_names
    id_, time, amount = ("agg_trade_id", "transact_time", "quantity") if of_orders else ("id", "time", "qty")
    # The maker is the buyer, so the order that came later sold.
    side = pc.if_else(table["is_buyer_maker"], "sell", "buy")
    return pa.table(
        [
            table[time].cast(pa.timestamp("ms", "UTC"), safe=False).cast(pa.int64()),
            table[id_].cast(pa.string()),
            pa.nulls(table.num_rows, pa.string()),
            side,
            table["price"],
            table[amount],
            pc.multiply(table["price"], table[amount]),
        ],
        schema=_TRADES,
    )
