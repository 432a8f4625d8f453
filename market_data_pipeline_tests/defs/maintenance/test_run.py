"""The job ``verify``: what it marks, what its run shows, and that ``repair`` then asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

import dagster as dg
import pytest

from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.defs.partitions import PARTITION
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.sandbox import MissingDay, ReplacedArchive, Status
from market_data_pipeline.universe import load_universe
from market_data_pipeline_tests.support.world import World, days, klines, utc

BTC, ETH = klines("BTCUSDT", "1h"), klines("ETHUSDT", "1h")
WEEK = days("2026-02-02", "2026-02-08")

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT, ETHUSDT]
    klines: {intervals: [1h], from: 2026-01-01}
"""


@pytest.fixture
def definitions(world: World) -> dg.Definitions:
    """Of a universe of two series; of each a week is held, and in a day's time one archive is replaced."""
    universe = world.root / "universe.yaml"
    universe.write_text(UNIVERSE)
    world.set(universe=universe, retries=0)
    world.sandbox.faults.add(ReplacedArchive(series=str(BTC), days=[WEEK[2]], at=utc("2026-03-06T00:00:00")))
    for key in (BTC, ETH):
        world.ingest(key, WEEK)
    world.forget()
    return build_definitions(world.settings, load_universe(universe))


@pytest.fixture
def instance(world: World) -> Iterator[dg.DagsterInstance]:
    with open_instance(world.layout) as instance:
        yield instance


def run(definitions: dg.Definitions, instance: dg.DagsterInstance) -> tuple[bool, dict[str, object]]:
    """Whether the job succeeded, and the metadata that its run shows."""
    result = definitions.resolve_job_def("verify").execute_in_process(instance=instance, raise_on_error=False)
    for event in result.all_events:
        if event.is_step_failure and (data := event.step_failure_data.user_failure_data):
            return False, {name: value.value for name, value in data.metadata.items()}
        if event.is_successful_output:
            return result.success, {name: value.value for name, value in event.step_output_data.metadata.items()}
    raise AssertionError("the run says nothing")


def to_repair(definitions: dg.Definitions, instance: dg.DagsterInstance, at: str) -> list[str | None]:
    """The days that ``repair`` asks for again; the missing ones, which it asks for as well, are left out."""
    with dg.build_schedule_context(
        instance=instance, scheduled_execution_time=utc(at), repository_def=definitions.get_repository_def()
    ) as context:
        requests = definitions.resolve_schedule_def("repair").evaluate_tick(context).run_requests or []
    return [request.tags.get(PARTITION) for request in requests if (request.run_key or "").startswith("repair ")]


def test_a_lake_that_is_as_published_costs_a_page_a_series(
    world: World, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    success, shown = run(definitions, instance)
    assert success
    assert shown == {
        "archives": 14,
        "requests": 2,
        "replaced": 0,
        "published": 0,
        "refused": 0,
        "vanished": 0,
        "days without an ETag on record": 0,
    }
    assert len(world.asked()) == 2
    assert to_repair(definitions, instance, "2026-03-05T12:45:00") == []


def test_replaced_archive_is_shown_marked_and_fetched_by_repair(
    world: World, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    world.at("2026-03-06T12:00:00")
    success, shown = run(definitions, instance)
    assert success
    assert shown["replaced"] == 1
    table = shown["found"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [record.data for record in table.records] == [
        {
            "finding": "replaced",
            "series": str(BTC),
            "first day": "2026-02-04",
            "days": 1,
            "archive": "BTCUSDT-1h-2026-02-04.zip",
        }
    ]
    assert to_repair(definitions, instance, "2026-03-06T12:45:00") == ["2026-02-04"]
    world.ingest(BTC, [date(2026, 2, 4)])
    assert to_repair(definitions, instance, "2026-03-06T13:45:00") == []


def test_vanished_archive_is_shown_and_its_day_stays(
    world: World, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    world.sandbox.faults.add(MissingDay(series=str(ETH), days=[WEEK[3]]))
    success, shown = run(definitions, instance)
    assert success
    assert shown["vanished"] == 1
    assert to_repair(definitions, instance, "2026-03-05T12:45:00") == []


def test_series_that_cannot_be_compared_fails_the_run_at_its_end(
    world: World, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    """The others are compared first."""
    world.at("2026-03-06T12:00:00")
    world.sandbox.faults.add(Status(path="^/$", query="ETHUSDT", status=503))
    success, shown = run(definitions, instance)
    assert not success
    assert shown["replaced"] == 1
    assert to_repair(definitions, instance, "2026-03-06T12:45:00") == ["2026-02-04"]
