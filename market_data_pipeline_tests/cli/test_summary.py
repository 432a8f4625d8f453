"""The messages of a fetch: one line for each fault, however many days and series have it."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import IO

import pytest

from market_data_pipeline.lake.storage import disk
from market_data_pipeline.sandbox import CutBody, WrongChecksum
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT, ETHUSDT]
    klines: {intervals: [1h, 1d], from: 2025-12-01}
"""
LOCK = """\
spot:
  BTCUSDT: [{from: 2017-08-17, until: null}]
  ETHUSDT: [{from: 2017-08-17, until: null}]
"""
FEBRUARY = ("--from", "2026-02", "--through", "2026-02")
NOBODY = "http://127.0.0.1:9"
"""An address at which nothing answers."""


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """Run the command in a world of its own: today is 2026-03-05."""
    return shell(world, monkeypatch, UNIVERSE, LOCK, retries="0")


def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VISION_URL", "VISION_LISTING_URL", "SPOT_URL"):
        monkeypatch.setenv(f"MARKET_DATA_{name}", NOBODY)


def faults_in(text: str) -> list[str]:
    """Return the lines on failed days."""
    return re.findall(r"^  (\S.*)$", text[text.index(" failed:\n") :], re.MULTILINE)


def test_network_that_is_down_is_one_line(market_data: MarketData, monkeypatch: pytest.MonkeyPatch) -> None:
    without_network(monkeypatch)
    result = market_data("backfill", *FEBRUARY)
    assert result.exit_code == 1
    (line,) = faults_in(result.stderr)
    assert "112 days failed:" in result.stderr
    assert re.match(
        r"binance/spot/klines/\S+, \S+, \S+ and 1 more series, 112 days from 2026-02-01 to 2026-02-28: network: ", line
    )
    assert "Check the network and run it again." in line
    assert result.stderr.count("the monthly zip is not used") <= 2
    assert len(result.stderr.splitlines()) < 12


def test_verify_without_network_groups_series(market_data: MarketData, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three requests without an answer the host counts as unreachable, which is another reason."""
    assert market_data("backfill", "--from", "2026-03-01").exit_code == 0
    without_network(monkeypatch)
    result = market_data("verify")
    assert result.exit_code == 1
    lines = [one for one in result.stderr.splitlines() if one.startswith("binance/")]
    assert len(lines) <= 2
    (line,) = [one for one in lines if "could not be fetched" in one]
    assert len(set(re.findall(r"binance/\S+/1[hd]", line))) == 3


def test_monthly_files_that_fail_are_counted(world: World, market_data: MarketData) -> None:
    """Their days come from the daily files."""
    world.sandbox.faults.add(CutBody(path=r"/monthly/.*\.zip$"))
    result = market_data("backfill", "1d", "--from", "2025-12", "--through", "2026-02")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("the monthly zip is not used: ") == 1
    assert "5 more warnings like this: the monthly zip is not used." in result.stderr


def test_full_disk_is_one_line(market_data: MarketData, monkeypatch: pytest.MonkeyPatch) -> None:
    create = disk._new_file

    def full(path: Path) -> IO[bytes]:
        if "klines" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return create(path)

    monkeypatch.setattr(disk, "_new_file", full)
    result = market_data("backfill", *FEBRUARY)
    assert result.exit_code == 1
    (line,) = faults_in(result.stderr)
    assert "112 days from 2026-02-01 to 2026-02-28: storage: " in line
    assert "The disk is full: free some space and start again." in line


def test_different_faults_have_a_line_each(world: World, market_data: MarketData) -> None:
    world.sandbox.faults.add(WrongChecksum(path=r"BTCUSDT-1h-2026-03-0[12]\.zip"))
    world.sandbox.faults.add(CutBody(path=r"ETHUSDT-1h-2026-03-0[123]\.zip$"))
    result = market_data("backfill", "1h", "--from", "2026-03-01", "--through", "2026-03-04")
    assert result.exit_code == 1
    first, second, third = faults_in(result.stderr)
    assert first.startswith("binance/spot/klines/BTCUSDT/1h 2026-03-01: checksum: BTCUSDT-1h-2026-03-01.zip does")
    assert second.startswith("binance/spot/klines/BTCUSDT/1h 2026-03-02: checksum: BTCUSDT-1h-2026-03-02.zip does")
    assert third.startswith("binance/spot/klines/ETHUSDT/1h, 3 days from 2026-03-01 to 2026-03-03: network: ")
