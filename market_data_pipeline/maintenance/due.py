"""Select the days that the schedules request at a tick, from the ledgers. All times are UTC.

When a single day is due belongs to ``model/needs.py``.
"""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.checks.continuity import due_days
from market_data_pipeline.clock import DAY, HOUR, days_between
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, checks_do_not_pass, may_need_fetch
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import NOT_LISTED
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline.model.needs import NeedKind, is_still_unlisted, needs, profile_is_due, reach_of
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.universe import Universe


def _collected(universe: Universe, key: SeriesKey, day: date) -> bool:
    return universe.start(key) <= day and universe.listing(key).covers(day)


def recent_days(at: datetime, count: int, universe: Universe, layout: Layout) -> list[tuple[date, list[SeriesKey]]]:
    """Return yesterday for every series, and earlier days that are not final and may be published by now.

    This includes days recorded as not listed that the current listing covers. It excludes days whose archive was
    refused, because the same archive would fail again. The sweep finds a replacement.

    Args:
        at: The tick's time, zone-aware.
    """
    today = at.date()
    yesterday = today - DAY
    recent = pc.field("day") >= today - count * DAY
    ledgers = {key: Ledger.read(layout.ledger(key), recent) for key in universe.series()}

    def is_requested(key: SeriesKey, ledger: Ledger, day: date) -> bool:
        row = ledger.get(day)
        if not _collected(universe, key, day):
            return False
        if row is None or (row.outcome == NOT_LISTED and not is_still_unlisted(row, universe.listing(key))):
            return True
        need = needs(row, at, reach_of(key))
        is_refused = need.kind is NeedKind.OTHER_ARCHIVE and not need.is_final
        return need.is_worth_asking or (day == yesterday and not is_refused)

    return [
        (day, [key for key, ledger in ledgers.items() if is_requested(key, ledger, day)])
        for day in days_between(today - count * DAY, yesterday)
    ]


def growing_day(at: datetime, universe: Universe) -> list[tuple[date, list[SeriesKey]]]:
    """Return the day of the hour that just ended: today, or yesterday within the first hour after midnight.

    Types that REST does not serve are left out, because their archive comes after the day.
    """
    day = (at - HOUR).date()
    served = (key for key in universe.series() if spec_of(key).rest.path)
    return [(day, [key for key in served if _collected(universe, key, day)])]


def days_to_repair(at: datetime, universe: Universe, layout: Layout) -> dict[SeriesKey, list[date]]:
    """Return the past days of each series that are due, see ``model/needs.py``.

    Args:
        at: The tick's time, zone-aware.
    """
    today = at.date()
    wanted = {}
    for key in universe.series():
        path = layout.ledger(key)
        # A day of candles does not depend on its neighbours, so unsettled rows are enough.
        ledger = Ledger.read(path, may_need_fetch() if key.interval else None)
        if days := [day for day in due_days(key, ledger.rows, at) if day < today and universe.takes(key, day)]:
            wanted[key] = days
    return wanted


def changed_profiles(today: date, count: int, universe: Universe, layout: Layout) -> list[tuple[date, list[SeriesKey]]]:
    """Return days whose stored aggTrades are not the ones that the day's tradeProfile was made of.

    Days that the universe no longer collects are left out.
    """
    recent = days_between(today - count * DAY, today - DAY)
    ledgers: dict[SeriesKey, tuple[Ledger, Ledger]] = {}
    days = set(recent)
    for key in universe.series():
        if key.data_type is DataType.AGG_TRADES:
            paths = layout.ledger(key), layout.ledger(profile_of(key))
            # Before the recent days, only existing profiles count: a replaced archive may change the trades of any
            # day. Whole rows are read only for the few days whose hashes differ.
            source, made = _hashes(paths[0], "content_sha256"), _hashes(paths[1], "archive_sha256")
            differing = {day for day, hashed in made.items() if source.get(day) != hashed}
            # Checks may have changed although the rows have not.
            differing |= {day for path in paths for day in Ledger.read(path, checks_do_not_pass()).rows if day in made}
            days |= differing
            where = pc.field("day").isin(pa.array({*recent, *differing}, pa.date32()))
            ledgers[profile_of(key)] = (Ledger.read(paths[0], where), Ledger.read(paths[1], where))

    def is_due(key: SeriesKey, day: date) -> bool:
        source, made = ledgers[key]
        return profile_is_due(source.get(day), made.get(day)) and universe.takes(key, day)

    return [(day, [key for key in ledgers if is_due(key, day)]) for day in sorted(days)]


def _hashes(ledger: Path, column: str) -> dict[date, tuple[bool, str | None]]:
    """Return for each day True if it is final, and one of its hashes. Empty if there is no ledger."""
    try:
        table = parquet.read_table(ledger, ["day", "final", column])
    except DamagedFileError:
        return {}
    final, hashes = (cast("list[Any]", table[name].to_pylist()) for name in ("final", column))
    return dict(zip(parquet.days_of(table), zip(final, hashes, strict=True), strict=True))
