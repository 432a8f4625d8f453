"""Random aggTrades with gaps, and the bars that plain Python makes of them: a second opinion on ``sql/bars.py``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline_tests.support.small_lake import SmallLake

Row = dict[str, Any]
DAY = timedelta(days=1)
EVER, FOREVER = datetime(1970, 1, 1), datetime(2100, 1, 1)  # noqa: DTZ001 - the lake's times have no zone


@dataclass(frozen=True)
class Trade:
    """A row of aggTrades. Price and quantity are exact; without them it is no trade."""

    id: int
    at: datetime
    price: Decimal
    quantity: Decimal
    fills: int
    sold: bool
    is_real: bool = True

    @property
    def day(self) -> datetime:
        """The midnight before it."""
        return self.at.replace(hour=0, minute=0, second=0, microsecond=0)


def put_trades(
    lake: SmallLake,
    key: SeriesKey,
    days: Iterable[date],
    seed: int,
    *,
    a_day: int = 100,
    missing: float = 0.0,
    sentinels: float = 0.0,
    until: datetime | None = None,
) -> list[Trade]:
    """Write days of random trades, all consecutive in ids, of which some are missing. Return those that are stored.

    Args:
        days: The days that are stored. Days between them have trades that are missing.
        missing: Share of trades that are left out.
        sentinels: Share of rows that are no trades.
        until: The last day is provisional, and ends here.
    """
    random = np.random.default_rng(seed)
    wanted, stored = sorted(days), []
    number, fill = 1000, 5000
    for n in range((wanted[-1] - wanted[0]).days + 1):
        day = wanted[0] + n * timedelta(days=1)
        midnight = datetime.combine(day, datetime.min.time())
        of_day = []
        for second in np.sort(random.integers(0, 86_400, a_day)).tolist():
            number, fills = number + 1, int(random.integers(1, 5))
            trade = Trade(
                number,
                midnight + timedelta(seconds=second),
                Decimal(int(random.integers(1, 400))) / 100,
                Decimal(int(random.integers(1, 3000))) / 1000,
                fills,
                bool(random.random() < 0.5),
                bool(random.random() >= sentinels),
            )
            if random.random() >= missing and (until is None or day < wanted[-1] or trade.at < until):
                of_day.append(trade)
        if day in wanted:
            stored += of_day
            provisional = until is not None and day == wanted[-1]
            table, fill = _table(key, of_day, fill)
            at = until.replace(tzinfo=UTC) if provisional and until else None
            lake.note(key, lake.write_file(key, day, table=table, final=not provisional, fetched_at=at))
    return stored


def _table(key: SeriesKey, trades: Sequence[Trade], fill: int) -> tuple[pa.Table, int]:
    first = []
    for trade in trades:
        first.append(fill if trade.is_real else -1)
        fill += trade.fills
    columns: Row = {
        "symbol": [key.symbol] * len(trades),
        "agg_trade_id": [trade.id for trade in trades],
        "price": [float(trade.price) if trade.is_real else 0.0 for trade in trades],
        "quantity": [float(trade.quantity) if trade.is_real else 0.0 for trade in trades],
        "first_trade_id": first,
        "last_trade_id": [
            one + trade.fills - 1 if trade.is_real else -1 for one, trade in zip(first, trades, strict=True)
        ],
        "transact_time": [trade.at for trade in trades],
        "is_buyer_maker": [trade.sold for trade in trades],
        "is_best_match": [True] * len(trades),
    }
    schema = lake_schema(key.market, key.data_type)
    arrays: list[pa.Array[Any]] = [
        pa.array(columns[field.name]).dictionary_encode().cast(field.type)
        if pa.types.is_dictionary(field.type)
        else pa.array(columns[field.name]).cast(field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema), fill


@dataclass(frozen=True)
class Hole:
    """A range of time, both ends included, in which trades are missing, and the rows on its sides."""

    first: datetime
    last: datetime
    rows: frozenset[int] = frozenset()


def holes(trades: Sequence[Trade], stored_until: datetime | None) -> list[Hole]:
    """Return where trades are missing.

    Args:
        stored_until: Trades after this are not stored. None: it is unknown what comes before and after the rows.
    """
    found = []
    moment = timedelta(microseconds=1)
    for one, other in pairwise(trades):
        if other.id > one.id + 1:
            if other.day - one.day > DAY:
                found.append(Hole(one.day + DAY, other.day - moment))
            else:
                found.append(Hole(one.at, other.at, frozenset((one.id, other.id))))
    if trades and stored_until is not None:
        found += [Hole(EVER, trades[0].day - moment), Hole(stored_until, FOREVER)]
    return found


def value_of(trade: Trade, contract: int | None) -> Decimal:
    """The value of a trade: in the quote asset, or in the base asset of a coin-margined contract."""
    return trade.price * trade.quantity if contract is None else trade.quantity * contract / trade.price


def sums_of(trades: Sequence[Trade], contract: int | None = None) -> Row:
    """The columns of a bar that follow from its trades alone."""
    real = [trade for trade in trades if trade.is_real]
    bought = [trade for trade in real if not trade.sold]
    prices = [trade.price for trade in real]
    value = "quote" if contract is None else "base"
    return {
        "open": prices[0],
        "high": max(prices),
        "low": min(prices),
        "close": prices[-1],
        "volume": sum(trade.quantity for trade in real),
        f"{value}_volume": sum(value_of(trade, contract) for trade in real),
        "count": sum(trade.fills for trade in real),
        "taker_buy_volume": sum(trade.quantity for trade in bought),
        f"taker_buy_{value}_volume": sum(value_of(trade, contract) for trade in bought),
        "agg_trades": len(real),
    }


@dataclass(frozen=True)
class Group:
    """The trades of one bar.

    Attributes:
        key: Begin of its interval, or its day and number in the day.
        missing: Trades that are missing since the group before.
    """

    key: Any
    trades: list[Trade]
    missing: int


def groups(trades: Sequence[Trade], keys: Iterable[Any]) -> list[Group]:
    """Return the trades by their keys, in order."""
    by_key: dict[Any, list[Trade]] = defaultdict(list)
    for key, trade in zip(keys, trades, strict=True):
        by_key[key].append(trade)
    found: list[Group] = []
    before = trades[0].id - 1 if trades else 0
    for key, some in by_key.items():
        found.append(Group(key, some, some[-1].id - before - len(some)))
        before = some[-1].id
    return found


def begin_of(moment: datetime, step: timedelta) -> datetime:
    """The begin of the interval that contains a moment. Days count from 1970-01-02."""
    origin = datetime(1970, 1, 2) if step % DAY == timedelta(0) else datetime(1970, 1, 1)  # noqa: DTZ001
    return moment - (moment - origin) % step


def of_intervals(
    trades: Sequence[Trade], step: timedelta, start: datetime, end: datetime, stored_until: Callable[[Trade], datetime]
) -> list[tuple[Group, Row]]:
    """Return the groups of the intervals that begin in a range, with the columns that all such bars have."""
    some = [trade for trade in trades if start <= begin_of(trade.at, step) < end]
    until = stored_until(some[-1]) if some else FOREVER
    found = []
    for group in groups(some, (begin_of(trade.at, step) for trade in some)):
        closes = group.key + step - timedelta(microseconds=1)
        row = {
            "open_time": group.key,
            "close_time": closes,
            "missing": group.missing,
            "complete": not any(hole.first <= closes and hole.last >= group.key for hole in holes(some, until)),
        }
        if any(trade.is_real for trade in group.trades):
            found.append((group, row))
    return found


def event_bars(
    trades: Sequence[Trade],
    weight: Callable[[Trade], Decimal],
    threshold: Decimal,
    start: datetime,
    end: datetime,
    contract: int | None = None,
) -> list[Row]:
    """Return the bars that close on a trade, which begin in a range."""
    some = [trade for trade in trades if start - DAY < trade.day < end]
    keys, totals, total, day = [], {}, Decimal(0), None
    for trade in some:
        total = total if trade.day == day else Decimal(0)
        day = trade.day
        keys.append((day, int(total // threshold) + 1))
        total += weight(trade) if trade.is_real else 0
        totals[keys[-1]] = total
    broken = frozenset[int]().union(*(hole.rows for hole in holes(some, None)))
    rows = []
    for group in groups(some, keys):
        real = [trade for trade in group.trades if trade.is_real]
        if not real or not start <= real[0].at < end:
            continue
        day, number = group.key
        rows.append(
            {
                "day": day.date(),
                "bar": number,
                "open_time": real[0].at,
                "close_time": real[-1].at,
                **sums_of(group.trades, contract),
                "first_agg_trade_id": real[0].id,
                "last_agg_trade_id": real[-1].id,
                "missing": group.missing,
                "complete": totals[group.key] >= number * threshold
                and broken.isdisjoint(trade.id for trade in group.trades),
            }
        )
    return rows
