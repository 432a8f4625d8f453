"""The wiring of all of Dagster: what there is, that it loads quickly, and what a mistake looks like.

The snapshot catches every accidental change of an asset key, check, job, schedule or sensor; users' histories and URLs
depend on those names. After a change that is meant, run this file's tests with ``UPDATE_SNAPSHOTS=1`` in the
environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from market_data_pipeline import clock
from market_data_pipeline import definitions as door
from market_data_pipeline.defs import definitions as module
from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.defs.platform.home import DEFINITIONS_MODULE
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import ListingSpans, Market
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe import Universe, parse_universe

PROJECT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("definitions_snapshot.json")

UNIVERSE = """
collect:
  - market: [spot, um]
    symbols: [BTCUSDT, 币安人生USDT]
    klines: {intervals: [1m, 1h], from: 2020-01-01}
    aggTrades: {from: 30 days ago}
  - market: cm
    symbols: BTCUSD_PERP
    klines: {intervals: 1d, from: listing}
"""
LISTINGS = {
    **dict.fromkeys([(m, s) for m in (Market.SPOT, Market.UM) for s in ("BTCUSDT", "币安人生USDT")], ListingSpans()),
    (Market.CM, "BTCUSD_PERP"): ListingSpans(((date(2020, 8, 11), None),)),
}


def snapshot(definitions: dg.Definitions) -> dict[str, Any]:
    """Names and wiring, as text; nothing that changes from day to day or from folder to folder."""
    repository = definitions.get_repository_def()
    graph = definitions.resolve_asset_graph()
    assets = {}
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        policy, days = node.backfill_policy, node.partitions_def
        assets[key.to_user_string()] = {
            "group": node.group_name,
            "kinds": sorted(node.kinds),
            "owners": sorted(node.owners),
            "tags": {name: value for name, value in sorted(node.tags.items()) if not name.startswith("dagster/kind/")},
            "parents": sorted(parent.to_user_string() for parent in node.parent_keys),
            "checks": sorted(check.name for check in node.check_keys),
            "partitions from": str(days.start.date()) if isinstance(days, dg.DailyPartitionsDefinition) else None,
            "days in a run": policy and policy.max_partitions_per_run,
        }
    jobs = {
        job.name: sorted(key.to_user_string() for key in job.asset_layer.executable_asset_keys)
        for job in repository.get_all_jobs()
        if not job.name.startswith("__")
    }
    schedules = {
        schedule.name: {
            "job": schedule.job_name,
            "cron": schedule.cron_schedule,
            "zone": schedule.execution_timezone,
            "default": schedule.default_status.value,
        }
        for schedule in sorted(repository.schedule_defs, key=lambda one: one.name)
    }
    sensors = {
        sensor.name: {
            "job": sensor.job_name if sensor.has_jobs else None,
            "seconds": sensor.minimum_interval_seconds,
            "default": sensor.default_status.value,
        }
        for sensor in repository.sensor_defs
    }
    return {"assets": assets, "jobs": jobs, "schedules": schedules, "sensors": sensors}


def settings_of(root: Path) -> Settings:
    return Settings(dir=root, _env_file=None)  # type: ignore[call-arg]  # pydantic's own


def test_definitions_match_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assets, checks, jobs, schedules and sensors."""
    monkeypatch.setattr(clock, "today", lambda: date(2026, 11, 30))
    universe = Universe(parse_universe(UNIVERSE), LISTINGS)
    definitions = build_definitions(settings_of(tmp_path), universe)
    dg.Definitions.validate_loadable(definitions)
    found = snapshot(definitions)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(json.dumps(found, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
    assert found == json.loads(SNAPSHOT.read_text())


def test_workspaces_of_version_0_1_load_the_same_definitions() -> None:
    """The code location's name is the module's, and Dagster remembers under it which schedules are on."""
    assert DEFINITIONS_MODULE == "market_data_pipeline.definitions"
    assert door.defs is module.defs


def test_an_empty_universe_loads(tmp_path: Path) -> None:
    definitions = build_definitions(settings_of(tmp_path), Universe((), {}))
    assert list(definitions.resolve_all_asset_keys()) == []
    assert list(definitions.get_repository_def().schedule_defs) == []


def test_universe_mistake_is_reported_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "universe.yaml"
    path.write_text("collect:\n  - market: spto\n    symbols: BTCUSDT\n    klines: {intervals: 1m, from: 2024-01-01}\n")
    monkeypatch.setenv("MARKET_DATA_UNIVERSE", str(path))
    with pytest.raises(UsageError, match=r"line 2: .*spto") as caught:
        module.defs()
    assert caught.value.__suppress_context__  # the UI shows the text, and no chain of tracebacks above it


def test_invalid_setting_is_reported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_DAILY_HOUR", "25")
    with pytest.raises(UsageError, match="MARKET_DATA_DAILY_HOUR"):
        module.defs()


def loaded_anew(script: str) -> dict[str, Any]:
    """What a script prints as JSON, run by a process of its own, as Dagster's code servers are."""
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=PROJECT)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


_IMPORTED = """
import json, sys
import market_data_pipeline.definitions as module
from dagster._core.remote_representation.external_data import RepositorySnap
repository = module.defs().get_repository_def()
RepositorySnap.from_def(repository)
assets = len(repository.asset_graph.get_all_asset_keys())
print(json.dumps({"assets": assets, "modules": sorted(sys.modules)}))
"""


def test_code_location_imports_no_module_of_a_run_or_a_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow and numpy alone took a quarter of a second of each load, and each run's process loads anew."""
    universe = tmp_path / "universe.yaml"
    universe.write_text(
        "collect:\n  - market: [spot, cm]\n    symbols: [BTCUSD_PERP]\n"
        "    klines: {intervals: [1m, 1h], from: 2024-01-01}\n    aggTrades: {from: 2024-01-01}\n"
    )
    monkeypatch.setenv("MARKET_DATA_UNIVERSE", str(universe))
    monkeypatch.setenv("MARKET_DATA_DIR", str(tmp_path / "data"))
    loaded = loaded_anew(_IMPORTED)
    assert loaded["assets"] == 16  # of each market: three series, tradeProfile, coverage, exchangeInfo, live, iceberg
    libraries = {"numpy", "pyarrow", "duckdb", "pandas", "polars", "requests", "urllib3", "isal", "pyiceberg"}
    assert libraries.intersection(loaded["modules"]) == set()
    rooms = (
        "ingest",
        "checks",
        "sources",
        "client",
        "cli",
        "sql",
        "maintenance",
        "reconciliation",
        "coverage",
        "derived",
    )
    words = ("model.findings", "model.day", "model.outcomes", "model.schema", "model.provenance")
    ours = [name.removeprefix("market_data_pipeline.") for name in loaded["modules"]]
    assert [name for name in ours if name in rooms or name.startswith(tuple(f"{room}." for room in rooms))] == []
    assert [name for name in ours if name.startswith("lake.")] == [
        "lake.arrow_memory",
        "lake.layout",
        "lake.regular_files",
    ]
    assert [name for name in ours if name in words or (name.startswith("defs.") and name.endswith(".run"))] == []


_LOAD = """
import json, sys, time
began = time.process_time()
import dagster
imported = time.process_time() - began
import market_data_pipeline.definitions as module
definitions = module.defs()
repository = definitions.get_repository_def()
repository.load_all_definitions()
seconds = time.process_time() - began
assets = len(repository.asset_graph.get_all_asset_keys())
print(json.dumps({"seconds": seconds, "dagster": imported, "assets": assets}))
"""


@pytest.mark.slow
def test_code_location_with_400_assets_loads_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = ", ".join(f"COIN{number}USDT" for number in range(57))
    universe = tmp_path / "universe.yaml"
    universe.write_text(
        "collect:\n"
        f"  - market: spot\n    symbols: [{symbols}]\n"
        "    klines: {intervals: [1m, 5m, 1h, 4h, 1d], from: 2020-01-01}\n    aggTrades: {from: 2024-01-01}\n"
    )
    monkeypatch.setenv("MARKET_DATA_UNIVERSE", str(universe))
    monkeypatch.setenv("MARKET_DATA_DIR", str(tmp_path / "data"))

    runs = [loaded_anew(_LOAD) for _ in range(3)]
    assert runs[0]["assets"] == 57 * 7 + 4  # and coverage, exchange_info, live and iceberg
    # Processor time beside that of Dagster's import, so that a slow machine does not matter.
    assert min(run["seconds"] / run["dagster"] for run in runs) < 5
