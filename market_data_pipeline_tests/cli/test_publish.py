"""``market-data publish``: what somebody sees of the lake as Iceberg tables."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from market_data_pipeline.cli import publish
from market_data_pipeline.lake import storage
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.small_lake import SmallLake, series
from market_data_pipeline_tests.support.world import World, days

HOURS = series("BTCUSDT", "1h")
WANTED = days("2024-01-01", "2024-01-03")


@pytest.fixture
def market_data(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """Run the command over a small lake."""
    command = shell(world, monkeypatch, "collect: []\n")
    lake = SmallLake(world.layout.root)
    lake.put(HOURS, WANTED)
    lake.put(series("ETHUSDT", "1h"), WANTED)
    return command


def test_publish_says_what_was_published_and_compares(world: World, market_data: MarketData) -> None:
    result = market_data("publish", "--verify")
    assert result.exit_code == 0, result.output
    assert "6 files of 2 series published, 0 replaced or removed, in 1 snapshot." in result.stderr
    assert "2 of 2 series have the lake's rows and sums." in result.stderr
    SmallLake(world.layout.root).put(HOURS, WANTED[:1], version=1)
    result = market_data("publish", "BTCUSDT")
    assert "1 file of 1 series published, 1 replaced or removed, in 1 snapshot." in result.stderr
    assert "0 old snapshots" not in market_data("publish", "--expire").stderr


def test_a_damaged_file_or_a_difference_is_exit_code_1(world: World, market_data: MarketData) -> None:
    market_data("publish")
    storage.put(world.layout.file(HOURS, WANTED[0]), b"damaged")
    result = market_data("publish", "--verify")
    assert result.exit_code == 1
    assert "Left out spot/klines/BTCUSDT/1h 2024-01-01: " in result.stderr
    assert "1 of 2 series have the lake's rows and sums." in result.stderr


def test_the_extra_is_named_if_it_is_missing(market_data: MarketData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "find_spec", lambda name: None if name == "pyiceberg" else find_spec(name))
    result = market_data("publish")
    assert result.exit_code == 2
    assert 'pip install "market-data-pipeline[iceberg]"' in result.stderr
