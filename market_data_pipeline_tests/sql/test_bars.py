"""The macros of bars and order flow, against exact sums in plain Python: gaps, missing days, days that are not over."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline import MarketData
from market_data_pipeline.cli.sql import run_query
from market_data_pipeline.derived.trade_profile import trade_profile
from market_data_pipeline.errors import UsageError
from market_data_pipeline.lake import parquet
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import load_settings
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline_tests.support.composition import put_candles
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.order_flow import (
    DAY,
    FOREVER,
    Group,
    Row,
    Trade,
    event_bars,
    of_intervals,
    put_trades,
    sums_of,
)
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

at = datetime.fromisoformat

UNTIL = at("2024-03-04T15:30")
CONTRACTS = {"BTCUSD_PERP": 100, "ADAUSD_PERP": 10}
STEPS = {
    "1m": timedelta(minutes=1),
    "45m": timedelta(minutes=45),
    "1h": timedelta(hours=1),
    "7h": timedelta(hours=7),
    "1d": DAY,
    "2d": 2 * DAY,
}


class Stored:
    """A lake with trades, and what is stored in it. No dataclass, because hypothesis would print all of it."""

    def __init__(self, lake: SmallLake, trades: Mapping[SeriesKey, Sequence[Trade]]) -> None:
        self.lake = lake
        self.trades = trades

    def until(self, trade: Trade) -> datetime:
        """Until when the trades of the day of a symbol's last trade are stored."""
        return UNTIL if trade.day == at("2024-03-04") else trade.day + DAY


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    lake = SmallLake(tmp_path_factory.mktemp("bars") / "data")
    whole = days_from("2024-03-01", 4)
    broken = [date(2024, 3, 1), date(2024, 3, 2), date(2024, 3, 4)]
    trades = {
        (key := series("WHOLE")): put_trades(lake, key, whole, 1, until=UNTIL),
        (key := series("HOLES")): put_trades(lake, key, broken, 2, missing=0.02, sentinels=0.1, until=UNTIL),
        (key := series("DAYS")): put_trades(lake, key, broken, 3, a_day=30, until=UNTIL),
        **{(key := series(symbol, None, "cm")): put_trades(lake, key, whole, 4, until=UNTIL) for symbol in CONTRACTS},
    }
    return Stored(lake, trades)


@pytest.fixture(scope="module")
def catalog(stored: Stored) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(publish_catalog(stored.lake.layout), read_only=True) as reader:
        reader.execute("SET TimeZone = 'Asia/Kathmandu'")
        yield reader


def rows_of(catalog: duckdb.DuckDBPyConnection, macro: str, arguments: Sequence[object]) -> list[Row]:
    """The rows of a macro, with its arguments as parameters."""
    found = catalog.execute(f"FROM {macro}({', '.join('?' * len(arguments))})", arguments)
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def assert_rows(found: Sequence[Row], expected: Sequence[Row], ignored: Sequence[str] = ()) -> None:
    """Compare the columns that are expected. Floats are sums of exact numbers, rounded to eight decimals."""
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert set(row) == {*wanted, "symbol", *ignored}
        for name, value in wanted.items():
            same = (
                math.isclose(row[name], float(value), rel_tol=1e-11, abs_tol=1.1e-8)
                if isinstance(row[name], float)
                else row[name] == value
            )
            assert same, (name, row, wanted)


SYMBOLS = st.sampled_from(["WHOLE", "HOLES", "DAYS", *CONTRACTS])
BEGINS = st.integers(-600, 5 * 1440)
LENGTHS = st.integers(0, 6 * 1440)


def arguments_of(
    stored: Stored, symbol: str, begin: int, minutes: int
) -> tuple[str, Sequence[Trade], tuple[datetime, datetime]]:
    """The schema of a symbol, its trades, and a range."""
    market = "cm" if symbol in CONTRACTS else "spot"
    start = at("2024-03-01") + timedelta(minutes=begin)
    return (
        f"binance_{market}",
        stored.trades[series(symbol, None, market)],
        (start, start + timedelta(minutes=minutes)),
    )


@settings(max_examples=sized(20, 60), deadline=None)
@given(symbol=SYMBOLS, interval=st.sampled_from([*STEPS]), begin=BEGINS, minutes=LENGTHS)
def test_time_bars_equal_those_of_plain_python(
    stored: Stored, catalog: duckdb.DuckDBPyConnection, symbol: str, interval: str, begin: int, minutes: int
) -> None:
    schema, trades, times = arguments_of(stored, symbol, begin, minutes)
    expected = [
        {"interval": interval, **row, **sums_of(group.trades, CONTRACTS.get(symbol))}
        for group, row in of_intervals(trades, STEPS[interval], *times, stored.until)
    ]
    assert_rows(rows_of(catalog, f"{schema}.time_bars", [symbol, interval, *times]), expected)


THRESHOLDS = st.sampled_from([Decimal("0.00000001"), *map(Decimal, ("0.1", "1", "7.5", "20", "300", "1e9"))])


@settings(max_examples=sized(20, 60), deadline=None)
@given(
    symbol=SYMBOLS,
    macro=st.sampled_from(["tick_bars", "volume_bars", "dollar_bars"]),
    threshold=THRESHOLDS,
    begin=BEGINS,
    minutes=LENGTHS,
)
def test_event_bars_equal_those_of_plain_python(
    stored: Stored,
    catalog: duckdb.DuckDBPyConnection,
    symbol: str,
    macro: str,
    threshold: Decimal,
    begin: int,
    minutes: int,
) -> None:
    schema, trades, times = arguments_of(stored, symbol, begin, minutes)
    contract = CONTRACTS.get(symbol)
    if macro == "tick_bars":
        threshold = Decimal(max(1, int(threshold)))
    weight = {
        "tick_bars": lambda trade: Decimal(trade.fills),
        "volume_bars": lambda trade: trade.quantity,
        "dollar_bars": lambda trade: trade.quantity * (trade.price if contract is None else contract),
    }[macro]
    argument = int(threshold) if macro == "tick_bars" else float(threshold)
    found = rows_of(catalog, f"{schema}.{macro}", [symbol, argument, *times])
    assert_rows(found, event_bars(trades, weight, threshold, *times, contract))


def levels_of(group: Group, step: Decimal) -> list[Row]:
    """The levels of a footprint, from the lowest."""
    levels: dict[Decimal, list[Trade]] = defaultdict(list)
    for trade in group.trades:
        if trade.is_real:
            levels[trade.price // step * step].append(trade)
    rows = []
    for level, trades in sorted(levels.items()):
        sides = {sold: [trade for trade in trades if trade.sold is sold] for sold in (False, True)}
        buy, sell = (sum((trade.quantity for trade in some), Decimal(0)) for some in sides.values())
        counts = [sum(trade.fills for trade in some) for some in sides.values()]
        rows.append(
            {
                "price": level,
                "buy_volume": buy,
                "sell_volume": sell,
                "delta": buy - sell,
                "buy_trades": counts[0],
                "sell_trades": counts[1],
            }
        )
    return rows


@settings(max_examples=sized(20, 60), deadline=None)
@given(
    symbol=SYMBOLS,
    interval=st.sampled_from([*STEPS]),
    step=st.sampled_from(["0.01", "0.07", "0.25", "1", "1000"]),
    begin=BEGINS,
    minutes=LENGTHS,
)
def test_footprint_equals_that_of_plain_python(
    stored: Stored, catalog: duckdb.DuckDBPyConnection, symbol: str, interval: str, step: str, begin: int, minutes: int
) -> None:
    schema, trades, times = arguments_of(stored, symbol, begin, minutes)
    expected = [
        {"interval": interval, **row, **level}
        for group, row in of_intervals(trades, STEPS[interval], *times, stored.until)
        for level in levels_of(group, Decimal(step))
    ]
    assert_rows(rows_of(catalog, f"{schema}.footprint", [symbol, interval, float(step), *times]), expected)


@settings(max_examples=sized(20, 60), deadline=None)
@given(symbol=SYMBOLS, interval=st.sampled_from([*STEPS]), begin=BEGINS, minutes=LENGTHS)
def test_vwap_and_delta_equal_those_of_plain_python(
    stored: Stored, catalog: duckdb.DuckDBPyConnection, symbol: str, interval: str, begin: int, minutes: int
) -> None:
    schema, trades, times = arguments_of(stored, symbol, begin, minutes)
    contract, running = CONTRACTS.get(symbol), Decimal(0)
    prices, deltas = [], []
    for group, row in of_intervals(trades, STEPS[interval], *times, stored.until):
        sums = sums_of(group.trades, contract)
        value = sums["quote_volume" if contract is None else "base_volume"]
        vwap = value / sums["volume"] if contract is None else sums["volume"] * contract / value
        names = ("volume", "quote_volume", "base_volume", "agg_trades")
        prices.append(
            {"interval": interval, **row, "vwap": vwap, **{name: sums[name] for name in names if name in sums}}
        )
        buy, sell = sums["taker_buy_volume"], sums["volume"] - sums["taker_buy_volume"]
        running = buy - sell + (running if row["missing"] == 0 else 0)
        sides = {"buy_volume": buy, "sell_volume": sell, "delta": buy - sell, "cumulative_delta": running}
        deltas.append({"interval": interval, **row, **sides})
    assert_rows(rows_of(catalog, f"{schema}.vwap", [symbol, interval, *times]), prices)
    assert_rows(rows_of(catalog, f"{schema}.cumulative_delta", [symbol, interval, *times]), deltas)


@pytest.mark.parametrize(("market", "symbol"), [("spot", "HOLES"), ("cm", "ADAUSD_PERP")])
@pytest.mark.parametrize("interval", ["1h", "1d"])
def test_profiles_of_intervals_equal_the_derived_ones(stored: Stored, market: str, symbol: str, interval: str) -> None:
    """The derived profile of an hour's trades, as if they were a day, is the profile of the hour."""
    found = MarketData(stored.lake.root)
    rows = found.sql(f"FROM binance_{market}.profile('{symbol}', '{interval}', '2024-03-01')").arrow().to_pylist()
    assert len(rows) >= 3
    trades = found.sql(f"FROM binance_{market}.trades('{symbol}', '2024-03-01')").arrow()
    session = duckdb.connect()
    for row in rows:
        times, begin = trades["transact_time"], row["open_time"]
        inside = pc.and_(pc.greater_equal(times, begin), pc.less(times, begin + STEPS[interval]))
        (expected,) = trade_profile(
            session.from_arrow(trades.filter(inside)), symbol=symbol, inverse=market == "cm"
        ).to_pylist()
        assert {name: row[name] for name in expected if name != "day"} == {
            name: value for name, value in expected.items() if name != "day"
        }


def test_missing_day_is_counted_and_never_bridged(catalog: duckdb.DuckDBPyConnection) -> None:
    query = (
        "SELECT open_time, missing, complete FROM binance_spot.time_bars('DAYS', ?, '2024-03-01', '2024-03-04T12:00')"
    )
    assert catalog.execute(query, ["1d"]).fetchall() == [
        (at("2024-03-01"), 0, True),
        (at("2024-03-02"), 0, True),
        (at("2024-03-04"), 30, False),  # it is not over
    ]
    assert catalog.execute(query, ["2d"]).fetchall() == [
        (at("2024-03-01"), 0, True),
        (at("2024-03-03"), 30, False),
    ]
    bars = rows_of(catalog, "binance_spot.volume_bars", ["DAYS", 20, "2024-03-01"])
    assert {(bar["day"].day, bar["bar"]): bar["missing"] for bar in bars if bar["missing"]} == {(4, 1): 30}
    assert all(bar["open_time"].day == bar["close_time"].day for bar in bars)


def test_first_bar_that_began_on_a_missing_day_is_incomplete(catalog: duckdb.DuckDBPyConnection) -> None:
    """A bar of 7 hours begins at 19:00, on a day that is not stored. No trade before it is in the range."""
    query = "SELECT open_time, complete FROM binance_spot.time_bars('DAYS', '7h', '2024-03-03', '2024-03-04T07:00')"
    assert catalog.execute(query).fetchall() == [(at("2024-03-03T19:00"), False), (at("2024-03-04T02:00"), True)]


def test_times_may_come_from_a_subquery(catalog: duckdb.DuckDBPyConnection) -> None:
    query = "SELECT count(*) FROM binance_spot.{}, (SELECT DATE '2024-03-01' + 1))"
    for macro in ("time_bars('WHOLE', '1d', DATE '2024-03-01'", "tick_bars('WHOLE', 1000000, DATE '2024-03-01'"):
        assert catalog.execute(query.format(macro)).fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("time_bars('WHOLE', '1x', '2024-03-01')", "There is no interval 1x. Write a number up to 9999"),
        ("vwap('WHOLE', NULL, '2024-03-01')", "There is no interval NULL."),
        ("cumulative_delta('OTHER', '1h', '2024-03-01')", "OTHER has no stored aggTrades in spot. Stored: DAYS, HOLES"),
        ("time_bars(NULL, '1h', '2024-03-01')", "NULL has no stored aggTrades in spot."),
        ("tick_bars('WHOLE', 0, '2024-03-01')", "n is 0. It must be a whole number of at least 1."),
        ("tick_bars('WHOLE', 1.5, '2024-03-01')", "n is 1.5. It must be a whole number of at least 1."),
        ("tick_bars('WHOLE', NULL, '2024-03-01')", "n is NULL. It must be"),
        ("volume_bars('WHOLE', -1, '2024-03-01')", "quantity is -1. It must be at least 0.00000001."),
        ("volume_bars('WHOLE', 1e-9, '2024-03-01')", "quantity is 1e-09. It must be at least 0.00000001."),
        ("dollar_bars('WHOLE', 'nan'::DOUBLE, '2024-03-01')", "quote is nan. It must be at least 0.00000001."),
        ("footprint('WHOLE', '1h', 0, '2024-03-01')", "price_step is 0. It must be at least 0.00000001."),
        (
            "time_bars('WHOLE', '1h', '2024-03-02', '2024-03-01T12:00')",
            "The range begins at 2024-03-02 00:00:00 and ends before that, at 2024-03-01 12:00:00.",
        ),
        ("dollar_bars('WHOLE', 1, '2024-03-02', '2024-03-01')", "The range begins at 2024-03-02 00:00:00"),
    ],
)
def test_wrong_arguments_are_named(stored: Stored, catalog: duckdb.DuckDBPyConnection, call: str, message: str) -> None:
    with pytest.raises(duckdb.Error) as raised:
        catalog.execute(f"FROM binance_spot.{call}").fetchall()
    assert message in str(raised.value)
    with pytest.raises(UsageError) as told:
        MarketData(stored.lake.root).sql(f"FROM binance_spot.{call}").arrow()
    assert message in str(told.value)


def test_market_without_trades_has_the_same_macros(stored: Stored) -> None:
    market = MarketData(stored.lake.root)
    for call in ("time_bars('BTCUSDT', '1h', '2024-03-01')", "volume_bars('BTCUSDT', 1, '2024-03-01')"):
        with pytest.raises(UsageError, match=r"BTCUSDT has no stored aggTrades in um. Stored: none\."):
            market.sql(f"SELECT volume FROM binance_um.{call}").arrow()
    with pytest.raises(UsageError, match=r"BTCUSDT has no stored fundingRate in um. Stored: none\."):
        market.sql("FROM binance_um.perp_returns('BTCUSDT', '1h', '2024-03-01')").arrow()


def test_all_doors_answer_the_same(stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    query = "SELECT sum(volume) AS volume, count(*) AS bars FROM {}binance_spot.dollar_bars('WHOLE', 5, '2024-03-01')"
    expected = MarketData(stored.lake.root).sql(query.format("")).arrow().to_pylist()
    assert expected[0]["bars"] > 100
    run_query(load_settings(dir=stored.lake.root), query.format(""), "csv")
    assert capsys.readouterr().out.splitlines()[1] == ",".join(map(str, expected[0].values()))
    with duckdb.connect() as reader:
        reader.execute(f"ATTACH '{publish_catalog(stored.lake.layout)}' AS other (READ_ONLY)")
        assert reader.sql(query.format("other.")).to_arrow_table().to_pylist() == expected


# --- returns of perpetual futures -------------------------------------------------------------------------------------


def put_funding(lake: SmallLake, key: SeriesKey, payments: Sequence[tuple[datetime, int, float]]) -> None:
    by_day: dict[date, list[tuple[datetime, int, float]]] = defaultdict(list)
    for payment in payments:
        by_day[payment[0].date()].append(payment)
    schema = lake_schema(key.market, key.data_type)
    for day, some in by_day.items():
        times, hours, rates = zip(*some, strict=True)
        columns: dict[str, Sequence[Any]] = {
            "calc_time": times,
            "funding_interval_hours": hours,
            "last_funding_rate": rates,
        }
        symbols = pa.array([key.symbol] * len(some)).dictionary_encode().cast(schema.field("symbol").type)
        arrays: list[pa.Array[Any]] = [
            symbols if field.name == "symbol" else pa.array(columns[field.name]).cast(field.type) for field in schema
        ]
        lake.put_table(key, day, pa.table(arrays, schema=schema))


@pytest.mark.parametrize("market", ["um", "cm"])
def test_perp_returns_equal_those_of_plain_python(tmp_path: Path, market: str) -> None:
    """Payments at 16:00 of the second day and on the fourth day are missing. So are candles."""
    lake = SmallLake(tmp_path / "data")
    start, late = at("2024-03-01"), timedelta(milliseconds=3)
    put_candles(lake, series("BTCUSD", "1h", market), days_from("2024-03-01", 5), 5, 0.1)
    due = [start + timedelta(hours=8 * n) for n in range(9)]
    stored = [(moment + late, 8, (n + 1) / 1e4) for n, moment in enumerate(due) if n != 5]
    put_funding(lake, series("BTCUSD", None, market, "fundingRate"), stored)
    # A payment proves what is due from the one before it to the one after it.
    unknown = [(due[4] + timedelta(hours=8), due[4] + timedelta(hours=8)), (due[-1] + timedelta(hours=8), FOREVER)]
    found = MarketData(lake.root)
    candles = found.sql(f"FROM binance_{market}.candles('BTCUSD', '1h', '2024-03-01')").arrow().to_pylist()
    rows = found.sql(f"FROM binance_{market}.perp_returns('BTCUSD', '1h', '2024-03-01')").arrow().to_pylist()
    assert len(rows) == len(candles) > 90
    before: Row | None = None
    for row, candle in zip(rows, candles, strict=True):
        opens, closes = (candle[name].replace(tzinfo=None) for name in ("open_time", "close_time"))
        price = None
        if before is not None and before["open_time"].replace(tzinfo=None) == opens - timedelta(hours=1):
            change = candle["close"] / before["close"]
            price = change - 1 if market == "um" else 1 - 1 / change
        paid = [rate for moment, _, rate in stored if opens <= moment <= closes]
        known = not any(first <= closes and last >= opens for first, last in unknown)
        assert row["open_time"] == candle["open_time"]
        assert row["payments"] == (len(paid) if known else None)
        assert row["funding"] == (pytest.approx(sum(paid)) if known else None)
        assert row["price_return"] == (None if price is None else pytest.approx(price))
        assert row["complete"] is (known and price is not None)
        both = known and price is not None
        assert row["total_return"] == (pytest.approx(row["price_return"] - row["funding"]) if both else None)
        before = candle
    assert {row["complete"] for row in rows} == {True, False}


# --- memory -----------------------------------------------------------------------------------------------------------

LARGE_DAY, LARGE_LIMIT_MB = sized((400_000, 50), (1_000_000, 100))
LARGE_STEP = DAY // timedelta(microseconds=LARGE_DAY)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> SmallLake:
    """Three days of many trades, 100,000 coins each."""
    lake = SmallLake(tmp_path_factory.mktemp("large") / "data")
    key = series("BTCUSDT")
    lake.put(key, days_from("2024-01-01", 1))
    schema = lake_schema(key.market, key.data_type)
    with duckdb.connect() as maker:
        for day in days_from("2024-01-01", 3):
            first = day.day * LARGE_DAY
            table = maker.sql(
                f"""SELECT '{key.symbol}' AS symbol, i + {first} AS agg_trade_id, 40000.0 + i % 1000 / 10 AS price,
                    {100_000 / LARGE_DAY} AS quantity, i + {first} AS first_trade_id, i + {first} AS last_trade_id,
                    TIMESTAMP '{day}' + to_microseconds(i * {LARGE_STEP}) AS transact_time, i % 3 = 0 AS is_buyer_maker,
                    true AS is_best_match FROM range({LARGE_DAY}) AS t(i)"""
            ).to_arrow_table()
            arrays = [
                table[field.name].combine_chunks().dictionary_encode().cast(field.type)
                if pa.types.is_dictionary(field.type)
                else table[field.name].cast(field.type)
                for field in schema
            ]
            parquet.write_table(lake.layout.file(key, day), pa.table(arrays, schema=schema))
    return lake


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "bars", "volume"),
    [
        ("time_bars('BTCUSDT', '1m', '2024-01-01')", 3 * 1440, 300_000),
        (f"tick_bars('BTCUSDT', {LARGE_DAY // 1000}, '2024-01-01')", 3000, 300_000),
        ("volume_bars('BTCUSDT', 100, '2024-01-01')", 3000, 300_000),
        ("dollar_bars('BTCUSDT', 1e6, '2024-01-01')", 3 * 4005, 300_000),
    ],
)
def test_memory_does_not_grow_with_the_trades(large: SmallLake, call: str, bars: int, volume: float) -> None:
    """The rows that a query needs of the three days take about twice the memory that DuckDB may use."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{LARGE_LIMIT_MB}MB",
        "temp_directory": str(large.root.parent / "spill"),
        "threads": 2,
    }
    with duckdb.connect(publish_catalog(large.layout), read_only=True, config=config) as reader:
        table = reader.sql(f"FROM binance_spot.{call}").to_arrow_table()
    assert table.num_rows == bars
    assert sum(table["volume"].to_pylist()) == pytest.approx(volume)
    assert sum(table["agg_trades"].to_pylist()) == 3 * LARGE_DAY
