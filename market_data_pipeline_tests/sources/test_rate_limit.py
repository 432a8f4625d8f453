"""The REST budget on disk: a private folder, a record that survives damage, and no number that a wrong clock wrote."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from datetime import UTC, date, datetime
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from market_data_pipeline.errors import HostOffError
from market_data_pipeline.model import waits
from market_data_pipeline.model.series import Market
from market_data_pipeline.model.waits import Stop, StoppedError
from market_data_pipeline.sandbox import Status
from market_data_pipeline.sources import rate_limit as budget_module
from market_data_pipeline.sources.binance.rest import RestApi
from market_data_pipeline.sources.rate_limit import LONGEST_BAN_SECONDS, WeightBudget, shared_folder
from market_data_pipeline_tests.support.world import World, klines

DAY = 86_400.0


class Clock:
    """The machine's clock, as the budget sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_790_000_012.0
        monkeypatch.setattr(budget_module, "time", SimpleNamespace(time=lambda: self.now))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def opened(folder: Path) -> WeightBudget:
    return WeightBudget("example.org", 100, 0.5, folder)


def granted(budget: WeightBudget, weight: int) -> bool:
    """Return True if a budget has weight left now."""

    def refuse() -> None:
        if next(looks) > 0:
            raise _MustWait

    looks = count()
    try:
        budget.acquire(weight, refuse)
    except _MustWait:
        return False
    return True


class _MustWait(Exception):  # noqa: N818
    """There is no weight left now."""


def record(folder: Path) -> Path:
    (path,) = folder.glob("*.sqlite")
    return path


# --- what is on record ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [DAY / 24, 2 * DAY, 3650 * DAY, 10**12])
def test_weight_spent_under_a_clock_ahead_does_not_count(tmp_path: Path, machine: Clock, ahead: float) -> None:
    machine.now += ahead
    spent = opened(tmp_path)
    assert granted(spent, 50)
    assert not granted(spent, 1)
    machine.now -= ahead
    assert granted(spent, 50), "the clock is right again"
    assert not granted(opened(tmp_path), 1)


def test_weight_spent_under_a_clock_behind_does_not_count(tmp_path: Path, machine: Clock) -> None:
    spent = opened(tmp_path)
    assert granted(spent, 50)
    machine.now += 2 * DAY
    assert granted(spent, 50)
    assert not granted(spent, 1)


@pytest.mark.parametrize(
    "values",
    ["('soon', 5)", "(9e999, 5)", "(-9e999, 5)", "(NULL, 5)", "(X'00', 5)", f"({'9' * 400}, 5)", "({now}, -40)",
     "({now}, NULL)", "({now}, 'much')", "({now}, 9e999)", f"({{now}}, {'9' * 400})", "({now}, 1000000)",
     "({now}, 0.5)"],
)  # fmt: skip
def test_no_value_on_record_stops_rest(tmp_path: Path, machine: Clock, values: str) -> None:
    budget = opened(tmp_path)
    with sqlite3.connect(record(tmp_path)) as file:
        file.execute(f"INSERT INTO spent VALUES {values.format(now=machine.now)}")
    file.close()
    assert granted(budget, 50)
    assert not granted(budget, 1)


@pytest.mark.parametrize("what", ["used", "pause until", "banned until"])
@pytest.mark.parametrize("at", ["NULL", "'now'", "9e999", "{now} + 90000", "-1", "{now}"])
@pytest.mark.parametrize("value", ["NULL", "'x'", "9e999", "-9e999", "{now} + 864000", f"{'9' * 400}"])
def test_no_entry_of_the_record_blocks_forever(tmp_path: Path, machine: Clock, what: str, at: str, value: str) -> None:
    budget = opened(tmp_path)
    with sqlite3.connect(record(tmp_path)) as file:
        values = f"{at.format(now=machine.now)}, {value.format(now=machine.now)}"
        file.execute(f"INSERT INTO heard VALUES ('{what}', {values})")
    file.close()
    machine.now += 60
    assert granted(budget, 50)
    assert budget.banned_until() is None


def test_pause_applies_to_all_processes_and_clock_changes(tmp_path: Path, machine: Clock) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    first.pause(30)
    first.pause(5)
    assert not granted(second, 1)
    machine.now += 31
    assert granted(second, 1)
    machine.now += 5 * DAY
    first.pause(float("inf"))
    first.pause(1e300)
    assert not granted(second, 1)
    machine.now -= 5 * DAY
    assert granted(second, 1)


# --- bans -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -1.0, 1e300, 4 * DAY, 120.0])
def test_a_ban_lasts_three_days_at_most(tmp_path: Path, machine: Clock, seconds: float) -> None:
    budget = opened(tmp_path)
    budget.ban(seconds)
    until = budget.banned_until()
    assert until is None or until <= datetime.fromtimestamp(machine.now + LONGEST_BAN_SECONDS, UTC)
    machine.now -= 1
    assert seconds < 0 or budget.banned_until() is not None, "the clock may go back a second"
    machine.now += LONGEST_BAN_SECONDS + 1
    assert budget.banned_until() is None


def test_a_ban_of_a_wrong_clock_ends_with_it(tmp_path: Path, machine: Clock) -> None:
    budget = opened(tmp_path)
    machine.now += 2 * DAY
    budget.ban(120)
    assert budget.banned_until() is not None
    machine.now -= 2 * DAY
    assert budget.banned_until() is None


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize(
    "damage",
    [b"", b"\x00" * 8192, os.urandom(3000), b"SQLite format 3\x00" + b"\xff" * 5000, "tail", "tables", "gone"],
    ids=["empty", "zeroed", "garbled", "header only", "pages zeroed", "other tables", "deleted"],
)
def test_damaged_record_is_rebuilt(
    tmp_path: Path, damage: bytes | str, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    budget = opened(tmp_path)
    assert granted(budget, 10)
    path = record(tmp_path)
    if when == "before":
        budget.close()
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    elif damage == "tail":
        whole = path.read_bytes()
        path.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    elif damage == "tables":
        with sqlite3.connect(path) as file:
            file.executescript("DROP TABLE spent; CREATE TABLE spent (other TEXT);")
        file.close()
    else:
        path.unlink()
    again = opened(tmp_path) if when == "before" else budget
    assert granted(again, 50) or granted(again, 40)
    fresh = opened(tmp_path)
    if granted(fresh, 50):
        assert not granted(budget, 1), "it takes up the new record"
    assert not granted(fresh, 50)
    said = [line for line in caplog.messages if "was damaged" in line]
    assert len(said) <= 1
    assert all(str(path) in line for line in said)


def test_unwritable_record_is_reported(tmp_path: Path) -> None:
    budget = opened(tmp_path)
    budget.close()
    path = record(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(HostOffError, match="is unusable") as told:
        opened(tmp_path)
    assert str(path) in str(told.value)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_the_folder_and_its_files_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        budget = opened(tmp_path / "new" / "budget")
        budget.ban(10)
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "budget").stat().st_mode & 0o777 == 0o700
    assert record(tmp_path / "new" / "budget").stat().st_mode & 0o777 == 0o600


def a_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    folder.symlink_to(folder.parent / "elsewhere")


def group_writable(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)


def foreign(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 12345, 12345)


def a_file(folder: Path) -> None:
    folder.write_text("")


@pytest.mark.parametrize(
    ("make", "said"),
    [(a_link, "is a link"), (group_writable, "is writable by others"), (foreign, "uid 12345"),
     (a_file, "is not a folder")],
)  # fmt: skip
def test_a_folder_that_is_not_private_is_refused(tmp_path: Path, make: object, said: str) -> None:
    assert callable(make)
    if make is foreign and os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    make(tmp_path / "budget")
    with pytest.raises(HostOffError, match=said) as told:
        opened(tmp_path / "budget")
    assert "MARKET_DATA_BUDGET_DIR" in str(told.value) or "chmod 700" in str(told.value)


def test_a_record_that_is_a_link_is_refused(tmp_path: Path) -> None:
    budget = opened(tmp_path)
    budget.close()
    path = record(tmp_path)
    other = path.rename(tmp_path / "elsewhere")
    path.symlink_to(other)
    with pytest.raises(HostOffError, match="is unusable"):
        opened(tmp_path)


def test_the_default_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert shared_folder() == tmp_path / "home" / ".cache" / "market-data-pipeline"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert shared_folder() == tmp_path / "cache" / "market-data-pipeline"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert shared_folder() == tmp_path / "home" / ".cache" / "market-data-pipeline"


@pytest.mark.parametrize("home", ["/", "/dev/null/nobody", "a file"])
def test_without_a_home_the_runtime_or_temporary_folder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home") if home == "a file" else home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert shared_folder() == tmp_path / "run" / "market-data-pipeline"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    assert shared_folder().parent == tmp_path / "tmp"
    assert shared_folder().stat().st_mode & 0o777 == 0o700


def test_a_refused_folder_fails_what_needs_rest_and_nothing_else(world: World) -> None:
    group_writable(world.root / "budget")
    archived, today = world.ingest(klines("BTCUSDT", "1h"), [date(2026, 3, 3), date(2026, 3, 5)])
    assert archived.row.is_stored_final
    assert "chmod 700" in (today.row.reason or "")


# --- one budget for um and cm -----------------------------------------------------------------------------------------


def test_um_and_cm_take_from_one_budget(world: World) -> None:
    world.set(weight_share=20 / 2400)
    um, cm, spot = (RestApi(market, world.settings) for market in (Market.UM, Market.CM, Market.SPOT))
    start = 1_772_500_000_000_000
    assert um.first_candle_day(klines("BTCUSDT", "1m", "um"))
    um._budget.acquire(18)
    assert not granted(cm._budget, 1)
    assert spot.klines(klines("BTCUSDT", "1h"), start, start + 3_600_000_000 * 5).table.num_rows
    for api in (um, cm, spot):
        api.close()


def test_a_ban_of_one_futures_host_is_one_of_both(world: World) -> None:
    world.set(cm_url=world.settings.cm_url.replace("127.0.0.1", "localhost"))
    um, cm = (RestApi(market, world.settings) for market in (Market.UM, Market.CM))
    world.sandbox.faults.add(Status(path="/fapi/v1/klines", status=418, retry_after=120))
    for api, symbol in ((um, "BTCUSDT"), (cm, "BTCUSD_PERP")):
        with pytest.raises(HostOffError, match="banned"):
            api.first_candle_day(klines(symbol, "1m", api.market))
        api.close()
    assert len(world.asked()) == 1


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_a_stop_ends_the_wait_for_weight(tmp_path: Path) -> None:
    stop = Stop()
    budget = WeightBudget("example.org", 100, 0.5, tmp_path, stop)
    budget.acquire(50)
    looks = count()

    def refuse() -> None:
        if next(looks) == 1:
            stop.set()

    with pytest.raises(StoppedError):
        budget.acquire(1, refuse)


def test_long_wait_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waits, "SAY_AFTER_SECONDS", 10.0)
    monkeypatch.setattr(waits, "_said", {})
    monkeypatch.setattr(Stop, "sleep", lambda *_: None)
    budget = opened(tmp_path)
    budget.acquire(50)
    for _ in range(2):
        assert not granted(budget, 1)
    (line,) = [line for line in caplog.messages if "example.org" in line]
    assert line.startswith("Waiting for example.org (REST): your processes used 50 of their 50 weight")
    budget.pause(90)
    assert not granted(budget, 1)
    assert "it requested a pause, 90 s left" in caplog.messages[-1]
