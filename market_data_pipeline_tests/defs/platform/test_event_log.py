"""The event log that keeps its connections: no event is lost, whatever happens to files and processes."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

import multiprocessing
import os
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log import SqlEventLogStorage, SqliteEventLogStorage
from dagster._core.utils import make_new_run_id
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from market_data_pipeline.defs.platform.event_batches import BatchedEvents
from market_data_pipeline.defs.platform.event_log import KeptConnectionEventLogStorage
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.lake.layout import Layout

ASSET = dg.AssetKey("candles")
FORK = multiprocessing.get_context("fork")
APART = multiprocessing.get_context("forkserver")
"""Processes that inherit nothing of this one. The first imports Dagster for all."""
APART.set_forkserver_preload([__name__])


def apart(target: Callable[..., None], *given: object) -> ForkServerProcess:
    """A process with the environment of this moment. The server that forks it has that of its own start."""
    return APART.Process(target=_in_environment, args=(dict(os.environ), target, *given))


def _in_environment(variables: dict[str, str], target: Callable[..., None], *given: object) -> None:
    os.environ.clear()
    os.environ.update(variables)
    target(*given)


BOTH = pytest.mark.parametrize(
    "records", ["sqlite", pytest.param("postgres", marks=pytest.mark.xdist_group("postgres"))], indirect=True
)
"""A test of what both event logs do: the one of a machine, and the one of a team."""


@pytest.fixture
def records(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where Dagster's records are."""
    kind = getattr(request, "param", "sqlite")
    if kind == "postgres":
        monkeypatch.setenv("MARKET_DATA_POSTGRES", request.getfixturevalue("team_url"))
    return str(kind)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: str) -> Layout:
    # Opening a home names it in the environment; afterwards it is as before.
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("MARKET_DATA_DIR", str(tmp_path))
    return Layout(tmp_path)


@pytest.fixture
def instance(layout: Layout) -> Iterator[dg.DagsterInstance]:
    with open_instance(layout) as instance:
        yield instance


def report(instance: dg.DagsterInstance, *partitions: str) -> None:
    """Put materializations on record, without a run."""
    for partition in partitions:
        instance.report_runless_asset_event(dg.AssetMaterialization(ASSET, partition=partition))


def on_record(instance: dg.DagsterInstance) -> set[str]:
    return set(instance.get_materialized_partitions(ASSET))


def open_files_below(folder: Path) -> list[str]:
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link for link in links if link.startswith(str(folder)) and link.endswith(".db")]


def test_class_matches_dagster_yaml_and_the_stock_location(instance: dg.DagsterInstance, layout: Layout) -> None:
    """The stock `from_config_value` names its own class: dagster.yaml silently gave the stock one."""
    assert isinstance(instance.event_log_storage, KeptConnectionEventLogStorage)
    report(instance, "2024-01-01")
    stock = SqliteEventLogStorage(str(layout.dagster_home / "history" / "runs"))
    stock.register_instance(instance)
    assert stock.get_materialized_partitions(ASSET) == {"2024-01-01"}


def test_only_the_connection_to_the_index_is_kept(instance: dg.DagsterInstance, layout: Layout) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted through /proc")
    storage = instance.event_log_storage
    assert isinstance(storage, KeptConnectionEventLogStorage)
    for _ in range(3):
        run_id = make_new_run_id()
        Path(storage.path_for_shard(run_id)).touch()  # as runs had one before
        storage.get_logs_for_run(run_id)
    report(instance, "2024-01-01")
    runs = layout.dagster_home / "history" / "runs"
    assert set(open_files_below(runs)) == {str(runs / "index.db")}
    instance.dispose()
    assert open_files_below(runs) == []


def test_wiped_folder_starts_empty(instance: dg.DagsterInstance, layout: Layout) -> None:
    report(instance, "2024-01-01")
    shutil.rmtree(layout.dagster_home / "history" / "runs")

    assert on_record(instance) == set()
    report(instance, "2024-01-02")
    assert on_record(instance) == {"2024-01-02"}


def test_a_file_that_was_replaced_is_the_one_that_is_read(instance: dg.DagsterInstance, layout: Layout) -> None:
    index = layout.dagster_home / "history" / "runs" / "index.db"
    report(instance, "2024-01-01")
    with sqlite3.connect(index) as source, sqlite3.connect(index.with_suffix(".copy")) as copy:
        source.backup(copy)
    for handle in (source, copy):
        handle.close()
    report(instance, "2024-01-02")

    for suffix in ("-wal", "-shm"):
        index.with_name(index.name + suffix).unlink(missing_ok=True)
    index.with_suffix(".copy").replace(index)

    assert on_record(instance) == {"2024-01-01"}


@BOTH
def test_after_an_error_the_next_event_is_stored(instance: dg.DagsterInstance) -> None:
    report(instance, "2024-01-01")
    storage = instance.event_log_storage
    assert isinstance(storage, BatchedEvents)

    def fail() -> None:
        with storage.index_transaction() as connection:
            connection.exec_driver_sql("DELETE FROM asset_keys")
            connection.exec_driver_sql("SELECT * FROM no_such_table")

    with pytest.raises(SQLAlchemyError):
        fail()

    report(instance, "2024-01-02")
    assert on_record(instance) == {"2024-01-01", "2024-01-02"}
    assert instance.has_asset_key(ASSET)  # what came before the error was rolled back


@BOTH
def test_threads_take_turns(instance: dg.DagsterInstance) -> None:
    days = [[f"2024-0{month}-{number:02}" for number in range(1, 11)] for month in range(1, 5)]
    threads = [threading.Thread(target=report, args=(instance, *chosen)) for chosen in days]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert on_record(instance) == {day for chosen in days for day in chosen}


def _report_in_a_fork(instance: dg.DagsterInstance) -> None:
    report(instance, "2024-01-02")


# Python warns of forks in processes with threads; Dagster's own code servers fork nevertheless.
@BOTH
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_leaves_its_parents_connections_alone(instance: dg.DagsterInstance) -> None:
    report(instance, "2024-01-01")

    child = FORK.Process(target=_report_in_a_fork, args=(instance,))
    child.start()
    child.join(120)

    assert child.exitcode == 0
    report(instance, "2024-01-03")
    assert on_record(instance) == {"2024-01-01", "2024-01-02", "2024-01-03"}


def _report_in_another_process(root: Path, month: int) -> None:
    with open_instance(Layout(root)) as instance:
        report(instance, *(f"2024-{month:02}-{number:02}" for number in range(1, 16)))


@pytest.mark.slow
def test_two_processes_write_at_once_and_no_event_is_lost(layout: Layout) -> None:
    with open_instance(layout):
        pass
    children = [apart(_report_in_another_process, layout.root, month) for month in (1, 2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    with open_instance(layout) as instance:
        assert len(on_record(instance)) == 30


DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-06")
CHECK = dg.AssetCheckSpec("gaps", asset=ASSET, partitions_def=DAYS)


@dg.asset(
    key=ASSET, partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run(), check_specs=[CHECK], tags={"a": "b"}
)
def candles(context: dg.AssetExecutionContext) -> Iterator[object]:
    """Five days of an asset in one run, each with a check."""
    for day in context.partition_keys:
        context.add_asset_metadata({"day": day}, partition_key=day)
    yield dg.MaterializeResult(asset_key=ASSET)
    for day in context.partition_keys:
        yield dg.AssetCheckEvaluation(ASSET, "gaps", passed=day != "2024-01-03", partition=day)
        if "looks back" in context.run.tags:
            evaluated = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}
            history = context.instance.event_log_storage.get_asset_check_execution_history(CHECK.key, limit=10)
            context.log.info("%d on record", sum(record.status in evaluated for record in history))
    yield dg.Output(None, output_name=CHECK.get_python_identifier())


def materialize(instance: dg.DagsterInstance, run_id: str | None = None, **tags: str) -> str:
    """One run over all days."""
    first, last = DAYS.get_partition_keys()[0], DAYS.get_partition_keys()[-1]
    span = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    job = dg.Definitions(assets=[candles], jobs=[dg.define_asset_job("all_days", [candles])]).resolve_job_def(
        "all_days"
    )
    return job.execute_in_process(instance=instance, run_id=run_id, tags=span | tags).run_id


def logged(instance: dg.DagsterInstance, run_id: str) -> list[tuple[object, ...]]:
    """The log of a run, without what another run would say otherwise."""
    events = [event.get_dagster_event() for event in instance.all_logs(run_id) if event.is_dagster_event]
    return [(e.event_type_value, e.step_key, e.asset_key, e.partition, _timeless(e.message)) for e in events]


def _timeless(message: str | None) -> str:
    """Without processes and durations."""
    return str(message).partition(" (pid")[0].partition(" in ")[0]


def evaluated(instance: dg.DagsterInstance) -> list[tuple[object, ...]]:
    """The history of the check, oldest first: day, status, kind of event, and which materialization it speaks of."""
    history = instance.event_log_storage.get_asset_check_execution_history(CHECK.key, limit=100)
    events = [(record, record.event.get_dagster_event() if record.event else None) for record in reversed(history)]
    return [
        (record.partition, record.status, event.event_type_value, event.partition)
        for record, event in events
        if event is not None
    ]


def materialized(instance: dg.DagsterInstance) -> list[tuple[object, ...]]:
    """Days with their metadata, oldest first."""
    records = instance.fetch_materializations(ASSET, limit=100).records
    return [(record.partition_key, record.asset_materialization.metadata) for record in reversed(records)]  # type: ignore[union-attr]


def is_told_elsewhere(event: tuple[object, ...]) -> bool:
    """Whether a run that has ended need not say it: what was planned and came, a check that passed or its output."""
    kind, _, _, partition, message = event
    if kind == "ASSET_CHECK_EVALUATION_PLANNED" or (kind == "STEP_OUTPUT" and "candles_gaps" in str(message)):
        return True
    passed = kind == "ASSET_CHECK_EVALUATION" and "did not pass" not in str(message)
    return passed or (kind == "ASSET_MATERIALIZATION_PLANNED" and partition is not None)


@BOTH
def test_stored_events_equal_those_of_the_stock_class(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run_id = materialize(instance)
    home = tmp_path / "stock"
    home.mkdir()
    with dg.DagsterInstance.from_config(str(home)) as stock:
        assert type(stock.event_log_storage) is SqliteEventLogStorage
        theirs = materialize(stock)
        assert materialized(instance) == materialized(stock)
        assert evaluated(instance) == evaluated(stock)
        assert instance.get_materialized_partitions(ASSET) == stock.get_materialized_partitions(ASSET)
        assert [len(told) for told in (materialized(instance), evaluated(instance))] == [5, 5]
        whole = logged(stock, theirs)
        assert logged(instance, run_id) == [event for event in whole if not is_told_elsewhere(event)]
        # Five plans and one for the check, four of five evaluations, and the output of the check.
        assert sum(map(is_told_elsewhere, whole)) == 11
        ours, other = (one.get_latest_data_version_record(ASSET) for one in (instance, stock))
        assert ours is not None
        assert other is not None


def test_a_run_takes_no_file_and_few_bytes(instance: dg.DagsterInstance, layout: Layout) -> None:
    """The stock class gives each run a file, of 110 kB when empty, and stores JSON of 1 to 4 kB up to three times."""
    runs = layout.dagster_home / "history" / "runs"
    run_id = materialize(instance)
    assert [path.name for path in runs.glob("*.db")] == ["index.db"]
    with closing(sqlite3.connect(runs / "index.db")) as index:
        events = index.execute("SELECT typeof(event), length(event) FROM event_logs WHERE run_id = ?", [run_id])
        kinds, sizes = zip(*events.fetchall(), strict=True)
        assert set(kinds) == {"blob"}
        assert max(sizes) < 600
        assert index.execute("SELECT DISTINCT typeof(evaluation_event) FROM asset_check_executions").fetchall() == [
            ("blob",)
        ]
        assert index.execute("SELECT typeof(last_materialization) FROM asset_keys").fetchall() == [("blob",)]
        assert index.execute("PRAGMA freelist_count").fetchone() == (0,)


def test_switched_off_the_stock_class_reads_everything(layout: Layout) -> None:
    """`dagster.yaml` names the event log; a user who takes it out goes on with Dagster's own."""
    with open_instance(layout) as instance:
        run_id = materialize(instance)
        before = (logged(instance, run_id), materialized(instance), evaluated(instance))
    config = (layout.dagster_home / "dagster.yaml").read_text()
    without = config.split("event_log_storage:")[0] + "compute_logs:" + config.split("compute_logs:")[1]
    (layout.dagster_home / "dagster.yaml").write_text(without.split("\n", 1)[1])

    for _ in range(2):
        with open_instance(layout) as stock:
            assert type(stock.event_log_storage) is SqliteEventLogStorage
            assert (logged(stock, run_id), materialized(stock), evaluated(stock)) == before
            assert stock.get_asset_records([ASSET])[0].asset_entry.last_materialization is not None
    with open_instance(layout) as stock:
        theirs = materialize(stock)

    (layout.dagster_home / "dagster.yaml").write_text(config)
    with open_instance(layout) as instance:
        assert isinstance(instance.event_log_storage, KeptConnectionEventLogStorage)
        assert (logged(instance, run_id), materialized(instance)[:5], evaluated(instance)[:5]) == before
        assert len(logged(instance, theirs)) > 20


def test_a_run_that_has_a_file_goes_on_in_it(instance: dg.DagsterInstance, layout: Layout) -> None:
    """Records that were made before runs lost their files, and a run that was at work then."""
    runs = layout.dagster_home / "history" / "runs"
    stock = SqliteEventLogStorage(str(runs))
    stock.register_instance(instance)
    run_id = make_new_run_id()
    with stock.run_connection(run_id):
        assert (runs / f"{run_id}.db").exists()
    materialize(instance, run_id)

    with closing(sqlite3.connect(runs / f"{run_id}.db")) as file:
        (in_file,) = file.execute("SELECT count(*) FROM event_logs").fetchone()
    assert in_file == len(instance.all_logs(run_id)) > 20
    assert on_record(instance) == set(DAYS.get_partition_keys())
    assert len(evaluated(instance)) == 5


@BOTH
def test_events_of_all_runs_are_found_by_their_type(instance: dg.DagsterInstance) -> None:
    run_ids = [materialize(instance) for _ in range(2)]
    successes = dg.EventRecordsFilter(dg.DagsterEventType.STEP_SUCCESS)
    found = instance.event_log_storage.get_event_records(successes)
    assert [record.run_id for record in found] == run_ids[::-1]


@BOTH
def test_events_of_a_run_are_written_together(instance: dg.DagsterInstance, records: str) -> None:
    commits: list[object] = []
    statements: list[str] = []

    def executed(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    count = commits.append
    sa.event.listen(Engine, "commit", count)
    sa.event.listen(Engine, "before_cursor_execute", executed)
    try:
        run_id = materialize(instance)
    finally:
        sa.event.remove(Engine, "commit", count)
        sa.event.remove(Engine, "before_cursor_execute", executed)
    events = instance.all_logs(run_id)
    assert sum(event.is_dagster_event for event in events) > 15
    # What is planned, what is materialized and what is checked take one transaction each, however many days there are,
    # and so does what leaves the log at the end; the rest are the run's own events and its row.
    assert len(commits) < 40
    # Of the checks, what was planned is inserted by one statement; each evaluation then takes the place of its plan.
    on_checks = Counter(statement.split()[0] for statement in statements if "asset_check_executions" in statement)
    # In PostgreSQL one statement does that for all, which the driver makes without SQLAlchemy.
    updates = len(DAYS.get_partition_keys()) if records == "sqlite" else 0
    assert (on_checks["INSERT"], on_checks["UPDATE"]) == (1, updates)
    assert sum("INTO event_logs" in statement for statement in statements) < 32


@BOTH
def test_reader_in_a_run_sees_the_events_of_that_run(instance: dg.DagsterInstance) -> None:
    run_id = materialize(instance, **{"looks back": "yes"})
    seen = [event.user_message for event in instance.all_logs(run_id) if event.user_message.endswith("on record")]
    assert seen == [f"{number} on record" for number in range(1, 6)]


@BOTH
def test_faulty_evaluation_does_not_block_the_others(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = SqlEventLogStorage._event_to_row

    def row(self: SqlEventLogStorage, event: dg.EventLogEntry) -> dict[str, Any]:
        data = event.dagster_event and event.dagster_event.event_specific_data
        if isinstance(data, dg.AssetCheckEvaluation) and data.partition == "2024-01-02":
            raise SQLAlchemyError("the disk is tired")
        return stock(self, event)

    monkeypatch.setattr(SqlEventLogStorage, "_event_to_row", row)
    run_id = make_new_run_id()
    with pytest.raises(SQLAlchemyError, match="the disk is tired"):
        materialize(instance, run_id)
    monkeypatch.undo()
    assert [row[0] for row in evaluated(instance) if row[1] is not AssetCheckExecutionRecordStatus.PLANNED] == [
        "2024-01-01",
        "2024-01-03",
        "2024-01-04",
        "2024-01-05",
    ]


def _run_until_killed(root: Path, told: Connection) -> None:
    with open_instance(Layout(root)) as instance:
        while True:
            told.send(materialize(instance))


@pytest.mark.slow
@BOTH
def test_process_killed_while_writing_loses_no_earlier_run(layout: Layout) -> None:
    with open_instance(layout):
        pass
    finished: list[str] = []
    for _ in range(3):
        ours, theirs = APART.Pipe(duplex=False)
        child = apart(_run_until_killed, layout.root, theirs)
        child.start()
        theirs.close()
        finished += [ours.recv(), ours.recv()]
        child.kill()
        child.join()
        while ours.poll():
            try:
                finished.append(ours.recv())
            except EOFError:
                break
    with open_instance(layout) as instance:
        history = instance.event_log_storage.get_asset_check_execution_history(CHECK.key, limit=100_000)
        by_run = Counter(record.run_id for record in history)
        assert [by_run[run_id] for run_id in finished] == [5] * len(finished)
        report(instance, "2024-02-01")
        assert on_record(instance) == {*DAYS.get_partition_keys(), "2024-02-01"}


@BOTH
def test_a_watcher_hears_of_every_event(instance: dg.DagsterInstance) -> None:
    """The stock watcher looks at the .db file, which WAL leaves untouched: 33 of 494 events were missed."""

    @dg.op
    def speak() -> None:
        for number in range(20):
            dg.get_dagster_logger().info("%d", number)

    @dg.job
    def speech() -> None:
        speak()

    run_id = make_new_run_id()
    heard: list[str] = []
    done = threading.Event()

    def listen(entry: dg.EventLogEntry, _cursor: str) -> None:
        heard.append(entry.user_message)
        if entry.is_dagster_event and entry.get_dagster_event().is_job_success:
            done.set()

    instance.event_log_storage.watch(run_id, None, listen)
    speech.execute_in_process(instance=instance, run_id=run_id)
    assert done.wait(120)
    instance.event_log_storage.end_watch(run_id, listen)
    assert [text for text in heard if text.isdigit()] == [str(number) for number in range(20)]
