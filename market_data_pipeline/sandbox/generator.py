"""Generate trades from a seed, and the klines that follow from them exactly.

Everything is a pure function of (seed, symbol, day), so days can be generated in any order. Prices, quantities and
turnovers are integers in units of the last decimal, so sums are exact. Text formats and faults other than outages do
not belong here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from market_data_pipeline.clock import day_start_us
from market_data_pipeline.model.series import Market
from market_data_pipeline.sandbox.symbols import GeneratedSymbol

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

DAY_US = 86_400_000_000
MICROSECONDS_FROM = date(2025, 1, 1)
"""First day on which spot times are in microseconds. Earlier days and all futures are in milliseconds."""
_SQUEEZE_US = 60_000_000
"""Microseconds after an outage into which its trades are moved."""
_LAST_DAY = date(2100, 1, 1)
_WAVES = ((512, 0.9), (128, 0.25), (32, 0.1), (8, 0.05), (1, 0.012))
"""Waves that sum up to an asset's price at midnight: period in days, amplitude of the logarithm."""
_TURNS = 1 / 3
"""Share of trades whose taker changes sides. PEPEUSDT on 2024-10-27 and APEUSDT on 2024-10-18 both have 0.33."""
_MOVES = 1 / 3
"""Share of trades before which bid and ask move. With `_TURNS`, 44 % of trades repeat the previous price. In PEPEUSDT
and APEUSDT, on the same days, 33 % and 69 % do."""
_BASIS = 0.001
"""Largest relative difference of a market from an asset's common price, in either direction."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A span without trades: ``start`` inclusive, ``end`` exclusive, in microseconds since 1970 (UTC)."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class GeneratedTrades:
    """The aggTrades of one symbol and day, ordered by id. All arrays have the same length.

    Prices and quantities are in units of the symbol's last decimals, times in microseconds since 1970 (UTC).
    """

    symbol: GeneratedSymbol
    day: date
    opening: int
    """Price of the last trade before this day."""
    agg_trade_id: Integers
    price: Integers
    quantity: Integers
    first_trade_id: Integers
    last_trade_id: Integers
    time: Integers
    is_buyer_maker: Flags

    def __len__(self) -> int:
        return len(self.time)

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return 6 * self.time.nbytes + self.is_buyer_maker.nbytes

    def until(self, now_us: int) -> GeneratedTrades:
        """Return the trades up to a moment, inclusive. It is in microseconds since 1970 (UTC)."""
        n = int(np.searchsorted(self.time, now_us, "right"))
        if n == len(self):
            return self
        cut = slice(0, n)
        return GeneratedTrades(
            self.symbol,
            self.day,
            self.opening,
            self.agg_trade_id[cut],
            self.price[cut],
            self.quantity[cut],
            self.first_trade_id[cut],
            self.last_trade_id[cut],
            self.time[cut],
            self.is_buyer_maker[cut],
        )


@dataclass(frozen=True, slots=True)
class Klines:
    """The klines of one symbol, interval and day.

    Times are in microseconds since 1970 (UTC). Prices and volumes are in units of the symbol's last decimals.
    ``turnover`` is in the quote asset and has the decimals of price and quantity together. In cm it is in the base
    asset with eight decimals, and volumes count contracts.
    """

    symbol: GeneratedSymbol
    interval_us: int
    open_time: Integers
    open: Integers
    high: Integers
    low: Integers
    close: Integers
    volume: Integers
    turnover: Integers
    count: Integers
    taker_volume: Integers
    taker_turnover: Integers


def moment_us(moment: datetime) -> int:
    """Convert a zone-aware moment to microseconds since 1970 (UTC)."""
    delta = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def resolution_us(market: Market, day: date) -> int:
    """Return the resolution of trade times on a day: 1 or 1,000 microseconds."""
    return 1 if market is Market.SPOT and day >= MICROSECONDS_FROM else 1_000


def _random(*words: object) -> np.random.Generator:
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def _unit(*words: object) -> float:
    """Return a number in [-1, 1), determined by the words."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**63 - 1.0


@lru_cache(maxsize=100_000)
def price_at_midnight(symbol: GeneratedSymbol, seed: int, day: date) -> int:
    """Return the price of the last trade before a day. The first trade of the day has the same price."""
    exponent = _BASIS * _unit(seed, symbol.market, symbol.symbol, "basis", day)
    for period, amplitude in _WAVES:
        whole, rest = divmod(day.toordinal(), period)
        left, right = (_unit(seed, symbol.base_asset, "price", period, k) for k in (whole, whole + 1))
        exponent += amplitude * (left + (right - left) * rest / period)
    units = symbol.price * 10.0**symbol.price_decimals * float(np.exp(exponent))
    return max(round(units), 1)


def trading_hours_us(symbol: GeneratedSymbol, day: date) -> tuple[int, int]:
    """Return the start and the exclusive end of trading on a day, in microseconds after midnight."""
    opens = symbol.opens if day == symbol.listed else time(0)
    closes = symbol.closes if day == symbol.delisted else None
    start = (opens.hour * 3600 + opens.minute * 60 + opens.second) * 1_000_000
    end = DAY_US if closes is None else (closes.hour * 3600 + closes.minute * 60 + closes.second) * 1_000_000
    return start, end


def trades_on(symbol: GeneratedSymbol, day: date) -> bool:
    """Return True if a symbol is listed on a day."""
    inside = symbol.listed <= day <= (symbol.delisted or _LAST_DAY)
    return inside and not any(first <= day <= last for first, last in symbol.breaks)


@dataclass(frozen=True, slots=True)
class _Calendar:
    """Numbers of aggTrades, trade ids and unpublished ids per day since the listing.

    ``…_before`` are the cumulative sums before each day.
    """

    agg_trades: Integers
    trade_ids: Integers
    holes: Integers
    agg_trades_before: Integers
    trade_ids_before: Integers


@lru_cache(maxsize=1_000)
def _calendar(symbol: GeneratedSymbol, seed: int) -> _Calendar:
    days = ((symbol.delisted or _LAST_DAY) - symbol.listed).days + 1
    random = _random(seed, symbol.market, symbol.symbol, "calendar").random((days, 3))
    hours = np.full(days, 1.0)
    hours[0] = 1 - trading_hours_us(symbol, symbol.listed)[0] / DAY_US
    if symbol.delisted:
        hours[-1] = trading_hours_us(symbol, symbol.delisted)[1] / DAY_US
    # At least two, because the first and the last trade of a day join it to its neighbours.
    agg_trades = np.maximum((symbol.trades_per_day * hours * (0.9 + 0.2 * random[:, 0])).astype(np.int64), 2)
    away = np.zeros(days, np.bool_)
    for first, last in symbol.breaks:
        away[(first - symbol.listed).days : (last - symbol.listed).days + 1] = True
    agg_trades[away] = 0
    extra = (agg_trades * (0.4 + 0.4 * random[:, 1])).astype(np.int64)
    # um does not publish trades of the insurance fund and of auto-deleveraging, which leaves holes in the trade ids.
    holes = (
        np.where(away, 0, (agg_trades * 0.004 * random[:, 2]).astype(np.int64) + 1)
        if symbol.market is Market.UM
        else np.zeros_like(extra)
    )
    trade_ids = agg_trades + extra + holes
    return _Calendar(
        agg_trades,
        trade_ids,
        holes,
        np.concatenate(([0], np.cumsum(agg_trades))),
        np.concatenate(([0], np.cumsum(trade_ids))),
    )


def _first_id(symbol: GeneratedSymbol) -> int:
    return 0 if symbol.market is Market.SPOT else 1


def day_of_agg_trade(symbol: GeneratedSymbol, seed: int, agg_trade_id: int) -> date:
    """Return the past or future day of an aggTrade id. Ids below the first give the day of the listing."""
    before = _calendar(symbol, seed).agg_trades_before
    index = int(np.searchsorted(before, agg_trade_id - _first_id(symbol), "right")) - 1
    return date.fromordinal(symbol.listed.toordinal() + min(max(index, 0), len(before) - 2))


def generate_trades(symbol: GeneratedSymbol, seed: int, day: date, outages: tuple[Outage, ...] = ()) -> GeneratedTrades:
    """Generate all aggTrades of a day.

    Args:
        symbol: the symbol to trade.
        seed: selects one of many histories.
        day: a day on which the symbol is listed.
        outages: spans without trades. Their trades move into the minute after the outage, or before it if it lasts
            beyond the day, because ids stay contiguous in real outages. An outage of the whole day leaves no trades.
    """
    calendar = _calendar(symbol, seed)
    index = (day - symbol.listed).days
    n = int(calendar.agg_trades[index])
    random = _random(seed, symbol.market, symbol.symbol, day)
    times = day_start_us(day) + _times(symbol, day, n, random)

    sizes = 1 + np.bincount(
        random.integers(0, n, int(calendar.trade_ids[index] - n - calendar.holes[index])), minlength=n
    )
    holes = np.bincount(random.integers(0, n, int(calendar.holes[index])), minlength=n)
    last = _first_id(symbol) + int(calendar.trade_ids_before[index]) + np.cumsum(sizes + holes) - 1

    opening, closing = price_at_midnight(symbol, seed, day), price_at_midnight(symbol, seed, _next(day))
    is_buyer_maker = _sides(n, random)
    price = _prices(opening, closing, is_buyer_maker, random)
    unit = 10.0**symbol.quantity_decimals
    per_quantity = symbol.contract_size if symbol.market is Market.CM else opening / 10**symbol.price_decimals
    mean = max(symbol.notional / per_quantity * unit, 1.0)
    quantity = 1 + (random.standard_exponential(n, np.float32) ** 2 * (mean / 2)).astype(np.int64)
    trades = GeneratedTrades(
        symbol,
        day,
        opening,
        np.arange(n, dtype=np.int64) + _first_id(symbol) + int(calendar.agg_trades_before[index]),
        price,
        quantity,
        last - sizes + 1,
        last,
        times,
        is_buyer_maker,
    )
    for outage in outages:
        trades = _displace(trades, outage)
    return trades


def _next(day: date) -> date:
    return date.fromordinal(day.toordinal() + 1)


def _times(symbol: GeneratedSymbol, day: date, n: int, random: np.random.Generator) -> Integers:
    """Return sorted times after midnight, strictly inside the trading hours. Some trades share a time."""
    start, end = trading_hours_us(symbol, day)
    step = resolution_us(symbol.market, day)
    span = (end - start) // step
    share = random.random(n)
    share.sort()
    share += 0.06 * np.sin(2 * np.pi * share + 2.0) - 0.06 * np.sin(2.0)  # busier and quieter hours
    offsets = np.clip((share * span).astype(np.int64), 1, span - 1)
    own = random.integers(0, 5, n, np.uint8) > 0
    own[0] = True
    offsets = offsets[np.maximum.accumulate(np.where(own, np.arange(n), 0))]
    shifted: Integers = start + offsets * step
    return shifted


def _sides(n: int, random: np.random.Generator) -> Flags:
    """Return True for each trade whose buyer is the maker. Takers buy and sell in runs."""
    turns = random.random(n, np.float32) < _TURNS
    sides: Flags = np.cumsum(turns) % 2 == 1
    return sides


def _prices(opening: int, closing: int, is_buyer_maker: Flags, random: np.random.Generator) -> Integers:
    """Return prices at a bid and an ask one tick apart, which walk from the opening to the closing price.

    The walk deviates by about 2 % a day. The first trade has exactly the opening price, the last the closing price.
    """
    n = len(is_buyer_maker)
    moves = random.random(n, np.float32) < _MOVES
    walk = np.cumsum(np.where(moves, random.standard_normal(n, np.float32), np.float32(0)), dtype=np.float64)
    walk -= walk[0]
    walk *= 0.02 * opening / np.sqrt(n * _MOVES)
    # Spread the drift to the closing price over the moves too, so that bid and ask are constant between moves.
    share = np.cumsum(moves) / max(int(np.count_nonzero(moves)), 1)
    walk += (share - share[0]) * (closing - opening - walk[-1])
    price: Integers = opening + np.rint(walk).astype(np.int64) + ~is_buyer_maker
    price[0], price[-1] = opening, closing
    return np.maximum(price, 1)


def _displace(trades: GeneratedTrades, outage: Outage) -> GeneratedTrades:
    day_start = day_start_us(trades.day)
    start, end = max(outage.start, day_start), min(outage.end, day_start + DAY_US)
    if start >= end:
        return trades
    if start == day_start and end == day_start + DAY_US:
        return trades.until(day_start)
    step = resolution_us(trades.symbol.market, trades.day)
    times = trades.time.copy()
    if end < day_start + DAY_US:
        low, high, room = (
            start,
            min(end + _SQUEEZE_US, day_start + DAY_US),
            (end, min(end + _SQUEEZE_US, day_start + DAY_US)),
        )
    else:
        low, high, room = max(start - _SQUEEZE_US, day_start), end, (max(start - _SQUEEZE_US, day_start), start)
    moved = (times >= low) & (times < high)
    scaled = (times[moved] - low).astype(np.float64) * ((room[1] - room[0] - step) / (high - low))
    times[moved] = room[0] + np.maximum(scaled.astype(np.int64) // step * step, step)
    return GeneratedTrades(
        trades.symbol,
        trades.day,
        trades.opening,
        trades.agg_trade_id,
        trades.price,
        trades.quantity,
        trades.first_trade_id,
        trades.last_trade_id,
        times,
        trades.is_buyer_maker,
    )


def turnover(trades: GeneratedTrades) -> Integers:
    """Return the value of each trade: price x quantity.

    In cm it is contracts x size / price, in the base asset with eight decimals.
    """
    if trades.symbol.market is not Market.CM:
        product: Integers = trades.price * trades.quantity
        return product
    dollars = trades.quantity * (trades.symbol.contract_size * 10 ** (8 + trades.symbol.price_decimals))
    rounded: Integers = (dollars + trades.price // 2) // trades.price
    return rounded


def klines_of(trades: GeneratedTrades, interval_us: int, until_us: int | None = None) -> Klines:
    """Compute the klines of a day's trades.

    A kline without trades is flat, as Binance writes it: the last price, volume 0, count 0. There are no klines before
    the listing or after the delisting. The last kline is the one that contains ``until_us``.

    Args:
        trades: the trades of the day, up to ``until_us`` if it is set.
        interval_us: length of a kline in microseconds.
        until_us: the present moment in microseconds since 1970 (UTC), if the day is not over. None means the whole day.
    """
    symbol, start = trades.symbol, day_start_us(trades.day)
    opens, closes = trading_hours_us(symbol, trades.day)
    first = (int(trades.time[0] - start) if trades.day == symbol.listed and len(trades) else opens) // interval_us
    end = -(-closes // interval_us)
    if until_us is not None:
        end = min(end, (until_us - start) // interval_us + 1)
    end = max(end, first)
    edges = start + np.arange(first, end + 1, dtype=np.int64) * interval_us
    bounds = np.searchsorted(trades.time, edges, "left")
    traded = bounds[1:] > bounds[:-1]
    heads = bounds[:-1][traded]

    close = np.full(end - first, trades.opening, np.int64)
    close[traded] = trades.price[bounds[1:][traded] - 1]
    newest = (
        np.maximum.accumulate(np.where(traded, np.arange(end - first), -1)) if end > first else np.zeros(0, np.int64)
    )
    close = np.where(newest >= 0, close[newest], trades.opening)

    def gather(ufunc: np.ufunc, values: Integers, otherwise: Integers | int) -> Integers:
        out = np.empty(end - first, np.int64)
        out[:] = otherwise
        if len(heads):
            out[traded] = ufunc.reduceat(values[: bounds[-1]], heads)
        return out

    value = turnover(trades)
    taker_buys = ~trades.is_buyer_maker
    opened = close.copy()
    opened[traded] = trades.price[heads]
    return Klines(
        symbol,
        interval_us,
        edges[:-1],
        opened,
        gather(np.maximum, trades.price, close),
        gather(np.minimum, trades.price, close),
        close,
        gather(np.add, trades.quantity, 0),
        gather(np.add, value, 0),
        gather(np.add, trades.last_trade_id - trades.first_trade_id + 1, 0),
        gather(np.add, trades.quantity * taker_buys, 0),
        gather(np.add, value * taker_buys, 0),
    )
