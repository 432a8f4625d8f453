"""Estimates of what a query reads, from DuckDB's own plans over a small lake."""

from __future__ import annotations

from pathlib import Path

import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.mcp_server.scan import STORED_DAYS, ScanEstimate, SeriesSize, estimated, sizes_named
from market_data_pipeline_tests.support.small_lake import TRADES_A_DAY, SmallLake, days_from, series

DAYS = 10


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> MarketData:
    """Ten days of 1h of two symbols and of 1d of one, and three days of trades."""
    lake = SmallLake(tmp_path_factory.mktemp("scan") / "data")
    for key in (series("BTCUSDT", "1h"), series("ETHUSDT", "1h"), series("ETHUSDT", "1d")):
        lake.put(key, days_from("2024-01-01", DAYS))
    lake.put(series("BTCUSDT"), days_from("2024-01-01", 3))
    return MarketData(Path(lake.root))


@pytest.fixture(scope="module")
def sizes(market: MarketData) -> list[SeriesSize]:
    return [SeriesSize(**row) for row in market.sql(STORED_DAYS).arrow().to_pylist()]


@pytest.mark.parametrize(
    ("query", "files", "rows"),
    [
        ("SELECT max(high) FROM binance_spot.klines", 3 * DAYS, 49 * DAYS),
        ('SELECT max(high) FROM "binance_spot"."klines"', 3 * DAYS, 49 * DAYS),
        ("SELECT max(high) FROM binance_spot.klines WHERE symbol = 'ETHUSDT' AND interval = '1d'", DAYS, DAYS),
        ("SELECT max(high) FROM binance_spot.candles('BTCUSDT', '1h', '2024-01-03', '2024-01-05')", 2, 48),
        ("SELECT max(price) FROM binance_spot.trades('BTCUSDT', '2024-01-02', '2024-01-03')", 1, TRADES_A_DAY),
        ("SELECT max(price) FROM binance_spot.agg_trades", 3, 3 * TRADES_A_DAY),
        ("SELECT count(*) FROM quality.coverage WHERE outcome = 'held'", 0, 0),
        ("SELECT count(*) FROM range(1000)", 0, 0),
    ],
)
def test_estimate_counts_files_and_rows_of_the_plan(
    market: MarketData, sizes: list[SeriesSize], query: str, files: int, rows: int
) -> None:
    plan = market.sql(f"EXPLAIN (FORMAT json) {query}").arrow()["explain_value"][0].as_py()
    assert estimated(plan, query, sizes) == ScanEstimate(files, rows)


def test_ledgers_beside_a_macro_are_no_files_of_its_view(market: MarketData, sizes: list[SeriesSize]) -> None:
    query = (
        "SELECT count(*) FROM binance_spot.candles('BTCUSDT', '1h', '2024-01-03', '2024-01-04') k "
        "JOIN quality.coverage c ON c.symbol = k.symbol AND c.final"
    )
    plan = market.sql(f"EXPLAIN (FORMAT json) {query}").arrow()["explain_value"][0].as_py()
    assert estimated(plan, query, sizes).files == 1


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("FROM binance_spot.candles('BTCUSDT', '1h', '2024-01-01')", {"BTCUSDT/1h"}),
        ("FROM binance_spot.klines WHERE symbol = 'ETHUSDT'", {"ETHUSDT/1h", "ETHUSDT/1d"}),
        ("FROM binance_spot.candles('BTCUSDT', '3h', '2024-01-01')", {"BTCUSDT/1h"}),
        ("FROM binance_spot.trades('BTCUSDT', '2024-01-01')", {"BTCUSDT/None"}),
        ("FROM binance_um.klines", set()),
        ("SELECT 1", set()),
    ],
)
def test_query_names_series_by_view_symbol_and_interval(sizes: list[SeriesSize], query: str, named: set[str]) -> None:
    assert {f"{size.symbol}/{size.interval}" for size in sizes_named(query, sizes)} == named
