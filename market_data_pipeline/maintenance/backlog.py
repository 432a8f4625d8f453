"""The backlog: days that the universe collects and that are not on record, or whose file is gone. All times are UTC.

A machine that was off leaves such days, and so do a lost ledger, a file removed by hand, an earlier ``from:`` and a new
series. Days that failed do not belong here: they have a ledger row, and ``quality.repair`` says when to retry them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.clock import DAY, days_between
from market_data_pipeline.errors import DamagedFileError, UsageError
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import days_named
from market_data_pipeline.model.day import HELD, NOT_LISTED
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.universe import Universe, load_universe

PORTION = 1000
"""Days of all series together that one tick may request: minutes of work for candles, so that ticks do not pile up."""

SECONDS = 20.0
"""How long a tick looks at series; Dagster ends it after 60 s. Series that are left come first in another tick."""

_STRIDE = 997
"""How far the first series to look at moves from hour to hour; a prime, so that all of them get their turn."""

Busy = Mapping[SeriesKey, Collection[date]]
"""Days that runs which are not finished will fetch."""


def backlog(
    at: datetime, until: date, what: Requestable, layout: Layout, busy: Busy, seconds: float = SECONDS
) -> dict[SeriesKey, list[date]]:
    """Return a portion of the backlog of all series that Binance publishes, in order of series and days.

    Args:
        at: The tick's time, zone-aware.
        until: First UTC day that is left to the other schedules.
        what: What can be requested.
        layout: Where the lake lies.
        busy: Days to leave out.
        seconds: How long to look at series.
    """
    found = {}
    end = time.monotonic() + seconds
    for key in _in_turn(what.keys, at):
        days = [day for day in lacking(what.universe, key, layout, until) if day >= what.first]
        days = [day for day in days if day not in busy.get(key, ())]
        if days:
            found[key] = days
        if time.monotonic() > end:
            break
    return portion(found)


def _in_turn(keys: Sequence[SeriesKey], at: datetime) -> list[SeriesKey]:
    begin = int(at.timestamp() // 3600) * _STRIDE % len(keys) if keys else 0
    return [*keys[begin:], *keys[:begin]]


def lacking(universe: Universe, key: SeriesKey, layout: Layout, until: date) -> list[date]:
    """Return the days before ``until`` that a series should have and that are not on record, in order.

    A day that is stored by the ledger and has no file is among them. So is one that was not listed when it was fetched,
    if it is by the listing as refreshed since.
    """
    spans = [(first, min(last, until - DAY)) for first, last in universe.spans(key)]
    wanted = [day for first, last in spans for day in days_between(first, last)]
    if not wanted:
        return []
    known = _on_record(layout, key, not_listed_is_known=not universe.listing(key).spans)
    return [day for day in wanted if day not in known]


def _on_record(layout: Layout, key: SeriesKey, *, not_listed_is_known: bool = True) -> set[date]:
    """Return the days of which the ledger speaks, without those that it has as stored and that have no file."""
    by_outcome = _days_by_outcome(layout.ledger(key))
    held = by_outcome.pop(HELD, set())
    if not not_listed_is_known:
        by_outcome.pop(NOT_LISTED, None)
    return set().union(*by_outcome.values()) | (held & days_named(layout, key) if held else held)


def _days_by_outcome(ledger: Path) -> dict[str, set[date]]:
    try:
        table = parquet.read_table(ledger, ["day", "outcome"])
    except DamagedFileError:
        return {}
    found: dict[str, set[date]] = {}
    for outcome in map(str, pc.unique(table["outcome"]).to_pylist()):
        found[outcome] = set(parquet.days_of(table.filter(pc.equal(table["outcome"], pa.scalar(outcome)))))
    return found


def profile_backlog(universe: Universe, layout: Layout, until: date, busy: Busy) -> dict[SeriesKey, list[date]]:
    """Return a portion of the days before ``until`` whose aggTrades are stored and that have no tradeProfile."""
    found = {}
    for source in universe.series():
        if source.data_type is DataType.AGG_TRADES:
            key = profile_of(source)
            stored = _days_by_outcome(layout.ledger(source)).get(HELD, set()) & days_named(layout, source)
            left = stored - _on_record(layout, key) - set(busy.get(key, ()))
            if days := sorted(day for day in left if universe.start(source) <= day < until):
                found[key] = days
    return portion(found)


def portion(days: Mapping[SeriesKey, Sequence[date]], most: int | None = None) -> dict[SeriesKey, list[date]]:
    """Return the newest days of each series, together at most ``most`` (by default :data:`PORTION`).

    Each series has an equal share, so that one whose runs end without a trace cannot hold up the others; what a series
    leaves of its share goes to those that come first.
    """
    if not days:
        return {}
    most = PORTION if most is None else most
    share = max(1, most // len(days))
    left = max(0, most - sum(min(share, len(some)) for some in days.values()))
    found = {}
    for key, some in days.items():
        extra = min(left, max(0, len(some) - share))
        left -= extra
        found[key] = list(some[-(share + extra) :])
    return dict(list(found.items())[:most])


@dataclass(frozen=True, slots=True)
class Requestable:
    """What of the universe a code location can request.

    Attributes:
        universe: As ``universe.yaml`` and its lock are now.
        keys: Series that the code location knows, and that are collected still.
        first: The first day that is a partition.
        notice: What it cannot request until it is reloaded, in words; empty if there is nothing.
    """

    universe: Universe
    keys: tuple[SeriesKey, ...]
    first: date
    notice: str = ""


def requestable(loaded: Universe) -> Requestable:
    """Read the universe again: it may have been changed since the code location was loaded.

    Args:
        loaded: The universe that the code location was loaded with.
    """
    first, known = loaded.first_day(), loaded.series()
    try:
        now = load_universe(loaded.path)
    except UsageError:  # absent, or half written by an editor: a reload says what is wrong
        return Requestable(loaded, tuple(known), first)
    new = sorted(set(now.series()) - set(known))
    keys = tuple(key for key in known if key in now)
    if not new and now.first_day() >= first:
        return Requestable(now, keys, first)
    what = f"{len(new):,} new series, e.g. {new[0]}" if new else f"days before {first}"
    notice = (
        f"{now.path} was changed: {what}. Reload the code location (Deployment, Reload), or start `market-data ui` "
        "again, so that they are fetched."
    )
    return Requestable(now, keys, first, notice)
