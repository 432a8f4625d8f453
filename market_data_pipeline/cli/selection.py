"""Selections: options of a command become series and days. Nothing here reads a disk or a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from difflib import get_close_matches
from typing import Any, TypeVar

import click

from market_data_pipeline import clock
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import INTERVALS, DataType, Market, SeriesKey
from market_data_pipeline.universe import Universe
from market_data_pipeline.universe.config import day_in
from market_data_pipeline.universe.resolved import DATA_TYPES

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Day(click.ParamType[date]):
    """A UTC day on the command line: ``2024-01-31``."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """Read a day, or fail as click does, with exit code 2."""
        if isinstance(value, date):
            return value
        day = day_in(str(value))
        if day is None:
            self.fail(f"{value!r} is not a day. Write it as 2024-01-31 (UTC).", param, ctx)
        return day


@dataclass(frozen=True, slots=True)
class Selection:
    """The options that select series and days. Empty or None means all.

    Attributes:
        markets: Markets.
        data_types: Data types.
        symbols: Symbols as Binance spells them.
        intervals: Kline intervals. With intervals and no data types, only candles are selected.
        first: First UTC day.
        last: Last UTC day, included.
    """

    markets: tuple[Market, ...] = ()
    data_types: tuple[DataType, ...] = ()
    symbols: tuple[str, ...] = ()
    intervals: tuple[str, ...] = ()
    first: date | None = None
    last: date | None = None


_MARKET = click.option(
    "--market", "markets", multiple=True, type=click.Choice([str(m) for m in Market]), help="Market."
)
_DATA_TYPE = click.option(
    "--data-type", "data_types", multiple=True, type=click.Choice([str(d) for d in DATA_TYPES]), help="Data type."
)
_SYMBOL = click.option("--symbol", "symbols", multiple=True, metavar="SYMBOL", help="Symbol, e.g. BTCUSDT.")


def _interval(text: str) -> Callable[[_Command], _Command]:
    choices = click.Choice(list(INTERVALS))
    return click.option("--interval", "intervals", multiple=True, type=choices, metavar="INTERVAL", help=text)


def _adding(command: _Command, *options: Callable[[_Command], _Command]) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def choosing_series(command: _Command) -> _Command:
    """Add the options that choose series to a click command."""
    return _adding(command, _MARKET, _DATA_TYPE, _SYMBOL, _interval("Kline interval, e.g. 1m; klines only, then."))


def choosing_klines(command: _Command) -> _Command:
    """Add the options that choose klines to a click command."""
    return _adding(command, _MARKET, _SYMBOL, _interval("Kline interval, e.g. 1m."))


def choosing(command: _Command) -> _Command:
    """Add the options that choose series and days to a click command."""
    first = click.option("--from", "first", type=Day(), help="First UTC day. Default: the start in universe.yaml.")
    last = click.option(
        "--through", "last", type=Day(), help="Last UTC day, included. Left out: today, or the delisting."
    )
    return choosing_series(_adding(command, first, last))


def selection(
    markets: Sequence[str],
    data_types: Sequence[str],
    symbols: Sequence[str],
    intervals: Sequence[str],
    first: date | None = None,
    last: date | None = None,
) -> Selection:
    """Return the selection of a command's options."""
    return Selection(
        tuple(Market(m) for m in markets),
        tuple(DataType(d) for d in data_types),
        tuple(symbols),
        tuple(intervals),
        first,
        last,
    )


@dataclass(frozen=True, slots=True)
class Chosen:
    """The series and days of a command.

    Attributes:
        wanted: Days of each series, in order; no series without days.
        notes: Notes about days that were left out, with the reason.
    """

    wanted: dict[SeriesKey, list[date]]
    notes: tuple[str, ...] = ()

    @property
    def days(self) -> int:
        """Days of all series together."""
        return sum(map(len, self.wanted.values()))


def collected(universe: Universe, what: Selection) -> list[SeriesKey]:
    """Return the requested series of a universe, regardless of their days.

    Raises:
        UsageError: The universe does not have a selected series. The text lists the existing ones.
    """
    return series_among(universe.series(), what, str(universe.path), "`market-data add` adds a series to it.")


def choose(universe: Universe, what: Selection) -> Chosen:
    """Return the series and days of a selection.

    Days before the start of a series, and days on which its symbol was not listed, are left out.

    Raises:
        UsageError: The universe does not have a selected series, a day is in the future, the last day is before the
            first, the first day is before the start of all selected series, or no day is left.
    """
    check_days(what.first, what.last)
    keys = collected(universe, what)
    if not keys:
        raise UsageError(
            f"{universe.path} collects nothing yet. `market-data add BTCUSDT 1m --from 2024-01-01` adds a series to it."
        )
    wanted: dict[SeriesKey, list[date]] = {}
    notes: list[str] = []
    early: dict[SeriesKey, date] = {}
    for key in keys:
        start, last = universe.start(key), what.last or universe.end(key)
        first, listing = what.first or start, universe.listing(key)
        days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
        listed = [day for day in days if listing.covers(day)]
        if len(listed) < len(days) or not listed:
            notes.append(_left_out(key, days, listed, what, universe))
        if listed and listed[0] < start:
            early[key] = listed[0]
            notes.append(
                f"{universe.said_of_start(key)}: earlier days are left out. Set an earlier `from:` there first."
            )
        if taken := [day for day in listed if day >= start]:
            wanted[key] = taken
    if early and not wanted.keys() - early:
        key = min(early, key=universe.start)
        universe.refuse_before_start(early[key], key)
    if not wanted:
        raise UsageError(" ".join(["No selected day is left.", *notes[:5]]))
    return Chosen(wanted, tuple(notes))


def check_days(first: date | None, last: date | None) -> None:
    """Refuse days that cannot be meant; None is a day that was left out.

    Raises:
        UsageError: a day is in the future, or the last one is before the first.
    """
    today = clock.today()
    for option, day in (("--from", first), ("--through", last)):
        if day is not None and day > today:
            raise UsageError(f"{option} {day} is in the future; today is {today} (UTC).")
    if first and last and last < first:
        raise UsageError(f"--through {last} is before --from {first}.")


def series_among(keys: Sequence[SeriesKey], what: Selection, where: str, advice: str) -> list[SeriesKey]:
    """Return the series that a selection names.

    Args:
        keys: The existing series.
        what: The selection. Its days are ignored.
        where: The file or folder of the series, for the message.
        advice: A sentence on how to add a missing series.

    Raises:
        UsageError: A selected series does not exist. The text lists the existing ones.
    """
    narrow = _Narrowing(where, advice)
    keys = narrow(keys, "market", what.markets, lambda key: key.market)
    if what.intervals and not what.data_types:
        keys = [key for key in keys if key.interval]
    elif what.intervals and not any(data_type.has_interval for data_type in what.data_types):
        raise UsageError(
            f"{', '.join(what.data_types)} has no interval; leave --interval out, or add --data-type klines."
        )
    keys = narrow(keys, "data type", what.data_types, lambda key: key.data_type)
    keys = narrow(keys, "symbol", what.symbols, lambda key: key.symbol)
    if what.intervals:
        candles, other = [key for key in keys if key.interval], [key for key in keys if not key.interval]
        keys = narrow(candles, "interval", what.intervals, lambda key: key.interval or "") + other
    return keys


@dataclass(frozen=True, slots=True)
class _Narrowing:
    where: str
    advice: str

    def __call__(
        self, keys: Iterable[SeriesKey], what: str, values: Sequence[str], value_of: Callable[[SeriesKey], str]
    ) -> list[SeriesKey]:
        keys = list(keys)
        there = list(dict.fromkeys(value_of(key) for key in keys))
        for value in values:
            if value not in there:
                near = get_close_matches(value, there, n=3)
                shown = [*near, *(v for v in there if v not in near)][:40]
                more = f" and {len(there) - len(shown)} more" if len(there) > len(shown) else ""
                raise UsageError(
                    f"{self.where} has no {what} '{value}' in this selection. There are: "
                    f"{', '.join(shown) or 'none'}{more}. {self.advice}"
                )
        return [key for key in keys if not values or value_of(key) in values]


def _left_out(key: SeriesKey, days: Sequence[date], listed: Sequence[date], what: Selection, universe: Universe) -> str:
    if not days and what.first is None:
        return f"{universe.said_of_start(key)}. Set an earlier `from:` there first."
    if not days:
        return f"{key} was listed until {universe.end(key)} only."
    spans = ", ".join(f"{first} to {last or 'now'}" for first, last in universe.listing(key).spans)
    number = len(days) - len(listed)
    return f"{key} was listed from {spans}: {number} {'day is' if number == 1 else 'days are'} left out."
