"""Fixtures of the server's tests: a small lake, and clients of an app over it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from market_data_pipeline.server.app import build_app
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

KEY = "a-key-of-these-tests"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with minutes and hours of BTCUSDT, and trades."""
    lake = SmallLake(tmp_path_factory.mktemp("original") / "data")
    lake.put(series("BTCUSDT", "1m"), days_from("2024-01-01", 5))
    lake.put(series("BTCUSDT", "1h"), days_from("2024-01-01", 40))
    lake.put(series("BTCUSDT"), days_from("2024-01-01", 3))
    return lake.root


@pytest.fixture
def lake(original: Path, tmp_path: Path) -> SmallLake:
    """A copy of it."""
    return SmallLake(shutil.copytree(original, tmp_path / "data"))


@pytest.fixture
def settings(lake: SmallLake) -> Settings:
    """The settings of the lake."""
    return load_settings(dir=lake.root, universe=lake.root / "universe.yaml")


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """A client on loopback, of a server with a key."""
    with TestClient(build_app(settings, keys=[KEY]), base_url="http://localhost") as client:
        yield client
