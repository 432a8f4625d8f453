"""What to collect: ``universe.yaml``, written by hand, and ``universe.lock.yaml``, its symbols with their listing days.

What belongs here: reading both files, with an error that names file and line for every mistake; working out the series
and the days that they ask for; making the lock from the archive's listing; adding an entry without touching the rest.
What does not: downloading (``sources``), and what is inside the data (``specs.py``).

Loading needs no network: patterns such as ``*USDT`` resolve against the lock, which ``market-data universe refresh``
writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import yaml

from market_data_pipeline import clock
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import files
from market_data_pipeline.series import EXCHANGE, DataType, Listing, Market, SeriesKey, intervals_of
from market_data_pipeline.specs import ARCHIVE_BEGINS, SPECS

DELISTED_AFTER = timedelta(days=14)
"""Daily files that are absent for longer than this mean that a symbol was not listed.

The archive's publication has stalled for up to 9 days, which must not look like a delisting; spot LUNAUSDT was away for
17 days in May 2022, which must.
"""

ANCHORS = {Market.SPOT: "BTCUSDT", Market.UM: "BTCUSDT", Market.CM: "BTCUSD_PERP"}
"""Symbols whose newest daily file tells how far the archive of a market has got, whatever else is collected."""

UM_FILES_BEGIN = date(2020, 1, 1)
"""About when daily files of um begin; symbols listed by then traded before, since 2019-09, which only REST knows."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML was built with libyaml
_TEXT_TAG = "tag:yaml.org,2002:str"
_TYPES = tuple(dict.fromkeys(data_type for _, data_type in SPECS))
_FROM = "a day such as 2020-01-01, `listing` for the symbol's first day, or `30 days ago`"

Listings = Mapping[tuple[Market, str], Listing]


@dataclass(frozen=True, slots=True)
class Since:
    """From which day on a series is collected, as ``from:`` says.

    Attributes:
        day: A fixed day; None where the two others say it.
        days_ago: A number of days before today, so that the start moves on; None where it does not.

    With neither, collecting starts with the symbol's listing.
    """

    day: date | None = None
    days_ago: int | None = None

    def first(self, listed: date | None) -> date | None:
        """The first day to collect of a symbol; None where it is the listing's and that is not known."""
        wanted = self.day if self.days_ago is None else clock.today() - timedelta(days=self.days_ago)
        return max((day for day in (wanted, listed) if day), default=None)

    def __str__(self) -> str:
        if self.day is not None:
            return self.day.isoformat()
        return "listing" if self.days_ago is None else f"{self.days_ago} days ago"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One data type of an entry: for klines its intervals, and from when on.

    Attributes:
        data_type: Klines, aggTrades.
        intervals: Kline intervals; ``(None,)`` for a data type that has none.
        since: From when on.
        line: Line in the file, from 1.
    """

    data_type: DataType
    intervals: tuple[str | None, ...]
    since: Since
    line: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of ``universe.yaml``.

    Attributes:
        markets: The markets that it speaks of.
        symbols: Symbols or patterns (``*`` any letters, ``?`` one), with the line of each.
        excepted: Symbols or patterns that the entry's patterns leave out.
        wanted: What to collect of them.
        line: Line in the file, from 1.
    """

    markets: tuple[Market, ...]
    symbols: tuple[tuple[str, int], ...]
    excepted: tuple[str, ...]
    wanted: tuple[Wanted, ...]
    line: int

    def takes(self, pattern: str, symbol: str) -> bool:
        """Whether one of the entry's patterns means a symbol."""
        return fnmatchcase(symbol, pattern) and not any(fnmatchcase(symbol, left_out) for left_out in self.excepted)


def is_pattern(symbol: str) -> bool:
    """Whether a symbol in ``universe.yaml`` stands for many."""
    return "*" in symbol or "?" in symbol


@dataclass(frozen=True)
class Universe:
    """What to collect, resolved: series with their first day and the days on which they were listed.

    A symbol that is named goes before a pattern that means it too, so that one symbol can be collected from another
    day than the rest; where several patterns mean the same series, the earliest start holds.

    Attributes:
        entries: What ``universe.yaml`` says.
        listings: What the lock says.
        path: Where ``universe.yaml`` lies, for messages.
    """

    entries: tuple[Entry, ...]
    listings: Listings
    path: Path = Path("universe.yaml")

    @cached_property
    def _resolved(self) -> dict[SeriesKey, list[Since]]:
        named: dict[SeriesKey, list[Since]] = {}
        meant: dict[SeriesKey, list[Since]] = {}
        for entry in self.entries:
            for market in entry.markets:
                for symbol, line in entry.symbols:
                    target = meant if is_pattern(symbol) else named
                    for found in self._symbols(entry, market, symbol, line):
                        for key, since in _series_of(entry, market, found):
                            target.setdefault(key, []).append(since)
        return dict(sorted({**meant, **named}.items(), key=lambda item: _order(item[0])))

    def _symbols(self, entry: Entry, market: Market, symbol: str, line: int) -> list[str]:
        if not is_pattern(symbol):
            return [symbol]
        found = [name for where, name in self.listings if where is market and entry.takes(symbol, name)]
        if not found:
            raise UsageError(
                f"{self.path}, line {line}: {lock_path(self.path).name} has no symbol of {market} that {symbol} means. "
                "`market-data universe refresh` writes it from Binance's archive."
            )
        return found

    def series(self) -> list[SeriesKey]:
        """All series to collect, in the order of markets, data types, symbols and intervals.

        Derived series (tradeProfile) are not among them.

        Raises:
            UsageError: a pattern means nothing, because the lock is missing or older than the pattern.
        """
        return list(self._resolved)

    def __contains__(self, key: SeriesKey) -> bool:
        return _source_of(key) in self._resolved

    def start(self, key: SeriesKey) -> date:
        """The first UTC day to collect: what ``from:`` says, but not before the listing, nor before Binance.

        A derived series starts with what it is derived from.

        Raises:
            UsageError: the series is not in the universe, or starts with a listing that is not known.
        """
        key = _source_of(key)
        if key not in self._resolved:
            raise UsageError(self._unknown(key))
        listed = self.listing(key).first
        days = [since.first(listed) for since in self._resolved[key]]
        if None in days:
            raise UsageError(
                f"{self.path}: {key} is to be collected from its listing on, and that day is not known. "
                "`market-data universe refresh` finds it, or give a day: `from: 2020-01-01`."
            )
        return max(min(day for day in days if day), ARCHIVE_BEGINS)

    def end(self, key: SeriesKey) -> date:
        """The last UTC day to collect: the last listed one, or today."""
        last = self.listing(key).last
        return min(last, clock.today()) if last else clock.today()

    def listing(self, key: SeriesKey) -> Listing:
        """When the symbol was listed, from the lock; an empty listing where nothing is known."""
        return self.listings.get((key.market, key.symbol), Listing())

    def spans(self, key: SeriesKey) -> list[tuple[date, date]]:
        """Runs of UTC days to collect, both ends included: from the start to the end, without days between listings."""
        first, last = self.start(key), self.end(key)
        listed = self.listing(key).spans or ((first, None),)
        runs = [(max(first, begin), min(last, until or last)) for begin, until in listed]
        return [(begin, until) for begin, until in runs if begin <= until]

    def days(self, key: SeriesKey) -> list[date]:
        """All UTC days to collect, in order."""
        return [first + timedelta(days=n) for first, last in self.spans(key) for n in range((last - first).days + 1)]

    def first_day(self) -> date:
        """The earliest day that any series may be asked for; it does not move as days go by.

        It is the earliest start, save where ``30 days ago`` is the earliest: such a start moves, so there the
        listing stands for it.
        """
        fixed: list[date] = []
        moving: list[tuple[date, date]] = []
        for key, sinces in self._resolved.items():
            listed = self.listing(key).first or ARCHIVE_BEGINS
            for since in sinces:
                day = since.first(listed) or listed
                if since.days_ago is None:
                    fixed.append(day)
                else:
                    moving.append((day, listed))
        earliest = min(fixed, default=None)
        settled = [listed for day, listed in moving if earliest is None or day < earliest]
        return min([*fixed, *settled], default=ARCHIVE_BEGINS)

    def refuse_before_first(self, day: date) -> None:
        """Refuse a day that is no partition in Dagster, because everything collected begins later.

        Raises:
            UsageError: the text says when it begins and what to change.
        """
        if day < self.first_day():
            raise UsageError(
                f"{day} is before all that {self.path} collects, which begins on {self.first_day()}. "
                "Set an earlier `from:` there first."
            )

    def _unknown(self, key: SeriesKey) -> str:
        near = [
            k for k in self._resolved if (k.market, k.data_type, k.symbol) == (key.market, key.data_type, key.symbol)
        ]
        near = near or [k for k in self._resolved if (k.market, k.data_type) == (key.market, key.data_type)]
        there = ", ".join(str(k) for k in (near or list(self._resolved))[:12])
        return f"{key} is not in {self.path}. There are: {there or 'none'}. `market-data add` puts a series into it."


def _series_of(entry: Entry, market: Market, symbol: str) -> Iterator[tuple[SeriesKey, Since]]:
    for wanted in entry.wanted:
        for interval in wanted.intervals:
            yield SeriesKey(EXCHANGE, market, wanted.data_type, symbol, interval), wanted.since


def _source_of(key: SeriesKey) -> SeriesKey:
    if key.data_type is not DataType.TRADE_PROFILE:
        return key
    return SeriesKey(key.exchange, key.market, DataType.AGG_TRADES, key.symbol)


def _order(key: SeriesKey) -> tuple[int, int, str, int]:
    interval = intervals_of(key.market).index(key.interval) if key.interval else 0
    return list(Market).index(key.market), list(DataType).index(key.data_type), key.symbol, interval


# --- reading ---------------------------------------------------------------------------------------------------


def lock_path(universe: Path) -> Path:
    """Where the lock of a universe lies: ``universe.lock.yaml`` beside ``universe.yaml``."""
    return universe.with_name(f"{universe.stem}.lock{universe.suffix or '.yaml'}")


def load_universe(path: Path, *, resolve: bool = True) -> Universe:
    """Read ``universe.yaml`` and the lock beside it, if there is one.

    Args:
        path: The universe's file.
        resolve: Whether every pattern must mean something and every start be known. ``universe refresh`` does without.

    Raises:
        UsageError: a file cannot be read or has mistakes; each is told with its line and what is allowed.
    """
    text = read_text(path)
    if text is None:
        raise UsageError(
            f"There is no {path}. It says what to collect: `market-data add BTCUSDT 1m --from 2024-01-01` begins one, "
            "and MARKET_DATA_UNIVERSE names another file."
        )
    lock = lock_path(path)
    listed = read_text(lock)
    universe = Universe(parse_universe(text, str(path)), parse_lock(listed, str(lock)) if listed else {}, path)
    if resolve:
        for key in universe.series():
            universe.start(key)
    return universe


def read_text(path: Path) -> str | None:
    """The text of a universe or a lock, None where there is no such file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


class _Mistakes:
    """Mistakes of a file, gathered so that all are told at once."""

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


def _compose(text: str, name: str) -> yaml.Node | None:
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
        text: The text.
        name: What messages call the file.

    Raises:
        UsageError: the text has mistakes; each is told with its line and what is allowed.
    """
    mistakes = _Mistakes(name)
    root = _compose(text, name)
    if root is None:
        raise UsageError(f"{name} is empty. It has a list `collect:` with what to collect.")
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
            mistakes.add(key, f"{word!r} stands twice in {what}.")
        else:
            found[word] = value
    for word in needed:
        if word not in found and not any(str(key.value) == word for key, _ in node.value):
            mistakes.add(node, f"{what} lacks {word!r}.")
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
    """The words of a list, or one word that stands for a list of one."""
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


_ENTRY_KEYS = ("market", "symbols", "except", *(data_type.value for data_type in _TYPES))


def _entry(node: yaml.Node, mistakes: _Mistakes) -> Entry | None:
    before = len(mistakes.found)
    parts = _mapping(node, "an entry of `collect:`", _ENTRY_KEYS, ("market", "symbols"), mistakes)
    markets = _markets(parts["market"], mistakes) if "market" in parts else ()
    symbols = _symbols(parts["symbols"], "symbols", mistakes) if "symbols" in parts else ()
    excepted = _symbols(parts["except"], "except", mistakes) if "except" in parts else ()
    wanted = tuple(
        found
        for data_type in _TYPES
        if data_type.value in parts
        for found in [_wanted(data_type, parts[data_type.value], markets, mistakes)]
        if found
    )
    if len(mistakes.found) > before:
        return None
    if not wanted:
        allowed = ", ".join(f"`{data_type}:`" for data_type in _TYPES)
        mistakes.add(node, f"this entry collects nothing. Say what: {allowed}.")
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
            mistakes.add(word, f"market {word.value} stands twice.")
        else:
            found[Market(word.value)] = None
    return tuple(found)


def _symbols(node: yaml.Node, what: str, mistakes: _Mistakes) -> tuple[tuple[str, int], ...]:
    found: dict[str, int] = {}
    for word in _words(node, what, mistakes):
        if word.tag != _TEXT_TAG:
            mistakes.add(word, f"{word.value} is not text to YAML: write the symbol in quotes, '{word.value}'.")
        elif not re.fullmatch(r"[^\s/\\.][^\s/\\]*", word.value):
            mistakes.add(word, f"{word.value!r} cannot be a symbol: it has a space, a slash or a leading dot.")
        elif word.value != word.value.upper():
            mistakes.add(word, f"symbols are written in capitals: {word.value.upper()}, not {word.value}.")
        elif word.value in found:
            mistakes.add(word, f"symbol {word.value} stands twice (line {found[word.value]} too).")
        else:
            found[word.value] = _line(word)
    return tuple(found.items())


def _wanted(data_type: DataType, node: yaml.Node, markets: tuple[Market, ...], mistakes: _Mistakes) -> Wanted | None:
    allowed = ("intervals", "from") if data_type is DataType.KLINES else ("from",)
    parts = _mapping(node, f"`{data_type}:`", allowed, allowed, mistakes)
    intervals: tuple[str | None, ...] = (None,)
    if data_type is DataType.KLINES and "intervals" in parts:
        intervals = _intervals(parts["intervals"], markets, mistakes)
    since = _since(parts["from"], mistakes) if "from" in parts else None
    return Wanted(data_type, intervals, since, _line(node)) if since and intervals else None


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
                mistakes.add(word, f"interval {word.value} stands twice.")
            found[word.value] = None
    return tuple(found)


def _since(node: yaml.Node, mistakes: _Mistakes) -> Since | None:
    try:
        return parse_since(str(node.value) if isinstance(node, yaml.ScalarNode) else _shown(node))
    except UsageError as error:
        mistakes.add(node, f"`from:` {error}")
        return None


def parse_since(text: str) -> Since:
    """Read what may stand after ``from``: a day, ``listing`` or ``30 days ago``.

    Raises:
        UsageError: it is none of these, or a day in the future.
    """
    ago = re.fullmatch(r"(\d{1,5}) days? ago", text.strip())
    if ago:
        return Since(days_ago=int(ago[1]))
    if text.strip() == "listing":
        return Since()
    day = _day(text.strip())
    if day is None:
        raise UsageError(f"cannot be {text!r}. Allowed: {_FROM}.")
    if day > clock.today():
        raise UsageError(f"cannot be {day}, which is in the future; today is {clock.today()} (UTC).")
    return Since(day=day)


def _day(text: str) -> date | None:
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
                for key, _ in _series_of(entry, market, symbol):
                    if key in first:
                        raise UsageError(
                            f"{name}, line {line}: {key} is collected twice; the other is in line {first[key]}. "
                            "Take it out of one of them."
                        )
                    first[key] = line


# --- the lock --------------------------------------------------------------------------------------------------

LOCK_HEADER = """\
# Written by `market-data universe refresh` from the listing of Binance's archive; commit it beside the universe.
# The UTC days on which each symbol was listed, both included; until null: listed still. A relisting is a second span.
"""


def parse_lock(text: str, name: str = "universe.lock.yaml") -> dict[tuple[Market, str], Listing]:
    """Read the text of a lock.

    Raises:
        UsageError: it is not what ``universe refresh`` writes; the text names the line.
    """
    mistakes = _Mistakes(name)
    root = _compose(text, name)
    found: dict[tuple[Market, str], Listing] = {}
    markets = _mapping(root, "the lock", tuple(Market), (), mistakes) if root else {}
    for word, symbols in markets.items():
        if not isinstance(symbols, yaml.MappingNode):
            mistakes.add(symbols, f"`{word}:` must have symbols below it; here is {_shown(symbols)}.")
            continue
        for symbol, spans in symbols.value:
            found[Market(word), str(symbol.value)] = Listing(tuple(_spans(spans, mistakes)))
    if mistakes.found:
        mistakes.found.append((mistakes.found[-1][0], "`market-data universe refresh` writes this file anew."))
    mistakes.raise_if_any()
    return found


def _spans(node: yaml.Node, mistakes: _Mistakes) -> Iterator[tuple[date, date | None]]:
    for item in _sequence(node, "a symbol", mistakes):
        parts = _mapping(item, "a span", ("from", "until"), ("from", "until"), mistakes)
        first, last = (str(parts[word].value) if word in parts else "" for word in ("from", "until"))
        begin, end = _day(first), _day(last)
        if begin is None or (end is None and last not in ("null", "~", "")):
            mistakes.add(item, "a span has `from` and `until`, days such as 2020-01-01; until may be null.")
        else:
            yield begin, end


def render_lock(listings: Listings) -> str:
    """The text of a lock: sorted, one line a symbol, so that a change of one symbol is a change of one line."""
    lines = [LOCK_HEADER]
    for market in Market:
        symbols = sorted(symbol for where, symbol in listings if where is market)
        if symbols:
            lines.append(f"{market}:\n")
        for symbol in symbols:
            spans = ", ".join(
                f"{{from: {first}, until: {last or 'null'}}}" for first, last in listings[market, symbol].spans
            )
            lines.append(f"  {_scalar(symbol)}: [{spans}]\n")
    return "".join(lines)


def _scalar(symbol: str) -> str:
    plain = symbol.isalnum() or re.fullmatch(r"\w+", symbol)
    return symbol if plain and yaml.safe_load(symbol) == symbol else json.dumps(symbol, ensure_ascii=False)


def spans_of(days: Iterable[date], newest: date) -> tuple[tuple[date, date | None], ...]:
    """Listing spans from the days that have a daily file.

    Args:
        days: Days with a file, in any order.
        newest: The newest day that the market's archive has for any symbol.

    Returns:
        Spans, both days included. A hole of more than :data:`DELISTED_AFTER` separates two; the last is open unless it
        ended longer than that before ``newest``.
    """
    spans: list[tuple[date, date]] = []
    for day in sorted(set(days)):
        if spans and day - spans[-1][1] <= DELISTED_AFTER + timedelta(days=1):
            spans[-1] = (spans[-1][0], day)
        else:
            spans.append((day, day))
    if not spans:
        return ()
    *closed, (first, last) = spans
    return (*closed, (first, last if newest - last > DELISTED_AFTER else None))


class ListedFile(Protocol):
    """A file in the archive's listing."""

    @property
    def key(self) -> str:
        """Its key in the bucket."""


class ArchiveListing(Protocol):
    """What :func:`refresh` asks of ``sources.vision.Archive``; both may be called from several threads."""

    def list_folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders right below a prefix."""

    def list_files(self, prefix: str) -> Sequence[ListedFile]:
        """Files right below a prefix."""


class FirstCandle(Protocol):
    """What :func:`refresh` asks of REST."""

    def first_candle_day(self, key: SeriesKey) -> date | None:
        """The UTC day of a series' first candle, None where it has none or REST cannot be asked."""


def refresh(
    universe: Universe,
    archive: ArchiveListing,
    rest: FirstCandle | None = None,
    *,
    threads: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[Market, str], Listing]:
    """Resolve a universe over the archive's listing: which symbols it means and when each was listed.

    A listing day is one that has a daily file of the 1d klines (two keys a day, a thousand a page, so that ten years of
    a symbol are eight requests). Symbols that um had before its daily files begin are asked of REST, if it is given;
    otherwise their listing begins with the first file.

    Args:
        universe: What to resolve; its old lock is not looked at.
        archive: The archive's listing.
        rest: Where the first candle can be asked for.
        threads: Symbols asked for at the same time.
        on_progress: Called with symbols done and symbols in all.

    Returns:
        Listings of every symbol that the universe means.

    Raises:
        UsageError: a symbol does not exist in its market, or a pattern means none; each is told with its line.
    """
    wanted: list[tuple[Market, str]] = []
    mistakes: dict[tuple[int, str], None] = {}
    for market in dict.fromkeys(market for entry in universe.entries for market in entry.markets):
        there = sorted(_symbols_of(archive, market))
        chosen = _choose(universe, market, there, mistakes)
        wanted += [(market, symbol) for symbol in there if symbol in chosen]
    if mistakes:
        raise UsageError("\n".join(f"{universe.path}, line {line}: {text}" for line, text in sorted(mistakes)))
    return _listings_of(wanted, archive, rest, threads=threads, on_progress=on_progress)


def look_up(
    market: Market, symbol: str, archive: ArchiveListing, rest: FirstCandle | None = None
) -> dict[tuple[Market, str], Listing]:
    """What :func:`refresh` finds of one symbol.

    Raises:
        UsageError: there is no such symbol; the text names those near to it.
    """
    there = sorted(_symbols_of(archive, market))
    if symbol not in there:
        text = _no_such_symbol(market, symbol, there)
        raise UsageError(text[0].upper() + text[1:])
    return _listings_of([(market, symbol)], archive, rest)


def _listings_of(
    wanted: Sequence[tuple[Market, str]],
    archive: ArchiveListing,
    rest: FirstCandle | None,
    *,
    threads: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[Market, str], Listing]:
    anchors = ((market, ANCHORS[market]) for market, _ in wanted)
    asked = list(dict.fromkeys([*wanted, *anchors]))
    days: dict[tuple[Market, str], list[date]] = {}
    with ThreadPoolExecutor(threads) as pool:
        answers = pool.map(lambda item: _listed_days(archive, *item), asked)
        for number, (item, found) in enumerate(zip(asked, answers, strict=True), start=1):
            days[item] = found
            if on_progress:
                on_progress(number, len(asked))
    newest = {m: max((d for (where, _), ds in days.items() if where is m for d in ds), default=None) for m, _ in asked}
    return {
        (market, symbol): Listing(spans)
        for market, symbol in wanted
        if (last := newest[market]) is not None
        if (spans := _with_first_candle(spans_of(days[market, symbol], last), market, symbol, rest))
    }


def _symbols_of(archive: ArchiveListing, market: Market) -> set[str]:
    prefixes = (f"data/{market.archive_folder}/daily/{data_type}/" for data_type in _TYPES)
    folders = (folder for prefix in prefixes for folder in archive.list_folders(prefix))
    return set(folders)


def _choose(
    universe: Universe, market: Market, there: Sequence[str], mistakes: dict[tuple[int, str], None]
) -> set[str]:
    chosen: set[str] = set()
    for entry in universe.entries:
        if market not in entry.markets:
            continue
        for symbol, line in entry.symbols:
            found = {s for s in there if entry.takes(symbol, s)} if is_pattern(symbol) else {symbol} & set(there)
            chosen |= found
            if not found:
                mistakes[line, _no_such_symbol(market, symbol, there)] = None
    return chosen


def _no_such_symbol(market: Market, symbol: str, there: Sequence[str]) -> str:
    if not there:
        return f"the archive has no symbol of {market} at all."
    near = get_close_matches(symbol, there, n=5, cutoff=0.5) or list(there[:5])
    return f"{market} has no symbol {symbol}. Near to it: {', '.join(near)} ({len(there)} symbols in all)."


def _listed_days(archive: ArchiveListing, market: Market, symbol: str) -> list[date]:
    daily = SeriesKey(EXCHANGE, market, DataType.KLINES, symbol, "1d")
    found = _days_of(archive, daily.archive_folder())
    if found:
        return found
    # Not every copy of the archive has the 1d klines of every symbol: the next longest interval says the same.
    above = daily.archive_folder().removesuffix("1d/")
    there = archive.list_folders(above)
    for interval in reversed(intervals_of(market)):
        if interval in there and (found := _days_of(archive, f"{above}{interval}/")):
            return found
    return _days_of(archive, SeriesKey(EXCHANGE, market, DataType.AGG_TRADES, symbol).archive_folder())


def _days_of(archive: ArchiveListing, folder: str) -> list[date]:
    names = (re.search(r"-(\d{4}-\d{2}-\d{2})\.zip$", file.key) for file in archive.list_files(folder))
    return [day for name in names if name and (day := _day(name[1]))]


def _with_first_candle(
    spans: tuple[tuple[date, date | None], ...], market: Market, symbol: str, rest: FirstCandle | None
) -> tuple[tuple[date, date | None], ...]:
    if rest is None or not spans or market is not Market.UM or spans[0][0] > UM_FILES_BEGIN:
        return spans
    first = rest.first_candle_day(SeriesKey(EXCHANGE, market, DataType.KLINES, symbol, "1d"))
    return ((min(first, spans[0][0]), spans[0][1]), *spans[1:]) if first else spans


# --- adding ----------------------------------------------------------------------------------------------------

NEW_UNIVERSE = """\
# What to collect. Every entry names a market (spot, um, cm), symbols, and what of them from which day on.
collect:
"""


def add_series(text: str, key: SeriesKey, since: Since, name: str = "universe.yaml") -> str:
    """Add a series to the text of a ``universe.yaml``; comments and all else stay as they are.

    Args:
        text: The text; empty for a new file.
        key: The series.
        since: From when on.
        name: What messages call the file.

    Returns:
        The text with an entry for the series at its end, or the same text where the series is named already. The
        entry that a former call made for the same series alone gets its ``from:`` changed where it is later.

    Raises:
        UsageError: the text has mistakes, or is written in a way that cannot be added to.
    """
    text = text if text.strip() else NEW_UNIVERSE
    body = _without_empty_list(text if text.endswith("\n") else text + "\n", name)
    entries = parse_universe(text, name) if body is None else ()
    for entry in entries:
        if _names(entry, key):
            return _earlier(text, entry, key, since, name)
    body = text.rstrip("\n") + "\n" if body is None else body
    added = body + _entry_text(key, since, _indent(text))
    try:
        good = any(_names(entry, key) for entry in parse_universe(added, name))
    except UsageError:
        good = False
    if not good:
        lines = _entry_text(key, since, "  ")
        raise UsageError(f"{name} is written in a way that cannot be added to. Put this under `collect:`:\n{lines}")
    return added


def _without_empty_list(text: str, name: str) -> str | None:
    """The text ready for a first entry, if its list is empty; None where it is not."""
    root = _compose(text, name)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    for key, value in pairs:
        if key.value == "collect" and not value.value:
            return text[: value.start_mark.index] + text[value.end_mark.index :]
    return None


def _names(entry: Entry, key: SeriesKey) -> bool:
    symbols = {symbol for symbol, _ in entry.symbols}
    return (
        key.market in entry.markets and key.symbol in symbols and key in dict(_series_of(entry, key.market, key.symbol))
    )


def _earlier(text: str, entry: Entry, key: SeriesKey, since: Since, name: str) -> str:
    made = _entry_text(key, next(s for k, s in _series_of(entry, key.market, key.symbol) if k == key), _indent(text))
    before = dict(_series_of(entry, key.market, key.symbol))[key]
    if made not in text or _later(since, before):
        return text
    changed = text.replace(made, _entry_text(key, since, _indent(text)))
    parse_universe(changed, name)
    return changed


def _later(a: Since, b: Since) -> bool:
    return (a.first(None) or date.min) >= (b.first(None) or date.min)


def _indent(text: str) -> str:
    dash = re.search(r"(?m)^collect:[^\n]*\n(?:\s*(?:#[^\n]*)?\n)*([ \t]*)- ", text)
    return dash[1] if dash else "  "


def _entry_text(key: SeriesKey, since: Since, indent: str) -> str:
    what = f"intervals: [{key.interval}], from: {since}" if key.interval else f"from: {since}"
    return (
        f"{indent}- market: {key.market}\n"
        f"{indent}  symbols: [{_scalar(key.symbol)}]\n"
        f"{indent}  {key.data_type}: {{{what}}}\n"
    )


def write_lock(path: Path, listings: Listings) -> Path:
    """Write the lock of a universe beside it, atomically; return where.

    Args:
        path: The universe's file.
        listings: What :func:`refresh` found.

    Raises:
        StorageError: it cannot be written.
    """
    files.write_bytes(lock_path(path), render_lock(listings).encode())
    return lock_path(path)
