"""Dagster's home in the data folder, and its UI.

The UI, the daemon, the command line and notebooks all use ``{root}/dagster`` as ``DAGSTER_HOME``, with the
``dagster.yaml`` next to this module. They share the same materializations and checks. Running jobs belongs in
``in_process``.
"""

from __future__ import annotations

import logging
import os
import runpy
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

import dagster as dg
import yaml
from dagster._core.storage.event_log import SqliteEventLogStorage

from market_data_pipeline.defs.platform.descendants import end_with_this_process
from market_data_pipeline.defs.platform.heartbeat import close_dead_runs
from market_data_pipeline.defs.platform.listening import check_address, claim_ui
from market_data_pipeline.defs.platform.renaming import rename_assets
from market_data_pipeline.errors import MarketDataError, RecordsError, UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.regular_files import read_regular
from market_data_pipeline.model import faults
from market_data_pipeline.model.waits import Stop
from market_data_pipeline.settings import PREFIX, Settings, load_settings
from market_data_pipeline.team.address import shown

logger = logging.getLogger(__name__)

CONFIG, TEAM_CONFIG = (Path(__file__).with_name(name) for name in ("dagster.yaml", "team.yaml"))
DEFINITIONS_MODULE = "market_data_pipeline.definitions"


# --- the home ------------------------------------------------------------------------------------------------------

_prepared: set[Path] = set()
"""Homes that this process has set itself. They need no warning."""


def prepare_home(layout: Layout) -> Path:
    """Prepare ``{root}/dagster`` and set ``DAGSTER_HOME`` of this process to its absolute path.

    If the environment names another home, log a warning. The home is not shared, because its materializations refer to
    this data folder.

    Returns:
        The home's path.

    Raises:
        StorageError: The folder cannot be written.
        UsageError: The path has a character that Dagster cannot use.
    """
    home = layout.dagster_home.absolute()
    if wrong := sorted({character for character in "?%" if character in str(home)}):
        raise UsageError(
            f"Dagster cannot store its records in {home}, because the path contains {' and '.join(wrong)}. "
            f"Choose another data folder ({PREFIX}DIR), or rename this one."
        )
    named = os.environ.get("DAGSTER_HOME")
    if named and Path(named).expanduser().absolute() not in {home, *_prepared}:
        logger.warning(
            "DAGSTER_HOME is %s in the environment. market_data_pipeline stores Dagster's records with the data and "
            "uses %s instead.",
            named,
            home,
        )
    settings = load_settings()
    _write_config(home / "dagster.yaml", config_of(settings))
    os.environ["DAGSTER_HOME"] = str(home)
    for name in ("postgres", "broker"):  # dagster.yaml names them, and a .env file is not in the environment
        if value := getattr(settings, name):
            os.environ[f"{PREFIX}{name.upper()}"] = value
    _prepared.add(home)
    return home


def config_of(settings: Settings) -> bytes:
    """Return the ``dagster.yaml`` of these settings: of one machine, or of a team."""
    if not settings.postgres:
        return CONFIG.read_bytes()
    text = TEAM_CONFIG.read_text("utf-8")
    text = text.replace("max_concurrent_runs: 4", f"max_concurrent_runs: {settings.concurrent_runs}")
    if not settings.broker:
        text = text.partition("\n# Only with MARKET_DATA_BROKER.")[0]
    return text.encode()


def _write_config(path: Path, ours: bytes) -> None:
    there = read_regular(path) if path.exists() else None
    # Users delete the first line to own the file. Then it is not updated.
    if there is None or (there != ours and there.split(b"\n", 1)[0] == ours.split(b"\n", 1)[0]):
        storage.put(path, ours)


def open_instance(layout: Layout) -> dg.DagsterInstance:
    """Open Dagster's records of a data folder. Use it as a context manager, or call ``dispose()``.

    Runs whose process was killed are closed as failed. Otherwise they would count as running forever and block others.
    Assets with keys of version 0.1 get their present keys.

    Raises:
        StorageError: The folder cannot be written.
        RecordsError: The records cannot be used.
    """
    with recording(layout):
        instance = dg.DagsterInstance.from_config(str(prepare_home(layout)))
        storage = instance.event_log_storage
        if type(storage) is SqliteEventLogStorage:
            from market_data_pipeline.defs.platform.unpacking import unpack_records

            unpack_records(storage)  # dagster.yaml no longer names our event log
        close_dead_runs(instance)
        rename_assets(instance)
        return instance


@contextmanager
def recording(layout: Layout) -> Iterator[None]:
    """Turn a fault of Dagster's records into one sentence with a remedy, while they are open.

    Raises:
        RecordsError: Replaces an error of their databases or of their configuration.
    """
    try:
        with redirect_stderr(cast("TextIO", _WithoutNotices(sys.stderr))):
            yield
    except MarketDataError:
        raise
    except Exception as error:
        text = _records_fault(layout.dagster_home, error)
        if text is None:
            raise
        raise RecordsError(text) from error


_NOTICES = (
    "Exception while writing logger call to event log",
    "Exception while storing event batch",
    "Falling back to storing multiple single-event storage requests",
)


class _WithoutNotices:
    """A stream without Dagster's notices of events that could not be written. The error itself has the reason."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if text.startswith(_NOTICES):
            return len(text)
        return self._stream.write(text)


def _records_fault(home: Path, error: BaseException) -> str | None:
    team = load_settings().postgres
    for one in faults.chain(error):
        if isinstance(one, (dg.DagsterInvalidConfigError, yaml.YAMLError)):
            return (
                f"{home / 'dagster.yaml'} is not a valid Dagster configuration: {' '.join(str(one).split())[:300]} "
                "Fix it, or delete it and the next command writes a new one."
            )
        if faults.is_of_database(one) and team:
            return (
                f"Dagster's records in PostgreSQL at {shown(team)} cannot be used ({faults.reason(one)}). Check "
                f"{PREFIX}POSTGRES, and that the server runs and has free connections. Stored days are safe."
            )
        if faults.is_of_database(one):
            return _database_fault(home, one)
    return None


_LEAST_FREE = 1_000_000
"""Free bytes below which a disk counts as full. SQLite needs a few pages."""

_START_OVER = (
    "Stop all processes of this data folder and delete {}. The next `market-data sync` records every stored day again "
    "without a download. The history of runs is lost."
)


def _database_fault(home: Path, error: BaseException) -> str:
    reason = faults.reason(error)
    what = f"Dagster's records in {home} cannot be used ({reason})."
    # On a full disk SQLite may also report damaged files.
    if "disk is full" in reason or shutil.disk_usage(home).free < _LEAST_FREE:
        return f"{what} The disk is full. Free some space and try again. Stored days are safe."
    if "locked" in reason:
        return f"{what} Another process is writing to them. Try again when it has finished."
    broken = damaged_database(home)
    if broken is None and any(words in reason for words in ("readonly", "unable to open", "disk I/O")):
        return f"{what} Check that this user can write to the folder and that the disk works."
    return f"{what} {broken or home} is damaged or of another version. {_START_OVER.format(home)}"


def damaged_database(home: Path) -> Path | None:
    """Return the first database that SQLite finds damaged."""
    for path in sorted(home.rglob("*.db"), key=lambda path: (len(path.stem), path)):  # files of single runs come last
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
                if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                    return path
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                return path
    return None


# --- the UI --------------------------------------------------------------------------------------------------------


def dagster_dev_command(host: str = "127.0.0.1", port: int = 3000) -> list[str]:
    """Return the command that starts Dagster's UI and daemon over this project, wherever the package is installed.

    It names the module, because a package from PyPI has no workspace.yaml.
    """
    return [sys.executable, "-m", "dagster", "dev", "-m", DEFINITIONS_MODULE, "-h", host, "-p", str(port)]


def run_dagster_dev(host: str = "127.0.0.1", port: int = 3000) -> NoReturn:
    """Run Dagster's UI and daemon in this process until a signal ends them. Call :func:`prepare_ui` first."""
    end_all_with_this_process()
    sys.argv = dagster_dev_command(host, port)[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    sys.exit()


_RUN = "multiprocessing.spawn"
"""Part of the command line of a process in which Dagster's code server executes a run."""

_stop = Stop()


def end_all_with_this_process() -> None:
    """End Dagster's processes that are started from now on with this one, even if it is killed.

    Otherwise they would outlive it and wait for runs in progress. A stop interrupts such runs. The next process that
    opens the records closes those that could not report their end.
    """
    _stop.on_set(end_with_this_process(at_once=_RUN))


def prepare_ui(layout: Layout, host: str = "127.0.0.1", port: int = 3000, allowed_hosts: Sequence[str] = ()) -> None:
    """Prepare the home for Dagster's UI, which this process or its child then runs.

    Raises:
        StorageError: The home cannot be written.
        UsageError: The address cannot be listened on.
        UiRunsError: A UI already runs over this data folder.
    """
    claim_ui(prepare_home(layout), host, port)
    check_address(host, port)
    instance = open_instance(layout)  # closes dead runs, which would block those that the daemon starts
    if not hasattr(instance.event_log_storage, "guards_webserver"):
        logger.warning(
            "%s names another event log, so the UI does not check the origin of requests. Any page in a browser on "
            "this machine can start runs.",
            layout.dagster_home / "dagster.yaml",
        )
    instance.dispose()
    os.environ[f"{PREFIX}DIR"] = str(layout.root.absolute())
    os.environ[f"{PREFIX}UI_HOSTS"] = ",".join(dict.fromkeys([*allowed_hosts, host]))
