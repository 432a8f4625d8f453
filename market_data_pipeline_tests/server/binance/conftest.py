"""A lake made from a sandbox, served in process beside the sandbox's own answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from starlette.testclient import TestClient

from market_data_pipeline.model.binance_dialect import PREFIXES
from market_data_pipeline.model.series import DataType, Market
from market_data_pipeline.sandbox import Sandbox
from market_data_pipeline.server.app import build_app
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.support.small_lake import series
from market_data_pipeline_tests.support.world import World, days, utc

NOW = "2026-03-05T12:00:30"
FIRST, LAST = "2026-03-02", "2026-03-04"
SYMBOLS = {Market.SPOT: "SOLUSDT", Market.UM: "SOLUSDT", Market.CM: "BTCUSD_PERP"}
PATHS = {market: prefix for prefix, market in PREFIXES.items()}
BEGIN, END = (int(utc(f"2026-03-{day}T00:00:00").timestamp() * 1000) for day in ("02", "05"))
HOUR = 3_600_000
PRICES = (DataType.MARK_PRICE_KLINES, DataType.INDEX_PRICE_KLINES, DataType.PREMIUM_INDEX_KLINES)


@dataclass
class Twins:
    """A server of a lake, and the sandbox that the lake was made from."""

    served: TestClient
    sandbox: Sandbox
    root: Path
    world: World

    def ask(self, path: str, **parameters: Any) -> tuple[int, Any]:
        """Return the status and the JSON of the server's answer."""
        answer = self.served.get(path, params=parameters)
        return answer.status_code, answer.json()

    def both(self, path: str, **parameters: Any) -> tuple[Any, Any]:
        """Return the JSON of the server's answer and of the sandbox's."""
        self.sandbox.weights.reset()
        own = requests.get(self.sandbox.url + path, params=parameters, timeout=60)
        served = self.served.get(path, params=parameters)
        assert served.status_code == own.status_code, (path, parameters, served.text, own.text)
        return served.json(), own.json()


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """Three days of all three markets, in a lake and in the sandbox."""
    with pytest.MonkeyPatch.context() as patch, Sandbox() as sandbox:
        world = World(tmp_path_factory.mktemp("twins"), sandbox, patch)
        world.at(NOW)
        _fill(world)
        settings = load_settings(dir=world.root, universe=world.root / "universe.yaml")
        with TestClient(build_app(settings), base_url="http://localhost") as client:
            yield Twins(client, sandbox, world.root, world)


def _fill(world: World) -> None:
    collected = days(FIRST, LAST)
    for market, symbol in SYMBOLS.items():
        name = str(market)
        for interval in ("1m", "1h"):
            world.ingest(series(symbol, interval, name), collected)
        world.ingest(series(symbol, None, name), collected)
        world.ingest(series(symbol, None, name, DataType.TRADES), collected)
        if market is Market.SPOT:
            continue
        for data_type in PRICES:
            world.ingest(series(symbol, "1h", name, data_type), collected)
        world.ingest(series(symbol, None, name, DataType.FUNDING_RATE), collected)
    world.ingest(series(SYMBOLS[Market.UM], None, "um", DataType.METRICS), collected)


def plain(value: Any) -> Any:
    """Return an answer with numbers in place of texts of numbers, without what no archive has."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items() if name != "nq"}
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
