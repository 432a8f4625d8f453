"""Engines of others read the tables: the same rows and sums as the lake has. ``make test-clients`` installs them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pytest

from market_data_pipeline.iceberg.comparison import summed_column, totals_in_lake
from market_data_pipeline.iceberg.tables import table_of
from market_data_pipeline.lake.closed_months import close_months, remove_closed_days
from market_data_pipeline_tests.clients import python_of, run_client
from market_data_pipeline_tests.iceberg.conftest import BTC, ETH, JANUARY, Lakehouse
from market_data_pipeline_tests.support.small_lake import series

ENGINES = ("pyiceberg", "spark", "sail", "duckdb", "polars", "clickhouse", "daft")
TRADES = [series(symbol) for symbol in ("BTCUSDT", "币安人生USDT")]
FEBRUARY = date(2024, 2, 1)

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Lakehouse:
    """A closed month and open days, of which one was replaced, and trades of a symbol with Chinese signs."""
    house = Lakehouse(tmp_path_factory.mktemp("published") / "data")
    for key in (BTC, ETH):
        house.put(key, [*JANUARY, FEBRUARY])
    for key in TRADES:
        house.put(key, JANUARY[:3])
    house.publish()
    close_months(house.layout, BTC)
    remove_closed_days(house.layout, BTC, JANUARY)
    house.put(ETH, [FEBRUARY], version=1)
    house.publish()
    return house


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_reads_the_rows_and_sums_of_the_lake(engine: str, published: Lakehouse) -> None:
    expected: dict[str, dict[str, list[float]]] = {}
    for key in (BTC, ETH, *TRADES):
        column = summed_column(table_of(key))
        totals = expected.setdefault(f"{table_of(key)}.{column}", {})
        totals[key.symbol] = list(totals_in_lake(published.layout, key, column))
    folder = str(published.layout.iceberg)
    answer = run_client("iceberg", "read_iceberg.py", engine, folder, *expected, seconds=900)
    if "missing" in answer:
        pytest.skip(f"{engine} needs {answer['missing']}, which is not installed")
    assert answer["found"] == expected


def test_of_200_swaps_no_reader_sees_none_or_both(tmp_path_factory: pytest.TempPathFactory) -> None:
    """pyiceberg reads by the catalog in this process, DuckDB by the folder in another one."""
    python_of("iceberg")
    house = Lakehouse(tmp_path_factory.mktemp("swaps") / "data")
    house.put(BTC, JANUARY[:3])
    house.publish()
    seen, done = set[tuple[int, int]](), threading.Event()
    stop = house.root / "stop"

    def read() -> None:
        while not done.is_set():
            rows = house.rows(BTC)
            seen.add((rows.num_rows, len(house.versions(BTC, JANUARY[1]))))

    with ThreadPoolExecutor(2) as threads:
        here = threads.submit(read)
        place = house.layout.iceberg_table("binance_spot", "klines")
        there = threads.submit(run_client, "iceberg", "read_iceberg_swaps.py", str(place), str(stop), seconds=900)
        try:
            for version in range(1, 201):
                house.put(BTC, [JANUARY[1]], version=version)
                house.publish()
        finally:
            done.set()
            stop.touch()
        here.result()
        answer = there.result()
    assert seen == {(72, 1)}
    assert answer["seen"] == [[72, 1]]
    assert answer["reads"] > 20
    assert house.versions(BTC, JANUARY[1]) == [200]
