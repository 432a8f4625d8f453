"""Selections: arguments and options of a command become series and days. Nothing here reads a disk or a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from difflib import get_close_matches
from functools import partial, wraps
from typing import Any, TypeAlias, TypeVar

import click

from market_data_pipeline import clock
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import INTERVALS, DataType, Market, SeriesKey
from market_data_pipeline.universe import Universe
from market_data_pipeline.universe.config import parse_day
from market_data_pipeline.universe.resolved import DATA_TYPES

_T = TypeVar("_T")
_Command: TypeAlias = Callable[..., Any]


class Day(click.ParamType[_T]):
    """A UTC day on the command line, in every form of ``from:`` in universe.yaml, or ``today`` or ``yesterday``."""

    name = "day"

    def __init__(self, parse: Callable[[str], _T]) -> None:
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _T:  # noqa: ARG002 - click's
        """Parse a day.

        Raises:
            UsageError: the text is not a day, or a day in the future.
        """
        text = str(value).strip()
        named = {"today": clock.today(), "yesterday": clock.today() - clock.DAY}
        try:
            return self._parse(str(named.get(text, text)))
        except UsageError as error:
            raise UsageError(f"{param.opts[0] if param else 'The day'} {error}") from None


def through_option(default: str) -> Callable[[_Command], _Command]:
    """Return the option ``--through``, with the default that its help names."""
    text = f"Last UTC day, included; of a month or year, its last day. Default: {default}."
    return click.option("--through", "last", type=Day(partial(parse_day, last=True)), help=text)


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


def choosing(*, klines_only: bool = False, days: tuple[str, str] | None = None) -> Callable[[_Command], _Command]:
    """Add arguments and options that select series to a click command. It gets them as ``what``, a :class:`Selection`.

    Args:
        klines_only: Leave out ``--data-type``.
        days: The defaults of ``--from`` and ``--through``, for their help. None leaves both out.
    """
    options: list[Callable[[_Command], _Command]] = [
        click.argument("words", nargs=-1, metavar="[SYMBOL|INTERVAL]..."),
        _several("--market", list(Market), "Market."),
        _several("--data-type", DATA_TYPES, "Data type."),
        click.option("--symbol", "symbols", multiple=True, metavar="SYMBOL", help="Symbol, e.g. BTCUSDT."),
        _several("--interval", INTERVALS, "Kline interval, e.g. 1m. Selects klines only.", metavar="INTERVAL"),
    ]
    if klines_only:
        del options[2]
    if days is not None:
        text = f"First UTC day, e.g. 2024-01-31, 2024-01, 2024, yesterday, '3 years ago'. Default: {days[0]}."
        options += [click.option("--from", "first", type=Day(parse_day), help=text), through_option(days[1])]

    def add(command: _Command) -> _Command:
        @wraps(command)
        def run(
            words: Sequence[str],
            markets: Sequence[str],
            symbols: Sequence[str],
            intervals: Sequence[str],
            data_types: Sequence[str] = (),
            first: date | None = None,
            last: date | None = None,
            **others: Any,
        ) -> Any:
            named = read_words(words)
            what = Selection(
                tuple(Market(market) for market in markets),
                (*(DataType(data_type) for data_type in data_types), *named.data_types),
                (*symbols, *named.symbols),
                (*intervals, *named.intervals),
                first,
                last,
            )
            check_days(first, last)
            return command(what=what, **others)

        made: _Command = run
        for option in reversed(options):
            made = option(made)
        return made

    return add


def _several(name: str, values: Iterable[str], text: str, metavar: str | None = None) -> Callable[[_Command], _Command]:
    choices = click.Choice([str(value) for value in values])
    plural = f"{name.strip('-').replace('-', '_')}s"
    return click.option(name, plural, multiple=True, type=choices, metavar=metavar, help=text)


def read_words(words: Iterable[str]) -> Selection:
    """Return the selection that arguments name: symbols, kline intervals and data types, in any order.

    Raises:
        UsageError: A word is none of them.
    """
    types = {data_type.lower(): data_type for data_type in DataType}
    symbols: list[str] = []
    intervals: list[str] = []
    data_types: list[DataType] = []
    for word in dict.fromkeys(words):
        if word in INTERVALS:
            intervals.append(word)
        elif word.lower() in types:
            data_types.append(types[word.lower()])
        elif re.fullmatch(r"[0-9]{1,2}[a-zA-Z]", word):
            raise UsageError(f"{word!r} is neither a kline interval nor aggTrades. There are: {', '.join(INTERVALS)}.")
        elif word != word.upper():
            raise UsageError(f"Symbols are written in capitals: {word.upper()}, not {word}.")
        else:
            symbols.append(word)
    if intervals and data_types and not any(data_type.has_interval for data_type in data_types):
        data_types.insert(0, DataType.KLINES)
    return Selection((), tuple(data_types), tuple(symbols), tuple(intervals))


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
        UsageError: The universe does not have a selected series, or no day is left. The text lists the existing series.
    """
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
            notes.append(f"{universe.said_of_start(key)}: earlier days are left out. {universe.earlier_advice(key)}")
        if taken := [day for day in listed if day >= start]:
            wanted[key] = taken
    if early and not wanted.keys() - early:
        key = min(early, key=universe.start)
        universe.refuse_before_start(early[key], key)
    if not wanted:
        raise UsageError(" ".join(["No selected day is left.", *notes[:5]]))
    return Chosen(wanted, tuple(notes))


def check_days(first: date | None, last: date | None) -> None:
    """Refuse a last day before the first one. None is a day that was left out.

    Raises:
        UsageError: the last day is before the first.
    """
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

    def narrow(
        keys: Sequence[SeriesKey], name: str, values: Sequence[str], value_of: Callable[[SeriesKey], str]
    ) -> list[SeriesKey]:
        there = list(dict.fromkeys(map(value_of, keys)))
        for value in values:
            if value not in there:
                near = get_close_matches(value, there, n=3)
                shown = [*near, *(v for v in there if v not in near)][:40]
                more = f" and {len(there) - len(shown)} more" if len(there) > len(shown) else ""
                raise UsageError(
                    f"{where} has no {name} '{value}' in this selection. There are: "
                    f"{', '.join(shown) or 'none'}{more}. {advice}"
                )
        return [key for key in keys if not values or value_of(key) in values]

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
    return list(keys)


def _left_out(key: SeriesKey, days: Sequence[date], listed: Sequence[date], what: Selection, universe: Universe) -> str:
    if not days and what.first is None:
        return f"{universe.said_of_start(key)}. {universe.earlier_advice(key)}"
    if not days:
        return f"{key} was listed until {universe.end(key)} only."
    spans = ", ".join(f"{first} to {last or 'now'}" for first, last in universe.listing(key).spans)
    number = len(days) - len(listed)
    return f"{key} was listed from {spans}: {number} {'day is' if number == 1 else 'days are'} left out."
