"""What people may ask ``MarketData`` for: symbols, moments, columns; what is refused, and how that is said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches

import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import partitions, reader
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.datasets import ARCHIVE_BEGINS
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import EXCHANGE, INTERVALS, DataType, Market, SeriesKey, intervals_of

Moment = datetime | date | str
"""A date, a datetime or ISO text. Without a zone it is UTC; a date is its midnight."""

_LISTED_NAMES = 40
"""Names that an error lists before it says how many more there are."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for, checked.

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
        """What the series are of."""
        return self.keys[0].data_type

    @property
    def first_day(self) -> date:
        """The first day that can have rows in the range."""
        day = max(self.start.date(), ARCHIVE_BEGINS)
        begun = self.data_type is DataType.TRADE_PROFILE and self.start > midnight(day)
        return day + timedelta(days=1) if begun else day

    @property
    def last_day(self) -> date:
        """The last day that can have rows in the range; before the first where none can."""
        day = self.end.date()
        return day if self.end > midnight(day) or day == date.min else day - timedelta(days=1)

    def days_through(self, last: date) -> list[date]:
        """The days of the range up to one, in order."""
        first = self.first_day
        return [first + timedelta(days=n) for n in range((min(last, self.last_day) - first).days + 1)]


def wanted_of(
    data_type: DataType,
    symbols: str | Iterable[str],
    interval: str | None,
    start: Moment,
    end: Moment | None,
    market: str,
    columns: str | Iterable[str] | None,
) -> Wanted:
    """What was asked for, checked; whether it is held is not looked at.

    Raises:
        UsageError: there is no such market, interval or column, or a moment cannot be meant.
    """
    in_market = market_of(market)
    if data_type.has_interval:
        _check_interval(in_market, interval)
    return Wanted(
        tuple(SeriesKey(EXCHANGE, in_market, data_type, symbol, interval) for symbol in symbols_of(symbols)),
        *range_of(start, end),
        _columns(in_market, data_type, columns),
    )


def market_of(text: str) -> Market:
    """The market of that name.

    Raises:
        UsageError: there is none; the text lists those that there are.
    """
    if text not in list(Market):
        raise UsageError(f"There is no market {text!r}. {there_are(text, list(Market))}")
    return Market(text)


def _check_interval(market: Market, interval: str | None) -> None:
    allowed = intervals_of(market)
    if interval not in allowed:
        raise UsageError(f"There is no kline interval {interval!r} in {market}. {there_are(str(interval), allowed)}")


def _names(what: str, value: object) -> list[str]:
    """One name or several as a list."""
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"{name!r} is not the name of a {what}: give text, or a list of texts.")
    return [str(name) for name in names]


def symbols_of(symbols: str | Iterable[str]) -> list[str]:
    """One symbol or several, each once, in order.

    Raises:
        UsageError: there are none, or one is no text.
    """
    names = _names("symbol", symbols)
    if not names:
        raise UsageError("No symbol was asked for.")
    return sorted(set(names))


def _columns(market: Market, data_type: DataType, columns: str | Iterable[str] | None) -> pa.Schema:
    schema = lake_schema(market, data_type)
    if columns is None:
        return schema
    asked = _names("column", columns)
    for name in asked:
        if name not in schema.names:
            raise UsageError(f"There is no column {name!r} in {market} {data_type}. {there_are(name, schema.names)}")
    first = (*reader.labels_of(data_type), reader.time_column(data_type))
    return pa.schema([schema.field(name) for name in dict.fromkeys((*first, *asked))])


def range_of(start: Moment, end: Moment | None) -> tuple[datetime, datetime]:
    """First moment, and first moment after the range, in UTC without zone; no end is now.

    Raises:
        UsageError: one of them is no date, or the start is after the end.
    """
    first = _moment(start, "start")
    last = clock.naive_utc(clock.now()) if end is None else _moment(end, "end")
    if first > last:
        until = "now" if end is None else "end"
        raise UsageError(f"start ({plain(first)} UTC) is after {until} ({plain(last)} UTC).")
    return first, last


def _moment(value: object, name: str) -> datetime:
    moment = _parsed(value, name) if isinstance(value, str) else value
    if isinstance(moment, datetime) and moment == moment:  # pandas' NaT is a datetime that is not equal to itself
        try:
            in_utc = moment if moment.tzinfo is None else moment.astimezone(UTC)
        except OverflowError:
            raise UsageError(f"{name} is {value!r}, which lies outside of the calendar.") from None
        # Made anew, since subclasses such as pandas.Timestamp write themselves and count in their own ways.
        return datetime.combine(in_utc.date(), in_utc.time())
    if isinstance(moment, date) and not isinstance(moment, datetime):
        return midnight(moment)
    raise UsageError(f"{name} is {value!r}, which is no date. {_HOW_MOMENTS_ARE_WRITTEN}")


_HOW_MOMENTS_ARE_WRITTEN = (
    "Give a date, a datetime, or text such as 2024-01-31, 2024-01-31T12:30 or 2024-01-31T12:30+02:00; "
    "what has no zone is UTC."
)


def _parsed(text: str, name: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"{name} is {text!r}, which is no date. {_HOW_MOMENTS_ARE_WRITTEN}") from None


def check_held(layout: Layout, keys: Sequence[SeriesKey]) -> None:
    """Refuse series of which nothing was ever asked for.

    Raises:
        UsageError: the text lists the symbols, or the symbol's intervals, that there are.
    """
    for key in keys:
        if not any(path.exists() for path in (layout.folder(key), layout.months(key), layout.ledger(key))):
            raise UsageError(_not_there(layout, key))


def _not_there(layout: Layout, key: SeriesKey) -> str:
    alike = [
        held for held in partitions.known_series(layout) if (held.market, held.data_type) == (key.market, key.data_type)
    ]
    intervals = sorted((k.interval for k in alike if k.symbol == key.symbol and k.interval), key=list(INTERVALS).index)
    how = "Bring it with sync=True, or with `market-data add`."
    if intervals:
        there = there_are(str(key.interval), intervals)
        return f"{key.symbol} is not held with interval {key.interval} in {key.market}. {there} {how}"
    if not alike:
        return f"No {key.market} {key.data_type} are held in {layout.root}. {how}"
    symbols = list(dict.fromkeys(k.symbol for k in alike))
    return f"{key.symbol} is not held in {key.market} {key.data_type}. {there_are(key.symbol, symbols)} {how}"


def there_are(asked: str, names: Sequence[str]) -> str:
    """A sentence on what there is in place of something that is not, the nearest names first."""
    by_folded = {name.casefold(): name for name in names}
    close = [by_folded[name] for name in get_close_matches(asked.casefold(), by_folded, n=3)]
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}There are: {listed(list(names), _LISTED_NAMES)}."


def listed(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def midnight(day: date) -> datetime:
    """When a day begins, without zone."""
    return datetime.combine(day, time())


def plain(moment: datetime) -> str:
    """A moment as people write it: seconds only where there are some."""
    return moment.isoformat(" ", "minutes" if moment == moment.replace(second=0, microsecond=0) else "auto")
