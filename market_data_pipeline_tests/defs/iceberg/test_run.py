"""The asset of a market's Iceberg tables: what a run reports, and what its check finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from market_data_pipeline.defs.iceberg import run
from market_data_pipeline.defs.keys import iceberg_key_of
from market_data_pipeline.iceberg.comparison import TableDifference, rows_that_differ, sample
from market_data_pipeline.iceberg.publishing import PublishReport
from market_data_pipeline.lake import storage
from market_data_pipeline.model.series import Market
from market_data_pipeline_tests.support.fakes import Project
from market_data_pipeline_tests.support.small_lake import SmallLake, series
from market_data_pipeline_tests.support.world import days

HOURS = series("BTCUSDT", "1h")
WANTED = days("2024-01-01", "2024-01-03")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty lake and its definitions."""
    return Project(tmp_path)


def publish_spot(project: Project) -> tuple[dg.ExecuteInProcessResult, dg.AssetCheckEvaluation]:
    result = project.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=project.instance, asset_selection=[iceberg_key_of(Market.SPOT)]
    )
    [check] = result.get_asset_check_evaluations()
    return result, check


def test_a_run_publishes_and_compares(project: Project) -> None:
    lake = SmallLake(project.settings.root)
    lake.put(HOURS, WANTED)
    lake.put(series("BTCUSDT"), WANTED[:1])
    lake.put(series("BTCUSDT", "1h", "um"), WANTED)
    result, check = publish_spot(project)
    [event] = result.get_asset_materialization_events()
    metadata = {name: value.value for name, value in event.materialization.metadata.items()}
    assert (metadata["series"], metadata["files added"], metadata["snapshots"]) == (2, 4, 2), (
        "um has an asset of its own"
    )
    assert (check.passed, check.description) == (True, "2 series have the lake's rows, and 2 of them its sums.")


def test_the_check_names_what_differs(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = SmallLake(project.settings.root)
    lake.put(HOURS, WANTED)
    publish_spot(project)
    monkeypatch.setattr(run, "publish", lambda *given, **named: PublishReport())
    lake.put(HOURS, days("2024-01-04", "2024-01-04"))
    _, check = publish_spot(project)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    which = check.metadata["which"]
    assert isinstance(which, dg.TableMetadataValue)
    assert which.records[0].data["reason"] == "The lake has 96 rows, the table 72."


def test_a_day_stored_during_the_run_is_published(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = SmallLake(project.settings.root)
    lake.put(HOURS, WANTED)
    real, late = rows_that_differ, days("2024-01-04", "2024-01-04")

    def after_a_write(*given: Any) -> Iterator[TableDifference]:
        lake.put(HOURS, late)
        late.clear()
        return real(*given)

    monkeypatch.setattr(run, "rows_that_differ", after_a_write)
    assert publish_spot(project)[1].passed


def test_a_file_that_is_left_out_is_a_warning(project: Project) -> None:
    SmallLake(project.settings.root).put(HOURS, WANTED)
    storage.put(SmallLake(project.settings.root).layout.file(HOURS, WANTED[2]), b"damaged")
    _, check = publish_spot(project)
    assert not check.passed
    assert check.metadata["left out"].value == 1


def test_each_turn_reads_other_series(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path)
    keys = [series(f"S{number:02}USDT", "1d") for number in range(25)]
    for key in keys:
        lake.put(key, WANTED)
    turns = [sample(lake.layout, keys, turn, 1000) for turn in range(5)]
    assert {key for turn in turns for key in turn} == set(keys)
    assert [len(turn) for turn in turns] == [10] * 5
    assert sample(lake.layout, keys, 0, 7) == keys[:2]
