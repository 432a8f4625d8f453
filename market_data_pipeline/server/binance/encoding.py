"""Rows as Binance's JSON: arrays of candles, objects of trades, rates and statistics. Tables in, bytes out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.model.binance_dialect import STATISTICS
from market_data_pipeline.model.series import DataType, Market

_DECIMAL = pa.decimal128(28, 8)
_SHORTEST = 1e-6
"""Arrow writes smaller decimals with an exponent."""

_Piece: TypeAlias = "str | pa.Array[Any]"


def candles_json(rows: pa.Table, market: Market, data_type: DataType, divisor: int) -> bytes:
    """Return candles as arrays of 12 values.

    Args:
        divisor: 1 for times in microseconds, 1,000 for milliseconds.
    """
    value = "base" if market is Market.CM else "quote"
    prices = [text for name in ("open", "high", "low", "close") for text in (',"', decimals(rows[name]), '"')]
    begin, end = times(rows["open_time"], divisor), times(rows["close_time"], divisor)
    if data_type is not DataType.KLINES:  # a price without trades: the lake stores no column that is always 0
        return _joined(["[", begin, *prices, ',"0",', end, ',"0",0,"0","0","0"]'], rows.num_rows)
    pieces: list[_Piece] = ["[", begin, *prices, ',"', decimals(rows["volume"]), '",', end, ',"']
    pieces += [decimals(rows[f"{value}_volume"]), '",', _text(rows["count"]), ',"']
    pieces += [decimals(rows["taker_buy_volume"]), '","', decimals(rows[f"taker_buy_{value}_volume"]), '","0"]']
    return _joined(pieces, rows.num_rows)


def agg_trades_json(rows: pa.Table, market: Market, divisor: int) -> bytes:
    """Return aggTrades as objects. ``nq`` of um is not in Binance's archive, so it is left out."""
    pieces: list[_Piece] = ['{"a":', _text(rows["agg_trade_id"]), ',"p":"', decimals(rows["price"])]
    pieces += ['","q":"', decimals(rows["quantity"]), '","f":', _text(rows["first_trade_id"])]
    pieces += [',"l":', _text(rows["last_trade_id"]), ',"T":', times(rows["transact_time"], divisor)]
    pieces += [',"m":', _text(rows["is_buyer_maker"])]
    if market is Market.SPOT:
        pieces += [',"M":', _text(rows["is_best_match"])]
    return _joined([*pieces, "}"], rows.num_rows)


def trades_json(rows: pa.Table, market: Market, divisor: int) -> bytes:
    """Return single trades as objects."""
    value = "base" if market is Market.CM else "quote"
    pieces: list[_Piece] = ['{"id":', _text(rows["id"]), ',"price":"', decimals(rows["price"])]
    pieces += ['","qty":"', decimals(rows["qty"]), f'","{value}Qty":"', decimals(rows[f"{value}_qty"])]
    pieces += ['","time":', times(rows["time"], divisor), ',"isBuyerMaker":', _text(rows["is_buyer_maker"])]
    if market is Market.SPOT:
        pieces += [',"isBestMatch":', _text(rows["is_best_match"])]
    return _joined([*pieces, "}"], rows.num_rows)


def funding_rates_json(rows: pa.Table, symbol: str) -> bytes:
    """Return funding rates as objects. ``markPrice`` is not in Binance's archive, so it is left out."""
    pieces: list[_Piece] = [f'{{"symbol":{_quoted(symbol)},"fundingTime":', times(rows["calc_time"], 1_000)]
    pieces += [',"fundingRate":"', decimals(rows["last_funding_rate"]), '"}']
    return _joined(pieces, rows.num_rows)


def statistics_json(rows: pa.Table, symbol: str, endpoint: str) -> bytes:
    """Return statistics as objects. Periods for which Binance has no value are left out."""
    fields: Mapping[str, str] = STATISTICS[endpoint]
    for column in fields.values():
        rows = rows.filter(pc.is_valid(rows[column]))
    pieces: list[_Piece] = [f'{{"symbol":{_quoted(symbol)}']
    for name, column in fields.items():
        pieces += [f',"{name}":"', decimals(rows[column]), '"']
    pieces += [',"timestamp":', times(rows["create_time"], 1_000), "}"]
    return _joined(pieces, rows.num_rows)


def decimals(column: pa.ChunkedArray[Any]) -> pa.Array[Any]:
    """Return numbers as text with eight decimals.

    >>> decimals(pa.chunked_array([[0.0, 1e-8, 0.5, 1e13, -0.0001]])).to_pylist()
    ['0.00000000', '0.00000001', '0.50000000', '10000000000000.00000000', '-0.00010000']
    """
    values = _whole(column)
    numbers = values.to_numpy(zero_copy_only=False)
    try:
        texts = values.cast(_DECIMAL).cast(pa.string())
    except pa.ArrowInvalid:  # 20 digits before the point, or no number
        return pa.array([f"{value:.8f}" for value in numbers], pa.string())
    small = np.abs(numbers) < _SHORTEST
    if not small.any():
        return texts
    short = pa.array([f"{value:.8f}" for value in numbers[small]], pa.string())
    whole: pa.Array[Any] = pc.replace_with_mask(texts, pa.array(small), short)
    return whole


def times(column: pa.ChunkedArray[Any], divisor: int) -> pa.Array[Any]:
    """Return moments as whole numbers since 1970, as text."""
    numbers = _whole(column).cast(pa.int64())
    return (numbers if divisor == 1 else pc.divide(numbers, divisor)).cast(pa.string())


def _text(column: pa.ChunkedArray[Any]) -> pa.Array[Any]:
    return _whole(column).cast(pa.string())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _whole(column: pa.ChunkedArray[Any]) -> pa.Array[Any]:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _joined(pieces: Iterable[_Piece], rows: int) -> bytes:
    if not rows:
        return b"[]"
    parts: list[Any] = [pa.scalar(piece) if isinstance(piece, str) else piece for piece in pieces]
    lines: Any = pc.binary_join_element_wise(*parts, pa.scalar(""))
    return b"[" + ",".join(lines.to_pylist()).encode() + b"]"
