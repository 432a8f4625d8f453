"""Schedules as a table: the job, the time and the requests of each. All times are UTC.

Days are computed from the tick's time and the ledgers. Today is a partition, so a schedule that Dagster builds from a
partitioned job would request the wrong day. Schedules that download are off until you turn them on in the UI.
Choosing days does not belong here; see ``maintenance.due``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.tags import SCHEDULE_NAME_TAG

from market_data_pipeline.clock import DAY, HOUR
from market_data_pipeline.defs.jobs import COVERAGE, EXCHANGE_INFO, ICEBERG, INGEST_ALL, TRADE_PROFILES, Jobs
from market_data_pipeline.defs.keys import RECONCILIATION
from market_data_pipeline.defs.maintenance.definitions import COMPACT, PRUNE, RETAIN, VERIFY
from market_data_pipeline.defs.platform.heartbeat import close_dead_runs
from market_data_pipeline.defs.reconciliation.definitions import run_config
from market_data_pipeline.defs.requests import request_of, run_requests, underway, without
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.lineage import comparable, profile_of
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe

_VERIFY_DAYS = {"day": "* * *", "week": "* * 0", "month": "1 * *"}
"""Cron expression for the days of the schedule ``verify``, by setting."""

MOST_REPAIRS = 20
"""Maximum number of runs per tick for repairs, and for missing days. Later ticks request the rest."""

_RENAMING_SECONDS = 15.0
"""Time limit for renaming assets in a tick. Dagster ends it after 60 s, and the next tick continues."""

_UNFINISHED = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]
_WAITING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED]

_NOTHING = "There is nothing to fetch: no series is listed, or all recent days are final."

Requests = Iterator[dg.RunRequest | dg.SkipReason]
DueDays = Iterable[tuple[date, Sequence[SeriesKey]]]
"""Days to request, each with its series."""

_Busy = Mapping[SeriesKey, Collection[date]]
"""Days of series that unfinished runs will fetch."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One evaluation of a schedule.

    Attributes:
        name: The name of the schedule.
        context: Dagster's context.
        settings: The location of the lake.
        universe: The universe at the time of loading.
    """

    name: str
    context: dg.ScheduleEvaluationContext
    settings: Settings
    universe: Universe

    @property
    def at(self) -> datetime:
        """Return the time of the tick, in UTC. After a pause the daemon evaluates several ticks one after another."""
        return self.context.scheduled_execution_time.astimezone(UTC)

    @property
    def stamp(self) -> str:
        """Return the prefix of run keys. It is stable, so that evaluating a tick twice starts nothing twice."""
        return f"{self.name} {self.at:%Y-%m-%dT%H:%M}"

    @property
    def layout(self) -> Layout:
        """Return the location of the lake."""
        return Layout(self.settings.root)

    @property
    def records(self) -> dg.DagsterInstance | None:
        """Return Dagster's records, or None if the tick is evaluated without them."""
        try:
            return self.context.instance
        except dg.DagsterInvariantViolationError:
            return None

    def has_own_run(self, statuses: Sequence[dg.DagsterRunStatus]) -> bool:
        """Return True if a run of an earlier tick of the same schedule has one of the statuses."""
        ours = dg.RunsFilter(tags={SCHEDULE_NAME_TAG: self.name}, statuses=list(statuses))
        return self.records is not None and bool(self.records.get_runs(ours, limit=1))

    def busy(self, keys: Iterable[SeriesKey], statuses: Sequence[dg.DagsterRunStatus] = _UNFINISHED) -> _Busy:
        """Return the days of series that runs with these statuses will fetch."""
        return {} if self.records is None else underway(self.records, keys, statuses)


@dataclass(frozen=True, slots=True)
class Row:
    """One schedule.

    Attributes:
        name: The name of the schedule.
        job: The name of its job. There is no schedule without the job.
        cron: The cron expression, in UTC.
        requests: Returns the requests of a tick.
        description: The text for the UI.
        on: True if it starts switched on, because it downloads nothing.
    """

    name: str
    job: str
    cron: str
    requests: Callable[[Tick], Requests]
    description: str
    on: bool = False


def schedule_rows(settings: Settings) -> tuple[Row, ...]:
    """Return all schedules. Those of a day follow each other in the order of the table."""

    def at(minute: int, hours_after: int = 0, days: str = "* * *") -> str:
        return f"{minute} {(settings.daily_hour + hours_after) % 24} {days}"

    return (
        Row(
            "daily",
            INGEST_ALL,
            at(0),
            request_recent,
            "Fetch yesterday and recent days that are not final. Archives appear between 03:00 and 09:00 UTC.",
        ),
        Row(
            "hourly",
            INGEST_ALL,
            f"{settings.hourly_minute} * * * *",
            request_growing,
            "Fetch today so far. After midnight, fetch the last hour of yesterday.",
        ),
        Row(
            "repair",
            INGEST_ALL,
            "45 * * * *",
            request_repairs,
            "Fetch days again that are failed, incomplete or replaced, and backfill missing days.\n\nRetries days that "
            "failed for a temporary reason, or for which REST or the archive may have new data by now. The backoff "
            "grows from an hour to a week. Each tick also fetches a batch of missing days of universe.yaml, the newest "
            "of each series first.",
        ),
        Row(
            "trade_profiles_daily",
            TRADE_PROFILES,
            at(0, 1),
            request_profiles,
            "Compute the tradeProfiles that are missing or out of date.\n\nTakes recent days whose aggTrades are new, "
            "all days whose aggTrades changed since, and a batch of days without a tradeProfile.",
        ),
        Row(
            "reconciliation_daily",
            RECONCILIATION,
            at(15, 1),
            request_comparisons,
            "Compare klines with their source, for days that are new or changed since the last comparison.",
            on=True,
        ),
        Row(
            "coverage_daily",
            COVERAGE,
            at(30, 1),
            request_one_run,
            "Report coverage and evaluate the standing checks, after the daily schedules.",
            on=True,
        ),
        Row(
            "exchange_info_daily",
            EXCHANGE_INFO,
            "10 0 * * *",
            request_one_run,
            "Store status, trading rules and dates of all symbols. Binance has no history of them.",
        ),
        Row(
            "iceberg_hourly",
            ICEBERG,
            "25 * * * *",
            request_one_run,
            "Publish what changed in the lake as Iceberg tables, and remove their old snapshots.",
        ),
        Row(
            "verify",
            VERIFY,
            at(0, 2, _VERIFY_DAYS[settings.verify_every]),
            request_one_run,
            "Find archives that were replaced since they were fetched. `repair` fetches those days again.",
        ),
        Row(
            "compact",
            COMPACT,
            at(15, 3),
            request_one_run,
            "Write the candles of each finished month into one file.",
        ),
        Row(
            RETAIN,
            RETAIN,
            at(30, 3),
            request_one_run,
            "Remove days older than `keep:` in universe.yaml. Days that Binance no longer has stay.",
            on=True,
        ),
        Row(
            "prune",
            PRUNE,
            at(20, 4),
            request_one_run,
            f"Drop runs older than {settings.keep_runs_days} days from Dagster's records. The newest results stay.",
            on=True,
        ),
    )


def build_schedules(jobs: Jobs, settings: Settings, universe: Universe) -> list[dg.ScheduleDefinition]:
    """Return the schedules of the jobs that exist."""
    return [_schedule(row, jobs, settings, universe) for row in schedule_rows(settings) if row.job in jobs]


def _schedule(row: Row, jobs: Jobs, settings: Settings, universe: Universe) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=row.name,
        job=jobs[row.job],
        cron_schedule=row.cron,
        execution_timezone="UTC",
        description=row.description,
        default_status=dg.DefaultScheduleStatus.RUNNING if row.on else dg.DefaultScheduleStatus.STOPPED,
    )
    def evaluate(context: dg.ScheduleEvaluationContext) -> Requests:
        yield from row.requests(Tick(row.name, context, settings, universe))

    return evaluate


# --- the requests of a tick ----------------------------------------------------------------------------------------


def request_recent(tick: Tick) -> Requests:
    """Request yesterday, and every recent day that is not final, after the archive is published."""
    from market_data_pipeline.maintenance.due import recent_days

    due = recent_days(tick.at, tick.settings.recent_days, tick.universe, tick.layout)
    yield from _days(tick, due, tick.busy(tick.universe.series())) or [dg.SkipReason(_NOTHING)]


def request_growing(tick: Tick) -> Requests:
    """Request the day of the hour that just ended. At 00:05 this is the previous day, which it completes."""
    from market_data_pipeline.maintenance.due import growing_day

    busy = tick.busy(tick.universe.series(), _WAITING)  # a run that has started may be past the newest candle
    yield from _days(tick, growing_day(tick.at, tick.universe), busy) or [dg.SkipReason(_NOTHING)]


def request_profiles(tick: Tick) -> Requests:
    """Request recent days whose aggTrades are new or changed, and a batch of days without a tradeProfile."""
    from market_data_pipeline.maintenance.backlog import profile_backlog
    from market_data_pipeline.maintenance.due import changed_profiles

    today = (tick.at - HOUR).date()  # one hour back: this tick falls on the next day if `daily` runs at 23:00
    keys = [profile_of(key) for key in tick.universe.series() if key.data_type is DataType.AGG_TRADES]
    busy = tick.busy(keys)
    due = list(changed_profiles(today, tick.settings.recent_days, tick.universe, tick.layout))
    requests = _days(tick, due, busy)
    taken: dict[SeriesKey, set[date]] = {}
    for day, some in due:
        for key in some:
            taken.setdefault(key, set()).add(day)
    missing = without(profile_backlog(tick.universe, tick.layout, today, busy), taken)
    requests += run_requests(tick.stamp, missing, tick.settings.max_partitions_per_run, tick.at)[:MOST_REPAIRS]
    yield from requests or [dg.SkipReason(_NOTHING)]


def request_repairs(tick: Tick) -> Requests:
    """Request incomplete days that may have new data, and a batch of those that were never fetched."""
    from market_data_pipeline.defs.platform.renaming import rename_assets
    from market_data_pipeline.maintenance.backlog import backlog, requestable
    from market_data_pipeline.maintenance.due import days_to_repair

    close_dead_runs(tick.context.instance)  # a run whose process was killed never finishes
    rename_assets(tick.context.instance, _RENAMING_SECONDS)
    if tick.has_own_run(_UNFINISHED):
        # Their days are not in the ledgers yet and would be requested twice.
        yield dg.SkipReason("Runs of an earlier tick are still in progress.")
        return
    at, layout = tick.at, tick.layout
    allowed = requestable(tick.universe)
    if allowed.notice:
        tick.context.log.warning(allowed.notice)
    busy = tick.busy(allowed.keys)
    # Leave yesterday to `daily` until that has ticked: its archive may not be published yet.
    until = at.date() - DAY * (at.hour <= tick.settings.daily_hour)
    due = without(days_to_repair(at, tick.universe, layout), busy)
    missing = without(backlog(at, until, allowed, layout, busy), due)
    requests = [
        request
        for stamp, days in ((tick.stamp, due), (f"backlog {at:%Y-%m-%dT%H:%M}", missing))
        for request in run_requests(stamp, days, tick.settings.max_partitions_per_run, at)[:MOST_REPAIRS]
    ]
    if not requests:
        text = "No day is due for a retry, and no day is missing."
        yield dg.SkipReason(" ".join(filter(None, (text, allowed.notice))))
    yield from requests


def request_comparisons(tick: Tick) -> Requests:
    """Request one comparison of all klines that have days to compare."""
    from market_data_pipeline.errors import MarketDataError
    from market_data_pipeline.reconciliation.plan import plan

    def is_due(key: SeriesKey) -> bool:
        try:
            return bool(plan(tick.layout, key).days)
        except MarketDataError:  # the run reports the fault after it has compared the others
            return True

    if due := [str(key) for key in comparable(tick.universe.series()) if is_due(key)]:
        yield dg.RunRequest(run_config=run_config(series=due))
    else:
        yield dg.SkipReason("All days that are stored on both sides are unchanged since the last comparison.")


def request_one_run(tick: Tick) -> Requests:
    """Request one run of a job that covers everything. Missed ticks need no run of their own."""
    if tick.has_own_run(_WAITING):
        yield dg.SkipReason("The run of an earlier tick has not started yet and does the same work.")
    else:
        yield dg.RunRequest(run_key=tick.stamp)


def _days(tick: Tick, due: DueDays, busy: _Busy) -> list[dg.RunRequest | dg.SkipReason]:
    """Return a request for each day and its series, except those that an unfinished run will fetch."""
    left = ((day, [key for key in keys if day not in busy.get(key, ())]) for day, keys in due)
    return [request_of(f"{tick.stamp} {day}", keys, day, day) for day, keys in left if keys]
