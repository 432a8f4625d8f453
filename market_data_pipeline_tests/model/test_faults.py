"""Faults of the machine at each door: one sentence that names the file and the remedy, and no traceback."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.errors import MarketDataError, UsageError
from market_data_pipeline.model import faults
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.support import shell
from market_data_pipeline_tests.support.world import World, klines

BTC = klines("BTCUSDT", "1h")
UNIVERSE = """collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2026-03-03}
"""
LOCK = "spot:\n  BTCUSDT: [{from: 2017-08-17, until: null}]\n"


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> shell.MarketData:
    return shell.shell(world, monkeypatch, UNIVERSE, LOCK)


def _said(output: str) -> str:
    return next(line for line in output.splitlines() if line.startswith("Error: "))


# --- Dagster's records ---------------------------------------------------------------------------------------------


def _garble(path: Path) -> None:
    path.write_bytes(os.urandom(3000))


def _zero_pages(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + bytes(len(content) - 4096))


def _make_foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        for table in ("runs", "event_logs", "jobs", "job_ticks", "instigators"):
            database.execute(f"CREATE TABLE {table} (of_another_program INTEGER)")
    database.close()


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (_garble, "history/runs.db"),
        (_garble, "schedules/schedules.db"),
        (_zero_pages, "history/runs/index.db"),
        (_make_foreign, "history/runs.db"),
    ],
)
def test_damaged_records_are_named_and_rebuilt(
    market_data: shell.MarketData, world: World, damage: Callable[[Path], None], name: str
) -> None:
    assert market_data("sync").exit_code == 0
    home = world.layout.dagster_home
    for rest in home.glob(f"{name}-*"):
        rest.unlink()
    damage(home / name)
    refused = market_data("sync")
    assert refused.exit_code == 1
    assert str(home) in _said(refused.output)
    assert f"delete {home}" in _said(refused.output)
    if damage is not _make_foreign:
        assert str(home / name) in _said(refused.output)

    shutil.rmtree(home)
    world.forget()
    assert market_data("sync").exit_code == 0
    assert not [path for path in world.asked() if path.endswith(".zip")]


@pytest.mark.parametrize("text", ["run_launcher: [unclosed", "no_such_setting: 1\n", "telemetry: yes\n"])
def test_wrong_dagster_yaml_is_named(market_data: shell.MarketData, world: World, text: str) -> None:
    path = world.layout.dagster_home / "dagster.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    refused = market_data("sync")
    assert refused.exit_code == 1
    assert str(path) in _said(refused.output)


def test_records_on_a_read_only_disk_are_one_sentence(
    market_data: shell.MarketData, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert market_data("sync").exit_code == 0
    connect = sqlite3.connect

    def read_only(database: str, **options: object) -> sqlite3.Connection:
        return connect(f"file:{database}?mode=ro", **{**options, "uri": True})  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(sqlite3, "connect", read_only)
    monkeypatch.setattr(sqlite3.dbapi2, "connect", read_only)
    world.at("2026-03-06T12:00:00")
    refused = market_data("sync")
    assert refused.exit_code == 1
    assert "write to the folder" in _said(refused.output)


@pytest.mark.parametrize("sign", ["?", "%"])
def test_path_that_dagster_cannot_have_is_refused(
    market_data: shell.MarketData, world: World, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    monkeypatch.setenv("MARKET_DATA_DIR", str(world.root / f"a{sign}b"))
    refused = market_data("sync")
    assert refused.exit_code == 2
    assert f"the path contains {sign}" in refused.output


# --- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk takes the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_disk_that_fills_up_during_a_run_loses_nothing(
    market_data: shell.MarketData, world: World, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKET_DATA_DIR", str(small_disk / "data"))
    (world.root / "universe.yaml").write_text(UNIVERSE.replace("2026-03-03", "2026-02-01").replace("1h", "1m"))
    refused = market_data("sync", "--yes")
    assert refused.exit_code == 1
    assert refused.output.count("The disk is full") >= 1
    assert "Exception while" not in refused.output

    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    assert market_data("sync", "--yes").exit_code == 0
    assert market_data("verify", "--local").exit_code == 0


# --- every other command and door -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["sync", "status", "coverage", "verify", "compact", "sql FROM(quality.coverage)"])
def test_file_in_the_place_of_the_data_folder_is_named(
    market_data: shell.MarketData, world: World, command: str
) -> None:
    world.layout.root.write_text("not a folder")
    refused = market_data(*command.split())
    assert refused.exit_code in (0, 1)
    if refused.exit_code:
        assert str(world.layout.root) in refused.output


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ESTALE])
def test_fault_of_the_disk_while_reading_is_not_called_damage(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    world.one(BTC, "2026-03-03")
    opened = os.open

    def failing(path: str | Path, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith("2026-03-03.parquet"):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(MarketDataError, match="cannot be read") as refused:
        MarketData(world.root).klines("BTCUSDT", "1h", "2026-03-03", "2026-03-04").df()
    assert "damaged" not in str(refused.value)
    assert "2026-03-03.parquet" in str(refused.value)


def test_env_file_that_is_no_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_bytes(b"MARKET_DATA_DIR=\xff\xfe")
    with pytest.raises(UsageError, match=r"\.env"):
        load_settings()


def test_unknown_home_folder_is_refused(market_data: shell.MarketData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_DIR", "~nobody-at-all/data")
    refused = market_data("status")
    assert refused.exit_code == 2
    assert "no such home folder" in refused.output


def test_removed_current_folder_is_reported(
    market_data: shell.MarketData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("MARKET_DATA_DIR", "data")
    refused = market_data("status")
    assert refused.exit_code == 1
    assert "current folder" in refused.output


def test_bug_shows_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), faults.explained():
        raise ZeroDivisionError
    assert faults.sentence(ValueError("a bug")) is None
