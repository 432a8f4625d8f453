"""What a result gives to notebooks and other libraries."""

from __future__ import annotations

import warnings
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake.closed_months import close_months
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

BTC, ETH = series("BTCUSDT", "1h"), series("ETHUSDT", "1h")
TRADES = series("BTCUSDT")


@pytest.fixture
def lake(tmp_path: Path) -> SmallLake:
    lake = SmallLake(tmp_path / "data")
    lake.put(BTC, days_from("2024-01-01", 3))
    lake.put(ETH, days_from("2024-01-01", 2))
    lake.put(TRADES, days_from("2024-01-01", 1))
    return lake


@pytest.fixture
def market(lake: SmallLake) -> MarketData:
    return MarketData(lake.root)


def candles(market: MarketData, **options: Any) -> Any:
    return market.klines(["BTCUSDT", "ETHUSDT"], "1h", "2024-01-01T12:00", "2024-01-04", on_gap="ignore", **options)


def test_length_is_the_number_of_rows(market: MarketData) -> None:
    result = candles(market)
    assert len(result) == result.arrow().num_rows == 12 + 24 + 24 + 12 + 24
    assert len(market.klines("BTCUSDT", "1h", "2030-01-01", "2030-01-02", on_gap="ignore")) == 0
    assert len(market.sql("SELECT 1 UNION ALL SELECT 2")) == 2


def test_other_libraries_take_the_rows_as_arrow(market: MarketData) -> None:
    result = candles(market)
    rows = result.arrow()
    assert pa.table(result).equals(rows)
    assert pl.DataFrame(result).equals(result.pl())
    answer = duckdb.sql("SELECT count(*), max(high) FROM result")
    assert answer is not None
    [(number, highest)] = answer.fetchall()
    assert (number, highest) == (rows.num_rows, max(rows["high"].to_pylist()))
    if from_arrow := getattr(pd.DataFrame, "from_arrow", None):  # since pandas 3
        assert len(from_arrow(result)) == rows.num_rows


def test_wide_has_a_column_for_each_symbol(market: MarketData) -> None:
    wide = candles(market).wide("close")
    frame = candles(market).df()
    assert list(wide.columns) == ["BTCUSDT", "ETHUSDT"]
    assert wide.index.name == "open_time"
    assert len(wide) == 60
    assert wide["ETHUSDT"].isna().sum() == 24, "ETHUSDT has no third day"
    btc = frame[frame["symbol"] == "BTCUSDT"].set_index("open_time")["close"]
    assert wide["BTCUSDT"].tolist() == btc.tolist()
    with pytest.raises(UsageError, match=r"no column 'clos' to spread. Did you mean close\?"):
        candles(market).wide("clos")
    with pytest.raises(UsageError, match="share a time"):
        market.agg_trades("BTCUSDT", "2024-01-01", "2024-01-02").wide("price")


@pytest.mark.parametrize("columns", [None, ["close"]])
@pytest.mark.parametrize("closed", [False, True])
def test_scan_is_the_same_rows(lake: SmallLake, market: MarketData, columns: list[str] | None, closed: bool) -> None:
    if closed:
        lake.put(BTC, days_from("2023-12-01", 31))
        assert close_months(lake.layout, BTC) == [date(2023, 12, 1)]
    result = market.klines(
        ["BTCUSDT", "ETHUSDT"], "1h", "2023-12-30T05:00", "2024-01-02", columns=columns, on_gap="ignore"
    )
    scanned, read = result.scan().collect(), result.pl()
    assert scanned.columns == read.columns
    assert scanned.schema["open_time"] == read.schema["open_time"]
    order = ["symbol", "open_time"]
    text = pl.col("symbol", "interval").cast(pl.String)
    assert scanned.with_columns(text).sort(order).equals(read.with_columns(text).sort(order))
    assert market.klines("BTCUSDT", "1h", "2030-01-01", "2030-01-02", on_gap="ignore").scan().collect().is_empty()


def test_notebook_shows_first_rows_and_stored_days(market: MarketData) -> None:
    shown = candles(market)._repr_html_()
    assert "5 of 6 days stored" in shown
    assert shown.count("<tr") == 1 + 5
    assert "<script>" not in market.sql("SELECT '<script>' AS x")._repr_html_()


def test_series_and_symbols_are_listed(market: MarketData) -> None:
    frame = market.series().df()
    assert frame[["symbol", "days", "rows"]].values.tolist() == [
        ["BTCUSDT", 1, frame["rows"][0]],
        ["BTCUSDT", 3, 72],
        ["ETHUSDT", 2, 48],
    ]
    assert market.symbols() == market.symbols("spot") == ["BTCUSDT", "ETHUSDT"]
    assert market.symbols("um") == []
    with pytest.raises(UsageError, match="no market 'spto'"):
        market.symbols("spto")


def test_query_takes_values(market: MarketData) -> None:
    text = "SELECT count(*) AS n FROM binance_spot.klines WHERE symbol = "
    assert market.sql(f"{text} ?", ["ETHUSDT"]).df()["n"].tolist() == [48]
    assert market.sql(f"{text} $symbol", {"symbol": "BTCUSDT'; DROP"}).arrow()["n"].to_pylist() == [0]
    assert len(market.sql(f"{text} ?", ["ETHUSDT"])) == 1
    with pytest.raises(UsageError):
        market.sql(f"{text} ?")


def test_options_are_named(market: MarketData) -> None:
    with pytest.raises(TypeError):
        market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02", "spot")  # type: ignore[call-arg]


def test_universe_is_found_next_to_the_data_folder(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lake.root)
    assert "no universe.yaml" in repr(MarketData(lake.root))
    found = lake.root.parent / "universe.yaml"
    found.write_text("collect: []\n")
    assert repr(MarketData(lake.root)) == f"<MarketData {str(lake.root)!r}, universe={str(found)!r}>"


def test_folder_that_is_no_lake_is_warned_of(lake: SmallLake, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        MarketData(lake.root)
        MarketData(tmp_path / "new")
    assert said == []
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").touch()
    with pytest.warns(UserWarning, match="letters is no data folder"):
        MarketData(tmp_path / "letters")
