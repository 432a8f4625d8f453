"""Format ``nautilus``: a Parquet catalog of NautilusTrader with instruments, bars, trades and funding rates.

Prices and sizes are integers of 16 bytes, as in its builds for Linux and macOS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.export.pairs import Pair, Pairs
from market_data_pipeline.export.rows import SeriesRows
from market_data_pipeline.model.series import DataType, Market, SeriesKey

NAUTILUS_TYPES = {
    DataType.KLINES: "bar",
    DataType.MARK_PRICE_KLINES: "bar",
    DataType.AGG_TRADES: "trade_tick",
    DataType.TRADES: "trade_tick",
    DataType.FUNDING_RATE: "funding_rate_update",
}
"""The folder of a data type in a catalog."""

_PRECISION = 8
"""Decimals of all prices and sizes. Binance has no more, so today's tick size cannot be too coarse for old rows."""

_RAW_DECIMALS = 16
_RAW = pa.binary(16)
_LARGEST = 1.7e13
"""Largest price. Sizes may be twice as large."""

_UNITS = {"s": "SECOND", "m": "MINUTE", "h": "HOUR", "d": "DAY"}
_VENUE = "BINANCE"
_BUYER, _SELLER = 1, 2
_DELIVERY_TIME = time(8, tzinfo=UTC)
_CONTRACT_SIZES = {"BTC": 100.0}
_CONTRACT_SIZE = 10.0
"""US dollars of a cm contract, if no snapshot of exchangeInfo has it."""

_TIMES: dict[str, pa.DataType] = {"ts_event": pa.uint64(), "ts_init": pa.uint64()}
_BAR_COLUMNS = ("open", "high", "low", "close", "volume")
_FIELDS: dict[str, dict[str, pa.DataType]] = {
    "bar": dict.fromkeys(_BAR_COLUMNS, _RAW),
    "trade_tick": {"price": _RAW, "size": _RAW, "aggressor_side": pa.uint8(), "trade_id": pa.string()},
    "funding_rate_update": {"rate": pa.binary(), "interval": pa.uint16(), "next_funding_ns": pa.uint64()},
}
_NULLABLE = frozenset({"interval", "next_funding_ns"})


@dataclass(frozen=True, slots=True)
class _Catalog:
    """Names of a series in a catalog."""

    key: SeriesKey
    pair: Pair

    @property
    def instrument(self) -> str:
        symbol = self.key.symbol
        if self.key.market is not Market.SPOT and self.pair.delivery is None:
            symbol = f"{symbol.removesuffix('_PERP')}-PERP"
        return f"{symbol}.{_VENUE}"

    @property
    def identifier(self) -> str:
        """Return the name of the series' folder: its bar type, or its instrument."""
        if self.key.interval is None:
            return self.instrument
        price = "MARK" if self.key.data_type is DataType.MARK_PRICE_KLINES else "LAST"
        number, unit = self.key.interval[:-1], _UNITS[self.key.interval[-1]]
        return f"{self.instrument}-{number}-{unit}-{price}-EXTERNAL"

    @property
    def folder(self) -> str:
        return f"data/{NAUTILUS_TYPES[self.key.data_type]}/{self.identifier}"

    def schema(self) -> pa.Schema:
        kind = NAUTILUS_TYPES[self.key.data_type]
        metadata: dict[bytes | str, bytes | str] = {"bar_type" if kind == "bar" else "instrument_id": self.identifier}
        if _RAW in _FIELDS[kind].values():
            metadata |= {"price_precision": str(_PRECISION), "size_precision": str(_PRECISION)}
        fields = {**_FIELDS[kind], **_TIMES}
        return pa.schema([pa.field(name, type_, name in _NULLABLE) for name, type_ in fields.items()], metadata)


def nautilus_path(key: SeriesKey, pairs: Pairs) -> str:
    """Return the folder of a series' file below the target."""
    return _Catalog(key, pairs.of(key)).folder


def write_nautilus(series: SeriesRows, folder: Path, pairs: Pairs) -> None:
    """Write a series as one file of a catalog, and its instrument.

    Raises:
        MarketDataError: A value has more decimals than a catalog, or is too large for it.
    """
    names = _Catalog(series.key, pairs.of(series.key))
    _write_instrument(folder, names)
    place, schema = folder / names.folder, names.schema()
    place.mkdir(parents=True, exist_ok=True)
    made, first, newest = place / "made.parquet", None, 0
    with pq.ParquetWriter(made, schema, compression="zstd") as writer:
        for _, rows in series.parts():
            columns, event = _CONVERSIONS[NAUTILUS_TYPES[series.key.data_type]](series.key, rows)
            # Trades are in the order of their ids. A time before that of an earlier trade is read at the later one.
            init = np.maximum.accumulate(np.maximum(event, newest))
            first, newest = int(init[0]) if first is None else first, int(init[-1])
            writer.write_table(pa.table([*columns, pa.array(event), pa.array(init)], schema=schema))
    if first is None:
        made.unlink()
        return
    made.rename(place / f"{_file_time(first)}_{_file_time(newest)}.parquet")


def _file_time(nanoseconds: int) -> str:
    moment = datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H-%M-%S}-{nanoseconds % 1_000_000_000:09}Z"


# --- rows ----------------------------------------------------------------------------------------------------------

_Columns: TypeAlias = "list[pa.Array[Any] | pa.ChunkedArray[Any]]"
_Converted: TypeAlias = "tuple[_Columns, np.ndarray[Any, np.dtype[np.uint64]]]"


def _bars(key: SeriesKey, table: pa.Table) -> _Converted:
    """Return bars. Their time is the close of the candle."""
    zeros = pa.repeat(0.0, table.num_rows)
    columns: _Columns = [
        _raw(key, table[name].combine_chunks() if name in table.column_names else zeros) for name in _BAR_COLUMNS
    ]
    return columns, _nanoseconds(table["close_time"])


def _ticks(key: SeriesKey, table: pa.Table) -> _Converted:
    of_orders = "agg_trade_id" in table.column_names
    id_, when, size = ("agg_trade_id", "transact_time", "quantity") if of_orders else ("id", "time", "qty")
    side = pc.if_else(table["is_buyer_maker"], pa.scalar(_SELLER, pa.uint8()), pa.scalar(_BUYER, pa.uint8()))
    columns: _Columns = [
        _raw(key, table["price"].combine_chunks()),
        _raw(key, table[size].combine_chunks()),
        side,
        table[id_].cast(pa.string()),
    ]
    return columns, _nanoseconds(table[when])


def _funding(_: SeriesKey, table: pa.Table) -> _Converted:
    """Return rates as text in JSON, and minutes until the next one."""
    rates = [f'"{rate!r}"'.encode() for rate in table["last_funding_rate"].to_pylist()]
    minutes = pc.multiply(table["funding_interval_hours"], 60).cast(pa.uint16())
    columns: _Columns = [pa.array(rates, pa.binary()), minutes, pa.nulls(table.num_rows, pa.uint64())]
    return columns, _nanoseconds(table["calc_time"])


_CONVERSIONS: dict[str, Callable[[SeriesKey, pa.Table], _Converted]] = {
    "bar": _bars,
    "trade_tick": _ticks,
    "funding_rate_update": _funding,
}


def _nanoseconds(times: pa.ChunkedArray[Any]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return times.cast(pa.timestamp("ns", "UTC")).cast(pa.int64()).to_numpy().astype(np.uint64)


def _raw(key: SeriesKey, values: pa.Array[Any]) -> pa.Array[Any]:
    """Return numbers as integers of 16 bytes, in units of 1e-16."""
    numbers = values.to_numpy(zero_copy_only=False)
    scale = 10.0**_PRECISION
    finer = np.abs(np.rint(numbers * scale) / scale - numbers) > 1e-12 + 1e-15 * np.abs(numbers)
    if finer.any() or (np.abs(numbers) > _LARGEST).any():
        number = numbers[np.argmax(finer | (np.abs(numbers) > _LARGEST))]
        raise MarketDataError(
            f"{key} has the value {number!r}. A nautilus catalog has {_PRECISION} decimals and values up to "
            f"{_LARGEST:g}. Export the series as parquet."
        )
    exact = values.cast(pa.decimal128(38, _PRECISION)).cast(pa.decimal128(38, _RAW_DECIMALS))
    return exact.view(_RAW)


# --- instruments ---------------------------------------------------------------------------------------------------


def _words(*names: str) -> dict[str, pa.DataType]:
    return {name: pa.dictionary(pa.int16(), pa.string()) for name in names}


_BEFORE_ASSETS = {"id": pa.dictionary(pa.int64(), pa.string()), "raw_symbol": pa.string()}
_AFTER_ASSETS = {
    **dict.fromkeys(("price_precision", "size_precision"), pa.uint8()),
    **_words("price_increment", "size_increment", "multiplier", "lot_size", "max_quantity", "min_quantity"),
    **_words("max_notional", "min_notional", "max_price", "min_price"),
    **dict.fromkeys(("margin_init", "margin_maint", "maker_fee", "taker_fee"), pa.string()),
    "info": pa.binary(),
    **_TIMES,
}
_SETTLED = {**_words("settlement_currency"), "is_inverse": pa.bool_()}
_CLASSES = {
    "CurrencyPair": _words("base_currency", "quote_currency"),
    "CryptoPerpetual": {**_words("base_currency", "quote_currency"), **_SETTLED},
    "CryptoFuture": {
        **_words("underlying", "quote_currency"),
        **_SETTLED,
        **dict.fromkeys(("activation_ns", "expiration_ns"), pa.uint64()),
    },
}
"""Columns of the classes of instruments that differ."""

_FOLDERS = {"CurrencyPair": "currency_pair", "CryptoPerpetual": "crypto_perpetual", "CryptoFuture": "crypto_future"}


def _write_instrument(folder: Path, names: _Catalog) -> None:
    pair, market = names.pair, names.key.market
    class_ = "CurrencyPair" if market is Market.SPOT else "CryptoFuture" if pair.delivery else "CryptoPerpetual"
    inverse = market is Market.CM
    size = pair.contract_size or _CONTRACT_SIZES.get(pair.base, _CONTRACT_SIZE)
    values: dict[str, object] = {
        "id": names.instrument,
        "raw_symbol": names.key.symbol,
        "base_currency": pair.base,
        "underlying": pair.base,
        "quote_currency": pair.quote,
        "settlement_currency": pair.settle,
        "is_inverse": inverse,
        "activation_ns": 0,
        "price_precision": _PRECISION,
        "size_precision": _PRECISION,
        "price_increment": _decimal(pair.tick_size),
        "size_increment": _decimal(pair.step_size),
        "multiplier": f"{size:g}" if inverse else "1",
        **dict.fromkeys(("margin_init", "margin_maint", "maker_fee", "taker_fee"), "0"),
        "ts_event": 0,
        "ts_init": 0,
    }
    if pair.delivery is not None:
        delivered = datetime.combine(pair.delivery, _DELIVERY_TIME)
        values["expiration_ns"] = int(delivered.timestamp()) * 1_000_000_000
    schema = pa.schema({**_BEFORE_ASSETS, **_CLASSES[class_], **_AFTER_ASSETS}, metadata={"class": class_})
    place = folder / "data" / _FOLDERS[class_] / names.instrument
    place.mkdir(parents=True, exist_ok=True)
    row = {name: values.get(name) for name in schema.names}
    pq.write_table(pa.Table.from_pylist([row], schema), place / f"{_file_time(0)}_{_file_time(0)}.parquet")


def _decimal(step: float | None) -> str:
    """Return a step with all decimals; the smallest one if it is not known."""
    return f"{step or 10.0**-_PRECISION:.{_PRECISION}f}"
