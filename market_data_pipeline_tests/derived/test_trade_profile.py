"""tradeProfile beside a reading of the same trades with exact decimals in plain Python."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.derived.trade_profile import trade_profile
from market_data_pipeline.model.lineage import profile_of, source_of
from market_data_pipeline.model.schema import TRADE_PROFILE_SCHEMA
from market_data_pipeline.model.series import DataType, Market, SeriesKey
from market_data_pipeline_tests.support.full_size import sized

DAY = datetime(2024, 1, 1)  # noqa: DTZ001  # the lake's times have no zone
SENTINEL = -1


@dataclass(frozen=True)
class Trade:
    price: Decimal
    quantity: Decimal
    fills: int = 1
    buyer_is_maker: bool = False
    seconds: int = 0
    sentinel: bool = False


@cache
def session() -> duckdb.DuckDBPyConnection:
    """One for all tests: to open a DuckDB takes longer than most of them."""
    return duckdb.connect()


def relation(trades: Sequence[Trade]) -> duckdb.DuckDBPyRelation:
    table = pa.table(
        {
            "agg_trade_id": pa.array(range(len(trades)), pa.int64()),
            "price": pa.array([0.0 if t.sentinel else float(t.price) for t in trades], pa.float64()),
            "quantity": pa.array([0.0 if t.sentinel else float(t.quantity) for t in trades], pa.float64()),
            "first_trade_id": pa.array(
                [SENTINEL if t.sentinel else 1000 * n for n, t in enumerate(trades)], pa.int64()
            ),
            "last_trade_id": pa.array(
                [SENTINEL if t.sentinel else 1000 * n + t.fills - 1 for n, t in enumerate(trades)], pa.int64()
            ),
            "transact_time": pa.array([DAY + timedelta(seconds=t.seconds) for t in trades], pa.timestamp("us")),
            "is_buyer_maker": pa.array([t.buyer_is_maker for t in trades], pa.bool_()),
        }
    )
    return session().from_arrow(table)


def profile(trades: Sequence[Trade], *, inverse: bool = False, level_size: float = 0.0) -> list[dict[str, Any]]:
    table = trade_profile(relation(trades), symbol="BTCUSDT", inverse=inverse, level_size=level_size)
    assert table.schema.equals(TRADE_PROFILE_SCHEMA)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def exact_profile(trades: Sequence[Trade], *, inverse: bool, level: Decimal) -> dict[str, Any]:
    """One day's row with exact numbers, and the given level size."""
    with localcontext() as context:
        context.prec = 60
        real = [t for t in trades if not t.sentinel]
        volume = sum((t.quantity for t in real), Decimal(0))
        weighted = sum((t.quantity / t.price if inverse else t.quantity * t.price for t in real), Decimal(0))
        levels: dict[Decimal, Decimal] = defaultdict(Decimal)
        for t in real:
            levels[t.price // level * level] += t.quantity
        control = min(levels, key=lambda price: (-levels[price], price))
        buy = sum((t.quantity for t in real if not t.buyer_is_maker), Decimal(0))
        return {
            "vwap": volume / weighted if inverse else weighted / volume,
            "high": max(t.price for t in real),
            "low": min(t.price for t in real),
            "point_of_control": control,
            "point_of_control_volume": levels[control],
            "level_size": level,
            "volume": volume,
            "buy_volume": buy,
            "sell_volume": volume - buy,
            "cumulative_delta": buy - (volume - buy),
            "trades": sum(t.fills for t in real),
            "agg_trades": len(real),
        }


steps = st.integers(1, 10**13).map(lambda n: Decimal(n).scaleb(-8))
a_trade = st.builds(
    Trade,
    price=st.integers(1, 10**12).map(lambda n: Decimal(n).scaleb(-8)),
    quantity=steps,
    fills=st.integers(1, 100),
    buyer_is_maker=st.booleans(),
    seconds=st.integers(0, 86_399),
    sentinel=st.sampled_from([False, False, False, True]),
)


@settings(max_examples=sized(30, 100))
@given(
    trades=st.lists(a_trade, min_size=1, max_size=30).filter(lambda found: not all(t.sentinel for t in found)),
    inverse=st.booleans(),
    level_exponent=st.integers(-8, 3),
)
def test_profile_equals_sums_of_exact_decimals(trades: list[Trade], inverse: bool, level_exponent: int) -> None:
    level = Decimal(1).scaleb(level_exponent)
    [row] = profile(trades, inverse=inverse, level_size=float(level))
    for name, expected in exact_profile(trades, inverse=inverse, level=level).items():
        assert row[name] == pytest.approx(float(expected), rel=1e-12, abs=1e-7), name


@settings(max_examples=sized(20, 60))
@given(price=st.integers(1, 10**14).map(lambda n: Decimal(n).scaleb(-8)))
def test_level_is_a_power_of_ten_up_to_a_ten_thousandth_of_price(price: Decimal) -> None:
    [row] = profile([Trade(price, Decimal(1))])
    size = Decimal(str(row["level_size"]))
    assert size.normalize().as_tuple().digits == (1,)
    assert size <= max(price * Decimal("0.0001") * Decimal("1.000001"), Decimal("1e-8"))
    assert size * 10 > price * Decimal("0.00009999")


@pytest.mark.parametrize(("price", "size"), [("60000", 1.0), ("3200", 0.1), ("0.29", 0.00001), ("0.00000001", 1e-8)])
def test_level_sizes_one_expects(price: str, size: float) -> None:
    assert profile([Trade(Decimal(price), Decimal(1))])[0]["level_size"] == pytest.approx(size, rel=1e-12)


def test_a_price_on_the_edge_of_a_level_belongs_to_it() -> None:
    """0.29 / 0.01 is 28.999… in floating point, and the trade fell into the level below."""
    [row] = profile([Trade(Decimal("0.29"), Decimal(1))], level_size=0.01)
    assert row["point_of_control"] == 0.29


def test_equal_levels_name_the_lowest() -> None:
    trades = [
        Trade(Decimal(101), Decimal("0.3")),
        Trade(Decimal(100), Decimal("0.1")),
        Trade(Decimal(100), Decimal("0.2")),
    ]
    assert profile(trades, level_size=1)[0]["point_of_control"] == 100


def test_inverse_contracts_weigh_by_their_base_asset() -> None:
    # 100 contracts at 10,000 and 100 at 20,000: the mean price by coins is 13,333, not 15,000.
    trades = [Trade(Decimal(10_000), Decimal(100)), Trade(Decimal(20_000), Decimal(100))]
    assert profile(trades, inverse=True)[0]["vwap"] == pytest.approx(200 / (100 / 10_000 + 100 / 20_000))


def test_each_day_has_its_own_row_and_a_day_without_trades_none() -> None:
    two_days = 2 * 86_400
    trades = [Trade(Decimal(100), Decimal(1)), Trade(Decimal(200), Decimal(1), seconds=two_days)]
    assert [(row["day"], row["vwap"]) for row in profile(trades)] == [(date(2024, 1, 1), 100), (date(2024, 1, 3), 200)]
    assert profile([]) == []
    assert profile([Trade(Decimal(1), Decimal(1), sentinel=True)]) == []


def test_a_profile_and_its_source_name_one_another() -> None:
    source = SeriesKey("binance", Market.CM, DataType.AGG_TRADES, "BTCUSD_PERP")
    assert str(profile_of(source)) == "binance/cm/tradeProfile/BTCUSD_PERP"
    assert source_of(profile_of(source)) == source
