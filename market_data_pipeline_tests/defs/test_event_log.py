"""The event log that keeps its connections: no event is lost, whatever happens to files and processes."""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.utils import make_new_run_id
from sqlalchemy.exc import SQLAlchemyError

from market_data_pipeline.defs.event_log import KEPT_SHARDS, KeptConnectionEventLogStorage
from market_data_pipeline.defs.home import open_instance
from market_data_pipeline.lake.layout import Layout

ASSET = dg.AssetKey("candles")
SPAWN, FORK = multiprocessing.get_context("spawn"), multiprocessing.get_context("fork")


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
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


def test_it_is_what_dagster_yaml_asks_for_and_lies_where_the_stock_class_puts_it(
    instance: dg.DagsterInstance, layout: Layout
) -> None:
    """The stock `from_config_value` names its own class: dagster.yaml silently gave the stock one."""
    assert isinstance(instance.event_log_storage, KeptConnectionEventLogStorage)
    report(instance, "2024-01-01")
    stock = SqliteEventLogStorage(str(layout.dagster_home / "history" / "runs"))
    stock.register_instance(instance)
    assert stock.get_materialized_partitions(ASSET) == {"2024-01-01"}


def test_connections_are_kept_and_their_number_is_bounded(instance: dg.DagsterInstance, layout: Layout) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted through /proc")
    storage = instance.event_log_storage
    for _ in range(3 * KEPT_SHARDS):
        storage.get_logs_for_run(make_new_run_id())
    report(instance, "2024-01-01")
    runs = layout.dagster_home / "history" / "runs"
    assert len(open_files_below(runs)) == KEPT_SHARDS
    instance.dispose()
    assert open_files_below(runs) == []


def test_a_folder_that_was_wiped_starts_anew(instance: dg.DagsterInstance, layout: Layout) -> None:
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


def test_after_an_error_the_next_event_is_stored(instance: dg.DagsterInstance) -> None:
    report(instance, "2024-01-01")
    storage = instance.event_log_storage
    assert isinstance(storage, KeptConnectionEventLogStorage)

    def fail() -> None:
        with storage.index_connection() as connection:
            connection.exec_driver_sql("DELETE FROM asset_keys")
            connection.exec_driver_sql("SELECT * FROM no_such_table")

    with pytest.raises(SQLAlchemyError):
        fail()

    report(instance, "2024-01-02")
    assert on_record(instance) == {"2024-01-01", "2024-01-02"}
    assert instance.has_asset_key(ASSET)  # what came before the error was rolled back


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
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_leaves_its_parents_connections_alone(instance: dg.DagsterInstance) -> None:
    report(instance, "2024-01-01")

    child = FORK.Process(target=_report_in_a_fork, args=(instance,))
    child.start()
    child.join(60)

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
    children = [SPAWN.Process(target=_report_in_another_process, args=(layout.root, month)) for month in (1, 2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    with open_instance(layout) as instance:
        assert len(on_record(instance)) == 30


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
    assert done.wait(30)
    instance.event_log_storage.end_watch(run_id, listen)
    assert [text for text in heard if text.isdigit()] == [str(number) for number in range(20)]
