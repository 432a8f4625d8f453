"""``MarketData.klines`` of any interval and zone: the rows of pandas, the source of each symbol, gaps and errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from market_data_pipeline import GapError, GapWarning, MarketData
from market_data_pipeline.client import ComposedRows, StoredRows
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import INTERVALS
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline_tests.support.composition import assert_composed, composed_by_pandas, put_candles
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

NEW_YORK = "America/New_York"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> SmallLake:
    """Two symbols of 1h and 1m candles without gaps, over the longest day of New York."""
    lake = SmallLake(tmp_path_factory.mktemp("composed") / "data")
    lake.put(series("AUSDT", "1h"), days_from("2024-11-01", 14))
    lake.put(series("AUSDT", "1d"), days_from("2024-11-01", 7))
    lake.put(series("BUSDT", "1m"), days_from("2024-11-01", 3))
    lake.put(series("BTCUSDT", "1h", "um", "markPriceKlines"), days_from("2024-11-01", 1))
    return lake


@pytest.fixture
def market(lake: SmallLake) -> MarketData:
    return MarketData(lake.root)


@pytest.mark.parametrize(
    ("interval", "source", "zone"),
    [
        ("7m", "1m", None),
        ("45m", "15m", None),
        ("3h", "1h", None),
        ("3d", "1d", None),
        ("1w", "1h", None),
        ("1mo", "1d", None),
        ("1d", "1h", NEW_YORK),
        ("1w", "15m", NEW_YORK),
    ],
)
def test_candles_equal_those_of_pandas(tmp_path: Path, interval: str, source: str, zone: str | None) -> None:
    lake = SmallLake(tmp_path / "data")
    days = days_from("2024-10-28", {"1m": 3, "1d": 70}.get(source, 10))
    rows = put_candles(lake, series("BTCUSDT", source), days, seed=3, missing=0.4)
    market = MarketData(lake.root)
    composed = market.klines("BTCUSDT", interval, "2024-10-01", "2025-02-01", tz=zone, on_gap="ignore")
    expected = composed_by_pandas(rows, interval, INTERVALS[source], zone or "UTC")
    assert_composed(composed.df(), expected[expected.index >= pd.Timestamp("2024-10-01", tz="UTC")])


def test_each_symbol_has_its_own_source(market: MarketData) -> None:
    """AUSDT has the interval, BUSDT is composed."""
    composed = market.klines(["BUSDT", "AUSDT"], "1h", "2024-11-02", "2024-11-03")
    assert isinstance(composed, ComposedRows)
    counts = composed.df().groupby("symbol", observed=True)["parts"].agg(["size", "min", "max"])
    assert counts.to_dict("index") == {
        "AUSDT": {"size": 24, "min": 1, "max": 1},
        "BUSDT": {"size": 24, "min": 60, "max": 60},
    }
    assert isinstance(market.klines("AUSDT", "1h", "2024-11-02", "2024-11-03"), StoredRows)
    asked = market.klines("AUSDT", "1h", "2024-11-02", "2024-11-03", columns=["complete", "close"])
    assert asked.df().columns.tolist() == ["symbol", "interval", "open_time", "close", "complete"]


def test_all_faces_have_the_same_candles(market: MarketData) -> None:
    days = market.klines(["AUSDT", "BUSDT"], "1d", "2024-11-02", "2024-11-04", tz=NEW_YORK, on_gap="ignore")
    frame = days.df()
    assert frame["parts"].tolist() == [24, 25, 24 * 60, 20 * 60]
    assert frame["complete"].tolist() == [True, True, True, False]
    assert str(frame["open_time"].dtype) == "datetime64[us, UTC]"
    assert str(frame["symbol"].dtype) == "category"
    assert len(days) == 4
    assert days.pl().equals(pl.DataFrame(days.scan().collect()))
    assert days.relation().count("*").fetchall() == [(4,)]
    assert pa.table(days).num_rows == 4
    assert days.wide("close").shape == (2, 2)
    assert "composed from" in days._repr_html_()


def test_python_and_sql_return_the_same_candles(lake: SmallLake, market: MarketData) -> None:
    publish_catalog(lake.layout)
    for interval, tz in (("1w", None), ("3d", None), ("1mo", NEW_YORK), ("5h", None)):
        rows = market.klines("AUSDT", interval, "2024-10-30", "2024-11-20", tz=tz, on_gap="ignore").df()
        query = "FROM binance_spot.candles($1, $2, '2024-10-30', '2024-11-20', tz := $3)"
        answer = market.sql(query, ["AUSDT", interval, tz]).df()
        pd.testing.assert_frame_equal(rows, answer, check_dtype=False, check_categorical=False)


def test_versions_differ_by_interval_and_zone(market: MarketData) -> None:
    def version(interval: str, tz: str | None = None) -> str:
        return market.klines("AUSDT", interval, "2024-11-01", "2024-11-05", tz=tz, on_gap="ignore").version

    assert version("3h") == version("3h")
    assert len({version("3h"), version("5h"), version("1d", NEW_YORK), version("1d", "Europe/London")}) == 4


def test_gaps_of_the_source_are_reported(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path / "data")
    lake.put(series("BTCUSDT", "1h"), [*days_from("2024-01-01", 3), *days_from("2024-01-05", 4)])
    market = MarketData(lake.root)
    with pytest.warns(GapWarning, match="BTCUSDT") as caught:
        week = market.klines("BTCUSDT", "1w", "2024-01-01", "2024-01-08").df()
    assert caught[0].filename == __file__
    assert week[["parts", "complete"]].values.tolist() == [[144, False]]
    with pytest.raises(GapError, match="2024-01-04"):
        market.klines("BTCUSDT", "1w", "2024-01-01", "2024-01-08", on_gap="raise")
    # The last candle of the range needs days after its end.
    assert market.klines("BTCUSDT", "2d", "2024-01-05", "2024-01-07", on_gap="raise").df()["parts"].tolist() == [48]


@pytest.mark.parametrize("interval", ["1d", "2d"])
def test_a_reused_symbol_is_warned_of_once(tmp_path: Path, interval: str) -> None:
    lake = SmallLake(tmp_path / "data")
    lake.put(series("LUNAUSDT", "1d"), days_from("2022-05-25", 12))
    market = MarketData(lake.root)
    with pytest.warns(UserWarning, match="names another coin within the range: LUNAUSDT from 2022-05-31") as caught:
        market.klines("LUNAUSDT", interval, "2022-05-26", "2022-06-03")
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        market.klines("LUNAUSDT", interval, "2022-05-26", "2022-05-31")
        market.klines("LUNAUSDT", interval, "2022-05-31", "2022-06-03")


def test_prices_of_futures_have_any_interval(market: MarketData) -> None:
    prices = market.mark_price_klines("BTCUSDT", "3d", "2024-10-30", "2024-11-02", on_gap="ignore").df()
    assert prices.columns.tolist()[-2:] == ["parts", "complete"]
    assert "volume" not in prices
    begin = pd.Timestamp("2024-10-30", tz="UTC")
    assert prices[["open_time", "parts", "complete"]].values.tolist() == [[begin, 1, False]]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.klines("AUSDT", "7m", "2024-11-01"), "AUSDT has no stored interval in spot that divides 7m"),
        (lambda m: m.klines("AUSDT", "7m", "2024-11-01"), "Stored: 1h, 1d. Fetch 1m with sync=True"),
        (lambda m: m.klines("AUSD", "7m", "2024-11-01"), "AUSD is not stored in spot klines. Did you mean AUSDT"),
        (lambda m: m.klines("AUSDT", "1M", "2024-11-01"), "There is no kline interval '1M' in spot"),
        (
            lambda m: m.klines("AUSDT", "7s", "2024-11-01", market="um"),
            "No interval of um divides 7s. The shortest is 1m.",
        ),
        (
            lambda m: m.klines("AUSDT", "1d", "2024-11-01", tz="New_York"),
            "There is no time zone 'New_York'. Did you mean",
        ),
        (lambda m: m.klines("AUSDT", "4h", "2024-11-01", tz=NEW_YORK), "4h is shorter: leave tz out."),
        (lambda m: m.klines("AUSDT", "1d", "2024-11-01", tz="Asia/Kolkata"), "that divides 1d in Asia/Kolkata"),
        (lambda m: m.klines("AUSDT", "3h", "2024-11-01", columns="clsoe"), "no column 'clsoe'"),
        (lambda m: m.klines("AUSDT", "3h", "2024-11-01", on_gap="fill"), "There is no on_gap 'fill'"),
        (lambda m: m.klines("AUSDT", "3h", "2024-11-01", on_gap="ignore").wide("opne"), "no column 'opne'"),
    ],
)
def test_mistakes_have_clear_errors(market: MarketData, ask: Callable[[MarketData], Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        ask(market)
    assert message in str(raised.value)
