"""Asset keys: the names of series and of markets' coverage in Dagster, made and parsed here only.

The last part names the series without the others, because Dagster's graphs show only that part. The words in it
are in ``model.datasets.WORDS``. Keys of version 0.1 are parsed here, too. Other names do not belong here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import dagster as dg

from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.datasets import WORDS
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey

RECONCILIATION = "reconciliation"
"""Name of the check and of the job that compare klines with their source."""

_COVERAGE = "coverage"
_EXCHANGE_INFO = "exchange_info"
_LIVE = "live"
_ICEBERG = "iceberg"
LIVE_EQUALS_ARCHIVE = "live_equals_archive"
"""Name of the check of a market's live feed."""
EQUALS_LAKE = "equals_lake"
"""Name of the check of a market's Iceberg tables."""


def asset_key_of(key: SeriesKey) -> dg.AssetKey:
    """Return the asset key of a series, e.g. ``binance/spot/klines/BTCUSDT_1m``."""
    name = "_".join(filter(None, (encode_symbol(key.symbol), WORDS[key.data_type].suffix, key.interval)))
    return dg.AssetKey([key.exchange, key.market.value, key.data_type.value, name])


def series_of(asset_key: dg.AssetKey) -> SeriesKey:
    """Return the series of an asset key: the inverse of :func:`asset_key_of`.

    Raises:
        ValueError: The asset is not a series.
    """
    if len(asset_key.path) != 4:
        raise ValueError(f"{asset_key.to_user_string()} is not the asset of a series.")
    exchange, market, word, name = asset_key.path
    data_type, interval = DataType(word), None
    if data_type.has_interval:
        name, _, interval = name.rpartition("_")
    if suffix := WORDS[data_type].suffix:
        name, _, found = name.rpartition("_")
        if found != suffix:
            raise ValueError(f"{asset_key.to_user_string()} does not end with {suffix}.")
    return SeriesKey(exchange, Market(market), data_type, decode_symbol(name), interval)


def coverage_key_of(market: Market) -> dg.AssetKey:
    """Return the asset key of a market's coverage, e.g. ``binance/spot/spot_coverage``."""
    return dg.AssetKey([EXCHANGE, market.value, f"{market.value}_{_COVERAGE}"])


def exchange_info_key_of(market: Market) -> dg.AssetKey:
    """Return the asset key of a market's snapshots of exchangeInfo, e.g. ``binance/spot/spot_exchange_info``."""
    return dg.AssetKey([EXCHANGE, market.value, f"{market.value}_{_EXCHANGE_INFO}"])


def live_key_of(market: Market) -> dg.AssetKey:
    """Return the asset key of a market's live feed, e.g. ``binance/spot/spot_live``."""
    return dg.AssetKey([EXCHANGE, market.value, f"{market.value}_{_LIVE}"])


def iceberg_key_of(market: Market) -> dg.AssetKey:
    """Return the asset key of a market's Iceberg tables, e.g. ``binance/spot/spot_iceberg``."""
    return dg.AssetKey([EXCHANGE, market.value, f"{market.value}_{_ICEBERG}"])


def is_series(asset_key: dg.AssetKey) -> bool:
    """Return True if an asset is a series, False if it is about a whole market."""
    return not asset_key.path[-1].endswith((f"_{_COVERAGE}", f"_{_EXCHANGE_INFO}", f"_{_LIVE}", f"_{_ICEBERG}"))


def renamed(path: Sequence[str]) -> dg.AssetKey | None:
    """Return the present key of an asset that version 0.1 named otherwise. Return None for any other path.

    >>> renamed(["binance", "spot", "klines", "BTCUSDT", "1m"]).to_user_string()
    'binance/spot/klines/BTCUSDT_1m'
    >>> renamed(["binance", "spot", "klines", "BTCUSDT_1m"])
    """
    exchange, market, word, *names = path if len(path) > 2 else ("", "", "")
    if exchange != EXCHANGE or market not in set(Market):
        return None
    try:
        match word, *names:
            case ["coverage"]:
                return coverage_key_of(Market(market))
            case ["klines", symbol, interval]:
                return _key_of(Market(market), DataType.KLINES, symbol, interval)
            case [("aggTrades" | "tradeProfile"), symbol] if not symbol.endswith(f"_{word}"):
                return _key_of(Market(market), DataType(word), symbol)
    except UsageError:  # the asset of another project
        return None
    return None


def _key_of(market: Market, data_type: DataType, name: str, interval: str | None = None) -> dg.AssetKey:
    return asset_key_of(SeriesKey(EXCHANGE, market, data_type, decode_symbol(name), interval))


def encode_symbol(symbol: str) -> str:
    """Encode a symbol with the characters that Dagster allows in names (``[A-Za-z0-9_]``), reversibly.

    Every other character, and a lower-case ``u``, becomes ``u<hex code point>_``. Almost all symbols of Binance
    consist of upper-case letters, digits and ``_`` and stay unchanged.

    >>> encode_symbol("BTCUSD_PERP")
    'BTCUSD_PERP'
    >>> encode_symbol("币USDT")
    'u5e01_USDT'
    """
    return re.sub(r"[^A-Za-tv-z0-9_]", lambda m: f"u{ord(m.group()):x}_", symbol)


def decode_symbol(name: str) -> str:
    """Decode a name of :func:`encode_symbol`."""
    return re.sub(r"u([0-9a-f]+)_", lambda m: chr(int(m.group(1), 16)), name)
