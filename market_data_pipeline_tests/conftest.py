"""Fixtures that tests of all rooms share."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.storage.defs_state.base import set_defs_state_storage
from hypothesis import settings
from sqlalchemy import Engine, event

from market_data_pipeline.defs.platform.home import CONFIG
from market_data_pipeline.sandbox import Sandbox
from market_data_pipeline.settings import PREFIX
from market_data_pipeline.team.current import leave_team
from market_data_pipeline_tests.support.postgres import PostgresServer, postgres_server
from market_data_pipeline_tests.support.world import World

# How long one example takes says more of the machine and of what it imports the first time than of the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


# Where bytecode is not kept, as in many containers, each process of a test compiles the whole project: half a second.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


# Dagster and what it imports are a million objects, which are looked through for garbage again and again.
gc.freeze()
gc.set_threshold(100_000, 50, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests begin first, so that no test process is left alone with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if "shared_postgres" in getattr(
            item, "fixturenames", ()
        ):  # one test process runs these, and they share a server
            item.add_marker(pytest.mark.xdist_group("postgres"))


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[PostgresServer]:
    """The one PostgreSQL of all tests that do not stop it."""
    with postgres_server("fsync=off") as started:
        yield started


@pytest.fixture
def team_url(shared_postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database of its own."""
    name = f"team_{secrets.token_hex(4)}"
    shared_postgres.sql(f"CREATE DATABASE {name}")
    yield shared_postgres.url_of(name)
    leave_team()
    shared_postgres.sql(f"DROP DATABASE {name} WITH (FORCE)")


# A background job of a script ignores Ctrl-C, and so would the processes that tests start and interrupt.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


# These scripts run with the code of an earlier release, or in the environment of another tool.
collect_ignore_glob = ["releases/make_*.py", "clients/read_*.py"]

REALDATA = Path(__file__).parents[2] / "shared" / "realdata"


@pytest.fixture(autouse=True, scope="session")
def _quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What hundreds of tests wait for and none is about: the disk, and how Dagster makes its databases.

    No test cuts the power. A process that is killed loses nothing that it gave to the system.
    """
    from_config, known = ScriptDirectory.from_config, dict[str | None, ScriptDirectory]()

    def read_once(config: Config) -> ScriptDirectory:
        place = config.get_alembic_option("script_location")
        return known.get(place) or known.setdefault(place, from_config(config))

    open_home, made = dg.DagsterInstance.from_config, tmp_path_factory.mktemp("dagster")

    def open_copy(config_dir: str, *args: Any, **kwargs: Any) -> dg.DagsterInstance:
        """Copy the databases of a new home, which take a quarter of a second to make: these are made once."""
        home = Path(config_dir)
        with suppress(OSError):
            if list(home.iterdir()) == [config := home / "dagster.yaml"] and config.read_bytes() == CONFIG.read_bytes():
                if not (made / config.name).exists():
                    shutil.copy(CONFIG, made / config.name)
                    open_home(str(made)).dispose()
                shutil.copytree(made, home, dirs_exist_ok=True)
        return open_home(config_dir, *args, **kwargs)

    def without_sync(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF").close()

    event.listen(Engine, "connect", without_sync)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dg.DagsterInstance, "from_config", open_copy)
        patch.setattr(ScriptDirectory, "from_config", read_once)
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings in the environment of whoever runs the tests do not reach them."""
    for name in list(os.environ):
        if name.startswith(PREFIX) or name == "DAGSTER_HOME":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_instance_is_left() -> Iterator[None]:
    """A Dagster instance that a context opened and nobody closed is not met by the definitions of the next test."""
    with set_defs_state_storage(None):
        yield


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A sandbox with generated data, at noon of 2026-03-05."""
    with Sandbox() as sandbox:
        world = World(tmp_path, sandbox, monkeypatch)
        world.at("2026-03-05T12:00:30")
        yield world


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, realdata: Path) -> Iterator[World]:
    """A sandbox that serves recorded Binance data."""
    with Sandbox(mirror=realdata / "mirror") as sandbox:
        world = World(tmp_path, sandbox, monkeypatch)
        world.at("2026-06-01T12:00:00")
        yield world


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of recorded Binance data, which is not part of the project."""
    if not REALDATA.is_dir():
        pytest.skip(f"recorded Binance data is not at {REALDATA}")
    return REALDATA
