"""What a tick of the sensor ``archive_published`` does: which days to look for, and what is requested of them."""

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
from market_data_pipeline.lake.ledger import MAY_NEED_FETCH, Ledger
from market_data_pipeline.maintenance.archive_sweep import SweepReport, look_for
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.needs import needs, reach_of
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.binance.archive import Archive
from market_data_pipeline.universe import Universe

EARLIEST = timedelta(hours=2)
"""How long after a day's end its archive may be there at the earliest."""

PAUSES = (
    (timedelta(hours=12), timedelta(0)),
    (timedelta(days=10), timedelta(hours=2)),
    (timedelta(days=30), timedelta(hours=6)),
    (timedelta(days=90), timedelta(days=1)),
)
"""How long after a day's end its archive is looked for how often; older ones are left to the sweep."""

SECONDS = 30
"""How long a tick goes on looking for further series; Dagster ends a tick after 60 s."""

ANSWER_SECONDS = 10
"""How long one page of the listing may keep a tick waiting; a later tick asks again for what did not come."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Seen(BaseModel):
    """What the sensor remembers from tick to tick, as its cursor.

    Attributes:
        looked_at: When the listing was looked at last.
        left: Series that were not reached then: the next tick looks for them first.
        failed: Series that could not be looked for then: the next tick looks for them last.
        asked: ETags of the archives whose days were requested and have not become final yet, by series and day.
    """

    looked_at: AwareDatetime | None = None
    left: list[str] = []
    failed: list[str] = []
    asked: dict[str, dict[date, str]] = {}

    @classmethod
    def of(cls, cursor: str | None) -> Seen:
        """The cursor, read; one that cannot be, or that was written under a clock ahead, is begun anew."""
        try:
            seen = cls.model_validate_json(cursor) if cursor else cls()
        except ValidationError:
            return cls()
        return cls() if seen.looked_at is not None and clock.is_future(seen.looked_at) else seen

    def due(self, waiting: Mapping[SeriesKey, Sequence[DayRecord]], now: datetime) -> dict[SeriesKey, list[DayRecord]]:
        """The days to look for now, by series: first those that were not reached the last time, last those that failed.

        Args:
            waiting: All days that wait.
            now: The present moment, zone-aware.
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
        """What was asked for after a look, and the days of it that were not before.

        Args:
            waiting: All days that wait; of others nothing is remembered.
            report: What the listing has.
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
    """Look for the archives of days that wait for them, and request the days of those that are there.

    Args:
        context: Of the sensor; its cursor is a :class:`Seen`.
        settings: Where the ledgers lie, and where the archive is.
        universe: What is collected.
    """
    layout = Layout(settings.root)
    now, seen = clock.now(), Seen.of(context.cursor)
    waiting = days_that_wait(universe, layout, now)
    due = seen.due(waiting, now)
    if not due:
        number = sum(map(len, waiting.values()))
        return dg.SkipReason(f"{counted(number)} for their archive; it is too early to look for any of them again.")
    with closing(Archive(_for_a_tick(settings))) as archive:
        report = look_for(due, archive, threads=settings.download_threads, seconds=SECONDS)
    for key, trouble in report.troubles.items():
        context.log.warning("%s could not be looked for: %s", key, trouble)
    asked, wanted = seen.after(waiting, report)
    left, failed = (list(map(str, keys)) for keys in (report.not_reached, report.troubles))
    cursor = Seen(looked_at=now, left=left, failed=failed, asked=asked).model_dump_json()
    if not wanted:
        number = sum(map(len, due.values()))
        said = f"{counted(number)} for their archive; {report.requests} pages of the listing have no new one."
        return dg.SensorResult(skip_reason=f"{said}{_said_of(len(left) + len(failed))}", cursor=cursor)
    # The same for a tick that is evaluated twice; another one for another archive of the same day.
    stamp = f"archive_published {seen.looked_at or now:%Y-%m-%dT%H:%M:%S} {_digest(asked, wanted)}"
    return dg.SensorResult(run_requests(stamp, wanted, settings.max_partitions_per_run), cursor=cursor)


def _for_a_tick(settings: Settings) -> Settings:
    """With few attempts and short waits: the next tick is another attempt."""
    shorter = {
        "retries": min(settings.retries, 1),
        "timeout_seconds": min(settings.timeout_seconds, ANSWER_SECONDS),
    }
    return settings.model_copy(update=shorter)


def _said_of(left: int) -> str:
    return f" {left:,} series {'is' if left == 1 else 'are'} looked for by the next tick." if left else ""


def _digest(asked: Mapping[str, Mapping[date, str]], wanted: Mapping[SeriesKey, Iterable[date]]) -> str:
    """What tells archives that are requested from others of the same days."""
    etags = "\n".join(asked[str(key)][day] for key, days in wanted.items() for day in days)
    return hashlib.sha256(etags.encode()).hexdigest()[:16]


def counted(number: int) -> str:
    """How many days wait, in words."""
    return f"{number or 'No'} day{'s wait' if number > 1 else ' waits'}"


def days_that_wait(universe: Universe, layout: Layout, now: datetime) -> dict[SeriesKey, list[DayRecord]]:
    """The days of each series that are over and wait for their archive, in order.

    Args:
        universe: What is collected.
        layout: Where the ledgers lie.
        now: The present moment, zone-aware.
    """
    first = universe.first_day()
    waiting = {}
    for key in universe.series():
        rows = Ledger.read(layout.ledger(key), MAY_NEED_FETCH).rows
        if found := [rows[day] for day in sorted(rows) if day >= first and needs(rows[day], now).awaits_archive]:
            waiting[key] = found
    return waiting


def is_time(day: date, looked_at: datetime | None, now: datetime, reach: timedelta | None = None) -> bool:
    """Whether to look for a day's archive now.

    Args:
        day: The UTC day.
        looked_at: When the listing was looked at last; None where it never was.
        now: The present moment, zone-aware.
        reach: How far back REST serves the series: as long as it could fill in what the archive lacks, each tick looks.
    """
    age = now - datetime.combine(day + DAY, time(), UTC)
    pause = next((pause for until, pause in PAUSES if EARLIEST <= age < until), None)
    if pause is not None and reach is not None and age < reach:
        return True
    if pause is None or looked_at is None or not pause:
        return pause is not None
    # Counted in whole pauses of the clock, so that looking for a younger day does not put off an older one.
    return (now - _EPOCH) // pause > (looked_at - _EPOCH) // pause
