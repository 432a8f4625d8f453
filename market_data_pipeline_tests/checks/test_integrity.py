"""Each rule of the integrity check finds what it is there for, and a sound day has no finding."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from market_data_pipeline.checks.integrity import check_integrity
from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.series import SeriesKey, interval_us
from market_data_pipeline_tests.checks.test_gaps import START, candles, trades
from market_data_pipeline_tests.support.world import agg_trades, klines

HOURS = klines("BTCUSDT", "1h")
OPENED = [START + n * interval_us("1h") for n in range(24)]
TRADES = agg_trades("BTCUSDT")


def by_rule(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.rule: finding for finding in findings}


def spoilt(table: pa.Table, column: str, value: object, row: int = 5) -> pa.Table:
    """The table with one value changed."""
    at = table.column_names.index(column)
    values = table.column(column).to_pylist()
    values[row] = value
    return table.set_column(at, column, pa.array(values, table.schema.field(column).type))


@pytest.mark.parametrize(
    ("column", "value", "rule", "severity"),
    [
        ("open", float("nan"), "finite", "error"),
        ("close", float("inf"), "finite", "error"),
        ("low", 1.5, "price_range", "error"),
        ("high", 0.5, "price_range", "error"),
        ("volume", -1.0, "negative", "error"),
        ("count", -1, "negative_count", "error"),
        ("taker_buy_volume", 2.1, "taker", "error"),
        ("taker_buy_quote_volume", 2.1, "taker", "error"),
        ("close_time", None, "close_time", "warn"),
        ("open_time", None, "off_grid", "info"),
    ],
)
def test_a_candle_that_cannot_be_is_found(column: str, value: object, rule: str, severity: str) -> None:
    table = candles(HOURS, OPENED)
    assert check_integrity(HOURS, table) == []
    if value is None:
        value = table.column(column)[5].as_py().replace(second=14)
    found = by_rule(check_integrity(HOURS, spoilt(table, column, value)))
    assert found[rule].severity == severity
    assert found[rule].count == 1
    assert found[rule].message.startswith("1 of 24 rows: ")


def test_candle_ends_one_time_unit_before_the_next() -> None:
    """The unit is a millisecond or a microsecond."""
    table = candles(HOURS, OPENED)
    in_milliseconds = np.array(OPENED, dtype=np.int64) + interval_us("1h") - 1000
    at = table.column_names.index("close_time")
    table = table.set_column(at, "close_time", pa.array(in_milliseconds).cast(pa.timestamp("us")))
    assert check_integrity(HOURS, table) == []


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [("price", 0.0, "positive"), ("quantity", -1.0, "positive"), ("price", float("nan"), "finite"),
     ("last_trade_id", 1, "trade_ids")],
)  # fmt: skip
def test_a_trade_that_cannot_be_is_found(column: str, value: object, rule: str) -> None:
    table = trades(TRADES, list(range(50, 60)))
    assert check_integrity(TRADES, table) == []
    assert by_rule(check_integrity(TRADES, spoilt(table, column, value)))[rule].count == 1


def test_a_sentinel_row_of_spot_is_no_fault() -> None:
    table = trades(TRADES, list(range(50, 60)))
    for column, value in (("price", 0.0), ("quantity", 0.0), ("first_trade_id", -1), ("last_trade_id", -1)):
        table = spoilt(table, column, value)
    assert check_integrity(TRADES, table) == []


def test_a_day_without_rows_has_nothing_to_find() -> None:
    key: SeriesKey = HOURS
    assert check_integrity(key, candles(key, [])) == []
