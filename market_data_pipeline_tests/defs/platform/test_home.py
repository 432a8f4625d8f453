"""Dagster's home in the data folder, and runs in this process that are on record there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from filelock import FileLock

from market_data_pipeline.defs.in_process import days_on_record, materialize_days
from market_data_pipeline.defs.platform.event_log import KeptConnectionEventLogStorage
from market_data_pipeline.defs.platform.heartbeat import close_dead_runs
from market_data_pipeline.defs.platform.home import CONFIG, open_instance, prepare_home
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline_tests.support.fakes import KLINES, OTHER, Project, day


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    # Preparing a home names it in the environment; afterwards it is as before.
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    with open_instance(project.layout) as project.instance:
        yield project


def test_home_is_in_the_data_folder_and_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = prepare_home(Layout(Path("data")))
    assert home == tmp_path / "data" / "dagster"
    assert os.environ["DAGSTER_HOME"] == str(home)
    assert (home / "dagster.yaml").read_bytes() == CONFIG.read_bytes()


def test_another_home_in_the_environment_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "/elsewhere")
    prepare_home(Layout(tmp_path))
    [record] = caplog.records
    assert "/elsewhere" in record.getMessage()
    assert str(tmp_path / "dagster") in record.getMessage()

    caplog.clear()
    prepare_home(Layout(tmp_path))
    prepare_home(Layout(tmp_path / "another"))  # the home in the environment is the one named by this process before
    assert caplog.records == []


def test_configuration_is_updated_until_a_user_edits_it(tmp_path: Path) -> None:
    config = prepare_home(Layout(tmp_path)) / "dagster.yaml"
    first_line, _, rest = CONFIG.read_text().partition("\n")

    config.write_text(f"{first_line}\n# of an older version\n")
    prepare_home(Layout(tmp_path))
    assert config.read_text() == CONFIG.read_text()

    config.write_text(f"# mine\n{rest}")
    prepare_home(Layout(tmp_path))
    assert config.read_text() == f"# mine\n{rest}"


def test_configuration_of_version_0_1_still_finds_its_event_log(tmp_path: Path) -> None:
    """A user who took the file over has the module's old path in it."""
    config = prepare_home(Layout(tmp_path)) / "dagster.yaml"
    rest = CONFIG.read_text().partition("\n")[2]
    of_0_1 = "# mine\n" + rest.replace("defs.platform.event_log", "defs.event_log")
    assert of_0_1 != f"# mine\n{rest}"
    config.write_text(of_0_1)
    with open_instance(Layout(tmp_path)) as instance:
        assert type(instance.event_log_storage) is KeptConnectionEventLogStorage
    assert config.read_text() == of_0_1


def test_configuration_in_the_repository_matches_the_package() -> None:
    assert (Path(__file__).parents[3] / "dagster.yaml").resolve() == CONFIG.resolve()


def test_retries_are_for_crashes_and_telemetry_is_off(project: Project) -> None:
    instance = project.instance
    assert instance.run_retries_enabled
    assert instance.run_retries_retry_on_asset_or_op_failure is False
    assert instance.telemetry_enabled is False
    assert instance.get_concurrency_config().run_queue_config is not None


def test_a_run_in_this_process_is_on_record_for_every_other_door(project: Project) -> None:
    result = materialize_days(
        project.instance, project.definitions, [KLINES, OTHER], day(1), day(3), tags={"door": "tests"}
    )

    assert result.success
    with dg.DagsterInstance.from_config(str(project.layout.dagster_home)) as other:
        assert days_on_record(other, KLINES) == {day(1), day(2), day(3)}
        assert days_on_record(other, OTHER) == {day(1), day(2), day(3)}
        [run] = other.get_runs()
        assert run.tags["door"] == "tests"
        assert run.status is dg.DagsterRunStatus.SUCCESS
    assert not list((project.layout.dagster_home / "alive").iterdir())


def test_steps_of_a_run_are_heard_of_day_by_day(project: Project) -> None:
    materialize_days(project.instance, project.definitions, [KLINES, OTHER], day(1), day(2))
    assert [(result.key, result.day) for result in project.seen] == [
        (key, day(n)) for key in (KLINES, OTHER) for n in (1, 2)
    ]


def test_runs_of_dead_processes_are_closed_and_live_ones_stay(project: Project) -> None:
    """A killed run counted as running forever, and after four of them the daemon started nothing any more."""
    job = project.definitions.resolve_job_def("klines")
    dead, alive, about_to_start = (
        project.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED) for _ in range(3)
    )
    folder = project.layout.dagster_home / "alive"
    folder.mkdir()
    (folder / f"{dead.run_id}.lock").touch()

    with FileLock(folder / f"{alive.run_id}.lock"):
        assert close_dead_runs(project.instance) == [dead.run_id]

    runs = {run.run_id: run.status for run in project.instance.get_runs()}
    assert runs[dead.run_id] is dg.DagsterRunStatus.FAILURE
    assert runs[alive.run_id] is dg.DagsterRunStatus.STARTED
    assert runs[about_to_start.run_id] is dg.DagsterRunStatus.STARTED


def test_every_run_has_a_heartbeat_until_it_ends(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def look(_result: object) -> None:
        seen.append([path.stem for path in (tmp_path / "dagster" / "alive").iterdir()])
        assert close_dead_runs(instance) == []

    project = Project(tmp_path, on_result=look)
    with open_instance(project.layout) as instance:
        result = materialize_days(instance, project.definitions, [KLINES, OTHER], day(1), day(1))
        for job in ("coverage", "trade_profiles"):
            assets = project.definitions.resolve_job_def(job).asset_layer.executable_asset_keys
            definitions = [project.definitions.resolve_assets_def(key) for key in assets]
            assert all("life" in one.required_resource_keys for one in definitions)
    assert seen == [[result.run_id]] * 2
    assert not list((tmp_path / "dagster" / "alive").iterdir())


_KILLED = """
import sys, time
from pathlib import Path
from market_data_pipeline.defs.in_process import materialize_days
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline_tests.support.fakes import KLINES, Project, day

def say_and_wait(result):
    print("a day is done", flush=True)
    time.sleep(600)

project = Project(Path(sys.argv[1]), on_result=say_and_wait)
with open_instance(project.layout) as instance:
    materialize_days(instance, project.definitions, [KLINES], day(1), day(5))
"""


@pytest.mark.slow
def test_a_killed_run_is_closed_by_the_next_one_which_goes_on(project: Project) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _KILLED, str(project.layout.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "a day is done\n"
        process.send_signal(signal.SIGKILL)

    with open_instance(project.layout) as instance:
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.FAILURE]
        assert materialize_days(instance, project.definitions, [KLINES], day(1), day(5)).success
        assert days_on_record(instance, KLINES) == {day(n) for n in range(1, 6)}
    assert project.ingest.fetched == [(KLINES, day(n)) for n in range(2, 6)]
