"""Schedules: which days are asked for, and when. All times are UTC.

Days are worked out by hand from the tick's time and the ledgers: with today as a partition, a schedule that Dagster
builds from a partitioned job would ask for the wrong day. Schedules that download are off until somebody turns them on
in the UI (Automation), so that opening it for a look starts no download; the one for coverage reads ledgers only and
is on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from market_data_pipeline.defs.jobs import COVERAGE, INGEST_ALL, TRADE_PROFILES, VERIFY, Jobs
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.partitions import DAY, days_between, partition_of
from market_data_pipeline.defs.requests import run_requests
from market_data_pipeline.lake import files
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import NOT_LISTED, UNSETTLED, Ledger
from market_data_pipeline.lineage import profile_of
from market_data_pipeline.profile import profile_is_due
from market_data_pipeline.quality.repair import is_due, is_not_listed, is_refused, is_worth_asking, unmet_midnights
from market_data_pipeline.series import DataType, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

HOUR = timedelta(hours=1)
PROFILES_MINUTE, COVERAGE_MINUTE, REPAIR_MINUTE = 0, 30, 45
VERIFY_DAYS = {"day": "* * *", "week": "* * 0", "month": "1 * *"}
"""Days of the schedule ``verify`` in cron's words, by setting."""

MOST_REPAIRS = 20
"""Runs that one tick of ``repair`` may ask for; the days left are asked for by the next."""

UNFINISHED = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]

Choice = Callable[[datetime], Iterable[tuple[date, Sequence[SeriesKey]]]]
"""From a tick's time to the days to ask for, each with the series that it is asked of."""


def build_schedules(jobs: Jobs, settings: Settings, universe: Universe) -> list[dg.ScheduleDefinition]:
    """The schedules of those jobs that there are.

    - ``daily``: yesterday, and every recent day that is not final, when the archive has been published.
    - ``hourly``: the day of the hour just over; at 00:05 that is the day before, which is thereby settled.
    - ``trade_profiles_daily``: an hour after ``daily``, recent days whose aggTrades are new or have changed.
    - ``coverage_daily``: half an hour after that.
    - ``repair``: every hour, days that lack something which may have come since.
    - ``verify``: once a week, which archives were replaced; ``repair`` fetches them again.
    """
    layout = Layout(settings.root)
    after = (settings.daily_hour + 1) % 24
    schedules: list[dg.ScheduleDefinition] = []
    if INGEST_ALL in jobs:
        schedules += [
            _day_schedule(
                "daily",
                f"0 {settings.daily_hour} * * *",
                jobs,
                INGEST_ALL,
                lambda at: recent_days(at, settings.recent_days, universe, layout),
                "Yesterday, and every recent day that is not final yet; the archive publishes between 03:00 and 09:00.",
            ),
            _day_schedule(
                "hourly",
                f"{settings.hourly_minute} * * * *",
                jobs,
                INGEST_ALL,
                lambda at: growing_day(at, universe),
                "Today as far as it has got. At midnight it is the day just over, whose last hour is brought.",
            ),
        ]
    if TRADE_PROFILES in jobs:
        schedules.append(
            _day_schedule(
                "trade_profiles_daily",
                f"{PROFILES_MINUTE} {after} * * *",
                jobs,
                TRADE_PROFILES,
                # An hour back, for the case that `daily` runs at 23:00 and this falls on the next day.
                lambda at: changed_profiles((at - HOUR).date(), settings.recent_days, universe, layout),
                "Recent days whose aggTrades are new, and all that have changed since their tradeProfile was made.",
            )
        )
    if COVERAGE in jobs:
        schedules.append(
            dg.ScheduleDefinition(
                name="coverage_daily",
                job=jobs[COVERAGE],
                cron_schedule=f"{COVERAGE_MINUTE} {after} * * *",
                execution_timezone="UTC",
                default_status=dg.DefaultScheduleStatus.RUNNING,
                description="What is held, and the standing checks, after the daily schedules.",
            )
        )
    if INGEST_ALL in jobs:
        schedules.append(_repair_schedule(jobs, settings, universe, layout))
    if VERIFY in jobs:
        schedules.append(
            dg.ScheduleDefinition(
                name="verify",
                job=jobs[VERIFY],
                cron_schedule=f"0 {(settings.daily_hour + 2) % 24} {VERIFY_DAYS[settings.verify_every]}",
                execution_timezone="UTC",
                description="Which archives were replaced since they were fetched; `repair` fetches those days again.",
            )
        )
    return schedules


def _repair_schedule(jobs: Jobs, settings: Settings, universe: Universe, layout: Layout) -> dg.ScheduleDefinition:
    @dg.schedule(
        name="repair",
        job=jobs[INGEST_ALL],
        cron_schedule=f"{REPAIR_MINUTE} * * * *",
        execution_timezone="UTC",
        description=(
            "Days that failed for a passing reason, that lack what REST or the archive may have by now, or whose "
            "archive was replaced. The pause between two attempts grows from an hour to a week."
        ),
    )
    def repair(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        ours = dg.RunsFilter(tags=dg.DagsterRun.tags_for_schedule(repair), statuses=UNFINISHED)
        if context.instance.get_runs(ours, limit=1):
            # What they bring is not in the ledgers yet, and would be asked for twice.
            yield dg.SkipReason("The runs of an earlier tick are not finished yet.")
            return
        at = context.scheduled_execution_time.astimezone(UTC)
        wanted = days_to_repair(at, universe, layout)
        requests = run_requests(f"repair {at:%Y-%m-%dT%H:%M}", wanted, settings.max_partitions_per_run)
        if not requests:
            yield dg.SkipReason("There is nothing to repair, or its pause is not over.")
        yield from requests[:MOST_REPAIRS]

    return repair


def _day_schedule(
    name: str, cron: str, jobs: Jobs, job: str, choose: Choice, description: str
) -> dg.ScheduleDefinition:
    @dg.schedule(name=name, job=jobs[job], cron_schedule=cron, execution_timezone="UTC", description=description)
    def evaluate(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        at = context.scheduled_execution_time.astimezone(UTC)
        asked = False
        for day, keys in choose(at):
            if keys:
                asked = True
                yield dg.RunRequest(
                    # Stable for a tick and a day, so that a tick evaluated twice starts nothing twice.
                    run_key=f"{name} {at:%Y-%m-%dT%H:%M} {day}",
                    partition_key=partition_of(day),
                    asset_selection=[asset_key_of(key) for key in keys],
                )
        if not asked:
            yield dg.SkipReason("There is nothing to ask for: no series was listed, or all recent days are final.")

    return evaluate


# --- which days ----------------------------------------------------------------------------------------------------


def _collected(universe: Universe, key: SeriesKey, day: date) -> bool:
    return universe.start(key) <= day and universe.listing(key).covers(day)


def recent_days(at: datetime, count: int, universe: Universe, layout: Layout) -> list[tuple[date, list[SeriesKey]]]:
    """Yesterday for every series, and of the days before, those that are not final and may have come since.

    Nor is a day final that was thought not to be listed, and is by the listing as refreshed since.

    A day whose bytes were refused is not: the same would come again. The sweep sees when others are published.

    Args:
        at: The tick's time, zone-aware.
        count: How many days back.
        universe: What is collected.
        layout: Where the ledgers lie.
    """
    today = at.date()
    yesterday = today - DAY
    recent = pc.field("day") >= today - count * DAY
    ledgers = {key: Ledger.read(layout.ledger(key), recent) for key in universe.series()}

    def asked(key: SeriesKey, ledger: Ledger, day: date) -> bool:
        row = ledger.get(day)
        if not _collected(universe, key, day):
            return False
        if row is None or (row.outcome == NOT_LISTED and not is_not_listed(row, universe.listing(key))):
            return True
        return is_worth_asking(row, at) or (day == yesterday and not is_refused(row))

    return [
        (day, [key for key, ledger in ledgers.items() if asked(key, ledger, day)])
        for day in days_between(today - count * DAY, yesterday)
    ]


def growing_day(at: datetime, universe: Universe) -> list[tuple[date, list[SeriesKey]]]:
    """The day of the hour just over: today, or the day before within the first hour after midnight."""
    day = (at - HOUR).date()
    return [(day, [key for key in universe.series() if _collected(universe, key, day)])]


def days_to_repair(at: datetime, universe: Universe, layout: Layout) -> dict[SeriesKey, list[date]]:
    """The days of each series that are due by themselves, see ``quality.repair``.

    Args:
        at: The tick's time, zone-aware.
        universe: What is collected.
        layout: Where the ledgers lie.
    """
    first, today = universe.first_day(), at.date()
    wanted = {}
    for key in universe.series():
        path = layout.ledger(key)
        # Of candles, whose days are proven by themselves, only the rows that are not settled are read.
        ledger = Ledger.read(path, UNSETTLED if key.interval else None)
        days = {day for day, row in ledger.rows.items() if is_due(row, at)} | {*unmet_midnights(key, ledger.rows, at)}
        if days := {day for day in days if first <= day < today}:
            wanted[key] = sorted(days)
    return wanted


def changed_profiles(today: date, count: int, universe: Universe, layout: Layout) -> list[tuple[date, list[SeriesKey]]]:
    """Days whose aggTrades are held and are not those that the day's tradeProfile was made of."""
    recent = days_between(today - count * DAY, today - DAY)
    ledgers: dict[SeriesKey, tuple[Ledger, Ledger]] = {}
    days = set(recent)
    for key in universe.series():
        if key.data_type is DataType.AGG_TRADES:
            paths = layout.ledger(key), layout.ledger(profile_of(key))
            # Further back, those only that there are already: a replaced archive may have changed the trades of any
            # day. Of years of days, whole rows are read of those few that are not alike.
            source, made = _hashes(paths[0], "content_sha256"), _hashes(paths[1], "archive_sha256")
            differing = {day for day, hashed in made.items() if source.get(day) != hashed}
            days |= differing
            where = pc.field("day").isin(pa.array({*recent, *differing}, pa.date32()))
            ledgers[profile_of(key)] = (Ledger.read(paths[0], where), Ledger.read(paths[1], where))
    return [
        (day, [key for key, (source, made) in ledgers.items() if profile_is_due(source.get(day), made.get(day))])
        for day in sorted(days)
    ]


def _hashes(ledger: Path, column: str) -> dict[date, tuple[bool, str | None]]:
    """Whether each day is final, and one of its hashes; nothing where there is no ledger."""
    try:
        table = files.read_table(ledger, ["day", "final", column])
    except files.DamagedFileError:
        return {}
    days, final, hashes = (table[name].to_pylist() for name in ("day", "final", column))
    return dict(zip(days, zip(final, hashes, strict=True), strict=True))
