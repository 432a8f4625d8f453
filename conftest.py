"""Fixtures of examples in docstrings: ``root`` is a small data folder, ``market`` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from market_data_pipeline import MarketData
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from, series


@pytest.fixture(scope="session")
def example_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with two days of each series."""
    lake = SmallLake(tmp_path_factory.mktemp("examples") / "data")
    for key in (
        series("BTCUSDT", "1h"),
        series("ETHUSDT", "1h"),
        series("BTCUSDT"),
        series("BTCUSDT", data_type="tradeProfile"),
    ):
        lake.put(key, days_from("2024-01-01", 2))
    (lake.root / "universe.yaml").write_text(
        "collect: [{market: um, symbols: [ETHUSDT], klines: {intervals: [1d], from: 2024-01-01}}]\n"
    )
    lake.put(series("ETHUSDT", "1d", "um"), days_from("2024-01-01", 2), version=1)
    return lake.root


@pytest.fixture(scope="session")
def example_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an older cache with two days of candles in one file."""
    folder = tmp_path_factory.mktemp("examples") / "cache"
    (folder / "BTCUSDT").mkdir(parents=True)
    days = [day_table(series("BTCUSDT", "1h"), day) for day in days_from("2024-01-01", 2)]
    pq.write_table(pa.concat_tables(days).drop_columns(["symbol", "interval"]), folder / "BTCUSDT" / "1h.parquet")
    return folder


@pytest.fixture(autouse=True)
def _examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    shown = ("client", "stores/")
    if isinstance(request.node, pytest.DoctestItem) and any(room in request.node.nodeid for room in shown):
        root = request.getfixturevalue("example_root")
        old_cache = request.getfixturevalue("example_cache")
        doctest_namespace |= {"root": root, "market": MarketData(root), "old_cache": old_cache}
