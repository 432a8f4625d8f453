"""A team's records, launcher and signs of life, without processes of their own."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg2
import pytest
import sqlalchemy as sa
import yaml
from dagster._core.launcher.base import WorkerStatus
from dagster._core.utils import make_new_run_id

from market_data_pipeline.cli.doctor import State, _team
from market_data_pipeline.defs import worker
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.platform import heartbeat, launcher
from market_data_pipeline.defs.platform.heartbeat import close_dead_runs, lock_name
from market_data_pipeline.defs.platform.home import config_of, open_instance
from market_data_pipeline.defs.platform.launcher import WorkerRunLauncher
from market_data_pipeline.defs.platform.listening import claim_ui
from market_data_pipeline.defs.platform.pruning import prune
from market_data_pipeline.defs.platform.queues import QUEUE_TAG, TASK_TAG, Build, build_of, queue_of
from market_data_pipeline.defs.platform.team_storage import TeamEventLogStorage
from market_data_pipeline.errors import RecordsError, UiRunsError, UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.settings import load_settings
from market_data_pipeline.team.session import TeamSession
from market_data_pipeline_tests.support.world import agg_trades, klines

DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-31")
ASSET = dg.AssetKey("candles")
CHECK = dg.AssetCheckSpec("gaps", asset=ASSET, partitions_def=DAYS)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, team_url: str) -> Layout:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("MARKET_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("MARKET_DATA_UNIVERSE", str(tmp_path / "universe.yaml"))
    monkeypatch.setenv("MARKET_DATA_POSTGRES", team_url)
    monkeypatch.setenv("MARKET_DATA_BROKER", "memory://localhost/")
    return Layout(tmp_path)


@pytest.fixture
def instance(layout: Layout) -> Iterator[dg.DagsterInstance]:
    with open_instance(layout) as instance:
        yield instance


@pytest.fixture
def other_host(team_url: str) -> Iterator[TeamSession]:
    session = TeamSession(team_url)
    yield session
    session.close()


@dg.asset(key=ASSET, partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run(), check_specs=[CHECK])
def candles(context: dg.AssetExecutionContext) -> Iterator[object]:
    """Thirty days of an asset in one run, each with a check."""
    cut = context.run.tags.get("cut")
    yield dg.MaterializeResult(asset_key=ASSET)
    for day in context.partition_keys:
        if cut and day.endswith("-15"):
            cut_off(cut)
        yield dg.AssetCheckEvaluation(ASSET, "gaps", passed=True, partition=day)
    yield dg.Output(None, output_name=CHECK.get_python_identifier())


def cut_off(url: str) -> None:
    """End all connections of the records at the server."""
    with psycopg2.connect(url) as other, other.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'market-data records'"
        )
    other.close()


def materialize(instance: dg.DagsterInstance, **tags: str) -> str:
    first, last = DAYS.get_partition_keys()[0], DAYS.get_partition_keys()[-1]
    span = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    job = dg.Definitions(assets=[candles], jobs=[dg.define_asset_job("all_days", [candles])]).resolve_job_def(
        "all_days"
    )
    return job.execute_in_process(instance=instance, tags=span | tags).run_id


def rows(instance: dg.DagsterInstance, query: str) -> list[Any]:
    storage = instance.event_log_storage
    assert isinstance(storage, TeamEventLogStorage)
    with storage.index_connection() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]


def started_run(instance: dg.DagsterInstance, **tags: str) -> dg.DagsterRun:
    """A run in progress, whose process is somewhere else."""
    return instance.create_run_for_job(nothing, run_id=make_new_run_id(), status=dg.DagsterRunStatus.STARTED, tags=tags)


@dg.job
def nothing() -> None:
    """A job without steps."""


# --- the home --------------------------------------------------------------------------------------------------------


def test_settings_choose_the_configuration(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_CONCURRENT_RUNS", "12")
    whole = yaml.safe_load(config_of(load_settings()))
    assert whole["concurrency"]["runs"]["max_concurrent_runs"] == 12
    assert whole["run_launcher"]["class"] == "WorkerRunLauncher"
    monkeypatch.delenv("MARKET_DATA_BROKER")
    alone = yaml.safe_load(config_of(load_settings()))
    assert "run_launcher" not in alone
    assert alone["storage"] == whole["storage"]
    monkeypatch.delenv("MARKET_DATA_POSTGRES")
    assert "storage" not in yaml.safe_load(config_of(load_settings()))


def test_a_broker_without_postgres_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_BROKER", "redis://127.0.0.1/0")
    with pytest.raises(UsageError, match=r"MARKET_DATA_BROKER.*workers need MARKET_DATA_POSTGRES"):
        load_settings()


def test_unusable_records_are_one_sentence(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("market_data_pipeline.defs.platform.team_storage.PATIENCE_SECONDS", 0.2)
    monkeypatch.setenv("MARKET_DATA_POSTGRES", "postgresql://me:sekret@127.0.0.1:1/market")
    with pytest.raises(RecordsError, match=r"at 127\.0\.0\.1:1/market cannot be used .* Stored days are safe") as error:
        open_instance(layout)
    assert "sekret" not in str(error.value)


def test_a_team_has_one_ui(layout: Layout, instance: dg.DagsterInstance, other_host: TeamSession) -> None:
    assert other_host.take("ui") is not None
    with pytest.raises(UiRunsError, match="Two daemons would start each run twice"):
        claim_ui(layout.dagster_home, "127.0.0.1", 3000)


def test_doctor_checks_postgres_and_finds_no_worker(layout: Layout) -> None:
    postgres, workers = _team(load_settings())
    assert postgres.state is State.OK, postgres
    assert "connections used" in postgres.text
    assert workers.state is State.WARN, workers
    assert workers.remedy == "Start `market-data worker` on each host."


# --- the records -----------------------------------------------------------------------------------------------------


def test_a_cut_off_connection_loses_and_doubles_nothing(instance: dg.DagsterInstance, team_url: str) -> None:
    run_id = materialize(instance, cut=team_url)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.is_success
    counted = "SELECT count(*), count(DISTINCT partition) FROM {} WHERE run_id IS NOT NULL AND partition IS NOT NULL"
    assert rows(instance, counted.format("asset_check_executions")) == [(30, 30)]
    assert rows(instance, counted.format("event_logs")) == [(30, 30)]


def test_a_batch_that_has_committed_is_not_repeated(
    instance: dg.DagsterInstance, team_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after PostgreSQL has committed, before it can say so."""
    storage = instance.event_log_storage
    assert isinstance(storage, TeamEventLogStorage)
    engine = storage._engine
    broken: list[bool] = []

    def commit(connection: Any) -> None:
        if not broken:
            broken.append(True)
            connection.exec_driver_sql("COMMIT")
            cut_off(team_url)

    sa.event.listen(engine, "commit", commit)
    try:
        instance.report_runless_asset_event(dg.AssetMaterialization(ASSET, partition="2024-01-01"))
    finally:
        sa.event.remove(engine, "commit", commit)
    assert broken
    assert rows(instance, "SELECT count(*) FROM event_logs WHERE partition = '2024-01-01'") == [(1,)]


def test_a_run_takes_few_bytes_and_two_connections(instance: dg.DagsterInstance) -> None:
    used: set[int] = set()
    watched = instance.event_log_storage
    assert isinstance(watched, TeamEventLogStorage)
    sa.event.listen(watched._engine, "connect", lambda connection, _: used.add(connection.info.backend_pid))
    materialize(instance)
    assert len(used) <= 2
    lengths = rows(instance, "SELECT max(length(event)), avg(length(event))::int FROM event_logs")
    assert lengths[0][0] < 1500
    assert rows(instance, "SELECT DISTINCT ascii(evaluation_event) FROM asset_check_executions") == [(1,)]
    assert rows(instance, "SELECT indexname FROM pg_indexes WHERE indexname = 'market_data_check_history'")


def test_removed_days_leave_the_records(instance: dg.DagsterInstance) -> None:
    materialize(instance)
    instance.wipe_asset_partitions(ASSET, ["2024-01-02", "2024-01-03"])
    kept = set(DAYS.get_partition_keys()) - {"2024-01-02", "2024-01-03"}
    assert instance.get_materialized_partitions(ASSET) == kept
    assert rows(instance, "SELECT count(DISTINCT partition) FROM asset_check_executions") == [(28,)]


def test_old_runs_are_pruned_and_newest_results_stay(instance: dg.DagsterInstance) -> None:
    old, new = materialize(instance), materialize(instance)
    soon = datetime.now(UTC) + timedelta(hours=1)
    planned = prune(instance, soon, dry_run=True)
    done = prune(instance, soon)
    assert (planned.runs, planned.events) == (done.runs, done.events) == (1, planned.events)
    assert [run.run_id for run in instance.get_runs()] == [new]
    assert instance.all_logs(old) == []
    assert len(instance.get_materialized_partitions(ASSET)) == 30
    assert rows(instance, "SELECT count(*) FROM asset_check_executions") == [(30,)]


# --- signs of life ---------------------------------------------------------------------------------------------------


def test_a_run_of_a_dead_host_is_closed(
    instance: dg.DagsterInstance, other_host: TeamSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, waiting = started_run(instance), started_run(instance)
    assert other_host.take(lock_name(run.run_id)) is not None
    monkeypatch.setattr(heartbeat, "_SETTLED_SECONDS", 0)
    assert close_dead_runs(instance) == []
    other_host.close()
    assert close_dead_runs(instance) == [run.run_id]
    closed = instance.get_run_by_id(run.run_id)
    assert closed is not None
    assert closed.status is dg.DagsterRunStatus.FAILURE
    assert instance.get_run_by_id(waiting.run_id) == waiting  # it never had a process


def test_silent_run_is_dead_and_stays_dead(
    instance: dg.DagsterInstance, other_host: TeamSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = instance.run_launcher
    assert isinstance(made, WorkerRunLauncher)
    run, interrupted = started_run(instance), []
    lock = other_host.take(lock_name(run.run_id), on_lost=lambda: interrupted.append(run.run_id))
    assert lock is not None
    assert made.check_run_worker_health(run).status is WorkerStatus.RUNNING
    other_host._drop()  # it is cut off, and does not know
    while made._team.is_held(lock.name):
        time.sleep(0.01)
    assert made.check_run_worker_health(run).status is WorkerStatus.RUNNING  # a restart of PostgreSQL looks like this
    monkeypatch.setattr(launcher, "_SILENT_SECONDS", 0)
    found = made.check_run_worker_health(run)
    assert found.status is WorkerStatus.FAILED
    assert "no sign of life of process" in str(found.msg)
    other_host.is_free("anything")  # it is back
    assert lock.lost
    assert interrupted == [run.run_id]


# --- queues and workers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assets", "tags", "queue"),
    [
        ([klines("BTCUSDT", "1m")], {}, "runs"),
        ([klines("BTCUSDT", "1m"), agg_trades("BTCUSDT")], {}, "trades"),
        ([agg_trades("BTCUSDT")], {QUEUE_TAG: "big"}, "big"),
    ],
)
def test_queue_follows_the_data(assets: list[Any], tags: dict[str, str], queue: str) -> None:
    run = dg.DagsterRun(job_name="any", asset_selection=frozenset(map(asset_key_of, assets)), tags=tags)
    assert queue_of(run) == queue


def test_another_universe_or_version_is_refused(layout: Layout, instance: dg.DagsterInstance) -> None:
    run = started_run(instance)
    here = build_of(load_settings())
    (layout.root / "universe.yaml").write_text("collect: []\n")
    there = build_of(load_settings())
    assert "This worker has another universe.yaml" in worker._execute(run.run_id, here, "w@a")
    text = worker._execute(run.run_id, Build("9.9", there.universe), "w@a")
    assert "instead of 9.9" in text
    assert "waits for another worker" in text


def test_a_run_that_comes_twice_runs_once(instance: dg.DagsterInstance, other_host: TeamSession) -> None:
    run = started_run(instance)
    logged = len(instance.all_logs(run.run_id))
    assert worker._execute(run.run_id, build_of(load_settings()), "w@a") == ""
    assert worker._execute(make_new_run_id(), build_of(load_settings()), "w@a") == ""
    assert len(instance.all_logs(run.run_id)) == logged


def test_a_waiting_run_is_canceled_at_once(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    made = instance.run_launcher
    assert isinstance(made, WorkerRunLauncher)
    revoked: list[str] = []
    monkeypatch.setattr(made._app.control, "revoke", lambda task, **_: revoked.append(task))
    run = started_run(instance, **{TASK_TAG: "task"})
    assert made.terminate(run.run_id)
    assert revoked == ["task"]
    ended = instance.get_run_by_id(run.run_id)
    assert ended is not None
    assert ended.status is dg.DagsterRunStatus.CANCELED
    assert not made.terminate(run.run_id)
    assert not made.terminate(started_run(instance).run_id)  # of another launcher
