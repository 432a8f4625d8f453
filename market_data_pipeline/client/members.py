"""Requests for the universe as of a date: check them, and find the missing days that an answer needs.

Who was a member is decided in ``universe/membership.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from fnmatch import fnmatchcase

import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.client.gaps import Gap
from market_data_pipeline.client.request import Moment, market_of, moment_of, refuse_unknown
from market_data_pipeline.errors import NotStoredError, UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.universe.daily_volumes import INTERVAL, measures_of
from market_data_pipeline.universe.membership import MarketHistory
from market_data_pipeline.universe.resolved import Listings
from market_data_pipeline.universe.tables import market_history

Duration = str | timedelta
"""A timedelta of whole days, or text such as ``30 days`` or ``4 weeks``."""

_ORIGIN = "Add it with `market-data add '*USDT' 1d --from listing`, then run `market-data sync`."


@dataclass(frozen=True, slots=True)
class MembersRequest:
    """A checked request for the members of a market.

    Attributes:
        start: First date.
        end: Date after the last one. None means the newest date that the lake can answer.
        months: Months from one date to the next. 0 if the step is in days.
        days: Days from one date to the next.
        min_age: Days since the listing.
        lookback: Days before a date that count for its ranks.
        quote: End of the symbols to rank. Empty means all.
        exclude: Symbols or patterns that are left out.
    """

    market: Market
    start: date
    end: date | None
    months: int
    days: int
    top: int | None
    by: str
    lookback: int
    min_age: int
    quote: str
    exclude: tuple[str, ...]
    hindsight: bool

    def takes(self, symbol: str) -> bool:
        """Return True if a symbol is ranked."""
        return symbol.endswith(self.quote) and not any(fnmatchcase(symbol, pattern) for pattern in self.exclude)

    def dates(self, newest: date) -> list[date]:
        """Return the dates, in order. Without ``end``, the last one is not after ``newest``."""
        end = newest + clock.DAY if self.end is None else self.end
        found: list[date] = []
        while (day := self._date(len(found))) < end:
            found.append(day)
        return found

    def _date(self, number: int) -> date:
        if self.months:
            return clock.months_before(self.start, -self.months * number)
        return self.start + timedelta(days=self.days * number)


def members_wanted(
    market: str,
    *,
    as_of: Moment | None,
    start: Moment | None,
    end: Moment | None,
    every: Duration,
    top: int | None,
    by: str,
    lookback: Duration,
    min_age: Duration | None,
    quote: str | None,
    exclude: str | Iterable[str],
    hindsight: bool,
) -> MembersRequest:
    """Check a request.

    Raises:
        UsageError: An argument is invalid, or the arguments contradict each other.
    """
    in_market = market_of(market)
    if (as_of is None) == (start is None) or (as_of is not None and end is not None):
        raise UsageError("Pass either as_of, for one date, or start and end, for a table of dates.")
    first = _date_of(as_of, "as_of") if start is None else _date_of(start, "start")
    last = first + clock.DAY if start is None else None if end is None else _date_of(end, "end")
    if last is not None and last <= first:
        raise UsageError(f"end ({last}) is not after start ({first}), so there is no date. end is exclusive.")
    if not measures_of(in_market):
        raise UsageError(f"{in_market} has no klines, so its symbols cannot be ranked by volume. Pass another market.")
    refuse_unknown("column", by, measures_of(in_market), f" to rank by in {in_market}")
    if top is not None and top < 1:
        raise UsageError(f"top is {top}. Pass 1 or more, or None for all symbols.")
    months, days = _step(every)
    return MembersRequest(
        market=in_market,
        start=first,
        end=last,
        months=months,
        days=days,
        top=top,
        by=by,
        lookback=_days("lookback", lookback, at_least=1),
        min_age=0 if min_age is None else _days("min_age", min_age),
        quote=quote or "",
        exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude),
        hindsight=hindsight,
    )


def _date_of(value: Moment | None, name: str) -> date:
    begin = moment_of(value, name)
    if begin != clock.midnight(begin.date()):
        raise UsageError(f"{name} is {value!r}, which has a time of day. Pass a date: it means its midnight in UTC.")
    return begin.date()


def _step(every: Duration) -> tuple[int, int]:
    """Return a step between dates, in months or in days."""
    found = re.fullmatch(r"\s*(\d+)\s+(month|year)s?\s*", every) if isinstance(every, str) else None
    if found and int(found[1]):
        return int(found[1]) * (12 if found[2] == "year" else 1), 0
    return 0, _days("every", every, at_least=1, also=" or '1 month'")


def _days(name: str, value: Duration, *, at_least: int = 0, also: str = "") -> int:
    found = re.fullmatch(r"\s*(\d+)\s+(day|week)s?\s*", value) if isinstance(value, str) else None
    if found:
        number = int(found[1]) * (7 if found[2] == "week" else 1)
    elif isinstance(value, timedelta) and value % clock.DAY == timedelta(0):
        number = value // clock.DAY
    else:
        raise UsageError(
            f"{name} is {value!r}. Pass text such as '30 days' or '4 weeks'{also}, or a timedelta of days."
        )
    if not at_least <= number <= clock.day_number(date.max):
        raise UsageError(f"{name} is {value!r}. It must be at least {at_least} day{'s'[: at_least != 1]}.")
    return number


def members_of(layout: Layout, wanted: MembersRequest, listings: Listings) -> tuple[pa.Table, list[Gap]]:
    """Return the members on each date, and the days that are missing.

    Raises:
        UsageError: A date is not after the first stored candle, or no 1d candles are stored.
        NotStoredError: No candle of the day before a date is stored.
        DamagedFileError: A candle file is unreadable.
    """
    history = market_history(layout, wanted.market, listings)
    if history is None:
        raise UsageError(f"No {wanted.market} klines of interval {INTERVAL} are stored in {layout.root}. {_ORIGIN}")
    first, newest = (clock.day_of_number(day) for day in (history.first, history.newest))
    if wanted.start <= first:
        raise UsageError(
            f"The universe of {wanted.start} is not known: the first stored {wanted.market} {INTERVAL} candle is of "
            f"{first}. Pass {first + clock.DAY} or later, or store earlier candles."
        )
    dates = wanted.dates(newest + clock.DAY)
    for day in dates or [wanted.start]:
        if not history.has_trades(clock.day_number(day) - 1):
            raise NotStoredError(
                f"The universe of {day} is not known: no {wanted.market} {INTERVAL} candle of the day before is "
                f"stored. The newest one is of {newest}. `market-data sync` fetches what is missing."
            )
    table = history.members(
        dates,
        by=wanted.by,
        lookback=wanted.lookback,
        top=wanted.top,
        min_age=wanted.min_age,
        takes=wanted.takes,
        hindsight=wanted.hindsight,
    )
    return table, _gaps(wanted, history, dates)


def _gaps(wanted: MembersRequest, history: MarketHistory, dates: Sequence[date]) -> list[Gap]:
    gaps = []
    for symbol, ranges in history.missing(dates, wanted.lookback, wanted.takes).items():
        key = SeriesKey(EXCHANGE, wanted.market, DataType.KLINES, symbol, INTERVAL)
        gaps += [Gap(key, "missing", clock.midnight(first), clock.midnight(last)) for first, last in ranges]
    return gaps
