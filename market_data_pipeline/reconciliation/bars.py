"""Types for bars and trades of both sides of a reconciliation, and tolerances for equal sums.

Reading klines belongs to ``reconciliation/rebuild.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.checks.ordering import Floats, Ints, floats, ints
from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.series import DataType, SeriesKey

RELATIVE = 1e-9
"""Relative tolerance for sums of float64."""

VALUE_DECIMALS = 1e-8
"""Tolerance per trade. Binance rounds a bar's value (quote volume, in cm base volume) to eight decimals."""

AGGREGATED_US = 100_000
"""Futures: longest time between trades of one aggTrade, in microseconds."""

_SHOWN_IDS = 20


_AGG_TRADE_COLUMNS = ["agg_trade_id", "first_trade_id", "last_trade_id", "transact_time", "price", "quantity"]
_SINGLE_TRADE_COLUMNS = ["id", "time", "price", "qty"]


def trade_columns(source: SeriesKey) -> list[str]:
    """Return the columns of a source that :func:`trades_of` needs."""
    return _SINGLE_TRADE_COLUMNS if source.data_type is DataType.TRADES else _AGG_TRADE_COLUMNS


@dataclass(frozen=True, slots=True)
class DaySides:
    """Both sides of a day in the lake.

    Attributes:
        klines: File of the klines, of the day or of its month.
        source: File of the source series, of the day or of its month.
        klines_sha256: Content hash of the klines, from the ledger.
        source_sha256: Content hash of the source.
        before_findings: Findings on the klines of the previous day. They may reach past midnight.
        before: The source's file of the previous day. None if it is not stored.
        after: The source's file of the next day. None if it is not stored.
    """

    day: date
    klines: Path
    source: Path
    klines_sha256: str | None = None
    source_sha256: str | None = None
    klines_findings: tuple[Finding, ...] = ()
    source_findings: tuple[Finding, ...] = ()
    before_findings: tuple[Finding, ...] = ()
    before: Path | None = None
    after: Path | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """A bar on one side. Prices are None without trades. Values are in the quote asset, in cm in the base asset."""

    open: float | None
    high: float | None
    low: float | None
    close: float | None
    volume: float
    value: float | None
    taker_volume: float
    taker_value: float | None
    count: int


NO_TRADE = Side(None, None, None, None, 0.0, 0.0, 0.0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class Bar:
    """A differing bar: ``at`` in microseconds since 1970 (UTC), both sides, and the number of source rows."""

    at: int
    klines: Side | None
    rebuilt: Side
    rows: int


def nearly_equal(one: float, other: float, trades: int = 0) -> bool:
    """Return True if two sums are equal within :data:`RELATIVE` and the rounding of each trade's value.

    Args:
        one: A sum of the klines.
        other: The same sum, rebuilt.
        trades: Number of rounded values. 0 for sums of quantities, which are not rounded.
    """
    return abs(one - other) <= RELATIVE * max(abs(one), abs(other)) + VALUE_DECIMALS * trades


def equal(field: str, one: float, other: float, trades: int) -> bool:
    """Return True if a value of the klines and its rebuilt one are equal."""
    if field in ("volume", "taker_volume"):
        return nearly_equal(one, other)
    return nearly_equal(one, other, trades) if field in ("value", "taker_value") else one == other


@dataclass(frozen=True, slots=True)
class Trades:
    """A day's trades without sentinel rows, ordered by id, and the ids of the sentinels.

    A single trade is like an aggTrade of one trade. ``single`` is then True.
    """

    ids: Ints
    first: Ints
    last: Ints
    at: Ints
    price: Floats
    quantity: Floats
    sentinels: Ints
    single: bool = False


def trades_of(table: pa.Table) -> Trades:
    """Return the trades of a table, ordered by id."""
    if "agg_trade_id" not in table.column_names:
        table = table.sort_by("id")
        ids, price, quantity = ints(table, "id"), floats(table, "price"), floats(table, "qty")
        return Trades(ids, ids, ids, ints(table, "time"), price, quantity, ids[:0], single=True)
    table = table.sort_by("agg_trade_id")
    real = pc.greater_equal(table.column("first_trade_id"), pa.scalar(0))
    rows = table.filter(real)
    sentinels = ints(table.filter(pc.invert(real)), "agg_trade_id")
    return Trades(
        ids=ints(rows, "agg_trade_id"),
        first=ints(rows, "first_trade_id"),
        last=ints(rows, "last_trade_id"),
        at=ints(rows, "transact_time"),
        price=floats(rows, "price"),
        quantity=floats(rows, "quantity"),
        sentinels=sentinels,
    )


def shown_ids(ids: Sequence[str]) -> str:
    """Return the first ids and the number of the others, for messages."""
    more = len(ids) - _SHOWN_IDS
    return ", ".join(ids[:_SHOWN_IDS]) + (f" and {more} more" if more > 0 else "")
