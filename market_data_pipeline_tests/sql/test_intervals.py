"""The macro ``candles`` with any interval, against pandas: gaps, origins, and days of a zone with 23 or 25 hours."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.cli.sql import run_query
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import INTERVALS
from market_data_pipeline.settings import load_settings
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline_tests.support.composition import assert_composed, composed_by_pandas, put_candles
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

at = datetime.fromisoformat

NEW_YORK = "America/New_York"

SOURCES = {
    "AUSDT": ("1m", days_from("2024-03-09", 3)),
    "BUSDT": ("15m", days_from("2024-02-20", 40)),  # New York: 23 hours on 2024-03-10
    "CUSDT": ("1h", days_from("2024-10-25", 20)),  # New York: 25 hours on 2024-11-03
    "DUSDT": ("1h", days_from("2024-11-01", 4)),  # without gaps
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallLake, dict[str, pd.DataFrame]]:
    lake = SmallLake(tmp_path_factory.mktemp("intervals") / "data")
    rows = {
        symbol: put_candles(lake, series(symbol, interval), days, seed, 0.0 if symbol == "DUSDT" else 0.4)
        for seed, (symbol, (interval, days)) in enumerate(SOURCES.items())
    }
    lake.put(series("EUSDT", "1d"), [date(2024, 1, 1), date(2024, 1, 3)])
    lake.put(series("EUSDT", "1h"), [date(2024, 1, 1)])
    return lake, rows


@pytest.fixture(scope="module")
def catalog(stored: tuple[SmallLake, object]) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(publish_catalog(stored[0].layout), read_only=True) as reader:
        reader.execute("SET TimeZone = 'Asia/Kathmandu'")
        yield reader


CASES = [
    ("AUSDT", "7m", "UTC"),
    *(("BUSDT", interval, "UTC") for interval in ("45m", "3h", "1d", "3d", "1w", "1mo")),
    *((symbol, interval, NEW_YORK) for symbol in ("BUSDT", "CUSDT", "DUSDT") for interval in ("1d", "1w", "1mo")),
    ("BUSDT", "1d", "Asia/Kolkata"),
]


@pytest.fixture(scope="module")
def by_pandas(stored: tuple[SmallLake, dict[str, pd.DataFrame]]) -> dict[tuple[str, str, str], pd.DataFrame]:
    return {
        (symbol, interval, zone): composed_by_pandas(stored[1][symbol], interval, INTERVALS[SOURCES[symbol][0]], zone)
        for symbol, interval, zone in CASES
    }


@settings(max_examples=sized(30, 100), deadline=None)
@given(case=st.sampled_from(CASES), begin=st.integers(-4000, 4000), minutes=st.integers(0, 60_000))
def test_candles_of_any_interval_equal_those_of_pandas(
    by_pandas: dict[tuple[str, str, str], pd.DataFrame],
    catalog: duckdb.DuckDBPyConnection,
    case: tuple[str, str, str],
    begin: int,
    minutes: int,
) -> None:
    symbol, interval, zone = case
    start = pd.Timestamp(SOURCES[symbol][1][0], tz="UTC") + pd.Timedelta(minutes=begin)
    end = start + pd.Timedelta(minutes=minutes)
    query = "FROM binance_spot.candles(?, ?, ?, ?, tz := ?)"
    frame = catalog.execute(query, [symbol, interval, start.isoformat(), end.isoformat(), zone]).df()
    for name in ("open_time", "close_time"):
        frame[name] = frame[name].dt.tz_localize("UTC")
    expected = by_pandas[case]
    assert_composed(frame, expected[(expected.index >= start) & (expected.index < end)])


def test_days_of_new_york_have_23_or_25_parts(catalog: duckdb.DuckDBPyConnection) -> None:
    query = "SELECT open_time, parts, complete FROM binance_spot.candles('DUSDT', '1d', '2024-11-02', tz := ?)"
    assert catalog.execute(query, [NEW_YORK]).fetchall() == [
        (at("2024-11-02T04:00"), 24, True),
        (at("2024-11-03T04:00"), 25, True),
        (at("2024-11-04T05:00"), 19, False),
    ]


@pytest.mark.parametrize(
    ("zone", "day", "begin", "hours"),
    [
        ("America/Sao_Paulo", "2018-11-04", "03:00", 23),  # its midnight was skipped
        ("America/Sao_Paulo", "2018-02-17", "02:00", 25),  # the hour before midnight came twice
        ("America/Havana", "2024-11-03", "04:00", 25),  # its midnight came twice
    ],
)
def test_days_whose_midnight_is_skipped_or_doubled(tmp_path: Path, zone: str, day: str, begin: str, hours: int) -> None:
    lake = SmallLake(tmp_path / "data")
    lake.put(series("BTCUSDT", "1h"), days_from(day, 3))
    with duckdb.connect(publish_catalog(lake.layout), read_only=True) as reader:
        query = "SELECT open_time, parts, complete FROM binance_spot.candles('BTCUSDT', '1d', ?, tz := ?) LIMIT 1"
        row = reader.execute(query, [day, zone]).fetchone()
    assert row == (datetime.fromisoformat(f"{day}T{begin}"), hours, True)


def test_own_candles_are_preferred_and_the_largest_divisor(catalog: duckdb.DuckDBPyConnection) -> None:
    query = "SELECT open_time, parts, complete FROM binance_spot.candles('EUSDT', ?, '2023-12-01')"
    own = [(at("2024-01-01"), 1, True), (at("2024-01-03"), 1, True)]
    assert catalog.execute(query, ["1d"]).fetchall() == own
    assert catalog.execute(query, ["24h"]).fetchall() == own
    assert catalog.execute(query, ["1mo"]).fetchall() == [(at("2024-01-01"), 2, False)]
    assert catalog.execute(query, ["4h"]).fetchall() == [
        (at("2024-01-01") + timedelta(hours=4 * number), 4, True) for number in range(6)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'CUSDT', '7m', NULL", "CUSDT has no stored interval in spot that divides 7m. Stored: 1h."),
        ("'CUSDT', '1d', NULL, tz := 'Asia/Kolkata'", "that divides 1d in Asia/Kolkata. Stored: 1h."),
        ("'NOPE', '7m', NULL", "NOPE has no stored interval in spot that divides 7m. Stored: none."),
        ("'CUSDT', '1M', NULL", "There is no interval 1M. Write a number up to 9999 and s, m, h, d, w or mo"),
        ("'CUSDT', '4h', NULL, tz := 'Asia/Tokyo'", "4h is shorter: leave tz out."),
    ],
)
def test_an_interval_that_divides_nothing_is_an_error(
    stored: tuple[SmallLake, object], catalog: duckdb.DuckDBPyConnection, arguments: str, message: str
) -> None:
    query = f"FROM binance_spot.candles({arguments})"
    with pytest.raises(duckdb.Error) as raised:
        catalog.execute(query)
    assert message in str(raised.value)
    with pytest.raises(UsageError) as told:
        run_query(load_settings(dir=stored[0].root), query)
    assert message in str(told.value)
