"""Generate the depth of the order book, and forced orders, from a seed. Other types do not belong here."""

from __future__ import annotations

from datetime import date
from random import Random

from market_data_pipeline.clock import day_start_us
from market_data_pipeline.model.series import DataType, Market
from market_data_pipeline.sandbox.generator import DAY_US, price_at_midnight, trading_hours_us
from market_data_pipeline.sandbox.rows import TextRows
from market_data_pipeline.sandbox.symbols import GeneratedSymbol

TWELVE_BANDS = date(2026, 1, 15)
"""First day with twelve bands. Its first half still has ten."""

_SECOND_US = 1_000_000
_OUTER = (1, 2, 3, 4, 5)


def book_depth_rows(symbol: GeneratedSymbol, seed: int, day: date, now_us: int) -> TextRows:
    """Return the snapshots of a day up to now, 24 to 37 seconds apart, with bids first.

    Args:
        symbol: A listed symbol.
        seed: Selects one of many histories.
        day: A day on which the symbol is listed.
        now_us: The current time in microseconds since 1970 (UTC).
    """
    random = Random(f"{seed}/{symbol.market}/{symbol.symbol}/book/{day}")  # noqa: S311 - not for cryptography
    start, (opens, closes) = day_start_us(day), trading_hours_us(symbol, day)
    price = price_at_midnight(symbol, seed, day) / 10**symbol.price_decimals
    rows = []
    after = opens + random.randint(1, 20) * _SECOND_US
    while after < closes and start + after <= now_us:
        twelve = day > TWELVE_BANDS or (day == TWELVE_BANDS and after >= DAY_US // 2)
        bands = (0.2, *_OUTER) if twelve else _OUTER
        sides = []
        for sign in (-1, 1):
            depth, side = 0.0, []
            for band in bands:
                depth += random.uniform(100, 1_000)
                at = price * (1 + sign * band / 200)
                value = depth * at if symbol.market is Market.UM else depth * symbol.contract_size / at
                shown = f"{sign * band:.2f}" if twelve else f"{sign * band}"
                side.append([str(start + after), shown, f"{depth:.8f}", f"{value:.8f}"])
            sides.append(side)
        rows += [*reversed(sides[0]), *sides[1]]
        after += random.randint(24, 37) * _SECOND_US
    return TextRows(DataType.BOOK_DEPTH, rows)


def liquidation_rows(symbol: GeneratedSymbol, seed: int, day: date, now_us: int) -> TextRows:
    """Return the forced orders of a day up to now, at most one per second. In um, each row is repeated.

    Args:
        symbol: A listed symbol.
        seed: Selects one of many histories.
        day: A day on which the symbol is listed.
        now_us: The current time in microseconds since 1970 (UTC).
    """
    random = Random(f"{seed}/{symbol.market}/{symbol.symbol}/forced/{day}")  # noqa: S311 - not for cryptography
    start, (opens, closes) = day_start_us(day), trading_hours_us(symbol, day)
    mean = price_at_midnight(symbol, seed, day) / 10**symbol.price_decimals
    rows = []
    seconds = random.sample(range(opens // _SECOND_US, closes // _SECOND_US), k=random.randint(10, 60))
    for second in sorted(seconds):
        at = start + second * _SECOND_US + random.randrange(1_000) * 1_000
        price, quantity = mean * random.uniform(0.97, 1.03), random.randint(1, 5_000) / 1_000
        shown = f"{quantity:.3f}"
        row = [str(at), random.choice(("BUY", "SELL")), "LIMIT", "IOC", shown, f"{price:.2f}", f"{price * 0.999:.2f}"]
        rows.append([*row, "FILLED", shown, shown])
    kept = [row for row in rows if int(row[0]) <= now_us]
    twice = 2 if symbol.market is Market.UM else 1
    return TextRows(DataType.LIQUIDATION_SNAPSHOT, [row for row in kept for _ in range(twice)])


def book_ticker_rows(symbol: GeneratedSymbol, seed: int, day: date, now_us: int) -> TextRows:
    """Return changes of the best bid and ask of a day up to now, some seconds apart.

    Args:
        symbol: A listed symbol.
        seed: Selects one of many histories.
        day: A day on which the symbol is listed.
        now_us: The current time in microseconds since 1970 (UTC).
    """
    random = Random(f"{seed}/{symbol.market}/{symbol.symbol}/ticker/{day}")  # noqa: S311 - not for cryptography
    start, (opens, closes) = day_start_us(day), trading_hours_us(symbol, day)
    tick, bid = 10.0**-symbol.price_decimals, price_at_midnight(symbol, seed, day) / 10**symbol.price_decimals
    after, update, rows = opens, day.toordinal() * 1_000_000, []
    while (after := after + random.randint(1, 20_000) * 1_000) < closes and start + after <= now_us:
        update += random.randint(1, 40)
        bid = max(bid + random.randint(-3, 3) * tick, tick)
        prices = [f"{price:.{symbol.price_decimals}f}" for price in (bid, bid + tick)]
        quantities = [f"{random.randint(1, 9_999) / 1_000:.3f}" for _ in prices]
        event = start + after + random.randint(0, 9) * 1_000
        rows.append([str(update), prices[0], quantities[0], prices[1], quantities[1], str(start + after), str(event)])
    return TextRows(DataType.BOOK_TICKER, rows)
