"""Schedules: which days are asked for, and when. All times are UTC.

Days are worked out by hand from the tick's time and the ledgers: with today as a partition, a schedule that Dagster
builds from a partitioned job would ask for the wrong day. Schedules that download are off until somebody turns them on
in the UI (Automation), so that opening it for a look starts no download; those for coverage, which reads ledgers only,
and for pruning are on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from market_data_pipeline.clock import DAY, HOUR
from market_data_pipeline.defs.jobs import COMPACT, COVERAGE, INGEST_ALL, PRUNE, TRADE_PROFILES, VERIFY, Job, Jobs
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.partitions import partition_of
from market_data_pipeline.defs.platform.heartbeat import close_dead_runs
from market_data_pipeline.defs.requests import run_requests, underway, without
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

PROFILES_MINUTE, COVERAGE_MINUTE, REPAIR_MINUTE, COMPACT_MINUTE, PRUNE_MINUTE = 0, 30, 45, 15, 20
VERIFY_DAYS = {"day": "* * *", "week": "* * 0", "month": "1 * *"}
"""Days of the schedule ``verify`` in cron's words, by setting."""

MOST_REPAIRS = 20
"""Runs that one tick may ask for to repair days, and for missing ones; the days left are asked for by the next."""

UNFINISHED = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]
WAITING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED]

DaysToAsk = Iterable[tuple[date, Sequence[SeriesKey]]]
"""Days to ask for, each with the series that it is asked of."""

Busy = Mapping[SeriesKey, Collection[date]]
"""Days of series that runs which are not finished will fetch."""


def build_schedules(jobs: Jobs, settings: Settings, universe: Universe) -> list[dg.ScheduleDefinition]:
    """The schedules of those jobs that there are.

    - ``daily``: yesterday, and every recent day that is not final, when the archive has been published.
    - ``hourly``: the day of the hour just over; at 00:05 that is the day before, which is thereby settled.
    - ``trade_profiles_daily``: an hour after ``daily``, recent days whose aggTrades are new or have changed.
    - ``coverage_daily``: half an hour after that.
    - ``repair``: every hour, days that lack something which may have come since, and a portion of those never fetched.
    - ``verify``: once a week, which archives were replaced; ``repair`` fetches them again.
    - ``compact``: daily, months that are over are put into a file each; the next day removes the files of their days.
    - ``prune``: daily, an hour after that, old runs are dropped from Dagster's records.
    """
    layout = Layout(settings.root)
    after = (settings.daily_hour + 1) % 24

    def recent(at: datetime) -> DaysToAsk:
        from market_data_pipeline.maintenance.due import recent_days

        return recent_days(at, settings.recent_days, universe, layout)

    def growing(at: datetime) -> DaysToAsk:
        from market_data_pipeline.maintenance.due import growing_day

        return growing_day(at, universe)

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
                settings.max_partitions_per_run,
                universe.series(),
            ),
            _day_schedule(
                "hourly",
                f"{settings.hourly_minute} * * * *",
                jobs,
                INGEST_ALL,
                growing,
                "Today as far as it has got. At midnight it is the day just over, whose last hour is brought.",
                settings.max_partitions_per_run,
                universe.series(),
                busy_while=WAITING,  # one that has begun may have passed the newest candle already
            ),
        ]
    if TRADE_PROFILES in jobs:
        schedules.append(_profiles_schedule(jobs, settings, universe, layout))
    if COVERAGE in jobs:
        schedules.append(
            _one_run_schedule(
                "coverage_daily",
                f"{COVERAGE_MINUTE} {after} * * *",
                jobs[COVERAGE],
                "What is held, and the standing checks, after the daily schedules.",
                dg.DefaultScheduleStatus.RUNNING,
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
            yield _one_run_schedule(job, cron, jobs[job], description, status)


def _profiles_schedule(jobs: Jobs, settings: Settings, universe: Universe, layout: Layout) -> dg.ScheduleDefinition:
    def changed(at: datetime) -> DaysToAsk:
        from market_data_pipeline.maintenance.due import changed_profiles

        # An hour back, for the case that `daily` runs at 23:00 and this falls on the next day.
        return changed_profiles((at - HOUR).date(), settings.recent_days, universe, layout)

    def never_made(at: datetime, busy: Busy) -> Mapping[SeriesKey, Sequence[date]]:
        from market_data_pipeline.maintenance.backlog import profile_backlog

        return profile_backlog(universe, layout, (at - HOUR).date(), busy)

    return _day_schedule(
        "trade_profiles_daily",
        f"{PROFILES_MINUTE} {(settings.daily_hour + 1) % 24} * * *",
        jobs,
        TRADE_PROFILES,
        changed,
        "Recent days whose aggTrades are new, all that have changed since their tradeProfile was made, and a portion "
        "of those that never had one.",
        settings.max_partitions_per_run,
        [profile_of(key) for key in universe.series() if key.data_type is DataType.AGG_TRADES],
        backlog=never_made,
    )


def _repair_schedule(jobs: Jobs, settings: Settings, universe: Universe, layout: Layout) -> dg.ScheduleDefinition:
    @dg.schedule(
        name="repair",
        job=jobs[INGEST_ALL],
        cron_schedule=f"{REPAIR_MINUTE} * * * *",
        execution_timezone="UTC",
        description=(
            "Days that failed for a passing reason, that lack what REST or the archive may have by now, or whose "
            "archive was replaced. The pause between two attempts grows from an hour to a week. A portion of the days "
            "of universe.yaml that are missing, the newest of each series first."
        ),
    )
    def repair(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        close_dead_runs(context.instance)  # one whose process was killed would never finish
        ours = dg.RunsFilter(tags=dg.DagsterRun.tags_for_schedule(repair), statuses=UNFINISHED)
        if context.instance.get_runs(ours, limit=1):
            # What they bring is not in the ledgers yet, and would be asked for twice.
            yield dg.SkipReason("The runs of an earlier tick are not finished yet.")
            return
        from market_data_pipeline.maintenance.backlog import backlog, requestable
        from market_data_pipeline.maintenance.due import days_to_repair

        at = context.scheduled_execution_time.astimezone(UTC)
        what = requestable(universe)
        if what.notice:
            context.log.warning(what.notice)
        busy = underway(context.instance, what.keys, UNFINISHED)
        # Until `daily` has asked for it, yesterday is left to that, and to the archive.
        until = at.date() - DAY * (at.hour <= settings.daily_hour)
        due = without(days_to_repair(at, universe, layout), busy)
        most = settings.max_partitions_per_run
        requests = run_requests(f"repair {at:%Y-%m-%dT%H:%M}", due, most)[:MOST_REPAIRS]
        missing = without(backlog(at, until, what, layout, busy), due)
        further = run_requests(f"backlog {at:%Y-%m-%dT%H:%M}", missing, most)
        requests += further[:MOST_REPAIRS]
        if not requests:
            said = "There is nothing to repair, or its pause is not over, and no day is missing."
            yield dg.SkipReason(" ".join(filter(None, (said, what.notice))))
        yield from requests

    return repair


def _one_run_schedule(
    name: str,
    cron: str,
    job: Job,
    description: str,
    default_status: dg.DefaultScheduleStatus = dg.DefaultScheduleStatus.STOPPED,
) -> dg.ScheduleDefinition:
    """A schedule of a job that looks at everything: ticks that were missed need no run of their own."""

    @dg.schedule(
        name=name,
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        description=description,
        default_status=default_status,
    )
    def evaluate(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        ours = dg.RunsFilter(tags=dg.DagsterRun.tags_for_schedule(evaluate), statuses=WAITING)
        if (instance := _records(context)) is not None and instance.get_runs(ours, limit=1):
            return dg.SkipReason("The run of an earlier tick has not begun yet, and looks at the same.")
        return dg.RunRequest(run_key=f"{name} {context.scheduled_execution_time.astimezone(UTC):%Y-%m-%dT%H:%M}")

    return evaluate


def _records(context: dg.ScheduleEvaluationContext) -> dg.DagsterInstance | None:
    """Return Dagster's records, None if a tick is evaluated without."""
    try:
        return context.instance
    except dg.DagsterInvariantViolationError:
        return None


def _busy(
    context: dg.ScheduleEvaluationContext, keys: Sequence[SeriesKey], statuses: Sequence[dg.DagsterRunStatus]
) -> Busy:
    instance = _records(context)
    return {} if instance is None else underway(instance, keys, statuses)


def _day_schedule(
    name: str,
    cron: str,
    jobs: Jobs,
    job: str,
    choose: Callable[[datetime], DaysToAsk],
    description: str,
    most_days: int,
    keys: Sequence[SeriesKey],
    *,
    backlog: Callable[[datetime, Busy], Mapping[SeriesKey, Sequence[date]]] | None = None,
    busy_while: Sequence[dg.DagsterRunStatus] = UNFINISHED,
) -> dg.ScheduleDefinition:
    """A schedule that asks for days; days that a run will fetch already are left out.

    Several ticks are evaluated one after another when the daemon comes back after a while.

    Args:
        name: Of the schedule.
        cron: When it ticks.
        jobs: All jobs.
        job: Name of the one that it runs.
        choose: Which days it asks for, each in a run of its own.
        description: For the UI.
        most_days: Most days of a run of the backlog.
        keys: The series that it may ask for.
        backlog: Which further days it asks for, in runs of many days.
        busy_while: States of runs whose days are left out.
    """

    @dg.schedule(name=name, job=jobs[job], cron_schedule=cron, execution_timezone="UTC", description=description)
    def evaluate(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        at = context.scheduled_execution_time.astimezone(UTC)
        busy = _busy(context, keys, busy_while)
        asked: dict[SeriesKey, set[date]] = {}
        for day, some in choose(at):
            if left := [key for key in some if day not in busy.get(key, ())]:
                for key in left:
                    asked.setdefault(key, set()).add(day)
                yield dg.RunRequest(
                    # Stable for a tick and a day, so that a tick evaluated twice starts nothing twice.
                    run_key=f"{name} {at:%Y-%m-%dT%H:%M} {day}",
                    partition_key=partition_of(day),
                    asset_selection=[asset_key_of(key) for key in left],
                )
        missing = without(backlog(at, busy), asked) if backlog else {}
        further = run_requests(f"{name} {at:%Y-%m-%dT%H:%M}", missing, most_days)[:MOST_REPAIRS]
        yield from further
        if not asked and not further:
            yield dg.SkipReason("There is nothing to ask for: no series was listed, or all recent days are final.")

    return evaluate
