"""Schedules: the days that each tick requests, and when. All times are UTC.

Days are computed from the tick's time and the ledgers. Today is a partition, so a schedule that Dagster builds from a
partitioned job would request the wrong day. Schedules that download are off until you turn them on in the UI.
Choosing days does not belong here; see ``maintenance.due``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from market_data_pipeline.clock import DAY, HOUR
from market_data_pipeline.defs.jobs import COMPACT, COVERAGE, INGEST_ALL, PRUNE, TRADE_PROFILES, VERIFY, Job, Jobs
from market_data_pipeline.defs.platform.heartbeat import close_dead_runs
from market_data_pipeline.defs.requests import request_of, run_requests, underway, without
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

PROFILES_MINUTE, COVERAGE_MINUTE, REPAIR_MINUTE, COMPACT_MINUTE, PRUNE_MINUTE = 0, 30, 45, 15, 20
VERIFY_DAYS = {"day": "* * *", "week": "* * 0", "month": "1 * *"}
"""Cron expression for the days of the schedule ``verify``, by setting."""

MOST_REPAIRS = 20
"""Maximum number of runs per tick for repairs, and for missing days. Later ticks request the rest."""

RENAMING_SECONDS = 15.0
"""Time limit for renaming assets in a tick. Dagster ends it after 60 s, and the next tick continues."""

UNFINISHED = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]
WAITING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED]

DueDays = Iterable[tuple[date, Sequence[SeriesKey]]]
"""Days to request, each with its series."""

Busy = Mapping[SeriesKey, Collection[date]]
"""Days of series that unfinished runs will fetch."""


def build_schedules(jobs: Jobs, settings: Settings, universe: Universe) -> list[dg.ScheduleDefinition]:
    """Return the schedules of the jobs that exist.

    - ``daily``: fetches yesterday, and every recent day that is not final, after the archive is published.
    - ``hourly``: fetches the day of the hour that just ended. At 00:05 this is the previous day, which it completes.
    - ``trade_profiles_daily``: an hour after ``daily``, computes recent days whose aggTrades are new or changed.
    - ``coverage_daily``: half an hour after that.
    - ``repair``: every hour, fetches incomplete days that may have new data, and a batch of those never fetched.
    - ``verify``: once a week, finds archives that were replaced. ``repair`` fetches them again.
    - ``compact``: daily, writes finished months into one file each. The next day removes the files of their days.
    - ``prune``: daily, an hour after that, drops old runs from Dagster's records.
    """
    layout = Layout(settings.root)
    after = (settings.daily_hour + 1) % 24

    def recent(at: datetime) -> DueDays:
        from market_data_pipeline.maintenance.due import recent_days

        return recent_days(at, settings.recent_days, universe, layout)

    def growing(at: datetime) -> DueDays:
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
                "Fetch yesterday and recent days that are not final. Archives appear between 03:00 and 09:00 UTC.",
                settings.max_partitions_per_run,
                universe.series(),
            ),
            _day_schedule(
                "hourly",
                f"{settings.hourly_minute} * * * *",
                jobs,
                INGEST_ALL,
                growing,
                "Fetch today so far. After midnight, fetch the last hour of yesterday.",
                settings.max_partitions_per_run,
                universe.series(),
                busy_while=WAITING,  # a run that has started may be past the newest candle
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
                "Report coverage and evaluate the standing checks, after the daily schedules.",
                dg.DefaultScheduleStatus.RUNNING,
            )
        )
    if INGEST_ALL in jobs:
        schedules.append(_repair_schedule(jobs, settings, universe, layout))
    return [*schedules, *_upkeep_schedules(jobs, settings)]


def _upkeep_schedules(jobs: Jobs, settings: Settings) -> Iterator[dg.ScheduleDefinition]:
    """Yield the schedules of jobs that choose no days."""

    def at(minute: int, hours_after: int, days: str = "* * *") -> str:
        return f"{minute} {(settings.daily_hour + hours_after) % 24} {days}"

    off, on = dg.DefaultScheduleStatus.STOPPED, dg.DefaultScheduleStatus.RUNNING
    for job, cron, status, description in (
        (
            VERIFY,
            at(0, 2, VERIFY_DAYS[settings.verify_every]),
            off,
            "Find archives that were replaced since they were fetched. `repair` fetches those days again.",
        ),
        (
            COMPACT,
            at(COMPACT_MINUTE, 3),
            off,
            "Write the candles of each finished month into one file.",
        ),
        (
            PRUNE,
            at(PRUNE_MINUTE, 4),
            on,
            f"Drop runs older than {settings.keep_runs_days} days from Dagster's records. The newest results stay.",
        ),
    ):
        if job in jobs:
            yield _one_run_schedule(job, cron, jobs[job], description, status)


def _profiles_schedule(jobs: Jobs, settings: Settings, universe: Universe, layout: Layout) -> dg.ScheduleDefinition:
    def changed(at: datetime) -> DueDays:
        from market_data_pipeline.maintenance.due import changed_profiles

        # One hour back, because this tick falls on the next day if `daily` runs at 23:00.
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
        "Compute the tradeProfiles that are missing or out of date.\n\nTakes recent days whose aggTrades are new, all "
        "days whose aggTrades changed since, and a batch of days without a tradeProfile.",
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
            "Fetch days again that are failed, incomplete or replaced, and backfill missing days.\n\nRetries days that "
            "failed for a temporary reason, or for which REST or the archive may have new data by now. The backoff "
            "grows from an hour to a week. Each tick also fetches a batch of missing days of universe.yaml, the newest "
            "of each series first."
        ),
    )
    def repair(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        close_dead_runs(context.instance)  # a run whose process was killed never finishes
        from market_data_pipeline.defs.platform.renaming import rename_assets

        rename_assets(context.instance, RENAMING_SECONDS)
        ours = dg.RunsFilter(tags=dg.DagsterRun.tags_for_schedule(repair), statuses=UNFINISHED)
        if context.instance.get_runs(ours, limit=1):
            # Their days are not in the ledgers yet and would be requested twice.
            yield dg.SkipReason("Runs of an earlier tick are still in progress.")
            return
        from market_data_pipeline.maintenance.backlog import backlog, requestable
        from market_data_pipeline.maintenance.due import days_to_repair

        at = context.scheduled_execution_time.astimezone(UTC)
        allowed = requestable(universe)
        if allowed.notice:
            context.log.warning(allowed.notice)
        busy = underway(context.instance, allowed.keys, UNFINISHED)
        # Leave yesterday to `daily` until that has ticked: its archive may not be published yet.
        until = at.date() - DAY * (at.hour <= settings.daily_hour)
        due = without(days_to_repair(at, universe, layout), busy)
        most = settings.max_partitions_per_run
        requests = run_requests(f"repair {at:%Y-%m-%dT%H:%M}", due, most)[:MOST_REPAIRS]
        missing = without(backlog(at, until, allowed, layout, busy), due)
        further = run_requests(f"backlog {at:%Y-%m-%dT%H:%M}", missing, most)
        requests += further[:MOST_REPAIRS]
        if not requests:
            text = "No day is due for a retry, and no day is missing."
            yield dg.SkipReason(" ".join(filter(None, (text, allowed.notice))))
        yield from requests

    return repair


def _one_run_schedule(
    name: str,
    cron: str,
    job: Job,
    description: str,
    default_status: dg.DefaultScheduleStatus = dg.DefaultScheduleStatus.STOPPED,
) -> dg.ScheduleDefinition:
    """Return a schedule of a job that covers everything. Missed ticks need no run of their own."""

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
            return dg.SkipReason("The run of an earlier tick has not started yet and does the same work.")
        return dg.RunRequest(run_key=f"{name} {context.scheduled_execution_time.astimezone(UTC):%Y-%m-%dT%H:%M}")

    return evaluate


def _records(context: dg.ScheduleEvaluationContext) -> dg.DagsterInstance | None:
    """Return Dagster's records, or None if the tick is evaluated without them."""
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
    choose: Callable[[datetime], DueDays],
    description: str,
    most_days: int,
    keys: Sequence[SeriesKey],
    *,
    backlog: Callable[[datetime, Busy], Mapping[SeriesKey, Sequence[date]]] | None = None,
    busy_while: Sequence[dg.DagsterRunStatus] = UNFINISHED,
) -> dg.ScheduleDefinition:
    """Return a schedule that requests days, except those that an unfinished run will fetch.

    After a pause the daemon evaluates several ticks one after another.

    Args:
        name: The name of the schedule.
        cron: The cron expression, in UTC.
        jobs: All jobs.
        job: The name of the job to run.
        choose: Returns the days to request, each in a run of its own.
        description: The text for the UI.
        most_days: The maximum number of days in a run of the backlog.
        keys: The series that it may request.
        backlog: Returns further days to request, in runs of many days. None requests no further days.
        busy_while: Statuses of runs whose days are left out.
    """

    @dg.schedule(name=name, job=jobs[job], cron_schedule=cron, execution_timezone="UTC", description=description)
    def evaluate(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        at = context.scheduled_execution_time.astimezone(UTC)
        busy = _busy(context, keys, busy_while)
        requested: dict[SeriesKey, set[date]] = {}
        for day, some in choose(at):
            if left := [key for key in some if day not in busy.get(key, ())]:
                for key in left:
                    requested.setdefault(key, set()).add(day)
                # Stable for a tick and a day, so that evaluating a tick twice starts nothing twice.
                yield request_of(f"{name} {at:%Y-%m-%dT%H:%M} {day}", left, day, day)
        missing = without(backlog(at, busy), requested) if backlog else {}
        further = run_requests(f"{name} {at:%Y-%m-%dT%H:%M}", missing, most_days)[:MOST_REPAIRS]
        yield from further
        if not requested and not further:
            yield dg.SkipReason("There is nothing to fetch: no series is listed, or all recent days are final.")

    return evaluate
