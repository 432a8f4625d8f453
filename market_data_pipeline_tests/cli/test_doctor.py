"""``market-data doctor`` names each fault of network, disk, clock, settings, universe and records, with its remedy."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import sys
import tomllib
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from market_data_pipeline.cli.doctor import EXTRAS, LEAST_FREE, LITTLE_FREE, check_disk
from market_data_pipeline.sandbox import Status
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.support.documents import PROJECT
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, utc

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1d], from: 2026-03-01}
"""
LOCK = "spot:\n  BTCUSDT: [{from: 2017-08-17, until: null}]\n"
NAMES = (
    "versions",
    "settings",
    "universe",
    "disk space",
    "disk writable",
    "disk locks",
    "disk fsync",
    "records",
    "archive",
    "listing",
    "rest spot",
    "clock",
)


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """A machine on which all is well, with an empty data folder, at 2026-03-05 12:00:30."""
    monkeypatch.chdir(world.root)
    return shell(world, monkeypatch, UNIVERSE, LOCK, retries="0")


def checked(market_data: MarketData, code: int = 0) -> dict[str, dict[str, Any]]:
    result = market_data("doctor", "--json")
    assert result.exit_code == code, result.output
    return {one["check"]: one for one in json.loads(result.stdout)}


def not_ok(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: one["state"] for name, one in found.items() if one["state"] != "ok"}


def test_all_is_well(market_data: MarketData, world: World) -> None:
    found = checked(market_data)
    assert tuple(found) == NAMES
    assert not_ok(found) == {}
    assert "lists 1 series" in found["universe"]["text"]
    assert not world.layout.root.exists()
    assert len(world.asked()) <= 4  # a zip with its checksum, a listing, the time of one market


def test_each_check_is_one_line(market_data: MarketData) -> None:
    result = market_data("doctor")
    lines = result.stdout.splitlines()
    assert [line[:4].strip() for line in lines] == ["ok"] * len(NAMES)
    assert tuple(line[6:19].strip() for line in lines) == NAMES
    assert result.stderr == "No check failed.\n"


@pytest.mark.parametrize("setting", ["VISION_URL", "VISION_LISTING_URL", "SPOT_URL"])
def test_unreachable_host_fails(market_data: MarketData, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    """Nothing listens on port 9 of loopback."""
    monkeypatch.setenv(f"MARKET_DATA_{setting}", "http://127.0.0.1:9")
    found = checked(market_data, 1)
    check = {"VISION_URL": "archive", "VISION_LISTING_URL": "listing", "SPOT_URL": "rest spot"}[setting]
    assert not_ok(found) == {check: "fail"} | ({"clock": "warn"} if setting == "SPOT_URL" else {})
    assert "no connection" in found[check]["text"]
    assert f"MARKET_DATA_{setting}" in found[check]["remedy"]


def test_refusing_rest_host_fails_with_its_way_out(market_data: MarketData, world: World) -> None:
    world.sandbox.faults.add(Status(path="/api/v3/", status=451))
    found = checked(market_data, 1)
    assert not_ok(found) == {"rest spot": "fail", "clock": "warn"}
    assert "refuses this country" in found["rest spot"]["text"]


def test_archive_without_files_warns(market_data: MarketData, world: World) -> None:
    world.sandbox.faults.add(Status(path=r"\.zip", status=404))
    assert not_ok(checked(market_data)) == {"archive": "warn"}


def test_only_markets_of_the_universe_are_checked(market_data: MarketData, world: World) -> None:
    checked(market_data)
    assert world.asked("/fapi/") == world.asked("/dapi/") == []
    (world.root / "universe.yaml").unlink()
    found = checked(market_data)
    assert not_ok(found) == {"universe": "warn"}
    assert {"rest spot", "rest um", "rest cm"} <= set(found)
    assert "market-data add" in found["universe"]["remedy"]


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_unknown_setting_warns(
    market_data: MarketData, world: World, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == ".env":
        (world.root / ".env").write_text("MARKET_DATA_MEMORYMB=100\nOTHER=1\n")
    else:
        monkeypatch.setenv("MARKET_DATA_MEMORYMB", "100")
    found = checked(market_data)
    assert not_ok(found) == {"settings": "warn"}
    assert "MARKET_DATA_MEMORYMB (did you mean MARKET_DATA_MEMORY_MB?)" in found["settings"]["text"]


def test_wrong_setting_fails_and_ends_the_checks(market_data: MarketData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_MEMORY_MB", "many")
    found = checked(market_data, 1)
    assert list(found) == ["versions", "settings"]
    assert "MARKET_DATA_MEMORY_MB" in found["settings"]["text"]


def test_extras_are_listed_as_installed_or_not(market_data: MarketData, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is wrong ends the checks after the first, which is enough here."""
    monkeypatch.setenv("MARKET_DATA_MEMORY_MB", "many")
    doctor = sys.modules["market_data_pipeline.cli.doctor"]
    monkeypatch.setattr(doctor, "EXTRAS", {"here": ("click", "duckdb"), "half": ("click", "no-such-package")})
    text = checked(market_data, 1)["versions"]["text"]
    assert text.endswith("Extras: here (not installed: half).")


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {
        extra: {re.split(r"[^\w.-]", package)[0] for package in packages}
        for extra, packages in project["optional-dependencies"].items()
        if extra not in ("dev", "docs")
    }
    assert {extra: set(packages) for extra, packages in EXTRAS.items()} == named


@pytest.mark.parametrize(
    ("server", "state", "words"),
    [
        ("2026-03-05T12:00:40", "ok", "behind Binance's"),
        ("2026-03-05T12:03:30", "warn", "180.0 s behind Binance's"),
        ("2026-03-05T11:58:30", "warn", "120.0 s ahead of Binance's"),
        ("2026-03-05T13:00:30", "fail", "Set this machine's clock"),
    ],
)
def test_clock_is_compared_with_rest(
    market_data: MarketData, world: World, server: str, state: str, words: str
) -> None:
    world.sandbox.set_time(utc(server))
    found = checked(market_data, int(state == "fail"))
    assert not_ok(found) == ({} if state == "ok" else {"clock": state})
    assert words in found["clock"]["text"]


def test_invalid_universe_fails(market_data: MarketData, world: World) -> None:
    (world.root / "universe.yaml").write_text("collect: [{market: sopt}]\n")
    found = checked(market_data, 1)
    assert not_ok(found)["universe"] == "fail"
    assert "universe.yaml, line 1" in found["universe"]["text"]


@pytest.mark.parametrize("name", ["history/runs.db", "history/runs/index.db", "schedules/schedules.db"])
@pytest.mark.parametrize("damage", ["head", "middle"])
def test_damaged_records_fail(market_data: MarketData, world: World, name: str, damage: str) -> None:
    assert market_data("backfill", "--yes", "--from", "2026-03-04", "--through", "2026-03-04").exit_code in (0, 3)
    assert not_ok(checked(market_data)) == {}
    (path,) = world.layout.dagster_home.rglob(Path(name).name)
    content = bytearray(path.read_bytes())
    spoilt = range(4096) if damage == "head" else range(4096, len(content))
    for at in spoilt:
        content[at] = 0x5A
    for of in path.parent.glob(f"{path.name}-*"):
        of.unlink()
    path.write_bytes(content)
    found = checked(market_data, 1)
    assert not_ok(found) == {"records": "fail"}
    assert f"delete {world.layout.dagster_home}" in found["records"]["text"]


@pytest.mark.parametrize(("free", "state"), [(LEAST_FREE - 1, "fail"), (LITTLE_FREE - 1, "warn")])
def test_little_space_is_reported(
    market_data: MarketData, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, free))
    assert not_ok(checked(market_data, int(state == "fail"))) == {"disk space": state}


@pytest.mark.parametrize(("number", "state"), [(errno.ENOLCK, "warn"), (errno.EIO, "fail")])
@pytest.mark.parametrize("function", ["flock", "fsync"])
def test_file_system_without_a_feature_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int, state: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl if function == "flock" else os, function, refuse)
    found = {one.check: str(one.state) for one in check_disk(Settings(_env_file=None, dir=tmp_path))}  # type: ignore[call-arg]
    assert found["disk locks" if function == "flock" else "disk fsync"] == state


def test_folder_without_write_permission_fails(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    found = {one.check: one for one in check_disk(Settings(_env_file=None, dir=tmp_path / "data"))}  # type: ignore[call-arg]
    assert found["disk writable"].state == "fail"
    assert "MARKET_DATA_DIR" in found["disk writable"].remedy


def test_bug_in_a_check_is_reported_without_traceback(market_data: MarketData, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(shutil, "disk_usage", broken)
    found = checked(market_data, 1)
    assert found["disk space"]["text"] == "ZeroDivisionError: division by zero"
    assert "report it" in found["disk space"]["remedy"]
