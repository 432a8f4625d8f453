"""What somebody at a shell sees of ``market-data``: rows, tables, messages and exit codes."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from functools import partial
from pathlib import Path

import click
import numpy as np
import pytest
import requests
from click.testing import CliRunner, Result
from pydantic_core import PydanticUndefined

from market_data_pipeline import sandbox as made_up
from market_data_pipeline.cli import main
from market_data_pipeline.cli.demo import as_typed
from market_data_pipeline.cli.download import concern_about
from market_data_pipeline.cli.plan import Size, day_size, size_of
from market_data_pipeline.cli.selection import Selection, choose
from market_data_pipeline.coverage.holdings import StoredDays, stored_days
from market_data_pipeline.defs.keys import coverage_key_of
from market_data_pipeline.defs.platform.home import open_instance
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import Market
from market_data_pipeline.sandbox import Delay, Sandbox, Status, WrongChecksum
from market_data_pipeline.settings import PREFIX, Settings
from market_data_pipeline.universe import Universe, load_universe, parse_lock, parse_universe
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines, symbols_with

PROJECT = Path(__file__).parents[2]

IMPERATIVES = {
    "Accept",
    "Add",
    "Check",
    "Compare",
    "Copy",
    "Fetch",
    "Follow",
    "List",
    "Look",
    "Merge",
    "Publish",
    "Remove",
    "Run",
    "Serve",
    "Show",
    "Store",
    "Write",
}
"""First words of help texts."""

UNIVERSE = """\
# mine
collect:
  - market: spot
    symbols: [BTCUSDT, LUNAUSDT]
    klines: {intervals: [1h, 1d], from: 2022-01-01}
  - market: um
    symbols: [ETHUSDT]
    klines: {intervals: [1h], from: 2022-01-01}
    aggTrades: {from: 2 days ago}
"""
LOCK = """\
spot:
  BTCUSDT: [{from: 2017-08-17, until: null}]
  LUNAUSDT: [{from: 2020-08-21, until: 2022-05-13}]
um:
  ETHUSDT: [{from: 2019-11-27, until: null}]
"""
ONE_WEEK = ("backfill", "--symbol", "BTCUSDT", "--interval", "1h", "--from", "2026-02-02", "--through", "2026-02-08")
BTC = klines("BTCUSDT", "1h")

DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """Run the command in a world of its own: today is 2026-03-05."""
    return shell(world, monkeypatch, UNIVERSE, LOCK)


# --- backfill and sync -------------------------------------------------------------------------------------------


def test_second_backfill_downloads_nothing(world: World, market_data: MarketData) -> None:
    result = market_data(*ONE_WEEK)
    assert result.exit_code == 0, result.output
    assert "binance/spot/klines/BTCUSDT/1h: 7 days, 7 fetched; 168 rows" in result.stderr
    assert "7 days of 1 series: all there." in result.stderr
    assert list(storage.list_dates(world.layout.folder(BTC))) == days("2026-02-02", "2026-02-08")
    world.forget()
    again = market_data(*ONE_WEEK)
    assert again.exit_code == 0
    assert "7 days, 7 stored before; 0 rows, 0 bytes downloaded" in again.stderr
    assert world.asked(".zip") == []


def test_failed_day_is_named_with_its_reason_and_exit_code_1(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(WrongChecksum(path=r"BTCUSDT-1h-2026-02-0[45]\.zip"))
    result = market_data(*ONE_WEEK)
    assert result.exit_code == 1
    assert "7 days, 5 fetched, 2 failed" in result.stderr
    assert re.search(
        r"2 days failed:\n.*BTCUSDT/1h 2026-02-04: checksum: BTCUSDT-1h-2026-02-04.zip does", result.stderr
    )
    assert len(storage.list_dates(world.layout.folder(BTC))) == 5
    world.sandbox.faults.clear()
    world.forget()
    assert market_data(*ONE_WEEK).exit_code == 0
    assert sorted(p for p in world.asked(".zip") if p.endswith(".zip")) == [
        f"/{BTC.archive_daily(day)}" for day in days("2026-02-04", "2026-02-05")
    ]


def test_ctrl_c_leaves_finished_days_stored(world: World, market_data: MarketData) -> None:
    world.sandbox.set_time(None)
    world.sandbox.faults.add(Delay(latency=0.5, path=r"\.zip$"))
    command = [sys.executable, "-m", "market_data_pipeline.cli", *ONE_WEEK[:3], "--from", "2023-01-02"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 180
        while not any(world.layout.folder(BTC).glob("*.parquet")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Stopped. Finished days are stored, and the same command continues from there." in said
    assert "Traceback" not in said
    kept = list(storage.list_dates(world.layout.folder(BTC)))
    assert kept
    assert all(parquet.read_table(world.layout.file(BTC, day)).num_rows == 24 for day in kept)


def test_file_damaged_by_hand_is_replaced(world: World, market_data: MarketData) -> None:
    market_data(*ONE_WEEK)
    path = world.layout.file(BTC, days("2026-02-03", "2026-02-03")[0])
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert market_data(*ONE_WEEK).exit_code == 0
    assert parquet.read_table(path).num_rows == 24


def test_days_outside_the_listing_are_skipped_and_reported(world: World, market_data: MarketData) -> None:
    result = market_data(
        "backfill", "--symbol", "LUNAUSDT", "--interval", "1d", "--from", "2022-05-10", "--through", "2022-05-20"
    )
    assert result.exit_code == 0, result.output
    assert "LUNAUSDT/1d was listed from 2020-08-21 to 2022-05-13: 7 days are left out." in result.stderr
    held = storage.list_dates(world.layout.folder(klines("LUNAUSDT", "1d")))
    assert list(held) == days("2022-05-10", "2022-05-13")


def test_sync_fetches_everything_up_to_now(world: World, market_data: MarketData) -> None:
    (world.root / "universe.yaml").write_text(
        "collect:\n"
        "  - {market: spot, symbols: [BTCUSDT], klines: {intervals: [1h], from: 2026-03-03}}\n"
        "  - {market: um, symbols: [ETHUSDT], aggTrades: {from: 1 day ago}}\n"
    )
    result = market_data("sync")
    assert result.exit_code == 0, result.output
    assert "5 days of 2 series: all there." in result.stderr
    assert world.table(BTC, "2026-03-05").num_rows == 12  # 12:00:30: the candle from 12:00 on is open still
    profile = world.root / "data/lake/binance/um/tradeProfile/daily/ETHUSDT/2026-03-04.parquet"
    assert profile.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--symbol BTC", r"has no symbol 'BTC'.*There are: BTCUSDT, LUNAUSDT, ETHUSDT\. `market-data add`"),
        ("--market um --symbol BTCUSDT", r"has no symbol 'BTCUSDT'.*There are: ETHUSDT"),
        ("--market cm", r"has no market 'cm'.*There are: spot, um"),
        ("--market forex", r"'forex' is not one of 'spot', 'um', 'cm'"),
        ("--interval 7m", r"'7m' is not one of '1s', '1m'"),
        ("--market um --interval 1d", r"has no interval '1d'.*There are: 1h"),
        ("--data-type ticks", r"'ticks' is not one of 'klines', 'aggTrades'"),
        ("--data-type aggTrades --interval 1h", "aggTrades has no interval"),
        ("--from tomorrow", r"--from cannot be 'tomorrow'\. Allowed: a day such as 2020-01-31"),
        ("--from listing", r"--from cannot be 'listing' here\. Name a day"),
        ("--from 2026-02-30", "--from cannot be '2026-02-30'"),
        ("--from 20260201", "--from cannot be '20260201'"),
        ("--through 2026-W09-1", "--through cannot be '2026-W09-1'"),
        ("--from 2026-03-06", r"--from cannot be 2026-03-06, which is in the future; today is 2026-03-05 \(UTC\)"),
        ("--through 2026-04", r"--through cannot be 2026-04-01, which is in the future"),
        ("7m", "'7m' is neither a kline interval nor aggTrades"),
        ("btcusdt", "Symbols are written in capitals: BTCUSDT, not btcusdt"),
        ("BTC", r"has no symbol 'BTC'.*There are: BTCUSDT"),
        ("--from 2026-02-02 --through 2026-02-01", "--through 2026-02-01 is before --from 2026-02-02"),
        (
            "--symbol BTCUSDT --from 2017-01-01 --through 2017-01-02",
            "listed from 2017-08-17 to now: 2 days are left out",
        ),
        ("--symbol LUNAUSDT --from 2023-01-01", "listed until 2022-05-13 only"),
        (
            "--data-type aggTrades --through 2026-01-01",
            r"is collected from 2026-03-03 on \(.*universe\.yaml, line 9\)\. Set an earlier `from:`",
        ),
        (
            "--symbol BTCUSDT --from 2021-01-01",
            r"line 5\), so 2021-01-01 cannot be fetched\. Set",
        ),
        ("--frum 2021-01-01", "No such option"),
    ],
)
def test_invalid_selection_lists_the_choices_with_exit_code_2(
    world: World, market_data: MarketData, arguments: str, says: str
) -> None:
    result = market_data("backfill", *arguments.split())
    assert result.exit_code == 2
    assert re.search(says, result.stderr)
    assert world.sandbox.requests == []


@pytest.mark.parametrize(
    ("first", "last", "days_of"),
    [
        ("2026-02-27", "2026-02-28", ("2026-02-27", "2026-02-28")),
        ("2026-02", "2026-02", ("2026-02-01", "2026-02-28")),
        ("2026", "2026-01", ("2026-01-01", "2026-01-31")),
        ("2026-03", "2026", ("2026-03-01", "2026-03-05")),  # what has not come yet is left out
        ("yesterday", "today", ("2026-03-04", "2026-03-05")),
        ("3 days ago", "yesterday", ("2026-03-02", "2026-03-04")),
        ("1 week ago", "2 days ago", ("2026-02-26", "2026-03-03")),
        ("1 month ago", "2026-02-06", ("2026-02-05", "2026-02-06")),
        ("1 year ago", "2025-03-06", ("2025-03-05", "2025-03-06")),
    ],
)
def test_backfill_takes_days_in_every_form(
    market_data: MarketData, monkeypatch: pytest.MonkeyPatch, first: str, last: str, days_of: tuple[str, str]
) -> None:
    """The disk is full, so that the command names the number of days and stops."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(1, 1, 0))
    said = market_data("backfill", "BTCUSDT", "1h", "--from", first, "--through", last, input="n\n").stderr
    number = len(days(*days_of))
    assert f"{number} day{'s' if number > 1 else ''} would take" in said


def test_arguments_select_several_symbols_and_kinds(market_data: MarketData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(1, 1, 0))

    def number(*arguments: str) -> str:
        return market_data("backfill", *arguments, "--from", "2026-03-04", input="n\n").stderr.split(" would")[0]

    assert number("BTCUSDT", "ETHUSDT", "1h") == "4 days"
    assert number("BTCUSDT", "--symbol", "ETHUSDT", "--interval", "1h") == "4 days"
    assert number("1h", "aggtrades", "ETHUSDT") == "4 days"
    assert number("aggTrades") == "2 days"
    assert number("1d", "BTCUSDT") == "2 days"


def test_wrong_setting_and_missing_universe_end_with_exit_code_2(
    market_data: MarketData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MARKET_DATA_UNIVERSE", str(tmp_path / "nowhere.yaml"))
    for command in ("sync", "status", "ui"):
        result = market_data(command)
        assert result.exit_code == 2
        assert re.search(r"There is no .*nowhere.yaml.*market-data add", result.stderr)
    for url in ("example.org", "https://", "http://example.org:80a", "http://example.org:99999", "http://exa mple.org"):
        monkeypatch.setenv("MARKET_DATA_SPOT_URL", url)
        result = market_data("status")
        assert result.exit_code == 2
        assert "MARKET_DATA_SPOT_URL" in result.stderr
        assert "is not a URL" in result.stderr


def test_setting_that_is_empty_is_as_if_it_were_not_there(
    market_data: MarketData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARKET_DATA_DIR", "")
    assert str(tmp_path / "data") in market_data("status").stdout.replace("\n", "")


def test_budget_folder_that_cannot_be_used_is_named(
    world: World, market_data: MarketData, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.root / "file").touch()
    monkeypatch.setenv("MARKET_DATA_BUDGET_DIR", str(world.root / "file"))
    result = market_data("backfill", "--symbol", "BTCUSDT", "--interval", "1h", "--from", "2026-03-05")
    assert result.exit_code == 1
    assert str(world.root / "file") in result.stderr
    assert "dagster._core" not in result.stderr


def test_make_leaves_the_data_folder_to_the_settings(tmp_path: Path) -> None:
    shutil.copy(PROJECT / "Makefile", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", ".venv/.installed"):  # the newest is last: nothing is installed
        (tmp_path / name).touch()
    command = tmp_path / ".venv" / "bin" / "market-data"
    command.write_text('#!/bin/sh\necho "${MARKET_DATA_DIR-as .env says}"\n')
    command.chmod(0o755)
    said = subprocess.run(["make", "-s", "dev"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "as .env says"


def test_folder_that_cannot_be_written_is_named(world: World, market_data: MarketData) -> None:
    (world.root / "data").write_text("a file where the folder should be")
    result = market_data(*ONE_WEEK)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {world.root / 'data'}")
    assert "Not a directory" in result.stderr


# --- before big downloads ----------------------------------------------------------------------------------------


def test_work_larger_than_the_disk_needs_confirmation(
    world: World, market_data: MarketData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(100_000, 99_000, 1_000))
    refused = market_data(*ONE_WEEK, input="n\n")
    assert refused.exit_code == 1
    assert re.search(
        r"7 days would take about [\d.]+ kB, and the disk has 1.0 kB free.*Go on\?", refused.stderr, re.DOTALL
    )
    assert world.sandbox.requests == []
    assert market_data(*ONE_WEEK, "--yes").exit_code == 0


def test_only_downloads_over_5_gb_need_confirmation() -> None:
    assert concern_about(Size(10, 4_900_000_000, 4_000_000_000), free=10**12) is None
    concern = concern_about(Size(4000, 48_000_000_000, 43_000_000_000), free=10**12)
    assert concern == "4,000 days are about 48.0 GB to download and 43.0 GB on disk, where 1.0 TB are free."


def test_records_of_many_small_days_count_as_well() -> None:
    """400 symbols of daily candles for eight years are little to download, and a million days on record."""
    concern = concern_about(Size(1_200_000, 600_000_000, 2_000_000_000), free=10**12)
    assert concern == "1,200,000 days are about 600.0 MB to download and 6.8 GB on disk, where 1.0 TB are free."
    assert concern_about(Size(1_200_000, 600_000_000, 2_000_000_000), free=6 * 10**9) is not None
    assert concern_about(Size(200_000, 100_000_000, 300_000_000), free=10**12) is None


def test_size_is_estimated_from_stored_days_for_days_not_final() -> None:
    wanted = days("2026-01-01", "2026-01-10")
    first = (wanted[0] - type(wanted[0])(1970, 1, 1)).days
    yes, no = np.ones(4, dtype=bool), np.zeros(4, dtype=bool)
    held = StoredDays(
        np.arange(first, first + 4), yes, np.array([1, 1, 1, 0], dtype=bool), no, no, no, yes * 9, yes * 5_000_000
    )
    key = agg_trades("BTCUSDT")
    assert size_of({key: wanted}, {key: held}).days == 7
    assert size_of({key: wanted}, {key: held}).disk == 35_000_000
    nothing = StoredDays(*(np.empty(0, dtype=t) for t in (int, *[bool] * 5, int, int)))
    assert 4e9 < size_of({key: days("2025-01-01", "2025-12-31")}, {key: nothing}).download < 6e9
    for symbol, interval, actual in (("BTCUSDT", "1m", 69_497), ("BTCUSDT", "1s", 2_363_903)):  # as Binance's zips are
        assert day_size(klines(symbol, interval), nothing)[0] == pytest.approx(actual, rel=0.1)


@pytest.mark.parametrize("command", ["sync", "backfill"])
def test_universe_that_collects_nothing_is_reported(
    world: World, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    result = shell(world, monkeypatch, "collect: []\n")(command)
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert re.search(r"universe\.yaml collects nothing yet\. `market-data add .*` adds a series to it\.", said)
    assert "No requested day is left" not in said


# --- status ------------------------------------------------------------------------------------------------------


def test_status_counts_days_by_series(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(WrongChecksum(path=r"BTCUSDT-1h-2026-03-02"))
    market_data("backfill", "--symbol", "BTCUSDT", "--interval", "1h", "--from", "2026-03-01")
    result = market_data("status", "--json")
    assert result.exit_code == 0
    found = {s["series"]: s for s in json.loads(result.stdout)}
    assert list(found) == [
        "binance/spot/klines/BTCUSDT/1h",
        "binance/spot/klines/BTCUSDT/1d",
        "binance/spot/klines/LUNAUSDT/1h",
        "binance/spot/klines/LUNAUSDT/1d",
        "binance/um/klines/ETHUSDT/1h",
        "binance/um/aggTrades/ETHUSDT",
    ]
    btc = found["binance/spot/klines/BTCUSDT/1h"]
    size = sum(path.stat().st_size for path in world.layout.folder(BTC).glob("*.parquet"))
    assert btc == {
        "series": "binance/spot/klines/BTCUSDT/1h",
        "collected": True,
        "first": "2026-03-01",
        "last": "2026-03-05",
        "held": 3,
        "provisional": 1,
        "incomplete": 0,
        "failed": 1,
        "missing": len(days("2022-01-01", "2026-02-28")),
        "rows": 3 * 24 + 12,
        "bytes": size,
    }
    assert found["binance/spot/klines/LUNAUSDT/1d"]["missing"] == len(days("2022-01-01", "2022-05-13"))
    assert found["binance/um/aggTrades/ETHUSDT"]["missing"] == 2, "today is still growing"
    table = market_data("status").stdout
    assert re.search(r"spot/klines/BTCUSDT/1h +2026-03-01 +2026-03-05 +3 +1 +1 +1,520 +84 ", table)
    assert re.search(r"total +3 +1 +1 ", table)


def test_status_needs_no_ledger_and_shows_series_not_collected(world: World, market_data: MarketData) -> None:
    """It also shows stored series that are no longer collected."""
    market_data(*ONE_WEEK)
    before = market_data("status").stdout
    world.layout.ledger(BTC).unlink()
    assert market_data("status").stdout == before
    universe = world.root / "universe.yaml"
    universe.write_text(UNIVERSE.replace("[BTCUSDT, LUNAUSDT]", "[LUNAUSDT]"))
    assert re.search(
        r"BTCUSDT/1h \(no longer collected\) +2026-02-02 +2026-02-08 +7 +0 +0 +0 ", market_data("status").stdout
    )


def test_coverage_of_an_unknown_series_is_empty(world: World) -> None:
    found = stored_days(world.layout, klines("ETHUSDT", "1h"))
    assert found.final_days == set()
    assert found.day.size == 0


# --- sql ---------------------------------------------------------------------------------------------------------


def test_sql_answers_as_table_csv_and_json(market_data: MarketData) -> None:
    market_data(*ONE_WEEK)
    query = (
        "SELECT symbol, min(open_time) AS first, count(*) AS candles, 'NaN'::DOUBLE AS nothing "
        "FROM binance_spot.klines WHERE symbol = 'BTCUSDT' GROUP BY symbol"
    )
    table = market_data("sql", query)
    assert table.exit_code == 0
    assert re.search(r"BTCUSDT .* 2026-02-02 00:00:00 .* 168", table.stdout)
    rows = list(csv.reader(market_data("sql", "--csv", query).stdout.splitlines()))
    assert rows == [["symbol", "first", "candles", "nothing"], ["BTCUSDT", "2026-02-02 00:00:00", "168", "nan"]]
    assert json.loads(market_data("sql", "--json", query).stdout) == [
        {"symbol": "BTCUSDT", "first": "2026-02-02T00:00:00", "candles": 168, "nothing": None}
    ]
    assert json.loads(market_data("sql", "--json", "SELECT 1 WHERE false").stdout) == []


@pytest.mark.parametrize(
    ("query", "says"), [("SELEC 1", "syntax error"), ("FROM nowhere", "nowhere does not exist"), ("", "")]
)
def test_mistake_in_sql_is_shown_plainly(market_data: MarketData, query: str, says: str) -> None:
    result = market_data("sql", query)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.startswith("Error: ")


# --- add and universe --------------------------------------------------------------------------------------------


def test_add_writes_series_to_the_universe_and_fetches_them(world: World, market_data: MarketData) -> None:
    result = market_data("add", "SOLUSDT", "4h", "aggTrades", "--market", "um", "--from", "2026-03-04")
    assert result.exit_code == 0, result.output
    text = (world.root / "universe.yaml").read_text()
    assert text.startswith(UNIVERSE)
    universe = load_universe(world.root / "universe.yaml")
    sol = klines("SOLUSDT", "4h", "um")
    assert universe.start(sol) == days("2026-03-04", "2026-03-04")[0]
    assert universe.listing(sol).first == days("2020-09-14", "2020-09-14")[0]
    assert universe.listing(BTC).first == days("2017-08-17", "2017-08-17")[0]
    for key in (sol, agg_trades("SOLUSDT", "um")):
        assert list(storage.list_dates(world.layout.folder(key))) == days("2026-03-04", "2026-03-05")
    assert market_data("add", "SOLUSDT", "4h", "--market", "um", "--from", "2026-03-04").exit_code == 0
    assert (world.root / "universe.yaml").read_text() == text


def test_add_takes_several_symbols_and_a_month(world: World, market_data: MarketData) -> None:
    result = market_data("add", "SOLUSDT", "BTCUSDT", "1d", "4h", "--from", "2026-03")
    assert result.exit_code == 0, result.output
    universe = load_universe(world.root / "universe.yaml")
    for key in (klines(symbol, interval) for symbol in ("SOLUSDT", "BTCUSDT") for interval in ("1d", "4h")):
        assert days("2026-03-01", "2026-03-05")[:4] == list(storage.list_dates(world.layout.folder(key)))[:4]
        assert universe.start(key) <= days("2026-03-01", "2026-03-01")[0]


def test_add_from_yesterday_does_not_move(world: World, market_data: MarketData) -> None:
    assert market_data("add", "SOLUSDT", "1h", "--from", "yesterday").exit_code == 0
    assert "from: 2026-03-04" in (world.root / "universe.yaml").read_text()
    assert market_data("add", "SOLUSDT", "4h", "--from", "2 weeks ago").exit_code == 0
    assert "from: 14 days ago" in (world.root / "universe.yaml").read_text()


def test_add_begins_a_universe(world: World, market_data: MarketData) -> None:
    (world.root / "universe.yaml").unlink()
    (world.root / "universe.lock.yaml").unlink()
    result = market_data("add", "LUNAUSDT", "1d", "--through", "2020-09-01")
    assert result.exit_code == 0, result.output
    assert "LUNAUSDT/1d is collected from 2020-08-21 on" in result.stderr
    held = storage.list_dates(world.layout.folder(klines("LUNAUSDT", "1d")))
    assert list(held) == days("2020-08-21", "2020-09-01")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("BTCUSD 1m", r"Spot has no symbol BTCUSD. Similar: BTCUSDT"),
        ("BTCUSDT 7m", r"'7m' is neither a kline interval nor aggTrades. There are: 1s, 1m"),
        ("BTCUSDT 1s --market um", r"no kline interval '1s' in um"),
        ("BTCUSDT 1m --from soon", r"--from cannot be 'soon'\. Allowed: a day"),
        ("BTCUSDT 1m --from 2026-03-06", r"--from cannot be 2026-03-06, which is in the future"),
        ("BTCUSDT 1m --from 2026-03-01 --through 2026-03-06", r"--through cannot be 2026-03-06, which is in the"),
        ("BTCUSDT 1m --from 2026-03-04 --through 2026-03-03", r"--through 2026-03-03 is before --from 2026-03-04"),
        ("btcusdt 1m", r"Symbols are written in capitals: BTCUSDT, not btcusdt"),
        ("BTCUSDT", r"Name at least one symbol, and at least one of 1s, .* and aggTrades"),
        ("BTCUSDT tradeProfile", r"Name at least one symbol, and at least one of 1s, .* and aggTrades"),
        ("1h aggTrades", r"Name at least one symbol"),
        ("", r"Name at least one symbol"),
    ],
)
def test_add_of_what_does_not_exist_changes_nothing(
    world: World, market_data: MarketData, arguments: str, says: str
) -> None:
    result = market_data("add", *arguments.split())
    assert result.exit_code == 2
    assert re.search(says, result.stderr)
    assert (world.root / "universe.yaml").read_text() == UNIVERSE
    assert (world.root / "universe.lock.yaml").read_text() == LOCK


def test_add_to_an_unreadable_universe_is_refused(world: World, market_data: MarketData) -> None:
    (world.root / "universe.yaml").write_bytes(b"# caf\xe9\ncollect: []\n")
    result = market_data("add", "BTCUSDT", "1h")
    assert result.exit_code == 2
    assert "universe.yaml cannot be read" in result.stderr


def test_universe_refresh_resolves_patterns_over_the_archive(world: World, market_data: MarketData) -> None:
    (world.root / "universe.yaml").write_text(
        'collect: [{market: spot, symbols: ["*TCUSDT", "LUNA*", "币安人生USDT"], '
        "klines: {intervals: 1d, from: listing}}]"
    )
    assert market_data("universe", "check").exit_code == 2
    result = market_data("universe", "refresh")
    assert result.exit_code == 0, result.output
    assert (world.root / "universe.lock.yaml").read_text("utf-8").splitlines()[2:] == [
        "spot:",
        "  BTCUSDT: [{from: 2017-08-17, until: null}]",
        "  LUNAUSDT: [{from: 2020-08-21, until: 2022-05-13}]",
        "  币安人生USDT: [{from: 2025-10-09, until: null}]",
    ]
    assert "um ETHUSDT: no longer meant" in result.stderr
    assert "is in order: 3 series of 3 symbols" in market_data("universe", "check").stdout
    shown = market_data("universe", "show").stdout
    assert re.search(r"spot +klines +LUNAUSDT +1d +2020-08-21 +2022-05-13", shown)


def test_universe_refresh_takes_old_um_listings_from_rest(world: World, market_data: MarketData) -> None:
    """These symbols were listed before the archive begins."""
    assert market_data("universe", "refresh").exit_code == 0
    assert "ETHUSDT: [{from: 2019-11-27" in (world.root / "universe.lock.yaml").read_text()
    world.sandbox.faults.add(Status(path=r"^/fapi/", status=451))
    result = market_data("universe", "refresh")
    assert result.exit_code == 0
    assert "um ETHUSDT: using its first daily file as the first listing day" in result.stderr
    assert "ETHUSDT: [{from: 2020-01-01" in (world.root / "universe.lock.yaml").read_text()


def test_universe_check_names_symbols_missing_from_the_lock(world: World, market_data: MarketData) -> None:
    (world.root / "universe.lock.yaml").unlink()
    result = market_data("universe", "check")
    assert result.exit_code == 2
    assert re.search(r"universe.lock.yaml does not say .* spot BTCUSDT \(line 4\).*universe refresh", result.stderr)


def test_choose_takes_start_and_end_from_the_universe() -> None:
    universe = Universe(parse_universe(UNIVERSE), parse_lock(LOCK))
    chosen = choose(universe, Selection(markets=(Market.SPOT,), symbols=("LUNAUSDT",)))
    assert list(chosen.wanted) == [klines("LUNAUSDT", "1h"), klines("LUNAUSDT", "1d")]
    assert chosen.wanted[klines("LUNAUSDT", "1d")] == days("2022-01-01", "2022-05-13")
    assert (chosen.days, chosen.notes) == (2 * 133, ())


# --- help, sandbox, demo, settings -------------------------------------------------------------------------------


def _commands(group: click.Group, *above: str) -> list[tuple[str, ...]]:
    names = [(*above, name) for name in group.commands]
    return names + [
        found
        for name, below in group.commands.items()
        if isinstance(below, click.Group)
        for found in _commands(below, name)
    ]


@pytest.mark.parametrize("command", [(), *_commands(main)], ids=" ".join)
def test_help_describes_each_command(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 4
    for example in re.findall(r"^ *market-data .*", result.stdout, re.MULTILINE):
        assert example.startswith("    market-data ")  # on a line of its own, not wrapped into a paragraph


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_documented_shell_completion_works(name: str) -> None:
    page = (PROJECT / "docs" / "reference" / "commands.md").read_text("utf-8")
    assert f"_MARKET_DATA_COMPLETE={name}_source market-data" in page
    variables = {
        "_MARKET_DATA_COMPLETE": f"{name}_complete",
        "COMP_WORDS": "market-data doc",
        "COMP_CWORD": "doc" if name == "fish" else "1",
    }
    result = CliRunner().invoke(main, prog_name="market-data", env=variables)
    assert result.exit_code == 0
    assert [word for word in re.split(r"[\s,]+", result.stdout) if word in main.commands] == ["doctor"]


def test_help_lists_the_commands_in_groups() -> None:
    shown = CliRunner().invoke(main, ["--help"], terminal_width=80).stdout
    groups = {
        title: re.findall(r"^  ([a-z]+)  ", body, re.MULTILINE)
        for title, body in re.findall(r"^([A-Z][a-z ]+):\n((?:  .*\n?)+)", shown, re.MULTILINE)
        if title != "Options"
    }
    assert list(groups) == ["Get data", "Look at data", "Share data", "Check and repair", "Run"]
    assert [name for names in groups.values() for name in names] == list(main.commands)


@pytest.mark.parametrize("command", _commands(main), ids=" ".join)
def test_first_line_of_help_is_short_and_imperative(command: tuple[str, ...]) -> None:
    """The list of commands shows it whole, in a terminal of 80 columns."""
    found: click.Command = main
    for name in command:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    first = (found.help or "").splitlines()[0]
    assert len(first) <= 45
    assert found.get_short_help_str() == first
    assert first.split()[0].rstrip(",") in IMPERATIVES


@pytest.mark.parametrize("command", list(main.commands))
def test_every_command_is_in_the_readme(command: str) -> None:
    """A row of the table of commands names it: `market-data status`, `coverage`."""
    rows = [line for line in (PROJECT / "README.md").read_text().splitlines() if line.startswith("| `market-data ")]
    named = [cell.removeprefix("market-data ") for row in rows for cell in re.findall(r"`([^`]+)`", row)]
    assert command in {name.split()[0] for name in named}


def test_sandbox_prints_its_settings_and_ends_with_ctrl_c(realdata: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "market_data_pipeline.cli",
        "sandbox",
        "--port",
        "0",
        "--mirror",
        str(realdata / "mirror"),
    ]
    # Ctrl-C is heard even where whoever runs the tests in the background does not.
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("# Sandbox at http://127.0.0.1:")
        lines = dict(process.stdout.readline().removeprefix("export ").strip().split("=", 1) for _ in range(6))
        path = "data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2020-01-01.zip"
        answer = requests.get(f"{lines['MARKET_DATA_VISION_URL']}/{path}", timeout=120)
        assert answer.content == (realdata / "mirror" / path).read_bytes()
        assert {name.removeprefix(PREFIX).lower() for name in lines} <= set(Settings.model_fields)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130


def test_sandbox_reports_a_taken_port(world: World) -> None:
    port = world.sandbox.url.rsplit(":", 1)[1]
    result = CliRunner().invoke(main, ["sandbox", "--port", port])
    assert result.exit_code == 2
    assert port in result.stderr


@pytest.mark.parametrize(
    ("on_path", "below", "typed"),
    [
        ("env/bin", ".", "market-data"),  # an environment that is active, or pipx
        ("elsewhere", ".", "env/bin/market-data"),  # `make` calls it in an environment of its own
        (".", ".", "env/bin/market-data"),
        (".", "other folder", "'{root}/env/bin/market-data'"),
    ],
)
def test_hints_name_the_command_as_this_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: str, below: str, typed: str
) -> None:
    root = tmp_path / "with a space"
    for folder in ("env/bin", "elsewhere", "other folder"):
        (root / folder).mkdir(parents=True)
    for command in ("env/bin/market-data", "elsewhere/market-data"):
        (root / command).touch(0o755)
    monkeypatch.chdir(root / below)
    monkeypatch.setenv("PATH", str(root / on_path))
    monkeypatch.setattr(sys, "executable", str(root / "env" / "bin" / "python"))
    assert as_typed() == typed.format(root=root)


def test_hints_name_the_command_where_only_the_module_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert as_typed() == "market-data"


@pytest.mark.slow
def test_demo_shows_all_of_it_and_downloads_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five days with few trades, which show all that the demo's own numbers do."""
    monkeypatch.setattr(sys.modules[as_typed.__module__], "_DAYS", 5)
    monkeypatch.setattr(made_up, "Sandbox", partial(Sandbox, symbols=symbols_with(2_000)))

    def demo() -> Result:
        # A process that has brought days has their root in its environment, for Dagster; a new shell has not.
        environment = {"MARKET_DATA_DIR": str(tmp_path), "MARKET_DATA_BUDGET_DIR": str(tmp_path / "budget")}
        for name, value in {**environment, "DAGSTER_HOME": ""}.items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(main, ["demo"])

    first = demo()
    assert first.exit_code == 0, first.output
    assert "60 days of 12 series: all there." in first.stderr
    # The demo runs on the real clock: until 08:00 yesterday has no archive yet, until 01:00 today has no hourly candle.
    assert re.search(r"um/aggTrades/BTCUSDT +\S+ +\S+ +[34] +[12] +0 +0 ", first.stdout)
    assert len(re.findall(r"│ \d{4}-\d\d-\d\d │", first.stdout)) in (4, 5)  # the first answer has a row a day
    assert "market-data demo --ui" in first.stdout
    assert 'curl "http://127.0.0.1:8000/api/v1/market/candles/BTCUSDT/1h?limit=3' in first.stdout
    header, *rows = first.stdout.split('format=csv"\n\n')[1].splitlines()[:4]
    assert header == '"open_time","open","high","low","close","volume"'
    assert [len(row.split(",")) for row in rows] == [6, 6, 6]
    with open_instance(Layout(tmp_path / "demo")) as instance:
        looked_at = [instance.get_latest_materialization_event(coverage_key_of(m)) for m in (Market.SPOT, Market.UM)]
    assert all(looked_at)
    second = demo()
    assert second.exit_code == 0
    assert "0 bytes downloaded" in second.stderr
    assert not re.search(r"[3-9] fetched|\d\d fetched", second.stderr)


def test_env_example_has_every_setting_with_its_default() -> None:
    text = (PROJECT / ".env.example").read_text("utf-8")
    shown = dict(re.findall(rf"^# {PREFIX}(\w+)=(.*)$", text, re.MULTILINE))
    defaults = {name.upper(): field.default for name, field in Settings.model_fields.items()}
    assert PydanticUndefined not in defaults.values()
    assert shown == {name: "" if value is None else str(value) for name, value in defaults.items()}


def test_help_imports_no_library_of_a_command() -> None:
    script = "import sys, market_data_pipeline.cli; print(*sorted(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert "market_data_pipeline.cli.sync" in printed
    assert {"pandas", "duckdb", "dagster", "polars", "sqlalchemy", "fastapi"}.intersection(printed) == set()
