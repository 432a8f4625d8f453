"""``exchangeInfo`` of the lake: the symbols that it stores, delisted ones included."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date
from typing import Any

from market_data_pipeline import clock
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import known_series
from market_data_pipeline.model import binance_dialect as dialect
from market_data_pipeline.model.binance_dialect import SymbolRules
from market_data_pipeline.model.series import DataType, ListingSpans, Market, SeriesKey
from market_data_pipeline.universe.resolved import Listings

_DECIMALS = 8
"""Decimals of prices and quantities without a snapshot. Binance writes no more."""

_TRADING = "TRADING"
_QUARTERS = "CURRENT_QUARTER"


def listed_symbols(layout: Layout, market: Market, listings: Listings) -> list[SymbolRules]:
    """Return the symbols of a market that the lake stores, in order.

    Trading rules come from the newest snapshot of exchangeInfo with the symbol. Without one, the steps of prices and
    quantities are the smallest that Binance writes, and the assets are read from the symbol. A symbol trades unless its
    listing has ended, or the newest snapshot has another status.
    """
    symbols = sorted({key.symbol for key in known_series(layout) if key.market is market and _is_of_symbol(key)})
    newest, rules = _snapshots(layout, market, symbols)

    def listed(name: str) -> SymbolRules:
        listing = listings.get((market, name), ListingSpans())
        is_newer = newest is not None and listing.first is not None and listing.first >= newest.day
        trading = listing.last is None and (newest is None or is_newer or name in newest.trading)
        return _listed(market, name, rules.get(name), listing.first, trading=trading)

    return [listed(name) for name in symbols]


def _is_of_symbol(key: SeriesKey) -> bool:
    return key.data_type is not DataType.INDEX_PRICE_KLINES or key.market is Market.UM or "_" in key.symbol


@dataclass(frozen=True, slots=True)
class _Newest:
    """The newest snapshot: its day, and the symbols that trade in it."""

    day: date
    trading: frozenset[str]


def _listed(
    market: Market, symbol: str, rules: Mapping[str, Any] | None, listed: date | None, *, trading: bool
) -> SymbolRules:
    first = listed or (rules or {}).get("onboard_date")
    if rules is None:
        base, quote = dialect.assets_of(market, symbol)
        step = 10.0**-_DECIMALS
        filters, precisions = dialect.filters_of(step, step), (_DECIMALS, _DECIMALS)
    else:
        base, quote = rules["base_asset"], rules["quote_asset"]
        filters = json.loads(rules["filters"])
        precisions = _decimals_of(rules["tick_size"]), _decimals_of(rules["step_size"])
    size = (rules or {}).get("contract_size")
    return SymbolRules(
        symbol=symbol,
        trading=trading,
        base_asset=base,
        quote_asset=quote,
        precisions=precisions,
        onboard=_milliseconds(first) if first is not None else None,
        contract_size=int(size) if size is not None else dialect.contract_size_of(market, symbol),
        contract_type=(rules or {}).get("contract_type") or _contract_of(symbol),
        filters=filters,
    )


def _snapshots(
    layout: Layout, market: Market, symbols: Iterable[str]
) -> tuple[_Newest | None, dict[str, dict[str, Any]]]:
    """Return the newest snapshot, None without one, and the newest rules of each symbol."""
    wanted, newest, found = set(symbols), None, dict[str, dict[str, Any]]()
    for rows in _newest_first(layout, market):
        if newest is None:
            newest = _Newest(rows[0]["day"], frozenset(str(row["symbol"]) for row in rows if row["status"] == _TRADING))
        for row in rows:
            if row["symbol"] in wanted:
                found.setdefault(str(row["symbol"]), row)
        if wanted <= found.keys():
            break
    return newest, found


def _newest_first(layout: Layout, market: Market) -> Iterator[list[dict[str, Any]]]:
    folder = layout.exchange_info(market)
    for day in sorted(storage.list_named(folder), reverse=True):
        yield parquet.read_table(folder / f"{day}.parquet").to_pylist()


def _contract_of(symbol: str) -> str:
    return "PERPETUAL" if symbol.partition("_")[2] in ("", "PERP") else _QUARTERS


def _decimals_of(step: float | None) -> int:
    """Return the decimals of a step.

    >>> [_decimals_of(step) for step in (0.01, 1.0, 10.0, 5e-8, None)]
    [2, 0, 0, 8, 8]
    """
    text = f"{step:.8f}" if step else "0.00000001"
    return len(text.rstrip("0").partition(".")[2])


def _milliseconds(day: date) -> int:
    return clock.to_us(clock.midnight(day).replace(tzinfo=UTC)) // 1_000
