"""What fixed work takes in requests, events, commits, files opened and bytes read: no test here looks at a clock.

A benchmark shows that something became slower on one machine; these show that more is done than is needed, on any.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import dagster as dg
import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.defs.in_process import run_ingest
from market_data_pipeline.defs.keys import asset_key_of, coverage_key_of
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.model.outcomes import Action
from market_data_pipeline.model.series import Market
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines

BTC, ETH = klines("BTCUSDT", "1m"), klines("ETHUSDT", "1m")
MONTH = days("2026-01-01", "2026-01-31")
TRADES = agg_trades("BTCUSDT")
UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT, ETHUSDT]
    klines: {intervals: [1m], from: 2026-01-01}
"""
SPOT_COVERAGE = coverage_key_of(Market.SPOT)
LOCK = "spot:\n  BTCUSDT: [{from: 2017-08-17, until: null}]\n  ETHUSDT: [{from: 2017-08-17, until: null}]\n"

linux = pytest.mark.skipif(sys.platform != "linux", reason="files opened are counted by inotify, bytes by /proc")


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """With a universe, and no home of Dagster's but its own."""
    universe = world.root / "universe.yaml"
    universe.write_text(UNIVERSE)
    universe.with_name("universe.lock.yaml").write_text(LOCK)
    world.set(universe=universe)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return world


def kinds(world: World) -> Counter[str]:
    """Requests since the last ``forget``, by what they were for."""
    found = Counter[str]()
    for path in world.asked():
        name = path.rsplit("/", 1)[-1].split("?")[0]
        found["checksum" if name.endswith(".CHECKSUM") else "zip" if name.endswith(".zip") else "other"] += 1
    return found


@contextmanager
def opened(folder: Path) -> Iterator[Counter[str]]:
    """How often each file below a folder is opened, by whatever library; complete when the block is left."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = Counter[str]()
    watching = libc.inotify_init1(os.O_NONBLOCK)
    watched = {
        libc.inotify_add_watch(watching, os.fsencode(path), 0x20): path  # IN_OPEN
        for path in (folder, *folder.rglob("*"))
        if path.is_dir()
    }
    try:
        yield found
        data = b"".join(iter(lambda: _read(watching), b""))
    finally:
        os.close(watching)
    at = 0
    while at < len(data):
        which, mask, _, length = struct.unpack_from("iIII", data, at)
        name = data[at + 16 : at + 16 + length].rstrip(b"\0").decode()
        if name and not mask & 0x40000000:  # IN_ISDIR
            found[str((watched[which] / name).relative_to(folder))] += 1
        at += 16 + length


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 20)
    except BlockingIOError:
        return b""


def bytes_read() -> int:
    """Bytes that this process has read so far, by whatever library."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_month_is_two_requests(world: World) -> None:
    """Its zip and the zip's checksum, however many days it has."""
    world.ingest(BTC, MONTH)
    assert kinds(world) == {"zip": 1, "checksum": 1}


def test_a_day_is_two_requests(world: World) -> None:
    world.ingest(TRADES, MONTH[:5])
    assert kinds(world) == {"zip": 5, "checksum": 5}


def test_stored_days_need_no_request(world: World) -> None:
    world.ingest(BTC, MONTH)
    world.forget()
    assert {result.action for result in world.ingest(BTC, MONTH)} == {Action.HELD}  # type: ignore[union-attr]
    assert kinds(world) == {}


@linux
def test_stored_days_are_not_opened(world: World) -> None:
    """A run over years that are held reads the ledger, and lists the folder."""
    world.ingest(BTC, MONTH)
    with opened(world.layout.folder(BTC)) as files:
        world.ingest(BTC, MONTH)
    assert files == {}


def test_backfill_of_two_series_is_one_run_with_an_event_per_day(world: World) -> None:
    report = run_ingest(world.settings, {BTC: MONTH, ETH: MONTH})
    assert report.count(Action.FETCHED) == 62
    assert kinds(world) == {"zip": 2, "checksum": 2}
    with open_instance(world.layout) as instance:
        coverage, run = instance.get_runs()  # newest first
        assert coverage.asset_selection == {SPOT_COVERAGE}  # once for both, since both have flat candles
        events = Counter(entry.dagster_event_type for entry in instance.all_logs(run.run_id) if entry.is_dagster_event)
        evaluated = Counter(
            (key, check, record.run_id == run.run_id)
            for key in (BTC, ETH)
            for check in ("integrity", "gaps")
            for record in instance.event_log_storage.get_asset_check_execution_history(
                dg.AssetCheckKey(asset_key_of(key), check), limit=100
            )
        )
    told = {kind.value: count for kind, count in events.items() if kind is not None}
    assert told.pop("ASSET_MATERIALIZATION") == 62
    # The rest belongs to the run and its two steps: whatever the number of days.
    assert sum(told.values()) <= 50
    flat = Counter(outcome.key for outcome in report.outcomes if outcome.row.quiet)
    assert 0 < flat.total() < 10
    assert evaluated == {(key, check, True): 31 for key in (BTC, ETH) for check in ("integrity", "gaps")} | {
        (key, "gaps", False): days
        for key, days in flat.items()  # told anew by the coverage
    }


def test_stored_and_recorded_days_need_no_run(world: World) -> None:
    run_ingest(world.settings, {BTC: MONTH, ETH: MONTH})
    with open_instance(world.layout) as instance:
        before = [run.run_id for run in instance.get_runs()]
    world.forget()
    assert run_ingest(world.settings, {BTC: MONTH, ETH: MONTH}).count(Action.HELD) == 62
    with open_instance(world.layout) as instance:
        assert [run.run_id for run in instance.get_runs()] == before
    assert kinds(world) == {}


def test_flat_candles_of_a_lone_series_are_classified_once(world: World) -> None:
    """No other symbol tells what they mean, and asking REST again would not either."""
    report = run_ingest(world.settings, {BTC: MONTH})
    flat = [outcome.row for outcome in report.outcomes if outcome.row.quiet]
    assert flat
    world.forget()
    assert run_ingest(world.settings, {BTC: MONTH}).count(Action.HELD) == 31
    with open_instance(world.layout) as instance:
        coverage, _ = instance.get_runs()
    assert coverage.asset_selection == {SPOT_COVERAGE}
    assert kinds(world) == {}


def test_backfill_without_flat_candles_is_one_run(world: World) -> None:
    world.settings.universe.write_text(UNIVERSE.replace("1m", "1h"))
    hours = klines("BTCUSDT", "1h")
    report = run_ingest(world.settings, {hours: MONTH})
    assert report.count(Action.FETCHED) == 31
    assert not any(outcome.row.quiet for outcome in report.outcomes)
    with open_instance(world.layout) as instance:
        assert instance.get_runs_count() == 1


@linux
def test_a_query_reads_each_file_of_its_days_once(world: World) -> None:
    world.ingest(BTC, MONTH)
    folder = world.layout.folder(BTC)
    wanted = [f"2026-01-{number:02}.parquet" for number in range(10, 15)]
    size = sum((folder / name).stat().st_size for name in wanted)
    data = MarketData(world.root)
    data.klines("BTCUSDT", "1m", date(2026, 1, 9), date(2026, 1, 10)).arrow()  # what is read once a process

    before = bytes_read()
    with opened(folder) as files:
        rows = data.klines("BTCUSDT", "1m", date(2026, 1, 10), date(2026, 1, 15)).arrow()
    assert size <= bytes_read() - before < size + (16 << 10)
    assert files == dict.fromkeys(wanted, 1)
    assert rows.num_rows == 5 * 1440


@linux
def test_a_query_of_some_columns_leaves_the_others_on_disk(world: World) -> None:
    world.ingest(TRADES, MONTH[:2])
    size = world.layout.file(TRADES, MONTH[1]).stat().st_size
    data = MarketData(world.root)
    data.agg_trades("BTCUSDT", date(2026, 1, 1), date(2026, 1, 2)).arrow()

    before = bytes_read()
    data.agg_trades("BTCUSDT", date(2026, 1, 2), date(2026, 1, 3), columns=["transact_time", "is_buyer_maker"]).arrow()
    assert bytes_read() - before < 0.7 * size


@linux
def test_status_opens_the_ledger_of_each_series_and_no_day(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    market_data = shell(world, monkeypatch, UNIVERSE, LOCK)
    assert (
        market_data("backfill", "--symbol", "BTCUSDT", "--from", "2026-01-02", "--through", "2026-01-04").exit_code == 0
    )
    others = [klines(f"C{number}USDT", "1m") for number in range(20)]
    for other in others:
        world.layout.ledger(other).parent.mkdir(parents=True)
        shutil.copyfile(world.layout.ledger(BTC), world.layout.ledger(other))
        shutil.copytree(world.layout.folder(BTC), world.layout.folder(other), copy_function=os.link)
    publish_catalog(world.layout)  # which status does itself if series came by hand
    with opened(world.layout.root) as files:
        shown = market_data("status").stdout
    assert all(f"{other.symbol}/1m" in shown for other in others)
    assert {name: times for name, times in files.items() if name.endswith(".parquet")} == {
        str(path.relative_to(world.layout.root)): 1
        for path in (*(world.layout.ledger(key) for key in (BTC, *others)), world.layout.collected)
    }
