"""Daily snapshots of ``exchangeInfo``: status, trading rules and dates of all symbols of a market.

Binance publishes no history of them. A snapshot is one file per day, and the first one of a day stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.errors import RestAnswerError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.schema import TIME
from market_data_pipeline.model.series import Market

_TEXT, _DAY, _NUMBER = pa.string(), pa.date32(), pa.float64()
_COLUMNS: dict[str, pa.DataType] = {
    "symbol": _TEXT,
    "day": _DAY,
    "taken_at": TIME,
    "status": _TEXT,
    "base_asset": _TEXT,
    "quote_asset": _TEXT,
    "contract_type": _TEXT,
    "underlying_type": _TEXT,
    "tick_size": _NUMBER,
    "step_size": _NUMBER,
    "min_quantity": _NUMBER,
    "min_notional": _NUMBER,
    "contract_size": _NUMBER,
    "onboard_date": _DAY,
    "delivery_date": _DAY,
    "filters": _TEXT,
}
EXCHANGE_INFO_SCHEMA = pa.schema(_COLUMNS)
"""Columns of a snapshot. A value that the market does not have is null. ``filters`` is Binance's own JSON."""

_PERPETUAL_UNTIL = date(2100, 1, 1)
"""Binance gives perpetual contracts a delivery date in the year 2100."""


def snapshot_of(answer: object, taken_at: datetime) -> pa.Table:
    """Return a snapshot, ordered by symbol.

    Args:
        answer: The JSON of ``exchangeInfo``.
        taken_at: Time of the request, zone-aware.

    Raises:
        RestAnswerError: The answer has no symbols, or not the form of Binance.
    """
    try:
        symbols = answer["symbols"]  # type: ignore[index]  # checked by the except below
        rows = [_row(symbol, taken_at.astimezone(UTC)) for symbol in symbols]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RestAnswerError(f"exchangeInfo does not have the expected form: {error!r}.") from error
    if not rows:
        raise RestAnswerError("exchangeInfo has no symbols.")
    return pa.Table.from_pylist(sorted(rows, key=lambda row: str(row["symbol"])), schema=EXCHANGE_INFO_SCHEMA)


def _row(symbol: Mapping[str, Any], taken_at: datetime) -> dict[str, object]:
    filters = {one["filterType"]: one for one in symbol["filters"]}
    notional = filters.get("NOTIONAL") or filters.get("MIN_NOTIONAL") or {}
    lot = filters.get("LOT_SIZE", {})
    delivery = _day(symbol.get("deliveryDate"))
    return {
        "symbol": symbol["symbol"],
        "day": taken_at.date(),
        "taken_at": taken_at.replace(tzinfo=None),
        "status": symbol["contractStatus"] if "contractStatus" in symbol else symbol["status"],
        "base_asset": symbol["baseAsset"],
        "quote_asset": symbol["quoteAsset"],
        "contract_type": symbol.get("contractType"),
        "underlying_type": symbol.get("underlyingType"),
        "tick_size": _number(filters.get("PRICE_FILTER", {}).get("tickSize")),
        "step_size": _number(lot.get("stepSize")),
        "min_quantity": _number(lot.get("minQty")),
        "min_notional": _number(notional.get("minNotional", notional.get("notional"))),
        "contract_size": _number(symbol.get("contractSize")),
        "onboard_date": _day(symbol.get("onboardDate")),
        "delivery_date": delivery if delivery is None or delivery < _PERPETUAL_UNTIL else None,
        "filters": json.dumps(symbol["filters"]),
    }


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


def _day(milliseconds: object) -> date | None:
    return clock.day_of_us(int(str(milliseconds)) * 1000) if milliseconds else None


def store_snapshot(layout: Layout, market: Market, table: pa.Table) -> bool:
    """Store a snapshot. Return False if its day has one already.

    Raises:
        StorageError: The data folder is not writable.
    """
    path = layout.exchange_info(market) / f"{table['day'][0].as_py()}.parquet"
    if storage.head(path) is not None:
        return False
    parquet.write_table(path, table)
    return True
