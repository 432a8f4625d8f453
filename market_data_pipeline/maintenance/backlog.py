"""Find the backlog: days of the universe without a ledger row, or whose file is gone. All times are UTC.

Causes are downtime, a lost ledger, a deleted file, an earlier ``from:`` and a new series. Failed days do not belong
here: they have a ledger row, and ``model/needs.py`` schedules their retries.
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
from market_data_pipeline.lake.partitions import stored_dates
from market_data_pipeline.model.day import HELD, NOT_LISTED
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline.model.needs import perishing_first
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.universe import Universe, load_universe

PORTION = 1000
"""Days of all series together that one tick may request. Candles take minutes, so that ticks do not pile up."""

_SEARCH_SECONDS = 20.0
"""Time limit of a tick. Dagster ends it after 60 s. Each tick starts at another series."""

_STRIDE = 997
"""Number of series that the start moves per hour. A prime, so that every series gets its turn."""

Busy = Mapping[SeriesKey, Collection[date]]
"""Days that unfinished runs will fetch."""


def backlog(
    at: datetime, until: date, what: Requestable, layout: Layout, busy: Busy, seconds: float = _SEARCH_SECONDS
) -> dict[SeriesKey, list[date]]:
    """Return a portion of the backlog of all series that Binance publishes, with the days of each in order.

    Days that REST will soon no longer serve have the first share.

    Args:
        at: The tick's time, zone-aware.
        until: First UTC day that belongs to the other schedules.
        what: Series and days that can be requested.
        seconds: Time after which no further series is looked at.
    """
    found = {}
    end = time.monotonic() + seconds
    for key in _in_turn(what.keys, at):
        days = [day for day in missing_days(what.universe, key, layout, until) if what.loaded.takes(key, day)]
        days = [day for day in days if day not in busy.get(key, ())]
        if days:
            found[key] = days
        if time.monotonic() > end:
            break
    soon, later = perishing_first(found, at)
    first = portion(soon)
    then = portion(later, PORTION - sum(map(len, first.values())))
    return {key: [*then.get(key, []), *first.get(key, [])] for key in found if key in first or key in then}


def _in_turn(keys: Sequence[SeriesKey], at: datetime) -> list[SeriesKey]:
    begin = int(at.timestamp() // 3600) * _STRIDE % len(keys) if keys else 0
    return [*keys[begin:], *keys[:begin]]


def missing_days(universe: Universe, key: SeriesKey, layout: Layout, until: date) -> list[date]:
    """Return the days before ``until`` that a series should have and that are not on record, in order.

    This includes days that are stored according to the ledger but have no file. It also includes days recorded as not
    listed that the current listing covers.
    """
    spans = [(first, min(last, until - DAY)) for first, last in universe.spans(key)]
    wanted = [day for first, last in spans for day in days_between(first, last)]
    if not wanted:
        return []
    known = _on_record(layout, key, not_listed_is_known=not universe.listing(key).spans)
    return [day for day in wanted if day not in known]


def _on_record(layout: Layout, key: SeriesKey, *, not_listed_is_known: bool = True) -> set[date]:
    """Return the days in the ledger, without days that it has as stored but that have no file."""
    by_outcome = _days_by_outcome(layout.ledger(key))
    stored = by_outcome.pop(HELD, set())
    if not not_listed_is_known:
        by_outcome.pop(NOT_LISTED, None)
    return set().union(*by_outcome.values()) | (stored & stored_dates(layout, key) if stored else stored)


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
            stored = _days_by_outcome(layout.ledger(source)).get(HELD, set()) & stored_dates(layout, source)
            left = stored - _on_record(layout, key) - set(busy.get(key, ()))
            if days := sorted(day for day in left if day < until and universe.takes(source, day)):
                found[key] = days
    return portion(found)


def portion(days: Mapping[SeriesKey, Sequence[date]], most: int | None = None) -> dict[SeriesKey, list[date]]:
    """Return the newest days of each series, together at most ``most`` (by default :data:`PORTION`).

    Each series has an equal share, so that a series whose runs fail without a trace cannot block the others. Unused
    shares go to the first series.
    """
    most = PORTION if most is None else most
    if not days or most < 1:
        return {}
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
    """The part of the universe that a code location can request.

    Attributes:
        universe: The current ``universe.yaml`` and lock.
        keys: Series that the code location knows and the universe still collects.
        loaded: The universe at the time of loading. Its days are the partitions.
        notice: Message about series and days that need a reload first. Empty if there are none.
    """

    universe: Universe
    keys: tuple[SeriesKey, ...]
    loaded: Universe
    notice: str = ""


def requestable(loaded: Universe) -> Requestable:
    """Read the universe again, because it may have changed since the code location was loaded.

    Args:
        loaded: The universe at the time of loading.
    """
    known = loaded.series()
    try:
        now = load_universe(loaded.path)
    except UsageError:  # missing, or half written by an editor: a reload reports the error
        return Requestable(loaded, tuple(known), loaded)
    new = sorted(set(now.series()) - set(known))
    keys = tuple(key for key in known if key in now)
    earlier = next((key for key in keys if now.earliest(key) < loaded.earliest(key)), None)
    if new:
        what = f"{len(new):,} new series, e.g. {new[0]}"
    elif earlier is not None:
        what = f"days before {loaded.earliest(earlier)} of {earlier}"
    else:
        return Requestable(now, keys, loaded)
    notice = (
        f"{now.path} has changed: {what}. To fetch them, reload the code location (Deployment, Reload) or restart "
        "`market-data ui`."
    )
    return Requestable(now, keys, loaded, notice)
