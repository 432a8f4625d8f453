"""Markets, data types, intervals and :class:`SeriesKey`, the name of a series in lake, archive and SQL.

The columns of a series do not belong here (``datasets.py``), nor does anything that uses a disk or a network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from market_data_pipeline.errors import UsageError

EXCHANGE = "binance"


class Market(StrEnum):
    """The Binance markets with published history: spot, USDⓈ-margined and coin-margined futures, and options."""

    SPOT = "spot"
    UM = "um"
    CM = "cm"
    OPTION = "option"

    @property
    def archive_folder(self) -> str:
        """Return the market's folder in the archive: ``spot``, ``futures/um``, ``futures/cm`` or ``option``."""
        return f"futures/{self.value}" if self in (Market.UM, Market.CM) else self.value


class DataType(StrEnum):
    """Data type of a series. The values are the archive's folder names, except for derived types."""

    KLINES = "klines"
    AGG_TRADES = "aggTrades"
    TRADES = "trades"
    """Single trades. aggTrades join the trades of one order, price and time."""
    MARK_PRICE_KLINES = "markPriceKlines"
    """Candles of the mark price of futures, by which positions are liquidated."""
    INDEX_PRICE_KLINES = "indexPriceKlines"
    """Candles of the index price, an average of spot exchanges. Binance keys them by pair."""
    PREMIUM_INDEX_KLINES = "premiumIndexKlines"
    """Candles of the premium of perpetual futures over the index, as a ratio. It may be negative."""
    METRICS = "metrics"
    """Open interest and long/short ratios of futures, every five minutes."""
    BOOK_DEPTH = "bookDepth"
    """Depth of the order book of futures in bands around the price, about every 30 seconds."""
    BOOK_TICKER = "bookTicker"
    """Each change of the best bid and ask of futures. Binance ended it in 2024."""
    LIQUIDATION_SNAPSHOT = "liquidationSnapshot"
    """Forced orders of futures, at most one a second. Binance ended it in 2024."""
    FUNDING_RATE = "fundingRate"
    """Funding of perpetual futures, every 1 to 8 hours."""
    BVOL_INDEX = "BVOLIndex"
    """Index of the volatility that options imply, every second."""
    EOH_SUMMARY = "EOHSummary"
    """Quotes, volumes and greeks of all options of an underlying, every hour. Binance ended it in 2023."""
    TRADE_PROFILE = "tradeProfile"
    """Derived from aggTrades, one row per day. It has no archive."""

    @property
    def sql_name(self) -> str:
        """Return the name in SQL: ``klines``, ``agg_trades``, ``trade_profile``, ``bvol_index``."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", self.value).lower()

    @property
    def has_interval(self) -> bool:
        """Return True if its series are candles with an interval. Each interval has its own folder."""
        return self in _OF_CANDLES


_OF_CANDLES = frozenset(
    {DataType.KLINES, DataType.MARK_PRICE_KLINES, DataType.INDEX_PRICE_KLINES, DataType.PREMIUM_INDEX_KLINES}
)
_OTHER_TREES = {(Market.UM, DataType.LIQUIDATION_SNAPSHOT): "data3"}
"""Trees of the bucket besides ``data`` with types of their own. They have daily zips only."""

_OF_PAIRS = frozenset({DataType.INDEX_PRICE_KLINES})


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
    """Return the length of a kline interval in microseconds."""
    return INTERVALS[interval] * 1_000_000


def is_symbol(text: str) -> bool:
    """Return True if a text can be a symbol: it is not empty, and has no space, slash or leading dot."""
    return re.fullmatch(r"[^\s/\\.][^\s/\\]*", text) is not None


@dataclass(frozen=True, slots=True, order=True)
class SeriesKey:
    """One series: an exchange, a market, a data type, a symbol and, for candles, an interval.

    The names in lake, archive and SQL are derived from these fields. None is configured.

    Raises:
        UsageError: The interval is missing, superfluous, unknown, or not published for that market.
    """

    exchange: str
    market: Market
    data_type: DataType
    symbol: str
    interval: str | None = None
    """Kline interval such as ``1m``. None for data types without interval."""

    def __post_init__(self) -> None:
        if not is_symbol(self.symbol):
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

    @property
    def step(self) -> int:
        """Return the distance between the keys of neighbouring rows: an interval in microseconds, or 1 for ids."""
        return interval_us(self.interval) if self.interval else 1

    # --- lake ----------------------------------------------------------------------------------------------

    def _folder(self, cadence: str) -> str:
        parts = ("lake", self.exchange, self.market, self.data_type, cadence, self.symbol, self.interval)
        return "/".join(filter(None, parts))

    @property
    def folder(self) -> str:
        """Return the folder of the daily files below the root. It mirrors the archive's folder."""
        return self._folder("daily")

    @property
    def months_folder(self) -> str:
        """Return the folder of the monthly files below the root. It mirrors the archive's folder."""
        return self._folder("monthly")

    def file(self, day: date) -> str:
        """Return the path of a day's Parquet file below the root."""
        return f"{self.folder}/{day.isoformat()}.parquet"

    def month_file(self, day: date) -> str:
        """Return the path below the root of the file of a closed month that contains ``day``."""
        return f"{self.months_folder}/{day.isoformat()[:7]}.parquet"

    @property
    def ledger(self) -> str:
        """Return the path of the series' ledger below the root."""
        parts = ("ledger", self.exchange, self.market, self.data_type, self.symbol, self.interval)
        return "/".join(filter(None, parts)) + ".parquet"

    # --- archive -------------------------------------------------------------------------------------------

    def _archive_name(self, period: str) -> str:
        return f"{self.archive_symbol}-{self.interval or self.data_type.value}-{period}"

    @property
    def archive_symbol(self) -> str:
        """Return the symbol's name in the archive and REST: its pair for index prices, else the symbol.

        >>> SeriesKey(EXCHANGE, Market.CM, DataType.INDEX_PRICE_KLINES, "BTCUSD_PERP", "1h").archive_symbol
        'BTCUSD'
        """
        return self.symbol.partition("_")[0] if self.data_type in _OF_PAIRS else self.symbol

    def archive_folder(self, cadence: str = "daily") -> str:
        """Return the folder of the series in the archive's bucket, with a final slash.

        Args:
            cadence: ``daily`` or ``monthly``.
        """
        if (tree := _OTHER_TREES.get((self.market, self.data_type))) is not None:
            return f"{tree}/{self.data_type}/{self.archive_symbol}/"
        parts = ("data", self.market.archive_folder, cadence, self.data_type, self.archive_symbol, self.interval)
        return "/".join(filter(None, parts)) + "/"

    def archive_daily(self, day: date) -> str:
        """Return the key of a day's zip in the archive's bucket."""
        return f"{self.archive_folder('daily')}{self._archive_name(day.isoformat())}.zip"

    def archive_monthly(self, day: date) -> str:
        """Return the key of the zip of the month that contains ``day``."""
        return f"{self.archive_folder('monthly')}{self._archive_name(day.isoformat()[:7])}.zip"

    # --- SQL -----------------------------------------------------------------------------------------------

    @property
    def sql_schema(self) -> str:
        """Return the SQL schema of the series' view, e.g. ``binance_spot``."""
        return f"{self.exchange}_{self.market}"

    @property
    def short(self) -> str:
        """Return the name without the exchange, for tables, e.g. ``spot/klines/BTCUSDT/1m``."""
        return str(self).removeprefix(f"{self.exchange}/")

    def __str__(self) -> str:
        """Return the name for people, e.g. ``binance/spot/klines/BTCUSDT/1m``."""
        return "/".join(filter(None, (self.exchange, self.market, self.data_type, self.symbol, self.interval)))


def intervals_of(market: Market) -> tuple[str, ...]:
    """Return the kline intervals with daily archives in a market. 1s exists in spot only."""
    return tuple(i for i in INTERVALS if i != "1s" or market is Market.SPOT)


@dataclass(frozen=True, slots=True)
class ListingSpans:
    """Days on which a symbol was listed: spans of UTC days, both ends included, in order.

    An end of None means still listed. A relisted symbol has several spans. Without spans, nothing is known.
    """

    spans: tuple[tuple[date, date | None], ...] = ()

    def covers(self, day: date) -> bool:
        """Return True if the symbol was listed on a day, or if nothing is known."""
        return not self.spans or any(first <= day and (last is None or day <= last) for first, last in self.spans)

    @property
    def first(self) -> date | None:
        """Return the first listed day. None means that nothing is known."""
        return self.spans[0][0] if self.spans else None

    def begun(self, day: date) -> ListingSpans:
        """Return the spans with the first one begun on a day, if that is earlier."""
        if not self.spans or day >= self.spans[0][0]:
            return self
        return ListingSpans(((day, self.spans[0][1]), *self.spans[1:]))

    @property
    def last(self) -> date | None:
        """Return the last listed day. None means still listed, or that nothing is known."""
        return self.spans[-1][1] if self.spans else None
