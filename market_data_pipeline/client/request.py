"""Requests to ``MarketData``: check symbols, moments and columns. Reading rows belongs to ``result.py``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches

import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import partitions, reader, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_rows import live_folder
from market_data_pipeline.model.datasets import ARCHIVE_BEGINS, data_types_of
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import EXCHANGE, INTERVALS, DataType, Market, SeriesKey, intervals_of
from market_data_pipeline.universe.aliases import known_aliases

Moment = datetime | date | str
"""A date, a datetime or ISO text. Without a zone it is UTC. A date is its midnight."""

_LISTED_NAMES = 40
"""Maximum number of names that an error lists."""


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request.

    Attributes:
        keys: Series of one market and data type, in the order of their symbols.
        start: First moment, UTC without zone.
        end: First moment after the range.
        schema: The columns.
    """

    keys: tuple[SeriesKey, ...]
    start: datetime
    end: datetime
    schema: pa.Schema

    @property
    def data_type(self) -> DataType:
        """Return the data type of the series."""
        return self.keys[0].data_type

    @property
    def first_day(self) -> date:
        """Return the first day that can have rows in the range."""
        day = max(self.start.date(), ARCHIVE_BEGINS)
        begun = self.data_type is DataType.TRADE_PROFILE and self.start > clock.midnight(day)
        return day + timedelta(days=1) if begun else day

    @property
    def last_day(self) -> date:
        """Return the last day that can have rows in the range; it is before the first day if none can."""
        day = self.end.date()
        return day if self.end > clock.midnight(day) or day == date.min else day - timedelta(days=1)

    def days_through(self, last: date) -> list[date]:
        """Return the days of the range up to a last day, in order."""
        return clock.days_between(self.first_day, min(last, self.last_day))


@dataclass(frozen=True, slots=True)
class SeriesSelection:
    """Series of a question about quality. None means all."""

    symbols: Sequence[str] | None = None
    market: Market | None = None
    data_type: DataType | None = None
    interval: str | None = None
    keys: Sequence[SeriesKey] | None = None

    def takes(self, key: SeriesKey) -> bool:
        """Return True if a series is selected."""
        return (
            self.market in (None, key.market)
            and self.data_type in (None, key.data_type)
            and self.interval in (None, key.interval)
            and (self.symbols is None or key.symbol in self.symbols)
            and (self.keys is None or key in self.keys)
        )


def selection_of(
    symbols: str | Iterable[str] | None = None,
    market: str | None = None,
    data_type: str | None = None,
    interval: str | None = None,
) -> SeriesSelection:
    """Check a selection. Series that are not stored pass.

    Raises:
        UsageError: An interval, data type or market does not exist.
    """
    if data_type is not None:
        refuse_unknown("data type", data_type, list(DataType))
    if interval is not None:
        refuse_unknown("interval", interval, tuple(INTERVALS))
    return SeriesSelection(
        None if symbols is None else symbols_of(symbols),
        None if market is None else market_of(market),
        None if data_type is None else DataType(data_type),
        interval,
    )


def wanted_of(
    data_type: DataType,
    symbols: str | Iterable[str],
    interval: str | None,
    start: Moment,
    end: Moment | None,
    market: str,
    columns: str | Iterable[str] | None,
) -> Request:
    """Check a request. Series that are not stored pass.

    Raises:
        UsageError: A market, interval or column does not exist, or a moment is not valid.
    """
    in_market = market_of(market)
    if data_type not in data_types_of(in_market):
        having = [other for other in Market if data_type in data_types_of(other)]
        raise UsageError(f"{market} has no {data_type}. Pass market={' or '.join(repr(str(one)) for one in having)}.")
    if data_type.has_interval:
        refuse_unknown("kline interval", interval, intervals_of(in_market), f" in {in_market}")
    return Request(
        tuple(SeriesKey(EXCHANGE, in_market, data_type, symbol, interval) for symbol in symbols_of(symbols)),
        *range_of(start, end),
        _columns(in_market, data_type, columns),
    )


def market_of(text: str) -> Market:
    """Return the market of a name.

    Raises:
        UsageError: There is no such market. The text lists the markets.
    """
    refuse_unknown("market", text, list(Market))
    return Market(text)


def refuse_unknown(what: str, name: object, known: Sequence[str], where: str = "") -> None:
    """Refuse a name that does not exist.

    Raises:
        UsageError: The name is not among the known ones. The text lists these.
    """
    if name not in known:
        raise UsageError(f"There is no {what} {name!r}{where}. {there_are(str(name), known)}")


def _names(what: str, value: object) -> list[str]:
    """Return one name or several as a list."""
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"{name!r} is not the name of a {what}. Pass text, or a list of texts.")
    return [str(name) for name in names]


def symbols_of(symbols: str | Iterable[str]) -> list[str]:
    """Return one symbol or several, each once, in order.

    Raises:
        UsageError: There is no symbol, or one is not text.
    """
    names = _names("symbol", symbols)
    if not names:
        raise UsageError("The request has no symbol.")
    return sorted(set(names))


def _columns(market: Market, data_type: DataType, columns: str | Iterable[str] | None) -> pa.Schema:
    schema = lake_schema(market, data_type)
    if columns is None:
        return schema
    asked = _names("column", columns)
    for name in asked:
        refuse_unknown("column", name, schema.names, f" in {market} {data_type}")
    first = (*reader.labels_of(data_type), reader.time_column(data_type))
    return pa.schema([schema.field(name) for name in dict.fromkeys((*first, *asked))])


def range_of(start: Moment, end: Moment | None) -> tuple[datetime, datetime]:
    """Return the first moment of a range, and the first moment after it, in UTC without a zone. No end means now.

    Raises:
        UsageError: A moment is not a date, or the start is after the end.
    """
    first = moment_of(start, "start")
    last = clock.naive_utc(clock.now()) if end is None else moment_of(end, "end")
    if first > last:
        until = "now" if end is None else "end"
        raise UsageError(f"start ({format_moment(first)} UTC) is after {until} ({format_moment(last)} UTC).")
    return first, last


def moment_of(value: object, name: str) -> datetime:
    """Return a moment in UTC without a zone.

    Args:
        name: Name of the argument, for messages.

    Raises:
        UsageError: The value is not a date.
    """
    moment = _parsed(value, name) if isinstance(value, str) else value
    if isinstance(moment, datetime) and moment == moment:  # pandas' NaT is a datetime that is not equal to itself
        try:
            in_utc = moment if moment.tzinfo is None else moment.astimezone(UTC)
        except OverflowError:
            raise UsageError(f"{name} is {value!r}, which is outside the calendar.") from None
        # A plain datetime, because subclasses such as pandas.Timestamp have their own format and arithmetic.
        return datetime.combine(in_utc.date(), in_utc.time())
    if isinstance(moment, date) and not isinstance(moment, datetime):
        return clock.midnight(moment)
    raise UsageError(f"{name} is {value!r}, which is not a date. {_HOW_MOMENTS_ARE_WRITTEN}")


_HOW_MOMENTS_ARE_WRITTEN = (
    "Pass a date, a datetime, or text such as 2024-01-31, 2024-01-31T12:30 or 2024-01-31T12:30+02:00. "
    "Without a zone it is UTC."
)


def _parsed(text: str, name: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"{name} is {text!r}, which is not a date. {_HOW_MOMENTS_ARE_WRITTEN}") from None


def is_requested(layout: Layout, key: SeriesKey) -> bool:
    """Return True if a series was ever requested: it has files, a ledger or live rows."""
    places = (layout.ledger(key), layout.folder(key), layout.months(key), live_folder(layout, key))
    return any(storage.revision(path) is not None for path in places)


def check_held(layout: Layout, keys: Sequence[SeriesKey]) -> None:
    """Refuse series that were never requested.

    Raises:
        UsageError: A series is not stored. The text lists the stored symbols, or the intervals of the symbol.
    """
    for key in keys:
        if not is_requested(layout, key):
            raise UsageError(_not_there(layout, key))


def _not_there(layout: Layout, key: SeriesKey) -> str:
    alike = [
        held for held in partitions.known_series(layout) if (held.market, held.data_type) == (key.market, key.data_type)
    ]
    intervals = sorted((k.interval for k in alike if k.symbol == key.symbol and k.interval), key=list(INTERVALS).index)
    how = "Fetch it with sync=True, or with `market-data add`."
    if intervals:
        there = there_are(str(key.interval), intervals)
        return f"{key.symbol} is not stored with interval {key.interval} in {key.market}. {there} {how}"
    if not alike:
        return f"No {key.market} {key.data_type} are stored in {layout.root}. {how}"
    symbols = list(dict.fromkeys(k.symbol for k in alike))
    return f"{key.symbol} is not stored in {key.market} {key.data_type}. {there_are(key.symbol, symbols)} {how}"


def there_are(asked: str, names: Sequence[str]) -> str:
    """Return a sentence that lists the existing names, and the nearest ones as a suggestion."""
    by_folded = {name.casefold(): name for name in names}
    close = [by_folded[name] for name in get_close_matches(asked.casefold(), by_folded, n=3)]
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}There are: {listed(list(names), _LISTED_NAMES)}."


def listed(names: Sequence[str], most: int) -> str:
    """Return the first names, and the number of the others."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def format_moment(moment: datetime) -> str:
    """Return a moment as text, with seconds only if it has some."""
    return moment.isoformat(" ", "minutes" if moment == moment.replace(second=0, microsecond=0) else "auto")


def warn_of_reused_symbols(wanted: Request, stacklevel: int) -> None:
    """Warn once of symbols that name another coin from some day of the range on.

    Args:
        stacklevel: Number of frames up to the line of the user.
    """
    found = [
        f"{key.symbol} from {day} (UTC)"
        for key in wanted.keys
        for day in known_aliases().reused.get((key.market, key.symbol), ())
        if wanted.start < clock.midnight(day) < wanted.end
    ]
    if found:
        warnings.warn(
            f"A symbol in {wanted.keys[0].market} names another coin within the range: {', '.join(found)}. "
            "Prices before and after are of different coins. Request each range by itself.",
            stacklevel=stacklevel,
        )
