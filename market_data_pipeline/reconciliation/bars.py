"""Bars and trades as both sides of a reconciliation have them, and when two sums count as equal.

Reading klines belongs to ``reconciliation/rebuild.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.checks.ordering import Floats, Ints, floats, ints
from market_data_pipeline.lake import parquet
from market_data_pipeline.model.findings import Finding

RELATIVE = 1e-9
"""How far sums of float64 may be apart."""

VALUE_DECIMALS = 1e-8
"""Binance writes a bar's value (quote volume, in cm base volume) with eight decimals: each trade may be rounded."""

AGGREGATED_US = 100_000
"""Futures: how long the trades of one aggTrade may be apart, in microseconds."""

_SHOWN_IDS = 20


TRADE_COLUMNS = ["agg_trade_id", "first_trade_id", "last_trade_id", "transact_time", "price", "quantity"]


@dataclass(frozen=True, slots=True)
class DaySides:
    """Both sides of a day, as they lie in the lake.

    Attributes:
        day: The UTC day.
        klines: File of the klines, the day's own or that of its month.
        source: File of the series that they are rebuilt from, likewise.
        klines_sha256: Hash of the klines, as in the ledger.
        source_sha256: Hash of the source.
        klines_findings: What the checks found in the klines.
        source_findings: What the checks found in the source.
        before_findings: What the checks found in the klines of the day before, which may reach over midnight.
        before: The source's file of the day before; None where it is not held.
        after: The source's file of the day after.
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
    """A bar as one side has it: prices None where it has no trade; the value is the quote's, in cm the base's."""

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
    """A differing bar: ``at`` in microseconds since 1970 (UTC), and how many rows of the source it was made of."""

    at: int
    klines: Side | None
    rebuilt: Side
    rows: int


def near(one: float, other: float, trades: int = 0) -> bool:
    """Whether two sums are the same: within :data:`RELATIVE`, and the rounding of each trade's value.

    Args:
        one: A sum of the klines.
        other: The same sum, rebuilt.
        trades: How many values were rounded; 0 for sums of quantities, which are not.
    """
    return abs(one - other) <= RELATIVE * max(abs(one), abs(other)) + VALUE_DECIMALS * trades


def equal(field: str, one: float, other: float, trades: int) -> bool:
    """Return True if a value of the klines and its rebuilt one are equal."""
    if field in ("volume", "taker_volume"):
        return near(one, other)
    return near(one, other, trades) if field in ("value", "taker_value") else one == other


def moment(microseconds: int) -> datetime:
    """Microseconds since 1970 as the lake's tables keep times: UTC, without zone."""
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).replace(
        tzinfo=None, microsecond=microseconds % 1_000_000
    )


@dataclass(frozen=True, slots=True)
class Trades:
    """A day's aggTrades without sentinel rows, in the order of their ids, and the sentinels' ids."""

    ids: Ints
    first: Ints
    last: Ints
    at: Ints
    price: Floats
    quantity: Floats
    sentinels: Ints


def trades_of(table: pa.Table) -> Trades:
    """Return the trades of a table, in the order of their ids."""
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
    """Return the first ids in words, and how many more there are."""
    more = len(ids) - _SHOWN_IDS
    return ", ".join(ids[:_SHOWN_IDS]) + (f" and {more} more" if more > 0 else "")


def read_trades(path: Path) -> Trades:
    """Read the trades of a file."""
    return trades_of(parquet.read_table(path, TRADE_COLUMNS))
