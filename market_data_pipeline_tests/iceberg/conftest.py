"""A lake to publish, and its tables as readers see them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from market_data_pipeline.iceberg.catalog import opened_catalog
from market_data_pipeline.iceberg.publishing import PublishReport, publish
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.support.small_lake import SmallLake, series
from market_data_pipeline_tests.support.world import days

BTC, ETH = series("BTCUSDT", "1h"), series("ETHUSDT", "1h")
JANUARY = days("2024-01-01", "2024-01-31")


class Lakehouse(SmallLake):
    """A lake with its tables."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.settings = Settings(_env_file=None, dir=root)  # type: ignore[call-arg]  # pydantic's own

    def publish(self, *keys: SeriesKey, expire_now: bool = False) -> PublishReport:
        """Publish all, or some series."""
        return publish(self.settings, keys or None, expire_now=expire_now)

    def table(self, name: str = "klines", market: str = "spot") -> Table:
        """A table with its newest snapshot."""
        with opened_catalog(self.settings) as catalog:
            return catalog.load_table((f"binance_{market}", name))

    def rows(self, key: SeriesKey, snapshot: int | None = None) -> pa.Table:
        """Rows of a series, as pyiceberg reads them."""
        table = self.table(key.data_type.sql_name, key.market)
        labels = [("symbol", key.symbol), *([("interval", key.interval)] if key.interval else [])]
        condition = " and ".join(f"{name} = '{value}'" for name, value in labels)
        return table.scan(row_filter=condition, snapshot_id=snapshot).to_arrow()

    def versions(self, key: SeriesKey, day: date) -> list[float]:
        """The distinct versions of a day that the table has."""
        rows = self.rows(key)
        mine = [one for one in rows.select(["open_time", "volume"]).to_pylist() if one["open_time"].date() == day]
        return sorted({one["volume"] for one in mine})

    def data_files(self) -> list[Path]:
        """All data files of all tables."""
        return sorted((self.layout.iceberg).rglob("data/**/*.parquet"))


@pytest.fixture
def house(tmp_path: Path) -> Lakehouse:
    """An empty lake."""
    return Lakehouse(tmp_path / "data")


@pytest.fixture
def catalog(house: Lakehouse) -> Iterator[Catalog]:
    """The catalog of the lake."""
    with opened_catalog(house.settings) as opened:
        yield opened


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all files be old enough that their modification times tell of every change."""
    real = time.time_ns
    monkeypatch.setattr("market_data_pipeline.iceberg.publishing.time.time_ns", lambda: real() + 10_000_000_000)
