"""The exchange behind the server: its archive, and the rows for REST answers, generated from a seed.

The server uses the interface :class:`Exchange`. HTTP does not belong here, and the exchange read from a folder is in
:mod:`market_data_pipeline.sandbox.mirror`.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from calendar import monthrange
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Literal, overload

import numpy as np

from market_data_pipeline.clock import day_start_us
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey, interval_us, intervals_of
from market_data_pipeline.sandbox.book import book_depth_rows, book_ticker_rows, liquidation_rows
from market_data_pipeline.sandbox.cache import Cache
from market_data_pipeline.sandbox.damage import (
    damaged_zip,
    edit_lines,
    outage_in_text,
    with_changed_rows,
    with_repeated,
    with_shifted_rows,
    without_rows,
)
from market_data_pipeline.sandbox.faults import (
    ChangedRows,
    Damage,
    DamagedArchive,
    DataFault,
    DayFault,
    Faults,
    FlatRows,
    LateArchive,
    MarketOutage,
    MissingChecksum,
    MissingDay,
    RepeatedAtMidnight,
    ReplacedArchive,
    RowsFault,
    ScrambledArchive,
    ShiftedRows,
    SpanFault,
)
from market_data_pipeline.sandbox.forms import FORMS, OLDER_PRICES, PRICES, has_type, last_day, types_in
from market_data_pipeline.sandbox.funding import funding_rows
from market_data_pipeline.sandbox.generator import (
    DAY_US,
    MICROSECONDS_FROM,
    GeneratedTrades,
    Klines,
    Outage,
    day_of_agg_trade,
    generate_trades,
    klines_of,
    moment_us,
    trades_on,
)
from market_data_pipeline.sandbox.metrics import metrics_rows
from market_data_pipeline.sandbox.options import bvol_index_rows, eoh_summary_rows
from market_data_pipeline.sandbox.prices import price_rows
from market_data_pipeline.sandbox.rows import (
    KlineRows,
    Rows,
    TradeRows,
    text_rows,
)
from market_data_pipeline.sandbox.symbols import DEFAULT_SYMBOLS, GeneratedSymbol
from market_data_pipeline.sandbox.trades import single_trades
from market_data_pipeline.sandbox.zips import make_zip

_HEADER_FROM = date(2022, 7, 1)
"""First day on which futures archives begin with a header. Older ones and all spot archives have none."""

_WITHOUT_TRADES: Mapping[DataType, Callable[[GeneratedSymbol, int, date, int], Rows]] = {
    DataType.FUNDING_RATE: funding_rows,
    DataType.METRICS: metrics_rows,
    DataType.BOOK_DEPTH: book_depth_rows,
    DataType.BOOK_TICKER: book_ticker_rows,
    DataType.LIQUIDATION_SNAPSHOT: liquidation_rows,
    DataType.BVOL_INDEX: bvol_index_rows,
    DataType.EOH_SUMMARY: eoh_summary_rows,
}
"""Generators of types that do not follow from trades."""

_ESTIMATES = {
    DataType.FUNDING_RATE: 900,
    DataType.METRICS: 11_000,
    DataType.BOOK_DEPTH: 500_000,
    DataType.BOOK_TICKER: 150_000,
    DataType.LIQUIDATION_SNAPSHOT: 5_000,
    DataType.BVOL_INDEX: 390_000,
    DataType.EOH_SUMMARY: 20_000,
}
"""Bytes of zips whose size does not depend on the trades of a symbol."""

_KEY = re.compile(
    r"data/(?P<market>spot|futures/um|futures/cm|option)/(?P<cadence>daily|monthly)/(?P<data_type>[A-Za-z]+)/"
    r"(?P<symbol>[^/]+)/(?:(?P<interval>[^/]+)/)?(?P<name>[^/]+)-(?P<period>\d{4}-\d\d(?:-\d\d)?)\.zip"
)

_KEY_IN_OTHER_TREE = re.compile(
    r"data3/(?P<data_type>[A-Za-z]+)/(?P<symbol>[^/]+)/(?P<name>[^/]+)-(?P<period>\d{4}-\d\d-\d\d)\.zip"
)

Cadence = Literal["daily", "monthly"]
Where = Literal["archive", "rest"]


@dataclass(frozen=True, slots=True)
class ServedFile:
    """A file that the archive serves."""

    body: bytes
    etag: str
    """Without quotes."""
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class BucketObject:
    """A file in the listing."""

    key: str
    size: int
    """In bytes. An estimate for a generated zip that is not made yet."""
    etag: str
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class ListedSymbol:
    """A symbol in exchangeInfo."""

    symbol: str
    base_asset: str
    quote_asset: str
    trading: bool
    listed_at: datetime
    price_decimals: int
    quantity_decimals: int
    contract_size: int


@dataclass(frozen=True, slots=True)
class ArchiveKey:
    """The zip that a key of the bucket names."""

    series: SeriesKey
    cadence: Cadence
    period: date
    """The day, or the first day of the month."""

    @property
    def days(self) -> list[date]:
        """The days that the zip covers."""
        if self.cadence == "daily":
            return [self.period]
        count = monthrange(self.period.year, self.period.month)[1]
        return [self.period + timedelta(n) for n in range(count)]

    @property
    def key(self) -> str:
        """Key of the zip in the bucket."""
        return (self.series.archive_daily if self.cadence == "daily" else self.series.archive_monthly)(self.period)


@lru_cache(maxsize=100_000)
def read_key(key: str) -> ArchiveKey | None:
    """Parse the key of a zip. Return None if the archive has no such keys."""
    match = _KEY.fullmatch(key) or _KEY_IN_OTHER_TREE.fullmatch(key)
    if not match:
        return None
    period = match["period"]
    try:
        day = date.fromisoformat(period if len(period) == 10 else f"{period}-01")
        named = match.groupdict()
        market = Market(named.get("market", "um").removeprefix("futures/"))
        series = SeriesKey(EXCHANGE, market, DataType(match["data_type"]), match["symbol"], named.get("interval"))
    except (UsageError, ValueError):
        return None
    archive = ArchiveKey(series, "monthly" if named.get("cadence") == "monthly" else "daily", day)
    return archive if archive.key == key else None


class Exchange(ABC):
    """The interface for the server: an archive in a bucket, and days of rows for REST. Safe for threads.

    Args:
        now: returns the current time.
        faults: the active faults.
        publish_at: time of day (UTC) at which the archive of the previous day appears.
    """

    def __init__(self, now: Callable[[], datetime], faults: Faults, publish_at: time = time(8)) -> None:
        self.now = now
        self.faults = faults
        self.publish_at = publish_at
        self._files: Cache[ServedFile] = Cache(256 << 20, lambda file: len(file.body))

    # --- differences between the two kinds of exchange -------------------------------------------------------

    @abstractmethod
    def symbols(self, market: Market) -> list[ListedSymbol]:
        """Return all symbols of a market, including delisted ones."""

    @abstractmethod
    def days(self, series: SeriesKey) -> Sequence[date]:
        """Return the days that can have rows, ascending, up to today. Empty for an unknown series."""

    @abstractmethod
    def rows(self, series: SeriesKey, day: date, where: Where) -> Rows:
        """Return the rows of a day up to now, ordered by transact_time or open_time."""

    @abstractmethod
    def day_of_agg_trade(self, series: SeriesKey, agg_trade_id: int) -> date | None:
        """Return the day of an aggTrade, or the first day after it. Return None if it is in the future."""

    @abstractmethod
    def children(self, folder: str) -> list[str]:
        """Return the keys and folders directly in a folder of the bucket, unordered. Folders end with a slash."""

    @abstractmethod
    def _plain(self, key: str) -> ServedFile | None:
        """Return a zip without faults."""

    @abstractmethod
    def _describe_plain(self, key: str) -> BucketObject | None:
        """Return the listing entry of a zip without faults."""

    # --- the archive -----------------------------------------------------------------------------------------

    def cached(self, key: str) -> ServedFile | None:
        """Return a file of the bucket if it is cached and published, and no data fault is active."""
        file = None if self._has_data_faults() else self._files.peek(key)
        archive = read_key(key.removesuffix(".CHECKSUM"))
        return file if archive is not None and self.now() >= self.published_at(archive) else None

    def file(self, key: str) -> ServedFile | None:
        """Return a zip or CHECKSUM of the bucket, or None if it does not exist."""
        zip_key = key.removesuffix(".CHECKSUM")
        archive = read_key(zip_key)
        faults = self._faults_of(archive)
        if not self._is_available(archive, key, faults):
            return None
        if key != zip_key:
            return self._checksum(zip_key)
        changes = _changes(archive, faults, self.now())
        if archive is None or not changes:
            return self._plain(key)
        if self._describe_plain(key) is None:
            return None
        return self._files.get((key, changes), lambda: self._build(archive, faults))

    def describe(self, key: str) -> BucketObject | None:
        """Return the listing entry of a key, or None if it does not exist."""
        zip_key = key.removesuffix(".CHECKSUM")
        archive = read_key(zip_key)
        faults = self._faults_of(archive)
        if not self._is_available(archive, key, faults):
            return None
        if _changes(archive, faults, self.now()) and archive is not None:
            file = self.file(key)
            if file is None:
                return None
            return self._as_listed(BucketObject(key, len(file.body), file.etag, file.last_modified))
        plain = self._describe_plain(zip_key)
        return plain if plain is None or key == zip_key else self._as_listed(self._describe_checksum(plain))

    def published_at(self, archive: ArchiveKey) -> datetime:
        """Return the time (UTC) at which a zip first appears.

        Daily zips appear on the next day at ``publish_at``. Monthly zips appear at noon on the 3rd of the next month.
        A :class:`LateArchive` fault delays both.
        """
        if archive.cadence == "daily":
            moment = datetime.combine(archive.period + timedelta(1), self.publish_at, UTC)
        else:
            moment = datetime.combine(archive.days[-1] + timedelta(3), time(12), UTC)
        faults = self._faults_of(archive)
        late = [f.days_late for f in faults if isinstance(f, LateArchive) and _touches(f, archive)] if faults else ()
        return moment + timedelta(max(late)) if late else moment

    def _is_changed(self, archive: ArchiveKey) -> bool:
        return bool(_changes(archive, self._faults_of(archive), self.now()))

    def _has_data_faults(self) -> bool:
        return any(isinstance(fault, DataFault) for fault in self.faults)

    def _faults_of(self, archive: ArchiveKey | None) -> tuple[DataFault, ...]:
        return () if archive is None else self.faults.of_data(str(archive.series))

    def _is_available(self, archive: ArchiveKey | None, key: str, faults: tuple[DataFault, ...]) -> bool:
        if archive is None:
            return True
        if self.now() < self.published_at(archive):
            return False
        for fault in faults:
            if isinstance(fault, MissingDay) and archive.cadence == "daily" and _touches(fault, archive):
                return False
            if isinstance(fault, MissingChecksum) and key.endswith(".CHECKSUM") and _touches(fault, archive):
                return False
        return True

    def _checksum(self, zip_key: str) -> ServedFile | None:
        file = self.file(zip_key)
        if file is None:
            return None

        def make() -> ServedFile:
            text = f"{hashlib.sha256(file.body).hexdigest()}  {zip_key.rsplit('/', 1)[1]}\n"
            return ServedFile(text.encode(), _tag(file.etag, "CHECKSUM"), file.last_modified)

        archive = read_key(zip_key)
        if archive is None or _changes(archive, self._faults_of(archive), self.now()):
            return make()
        return self._files.get(f"{zip_key}.CHECKSUM", make)

    def _as_listed(self, file: BucketObject) -> BucketObject:
        wrong = file.key.endswith(".CHECKSUM") and self.faults.is_checksum_wrong(f"/{file.key}")
        return replace(file, etag=etag_of_wrong(file.etag)) if wrong else file

    def _describe_checksum(self, zip_file: BucketObject) -> BucketObject:
        size = 64 + 2 + len(zip_file.key.rsplit("/", 1)[1].encode()) + 1
        return BucketObject(f"{zip_file.key}.CHECKSUM", size, _tag(zip_file.etag, "CHECKSUM"), zip_file.last_modified)

    def _build(self, archive: ArchiveKey, faults: tuple[DataFault, ...]) -> ServedFile:
        now, series = self.now(), archive.series
        microseconds = series.market is Market.SPOT and archive.period >= MICROSECONDS_FROM
        header = series.market is not Market.SPOT and archive.period >= _HEADER_FROM
        damages: set[Damage] = set()
        parts = [f"{FORMS[series.data_type].header}\n".encode()] if header else []
        listed = self.days(series)
        for day in archive.days:
            own = [
                f for f in faults if isinstance(f, DayFault) and day in f.days and f.cadence in (None, archive.cadence)
            ]
            if day not in listed or any(isinstance(f, MissingDay) for f in own):
                continue
            rows = self._rows_in(archive, day, faults)
            text = self._after_midnight(series, day, rows, own).csv(microseconds=microseconds)
            if any(isinstance(f, (DamagedArchive, ReplacedArchive, ScrambledArchive)) for f in own):
                text = edit_lines(series.data_type, text, own, now)
            damages.update(f.damage for f in own if isinstance(f, DamagedArchive))
            parts.append(text)
        stem = archive.key.rsplit("/", 1)[1].removesuffix(".zip")
        body = damaged_zip(stem, b"".join(parts), damages) if damages else make_zip([(f"{stem}.csv", b"".join(parts))])
        replaced = [f.at for f in faults if isinstance(f, ReplacedArchive) and _touches(f, archive) and f.at <= now]
        modified = max([self.published_at(archive), *replaced])
        return ServedFile(body, self._version(archive, _changes(archive, faults, now)), modified)

    def _rows_in(self, archive: ArchiveKey, day: date, faults: Iterable[DataFault]) -> Rows:
        """Return the rows of a day with the faults that only zips of this cadence have."""
        rows = self.rows(archive.series, day, "archive")
        for fault in faults:
            if isinstance(fault, RowsFault) and fault.cadence is not None and fault.is_in(archive.cadence):
                rows = _with_rows_fault(archive.series, rows, fault)
        return rows

    def _after_midnight(self, series: SeriesKey, day: date, rows: Rows, faults: Iterable[DayFault]) -> Rows:
        """Prepend the last trade of the previous day if a fault requires it."""
        fault = next((f for f in faults if isinstance(f, RepeatedAtMidnight)), None)
        before = day - timedelta(1)
        if fault is None or series.data_type is not DataType.AGG_TRADES or before not in self.days(series):
            return rows
        last = text_rows(series.data_type, self.rows(series, before, "archive")).rows[-1:]
        midnight = day_start_us(day) if fault.moved else None
        text = text_rows(series.data_type, rows)
        return with_repeated(text, last[0], midnight) if last else text

    def _version(self, archive: ArchiveKey, changes: tuple[object, ...]) -> str:
        """Return an ETag that identifies the bytes without making them, so that listings are cheap."""
        return _tag(repr(self), archive.key, *changes)


def etag_of_wrong(etag: str) -> str:
    """Return the ETag of the wrong version of the ``.CHECKSUM`` that has this ETag."""
    return _tag(etag, "wrong")


def _tag(*words: object) -> str:
    return hashlib.md5("|".join(map(str, words)).encode(), usedforsecurity=False).hexdigest()


def _touches(fault: DayFault, archive: ArchiveKey) -> bool:
    if fault.cadence not in (None, archive.cadence):
        return False
    if archive.cadence == "daily":
        return archive.period in fault.days
    return any((day.year, day.month) == (archive.period.year, archive.period.month) for day in fault.days)


def _changes(archive: ArchiveKey | None, faults: Sequence[DataFault], now: datetime) -> tuple[object, ...]:
    """Return everything that changes the bytes of a zip, as part of its cache key."""
    changes: list[object] = []
    if archive is None or not faults:
        return ()
    days = archive.days
    first, last = (datetime.combine(day, time(0), UTC) for day in (days[0], days[-1] + timedelta(1)))
    for fault in faults:
        if isinstance(fault, ReplacedArchive) and _touches(fault, archive):
            changes.append((fault, fault.at <= now))
        elif isinstance(fault, DayFault):
            if _touches(fault, archive) and not isinstance(fault, MissingChecksum):
                changes.append(fault)
        elif isinstance(fault, SpanFault):
            elsewhere = isinstance(fault, RowsFault) and not fault.is_in(archive.cadence)
            if fault.start < last and fault.end > first and not elsewhere:
                changes.append(fault)
    return tuple(changes)


def _with_rows_fault(series: SeriesKey, rows: Rows, fault: RowsFault) -> Rows:
    text, start, end = text_rows(series.data_type, rows), moment_us(fault.start), moment_us(fault.end)
    if isinstance(fault, ChangedRows):
        return with_changed_rows(text, start, end, fault.column)
    if isinstance(fault, (ShiftedRows, FlatRows)) and series.interval is None:
        return rows
    if isinstance(fault, ShiftedRows):
        return with_shifted_rows(text, start, end, fault.shift // timedelta(microseconds=1))
    if isinstance(fault, FlatRows):
        return outage_in_text(text, start, end, interval_us(series.interval or ""), flat=True)
    return without_rows(text, start, end)


def apply_row_faults(
    series: SeriesKey, rows: Rows, faults: Iterable[DataFault], where: Where, *, generated: bool
) -> Rows:
    """Apply the faults of spans to rows. A generated exchange applies outages itself."""
    for fault in faults:
        if isinstance(fault, RowsFault) and fault.is_everywhere_in(where):
            rows = _with_rows_fault(series, rows, fault)
        elif isinstance(fault, MarketOutage) and not generated:
            flat = series.market is not Market.SPOT if fault.flat is None else fault.flat
            span = interval_us(series.interval) if series.interval else 0
            text = text_rows(series.data_type, rows)
            rows = outage_in_text(text, moment_us(fault.start), moment_us(fault.end), span, flat=flat)
    return rows


class GeneratedExchange(Exchange):
    """An exchange whose trades come from a seed.

    Args:
        now: returns the current time.
        faults: the active faults.
        seed: selects one of many histories.
        symbols: the listed symbols. None lists the default ones.
        publish_at: time of day (UTC) at which the archive of the previous day appears.
    """

    def __init__(
        self,
        now: Callable[[], datetime],
        faults: Faults,
        seed: int = 0,
        symbols: Iterable[GeneratedSymbol] | None = None,
        publish_at: time = time(8),
    ) -> None:
        super().__init__(now, faults, publish_at)
        self.seed = seed
        self._symbols = {(s.market, s.symbol): s for s in (DEFAULT_SYMBOLS if symbols is None else symbols)}
        self._trades: Cache[GeneratedTrades] = Cache(256 << 20, lambda trades: trades.nbytes)
        self._klines: Cache[Klines] = Cache(96 << 20, lambda klines: 10 * klines.open_time.nbytes + 1_000)

    def __repr__(self) -> str:
        return f"GeneratedExchange(seed={self.seed})"

    def symbols(self, market: Market) -> list[ListedSymbol]:
        """Return all symbols of a market, including delisted ones."""
        today = self.now().date()
        return [
            ListedSymbol(
                s.symbol,
                s.base_asset,
                s.quote_asset,
                trades_on(s, today),
                s.listed_at,
                s.price_decimals,
                s.quantity_decimals,
                s.contract_size,
            )
            for s in self._symbols.values()
            if s.market is market and s.listed <= today
        ]

    def days(self, series: SeriesKey) -> Sequence[date]:
        """Return the days on which a series was listed, up to today."""
        symbol = self._symbol_of(series)
        if symbol is None:
            return ()
        return self._listed_days(symbol, symbol.listed)

    def _symbol_of(self, series: SeriesKey) -> GeneratedSymbol | None:
        return self._named(series.market, series.data_type, series.archive_symbol)

    def _of_type(self, symbol: GeneratedSymbol, data_type: DataType) -> GeneratedSymbol:
        """Return the symbol as listed from its first price on, for types of prices that are older than it."""
        if symbol.prices_from is None or data_type not in OLDER_PRICES:
            return symbol
        return replace(symbol, listed=symbol.prices_from, archived_from=None)

    def _named(self, market: Market, data_type: DataType, folder: str) -> GeneratedSymbol | None:
        """Return the symbol of a folder of the archive. Folders of index prices are named by pair."""
        if (found := self._symbols.get((market, folder))) is not None:
            return self._of_type(found, data_type)
        alike = (symbol for (of, name), symbol in self._symbols.items() if of is market)
        symbol = next((symbol for symbol in alike if _folder_of(data_type, symbol.symbol) == folder), None)
        return symbol and self._of_type(symbol, data_type)

    def _listed_days(self, symbol: GeneratedSymbol, first: date) -> Sequence[date]:
        days = DaySpan(first, min(symbol.delisted or date.max, self.now().date()))
        return [day for day in days if trades_on(symbol, day)] if symbol.breaks else days

    def day_of_agg_trade(self, series: SeriesKey, agg_trade_id: int) -> date | None:
        """Return the day of an aggTrade, or the first day after it. Return None if it is in the future."""
        day = day_of_agg_trade(self._symbols[series.market, series.symbol], self.seed, agg_trade_id)
        return day if day <= self.now().date() else None

    def rows(self, series: SeriesKey, day: date, where: Where) -> Rows:
        """Return the rows of a day up to now, ordered by transact_time or open_time."""
        symbol = self._symbol_of(series)
        if symbol is None:
            raise KeyError(str(series))
        faults = self.faults.of_data(str(series))
        start = day_start_us(day)
        outages = tuple(
            Outage(*span)
            for f in faults
            if isinstance(f, MarketOutage)
            and series.data_type not in PRICES
            and (span := (moment_us(f.start), moment_us(f.end)))[0] < start + DAY_US
            and span[1] > start
        )
        now_us = moment_us(self.now())
        open_day = now_us < start + DAY_US

        def trades() -> GeneratedTrades:
            whole = self._trades.get((symbol, day, outages), lambda: generate_trades(symbol, self.seed, day, outages))
            return whole.until(now_us) if open_day else whole

        rows: Rows
        if series.data_type in _WITHOUT_TRADES:
            rows = _WITHOUT_TRADES[series.data_type](symbol, self.seed, day, now_us)
        elif series.interval is None:
            rows = single_trades(trades()) if series.data_type is DataType.TRADES else TradeRows(trades())
        else:
            length = interval_us(series.interval)
            if open_day:
                klines = klines_of(trades(), length, now_us)
            else:
                klines = self._klines.get((symbol, day, outages, length), lambda: klines_of(trades(), length))
            rows = price_rows(series.data_type, klines) if series.data_type in PRICES else KlineRows(klines)
            for fault in faults:
                if isinstance(fault, MarketOutage):
                    flat = series.market is not Market.SPOT if fault.flat is None else fault.flat
                    rows = rows if flat else _without_outage(rows, moment_us(fault.start), moment_us(fault.end))
        return apply_row_faults(series, rows, faults, where, generated=True)

    def children(self, folder: str) -> list[str]:
        """Return the keys and folders directly in a folder of the bucket."""
        parts = folder.rstrip("/").split("/") if folder else []
        if parts[:1] == ["data3"]:
            return [f"{folder}{child}" for child in self._in_other_tree(parts[1:])]
        if parts[:1] != ["data"]:
            return [] if parts else ["data/", "data3/"]
        if len(parts) == 1:
            return ["data/spot/", "data/futures/", "data/option/"]
        if parts == ["data", "futures"]:
            return ["data/futures/um/", "data/futures/cm/"]
        futures = parts[1] == "futures"
        name, rest = (parts[2], parts[3:]) if futures else (parts[1], parts[2:])
        if name not in ((Market.UM, Market.CM) if futures else (Market.SPOT, Market.OPTION)):
            return []
        return [f"{folder}{child}" for child in self._below_market(Market(name), rest)]

    def _in_other_tree(self, below: list[str]) -> list[str]:
        match below:
            case []:
                return [f"{data_type}/" for data_type, form in FORMS.items() if form.other_trees]
            case [name, *rest] if name in FORMS and FORMS[DataType(name)].other_trees:
                return self._below_type(FORMS[DataType(name)].other_trees[0], DataType(name), "daily", rest)
        return []

    def _below_market(self, market: Market, rest: list[str]) -> list[str]:
        match rest:
            case []:
                return [f"{cadence}/" for cadence in ("daily", "monthly") if types_in(market, cadence)]
            case ["daily" | "monthly" as cadence]:
                return [f"{data_type}/" for data_type in types_in(market, cadence)]
            case ["daily" | "monthly" as cadence, folder, *below] if folder in types_in(market, cadence):
                return self._below_type(market, DataType(folder), cadence, below)
        return []

    def _below_type(self, market: Market, data_type: DataType, cadence: str, below: list[str]) -> list[str]:
        match below:
            case []:
                listed = [one.symbol for one in self.symbols(market) if has_type(market, one.symbol, data_type)]
                return [f"{name}/" for name in dict.fromkeys(_folder_of(data_type, name) for name in listed)]
            case [symbol] if data_type.has_interval and self._named(market, data_type, symbol):
                return [f"{interval}/" for interval in intervals_of(market)]
            case [symbol] if not data_type.has_interval:
                return self._leaf(market, data_type, symbol, None, cadence)
            case [symbol, interval] if data_type.has_interval and interval in intervals_of(market):
                return self._leaf(market, data_type, symbol, interval, cadence)
        return []

    def _leaf(self, market: Market, data_type: DataType, symbol: str, interval: str | None, cadence: str) -> list[str]:
        listed = self._named(market, data_type, symbol)
        if listed is None or not has_type(market, symbol, data_type):
            return []
        series = SeriesKey(EXCHANGE, market, data_type, symbol, interval)
        last = last_day(market, data_type)
        days = tuple(day for day in self._listed_days(listed, listed.first_archived) if day <= last)
        archives = _archives_of(series, cadence, days)
        # Only the last few can be unpublished, unless some are late.
        some_late = any(isinstance(fault, LateArchive) for fault in self.faults.of_data(str(series)))
        uncertain = archives if some_late else archives[-3:]
        published = [*archives[: len(archives) - len(uncertain)], *(a for a in uncertain if self._published(a[0]))]
        return [name for _, stem in published for name in (stem, f"{stem}.CHECKSUM")]

    def _published(self, archive: ArchiveKey) -> bool:
        return self.now() >= self.published_at(archive)

    def _exists(self, archive: ArchiveKey) -> bool:
        series = archive.series
        symbol = self._symbol_of(series)
        published = series.data_type in types_in(series.market, archive.cadence)
        published |= series.market in FORMS[series.data_type].other_trees
        published &= has_type(series.market, series.symbol, series.data_type)
        last = last_day(series.market, series.data_type)
        return (
            published
            and symbol is not None
            and any(symbol.first_archived <= day <= last and trades_on(symbol, day) for day in archive.days)
        )

    def _plain(self, key: str) -> ServedFile | None:
        archive = read_key(key)
        if archive is None or not self._exists(archive):
            return None
        return self._files.get(key, lambda: self._build(archive, ()))

    def _describe_plain(self, key: str) -> BucketObject | None:
        archive = read_key(key)
        if archive is None or not self._exists(archive):
            return None
        made = self._files.peek(key)
        size = len(made.body) if made else self._estimate(archive)
        return BucketObject(key, size, self._version(archive, ()), self.published_at(archive))

    def _estimate(self, archive: ArchiveKey) -> int:
        """Estimate the size of a zip from the deflated bytes per row."""
        symbol = self._symbol_of(archive.series)
        if symbol is None:
            return 0
        if archive.series.data_type in _ESTIMATES:
            return _ESTIMATES[archive.series.data_type]
        if archive.series.interval is None:
            return len(archive.days) * symbol.trades_per_day * 21 + 150
        return len(archive.days) * (DAY_US // interval_us(archive.series.interval)) * 52 + 150


@dataclass(frozen=True, slots=True)
class DaySpan(Sequence[date]):
    """The days from ``first`` to ``last``, both inclusive, without storing a list."""

    first: date
    last: date

    def __len__(self) -> int:
        return max((self.last - self.first).days + 1, 0)

    @overload
    def __getitem__(self, index: int) -> date: ...
    @overload
    def __getitem__(self, index: slice) -> list[date]: ...
    def __getitem__(self, index: int | slice) -> date | list[date]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        n = index + len(self) if index < 0 else index
        if not 0 <= n < len(self):
            raise IndexError(index)
        return self.first + timedelta(n)

    def __contains__(self, day: object) -> bool:
        return isinstance(day, date) and self.first <= day <= self.last


@lru_cache(maxsize=256)
def _archives_of(series: SeriesKey, cadence: str, days: tuple[date, ...]) -> Sequence[tuple[ArchiveKey, str]]:
    """Return the zips of these days with their file names, in order."""
    if cadence == "daily":
        archives = [ArchiveKey(series, "daily", day) for day in days]
    else:
        archives = [ArchiveKey(series, "monthly", day) for day in sorted({day.replace(day=1) for day in days})]
    return [(archive, archive.key.rsplit("/", 1)[1]) for archive in archives]


def _folder_of(data_type: DataType, symbol: str) -> str:
    return symbol.partition("_")[0] if data_type is DataType.INDEX_PRICE_KLINES else symbol


def _without_outage(rows: Rows, start: int, end: int) -> Rows:
    if not isinstance(rows, KlineRows):
        return rows
    k = rows.klines
    keep = (k.open_time < start) | (k.open_time + k.interval_us > end) | (k.count > 0)
    if bool(np.all(keep)):
        return rows
    columns = (
        k.open_time,
        k.open,
        k.high,
        k.low,
        k.close,
        k.volume,
        k.turnover,
        k.count,
        k.taker_volume,
        k.taker_turnover,
    )
    return KlineRows(Klines(k.symbol, k.interval_us, *(column[keep] for column in columns)))
