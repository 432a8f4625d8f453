"""Edit ``universe.yaml`` and write its lock. Parsing both belongs to ``universe/config.py``."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path

import yaml

from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.universe.config import compose, parse_universe
from market_data_pipeline.universe.resolved import CollectedType, Entry, Listings, Since, lock_path, series_of_entry

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


def write_lock(path: Path, listings: Listings) -> Path:
    """Write the lock of a universe next to it, atomically, and return its path.

    Args:
        path: Path of ``universe.yaml``.
        listings: Result of :func:`refresh`.

    Raises:
        StorageError: the lock cannot be written.
    """
    storage.write_bytes(lock_path(path), render_lock(listings).encode())
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
