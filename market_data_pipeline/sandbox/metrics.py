"""Generate open interest and long/short ratios from a seed. Other types do not belong here (``rows.py``)."""

from __future__ import annotations

import hashlib
from datetime import date

from market_data_pipeline.clock import day_start_us
from market_data_pipeline.model.series import DataType, Market
from market_data_pipeline.sandbox.generator import DAY_US, price_at_midnight, trading_hours_us
from market_data_pipeline.sandbox.rows import TextRows
from market_data_pipeline.sandbox.symbols import GeneratedSymbol

PERIOD_US = 300_000_000
LABELLED_BY_START = date(2026, 6, 25)
"""First day on which archives of um have the start of a period. Before, they have its end. cm always has the start."""

_BLANK = '""'
_BLANK_EVERY = 48


def metrics_rows(symbol: GeneratedSymbol, seed: int, day: date, now_us: int) -> TextRows:
    """Return the periods of a day that are over by now, labelled by their start, as the archive has them.

    In cm, three ratios of every 48th row are blank, as in some files of Binance.

    Args:
        symbol: A listed symbol.
        seed: Selects one of many histories.
        day: A day on which the symbol is listed.
        now_us: The current time in microseconds since 1970 (UTC).
    """
    start, (opens, closes) = day_start_us(day), trading_hours_us(symbol, day)
    price = price_at_midnight(symbol, seed, day) / 10**symbol.price_decimals
    rows = []
    for number in range(DAY_US // PERIOD_US):
        after = number * PERIOD_US
        if not opens <= after < closes or start + after + PERIOD_US > now_us:
            continue
        digest = hashlib.blake2b(f"{seed}/{symbol.market}/{symbol.symbol}/{start + after}".encode()).digest()
        interest = 90_000 + int.from_bytes(digest[:3], "big") / 1_000
        value = interest * price if symbol.market is Market.UM else interest * symbol.contract_size / price
        ratios = [f"{0.5 + int.from_bytes(digest[at : at + 2], 'big') / 32_768:.8f}" for at in (3, 5, 7, 9)]
        if symbol.market is Market.CM and number % _BLANK_EVERY == 0:
            ratios[:3] = [_BLANK] * 3
        rows.append([str(start + after), symbol.symbol, f"{interest:.8f}", f"{value:.8f}", *ratios])
    ends = symbol.market is Market.UM and day < LABELLED_BY_START
    return TextRows(DataType.METRICS, rows, PERIOD_US if ends else 0)
