"""Generate an index of volatility and summaries of options from a seed. Other types do not belong here."""

from __future__ import annotations

from datetime import date, timedelta
from random import Random

from market_data_pipeline.clock import day_start_us
from market_data_pipeline.model.series import DataType
from market_data_pipeline.sandbox.generator import price_at_midnight, trading_hours_us
from market_data_pipeline.sandbox.rows import TextRows
from market_data_pipeline.sandbox.symbols import GeneratedSymbol

_SECOND_US = 1_000_000
_HOUR_US = 3_600 * _SECOND_US
_STRIKES = (0.9, 1.0, 1.1)
_NOUGHT, _BLANK = "0E-8", '""'


def bvol_index_rows(symbol: GeneratedSymbol, seed: int, day: date, now_us: int) -> TextRows:
    """Return the index of each second of a day up to now.

    Args:
        symbol: A listed symbol.
        seed: Selects one of many histories.
        day: A day on which the symbol is listed.
        now_us: The current time in microseconds since 1970 (UTC).
    """
    random = Random(f"{seed}/{symbol.symbol}/volatility/{day}")  # noqa: S311 - not for cryptography
    start, (opens, closes) = day_start_us(day), trading_hours_us(symbol, day)
    index = price_at_midnight(symbol, seed, day) / 10**symbol.price_decimals
    labels = [symbol.symbol, symbol.base_asset, symbol.quote_asset]
    rows = []
    for at in range(start + opens, min(start + closes, now_us + 1), _SECOND_US):
        index = max(index + random.uniform(-0.01, 0.01), 1.0)
        rows.append([str(at), *labels, f"{index:.4f}"])
    return TextRows(DataType.BVOL_INDEX, rows)


def eoh_summary_rows(symbol: GeneratedSymbol, seed: int, day: date, now_us: int) -> TextRows:
    """Return the summaries of a day up to now: three strikes of one expiry, both types, every hour.

    Options without trades have prices like ``0E-8``, and some quotes are blank.

    Args:
        symbol: The underlying of the options.
        seed: Selects one of many histories.
        day: A day on which it is listed.
        now_us: The current time in microseconds since 1970 (UTC).
    """
    random = Random(f"{seed}/{symbol.symbol}/options/{day}")  # noqa: S311 - not for cryptography
    spot = price_at_midnight(symbol, seed, day) / 10**symbol.price_decimals
    expiry = f"{day + timedelta(7 + (4 - day.weekday()) % 7):%y%m%d}"
    rows = []
    for hour in range(24):
        at = day_start_us(day) + hour * _HOUR_US
        if at + _HOUR_US > now_us:
            break
        for share in _STRIKES:
            strike = f"{expiry}-{round(spot * share, -3):.0f}"
            for side in ("C", "P"):
                mark = max(spot * (1 - share if side == "C" else share - 1), 0) + spot * random.uniform(0.01, 0.05)
                traded = random.random() < 0.5
                prices = [mark, mark * 1.02, mark * 0.97, mark * 1.01]
                amounts = [random.uniform(0.1, 9), random.uniform(100, 9_000)]
                shown = [f"{value:.8f}" if traded else _NOUGHT for value in (*prices, *amounts)]
                quotes = [f"{value:.8f}" for value in (mark * 0.99, mark * 1.01, 1.5, 2.5, 0.45, 0.5)]
                if random.random() < 0.1:
                    quotes[4] = _BLANK
                greeks = [0.5 if side == "C" else -0.5, 0.0001, 20.0, -30.0]
                state = [f"{value:.8f}" for value in (mark, 0.48, *greeks, random.uniform(1, 500), 1_000_000.0)]
                name = f"{symbol.base_asset}-{strike}-{side}"
                rows.append([str(at), str(hour), name, symbol.symbol, side, strike, *shown, *quotes, *state])
    return TextRows(DataType.EOH_SUMMARY, rows)
