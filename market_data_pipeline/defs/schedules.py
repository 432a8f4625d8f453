"""Schedules: which days are asked for, and when. All times are UTC.

Days are worked out by hand from the tick's time and the ledgers: with today as a partition, a schedule that Dagster
builds from a partitioned job would ask for the wrong day. Schedules that download are off until somebody turns them on
in the UI (Automation), so that opening it for a look starts no download; those for coverage, which reads ledgers only,
and for pruning are on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from market_data_pipeline.defs.jobs import COMPACT, COVERAGE, INGEST_ALL, PRUNE, TRADE_PROFILES, VERIFY, Jobs
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.partitions import HOUR, partition_of
from market_data_pipeline.defs.requests import run_requests
from market_data_pipeline.defs.runs import close_dead_runs
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.series import SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

PROFILES_MINUTE, COVERAGE_MINUTE, REPAIR_MINUTE, COMPACT_MINUTE, PRUNE_MINUTE = 0, 30, 45, 15, 20
VERIFY_DAYS = {"day": "* * *", "week": "* * 0", "month": "1 * *"}
"""Days of the schedule ``verify`` in cron's words, by setting."""

MOST_REPAIRS = 20
"""Runs that one tick of ``repair`` may ask for; the days left are asked for by the next."""

UNFINISHED = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]

DaysToAsk = Iterable[tuple[date, Sequence[SeriesKey]]]
"""Days to ask for, each with the series that it is asked of."""


def build_schedules(jobs: Jobs, settings: Settings, universe: Universe) -> list[dg.ScheduleDefinition]:
    """The schedules of those jobs that there are.

    - ``daily``: yesterday, and every recent day that is not final, when the archive has been published.
    - ``hourly``: the day of the hour just over; at 00:05 that is the day before, which is thereby settled.
    - ``trade_profiles_daily``: an hour after ``daily``, recent days whose aggTrades are new or have changed.
    - ``coverage_daily``: half an hour after that.
    - ``repair``: every hour, days that lack something which may have come since.
    - ``verify``: once a week, which archives were replaced; ``repair`` fetches them again.
    - ``compact``: daily, months that are over are put into a file each; the next day removes the files of their days.
    - ``prune``: daily, an hour after that, old runs are dropped from Dagster's records.
    """
    layout = Layout(settings.root)
    after = (settings.daily_hour + 1) % 24

    def recent(at: datetime) -> DaysToAsk:
        from market_data_pipeline.defs.bodies.due import recent_days

        return recent_days(at, settings.recent_days, universe, layout)

    def growing(at: datetime) -> DaysToAsk:
        from market_data_pipeline.defs.bodies.due import growing_day

        return growing_day(at, universe)

    def changed(at: datetime) -> DaysToAsk:
        from market_data_pipeline.defs.bodies.due import changed_profiles

        # An hour back, for the case that `daily` runs at 23:00 and this falls on the next day.
        return changed_profiles((at - HOUR).date(), settings.recent_days, universe, layout)

    schedules: list[dg.ScheduleDefinition] = []
    if INGEST_ALL in jobs:
        schedules += [
            _day_schedule(
                "daily",
                f"0 {settings.daily_hour} * * *",
                jobs,
                INGEST_ALL,
                recent,
                "Yesterday, and every recent day that is not final yet; the archive publishes between 03:00 and 09:00.",
            ),
            _day_schedule(
                "hourly",
                f"{settings.hourly_minute} * * * *",
                jobs,
                INGEST_ALL,
                growing,
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
                changed,
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
    return [*schedules, *_upkeep_schedules(jobs, settings)]


def _upkeep_schedules(jobs: Jobs, settings: Settings) -> Iterator[dg.ScheduleDefinition]:
    """The schedules of jobs that have no days to choose."""

    def at(minute: int, hours_after: int, days: str = "* * *") -> str:
        return f"{minute} {(settings.daily_hour + hours_after) % 24} {days}"

    off, on = dg.DefaultScheduleStatus.STOPPED, dg.DefaultScheduleStatus.RUNNING
    for job, cron, status, description in (
        (
            VERIFY,
            at(0, 2, VERIFY_DAYS[settings.verify_every]),
            off,
            "Which archives were replaced since they were fetched; `repair` fetches those days again.",
        ),
        (
            COMPACT,
            at(COMPACT_MINUTE, 3),
            off,
            "The candles of each month that is over and settled put into one file.",
        ),
        (
            PRUNE,
            at(PRUNE_MINUTE, 4),
            on,
            f"Runs older than {settings.keep_runs_days} days dropped from Dagster's records; what is newest stays.",
        ),
    ):
        if job in jobs:
            yield dg.ScheduleDefinition(
                name=job,
                job=jobs[job],
                cron_schedule=cron,
                execution_timezone="UTC",
                default_status=status,
                description=description,
            )


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
        close_dead_runs(context.instance)  # one whose process was killed would never finish
        ours = dg.RunsFilter(tags=dg.DagsterRun.tags_for_schedule(repair), statuses=UNFINISHED)
        if context.instance.get_runs(ours, limit=1):
            # What they bring is not in the ledgers yet, and would be asked for twice.
            yield dg.SkipReason("The runs of an earlier tick are not finished yet.")
            return
        from market_data_pipeline.defs.bodies.due import days_to_repair

        at = context.scheduled_execution_time.astimezone(UTC)
        wanted = days_to_repair(at, universe, layout)
        requests = run_requests(f"repair {at:%Y-%m-%dT%H:%M}", wanted, settings.max_partitions_per_run)
        if not requests:
            yield dg.SkipReason("There is nothing to repair, or its pause is not over.")
        yield from requests[:MOST_REPAIRS]

    return repair


def _day_schedule(
    name: str, cron: str, jobs: Jobs, job: str, choose: Callable[[datetime], DaysToAsk], description: str
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
