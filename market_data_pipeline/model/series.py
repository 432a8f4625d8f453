"""The project's words: markets, data types, intervals and :class:`SeriesKey`, the one name that travels.

What belongs here: how a series is *named* on each of its four faces (Dagster, lake, archive, SQL).
What does not: what is inside the data of a series (``datasets.py``), and anything that touches a disk or a network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Self

from market_data_pipeline.errors import UsageError

EXCHANGE = "binance"


class Market(StrEnum):
    """The three markets of Binance that publish history: spot, USDⓈ-margined and coin-margined futures."""

    SPOT = "spot"
    UM = "um"
    CM = "cm"

    @property
    def archive_folder(self) -> str:
        """Folder of the market in the archive: ``spot``, ``futures/um`` or ``futures/cm``."""
        return "spot" if self is Market.SPOT else f"futures/{self.value}"


class DataType(StrEnum):
    """What a series is made of. The values are the archive's own folder names, except for derived types."""

    KLINES = "klines"
    AGG_TRADES = "aggTrades"
    TRADE_PROFILE = "tradeProfile"
    """Derived from aggTrades: one row a day; it has no archive."""

    @property
    def sql_name(self) -> str:
        """The name in SQL: ``klines``, ``agg_trades``, ``trade_profile``."""
        return re.sub(r"(?<!^)([A-Z])", r"_\1", self.value).lower()

    @property
    def has_interval(self) -> bool:
        """Whether its series are candles of an interval, each in a folder of its own, on a grid of times."""
        return self in _OF_CANDLES


_OF_CANDLES = frozenset({DataType.KLINES})


INTERVALS: dict[str, int] = {
    "1s": 1,
    "1m": 60,
    "3m": 180,
    "5m": 300,
    "15m": 900,
    "30m": 1800,
    "1h": 3600,
    "2h": 7200,
    "4h": 14400,
    "6h": 21600,
    "8h": 28800,
    "12h": 43200,
    "1d": 86400,
}
"""Kline intervals that have daily archives, with their length in seconds (3d, 1w and 1mo exist monthly only)."""


def interval_us(interval: str) -> int:
    """Length of a kline interval in microseconds."""
    return INTERVALS[interval] * 1_000_000


def encode_name(text: str) -> str:
    """Spell any symbol with the letters that Dagster allows in names (``[A-Za-z0-9_]``), reversibly.

    Every other character, and a lower-case ``u``, becomes ``u<hex code point>_``. The symbols that Binance
    lists are upper-case letters, digits and ``_``, so almost all of them stay as they are.

    >>> encode_name("BTCUSD_PERP")
    'BTCUSD_PERP'
    >>> encode_name("币USDT")
    'u5e01_USDT'
    """
    return re.sub(r"[^A-Za-tv-z0-9_]", lambda m: f"u{ord(m.group()):x}_", text)


def decode_name(name: str) -> str:
    """The inverse of :func:`encode_name`."""
    return re.sub(r"u([0-9a-f]+)_", lambda m: chr(int(m.group(1), 16)), name)


@dataclass(frozen=True, slots=True, order=True)
class SeriesKey:
    """One series: an exchange, a market, a data type, a symbol and, for candles, an interval.

    All four faces (asset key, files, archive, SQL) are derived from these fields; none is configured.

    Raises:
        UsageError: the interval is missing, superfluous, unknown, or not published for that market.
    """

    exchange: str
    market: Market
    data_type: DataType
    symbol: str
    interval: str | None = None
    """Kline interval such as ``1m``; None for data types that have none."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^\s/\\.][^\s/\\]*", self.symbol):
            raise UsageError(
                f"{self.symbol!r} cannot be a symbol: it is empty or has a space, a slash or a leading dot."
            )
        if self.data_type.has_interval:
            allowed = intervals_of(self.market)
            if self.interval not in allowed:
                raise UsageError(
                    f"There is no kline interval {self.interval!r} in {self.market}. There are: {', '.join(allowed)}."
                )
        elif self.interval is not None:
            raise UsageError(f"{self.data_type} has no interval, but {self.interval!r} was given.")

    # --- Dagster -------------------------------------------------------------------------------------------

    @property
    def asset_path(self) -> tuple[str, ...]:
        """Components of the Dagster asset key, e.g. ``("binance", "spot", "klines", "BTCUSDT", "1m")``."""
        parts = (self.exchange, self.market.value, self.data_type.value, encode_name(self.symbol))
        return (*parts, self.interval) if self.interval else parts

    @classmethod
    def from_asset_path(cls, path: tuple[str, ...] | list[str]) -> Self:
        """The inverse of :attr:`asset_path`."""
        exchange, market, data_type, symbol, *interval = path
        return cls(exchange, Market(market), DataType(data_type), decode_name(symbol), *interval)

    # --- lake ----------------------------------------------------------------------------------------------

    def _folder(self, cadence: str) -> str:
        parts = ("lake", self.exchange, self.market, self.data_type, cadence, self.symbol, self.interval)
        return "/".join(filter(None, parts))

    @property
    def folder(self) -> str:
        """Folder of the daily files below the root, mirroring the archive's."""
        return self._folder("daily")

    @property
    def months_folder(self) -> str:
        """Folder of the files of closed months below the root, mirroring the archive's."""
        return self._folder("monthly")

    def file(self, day: date) -> str:
        """Path of a day's Parquet file below the root."""
        return f"{self.folder}/{day.isoformat()}.parquet"

    def month_file(self, day: date) -> str:
        """Path below the root of the file of the month that ``day`` lies in, once that is closed."""
        return f"{self.months_folder}/{day.isoformat()[:7]}.parquet"

    @property
    def ledger(self) -> str:
        """Path of the series' ledger below the root."""
        parts = ("ledger", self.exchange, self.market, self.data_type, self.symbol, self.interval)
        return "/".join(filter(None, parts)) + ".parquet"

    # --- archive -------------------------------------------------------------------------------------------

    def _archive_name(self, period: str) -> str:
        return f"{self.symbol}-{self.interval or self.data_type.value}-{period}"

    def archive_folder(self, cadence: str = "daily") -> str:
        """Folder of the series in the archive's bucket, with a final slash; ``cadence`` is daily or monthly."""
        parts = ("data", self.market.archive_folder, cadence, self.data_type, self.symbol, self.interval)
        return "/".join(filter(None, parts)) + "/"

    def archive_daily(self, day: date) -> str:
        """Key of a day's zip in the archive's bucket."""
        return f"{self.archive_folder('daily')}{self._archive_name(day.isoformat())}.zip"

    def archive_monthly(self, day: date) -> str:
        """Key of the zip of the month that ``day`` lies in."""
        return f"{self.archive_folder('monthly')}{self._archive_name(day.isoformat()[:7])}.zip"

    # --- SQL -----------------------------------------------------------------------------------------------

    @property
    def sql_schema(self) -> str:
        """Schema of the view that shows this series, e.g. ``binance_spot``."""
        return f"{self.exchange}_{self.market}"

    @property
    def short(self) -> str:
        """The name for tables, where the exchange goes without saying, e.g. ``spot/klines/BTCUSDT/1m``."""
        return str(self).removeprefix(f"{self.exchange}/")

    def __str__(self) -> str:
        """The name for people: the asset key with the symbol as Binance spells it."""
        return "/".join(filter(None, (self.exchange, self.market, self.data_type, self.symbol, self.interval)))


def intervals_of(market: Market) -> tuple[str, ...]:
    """The kline intervals with daily archives in a market (1s exists in spot only)."""
    return tuple(i for i in INTERVALS if i != "1s" or market is Market.SPOT)


@dataclass(frozen=True, slots=True)
class Listing:
    """When a symbol was listed: spans of UTC days, both ends included, in order; an open end means listed still.

    A relisted symbol has more than one span. No span at all means that nothing is known.
    """

    spans: tuple[tuple[date, date | None], ...] = ()

    def covers(self, day: date) -> bool:
        """Whether the symbol was listed on a day; True where nothing is known."""
        return not self.spans or any(first <= day and (last is None or day <= last) for first, last in self.spans)

    @property
    def first(self) -> date | None:
        """The first listed day, None where nothing is known."""
        return self.spans[0][0] if self.spans else None

    @property
    def last(self) -> date | None:
        """The last listed day; None where it is listed still or nothing is known."""
        return self.spans[-1][1] if self.spans else None
