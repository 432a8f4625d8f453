"""A tick of the sensor ``archive_published``: choose days, look in the listing, request those that are published.

Reading the listing does not belong here; see ``maintenance.archive_sweep``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta

import dagster as dg
from pydantic import AwareDatetime, BaseModel, ValidationError

from market_data_pipeline import clock
from market_data_pipeline.clock import DAY
from market_data_pipeline.defs.requests import run_requests
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, may_need_fetch
from market_data_pipeline.maintenance.archive_sweep import SweepReport, look_for
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.needs import needs, reach_of
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.binance.archive import ArchiveClient
from market_data_pipeline.universe import Universe

_EARLIEST = timedelta(hours=2)
"""Time after the end of a day before which its archive is never published."""

_LOOK_INTERVALS = (
    (timedelta(hours=12), timedelta(0)),
    (timedelta(days=10), timedelta(hours=2)),
    (timedelta(days=30), timedelta(hours=6)),
    (timedelta(days=90), timedelta(days=1)),
)
"""Time since the end of a day, and the interval between two looks up to then. Older days are left to the sweep."""

_LOOK_SECONDS = 30
"""Time after which a tick starts no further series. Dagster ends a tick after 60 s."""

_ANSWER_SECONDS = 10
"""Timeout of one page of the listing. A later tick requests the page again."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Seen(BaseModel):
    """State of the sensor between ticks, stored as its cursor.

    Attributes:
        looked_at: The time of the last look at the listing.
        left: Series that the last tick did not reach. The next tick starts with them.
        failed: Series that failed in the last tick. The next tick ends with them.
        asked: ETags of archives whose days were requested and are not final yet, by series and day.
    """

    looked_at: AwareDatetime | None = None
    left: list[str] = []
    failed: list[str] = []
    asked: dict[str, dict[date, str]] = {}

    @classmethod
    def of(cls, cursor: str | None) -> Seen:
        """Parse the cursor. Return a new one if it is invalid or its time is in the future."""
        try:
            seen = cls.model_validate_json(cursor) if cursor else cls()
        except ValidationError:
            return cls()
        return cls() if seen.looked_at is not None and clock.is_future(seen.looked_at) else seen

    def due(self, waiting: Mapping[SeriesKey, Sequence[DayRecord]], now: datetime) -> dict[SeriesKey, list[DayRecord]]:
        """Return the days to look for now, by series: first those not reached last time, last those that failed.

        Args:
            waiting: All days that wait for their archive.
            now: The current time, zone-aware.
        """
        place = dict.fromkeys(self.left, -1) | dict.fromkeys(self.failed, 1)
        found = {}
        for key in sorted(waiting, key=lambda key: place.get(str(key), 0)):
            looked_at = None if str(key) in place else self.looked_at
            if chosen := [row for row in waiting[key] if is_time(row.day, looked_at, now, reach_of(key))]:
                found[key] = chosen
        return found

    def after(
        self, waiting: Mapping[SeriesKey, Iterable[DayRecord]], report: SweepReport
    ) -> tuple[dict[str, dict[date, str]], dict[SeriesKey, list[date]]]:
        """Return the requested archives after a look, and the days that are new among them.

        Args:
            waiting: All days that wait for their archive. Other days are forgotten.
            report: The archives in the listing.
        """
        asked = {
            str(key): {row.day: etag for row in rows if (etag := self.asked.get(str(key), {}).get(row.day))}
            for key, rows in waiting.items()
        }
        wanted: dict[SeriesKey, list[date]] = {}
        for found in report.discoveries:
            before = asked[str(found.key)]
            wanted.setdefault(found.key, []).extend(day for day in found.days if before.get(day) != found.etag)
            before.update(dict.fromkeys(found.days, found.etag))
        return {name: days for name, days in asked.items() if days}, {key: days for key, days in wanted.items() if days}


def look(
    context: dg.SensorEvaluationContext, settings: Settings, universe: Universe
) -> dg.SensorResult | dg.SkipReason:
    """Look in the listing for archives of waiting days, and request the days that are published.

    Args:
        context: The context of the sensor. Its cursor is a :class:`Seen`.
        settings: The locations of the ledgers and of the archive.
        universe: The series to collect.
    """
    layout = Layout(settings.root)
    now, seen = clock.now(), Seen.of(context.cursor)
    waiting = days_that_wait(universe, layout, now)
    due = seen.due(waiting, now)
    if not due:
        number = sum(map(len, waiting.values()))
        return dg.SkipReason(f"{_waiting(number)} for an archive. It is too early to look again.")
    # Few attempts and short waits, because the next tick tries again.
    patience = {
        "retries": min(settings.retries, 1),
        "timeout_seconds": min(settings.timeout_seconds, _ANSWER_SECONDS),
    }
    with closing(ArchiveClient(settings.model_copy(update=patience))) as archive:
        report = look_for(due, archive, threads=settings.download_threads, seconds=_LOOK_SECONDS)
    for key, trouble in report.troubles.items():
        context.log.warning("%s: looking for archives failed: %s", key, trouble)
    asked, wanted = seen.after(waiting, report)
    left, failed = (list(map(str, keys)) for keys in (report.not_reached, report.troubles))
    cursor = Seen(looked_at=now, left=left, failed=failed, asked=asked).model_dump_json()
    if not wanted:
        number = sum(map(len, due.values()))
        text = f"{_waiting(number)} for an archive. {report.requests} pages of the listing have no new one."
        more = f" The next tick looks for {later:,} more series." if (later := len(left) + len(failed)) else ""
        return dg.SensorResult(skip_reason=text + more, cursor=cursor)
    # Equal if a tick is evaluated twice. Different if the archive of a day is replaced.
    stamp = f"archive_published {seen.looked_at or now:%Y-%m-%dT%H:%M:%S} {_digest(asked, wanted)}"
    return dg.SensorResult(run_requests(stamp, wanted, settings.max_partitions_per_run, now), cursor=cursor)


def _digest(asked: Mapping[str, Mapping[date, str]], wanted: Mapping[SeriesKey, Iterable[date]]) -> str:
    """Return a digest of the requested ETags. It changes if an archive of the same days is replaced."""
    etags = "\n".join(asked[str(key)][day] for key, days in wanted.items() for day in days)
    return hashlib.sha256(etags.encode()).hexdigest()[:16]


def _waiting(number: int) -> str:
    return f"{number or 'No'} day{'s wait' if number > 1 else ' waits'}"


def days_that_wait(universe: Universe, layout: Layout, now: datetime) -> dict[SeriesKey, list[DayRecord]]:
    """Return the past days of each series that wait for their archive, in order.

    Args:
        universe: The series to collect.
        layout: The location of the ledgers.
        now: The current time, zone-aware.
    """
    waiting = {}
    for key in universe.series():
        rows = Ledger.read(layout.ledger(key), may_need_fetch()).rows
        found = [rows[day] for day in sorted(rows) if needs(rows[day], now).awaits_archive]
        if taken := [row for row in found if universe.takes(key, row.day)]:
            waiting[key] = taken
    return waiting


def is_time(day: date, looked_at: datetime | None, now: datetime, reach: timedelta | None = None) -> bool:
    """Return True if a day's archive is due for a look.

    Args:
        day: The UTC day.
        looked_at: The time of the last look at the listing. None if there was none.
        now: The current time, zone-aware.
        reach: How far back REST serves the series. Until then every tick looks, because REST can still fill gaps.
    """
    age = now - datetime.combine(day + DAY, time(), UTC)
    interval = next((interval for until, interval in _LOOK_INTERVALS if _EARLIEST <= age < until), None)
    if interval is not None and reach is not None and age < reach:
        return True
    if interval is None or looked_at is None or not interval:
        return interval is not None
    # Intervals start at fixed times, so that a look for a younger day does not delay an older one.
    return (now - _EPOCH) // interval > (looked_at - _EPOCH) // interval
