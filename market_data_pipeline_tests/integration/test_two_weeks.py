"""Two weeks go by in a minute or two: each schedule and sensor is evaluated tick by tick, and what it requests is run.

Archives come late and out of order, one is replaced, one never matches its checksum, trading stops once, and REST and
the archive fail at times. In the end every day is final or it is said why not, and nothing was fetched without need.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.execute_in_process import core_execute_in_process, merge_run_tags
from dagster._core.instance.types import InstanceType
from dagster._core.launcher.sync_in_memory_run_launcher import SyncInMemoryRunLauncher
from dagster._core.run_coordinator import DefaultRunCoordinator
from dagster._core.storage.event_log import InMemoryEventLogStorage
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from dagster._core.storage.root import LocalArtifactStorage
from dagster._core.storage.runs import InMemoryRunStorage
from dagster._utils.schedules import cron_string_iterator
from sqlalchemy.engine import Connection

from market_data_pipeline import clock
from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.defs.partitions import span_of
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.sandbox import (
    GeneratedSymbol,
    LateArchive,
    LoggedRequest,
    MarketOutage,
    ReplacedArchive,
    Sandbox,
    Status,
    WrongChecksum,
)
from market_data_pipeline.universe import load_universe
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines, utc

pytestmark = pytest.mark.slow

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2026-02-20}
    aggTrades: {from: 2026-02-20}
"""
BTC, TRADES = klines("BTCUSDT", "1h"), agg_trades("BTCUSDT")
KEYS = (BTC, TRADES)
FORTNIGHT = days("2026-02-20", "2026-03-05")

LATE = {date(2026, 2, 22): 9, date(2026, 2, 23): 4, date(2026, 2, 26): 2}
"""Days whose archives come late, and by how many days: the youngest comes before the oldest."""
REPLACED = date(2026, 2, 24)
OUTAGE = date(2026, 2, 25)
REFUSED = date(2026, 3, 3)

LOOKS = frozenset({0, 1, 12})
"""Hours of a day at which the schedule ``hourly`` ticks. The others would be alike, at 0.1 s a run."""
EVENTFUL = dict.fromkeys((date(2026, 2, 23), OUTAGE, date(2026, 3, 1)), LOOKS.union(range(9, 20)))
"""Days on which REST, the exchange or the archive is off from about ten o'clock on: it ticks at these hours, too."""

DAYS, EVERY = 14.5, timedelta(minutes=30)
"""How long it lasts, and how often the sensor looks."""


@dataclass(frozen=True)
class Asked:
    """A request, when it was sent by the moved clock, and for which schedule or sensor."""

    at: datetime
    by: str
    request: LoggedRequest


@dataclass
class Daemon:
    """Does what Dagster's daemon does: evaluates ticks when they are due, and runs what they ask for once a run key."""

    world: World
    instance: dg.DagsterInstance
    definitions: dg.Definitions
    ticks: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    _cursors: dict[str, str | None] = field(default_factory=dict)
    _run_keys: set[tuple[str, str]] = field(default_factory=set)
    _jobs: dict[tuple[str, frozenset[dg.AssetKey]], dg.JobDefinition] = field(default_factory=dict)

    def live(self, start: str, end: str) -> None:
        """Let time go by."""
        for moment, name in self._ticks(utc(start), utc(end)):
            if name == "hourly" and moment.hour not in EVENTFUL.get(moment.date(), LOOKS):
                continue
            if name == "iceberg_hourly" and moment.hour != 12:  # once a day shows as much
                continue
            self.ticks[name] += 1
            self.world.at(moment.replace(tzinfo=None).isoformat())
            for request in self._requested(name, moment):
                self._run(name, request)
            self.asked += [Asked(moment, name, request) for request in self.world.sandbox.requests]
            self.world.forget()

    def names(self) -> set[str]:
        """Of all schedules and sensors."""
        repository = self.definitions.get_repository_def()
        return {one.name for one in repository.schedule_defs} | {one.name for one in self._sensors()}

    def _sensors(self) -> list[dg.SensorDefinition]:
        """All but the sensor of the live feed, which does not run here."""
        sensors = self.definitions.get_repository_def().sensor_defs
        return [one for one in sensors if one.name != "live_feed"]

    def _ticks(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, str]]:
        def of(schedule: dg.ScheduleDefinition) -> Iterator[tuple[datetime, str]]:
            times = cron_string_iterator(start.timestamp(), str(schedule.cron_schedule), "UTC")
            return ((datetime.fromtimestamp(time.timestamp(), UTC), schedule.name) for time in times)

        def often(sensor: dg.SensorDefinition) -> Iterator[tuple[datetime, str]]:
            # Beside the minutes of the schedules.
            every = timedelta(seconds=sensor.minimum_interval_seconds or 30)
            return ((start + timedelta(minutes=1) + every * n, sensor.name) for n in range(10**6))

        repository = self.definitions.get_repository_def()
        for tick in heapq.merge(*map(of, repository.schedule_defs), *map(often, self._sensors())):
            if tick[0] >= end:
                return
            yield tick

    def _requested(self, name: str, moment: datetime) -> Sequence[dg.RunRequest]:
        repository = self.definitions.get_repository_def()
        if repository.has_schedule_def(name):
            with dg.build_schedule_context(
                instance=self.instance, scheduled_execution_time=moment, repository_def=repository
            ) as context:
                return repository.get_schedule_def(name).evaluate_tick(context).run_requests or []
        with dg.build_sensor_context(
            instance=self.instance, cursor=self._cursors.get(name), repository_def=repository
        ) as watching:
            tick = repository.get_sensor_def(name).evaluate_tick(watching)
        self._cursors[name] = tick.cursor or self._cursors.get(name)
        return tick.run_requests or []

    def _run(self, name: str, request: dg.RunRequest) -> None:
        if request.run_key is not None:
            if (name, request.run_key) in self._run_keys:
                return
            self._run_keys.add((name, request.run_key))
        # As JobDefinition.execute_in_process does, which builds the job and its snapshot anew for each run.
        job = self._job(name, request)
        run_config = {**request.run_config, "loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        tags = merge_run_tags(job, request.partition_key, dict(request.tags), (), self.instance, run_config)
        result = core_execute_in_process(
            run_config=run_config,
            job=InMemoryJob(job_def=job),
            instance=self.instance,
            output_capturing_enabled=False,
            raise_on_error=False,
            run_tags=tags,
        )
        self.runs[name] += 1
        if not result.success:
            days = span_of(request.tags)
            self.failed.append(f"{name} {days[0] if days else request.run_key}")

    def _job(self, name: str, request: dg.RunRequest) -> dg.JobDefinition:
        """The job of a request, with the selection that it asks for, made once."""
        repository = self.definitions.get_repository_def()
        asking = repository.get_schedule_def if repository.has_schedule_def(name) else repository.get_sensor_def
        job, selection = str(request.job_name or asking(name).job_name), frozenset(request.asset_selection or ())
        if (job, selection) not in self._jobs:
            whole = self.definitions.resolve_job_def(job)
            self._jobs[job, selection] = whole.as_ephemeral_job({}, {}, asset_selection=list(selection) or None)
        return self._jobs[job, selection]


_UNREAD = {
    dg.DagsterEventType.ENGINE_EVENT,
    dg.DagsterEventType.RESOURCE_INIT_STARTED,
    dg.DagsterEventType.RESOURCE_INIT_SUCCESS,
    dg.DagsterEventType.LOGS_CAPTURED,
    dg.DagsterEventType.STEP_START,
    dg.DagsterEventType.STEP_OUTPUT,
    dg.DagsterEventType.STEP_SUCCESS,
    dg.DagsterEventType.HANDLED_OUTPUT,
    dg.DagsterEventType.LOADED_INPUT,
    dg.DagsterEventType.RUN_START,
    dg.DagsterEventType.RUN_SUCCESS,
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
}
"""How a run went, for the eyes of whoever looks at it in the UI: no schedule and no asset reads it."""


class _Events(InMemoryEventLogStorage):
    """Events in memory by one connection: the stock class opens one for each statement."""

    def store_event(self, event: dg.EventLogEntry) -> None:
        """Keep what is told of assets, checks and runs."""
        if event.dagster_event is not None and event.dagster_event.event_type not in _UNREAD:
            super().store_event(event)  # type: ignore[no-untyped-call]

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        with self._db_lock, self._held_conn.begin():
            yield self._held_conn

    def has_table(self, table_name: str) -> bool:
        """All tables are made at the start."""
        return True


class _Runs(InMemoryRunStorage):
    """Runs in memory, likewise."""

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._held_conn.begin():
            yield self._held_conn


def in_memory(root: Path) -> dg.DagsterInstance:
    """As :meth:`dagster.DagsterInstance.ephemeral`, but with storages that keep their connection."""
    return dg.DagsterInstance(
        instance_type=InstanceType.EPHEMERAL,
        local_artifact_storage=LocalArtifactStorage(str(root)),
        run_storage=_Runs(),
        event_storage=_Events(),
        compute_log_manager=NoOpComputeLogManager(),
        run_coordinator=DefaultRunCoordinator(),
        run_launcher=SyncInMemoryRunLauncher(),
    )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A quiet exchange: what takes time here is Dagster."""
    symbols = [GeneratedSymbol(Market.SPOT, "BTCUSDT", date(2026, 1, 1), trades_per_day=500)]
    with Sandbox(symbols=symbols) as sandbox:
        yield World(tmp_path, sandbox, monkeypatch)


@pytest.fixture
def daemon(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    universe = world.root / "universe.yaml"
    universe.write_text(UNIVERSE)
    world.set(universe=universe, retries=1)
    world.at("2026-02-20T00:00:00")
    with in_memory(world.root / "dagster") as instance:
        # A schedule opens records on disk by their address only; those in memory are a third of the time.
        monkeypatch.setattr(dg.ScheduleEvaluationContext, "instance", property(lambda _: instance))
        yield Daemon(world, instance, build_definitions(world.settings, load_universe(universe)))


def row(world: World, key: SeriesKey, day: date) -> DayRecord:
    return world.ledger(key).rows[day]


def name_of(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def zip_of(key: SeriesKey, day: date) -> str:
    return name_of(key.archive_daily(day))


def files(asked: Iterable[Asked], ending: str, status: int) -> Counter[str]:
    """How often each file of the archive was asked for and answered so."""
    paths = [one.request.path for one in asked if one.request.status == status]
    return Counter(name_of(path) for path in paths if path.endswith(ending))


def rest(asked: Iterable[Asked], endpoint: str) -> list[Asked]:
    """What REST was asked for and answered."""
    return [one for one in asked if name_of(one.request.path) == endpoint and one.request.status == 200]


def waits(key: SeriesKey, at: datetime) -> bool:
    """Whether a day has been over for two hours and is not final: its archive is to come, or was refused."""
    for day in FORTNIGHT:
        midnight = utc(str(day)) + timedelta(days=1)
        published = midnight + timedelta(days=LATE.get(day, 0), hours=8)
        if at >= midnight + timedelta(hours=2) and (at < published + EVERY or (key, day) == (BTC, REFUSED)):
            return True
    return False


def test_two_weeks_by_schedules_and_sensors_alone(world: World, daemon: Daemon) -> None:
    faults = world.sandbox.faults
    for day, days_late in LATE.items():
        faults.add(LateArchive(days=[day], days_late=days_late))
    faults.add(ReplacedArchive(days=[REPLACED], at=utc("2026-02-28T15:00:00"), series=str(BTC)))
    faults.add(MarketOutage(start=utc(f"{OUTAGE}T10:00"), end=utc(f"{OUTAGE}T12:00"), series="/spot/"))
    faults.add(WrongChecksum(path=f"spot/.*BTCUSDT-1h-{REFUSED}"))

    daemon.live("2026-02-20T00:00", "2026-02-23T09:30")
    no_rest = faults.add(Status(path="^/f?api/", status=503))
    daemon.live("2026-02-23T09:30", "2026-02-23T14:00")
    faults.remove(no_rest)
    daemon.live("2026-02-23T14:00", "2026-03-01T09:30")
    no_archive = faults.add(Status(path="\\.zip", status=503))
    daemon.live("2026-03-01T09:30", "2026-03-01T12:00")
    faults.remove(no_archive)
    daemon.live("2026-03-01T12:00", "2026-03-06T12:00")

    assert daemon.ticks == {
        "hourly": sum(len(EVENTFUL.get(day, LOOKS)) for day in FORTNIGHT) + 2,  # until noon of the last day
        "repair": 24 * DAYS,
        "archive_published": 48 * DAYS,  # every half hour, see the settings
        **dict.fromkeys(["daily", "trade_profiles_daily", "coverage_daily", "exchange_info_daily"], 15),
        "verify": 2,  # on Sundays
        **dict.fromkeys(["compact", "prune", "iceberg_hourly"], 14),
    }
    assert set(daemon.runs) == daemon.names()
    assert Counter(daemon.failed) == {
        "hourly 2026-02-23": 4,  # REST is off
        "daily 2026-02-22": 1,  # the archive is late, and on March 1st it is off
        "repair 2026-02-22": 1,
        f"archive_published {REFUSED}": 1,  # its checksum is wrong
    }

    every_day_is_final_or_explained(world)
    no_file_was_fetched_without_need(daemon.asked)
    rest_was_asked_for_what_was_new(daemon)
    the_listing_was_looked_at_while_a_day_waited(daemon.asked)


def every_day_is_final_or_explained(world: World) -> None:
    for key in KEYS:
        for day in FORTNIGHT:
            if (key, day) != (BTC, REFUSED):
                found = row(world, key, day)
                assert (found.outcome, found.final, found.integrity, found.gaps) == ("held", True, "info", "info"), (
                    found
                )
    refused = row(world, BTC, REFUSED)
    assert (refused.outcome, refused.final, refused.source, refused.rows) == ("held", False, "rest", 24)
    assert refused.failure == "checksum"
    assert "does not match its published checksum" in str(refused.reason)
    assert [row(world, key, OUTAGE).verdicts for key in KEYS] == ["outage", ""]
    replaced = row(world, BTC, REPLACED)
    assert "replaced" in [finding.rule for finding in replaced.findings_list()]
    assert replaced.rows == 24
    assert world.ledger(profile_of(TRADES)).days() == FORTNIGHT


def no_file_was_fetched_without_need(asked: Sequence[Asked]) -> None:
    # Each zip once with its checksum; again the one that was replaced, and, within its one attempt, the one that does
    # not match. None of a month.
    again = {zip_of(BTC, REPLACED), zip_of(BTC, REFUSED)}
    fetched = {zip_of(key, day): 1 for key in KEYS for day in FORTNIGHT} | dict.fromkeys(again, 2)
    assert files(asked, ".zip", 200) == fetched
    assert files(asked, ".CHECKSUM", 200) == {f"{name}.CHECKSUM": times for name, times in fetched.items()}
    # In vain by `hourly` right after midnight, and by `daily` once a day while a day is late: `daily` looks at no
    # listing. The month's zip might stand in for a day of February that is asked for in March.
    in_vain = {zip_of(key, day): 1 + LATE.get(day, 0) for key in KEYS for day in FORTNIGHT}
    since_march = [one for one in asked if one.at >= utc("2026-03-01")]
    of_february = files(since_march, ".zip", 404)
    month = name_of(BTC.archive_monthly(date(2026, 2, 1)))
    asked_late = sum(times for name, times in of_february.items() if name.startswith("BTCUSDT-1h-2026-02-"))
    assert files(asked, ".zip", 404) == {**in_vain, month: asked_late}


def rest_was_asked_for_what_was_new(daemon: Daemon) -> None:
    # One page of each series a run, for what is new; hours without REST are made up for by the next page.
    answered = daemon.runs["hourly"] - 4
    candles, trades = rest(daemon.asked, "klines"), rest(daemon.asked, "aggTrades")
    # Of the day of the outage, one more for what the archive lacks, and two while that day grew: what lacked inside it
    # was asked for again three and seven hours after the outage.
    assert [one.by for one in candles if one.by != "hourly"] == ["archive_published"]
    assert len(candles) == answered + 3
    starts = Counter(clock.naive_from_us(int(one.request.query["startTime"]) * 1000) for one in candles)
    assert {start: times for start, times in starts.items() if times > 1} == {
        datetime.combine(OUTAGE, time(10)): 6,  # at 11:05, 12:05, 13:05, 15:05, 19:05, and in healing
    }
    # Of trades a day's first hour is asked for by time, which is one page; the next goes on by id.
    by_time = [one for one in trades if "startTime" in one.request.query]
    assert {one.by for one in trades} == {"hourly"}
    assert [clock.naive_from_us(int(one.request.query["startTime"]) * 1000).date() for one in by_time] == [
        *FORTNIGHT,
        FORTNIGHT[-1] + timedelta(days=1),
    ]
    assert len(trades) == answered + len(by_time)
    # The clock once a run that asks REST at all; two series share it.
    assert len(rest(daemon.asked, "time")) == answered + 1


def the_listing_was_looked_at_while_a_day_waited(asked: Sequence[Asked]) -> None:
    looks = [one for one in asked if "prefix" in one.request.query]
    assert {one.by for one in looks} == {"archive_published", "verify"}
    # One page holds a series, of days or of months.
    assert set(Counter((one.at, one.request.query["prefix"]) for one in looks).values()) == {1}
    for one in looks:
        if one.by == "archive_published":
            [key] = [key for key in KEYS if f"/{key.data_type}/" in one.request.query["prefix"]]
            assert waits(key, one.at), one
            # A day is published between 02:00 and noon; older ones are looked for every two hours.
            assert 2 <= one.at.hour < 12 or (one.at.hour % 2 == 0 and one.at.minute < 30), one
    assert Counter(one.at.date() for one in looks if one.by == "verify") == {
        date(2026, 2, 22): 2,
        date(2026, 3, 1): 3,  # the month is over
    }
