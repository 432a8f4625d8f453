"""Exports are read back by freqtrade's own loader and NautilusTrader's own catalog."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from click.testing import CliRunner

from market_data_pipeline import MarketData, clock
from market_data_pipeline.cli import main
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline_tests.clients import run_client
from market_data_pipeline_tests.support.small_lake import series
from market_data_pipeline_tests.support.world import World, days

pytestmark = [pytest.mark.clients, pytest.mark.slow]

DAYS = days("2026-03-02", "2026-03-03")
KEYS = [
    series("BTCUSDT", "1h"),
    series("BTCUSDT", "1h", "um"),
    series("BTCUSDT", "1h", "um", DataType.MARK_PRICE_KLINES),
    series("BTCUSDT", None, "um", DataType.FUNDING_RATE),
    series("BTCUSDT", None, "um"),
    series("BTCUSD_PERP", "1h", "cm"),
]


@pytest.fixture
def lake(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A lake with candles, mark prices, funding rates and trades of an exchange."""
    world.set(dir=world.root / "data")
    world.layout = Layout(world.root / "data")
    for key in KEYS:
        world.ingest(key, DAYS)
    monkeypatch.setenv("MARKET_DATA_DIR", str(world.layout.root))
    monkeypatch.chdir(world.root)
    return world


def exported(lake: World, form: str) -> str:
    result = CliRunner().invoke(main, ["export", form, f"out/{form}"])
    assert result.exit_code == 0, result.output
    return str(lake.root / "out" / form)


def stored(lake: World, key: SeriesKey) -> list[dict[str, Any]]:
    """Return all stored rows of a series."""
    ask = getattr(MarketData(lake.layout.root), key.data_type.sql_name)
    interval = (key.interval,) if key.interval else ()
    rows = ask(key.symbol, *interval, DAYS[0], DAYS[-1] + clock.DAY, market=str(key.market), on_gap="ignore")
    found: list[dict[str, Any]] = rows.arrow().to_pylist()
    return found


def milliseconds(moment: datetime) -> int:
    return clock.to_us(moment) // 1000


def test_freqtrade_loads_an_export_without_a_warning(lake: World) -> None:
    found = run_client("freqtrade", "read_freqtrade.py", exported(lake, "freqtrade"))
    assert found["log"] == []
    data = found["data"]
    assert set(data) == {
        "BTC/USDT 1h spot",
        "BTC/USDT:USDT 1h futures",
        "BTC/USDT:USDT 1h mark",
        "BTC/USDT:USDT 1h funding_rate",
        "BTC/USDT:USDT trades",
        "BTC/USD:BTC 1h futures",
    }
    prices = ("open", "high", "low", "close")
    for name, key in zip(("BTC/USDT 1h spot", "BTC/USDT:USDT 1h futures", "BTC/USDT:USDT 1h mark"), KEYS, strict=False):
        assert [[row[one] for one in prices] for row in data[name]] == [
            [row[one] for one in prices] for row in stored(lake, key)
        ]
        assert [datetime.fromisoformat(row["date"]) for row in data[name]] == [
            row["open_time"] for row in stored(lake, key)
        ]
    assert [row["funding_rate"] for row in data["BTC/USDT:USDT 1h funding_rate"]] == [
        row["last_funding_rate"] for row in stored(lake, KEYS[3])
    ]
    assert [
        (row["timestamp"], row["id"], row["side"] == "sell", row["price"], row["amount"])
        for row in data["BTC/USDT:USDT trades"]
    ] == [
        (
            milliseconds(row["transact_time"]),
            str(row["agg_trade_id"]),
            row["is_buyer_maker"],
            row["price"],
            row["quantity"],
        )
        for row in stored(lake, KEYS[4])
    ]


def test_freqtrade_joins_mark_and_funding_of_an_export(lake: World) -> None:
    """Its backtest computes funding fees from rows of both files with one time."""
    found = run_client("freqtrade", "read_freqtrade.py", exported(lake, "freqtrade"))
    marks = {row["open_time"]: row["open"] for row in stored(lake, KEYS[2])}
    expected = [
        [at, marks[at], row["last_funding_rate"]]
        for row in stored(lake, KEYS[3])
        if (at := row["calc_time"].replace(minute=0, second=0, microsecond=0))
    ]
    fees = found["fees"]["BTC/USDT:USDT"]
    assert len(fees) == 6
    assert [[datetime.fromisoformat(fee["date"]), fee["open_mark"], fee["open_fund"]] for fee in fees] == expected


def test_nautilus_loads_an_export_as_its_catalog(lake: World) -> None:
    found = run_client("nautilus", "read_nautilus.py", exported(lake, "nautilus"))
    data, perpetual = found["data"], "BTCUSDT-PERP.BINANCE"
    names = [
        "BTCUSDT.BINANCE-1-HOUR-LAST-EXTERNAL",
        f"{perpetual}-1-HOUR-LAST-EXTERNAL",
        f"{perpetual}-1-HOUR-MARK-EXTERNAL",
        f"{perpetual} funding",
        f"{perpetual} trades",
        "BTCUSD-PERP.BINANCE-1-HOUR-LAST-EXTERNAL",
    ]
    assert set(data) == set(names)
    for name, key in zip(names[:3], KEYS, strict=False):
        columns = ("open", "high", "low", "close", "volume")
        assert [([float(row[one]) for one in columns], row["ts_event"]) for row in data[name]] == [
            ([row.get(one, 0.0) for one in columns], nanoseconds(row["close_time"])) for row in stored(lake, key)
        ]
    assert [(float(row["rate"]), row["interval"], row["ts_event"]) for row in data[names[3]]] == [
        (row["last_funding_rate"], 60 * row["funding_interval_hours"], nanoseconds(row["calc_time"]))
        for row in stored(lake, KEYS[3])
    ]
    assert [
        (row["trade_id"], row["aggressor_side"] == "SELLER", float(row["price"]), float(row["size"]), row["ts_event"])
        for row in data[names[4]]
    ] == [
        (
            str(row["agg_trade_id"]),
            row["is_buyer_maker"],
            row["price"],
            row["quantity"],
            nanoseconds(row["transact_time"]),
        )
        for row in stored(lake, KEYS[4])
    ]
    assert {name: one["type"] for name, one in found["instruments"].items()} == {
        "BTCUSDT.BINANCE": "CurrencyPair",
        perpetual: "CryptoPerpetual",
        "BTCUSD-PERP.BINANCE": "CryptoPerpetual",
    }


def test_nautilus_runs_a_backtest_over_an_export(lake: World) -> None:
    found = run_client("nautilus", "read_nautilus.py", exported(lake, "nautilus"))
    assert found["bars"] == sum(len(stored(lake, key)) for key in (KEYS[0], KEYS[1], KEYS[5])) == 3 * 48


def nanoseconds(moment: datetime) -> int:
    return clock.to_us(moment) * 1000
