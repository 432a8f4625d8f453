"""The same data folder in odd places: whatever its path looks like, every way to its rows gives the same ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.defs.platform.tables import as_arrow, load_days
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline_tests.support.documents import query_by_hand
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

HOURS, TRADES, PROFILE = series("BTCUSDT", "1h"), series("BTCUSDT"), series("BTCUSDT", data_type="tradeProfile")
DAYS = days_from("2024-01-01", 2)
QUERIES = (
    "FROM binance_spot.klines ORDER BY ALL",
    "FROM binance_spot.candles('BTCUSDT', '1h', '2024-01-02') ORDER BY ALL",
    "FROM binance_spot.agg_trades ORDER BY ALL",
    "FROM binance_spot.trades('BTCUSDT', '2024-01-01', '2024-01-02') ORDER BY ALL",
    "FROM binance_spot.trade_profile ORDER BY ALL",
    "FROM quality.coverage ORDER BY ALL",
    "FROM quality.findings ORDER BY ALL",
    "FROM quality.gaps ORDER BY ALL",
)
PLACES = (
    # What looks like a partition of Hive's.
    "day=2026-11-30/volume=1/open_time=2020-01-01/transact_time=x/vwap=2",
    "symbol=ALL/interval=1d/market=crypto/state=final/findings=none/filename=x/a=1=2",
    # What looks like a pattern, or is quoted, encoded or rare.
    "[abc] [!x] *? {a,b}",
    'it\'s "quoted" %20 100% $HOME ~ #; --',
    "two\nlines\tand a tab",
    "Ma\u0308rkte 币安 📈",
    "/".join(["x" * 200] * 8),
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> SmallLake:
    lake = SmallLake(tmp_path_factory.mktemp("plain") / "data")
    for key in (HOURS, TRADES, PROFILE):
        lake.put(key, DAYS)
    return lake


@pytest.fixture(scope="module")
def expected(plain: SmallLake) -> dict[str, Any]:
    return answers(plain.root)


def answers(root: Path) -> dict[str, Any]:
    """Whatever anybody can ask about a data folder, by every way."""
    market, layout = MarketData(root), Layout(root)
    klines = market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-03")
    found: dict[str, Any] = {
        "klines": klines.arrow().to_pylist(),
        "relation": klines.relation().order("open_time").fetchall(),
        "trades": market.agg_trades("BTCUSDT", "2024-01-01", "2024-01-03").relation().order("ALL").fetchall(),
        "profile": market.trade_profile("BTCUSDT", "2024-01-01", "2024-01-03").relation().order("ALL").fetchall(),
    }
    for kind in (duckdb.DuckDBPyRelation, pa.Table, *frames()):
        for key in (HOURS, TRADES, PROFILE):
            found[f"{key} as {kind}"] = as_arrow(load_days(layout, key, DAYS, kind)).to_pylist()
    with duckdb.connect(publish_catalog(layout), read_only=True) as catalog:
        for query in QUERIES:
            found[query] = catalog.execute(query).fetchall()
            assert market.sql(query).relation().fetchall() == found[query]
    return found


def frames() -> list[type]:
    import polars as pl

    return [pl.DataFrame, pl.LazyFrame]


@pytest.mark.parametrize("place", PLACES)
def test_every_way_to_the_rows_is_right_in_any_place(
    plain: SmallLake, expected: dict[str, Any], tmp_path: Path, place: str
) -> None:
    shutil.copytree(plain.root, tmp_path / place / "data")
    assert answers(tmp_path / place / "data") == expected


def test_query_by_hand_is_right_below_a_partition(plain: SmallLake, tmp_path: Path) -> None:
    query = query_by_hand()
    found = []
    for place in (tmp_path / "plain", tmp_path / "volume=1"):
        shutil.copytree(plain.root, place / "data")
        absolute = query.replace("data/lake", str(place / "data" / "lake"))
        found.append(duckdb.execute(f"SELECT * EXCLUDE (filename) FROM ({absolute}) ORDER BY open_time").fetchall())
    assert found[0] == found[1] != []


def test_backslash_in_the_path_is_refused_in_words(plain: SmallLake, tmp_path: Path) -> None:
    """DuckDB has no pattern for it, so that it would find nothing."""
    root = tmp_path / "back\\slash" / "data"
    shutil.copytree(plain.root, root)
    for ask in (lambda: publish_catalog(Layout(root)), lambda: MarketData(root).sql("FROM binance_spot.klines")):
        with pytest.raises(UsageError, match="treats the backslash in the path"):
            ask()
    assert MarketData(root).klines("BTCUSDT", "1h", "2024-01-01", "2024-01-03").arrow().num_rows == 48
