"""Prune: old runs go, the newest of each partition stays, and the space comes back."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.event_log import SqliteEventLogStorage

from market_data_pipeline.defs.platform import pruning
from market_data_pipeline.defs.platform.home import CONFIG, open_instance
from market_data_pipeline.defs.platform.pruning import prune
from market_data_pipeline.errors import MarketDataError, UsageError
from market_data_pipeline.lake import locks
from market_data_pipeline.lake.layout import Layout

ASSET = dg.AssetKey("candles")
DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-05")
CHECK = dg.AssetCheckSpec("gaps", asset=ASSET, partitions_def=DAYS)
FIRST, LAST = "2024-01-01", "2024-01-04"


@dg.asset(key=ASSET, partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run(), check_specs=[CHECK])
def candles(context: dg.AssetExecutionContext) -> Iterator[object]:
    """Days of an asset in one run, each with a check; a run that is told to fails."""
    if "fails" in context.run.tags:
        raise dg.Failure("told to", allow_retries=False)
    yield dg.MaterializeResult(asset_key=ASSET)
    for day in context.partition_keys:
        yield dg.AssetCheckEvaluation(ASSET, "gaps", passed=day != "2024-01-03", partition=day)
    yield dg.Output(None, output_name=CHECK.get_python_identifier())


JOB = dg.Definitions(assets=[candles], jobs=[dg.define_asset_job("days", [candles])]).resolve_job_def("days")


def run(instance: dg.DagsterInstance, first: str, last: str, **tags: str) -> str:
    """A run over days."""
    span = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    config = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    return JOB.execute_in_process(instance=instance, tags=span | tags, run_config=config, raise_on_error=False).run_id


@pytest.fixture(params=["ours", "stock"])
def layout(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """Records of this project's event log, and of Dagster's own."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    layout = Layout(tmp_path)
    if request.param == "stock":
        without = CONFIG.read_text().split("event_log_storage:")
        layout.dagster_home.mkdir()
        rest = without[1].split("compute_logs:")[1]
        (layout.dagster_home / "dagster.yaml").write_text(f"telemetry:\n  enabled: false\ncompute_logs:{rest}")
    return layout


@pytest.fixture
def instance(layout: Layout) -> Iterator[dg.DagsterInstance]:
    with open_instance(layout) as instance:
        yield instance


def later(**ago: float) -> datetime:
    """A moment before which all that has ended by now is old."""
    return datetime.now(UTC) + timedelta(minutes=1) - timedelta(**ago)


def told(instance: dg.DagsterInstance) -> dict[str, object]:
    """What the UI shows of each partition: which materialization, by which run, and what its check says of it."""
    storage = instance.event_log_storage
    shown: dict[str, object] = {}
    for day in DAYS.get_partition_keys():
        newest = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=ASSET, asset_partitions=[day]), limit=1
        ).records
        history = [
            record
            for record in storage.get_asset_check_execution_history(CHECK.key, limit=1000)
            if record.partition == day
        ]
        checked = history[0] if history else None
        shown[day] = (
            newest[0].storage_id if newest else None,
            instance.get_run_by_id(newest[0].run_id) is not None if newest else None,
            checked and (checked.status, checked.run_id, instance.get_run_by_id(checked.run_id) is not None),
        )
    attempts = storage.get_latest_asset_partition_materialization_attempts_without_materializations(ASSET)
    shown["without materialization"] = {
        day: (run_id, instance.get_run_by_id(run_id) is not None) for day, (run_id, _) in attempts.items()
    }
    [record] = instance.get_asset_records([ASSET])
    last = record.asset_entry.last_materialization_record
    shown["newest"] = last and last.storage_id
    shown["last run"] = instance.get_run_by_id(str(record.asset_entry.last_run_id)) is not None
    return shown


def test_old_runs_go_and_what_is_newest_stays(instance: dg.DagsterInstance, layout: Layout) -> None:
    everything = run(instance, FIRST, LAST)
    superseded = [run(instance, LAST, LAST) for _ in range(3)]
    newest = run(instance, LAST, LAST)
    failed = run(instance, FIRST, FIRST, fails="yes")
    before = told(instance)

    foreseen = prune(instance, later(), dry_run=True)
    assert told(instance) == before
    assert len(instance.get_runs()) == 6
    done = prune(instance, later())

    assert told(instance) == before
    assert {run.run_id for run in instance.get_runs()} == {everything, newest, failed}
    assert (done.runs, done.kept) == (foreseen.runs, foreseen.kept) == (3, 3)
    assert (done.events, done.evaluations) == (foreseen.events, foreseen.evaluations)
    assert done.evaluations == 4  # of the day that was checked five times, and the one that was planned anew
    for run_id in (everything, newest, failed):
        assert len(instance.all_logs(run_id)) <= len(DAYS.get_partition_keys())
    stays = instance.event_log_storage.get_latest_asset_check_execution_by_key([CHECK.key])[CHECK.key]
    assert stays.run_id == failed
    assert not {path.stem for path in (layout.dagster_home / "history" / "runs").glob("*-*.db")} & set(superseded)
    with closing(sqlite3.connect(layout.dagster_home / "history" / "runs" / "index.db")) as index:
        assert index.execute("SELECT count(*) FROM asset_event_tags").fetchone() == (len(DAYS.get_partition_keys()),)
        assert index.execute("PRAGMA freelist_count").fetchone() == (0,)

    again = prune(instance, later())
    assert (again.runs, again.kept, again.events, again.evaluations) == (0, 3, 0, 0)
    assert told(instance) == before
    run(instance, FIRST, LAST)
    assert prune(instance, later()).runs == 3
    assert len(instance.get_runs()) == 1


def test_young_runs_and_runs_in_progress_stay(instance: dg.DagsterInstance, layout: Layout) -> None:
    run_ids = [run(instance, LAST, LAST) for _ in range(3)]
    assert prune(instance, later(days=1)).runs == 0
    whole = [len(instance.all_logs(run_id)) for run_id in run_ids]
    with closing(sqlite3.connect(layout.dagster_home / "history" / "runs.db")) as runs:
        runs.execute("UPDATE runs SET status = 'STARTED' WHERE run_id = ?", [run_ids[0]])
        runs.execute("INSERT INTO bulk_actions (key, status, timestamp) VALUES ('goes on', 'REQUESTED', '2020-01-01')")
        runs.execute("UPDATE runs SET backfill_id = 'goes on' WHERE run_id = ?", [run_ids[1]])
        runs.commit()

    assert prune(instance, later()).runs == 0
    assert [len(instance.all_logs(run_id)) for run_id in run_ids[:2]] == whole[:2]
    with closing(sqlite3.connect(layout.dagster_home / "history" / "runs.db")) as runs:
        assert runs.execute("SELECT count(*) FROM bulk_actions").fetchone() == (1,)


@pytest.mark.parametrize("step", ["_drop_rows", "_shard_files", "_drop_snapshots", "_give_back"])
@pytest.mark.parametrize("layout", ["ours"], indirect=True)
def test_a_prune_that_is_killed_is_finished_by_the_next(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    for _ in range(3):
        run(instance, LAST, LAST)
    before = told(instance)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pruning, step, die)
    with pytest.raises(KeyboardInterrupt):
        prune(instance, later())
    monkeypatch.undo()

    assert told(instance) == before
    prune(instance, later())
    assert told(instance) == before
    assert len(instance.get_runs()) == 1


@pytest.mark.parametrize("layout", ["ours"], indirect=True)
def test_runs_go_on_while_records_are_pruned(instance: dg.DagsterInstance, layout: Layout) -> None:
    run(instance, FIRST, LAST)
    wrong: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            with dg.DagsterInstance.from_config(str(layout.dagster_home)) as other:
                for _ in range(4):
                    run(other, LAST, LAST)
        except BaseException as error:  # noqa: BLE001 - told below
            wrong.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        prune(instance, later())
    thread.join()
    assert not wrong
    before = told(instance)
    prune(instance, later())
    assert told(instance) == before
    assert instance.get_materialized_partitions(ASSET) == set(DAYS.get_partition_keys())
    assert len(instance.get_runs()) == 2


@pytest.mark.parametrize("layout", ["stock"], indirect=True)
def test_records_from_before_become_small(layout: Layout) -> None:
    """Every run had a file of its own, and events were not packed."""
    with open_instance(layout) as stock:
        assert type(stock.event_log_storage) is SqliteEventLogStorage
        kept = [run(stock, FIRST, LAST), run(stock, LAST, LAST)]
        before = told(stock)
    (layout.dagster_home / "dagster.yaml").write_bytes(CONFIG.read_bytes())

    with open_instance(layout) as instance:
        assert told(instance) == before
        assert len(instance.all_logs(kept[0])) > 20
        done = prune(instance, later())
        assert told(instance) == before
        assert {run.run_id for run in instance.get_runs()} == set(kept)
    assert done.after < 0.6 * done.before
    runs = layout.dagster_home / "history" / "runs"
    assert [path.name for path in runs.glob("*.db")] == ["index.db"]
    with closing(sqlite3.connect(runs / "index.db")) as index:
        assert index.execute("SELECT DISTINCT typeof(event) FROM event_logs").fetchall() == [("blob",)]
        assert index.execute("PRAGMA auto_vacuum").fetchone() == (2,)


@pytest.mark.parametrize("layout", ["ours"], indirect=True)
def test_jobs_that_no_run_refers_to_are_forgotten(instance: dg.DagsterInstance, layout: Layout) -> None:
    other = dg.Definitions(assets=[candles], jobs=[dg.define_asset_job("other", [candles])]).resolve_job_def("other")
    config = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    other.execute_in_process(instance=instance, partition_key=LAST, run_config=config)
    kept = run(instance, LAST, LAST)
    prune(instance, later())

    with closing(sqlite3.connect(layout.dagster_home / "history" / "runs.db")) as runs:
        (names,) = zip(*runs.execute("SELECT snapshot_id FROM snapshots").fetchall(), strict=True)
        assert runs.execute("SELECT count(*) FROM run_tags WHERE run_id <> ?", [kept]).fetchone() == (0,)
    now = instance.get_run_by_id(kept)
    assert now is not None
    assert {now.job_snapshot_id, now.execution_plan_snapshot_id} <= set(names)
    job = instance.get_historical_job(str(now.job_snapshot_id))
    assert job.name == "days"
    assert job.parent_job_snapshot is None or job.parent_job_snapshot.name
    assert len(names) <= 3


@pytest.mark.parametrize("layout", ["ours"], indirect=True)
def test_newest_old_tick_of_each_schedule_stays(instance: dg.DagsterInstance, layout: Layout) -> None:
    with closing(sqlite3.connect(layout.dagster_home / "schedules" / "schedules.db")) as ticks:
        ticks.executemany(
            "INSERT INTO job_ticks (job_origin_id, selector_id, status, timestamp) VALUES ('o', ?, ?, ?)",
            [
                ("daily", "SUCCESS", "2020-01-01 10:00:00.000000"),
                ("daily", "STARTED", "2020-01-02 10:00:00.000000"),
                ("daily", "SKIPPED", "2020-01-03 10:00:00.000000"),
                ("hourly", "SUCCESS", "2020-01-01 10:00:00.000000"),
            ],
        )
        ticks.commit()
        assert prune(instance, later(days=1)).ticks == 1
        found = ticks.execute("SELECT selector_id, status FROM job_ticks ORDER BY id").fetchall()
    assert found == [("daily", "STARTED"), ("daily", "SKIPPED"), ("hourly", "SUCCESS")]


@pytest.mark.parametrize("layout", ["ours"], indirect=True)
def test_refusals_are_sentences(instance: dg.DagsterInstance, layout: Layout) -> None:
    with locks.held(layout.dagster_home / "prune.lock"), pytest.raises(MarketDataError, match="Another prune of"):
        prune(instance, later())
    with dg.DagsterInstance.ephemeral() as memory, pytest.raises(UsageError, match="supports only SQLite"):
        prune(memory, later())
    index = layout.dagster_home / "history" / "runs" / "index.db"
    with closing(sqlite3.connect(index)) as file:
        file.execute("DROP TABLE asset_check_executions")
        file.commit()
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        prune(instance, later())
