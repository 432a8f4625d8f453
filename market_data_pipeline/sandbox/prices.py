"""Generate candles of mark price, index price and premium, which follow from the klines of the same exchange.

The index is the price of the klines. The premium is a wave of the minute, and the mark price is the index with the
premium. Klines and trades do not belong here (``generator.py``).
"""

from __future__ import annotations

import numpy as np

from market_data_pipeline.model.series import DataType
from market_data_pipeline.sandbox.generator import Integers, Klines
from market_data_pipeline.sandbox.rows import TextRows

_PLACES = 8
_ONE = 10**_PLACES
_MINUTE_US = 60_000_000
_LARGEST = 50_000
"""Largest premium in units of 1e-8: 0.05 %."""


def premium(minutes: Integers) -> Integers:
    """Return the premium at minutes since 1970, in units of 1e-8."""
    wave = np.sin(minutes / 97.0) + np.sin(minutes / 1_009.0)
    units: Integers = np.round(wave * (_LARGEST / 2)).astype(np.int64)
    return units


def price_rows(data_type: DataType, klines: Klines) -> TextRows:
    """Return candles of a price.

    Args:
        data_type: Mark price, index price or premium.
        klines: Klines of the symbol and the day, without outages: prices do not stop.
    """
    scale = 10 ** (_PLACES - klines.symbol.price_decimals)
    index = [column * scale for column in (klines.open, klines.high, klines.low, klines.close)]
    minutes = max(klines.interval_us // _MINUTE_US, 1)
    waves = premium(klines.open_time[:, None] // _MINUTE_US + np.arange(minutes)[None, :])
    over = [waves[:, 0], waves.max(axis=1), waves.min(axis=1), waves[:, -1]]
    if data_type is DataType.INDEX_PRICE_KLINES:
        columns = index
    elif data_type is DataType.PREMIUM_INDEX_KLINES:
        columns = over
    else:
        columns = [price + price // 10**4 * part // 10**4 for price, part in zip(index, over, strict=True)]
    samples = str(klines.interval_us // 1_000_000)
    return TextRows(
        data_type,
        [
            [str(opened), *map(_text, prices), "0", str(opened + klines.interval_us - 1), "0", samples, "0", "0", "0"]
            for opened, *prices in zip(klines.open_time.tolist(), *(c.tolist() for c in columns), strict=True)
        ],
    )


def _text(units: int) -> str:
    whole, part = divmod(abs(units), _ONE)
    return f"{'-' if units < 0 else ''}{whole}.{part:08d}"
