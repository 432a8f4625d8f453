"""Layouts of older caches: recognize a file by its path. Pure.

Reading files does not belong here (``old_rows.py``), nor does walking folders (``old_files.py``).
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from pathlib import PurePosixPath

from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.datasets import SPECS
from market_data_pipeline.model.series import EXCHANGE, INTERVALS, DataType, Market, SeriesKey, is_symbol


class OldLayout(StrEnum):
    """Layouts of older caches."""

    ARCHIVE = "archive"
    """Zips of the archive, ``BTCUSDT-1h-2024-01-01.zip``, with or without their ``.CHECKSUM``."""
    CSV = "csv"
    """Unzipped files of the archive, ``BTCUSDT-1h-2024-01-01.csv``."""
    SYMBOL = "symbol"
    """One Parquet file per interval, ``BTCUSDT/1h.parquet``."""
    PERIODS = "periods"
    """One Arrow or Parquet file per day or month, ``BTCUSDT/1h/2024-01-01.arrow``, also below a tree of markets."""
    BACKFILL = "backfill"
    """aggTrades with REST's short names, ``backfill_2024-01-01.parquet``."""
    FREQTRADE = "freqtrade"
    """Candles without quote volume and counts, ``BTC_USDT-1h.feather``."""


@dataclass(frozen=True, slots=True)
class OldFile:
    """A file of an older cache, as its path names it.

    Attributes:
        path: Path below the cache's folder, with slashes.
        market: None if the path does not name it.
        symbol: None if the path does not name it.
        interval: Interval of candles. None for trades.
        first: First UTC day of its rows by its name. None if the name has no period.
        last: Last such day, inclusive.
    """

    path: str
    layout: OldLayout
    market: Market | None
    data_type: DataType
    symbol: str | None
    interval: str | None
    first: date | None = None
    last: date | None = None

    def key(self, market: Market | None, symbol: str | None) -> SeriesKey:
        """Return the series of the file.

        Args:
            market: Market if the path names none.
            symbol: Symbol if the path names none.

        Raises:
            UsageError: The market or the symbol is unknown, or there is no such series.
        """
        market, symbol = self.market or market, self.symbol or symbol
        if market is None:
            raise UsageError("The path does not name the market. Pass --market spot, um or cm.")
        if symbol is None:
            raise UsageError("Neither the path nor the file names the symbol. Pass --symbol.")
        if (market, self.data_type) not in SPECS:
            raise UsageError(f"There is no {self.data_type} in {market}.")
        return SeriesKey(EXCHANGE, market, self.data_type, symbol, self.interval)


_MARKETS = {
    "spot": Market.SPOT,
    **dict.fromkeys(("um", "futures_usdt", "futures_um", "usdm", "um_futures"), Market.UM),
    **dict.fromkeys(("cm", "futures_coin", "futures_cm", "coinm", "cm_futures"), Market.CM),
    "option": Market.OPTION,
}
"""Names of markets in the folders of caches."""

_INTERVALS = "|".join(sorted(INTERVALS, key=len, reverse=True))
_PERIOD = r"(?P<year>\d{4})-?(?P<month>\d\d)(?:-?(?P<day>\d\d))?"
_ARCHIVE = re.compile(rf"(?P<symbol>.+?)-(?P<kind>[A-Za-z0-9]+)-{_PERIOD}\.(?P<form>zip|csv)")
_SYMBOL = re.compile(rf"(?P<interval>{_INTERVALS})\.parquet")
_PERIODS = re.compile(rf"{_PERIOD}\.(?:arrow|parquet|feather)")
_BACKFILL = re.compile(rf"backfill_{_PERIOD}\.parquet")
_FREQTRADE = re.compile(
    rf"(?P<base>[A-Za-z0-9]+)_(?P<quote>[A-Za-z0-9]+)(?:_(?P<settle>[A-Za-z0-9]+))?"
    rf"-(?P<interval>{_INTERVALS})(?P<futures>-futures)?\.(?:feather|parquet|json|json\.gz)"
)


def recognize(path: str) -> OldFile | None:
    """Return the file that a path names. None if it has no known layout.

    Args:
        path: Path below the cache's folder, with slashes.

    >>> recognize("binance/futures_usdt/klines/daily/BTCUSDT/1h/2024-01-01.arrow").market
    <Market.UM: 'um'>
    >>> recognize("BTCUSDT/notes.txt") is None
    True
    """
    pure = PurePosixPath(path)
    folders, name = pure.parts[:-1], pure.name
    if found := _ARCHIVE.fullmatch(name):
        return _of_archive(path, folders, found)
    if (found := _BACKFILL.fullmatch(name)) and (period := _period(found)):
        symbol = folders[-1] if folders and re.fullmatch(r"[A-Z0-9]{5,}", folders[-1]) else None
        return OldFile(path, OldLayout.BACKFILL, _market_in(folders), DataType.AGG_TRADES, symbol, None, *period)
    if found := _FREQTRADE.fullmatch(name):
        return _of_freqtrade(path, found)
    if (found := _SYMBOL.fullmatch(name)) and folders and is_symbol(folders[-1]):
        interval = found["interval"]
        return OldFile(path, OldLayout.SYMBOL, _market_in(folders[:-1]), DataType.KLINES, folders[-1], interval)
    if found := _PERIODS.fullmatch(name):
        return _of_periods(path, folders, found)
    return None


def _of_archive(path: str, folders: tuple[str, ...], found: re.Match[str]) -> OldFile | None:
    kind, period = found["kind"], _period(found)
    if kind in INTERVALS:
        data_type = next((one for one in DataType if one.has_interval and one in folders), DataType.KLINES)
    elif (named := _data_type(kind)) is not None and not named.has_interval:
        data_type = named
    else:
        return None
    if period is None or not is_symbol(found["symbol"]):
        return None
    layout = OldLayout.ARCHIVE if found["form"] == "zip" else OldLayout.CSV
    interval = kind if kind in INTERVALS else None
    return OldFile(path, layout, _market_in(folders), data_type, found["symbol"], interval, *period)


def _of_periods(path: str, folders: tuple[str, ...], found: re.Match[str]) -> OldFile | None:
    period = _period(found)
    if period is None or len(folders) < 2 or folders[-1] not in INTERVALS or not is_symbol(folders[-2]):
        return None
    data_type = next((one for one in DataType if one.has_interval and one in folders), DataType.KLINES)
    market = _market_in(folders[:-2])
    return OldFile(path, OldLayout.PERIODS, market, data_type, folders[-2], folders[-1], *period)


def _of_freqtrade(path: str, found: re.Match[str]) -> OldFile:
    futures = found["settle"] is not None
    symbol = found["base"] + found["quote"]
    market = Market.SPOT
    if futures:
        market = Market.CM if found["settle"] == found["base"] else Market.UM
        symbol += "_PERP" if market is Market.CM else ""
    return OldFile(path, OldLayout.FREQTRADE, market, DataType.KLINES, symbol, found["interval"])


def _data_type(name: str) -> DataType | None:
    return next((one for one in DataType if one.value == name and one is not DataType.TRADE_PROFILE), None)


def _market_in(folders: tuple[str, ...]) -> Market | None:
    """Return the market that folders name. None if they name none, or several."""
    found = {_MARKETS[name.lower()] for name in folders if name.lower() in _MARKETS}
    return found.pop() if len(found) == 1 else None


def _period(found: re.Match[str]) -> tuple[date, date] | None:
    """Return the first and last day of a period in a name. None if there is no such month or day."""
    year, month, day = int(found["year"]), int(found["month"]), found["day"]
    try:
        first = date(year, month, int(day or 1))
    except ValueError:
        return None
    return first, first if day else first.replace(day=calendar.monthrange(year, month)[1])
