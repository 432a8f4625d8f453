# ruff: noqa: S608 - the SQL comes from `sql/intervals.py`, and names are literals from `quoted`.
"""Requests for candles of any interval: choose the stored series that each symbol's candles are composed from.

The rule of composition belongs to ``sql/intervals.py``, reading rows to ``result.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from zoneinfo import available_timezones

from market_data_pipeline.client.request import (
    Moment,
    Request,
    check_held,
    is_requested,
    listed,
    market_of,
    refuse_unknown,
    wanted_of,
)
from market_data_pipeline.client.session import DuckDB
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import INTERVALS, DataType, SeriesKey, interval_us, intervals_of
from market_data_pipeline.sql import intervals
from market_data_pipeline.sql.file_lists import quoted

_UTC = "UTC"


@dataclass(frozen=True, slots=True)
class Composition:
    """A checked request for candles. Some of them, or all, are composed.

    Attributes:
        interval: Interval of the candles, published or not.
        zone: Time zone in which days, weeks and months begin.
        wanted: The request, whose keys have any interval and whose schema has the columns of the lake.
        names: Columns to return, those of composed candles included.
        sources: Requests for stored series, one for each of their intervals, with all columns.
    """

    interval: str
    zone: str
    wanted: Request
    names: tuple[str, ...]
    sources: tuple[Request, ...]

    def query(self, source: Request, rows: str) -> str:
        """Return SQL for the candles of a source, by symbol and time. ``rows`` is SQL for its stored rows."""
        of_source = str(source.keys[0].interval)
        if of_source == self.interval and self.zone == _UTC:
            own = {"parts": "CAST(1 AS BIGINT)", "complete": "true"}
            columns = ", ".join(
                f'{own.get(name, "")} AS "{name}"' if name in own else f'"{name}"' for name in self.names
            )
            return f"SELECT {columns} FROM ({rows}) ORDER BY symbol, open_time"
        return intervals.composed(
            rows,
            source.schema.names,
            self.names,
            quoted(self.interval),
            quoted(self.zone),
            step_us=str(interval_us(of_source)),
            symbols=[quoted(key.symbol) for key in source.keys],
        )


def zone_of(tz: str | tzinfo | None) -> str:
    """Return the name of a time zone. None is UTC.

    Raises:
        UsageError: There is no such zone. The text has zones with a similar name.
    """
    if tz is None or str(tz) == _UTC:
        return _UTC
    refuse_unknown("time zone", str(tz), sorted(available_timezones()))
    return str(tz)


def can_be_own(interval: str, zone: str, columns: Iterable[str] | None) -> bool:
    """Return True if candles of an interval may be a stored series, and no column of composed candles is requested."""
    return zone == _UTC and interval in list(INTERVALS) and not {*intervals.PARTS}.intersection(columns or ())


def composition_of(
    layout: Layout,
    files: DuckDB,
    data_type: DataType,
    symbols: str | Iterable[str],
    interval: str,
    start: Moment,
    end: Moment | None,
    market: str,
    columns: Sequence[str] | None,
    zone: str,
    *,
    sync: bool,
    is_available: Callable[[SeriesKey], bool],
) -> Composition:
    """Check a request for candles, and choose a stored series for each symbol: its own, else the largest that divides.

    Args:
        sync: If no series of a symbol is available, choose the one to fetch.
        is_available: Returns True for a series that is stored or can be fetched.

    Raises:
        UsageError: The interval divides nothing stored, or the request is not valid.
    """
    published = intervals_of(market_of(market))
    if not intervals.is_interval(str(interval)) or (interval in INTERVALS and interval not in published):
        refuse_unknown("kline interval", interval, published, f" in {market}")
    if zone != _UTC and not interval.endswith(("d", "w", "mo")):
        raise UsageError(f"A time zone moves days, weeks and months. {interval} is shorter: leave tz out.")
    stored = None if columns is None else [name for name in columns if name not in intervals.PARTS]
    wanted = wanted_of(data_type, symbols, published[-1], start, end, market, stored)
    parts = [name for name in intervals.PARTS if columns is None or name in columns]
    dividing, begin, until = _rule(files, interval, zone, wanted)
    dividing = [one for one in dividing if one in published]
    chosen: dict[str, list[str]] = {}
    for key in wanted.keys:
        chosen.setdefault(_source(layout, key, interval, zone, dividing, is_available, sync=sync), []).append(
            key.symbol
        )
    sources = (wanted_of(data_type, some, source, begin, until, market, None) for source, some in chosen.items())
    return Composition(interval, zone, wanted, (*wanted.schema.names, *parts), tuple(sources))


def _rule(files: DuckDB, interval: str, zone: str, wanted: Request) -> tuple[list[str], datetime, datetime]:
    """Return the intervals that divide one, the largest first, and the range that begins and ends with its candles."""
    one, there = quoted(interval), quoted(zone)
    bounds = (
        f"least({intervals.first_begin(one, there, f'''TIMESTAMP '{moment}' ''')}, TIMESTAMP '9999-12-31')"
        for moment in (wanted.start, wanted.end)
    )
    found = files.stored(lambda: f"SELECT {intervals.divisors(one, there)}, {', '.join(bounds)}").fetchall()
    [(dividing, begin, until)] = found
    return dividing, begin, until


def _source(
    layout: Layout,
    key: SeriesKey,
    interval: str,
    zone: str,
    dividing: Sequence[str],
    is_available: Callable[[SeriesKey], bool],
    *,
    sync: bool,
) -> str:
    """Return the interval of the series from which candles of a symbol are composed.

    Raises:
        UsageError: There is none.
    """
    for one in dividing:
        if is_available(replace(key, interval=one)):
            return one
    if not dividing:
        shortest = intervals_of(key.market)[0]
        raise UsageError(f"No interval of {key.market} divides {interval}{_in(zone)}. The shortest is {shortest}.")
    if sync:
        return dividing[0]
    every = (replace(key, interval=one) for one in intervals_of(key.market))
    stored = [str(one.interval) for one in every if is_requested(layout, one)]
    if interval in dividing or not stored:
        check_held(layout, [replace(key, interval=dividing[0])])
    raise UsageError(
        f"{key.symbol} has no stored interval in {key.market} that divides {interval}{_in(zone)}. "
        f"Stored: {listed(stored, len(stored))}. Fetch {dividing[0]} with sync=True, or with `market-data add`."
    )


def _in(zone: str) -> str:
    return "" if zone == _UTC else f" in {zone}"
