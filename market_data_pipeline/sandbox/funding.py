"""Generate funding rates from a seed. Text forms of other types do not belong here (``rows.py``)."""

from __future__ import annotations

import hashlib
from datetime import date
from decimal import Decimal

from market_data_pipeline.clock import day_start_us
from market_data_pipeline.model.series import DataType
from market_data_pipeline.sandbox.generator import DAY_US, trading_hours_us
from market_data_pipeline.sandbox.rows import TextRows
from market_data_pipeline.sandbox.symbols import GeneratedSymbol

_HOUR_US = 3_600_000_000
_MOST_LATE_MS = 17
_LAST_PLACE = Decimal("0.00000001")


def funding_hours(symbol: GeneratedSymbol, day: date) -> int:
    """Return the hours between two payments on a day."""
    return next((hours for first, hours in reversed(symbol.funding) if first <= day), 8)


def funding_rows(symbol: GeneratedSymbol, seed: int, day: date, now_us: int) -> TextRows:
    """Return the payments of a day up to now as the archive has them.

    Payments are at multiples of the interval, up to 17 milliseconds late. Every tenth rate is so small that its text
    has an exponent, as in Binance's files.

    Args:
        symbol: A listed symbol.
        seed: Selects one of many histories.
        day: A day on which the symbol is listed.
        now_us: The current time in microseconds since 1970 (UTC).
    """
    hours, start = funding_hours(symbol, day), day_start_us(day)
    opens, closes = trading_hours_us(symbol, day)
    rows = []
    for after in range(0, DAY_US, hours * _HOUR_US):
        digest = hashlib.blake2b(f"{seed}/{symbol.market}/{symbol.symbol}/{start + after}".encode()).digest()
        late = int.from_bytes(digest[:2], "big") % (_MOST_LATE_MS + 1)
        at = start + after + late * 1_000
        if opens <= after < closes and at <= now_us and not (day == symbol.listed and after == 0):
            units = int.from_bytes(digest[2:6], "big") % 40_000 - 10_000
            rate = (units // 1_000 if digest[6] % 10 == 0 else units) * _LAST_PLACE
            rows.append([str(at), str(hours), str(rate)])  # Decimal writes small numbers as Java does
    return TextRows(DataType.FUNDING_RATE, rows)
