"""Stores of every kind behind one interface, with a real PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.stores.base import RowState, Store
from market_data_pipeline.stores.hybrid import HybridStore
from market_data_pipeline.stores.parquet import ParquetStore
from market_data_pipeline.stores.postgres import PostgresStore
from market_data_pipeline_tests.support.postgres import PostgresServer
from market_data_pipeline_tests.support.small_lake import SmallLake


@pytest.fixture(scope="session")
def server(shared_postgres: PostgresServer) -> PostgresServer:
    return shared_postgres


@pytest.fixture
def database(server: PostgresServer) -> str:
    """The URL of an empty database."""
    server.sql("DROP SCHEMA IF EXISTS market_data, binance_spot, binance_um, binance_cm, binance_option CASCADE")
    return server.url


@pytest.fixture
def postgres(database: str) -> Iterator[PostgresStore]:
    with PostgresStore(database, backoff_seconds=0.2) as store:
        yield store


@dataclass
class Case:
    """A store, and how rows of a day become final in it."""

    kind: str
    store: Store
    lake: SmallLake

    def put_final(self, key: SeriesKey, day: date, rows: pa.Table) -> None:
        """Make a day final: in the lake, if the store reads it."""
        if self.kind == "postgres":
            self.store.save(key, rows, RowState.FINAL, seen_at=datetime(2024, 5, 1, tzinfo=UTC))
        else:
            self.lake.put_table(key, day, rows)


@pytest.fixture(params=["parquet", "postgres", "hybrid"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """A store of each kind, empty."""
    kind, lake = request.param, SmallLake(tmp_path)
    cold = ParquetStore(tmp_path)
    if kind == "parquet":
        yield Case(kind, cold, lake)
        return
    hot = request.getfixturevalue("postgres")
    yield Case(kind, hot if kind == "postgres" else HybridStore(cold, hot), lake)
