"""``market-data doctor``: check the network, disk, clock, settings, universe and Dagster's records.

A check never raises: each fault becomes a line with its remedy. Checks of stored data do not belong here (``verify``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

import click
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource
from rich.text import Text

from market_data_pipeline import __version__, clock
from market_data_pipeline.cli.console import aside, counted, in_bytes, json_option, out, print_json
from market_data_pipeline.cli.plan import existing
from market_data_pipeline.cli.summary import ExitCode, end
from market_data_pipeline.defs.platform.records import BIG, size_of_records
from market_data_pipeline.errors import HostOffError, MarketDataError, RestAnswerError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model import faults
from market_data_pipeline.model.datasets import MARKETS
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.settings import PREFIX, Settings, load_settings
from market_data_pipeline.universe import Universe, load_universe
from market_data_pipeline.universe.listings import ANCHORS

LEAST_FREE, LITTLE_FREE = 100_000_000, 5_000_000_000
"""Free bytes on the disk below which the check fails, and below which it warns."""

_CLOCK_WARNS_FROM = timedelta(seconds=30)
"""Offset of this machine's clock from which the check warns. From 5 minutes on, REST is not used at all."""

_TIMEOUT_SECONDS, _RETRIES = 10.0, 1
"""Most patience with a host. A user waits for the answer."""

_SMALL_FILE = "data/spot/daily/klines/BTCUSDT/1d/BTCUSDT-1d-2024-01-01.zip"
"""A file of the archive with 500 bytes."""

_SHOWN_PACKAGES = ("dagster", "duckdb", "pyarrow", "pydantic")
EXTRAS = {
    "celery": ("celery",),
    "iceberg": ("pyiceberg",),
    "live": ("msgspec", "websockets"),
    "mcp": ("mcp",),
    "polars": ("polars",),
    "postgres": ("adbc-driver-postgresql", "dagster-postgres", "psycopg2-binary"),
    "s3": ("fsspec", "obstore"),
    "server": ("anyio", "fastapi", "orjson", "prometheus-client"),
}
"""Packages of each extra in pyproject.toml."""

_NOT_SUPPORTED = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
_CHECK_NETWORK = "Check the network, the proxy and {}."


class State(StrEnum):
    """Results of a check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


_COLORS = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        check: Its name.
        state: Its result.
        text: The facts.
        remedy: The next step; empty if there is none.
    """

    check: str
    state: State
    text: str
    remedy: str = ""


_Result = tuple[State, str, str]
"""State, text and remedy."""


def diagnose() -> Iterator[Check]:
    """Run all checks, and yield the result of each."""
    yield _guarded("versions", _versions)
    try:
        settings = load_settings()
    except MarketDataError as error:
        yield Check("settings", State.FAIL, str(error), "Correct it and run this again. The other checks need it.")
        return
    yield _guarded("settings", _settings)
    yield _guarded("universe", partial(_universe, settings))
    yield from check_disk(settings)
    if settings.postgres:
        yield from _team(settings)
    yield _guarded("records", partial(_records, settings))
    yield from _network(settings)


def _guarded(name: str, check: Callable[[], _Result], remedy: str = "") -> Check:
    """Run a check. An error becomes its result, with ``remedy``."""
    try:
        return Check(name, *check())
    except HostOffError as error:  # its text has the remedy
        return Check(name, State.FAIL, str(error))
    except MarketDataError as error:
        return Check(name, State.FAIL, str(error), remedy)
    except Exception as error:  # noqa: BLE001 - this command reports every fault
        text = faults.sentence(error)
        if text is not None:
            return Check(name, State.FAIL, text, remedy)
        return Check(name, State.FAIL, f"{type(error).__name__}: {error}", "This is a bug: report it with this line.")


# --- this installation ------------------------------------------------------------------------------------------------


def _versions() -> _Result:
    packages = ", ".join(f"{name} {version(name)}" for name in _SHOWN_PACKAGES)
    system = f"{platform.system()} {platform.release()}"
    there = [extra for extra, needed in EXTRAS.items() if all(map(_is_installed, needed))]
    absent = ", ".join(extra for extra in EXTRAS if extra not in there)
    extras = f"Extras: {', '.join(there) or 'none'}{f' (not installed: {absent})' if absent else ''}."
    text = f"market-data {__version__}, Python {platform.python_version()}, {packages}, {system}. {extras}"
    return State.OK, text, ""


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _settings() -> _Result:
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    names = {*EnvSettingsSource(Settings).env_vars, *DotEnvSettingsSource(Settings).env_vars}
    given = sorted(name for name in map(str.upper, names) if name.startswith(PREFIX))
    unknown = [name for name in given if name not in known]
    if not unknown:
        return State.OK, f"{counted(len(given), 'setting')} given, and the names are known.", ""
    near = [f"{name} (did you mean {found[0]}?)" for name in unknown if (found := get_close_matches(name, known, 1))]
    far = [name for name in unknown if not get_close_matches(name, known, 1)]
    return (
        State.WARN,
        f"No setting has this name: {', '.join([*near, *far])}. It has no effect.",
        "Correct or remove the name in the environment or in .env.",
    )


def _universe(settings: Settings) -> _Result:
    if not settings.universe.exists():
        remedy = f"`market-data add BTCUSDT 1h --from 2024-01-01` begins one. {PREFIX}UNIVERSE names another file."
        return State.WARN, f"{settings.universe} does not exist.", remedy
    return State.OK, f"{settings.universe} lists {len(load_universe(settings.universe).series()):,} series.", ""


def _records(settings: Settings) -> _Result:
    layout = Layout(settings.root)
    if not layout.dagster_home.exists():
        return State.OK, f"There are no records in {layout.dagster_home} yet.", ""
    from market_data_pipeline.defs.platform.home import damaged_database, open_instance, recording

    with recording(layout), open_instance(layout) as instance:
        runs = instance.get_runs_count()
        if settings.postgres:
            return State.OK, f"PostgreSQL has {counted(runs, 'run')}.", ""
        if broken := damaged_database(layout.dagster_home):
            raise sqlite3.DatabaseError(f"{broken} is damaged")
    size = size_of_records(layout.dagster_home)
    text = f"{layout.dagster_home} has {counted(runs, 'run')} in {in_bytes(size)}."
    return (State.WARN, text, "`market-data prune` removes old runs.") if size > BIG else (State.OK, text, "")


# --- the team ---------------------------------------------------------------------------------------------------------


def _team(settings: Settings) -> Iterator[Check]:
    """Check PostgreSQL, the broker, and that the workers have this version and universe."""
    postgres = _guarded("postgres", _postgres)
    yield postgres
    if settings.broker and postgres.state is not State.FAIL:
        yield _guarded("workers", partial(_workers, settings), f"Check {PREFIX}BROKER, and that the broker runs.")


def _postgres() -> _Result:
    from market_data_pipeline.team.current import current_team

    team = current_team()
    if team is None:
        return State.FAIL, f"{PREFIX}POSTGRES names no database.", ""
    facts = team.facts()
    text = (
        f"PostgreSQL {facts.version} at {team.name}, {facts.used} of {facts.allowed} connections used, "
        f"{in_bytes(facts.size)}."
    )
    if not facts.keeps_sessions:
        remedy = "Use its own address: through a pooler in transaction mode, two hosts could write one series."
        return State.FAIL, f"{text} Sessions end with each transaction.", remedy
    if facts.used > _FULL * facts.allowed:
        return State.WARN, text, "Raise max_connections: a run uses up to three, the UI and the daemon up to 20."
    return State.OK, text, ""


_FULL = 0.8
"""Share of the connections of PostgreSQL from which the check warns."""


def _workers(settings: Settings) -> _Result:
    from market_data_pipeline.defs.platform.queues import QUEUES, build_of, workers_of

    found = workers_of(settings.broker)
    if not found:
        return State.WARN, "The broker answers, and no worker does.", "Start `market-data worker` on each host."
    here = build_of(settings)
    other = {worker.name: worker.build.differs(here) for worker in found if worker.build.differs(here)}
    text = f"{counted(len(found), 'worker')}: {', '.join(sorted(worker.name for worker in found))}."
    if other:
        which = "; ".join(f"{name} has {differs}" for name, differs in sorted(other.items()))
        return State.FAIL, f"{text} {which}.", "Install the same version and universe on all hosts."
    if empty := sorted(set(QUEUES) - {queue for worker in found for queue in worker.queues}):
        return State.WARN, f"{text} None takes runs from {', '.join(empty)}.", "Start one without --queue."
    return State.OK, text, ""


# --- the disk ---------------------------------------------------------------------------------------------------------


def check_disk(settings: Settings) -> Iterator[Check]:
    """Check the disk of the data folder. If the folder does not exist, check the nearest one above it."""
    try:
        folder = existing(Layout(settings.root).local)
    except (MarketDataError, OSError) as error:
        yield Check("disk", State.FAIL, faults.sentence(error) or str(error), f"Check {PREFIX}DIR.")
        return
    yield _guarded("disk space", partial(_space, folder))
    writable = _guarded("disk writable", partial(_writable, folder), f"Check {PREFIX}DIR.")
    yield writable
    if writable.state is State.OK:
        yield _guarded("disk locks", partial(_locks, folder))
        yield _guarded("disk fsync", partial(_fsync, folder))


def _space(folder: Path) -> _Result:
    free = shutil.disk_usage(folder).free
    text = f"{in_bytes(free)} free in {folder}."
    if free >= LITTLE_FREE:
        return State.OK, text, ""
    return State.FAIL if free < LEAST_FREE else State.WARN, text, "Free some space, or move the data folder."


def _writable(folder: Path) -> _Result:
    _fault_of(lambda _: None, folder)
    return State.OK, f"{folder} is writable.", ""


def _locks(folder: Path) -> _Result:
    if fault := _fault_of(lambda file: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB), folder):
        text = f"The file system of {folder} has no locks ({fault}). Marker files replace them."
        return State.WARN, text, "Do not write to it from two machines at the same time."
    return State.OK, "The file system has locks (flock).", ""


def _fsync(folder: Path) -> _Result:
    if fault := _fault_of(lambda file: os.fsync(file.fileno()), folder):
        text = f"The file system of {folder} cannot flush files ({fault}). A power cut may lose the last ones."
        return State.WARN, text, "After a power cut, run `market-data verify --local`."
    return State.OK, "The file system flushes files (fsync).", ""


def _fault_of(call: Callable[[IO[bytes]], object], folder: Path) -> str | None:
    """Call with a small file in the folder. Return the error if the file system does not support the call."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".market-data-doctor-") as file:
        file.write(b"market-data doctor")
        file.flush()
        try:
            call(file)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            return error.strerror
    return None


# --- the network and the clock ----------------------------------------------------------------------------------------


def _network(settings: Settings) -> Iterator[Check]:
    patient = settings.model_copy(
        update={
            "timeout_seconds": min(settings.timeout_seconds, _TIMEOUT_SECONDS),
            "retries": min(settings.retries, _RETRIES),
        }
    )
    with ThreadPoolExecutor(2 + len(Market)) as pool:
        url, listing_url = f"{PREFIX}VISION_URL", f"{PREFIX}VISION_LISTING_URL"
        archive = pool.submit(_guarded, "archive", partial(_archive, patient), _CHECK_NETWORK.format(url))
        listing = pool.submit(_guarded, "listing", partial(_listing, patient), _CHECK_NETWORK.format(listing_url))
        hosts = [pool.submit(_rest, market, patient) for market in _markets(settings)]
        yield archive.result()
        yield listing.result()
        found = [host.result() for host in hosts]
    yield from (reached for reached, _ in found)
    yield _clock([one for _, clocks in found for one in clocks])


def _markets(settings: Settings) -> Iterable[Market]:
    """Return the markets of the universe with REST, or all such markets if it lists none."""
    try:
        universe = load_universe(settings.universe) if settings.universe.exists() else Universe((), {})
        used = {key.market for key in universe.series()}
    except (MarketDataError, OSError):  # the check of the universe reports it
        used = set()
    markets = [market for market in Market if MARKETS[market].has_rest]
    return [market for market in markets if market in used] or markets


def _archive(settings: Settings) -> _Result:
    from market_data_pipeline.sources.binance.archive import ArchiveClient

    with closing(ArchiveClient(settings)) as archive:
        file = archive.fetch(_SMALL_FILE)
    if file is None:
        return State.WARN, f"{settings.vision_url} answers, but has no {_SMALL_FILE}.", f"Check {PREFIX}VISION_URL."
    return State.OK, f"{settings.vision_url} answers.", ""


def _listing(settings: Settings) -> _Result:
    from market_data_pipeline.sources.binance.archive import ArchiveClient

    with closing(ArchiveClient(settings)) as archive:
        folders = archive.list_folders("data/")
    if not folders:
        remedy = f"Check {PREFIX}VISION_LISTING_URL."
        return State.FAIL, f"{settings.vision_listing_url} lists nothing below data/.", remedy
    return State.OK, f"{settings.vision_listing_url} answers.", ""


def _rest(market: Market, settings: Settings) -> tuple[Check, list[Check]]:
    """Ask a REST host for its clock. An empty span of candles needs nothing else."""
    name, remedy = f"rest {market}", _CHECK_NETWORK.format(f"{PREFIX}{market.upper()}_URL")
    clocks: list[Check] = []

    def ask() -> _Result:
        from market_data_pipeline.sources.binance.rest import RestApi

        key = SeriesKey(EXCHANGE, market, DataType.KLINES, ANCHORS[market], "1d")
        with closing(RestApi(market, settings)) as rest:
            try:
                server = rest.klines(key, 0, 0).asked_at
            except RestAnswerError as error:
                rest.first_candle_day(key)  # the host answers, so its time or ours is wrong
                clocks.append(Check("clock", State.FAIL, str(error)))
            else:
                clocks.append(_offset(server - clock.now()))
        return State.OK, f"{settings.rest_url(market)} answers.", ""

    return _guarded(name, ask, remedy), clocks


def _offset(offset: timedelta) -> Check:
    side = "behind" if offset > timedelta() else "ahead of"
    text = f"This machine's clock is {abs(offset.total_seconds()):.1f} s {side} Binance's."
    if abs(offset) < _CLOCK_WARNS_FROM:
        return Check("clock", State.OK, text)
    return Check("clock", State.WARN, text, "Set this machine's clock (NTP).")


def _clock(clocks: list[Check]) -> Check:
    """Return the best result. A single host with a wrong clock is no fault of this machine."""
    if not clocks:
        return Check("clock", State.WARN, "No REST host answered, so the clock is not checked.", "See the lines above.")
    return min(clocks, key=lambda one: list(State).index(one.state))


# --- the command ------------------------------------------------------------------------------------------------------


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check network, disk, clock and settings.

    Also checks universe.yaml and Dagster's records. Prints a line for each check: ok, warn or fail, and the remedy.
    Sends one or two small requests to each host. Changes no stored data.

    Exit codes: 0 no check fails, 1 a check fails.
    """
    found = []
    for one in diagnose():
        found.append(one)
        if not as_json:
            out().print(_line(one), soft_wrap=True)
    if as_json:
        print_json(asdict(one) for one in found)
    failed = sum(one.state is State.FAIL for one in found)
    aside().print(f"{failed} of {counted(len(found), 'check')} failed." if failed else "No check failed.")
    end(ExitCode.of(not failed))


def _line(one: Check) -> Text:
    text = " ".join(f"{one.text} {one.remedy}".split())
    return Text.assemble((f"{one.state:<4}", _COLORS[one.state]), f"  {one.check:<13}  {text}")
