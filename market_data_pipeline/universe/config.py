"""Parse ``universe.yaml`` and its lock. Errors name the file, the line and the allowed values.

Changes to the files belong to ``universe/edit.py``, resolving patterns to ``universe/resolved.py``.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from market_data_pipeline import clock
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.regular_files import open_regular
from market_data_pipeline.model.datasets import data_types_of
from market_data_pipeline.model.series import DataType, ListingSpans, Market, SeriesKey, intervals_of, is_symbol
from market_data_pipeline.universe.resolved import (
    DATA_TYPES,
    CollectedType,
    Entry,
    Since,
    Universe,
    is_pattern,
    lock_path,
    series_of_entry,
)

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast if PyYAML has libyaml
_TEXT_TAG = "tag:yaml.org,2002:str"


_FROM = (
    "a day such as 2020-01-31, a month (2020-01) or a year (2020), `listing` for the symbol's first day, or "
    "`30 days ago` (also weeks, months and years)"
)


def load_universe(path: Path, *, resolve: bool = True) -> Universe:
    """Read ``universe.yaml`` and its lock, if there is one.

    Args:
        path: Path of ``universe.yaml``.
        resolve: Require that every pattern matches a symbol and every start is known. ``universe refresh`` does not.

    Raises:
        UsageError: a file cannot be read or has mistakes. The text names line and allowed values of each mistake.
    """
    text = read_text(path)
    if text is None:
        raise UsageError(
            f"There is no {path}, the list of series to collect. Create it with `market-data add BTCUSDT 1m --from "
            "2024-01-01`, or set MARKET_DATA_UNIVERSE to another file."
        )
    lock = lock_path(path)
    listed = read_text(lock)
    universe = Universe(parse_universe(text, str(path)), parse_lock(listed, str(lock)) if listed else {}, path)
    if resolve:
        for key in universe.series():
            universe.start(key)
    return universe


def listings_near(path: Path) -> dict[tuple[Market, str], ListingSpans]:
    """Return the listings of the lock of a ``universe.yaml``; empty without one. A lake is readable without a universe.

    Raises:
        UsageError: The universe or its lock has mistakes.
    """
    return dict(load_universe(path, resolve=False).listings) if path.is_file() else {}


def read_text(path: Path) -> str | None:
    """Return the text of a universe or a lock, None if the file does not exist.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        with open(open_regular(path), encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            return file.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


class _Mistakes:
    """Mistakes of a file, collected so that one error reports all of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: list[tuple[int, str]] = []

    def add(self, node: yaml.Node, text: str) -> None:
        self.found.append((_line(node), text))

    def raise_if_any(self) -> None:
        if self.found:
            raise UsageError("\n".join(f"{self.name}, line {line}: {text}" for line, text in sorted(self.found)))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def compose(text: str, name: str) -> yaml.Node | None:
    """Parse a text into YAML nodes, which have line numbers. Return None if the text is empty.

    Raises:
        UsageError: the text is not YAML. The error names the line.
    """
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{name}, line {line}: this is not YAML: {error.problem or error}.") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{name}: this is not YAML: {error}") from None
    return node


def parse_universe(text: str, name: str = "universe.yaml") -> tuple[Entry, ...]:
    """Read the text of a ``universe.yaml``.

    Args:
        name: Name of the file in messages.

    Raises:
        UsageError: the text has mistakes. The error names line and allowed values of each.
    """
    mistakes = _Mistakes(name)
    root = compose(text, name)
    if root is None:
        raise UsageError(f"{name} is empty. It needs a list `collect:` of series to collect.")
    collect = _mapping(root, "the file", ("collect",), ("collect",), mistakes).get("collect")
    entries = [_entry(item, mistakes) for item in _sequence(collect, "collect", mistakes)] if collect else []
    mistakes.raise_if_any()
    good = tuple(entry for entry in entries if entry)
    _refuse_duplicates(good, name)
    return good


def _mapping(
    node: yaml.Node, what: str, allowed: Sequence[str], needed: Sequence[str], mistakes: _Mistakes
) -> dict[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        mistakes.add(node, f"{what} must have the keys {', '.join(allowed)}; here is {_shown(node)}.")
        return {}
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        word = str(key.value)
        if word not in allowed:
            mistakes.add(key, f"{word!r} is not known in {what}{_meant(word, allowed)}. Allowed: {', '.join(allowed)}.")
        elif word in found:
            mistakes.add(key, f"{word!r} appears twice in {what}.")
        else:
            found[word] = value
    for word in needed:
        if word not in found and not any(str(key.value) == word for key, _ in node.value):
            mistakes.add(node, f"{what} needs {word!r}.")
    return found


def _sequence(node: yaml.Node, what: str, mistakes: _Mistakes) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.ScalarNode) and not node.value:
        mistakes.add(node, f"`{what}:` has nothing below it.")
    else:
        mistakes.add(node, f"`{what}:` must be a list; here is {_shown(node)}.")
    return []


def _words(node: yaml.Node, what: str, mistakes: _Mistakes) -> list[yaml.ScalarNode]:
    """Return the words of a list. A single word counts as a list of one."""
    items = [node] if isinstance(node, yaml.ScalarNode) and node.value else _sequence(node, what, mistakes)
    if isinstance(node, yaml.SequenceNode) and not items:
        mistakes.add(node, f"`{what}:` is an empty list.")
    words: list[yaml.ScalarNode] = []
    for item in items:
        if not isinstance(item, yaml.ScalarNode):
            mistakes.add(item, f"`{what}:` is a list of words; here is {_shown(item)}.")
        else:
            words.append(item)
    return words


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value) if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _meant(word: str, allowed: Iterable[str]) -> str:
    near = get_close_matches(word, list(allowed), n=1)
    return f" (meant: {near[0]}?)" if near else ""


_ENTRY_KEYS = ("market", "symbols", "except", *(data_type.value for data_type in DATA_TYPES))


def _entry(node: yaml.Node, mistakes: _Mistakes) -> Entry | None:
    before = len(mistakes.found)
    parts = _mapping(node, "an entry of `collect:`", _ENTRY_KEYS, ("market", "symbols"), mistakes)
    markets = _markets(parts["market"], mistakes) if "market" in parts else ()
    symbols = _symbols(parts["symbols"], "symbols", mistakes) if "symbols" in parts else ()
    excepted = _symbols(parts["except"], "except", mistakes) if "except" in parts else ()
    wanted = tuple(
        found
        for data_type in DATA_TYPES
        if data_type.value in parts
        if _there_is(data_type, markets, parts[data_type.value], mistakes)
        for found in [_wanted(data_type, parts[data_type.value], markets, mistakes)]
        if found
    )
    if len(mistakes.found) > before:
        return None
    if not wanted:
        allowed = ", ".join(f"`{data_type}:`" for data_type in DATA_TYPES)
        mistakes.add(node, f"this entry collects nothing. Add one of: {allowed}.")
        return None
    return Entry(markets, symbols, tuple(symbol for symbol, _ in excepted), wanted, _line(node))


def _markets(node: yaml.Node, mistakes: _Mistakes) -> tuple[Market, ...]:
    found: dict[Market, None] = {}
    for word in _words(node, "market", mistakes):
        if word.value not in list(Market):
            mistakes.add(
                word, f"{word.value!r} is no market{_meant(word.value, Market)}. Allowed: {', '.join(Market)}."
            )
        elif Market(word.value) in found:
            mistakes.add(word, f"market {word.value} appears twice.")
        else:
            found[Market(word.value)] = None
    return tuple(found)


def _symbols(node: yaml.Node, what: str, mistakes: _Mistakes) -> tuple[tuple[str, int], ...]:
    found: dict[str, int] = {}
    for word in _words(node, what, mistakes):
        if word.tag != _TEXT_TAG:
            mistakes.add(word, f"YAML does not read {word.value} as text. Write the symbol in quotes: '{word.value}'.")
        elif not is_symbol(word.value):
            mistakes.add(word, f"{word.value!r} cannot be a symbol: it has a space, a slash or a leading dot.")
        elif word.value != word.value.upper():
            mistakes.add(word, f"symbols are written in capitals: {word.value.upper()}, not {word.value}.")
        elif word.value in found:
            mistakes.add(word, f"symbol {word.value} appears twice, first in line {found[word.value]}.")
        else:
            found[word.value] = _line(word)
    return tuple(found.items())


def _there_is(data_type: DataType, markets: tuple[Market, ...], node: yaml.Node, mistakes: _Mistakes) -> bool:
    without = [market for market in markets if data_type not in data_types_of(market)]
    for market in without:
        allowed = ", ".join(known for known in DATA_TYPES if known in data_types_of(market))
        mistakes.add(node, f"{market} has no {data_type}. Allowed: {allowed}.")
    return not without


def _wanted(
    data_type: DataType, node: yaml.Node, markets: tuple[Market, ...], mistakes: _Mistakes
) -> CollectedType | None:
    needed = ("intervals", "from") if data_type.has_interval else ("from",)
    parts = _mapping(node, f"`{data_type}:`", (*needed, "keep"), needed, mistakes)
    intervals: tuple[str | None, ...] = (None,)
    if data_type.has_interval and "intervals" in parts:
        intervals = _intervals(parts["intervals"], markets, mistakes)
    since = _since(parts["from"], mistakes) if "from" in parts else None
    keep = _keep(parts["keep"], mistakes) if "keep" in parts else None
    if since is None or not intervals:
        return None
    begins = parts["from"]
    return CollectedType(
        data_type,
        intervals,
        since,
        _line(node),
        _line(begins),
        (begins.start_mark.index, begins.end_mark.index),
        keep,
        _line(parts["keep"]) if "keep" in parts else 0,
    )


def _intervals(node: yaml.Node, markets: tuple[Market, ...], mistakes: _Mistakes) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for word in _words(node, "intervals", mistakes):
        for market in markets or (Market.SPOT,):
            if word.value not in intervals_of(market):
                there = ", ".join(intervals_of(market))
                mistakes.add(word, f"there is no kline interval {word.value!r} in {market}. Allowed: {there}.")
                break
        else:
            if word.value in found:
                mistakes.add(word, f"interval {word.value} appears twice.")
            found[word.value] = None
    return tuple(found)


def _since(node: yaml.Node, mistakes: _Mistakes) -> Since | None:
    try:
        return parse_since(str(node.value) if isinstance(node, yaml.ScalarNode) else _shown(node))
    except UsageError as error:
        mistakes.add(node, f"`from:` {error}")
        return None


def _keep(node: yaml.Node, mistakes: _Mistakes) -> Since | None:
    text = " ".join(str(node.value).split()) if isinstance(node, yaml.ScalarNode) else _shown(node)
    if not re.fullmatch(r"0*[1-9][0-9]{0,4} (day|week|month|year)s?", text):
        mistakes.add(node, f"`keep:` cannot be {text!r}. Allowed: an age such as 30 days (also weeks, months, years).")
        return None
    return parse_since(f"{text} ago")


def parse_since(text: str) -> Since:
    """Parse the value of ``from``: a day, month or year, ``listing``, or ``30 days ago`` (weeks, months, years).

    Raises:
        UsageError: the text is none of these, or a day in the future.
    """
    text = " ".join(text.split())
    if text == "listing":
        return Since()
    if ago := re.fullmatch(r"([0-9]{1,5}) (day|week|month|year)s? ago", text):
        number, unit = int(ago[1]), ago[2]
        in_days = {"day": 1, "week": 7}.get(unit)
        if in_days:
            return Since(days_ago=number * in_days)
        return Since(months_ago=number * (12 if unit == "year" else 1))
    period = period_in(text)
    if period is None:
        raise UsageError(f"cannot be {text!r}. Allowed: {_FROM}.")
    if period[0] > clock.today():
        raise UsageError(f"cannot be {period[0]}, which is in the future; today is {clock.today()} (UTC).")
    return Since(day=period[0])


def parse_day(text: str, *, last: bool = False) -> date:
    """Parse a UTC day in every form of :func:`parse_since` but ``listing``.

    Args:
        text: The text.
        last: Return the last day of a month or year that the text names, or today if that is in the future. By default
            return its first day.

    Raises:
        UsageError: the text is not a day, or a day in the future.
    """
    day = parse_since(text).first(None)
    if day is None:
        raise UsageError("cannot be 'listing' here. Name a day.")
    period = period_in(text.strip())
    return min(period[1], clock.today()) if last and period else day


def period_in(text: str) -> tuple[date, date] | None:
    """Return the first and last day of 2020-01-31, 2020-01 or 2020. Return None for anything else."""
    if not re.fullmatch(r"[0-9]{4}(-[0-9]{2}){0,2}", text):
        return None
    try:
        first = date.fromisoformat(f"{text}-01-01"[:10])
    except ValueError:
        return None
    month = 12 if len(text) == 4 else first.month
    last = first if len(text) == 10 else first.replace(month=month, day=monthrange(first.year, month)[1])
    return first, last


def day_in(text: str) -> date | None:
    """Parse a day written as 2020-01-31. Return None for anything else."""
    try:
        return date.fromisoformat(text) if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text) else None
    except ValueError:
        return None


def _refuse_duplicates(entries: Sequence[Entry], name: str) -> None:
    first: dict[SeriesKey, int] = {}
    for entry in entries:
        for market in entry.markets:
            for symbol, line in entry.symbols:
                if is_pattern(symbol):
                    continue
                for key, _ in series_of_entry(entry, market, symbol):
                    if key in first:
                        raise UsageError(
                            f"{name}, line {line}: {key} is collected twice, first in line {first[key]}. "
                            "Remove one of the two."
                        )
                    first[key] = line


def parse_lock(text: str, name: str = "universe.lock.yaml") -> dict[tuple[Market, str], ListingSpans]:
    """Read the text of a lock.

    Raises:
        UsageError: the text does not have the form that ``universe refresh`` writes. The error names the line.
    """
    mistakes = _Mistakes(name)
    root = compose(text, name)
    found: dict[tuple[Market, str], ListingSpans] = {}
    markets = _mapping(root, "the lock", tuple(Market), (), mistakes) if root else {}
    for word, symbols in markets.items():
        if not isinstance(symbols, yaml.MappingNode):
            mistakes.add(symbols, f"`{word}:` must have symbols below it; here is {_shown(symbols)}.")
            continue
        for symbol, spans in symbols.value:
            found[Market(word), str(symbol.value)] = ListingSpans(tuple(_spans(spans, mistakes)))
    if mistakes.found:
        mistakes.found.append((mistakes.found[-1][0], "`market-data universe refresh` rewrites this file."))
    mistakes.raise_if_any()
    return found


def _spans(node: yaml.Node, mistakes: _Mistakes) -> Iterator[tuple[date, date | None]]:
    for item in _sequence(node, "a symbol", mistakes):
        parts = _mapping(item, "a span", ("from", "until"), ("from", "until"), mistakes)
        first, last = (str(parts[word].value) if word in parts else "" for word in ("from", "until"))
        begin, end = day_in(first), day_in(last)
        if begin is None or (end is None and last not in ("null", "~", "")):
            mistakes.add(item, "a span has `from` and `until`, days such as 2020-01-01; until may be null.")
        else:
            yield begin, end
