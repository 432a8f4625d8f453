"""The sensor ``archive_published``, tick by tick: provisional days become final when their archive is there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest

from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.defs.keys import series_of
from market_data_pipeline.defs.maintenance.published import is_time
from market_data_pipeline.defs.partitions import PARTITION, RANGE_END, RANGE_START
from market_data_pipeline.maintenance import archive_sweep
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox import GeneratedSymbol, LateArchive, ReplacedArchive, Sandbox, Status, WrongChecksum
from market_data_pipeline.universe import load_universe
from market_data_pipeline_tests.support.world import World, days, klines, utc

BTC, ETH, UM = klines("BTCUSDT", "1h"), klines("ETHUSDT", "1h"), klines("BTCUSDT", "1h", "um")

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT, ETHUSDT]
    klines: {intervals: [1h], from: 2026-01-01}
  - market: um
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2026-01-01}
"""


@dataclass
class Watch:
    """The sensor with its cursor, as the daemon keeps it, over a sandbox."""

    world: World
    definitions: dg.Definitions
    instance: dg.DagsterInstance
    cursor: str | None = None
    requests: int = field(default=0, init=False)
    said: str | None = field(default=None, init=False)

    def tick(self, at: str) -> list[dg.RunRequest]:
        """What it requests at a moment; ``requests`` then has how often the exchange was asked."""
        self.world.at(at)
        self.world.forget()
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, repository_def=self.definitions.get_repository_def()
        ) as context:
            found = self.definitions.resolve_sensor_def("archive_published").evaluate_tick(context)
        self.cursor = found.cursor or self.cursor
        self.requests, self.said = len(self.world.sandbox.requests), found.skip_message
        assert bool(found.run_requests) is (found.skip_message is None)
        return list(found.run_requests or [])

    def run(self, *requests: dg.RunRequest) -> None:
        """Run what was requested, as the daemon does."""
        for request in requests:
            job = self.definitions.resolve_job_def("ingest_all")
            done = job.execute_in_process(
                instance=self.instance,
                partition_key=request.partition_key,
                tags=dict(request.tags),
                asset_selection=list(request.asset_selection or ()),
            )
            assert done.success


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Symbols that were listed not long ago, whose listing is made in no time."""
    symbols = [GeneratedSymbol(key.market, key.symbol, date(2025, 12, 1)) for key in (BTC, ETH, UM)]
    with Sandbox(symbols=symbols) as sandbox:
        yield World(tmp_path, sandbox, monkeypatch)


@pytest.fixture
def watch(world: World) -> Iterator[Watch]:
    universe = world.root / "universe.yaml"
    universe.write_text(UNIVERSE)
    world.set(universe=universe, download_threads=1)  # series are looked for in turn, so that tests know the order
    definitions = build_definitions(world.settings, load_universe(universe))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Watch(world, definitions, instance)


def asked(requests: list[dg.RunRequest]) -> dict[tuple[str, str], set[SeriesKey]]:
    """Series by the first and the last day that they are asked for."""
    return {
        (
            request.tags.get(PARTITION) or request.tags[RANGE_START],
            request.tags.get(PARTITION) or request.tags[RANGE_END],
        ): {series_of(key) for key in request.asset_selection or ()}
        for request in requests
    }


def final(world: World, key: SeriesKey) -> list[date]:
    return sorted(day for day, row in world.ledger(key).rows.items() if row.final)


def test_tick_without_a_provisional_day_makes_no_request(watch: Watch) -> None:
    assert watch.tick("2026-03-05T12:00:00") == []
    assert watch.requests == 0
    watch.world.ingest(BTC, days("2026-03-01", "2026-03-05"))
    assert watch.tick("2026-03-05T12:30:00") == [], "today is the hourly schedule's"
    assert watch.requests == 0
    assert watch.said == "No day waits for an archive. It is too early to look again."


def test_listed_day_is_requested_once_and_becomes_final(watch: Watch) -> None:
    watch.world.at("2026-03-05T00:05:00")
    for key in (BTC, ETH, UM):
        assert not watch.world.one(key, "2026-03-04").row.final

    assert watch.tick("2026-03-05T01:00:00") == []
    assert watch.requests == 0, "no archive is there so early"
    assert watch.tick("2026-03-05T02:30:00") == []
    assert watch.requests == 3, "a page of the listing for each series"
    assert watch.said is not None
    assert watch.said.startswith("3 days wait for an archive")
    requests = watch.tick("2026-03-05T08:30:00")
    assert asked(requests) == {("2026-03-04", "2026-03-04"): {BTC, ETH, UM}}
    assert watch.tick("2026-03-05T09:00:00") == [], "its run has not begun yet"

    watch.run(*requests)

    for key in (BTC, ETH, UM):
        assert final(watch.world, key) == [date(2026, 3, 4)]
    assert watch.tick("2026-03-05T09:30:00") == []
    assert watch.requests == 0


def test_late_days_are_requested_in_order_of_publication(watch: Watch) -> None:
    for day, late in (("2026-02-20", 9), ("2026-02-21", 8), ("2026-02-22", 8), ("2026-02-23", 2)):
        watch.world.sandbox.faults.add(LateArchive(series=str(BTC), days=[date.fromisoformat(day)], days_late=late))
    watch.world.at("2026-02-24T00:05:00")
    watch.world.ingest(BTC, days("2026-02-20", "2026-02-23"))
    seen: dict[str, list[tuple[str, str]]] = {}
    asked_for = 0
    moment = utc("2026-02-24T00:30:00")
    while moment < utc("2026-03-04T00:00:00"):
        requests = watch.tick(f"{moment:%Y-%m-%dT%H:%M:%S}")
        asked_for += watch.requests
        if requests:
            seen[f"{moment:%Y-%m-%d}"] = list(asked(requests))
            watch.run(*requests)
        moment += timedelta(hours=2)

    assert seen == {
        "2026-02-26": [("2026-02-23", "2026-02-23")],
        "2026-03-02": [("2026-02-20", "2026-02-21")],
        "2026-03-03": [("2026-02-22", "2026-02-22")],
    }
    assert final(watch.world, BTC) == days("2026-02-20", "2026-02-23")
    # A page every two hours, in which all days that wait are looked for; in March, one of February's zip as well.
    assert asked_for <= (9 + 3) * 12


@pytest.mark.parametrize(
    ("looked_at", "now", "due"),
    [
        (None, "2026-03-05T01:59:00", False),
        (None, "2026-03-05T02:00:00", True),
        ("2026-03-05T03:00:00", "2026-03-05T03:30:00", True),
        ("2026-03-05T13:00:00", "2026-03-05T13:30:00", False),
        ("2026-03-05T13:30:00", "2026-03-05T14:00:00", True),
        ("2026-03-10T12:00:00", "2026-03-10T13:30:00", False),
        ("2026-03-10T13:30:00", "2026-03-10T14:00:00", True),
        ("2026-03-20T06:30:00", "2026-03-20T11:30:00", False),
        ("2026-03-20T11:30:00", "2026-03-20T12:00:00", True),
        ("2026-04-20T06:00:00", "2026-04-20T23:30:00", False),
        ("2026-04-20T23:30:00", "2026-04-21T00:00:00", True),
        (None, "2026-07-05T00:00:00", False),
    ],
)
def test_the_older_a_day_the_seldomer_it_is_looked_for(looked_at: str | None, now: str, due: bool) -> None:
    assert is_time(date(2026, 3, 4), utc(looked_at) if looked_at else None, utc(now)) is due


def test_an_archive_that_is_refused_is_not_requested_again(watch: Watch) -> None:
    watch.world.at("2026-03-05T00:05:00")
    watch.world.one(BTC, "2026-03-04")
    watch.world.sandbox.faults.add(WrongChecksum(path="BTCUSDT-1h-2026-03-04"))
    assert len(watch.tick("2026-03-05T08:30:00")) == 1
    watch.world.at("2026-03-05T08:31:00")
    assert watch.world.one(BTC, "2026-03-04").row.failure == "checksum"
    for hour in range(9, 24):
        assert watch.tick(f"2026-03-05T{hour:02}:00:00") == []


def test_failed_listing_is_retried_at_the_next_tick(watch: Watch, capfd: pytest.CaptureFixture[str]) -> None:
    watch.world.set(retries=0)
    watch.definitions = build_definitions(watch.world.settings, load_universe(watch.world.settings.universe))
    watch.world.at("2026-03-05T00:05:00")
    for key in (BTC, ETH):
        watch.world.one(key, "2026-03-04")
    down = watch.world.sandbox.faults.add(Status(path="^/$", query="ETHUSDT", status=503))
    requests = watch.tick("2026-03-05T14:00:00")
    assert asked(requests) == {("2026-03-04", "2026-03-04"): {BTC}}, "the others do not wait for it"
    assert "503" in capfd.readouterr().err
    watch.world.sandbox.faults.remove(down)
    assert asked(watch.tick("2026-03-05T14:30:00")) == {("2026-03-04", "2026-03-04"): {ETH}}


def test_failed_listing_ends_the_tick_and_the_next_goes_on(watch: Watch, capfd: pytest.CaptureFixture[str]) -> None:
    """The tick stops after the first series. The next tick begins with the others."""
    watch.world.set(download_threads=1)
    watch.definitions = build_definitions(watch.world.settings, load_universe(watch.world.settings.universe))
    watch.world.at("2026-03-05T00:05:00")
    for key in (BTC, ETH, UM):
        watch.world.one(key, "2026-03-04")
    down = watch.world.sandbox.faults.add(Status(path="^/$", status=503))

    assert watch.tick("2026-03-05T14:00:00") == []
    assert watch.requests <= 2, "400 series with all retries each would outlast the tick"
    assert watch.said is not None
    assert "The next tick looks for 3 more series" in watch.said
    assert "503" in capfd.readouterr().err

    watch.world.sandbox.faults.remove(down)
    down = watch.world.sandbox.faults.add(Status(path="^/$", query="spot.*BTCUSDT", status=503))
    assert asked(watch.tick("2026-03-05T14:30:00")) == {("2026-03-04", "2026-03-04"): {ETH, UM}}, "none waits for ever"
    watch.world.sandbox.faults.remove(down)
    assert asked(watch.tick("2026-03-05T15:00:00")) == {("2026-03-04", "2026-03-04"): {BTC}}


def test_search_too_long_for_a_tick_continues_in_the_next(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    watch.world.set(download_threads=1)
    watch.definitions = build_definitions(watch.world.settings, load_universe(watch.world.settings.universe))
    watch.world.at("2026-03-05T00:05:00")
    for key in (BTC, ETH, UM):
        watch.world.one(key, "2026-03-04")
    moments = itertools.count(step=20)
    monkeypatch.setattr(archive_sweep, "monotonic", lambda: next(moments))

    found = [asked(watch.tick(f"2026-03-05T{hour}:00:00")) for hour in (14, 15, 16)]

    assert found == [{("2026-03-04", "2026-03-04"): {key}} for key in (BTC, ETH, UM)]


def test_second_archive_is_requested_despite_a_failing_series(watch: Watch) -> None:
    """The listing of another series cannot be read."""
    watch.world.at("2026-03-05T00:05:00")
    for key in (BTC, UM):
        watch.world.one(key, "2026-03-04")
    assert watch.tick("2026-03-05T02:30:00") == []
    watch.world.sandbox.faults.add(Status(path="^/$", query="futures", status=503))
    day = [date(2026, 3, 4)]
    watch.world.sandbox.faults.add(ReplacedArchive(series=str(BTC), days=day, at=utc("2026-03-05T09:10:00")))

    [first] = watch.tick("2026-03-05T09:00:00")
    [second] = watch.tick("2026-03-05T09:30:00")

    assert asked([first]) == asked([second]) == {("2026-03-04", "2026-03-04"): {BTC}}
    assert first.run_key != second.run_key, "Dagster would skip it"


def test_a_tick_that_is_evaluated_twice_requests_a_run_once(watch: Watch) -> None:
    watch.world.at("2026-03-05T00:05:00")
    watch.world.one(BTC, "2026-03-04")
    before = watch.cursor
    [first] = watch.tick("2026-03-05T08:30:00")
    watch.cursor = before
    [second] = watch.tick("2026-03-05T08:30:00")
    assert first.run_key == second.run_key


def test_cursor_of_another_version_is_reset(watch: Watch) -> None:
    watch.world.at("2026-03-05T00:05:00")
    watch.world.one(BTC, "2026-03-04")
    watch.cursor = "yesterday"
    assert len(watch.tick("2026-03-05T08:30:00")) == 1


def test_days_before_the_universe_starts_are_not_requested(watch: Watch) -> None:
    """They have no partition."""
    watch.world.at("2026-01-01T00:05:00")
    watch.world.one(BTC, "2025-12-31")
    assert watch.tick("2026-01-01T09:00:00") == []
    assert watch.requests == 0
