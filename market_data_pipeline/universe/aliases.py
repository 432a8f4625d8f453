"""Names of coins over time: tickers used again for another coin, and symbols that continue others.

The facts are in ``aliases.yaml``, each with a source. Applying them belongs to ``universe/membership.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import Market, is_symbol


@dataclass(frozen=True, slots=True)
class Predecessor:
    """A symbol that another one continues.

    Attributes:
        symbol: The earlier symbol.
        ratio: Units of the new coin for one unit of the old one.
    """

    symbol: str
    ratio: float


@dataclass(frozen=True)
class Aliases:
    """Facts about the names of a coin.

    Attributes:
        reused: First UTC days of another coin under the same symbol, in order, by market and symbol.
        predecessors: The symbol that a symbol continues, by market and symbol.
    """

    reused: Mapping[tuple[Market, str], tuple[date, ...]] = field(default_factory=dict)
    predecessors: Mapping[tuple[Market, str], Predecessor] = field(default_factory=dict)


@cache
def known_aliases() -> Aliases:
    """Return the aliases that come with the package."""
    text = files("market_data_pipeline.universe").joinpath("aliases.yaml").read_text("utf-8")
    return parse_aliases(text, "aliases.yaml")


def parse_aliases(text: str, name: str) -> Aliases:
    """Read the text of an ``aliases.yaml``.

    Args:
        name: Name of the file in messages.

    Raises:
        UsageError: An entry is incomplete or has no source. The text names the entry.
    """
    try:
        found = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{name}: this is not YAML: {error}") from None
    reused: dict[tuple[Market, str], list[date]] = {}
    predecessors: dict[tuple[Market, str], Predecessor] = {}
    for entry in _entries(found, "reused", ("market", "symbols", "from", "source"), name):
        for symbol in entry["symbols"]:
            reused.setdefault((entry["market"], symbol), []).append(entry["from"])
    for entry in _entries(found, "continued", ("market", "symbols", "ratio", "source"), name):
        for old, new in entry["symbols"].items():
            predecessors[entry["market"], new] = Predecessor(old, float(entry["ratio"]))
    return Aliases({key: tuple(sorted(days)) for key, days in reused.items()}, predecessors)


def _entries(found: Any, kind: str, keys: tuple[str, ...], name: str) -> list[dict[str, Any]]:
    entries = found.get(kind, []) if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise UsageError(f"{name}: `{kind}:` must be a list of entries.")
    return [_entry(entry, f"{name}, entry {number} of `{kind}:`", keys) for number, entry in enumerate(entries, 1)]


def _entry(entry: Any, where: str, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(entry, dict) or set(entry) != set(keys):
        raise UsageError(f"{where}: it needs exactly the keys {', '.join(keys)}.")
    if entry["market"] not in list(Market):
        raise UsageError(f"{where}: {entry['market']!r} is no market. Allowed: {', '.join(Market)}.")
    symbols = entry["symbols"]
    named = [*symbols, *symbols.values()] if isinstance(symbols, dict) else symbols
    if isinstance(symbols, dict) != ("ratio" in keys) or not isinstance(named, list) or not named:
        form = "a mapping such as {NANOUSDT: XNOUSDT}" if "ratio" in keys else "a list such as [LUNAUSDT]"
        raise UsageError(f"{where}: `symbols:` must be {form}.")
    if wrong := [symbol for symbol in named if not isinstance(symbol, str) or not is_symbol(symbol)]:
        raise UsageError(f"{where}: {wrong[0]!r} cannot be a symbol.")
    if "from" in keys and type(entry["from"]) is not date:
        raise UsageError(f"{where}: `from:` must be a day such as 2022-05-31.")
    if "ratio" in keys and not (isinstance(entry["ratio"], int | float) and entry["ratio"] > 0):
        raise UsageError(f"{where}: `ratio:` must be a number above 0.")
    if not str(entry["source"]).startswith("https://"):
        raise UsageError(f"{where}: `source:` must be a link.")
    return {**entry, "market": Market(entry["market"])}
