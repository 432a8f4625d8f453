"""Edit ``universe.yaml`` and write its lock. Parsing both belongs to ``universe/config.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from datetime import date
from pathlib import Path

import yaml

from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.universe.config import compose, parse_universe
from market_data_pipeline.universe.resolved import (
    CollectedType,
    Entry,
    Listings,
    Since,
    Universe,
    is_pattern,
    lock_path,
    series_of_entry,
)

_LOCK_HEADER = """\
# Written by `market-data universe refresh` from the listing of Binance's archive. Commit it with the universe.
# UTC days on which each symbol was listed, both included. `until: null`: still listed. A relisting is a second span.
"""

_NEW_UNIVERSE = """\
# Series to collect. Each entry names a market (spot, um, cm), symbols, data types and the first day of each.
collect:
"""


def add_series(text: str, key: SeriesKey, since: Since, name: str = "universe.yaml") -> str:
    """Add a series to the text of a ``universe.yaml``. Comments and other entries stay unchanged.

    Args:
        text: The text. Empty for a new file.
        since: Start of the series.
        name: Name of the file in messages.

    Returns:
        The text with an entry for the series at its end. If an entry names the series already, the text is
        unchanged, except that an entry for this series alone gets the earlier ``from:`` of the two.

    Raises:
        UsageError: the text has mistakes, or its form does not allow adding an entry.
    """
    text = text if text.strip() else _NEW_UNIVERSE
    body = _without_empty_list(text if text.endswith("\n") else text + "\n", name)
    entries = parse_universe(text, name) if body is None else ()
    for entry in entries:
        if (wanted := _wanted(entry, key)) is not None:
            return _earlier(text, entry, wanted, key, since, name)
    body = text.rstrip("\n") + "\n" if body is None else body
    added = body + _entry_text(key, since, _indent(text))
    try:
        good = any(_wanted(entry, key) for entry in parse_universe(added, name))
    except UsageError:
        good = False
    if not good:
        lines = _entry_text(key, since, "  ")
        raise UsageError(f"No entry can be added to {name} in its present form. Add this under `collect:`:\n{lines}")
    return added


def _without_empty_list(text: str, name: str) -> str | None:
    """Return the text ready for a first entry if its list is empty, else None."""
    root = compose(text, name)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    for key, value in pairs:
        if key.value == "collect" and not value.value:
            return text[: value.start_mark.index] + text[value.end_mark.index :]
    return None


def _wanted(entry: Entry, key: SeriesKey) -> CollectedType | None:
    """Return the data type of an entry to which a series belongs; None if the entry does not name the series."""
    is_named = key.market in entry.markets and key.symbol in dict(entry.symbols)
    return dict(series_of_entry(entry, key.market, key.symbol)).get(key) if is_named else None


def _earlier(text: str, entry: Entry, wanted: CollectedType, key: SeriesKey, since: Since, name: str) -> str:
    """Return the text with an earlier ``from:`` for the series, if no other series shares the entry's ``from:``."""
    alone = len(entry.markets) == len(entry.symbols) == len(wanted.intervals) == 1
    if not alone or _later(since, wanted.since):
        return text
    if wanted.since.day is not None and since.moves:
        since = Since(day=since.first(None))  # a moving start would some day be the later one
    begin, end = wanted.since_span
    changed = f"{text[:begin]}{since}{text[end:]}"
    try:  # a `from:` that is an alias, or has one, applies to other series, too
        only_this = _starts(changed, name) == {**_starts(text, name), key: since}
    except UsageError:
        only_this = False
    return changed if only_this else text


def _starts(text: str, name: str) -> dict[SeriesKey, Since]:
    """Return the start of each series that the text names without a pattern."""
    return {
        key: wanted.since
        for entry in parse_universe(text, name)
        for market in entry.markets
        for symbol, _ in entry.symbols
        for key, wanted in series_of_entry(entry, market, symbol)
    }


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


# --- removing -------------------------------------------------------------------------------------------------------


def remove_series(text: str, keys: Collection[SeriesKey], listings: Listings, name: str = "universe.yaml") -> str:
    """Remove series from the text of a ``universe.yaml``. Other series and comments on other lines stay unchanged.

    If an entry shares a symbol's series with others, the symbol gets an entry of its own at the end for those that
    stay. A symbol that a pattern matches is added to the entry's ``except:``.

    Args:
        text: The text.
        keys: Series to remove. Those that the text does not collect are ignored.
        listings: Listings of the lock, against which patterns match.
        name: Name of the file in messages.

    Raises:
        UsageError: the text has mistakes, or its form does not allow the change.
    """
    before = _collected_types(text, listings, name)
    wanted = {key: kind for key, kind in before.items() if key not in keys}
    if wanted == before:
        return text
    try:
        changed, again = text, ""
        while changed != again:
            again, changed = changed, _with_one_removed(changed, keys, listings, name)
        is_right = _collected_types(changed, listings, name) == wanted
    except (UsageError, _NotEditable):
        is_right = False
    if not is_right:
        some = ", ".join(map(str, list(before.keys() - wanted.keys())[:5]))
        raise UsageError(f"{some} cannot be removed from {name} in its present form. Edit it by hand. It is unchanged.")
    return changed


class _NotEditable(Exception):  # noqa: N818 - the reason to require an edit by hand
    """The text has a form that is not edited: an anchor, an alias or a merged mapping."""


_Kind = tuple[Since, Since | None]
"""The values of ``from:`` and ``keep:``."""


def _collected_types(text: str, listings: Listings, name: str) -> dict[SeriesKey, frozenset[_Kind]]:
    universe = Universe(parse_universe(text, name), listings, Path(name))
    return {key: frozenset((one.since, one.retention) for one in universe.types_of(key)) for key in universe.series()}


def _with_one_removed(text: str, keys: Collection[SeriesKey], listings: Listings, name: str) -> str:
    """Return the text after one step: a symbol of one entry without the series to remove."""
    nodes = _entry_nodes(text, name)
    for entry, node in zip(parse_universe(text, name), nodes, strict=True):
        for symbol, _ in entry.symbols:
            for one in _matched(entry, symbol, listings):
                of_symbol = {
                    key: wanted for market in entry.markets for key, wanted in series_of_entry(entry, market, one)
                }
                if any(key in keys for key in of_symbol):
                    stay = {key: wanted for key, wanted in of_symbol.items() if key not in keys}
                    return _without_symbol(text, entry, node, symbol, one, stay, is_only=len(nodes) == 1)
    return text


def _matched(entry: Entry, symbol: str, listings: Listings) -> list[str]:
    if not is_pattern(symbol):
        return [symbol]
    found = (one for market, one in listings if market in entry.markets and entry.takes(symbol, one))
    return list(dict.fromkeys(found))


def _without_symbol(
    text: str,
    entry: Entry,
    node: yaml.MappingNode,
    symbol: str,
    matched: str,
    stay: dict[SeriesKey, CollectedType],
    *,
    is_only: bool,
) -> str:
    parts = {key.value: (key, value) for key, value in node.value}
    if is_pattern(symbol):
        changed = _with_except(text, parts, matched)
    elif len(entry.symbols) > 1:
        changed = _without_item(text, parts["symbols"][1], symbol)
    elif len(entry.markets) == 1 and (smaller := _without_types(text, node, entry, stay)) is not None:
        return smaller
    else:
        changed = _without_entry(text, node, is_only=is_only and not stay)
    return changed.rstrip("\n") + "\n" + _entries_text(stay, _indent(text)) if stay else changed


def _without_types(text: str, node: yaml.MappingNode, entry: Entry, stay: dict[SeriesKey, CollectedType]) -> str | None:
    """Return the text without a type or an interval of an entry with one series of each; None if nothing stays."""
    if not stay:
        return None
    for wanted in entry.wanted:
        left = {key.interval for key, one in stay.items() if one is wanted}
        gone = [interval for interval in wanted.intervals if interval not in left]
        position, value = next(
            (number, value) for number, (key, value) in enumerate(node.value) if key.value == wanted.data_type
        )
        if gone and not left:
            return _without_pair(text, node, position)
        if gone and isinstance(value, yaml.MappingNode):
            intervals = next(item for key, item in value.value if key.value == "intervals")
            return _without_item(text, intervals, str(gone[0]))
    return None


def _entry_nodes(text: str, name: str) -> list[yaml.MappingNode]:
    root = compose(text, name)
    if not isinstance(root, yaml.MappingNode) or len(root.value) != 1 or "\n---" in text:
        raise _NotEditable
    [(_, value)] = root.value
    nodes = [node for node in value.value if isinstance(node, yaml.MappingNode)]
    marks = [one.start_mark.index for node in nodes for one in _below(node)]
    if len(nodes) != len(value.value) or len(set(marks)) < len(marks) or re.search(r"(?m)(^|[\s\[,:])[&*]\w", text):
        raise _NotEditable  # an alias appears twice, with the marks of its anchor
    return nodes


def _below(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield the scalars of a node."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _below(item)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (*_below(key), *_below(value))


def _end(node: yaml.Node) -> int:
    """Return the end of a node, without the comments and blank lines that follow a block."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        return max(map(_end, (one for item in node.value for one in (item if isinstance(item, tuple) else (item,)))))
    return int(node.end_mark.index)


def _without_item(text: str, items: yaml.Node, word: str) -> str:
    """Return the text without a word of a list that has others."""
    if not isinstance(items, yaml.SequenceNode):
        raise _NotEditable
    position = next(number for number, item in enumerate(items.value) if item.value == word)
    spans = [(item.start_mark.index, _end(item)) for item in items.value]
    return _cut(text, spans, position, flow=bool(items.flow_style), dash=True)


def _without_pair(text: str, node: yaml.MappingNode, position: int) -> str:
    spans = [(key.start_mark.index, _end(value)) for key, value in node.value]
    return _cut(text, spans, position, flow=bool(node.flow_style), dash=False)


def _cut(text: str, spans: Sequence[tuple[int, int]], position: int, *, flow: bool, dash: bool) -> str:
    """Return the text without one of several items.

    Args:
        spans: Begin and end of each item.
        flow: True for ``[a, b]``, False for an item on lines of its own.
        dash: True if the line of an item begins with a dash.
    """
    begin, end = spans[position]
    if flow:
        if position + 1 < len(spans):
            return text[:begin] + text[spans[position + 1][0] :]
        return text[: spans[position - 1][1]] + text[end:]
    line = text.rfind("\n", 0, begin) + 1
    if text[line:begin].strip(" \t-"):
        raise _NotEditable
    if text[line:begin].count("-") > dash:
        return text[:begin] + text[spans[position + 1][0] :]  # the dash of the entry is before its first part
    until = text.find("\n", end)
    return text[:line] + ("" if until < 0 else text[until + 1 :])


def _without_entry(text: str, node: yaml.MappingNode, *, is_only: bool) -> str:
    begin, end = node.start_mark.index, _end(node)
    line = text.rfind("\n", 0, begin) + 1
    until = text.find("\n", end)
    if node.flow_style and text[line:begin].strip(" \t-"):
        raise _NotEditable
    text = text[:line] + ("" if until < 0 else text[until + 1 :])
    return re.sub(r"(?m)^collect:", "collect: []", text, count=1) if is_only else text


def _with_except(text: str, parts: dict[str, tuple[yaml.Node, yaml.Node]], symbol: str) -> str:
    """Return the text in which an entry with a pattern leaves out a symbol."""
    if "except" not in parts:
        key, value = parts["symbols"]
        end = _end(value)
        column = key.start_mark.column
        line_end = text.find("\n", end)
        rest = text[end : line_end if line_end >= 0 else len(text)]
        if rest.strip() and not rest.strip().startswith("#"):
            return f"{text[:end]}, except: [{_scalar(symbol)}]{text[end:]}"  # an entry on one line
        at = line_end if line_end >= 0 else len(text)
        return f"{text[:at]}\n{' ' * column}except: [{_scalar(symbol)}]{text[at:]}"
    value = parts["except"][1]
    end = _end(value)
    if isinstance(value, yaml.SequenceNode) and not value.flow_style:
        last = value.value[-1]
        line = text.rfind("\n", 0, last.start_mark.index) + 1
        at = text.find("\n", end)
        at = len(text) if at < 0 else at
        return f"{text[:at]}\n{text[line : last.start_mark.index]}{_scalar(symbol)}{text[at:]}"
    if isinstance(value, yaml.SequenceNode):
        last_end = _end(value.value[-1])
        return f"{text[:last_end]}, {_scalar(symbol)}{text[last_end:]}"
    begin = value.start_mark.index
    return f"{text[:begin]}[{text[begin:end]}, {_scalar(symbol)}]{text[end:]}"


def _entries_text(stay: dict[SeriesKey, CollectedType], indent: str) -> str:
    """Return the text of entries for series of one symbol, one entry per market."""
    lines = []
    for market in dict.fromkeys(key.market for key in stay):
        of_market = {key: wanted for key, wanted in stay.items() if key.market is market}
        symbol = next(iter(of_market)).symbol
        lines.append(f"{indent}- market: {market}\n{indent}  symbols: [{_scalar(symbol)}]\n")
        for wanted in {id(one): one for one in of_market.values()}.values():
            intervals = [key.interval for key, one in of_market.items() if one is wanted and key.interval]
            parts = [f"intervals: [{', '.join(intervals)}]"] if intervals else []
            parts.append(f"from: {wanted.since}")
            parts += [f"keep: {wanted.retention.age}"] if wanted.retention is not None else []
            lines.append(f"{indent}  {wanted.data_type}: {{{', '.join(parts)}}}\n")
    return "".join(lines)


def write_lock(path: Path, listings: Listings) -> Path:
    """Write the lock of a universe next to it, atomically, and return its path.

    Args:
        path: Path of ``universe.yaml``.
        listings: Result of :func:`refresh`.

    Raises:
        StorageError: the lock cannot be written.
    """
    storage.put(lock_path(path), render_lock(listings).encode())
    return lock_path(path)


def render_lock(listings: Listings) -> str:
    """Return the text of a lock: sorted, one line per symbol, so that a changed symbol changes one line."""
    lines = [_LOCK_HEADER]
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
