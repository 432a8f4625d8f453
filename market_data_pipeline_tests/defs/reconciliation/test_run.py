"""The check ``reconciliation`` on klines: who evaluates it, on which days, and what becomes of it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from market_data_pipeline import clock
from market_data_pipeline.defs.in_process import run_reconciliation
from market_data_pipeline.defs.keys import RECONCILIATION, asset_key_of
from market_data_pipeline.defs.reconciliation.definitions import build_reconciliation_job, run_config
from market_data_pipeline.defs.reconciliation.run import CHANGED_SINCE, NOT_COMPARED
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.reconciliation.record import read_reconciled
from market_data_pipeline.sql import publish
from market_data_pipeline_tests.support.fakes import Project, day, hold, put, universe_of

HOURS, MINUTES, FIVE = (
    SeriesKey(EXCHANGE, Market.SPOT, DataType.KLINES, "BTCUSDT", interval) for interval in ("1h", "1m", "5m")
)
UNIVERSE = """
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1m, 5m, 1h], from: 2024-01-01}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project at the end of January 2024, whose hours are collected with the minutes that they are made of."""
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 1, 31, 12, tzinfo=UTC))
    # DuckDB takes longer to write the views, which nobody reads here, than to compare the days.
    monkeypatch.setattr(publish, "publish_catalog", lambda layout: layout.catalog)
    project = Project(tmp_path, universe_of(UNIVERSE))
    with project.instance:
        yield project


def held(project: Project, first: int, last: int, *keys: SeriesKey) -> None:
    """Days of January 2024 that an earlier run brought, of whose materializations Dagster knows no more."""
    for key in keys:
        for number in range(first, last + 1):
            hold(project.layout, key, day(number))


def reconcile(project: Project, **asked: Any) -> dg.ExecuteInProcessResult:
    job = build_reconciliation_job(project.universe.series(), project.settings)
    assert job is not None
    return run_reconciliation(project.instance, job, run_config(**asked))


def checked(project: Project, key: SeriesKey = HOURS) -> dict[str, set[int]]:
    """Days of January 2024 by what the UI shows of the check, without those of which it says that nothing is known."""
    shown = project.checks(RECONCILIATION, key)
    told = {number for state in shown.values() for number in state if compared(project, number, key)}
    return {state: numbers & told for state, numbers in shown.items() if numbers & told}


def compared(project: Project, number: int, key: SeriesKey = HOURS) -> bool:
    found = project.evaluation(RECONCILIATION, number, key)
    return str(found.description) != NOT_COMPARED


def requested(project: Project) -> list[dg.RunRequest]:
    """What the schedule asks for now."""
    with dg.build_schedule_context(instance=project.instance, scheduled_execution_time=clock.now()) as context:
        data = project.definitions.resolve_schedule_def("reconciliation_daily").evaluate_tick(context)
    return list(data.run_requests or [])


def alter(project: Project, key: SeriesKey, number: int, row: int, **values: float) -> None:
    """Write other values into a day's file, which its ledger does not know."""
    path = project.layout.file(key, day(number))
    provenance, table = parquet.parse_whole(path, path.read_bytes())
    for name, value in values.items():
        column = table.column(name).to_pylist()
        column[row] = value
        index = table.column_names.index(name)
        table = table.set_column(index, table.schema.field(name), pa.array(column, table.schema.field(name).type))
    parquet.write_table(path, table, provenance)


def test_check_exists_for_klines_with_a_collected_source(project: Project) -> None:
    graph = project.definitions.resolve_asset_graph()
    have = {key.asset_key for key in graph.asset_check_keys if key.name == RECONCILIATION}
    assert have == {asset_key_of(HOURS), asset_key_of(FIVE)}


def test_days_stored_on_both_sides_are_compared_by_partition(project: Project) -> None:
    held(project, 1, 3, MINUTES)
    project.run(2, 5, HOURS)

    run = reconcile(project)

    assert run.success
    assert checked(project) == {"SUCCEEDED": {2, 3}}
    found = project.evaluation(RECONCILIATION, 2, HOURS)
    assert found.description == f"All 24 candles equal the candles rebuilt from {MINUTES}."
    [newest, *_] = project.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=asset_key_of(HOURS), asset_partitions=[str(day(2))]), limit=1
    ).records
    assert found.target_materialization_data.storage_id == newest.storage_id
    assert set(read_reconciled(project.layout.reconciled(HOURS))) == {day(2), day(3)}


def test_unexplained_candle_fails_its_day_with_both_values(project: Project) -> None:
    held(project, 1, 3, MINUTES, HOURS)
    alter(project, HOURS, 2, 5, high=107.75, volume=0.5)

    assert reconcile(project).success  # the job did its work; the check says what it found

    assert checked(project) == {"SUCCEEDED": {1, 3}, "FAILED": {2}}
    found = project.evaluation(RECONCILIATION, 2, HOURS)
    assert found.severity is dg.AssetCheckSeverity.ERROR
    assert "1 of 24 candles" in found.description
    records = [record.data for record in found.metadata["differences"].records]
    assert [(r["open time"], r["column"], r["klines"], r["rebuilt"]) for r in records] == [
        ("2024-01-02T05:00:00Z", "high", 107.75, 108.0),
        ("2024-01-02T05:00:00Z", "volume", 0.5, 1.0),
    ]
    assert {r["reason"] for r in records} == {"none known"}


def test_klines_run_repeats_the_record_without_another_step(project: Project) -> None:
    held(project, 1, 4, MINUTES)
    project.run(1, 3, HOURS)
    reconcile(project)

    again = project.run(1, 4, HOURS)  # three days are held, and are materialized anew

    assert [event.step_key for event in again.all_events if event.is_step_start] == [
        "__".join(asset_key_of(HOURS).path)
    ]
    assert checked(project) == {"SUCCEEDED": {1, 2, 3}}
    reconcile(project)
    assert checked(project) == {"SUCCEEDED": {1, 2, 3, 4}}


def test_a_day_that_failed_stays_so_until_it_is_compared_again(project: Project) -> None:
    held(project, 1, 3, MINUTES, HOURS)
    alter(project, HOURS, 2, 5, high=107.75, volume=0.5)
    reconcile(project)
    rows = Ledger.read(project.layout.ledger(MINUTES)).rows
    for number in (2, 3):
        put(project.layout, MINUTES, replace(rows[day(number)], content_sha256="cd" * 32))

    assert project.run(1, 3, HOURS).success

    assert checked(project) == {"SUCCEEDED": {1}, "FAILED": {2}}
    assert project.evaluation(RECONCILIATION, 2, HOURS).description == (
        f"1 of 24 candles differ from the candles rebuilt from {MINUTES} for no known reason. {CHANGED_SINCE}"
    )
    assert not compared(project, 3)
    alter(project, HOURS, 2, 5, high=108.0, volume=1.0)
    reconcile(project)
    assert checked(project) == {"SUCCEEDED": {1, 2, 3}}


def test_klines_run_succeeds_without_a_readable_source_ledger(project: Project) -> None:
    held(project, 1, 2, MINUTES)
    path = project.layout.ledger(MINUTES)
    path.unlink()
    path.mkdir()
    assert project.run(1, 2, HOURS).success
    assert [compared(project, number) for number in (1, 2)] == [False, False]


def test_one_partition_run_by_hand_repeats_it_too(project: Project) -> None:
    held(project, 1, 2, MINUTES, HOURS)
    reconcile(project)

    assert project.run_one_partition(2, HOURS).success

    assert checked(project) == {"SUCCEEDED": {1, 2}}


def test_failed_day_in_a_run_reports_the_others_too(project: Project) -> None:
    """Also of those of another series in the same run: Dagster shows what was planned, and not told, as failed."""
    held(project, 1, 3, MINUTES, HOURS)
    reconcile(project)
    project.ingest.bad[HOURS, day(4)] = ("http", "status 503")

    assert not project.run(3, 5, HOURS, FIVE).success

    assert project.checks(RECONCILIATION, HOURS) == {"SUCCEEDED": {1, 2, 3, 5}, "EXECUTION_FAILED": {4}}
    assert [compared(project, number) for number in (1, 2, 3, 5)] == [True, True, True, False]
    assert project.checks(RECONCILIATION, FIVE) == {"SUCCEEDED": {3, 4, 5}}
    assert not compared(project, 3, FIVE)


def test_day_is_compared_again_only_after_a_change(project: Project) -> None:
    assert requested(project) == []
    held(project, 1, 3, MINUTES, HOURS)
    [request] = requested(project)
    assert request.run_config["ops"]["compare"]["config"]["series"] == [str(HOURS)]
    reconcile(project)
    assert requested(project) == []

    project.run(2, 2, MINUTES)  # held: materialized anew, with the same content
    assert requested(project) == []
    ledger = Ledger.read(project.layout.ledger(MINUTES))
    put(project.layout, MINUTES, replace(ledger.rows[day(2)], content_sha256="cd" * 32))
    [request] = requested(project)
    reconcile(project)
    assert read_reconciled(project.layout.reconciled(HOURS))[day(2)].source_sha256 == "cd" * 32
    assert requested(project) == []


def test_today_is_left_alone(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    held(project, 1, 3, MINUTES, HOURS)
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 1, 3, 12, tzinfo=UTC))
    reconcile(project)
    assert checked(project) == {"SUCCEEDED": {1, 2}}


def test_days_can_be_selected_and_compared_again(project: Project) -> None:
    held(project, 1, 4, MINUTES, HOURS)
    reconcile(project, series=[str(HOURS)], first=day(2), last=day(3))
    assert set(read_reconciled(project.layout.reconciled(HOURS))) == {day(2), day(3)}

    alter(project, HOURS, 3, 0, low=1.0)
    reconcile(project, series=[str(HOURS)], first=day(3), last=day(3))
    assert checked(project) == {"SUCCEEDED": {2, 3}}  # the ledger says that it is as it was
    reconcile(project, series=[str(HOURS)], first=day(3), last=day(3), again=True)
    assert checked(project) == {"SUCCEEDED": {2}, "FAILED": {3}}


def test_damaged_file_fails_the_run_by_name(project: Project) -> None:
    """The other series are compared."""
    held(project, 1, 2, MINUTES, HOURS, FIVE)
    project.layout.file(FIVE, day(2)).write_bytes(b"PAR1 and no more")

    run = reconcile(project)

    assert not run.success
    [failure] = [event.step_failure_data for event in run.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert str(project.layout.file(FIVE, day(2))) in (failure.user_failure_data.description or "")
    assert checked(project) == {"SUCCEEDED": {1, 2}}
    assert checked(project, FIVE) == {}


def test_unreadable_ledger_fails_the_run_by_name(project: Project) -> None:
    """The other series are compared."""
    held(project, 1, 2, MINUTES, HOURS, FIVE)
    path = project.layout.ledger(FIVE)
    path.unlink()
    path.mkdir()

    [request] = requested(project)
    run = reconcile(project, series=request.run_config["ops"]["compare"]["config"]["series"])

    [failure] = [event.step_failure_data for event in run.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert f"{path} cannot be read" in (failure.user_failure_data.description or "")
    assert checked(project) == {"SUCCEEDED": {1, 2}}


def test_series_without_comparison_is_refused_with_the_others(project: Project) -> None:
    run = reconcile(project, series=["binance/spot/klines/BTCUSDT/1m"])
    [failure] = [event.step_failure_data for event in run.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert str(HOURS) in (failure.user_failure_data.description or "")
