"""Copy stored days of the lake into PostgreSQL, and remove old ones that the lake has.

Choosing series and printing results belong to the command ``push``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake.day_records import rows_on_record
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_files_between
from market_data_pipeline.lake.reader import read_day
from market_data_pipeline.model.day import HELD, DayRecord
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.stores.base import RowState
from market_data_pipeline.stores.postgres import CopiedDay, PostgresStore
from market_data_pipeline.stores.rows import STATE, decide, stored_rows


@dataclass(slots=True)
class PushReport:
    """Days of a push, by result.

    Attributes:
        copied: Days that were copied.
        replaced: Days among them whose final copy had other content, because their archive was published again.
        unchanged: Days whose copy is the same.
        rows: Rows that were written.
        evicted: Days that were removed from the database, because the lake has all their rows.
        staying: Old days that stay in the database, with the reason.
        damaged: Days that the lake cannot read, with the reason.
    """

    copied: int = 0
    replaced: int = 0
    unchanged: int = 0
    rows: int = 0
    evicted: int = 0
    staying: dict[tuple[SeriesKey, date], str] = field(default_factory=dict)
    damaged: dict[tuple[SeriesKey, date], str] = field(default_factory=dict)


def push(
    layout: Layout,
    store: PostgresStore,
    key: SeriesKey,
    days: Iterable[date],
    report: PushReport,
    on_day: Callable[[], object] = lambda: None,
) -> None:
    """Copy days that the database does not have with the same content, each in one transaction.

    A stopped push continues with the first day that was not copied.

    Args:
        days: Days of the lake. Days that are not stored are left out.
        report: Counts the results.
        on_day: Called after each day.

    Raises:
        EnvironmentFaultError: The database cannot be used.
    """
    copied = store.copied_days(key)
    for day, record in _records(layout, key, list(days)).items():
        try:
            _push_day(layout, store, key, day, record, copied.get(day), report)
        except DamagedFileError as error:
            report.damaged[key, day] = str(error)
        on_day()


def _push_day(
    layout: Layout,
    store: PostgresStore,
    key: SeriesKey,
    day: date,
    record: DayRecord,
    before: CopiedDay | None,
    report: PushReport,
) -> None:
    if record.outcome != HELD or record.content_sha256 is None:
        raise DamagedFileError(record.reason or f"{key} {day} cannot be read.")
    content = CopiedDay(record.content_sha256, record.final)
    if content == before:
        report.unchanged += 1
        return
    rows = read_day(layout, key, day)
    seen_at = record.fetched_at or clock.midnight(day)
    report.rows += store.copy_day(key, day, rows, content, seen_at).written
    report.copied += 1
    report.replaced += before is not None and before.final and before.content_sha256 != content.content_sha256


def evict_old_days(
    settings: Settings, layout: Layout, keys: Iterable[SeriesKey], *, dry_run: bool = False
) -> PushReport | None:
    """Remove the days from PostgreSQL that are older than the settings allow; see :func:`evict`.

    Returns:
        None if the settings name no database, or no age.

    Raises:
        EnvironmentFaultError: The database cannot be used.
    """
    if not settings.hot_store or not settings.hot_store_keep_days:
        return None
    before, report = clock.today() - settings.hot_store_keep_days * clock.DAY, PushReport()
    with PostgresStore(settings.hot_store) as store:
        for key in keys:
            evict(layout, store, key, before, report, dry_run=dry_run)
    return report


def evict(
    layout: Layout, store: PostgresStore, key: SeriesKey, before: date, report: PushReport, *, dry_run: bool = False
) -> None:
    """Remove days before a day from the database that the lake has: final, readable, and with every row.

    Age alone removes nothing. A day whose archive is late stays, and so does a row that the archive does not have.

    Args:
        before: First UTC day that stays.
        report: Counts the results.
        dry_run: Remove nothing. The report counts what would be removed.

    Raises:
        EnvironmentFaultError: The database cannot be used.
    """
    found = store.get_date_range(key)
    if found is None or found[0] >= before:
        return
    last = min(before - clock.DAY, found[1])
    missing = set(store.get_missing_dates(key, found[0], last))
    days = [day for day in clock.days_between(found[0], last) if day not in missing]
    copied, records = store.copied_days(key), _records(layout, key, days)
    for day in days:
        record = records.get(day)
        if record is None or record.outcome != HELD:
            report.staying[key, day] = "the lake does not have it"
        elif not record.final:
            report.staying[key, day] = "it is not final in the lake"
        else:
            try:
                _evict_day(layout, store, key, day, record, copied.get(day), report, dry_run=dry_run)
            except DamagedFileError as error:
                report.staying[key, day] = str(error)


def _evict_day(
    layout: Layout,
    store: PostgresStore,
    key: SeriesKey,
    day: date,
    record: DayRecord,
    copied: CopiedDay | None,
    report: PushReport,
    *,
    dry_run: bool,
) -> None:
    may_go = False

    def is_stored(rows: pa.Table) -> bool:
        if copied == CopiedDay(record.content_sha256 or "", final=True) and rows.num_rows == record.rows:
            return True
        final = stored_rows(key, read_day(layout, key, day), RowState.FINAL)
        closed = rows.filter(pa.array(np.asarray(rows[STATE]) > RowState.FORMING))
        return decide(key, final, closed).report.inserted == 0

    def goes(rows: pa.Table) -> bool:
        nonlocal may_go
        may_go = is_stored(rows)
        return may_go and not dry_run

    store.evict_day(key, day, goes)
    if may_go:
        report.evicted += 1
    else:
        report.staying[key, day] = "it has rows that the lake does not have"


def _records(layout: Layout, key: SeriesKey, days: list[date]) -> dict[date, DayRecord]:
    if not days:
        return {}
    files = {one.day: one for one in day_files_between(layout, key, min(days), max(days))}
    if not files:
        return {}
    records = rows_on_record(layout, key, files, min(files), max(files))
    wanted = set(days)
    return {day: records[day] for day in sorted(files) if day in wanted}
