"""Two weeks go by in a minute: every schedule and sensor is evaluated tick by tick, and what they request is run.

Archives come late and out of order, one is replaced, one never matches its checksum, trading stops once, and REST and
the archive fail at times. In the end every day is final or it is said why not, and nothing was fetched without need.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._utils.schedules import cron_string_iterator

from market_data_pipeline import clock
from market_data_pipeline.definitions import build_definitions
from market_data_pipeline.lake.ledger import LedgerRow
from market_data_pipeline.profile import profile_of
from market_data_pipeline.sandbox import (
    GeneratedSymbol,
    LateArchive,
    MarketOutage,
    ReplacedArchive,
    Sandbox,
    Status,
    WrongChecksum,
)
from market_data_pipeline.series import Market, SeriesKey
from market_data_pipeline.universe import load_universe
from market_data_pipeline_tests.world import World, agg_trades, days, klines, utc

pytestmark = pytest.mark.slow

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2026-02-20}
    aggTrades: {from: 2026-02-20}
  - market: um
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2026-02-20}
"""
BTC, TRADES, UM = klines("BTCUSDT", "1h"), agg_trades("BTCUSDT"), klines("BTCUSDT", "1h", "um")
KEYS = (BTC, TRADES, UM)
FORTNIGHT = days("2026-02-20", "2026-03-05")

LATE = {date(2026, 2, 22): 9, date(2026, 2, 23): 4, date(2026, 2, 26): 2}
"""Days whose archives come late, and by how many days: the youngest comes before the oldest."""
REPLACED = date(2026, 2, 24)
OUTAGE = date(2026, 2, 25)
REFUSED = date(2026, 3, 3)

SENSOR_EVERY = timedelta(hours=2)
"""By default it looks every half hour; archives appear at full hours here, so that nothing is seen the sooner."""

HOURLY_IS_ON = (("2026-02-20T00:00", "2026-02-21T02:00"), ("2026-02-26T22:00", "2026-02-27T02:00"))
"""When somebody wants today as well: each of its runs takes a fifth of a second here."""


@dataclass
class Daemon:
    """Does what Dagster's daemon does: evaluates ticks when they are due, and runs what they ask for once a run key."""

    world: World
    instance: dg.DagsterInstance
    definitions: dg.Definitions
    runs: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    _cursors: dict[str, str | None] = field(default_factory=dict)
    _asked: set[tuple[str, str]] = field(default_factory=set)

    def live(self, start: str, end: str) -> None:
        """Let time go by."""
        for moment, name in self._ticks(utc(start), utc(end)):
            if name == "hourly" and not any(utc(on) <= moment < utc(off) for on, off in HOURLY_IS_ON):
                continue
            self.world.at(moment.replace(tzinfo=None).isoformat())
            for request in self._requested(name, moment):
                self._run(name, request)

    def names(self) -> set[str]:
        """Of all schedules and sensors."""
        repository = self.definitions.get_repository_def()
        return {one.name for one in repository.schedule_defs} | {one.name for one in repository.sensor_defs}

    def _ticks(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, str]]:
        def of(schedule: dg.ScheduleDefinition) -> Iterator[tuple[datetime, str]]:
            times = cron_string_iterator(start.timestamp(), str(schedule.cron_schedule), "UTC")
            return ((datetime.fromtimestamp(time.timestamp(), UTC), schedule.name) for time in times)

        def often(sensor: dg.SensorDefinition) -> Iterator[tuple[datetime, str]]:
            # Beside the minutes of the schedules.
            return ((start + timedelta(minutes=1) + SENSOR_EVERY * n, sensor.name) for n in range(10**6))

        repository = self.definitions.get_repository_def()
        for tick in heapq.merge(*map(of, repository.schedule_defs), *map(often, repository.sensor_defs)):
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
            if (name, request.run_key) in self._asked:
                return
            self._asked.add((name, request.run_key))
        repository = self.definitions.get_repository_def()
        asking = repository.get_schedule_def if repository.has_schedule_def(name) else repository.get_sensor_def
        job = self.definitions.resolve_job_def(str(request.job_name or asking(name).job_name))
        quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        result = job.execute_in_process(
            instance=self.instance,
            partition_key=request.partition_key,
            tags=dict(request.tags),
            run_config={**request.run_config, **quiet},
            asset_selection=list(request.asset_selection) if request.asset_selection else None,
            raise_on_error=False,
        )
        self.runs[name] += 1
        if not result.success:
            self.failed.append(f"{name} {request.partition_key or request.run_key}")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A quiet exchange: what takes time here is Dagster."""
    symbols = [
        GeneratedSymbol(market, "BTCUSDT", date(2026, 1, 1), trades_per_day=500) for market in (Market.SPOT, Market.UM)
    ]
    with Sandbox(symbols=symbols) as sandbox:
        yield World(tmp_path, sandbox, monkeypatch)


@pytest.fixture
def daemon(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    universe = world.root / "universe.yaml"
    universe.write_text(UNIVERSE)
    world.set(universe=universe, retries=1)
    world.at("2026-02-20T00:00:00")
    with dg.DagsterInstance.ephemeral() as instance:
        # A schedule opens records on disk by their address only; those in memory are a third of the time.
        monkeypatch.setattr(dg.ScheduleEvaluationContext, "instance", property(lambda _: instance))
        yield Daemon(world, instance, build_definitions(world.settings, load_universe(universe)))


def row(world: World, key: SeriesKey, day: date) -> LedgerRow:
    return world.ledger(key).rows[day]


def zips(world: World, status: int) -> Counter[str]:
    """How often each zip was asked for and answered so, by market and name."""
    return Counter(
        f"{'spot' if '/spot/' in request.path else 'um'} {request.path.rsplit('/', 1)[-1]}"
        for request in world.sandbox.requests
        if request.path.endswith(".zip") and request.status == status
    )


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

    for key in KEYS:
        for day in FORTNIGHT:
            if (key, day) != (BTC, REFUSED):
                found = row(world, key, day)
                assert (found.outcome, found.final, found.integrity, found.gaps) == ("held", True, "info", "info"), (
                    found
                )
    refused = row(world, BTC, REFUSED)
    assert (refused.outcome, refused.failure) == ("failed", "checksum")
    assert [row(world, key, OUTAGE).verdicts for key in KEYS] == ["outage", "", ""]
    replaced = row(world, BTC, REPLACED)
    assert "replaced" in [finding.rule for finding in replaced.findings_list()]
    assert replaced.rows == 24
    assert world.ledger(profile_of(TRADES)).days() == FORTNIGHT

    assert set(daemon.runs) == daemon.names()
    assert set(daemon.failed) == {
        "daily 2026-02-22",  # REST is off, and the archive late; on March 1st the archive is off, too
        "repair 2026-02-22",
        "daily 2026-02-28",  # the archive is off
        "repair 2026-02-28",
        "daily 2026-03-03",  # its checksum is wrong
    }

    # Each zip once; again the one that was replaced, and, within its one attempt, the one that does not match.
    assert {name: times for name, times in zips(world, 200).items() if times > 1} == {
        f"spot {BTC.archive_daily(REPLACED).rsplit('/', 1)[-1]}": 2,
        f"spot {BTC.archive_daily(REFUSED).rsplit('/', 1)[-1]}": 2,
    }
    # In vain once a day while a day is late, and where something else was amiss. The month's zip stands in for a day.
    in_vain = zips(world, 404)
    assert {name[-14:-4] for name in in_vain} == {"2026-02-20", *map(str, LATE), "1h-2026-02"}
    assert max(in_vain.values()) <= max(LATE.values()) + 3
    # No candle was asked of REST twice, and of days whose archive was there only what it lacks.
    starts = Counter(
        (request.path, clock.naive_from_us(int(request.query["startTime"]) * 1000))
        for request in world.sandbox.requests
        if request.path.endswith("/klines") and request.query["startTime"] != "0"
    )
    assert set(starts.values()) == {1}
    by_the_hour = {date(2026, 2, 20), date(2026, 2, 21), date(2026, 2, 26), date(2026, 2, 27)}
    assert {start.date() for _, start in starts} == {*by_the_hour, *LATE, OUTAGE}
