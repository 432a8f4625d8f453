"""A lake in SeaweedFS: the commands work as on disk, also when requests fail and processes are killed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from market_data_pipeline import MarketData as Client
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_files
from market_data_pipeline.model.places import place_of
from market_data_pipeline_tests.support import bucket as buckets
from market_data_pipeline_tests.support.bucket import Proxy, seaweed, use
from market_data_pipeline_tests.support.shell import MarketData, shell
from market_data_pipeline_tests.support.world import World, klines

pytestmark = pytest.mark.slow

BTC = klines("BTCUSDT", "1h")
COUNT = "SELECT symbol, count(*) AS candles FROM binance_spot.klines GROUP BY ALL"
UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2026-01-01}
"""
LOCK = "spot:\n  BTCUSDT: [{from: 2017-08-17, until: null}]\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as url:
        yield url


@pytest.fixture
def proxy(store: str) -> Iterator[Proxy]:
    with Proxy(store) as proxy:
        yield proxy


@pytest.fixture
def market_data(world: World, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    use(monkeypatch, proxy.url)
    root = f"s3://lake/{tmp_path.name}"
    run = shell(world, monkeypatch, UNIVERSE, LOCK, dir=root, local_dir=str(tmp_path / "local"))
    world.set(dir=Path(root), local_dir=tmp_path / "local")
    world.layout = Layout(world.settings.root)
    return run


def test_commands_work_on_a_lake_in_a_bucket(market_data: MarketData, world: World, proxy: Proxy) -> None:
    for command in (("backfill", "--yes"), ("status",), ("sql", COUNT), ("verify", "--local"), ("compact",), ("sql", COUNT), ("coverage",), ("doctor",), ("quarantine", "list"), ("report",)):
        before = proxy.requests.copy()
        done = market_data(*command)
        print(command, done.exit_code, done.output[-1500:])
        print(proxy.requests - before)
