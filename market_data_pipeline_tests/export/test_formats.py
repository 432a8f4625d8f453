"""The bytes of each format, compared with files that the tools' own projects recorded."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline import MarketData, clock
from market_data_pipeline.errors import UsageError
from market_data_pipeline.export import FORMATS, days_to_export, export_series
from market_data_pipeline.export.pairs import Pair, Pairs
from market_data_pipeline.model.datasets import data_types_of
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import DataType, Market, SeriesKey
from market_data_pipeline.universe.exchange_info import EXCHANGE_INFO_SCHEMA, store_snapshot
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from, series

DAY = date(2022, 12, 13)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallLake:
    monkeypatch.setattr(clock, "now", lambda: datetime(2026, 3, 5, 12, tzinfo=UTC))
    return SmallLake(tmp_path / "data")


def export(lake: SmallLake, form: str, *keys: SeriesKey) -> Path:
    """Export series with all their days. Return the folder."""
    folder = lake.root.parent / form
    days = days_to_export(lake.layout, keys, None, None)
    assert len(list(export_series(lake.layout, FORMATS[form], folder, days, None, None, dict))) == len(keys)
    return folder


def filled(key: SeriesKey, columns: dict[str, Any]) -> pa.Table:
    """Return a table with the given columns, and zeros in the others."""
    rows = len(next(iter(columns.values())))
    labels = {name: [getattr(key, name)] * rows for name in ("symbol", "interval")}
    arrays = []
    for field in lake_schema(key.market, key.data_type):
        values = columns.get(field.name, labels.get(field.name, np.zeros(rows, dtype=np.int64)))
        array = pa.array(values)
        arrays.append(array.dictionary_encode() if pa.types.is_dictionary(field.type) else array.cast(field.type))
    return pa.table(arrays, schema=lake_schema(key.market, key.data_type))


def candles(key: SeriesKey, opens: list[int], prices: dict[str, Any]) -> pa.Table:
    """Return candles with open times in microseconds."""
    return filled(key, {"open_time": opens, "close_time": [at + key.step - 1 for at in opens], **prices})


# --- LEAN ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("specimen", "key", "path"),
    [
        ("crypto_minute_btcbusd", series("BTCBUSD", "1m"), "crypto/binance/minute/btcbusd"),
        ("minute_adausdt", series("ADAUSDT", "1m", "um"), "cryptofuture/binance/minute/adausdt"),
        ("minute_btcusd", series("BTCUSD_PERP", "1m", "cm"), "cryptofuture/binance/minute/btcusd"),
    ],
)
def test_lean_minutes_equal_those_of_lean(
    realdata: Path, lake: SmallLake, specimen: str, key: SeriesKey, path: str
) -> None:
    with zipfile.ZipFile(realdata / "datatypes" / "QuantConnect__Lean" / f"{specimen}_20221213_trade.zip") as zipped:
        [member] = zipped.namelist()
        text = zipped.read(member)
    lines = list(zip(*csv.reader(io.StringIO(text.decode())), strict=True))
    opens = [clock.day_start_us(DAY) + int(at) * 1000 for at in lines[0]]
    names = ("open", "high", "low", "close", "volume")
    lake.put_table(
        key, DAY, candles(key, opens, {n: [float(v) for v in c] for n, c in zip(names, lines[1:], strict=True)})
    )
    with zipfile.ZipFile(export(lake, "lean", key) / path / "20221213_trade.zip") as zipped:
        assert zipped.namelist() == [member]
        assert zipped.read(member) == text


def test_lean_funding_equals_that_of_lean(realdata: Path, lake: SmallLake) -> None:
    key = series("BTCUSD_PERP", None, "cm", "fundingRate")
    specimen = (realdata / "datatypes" / "QuantConnect__Lean" / "margin_interest_btcusd.csv").read_text()
    of_days: dict[date, list[tuple[int, float]]] = {}
    for line in specimen.splitlines():
        text, rate = line.split(",")
        at = datetime.strptime(text, "%Y%m%d %H:%M:%S").replace(tzinfo=UTC)
        of_days.setdefault(at.date(), []).append((clock.to_us(at) + 7_000, float(rate)))  # late by 7 ms, as Binance's
    for day, rates in of_days.items():
        times, values = zip(*rates, strict=True)
        lake.put_table(key, day, filled(key, {"calc_time": times, "last_funding_rate": values}))
    assert (export(lake, "lean", key) / "cryptofuture/binance/margin_interest/btcusd.csv").read_text() == specimen


def test_lean_has_hours_and_days_in_one_zip(lake: SmallLake) -> None:
    spot, um = series("BTCUSDT", "1h"), series("BTCUSDT", "1d", "um")
    for key in (spot, um):
        lake.put(key, days_from("2024-01-31", 2))
    folder = export(lake, "lean", spot, um)
    with zipfile.ZipFile(folder / "crypto/binance/hour/btcusdt_trade.zip") as zipped:
        lines = zipped.read("btcusdt.csv").decode().split("\n")
    assert (len(lines), lines[0], lines[-1]) == (48, "20240131 00:00,0,0,0,0,0", "20240201 23:00,23,0,0,0,0")
    with zipfile.ZipFile(folder / "cryptofuture/binance/daily/btcusdt_trade.zip") as zipped:
        assert zipped.read("btcusdt_trade_perp.csv") == b"20240131 00:00,0,0,0,0,0\n20240201 00:00,0,0,0,0,0"


def test_lean_ticks_have_microseconds_as_decimals(lake: SmallLake) -> None:
    key = series("BTCUSDT")
    times = [clock.day_start_us(DAY) + 1, clock.day_start_us(DAY) + 1_500]
    columns = {"transact_time": times, "agg_trade_id": [7, 8], "price": [1e-7, 2.5], "quantity": [1e3, 1.0]}
    lake.put_table(key, DAY, filled(key, columns))
    with zipfile.ZipFile(export(lake, "lean", key) / "crypto/binance/tick/btcusdt/20221213_trade.zip") as zipped:
        assert zipped.read("20221213_btcusdt_tick_trade.csv") == b"0.001,0.0000001,1000,0\n1.5,2.5,1,0"


# --- freqtrade -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", ["BTC", "1000PEPE"])
@pytest.mark.parametrize("kind", ["mark", "funding_rate"])
def test_freqtrade_futures_equal_those_of_freqtrade(realdata: Path, lake: SmallLake, symbol: str, kind: str) -> None:
    name = f"{symbol}_USDT_USDT-1h-{kind}.feather"
    specimen = feather.read_table(realdata / "datatypes" / "Harthor__marketlab" / name)
    first = specimen["date"][0].as_py().date()
    days = days_from(first.isoformat(), 40)
    is_mark = kind == "mark"
    key = series(f"{symbol}USDT", "1h" if is_mark else None, "um", "markPriceKlines" if is_mark else "fundingRate")
    for day in days:
        rows = of_day(specimen, day)
        at = rows["date"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        if is_mark:
            prices = {name: rows[name].to_pylist() for name in ("open", "high", "low", "close")}
            lake.put_table(key, day, candles(key, at.tolist(), prices))
        else:
            lake.put_table(
                key, day, filled(key, {"calc_time": at + 3_000, "last_funding_rate": rows["open"].to_pylist()})
            )
    found = feather.read_table(export(lake, "freqtrade", key) / "futures" / name)
    assert found.schema.equals(specimen.schema.remove_metadata())
    assert found.equals(specimen.filter(pc.less(specimen["date"], pa.scalar(midnight(days[-1] + clock.DAY)))))


def of_day(table: pa.Table, day: date) -> pa.Table:
    after, before = (pa.scalar(midnight(one), table.schema.field("date").type) for one in (day, day + clock.DAY))
    return table.filter(pc.and_(pc.greater_equal(table["date"], after), pc.less(table["date"], before)))


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def test_freqtrade_names_files_by_pair(lake: SmallLake) -> None:
    keys = [
        series("ETHBTC", "1h"),
        series("BTCUSDT", "1h", "um"),
        series("BTCUSDT_240329", "1h", "um"),
        series("BTCUSD_PERP", "1h", "cm"),
        series("BTCUSDT"),
    ]
    for key in keys:
        lake.put(key, days_from("2024-01-01", 1))
    folder = export(lake, "freqtrade", *keys)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.feather")} == {
        "ETH_BTC-1h.feather",
        "BTC_USDT-trades.feather",
        "futures/BTC_USDT_USDT-1h-futures.feather",
        "futures/BTC_USDT_USDT-240329-1h-futures.feather",
        "futures/BTC_USD_BTC-1h-futures.feather",
    }


def test_freqtrade_volume_of_cm_is_in_the_base_asset(lake: SmallLake) -> None:
    key = series("BTCUSD_PERP", "1d", "cm")
    row = candles(key, [clock.day_start_us(DAY)], {"volume": [900.0], "base_volume": [1.5]})
    lake.put_table(key, DAY, row)
    found = feather.read_table(export(lake, "freqtrade", key) / "futures/BTC_USD_BTC-1d-futures.feather")
    assert found["volume"].to_pylist() == [1.5]


# --- nautilus ------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(numbers=st.lists(st.integers(-(10**14), 10**14), min_size=24, max_size=24))
def test_nautilus_prices_are_exact_integers(tmp_path_factory: pytest.TempPathFactory, numbers: list[int]) -> None:
    lake, key = SmallLake(tmp_path_factory.mktemp("lake") / "data"), series("BTCUSDT", "1h")
    opens = [clock.day_start_us(DAY) + n * key.step for n in range(24)]
    prices = [float(Decimal(number).scaleb(-8)) for number in numbers]
    lake.put_table(key, DAY, candles(key, opens, {"open": prices}))
    [path] = (export(lake, "nautilus", key) / "data" / "bar").rglob("*.parquet")
    table = pq.read_table(path)
    raws: list[Any] = table["open"].to_pylist()
    found = [int.from_bytes(raw, "little", signed=True) for raw in raws]
    assert found == [number * 10**8 for number in numbers]
    assert table.schema.metadata[b"bar_type"] == b"BTCUSDT.BINANCE-1-HOUR-LAST-EXTERNAL"


def test_nautilus_times_never_go_back(lake: SmallLake) -> None:
    key = series("BTCUSDT")
    times = [clock.day_start_us(DAY) + at for at in (5, 3, 9)]
    lake.put_table(key, DAY, filled(key, {"transact_time": times, "agg_trade_id": [1, 2, 3]}))
    [path] = (export(lake, "nautilus", key) / "data" / "trade_tick").rglob("*.parquet")
    table = pq.read_table(path)
    start = pa.scalar(clock.day_start_us(DAY) * 1000, pa.uint64())
    assert pc.subtract(table["ts_event"], start).to_pylist() == [5_000, 3_000, 9_000]
    assert pc.subtract(table["ts_init"], start).to_pylist() == [5_000, 5_000, 9_000]
    assert path.name == "2022-12-13T00-00-00-000005000Z_2022-12-13T00-00-00-000009000Z.parquet"


# --- CSV and Parquet -----------------------------------------------------------------------------------------------


def test_parquet_is_read_by_any_tool_as_partitions(lake: SmallLake) -> None:
    keys = [series("BTCUSDT", "1h"), series("ETHUSDT", "1h")]
    for key in keys:
        lake.put(key, days_from("2024-01-30", 4))
    folder = export(lake, "parquet", *keys) / "spot" / "klines"
    assert sorted(path.name for path in folder.rglob("*.parquet")) == ["2024-01.parquet"] * 2 + ["2024-02.parquet"] * 2
    stored = MarketData(lake.root).klines(["BTCUSDT", "ETHUSDT"], "1h", "2024-01-01", "2024-03-01", on_gap="ignore")
    expected = stored.arrow().to_pylist()
    relation = duckdb.read_parquet(f"{folder}/**/*.parquet", hive_partitioning=True)
    by_duckdb = relation.order("symbol, open_time").to_arrow_table()
    by_arrow = ds.dataset(folder, partitioning="hive").to_table()
    names = lake_schema(keys[0].market, keys[0].data_type).names
    assert by_duckdb.select(names).to_pylist() == expected
    assert by_arrow.select(names).sort_by([("symbol", "ascending"), ("open_time", "ascending")]).to_pylist() == expected


def test_csv_has_all_columns_and_digits(lake: SmallLake) -> None:
    key = series("BTCUSDT", "1d")
    lake.put_table(key, DAY, candles(key, [clock.day_start_us(DAY)], {"open": [0.1 + 0.2], "volume": [1e-8]}))
    text = (export(lake, "csv", key) / "spot/klines/BTCUSDT/1d/2022-12.csv").read_text()
    [row] = csv.DictReader(io.StringIO(text))
    assert list(row) == lake_schema(key.market, key.data_type).names
    assert (row["symbol"], row["open_time"]) == ("BTCUSDT", "2022-12-13 00:00:00.000000Z")
    assert (float(row["open"]), float(row["volume"])) == (0.1 + 0.2, 1e-8)


@pytest.mark.parametrize("data_type", list(DataType))
def test_plain_formats_have_every_data_type(lake: SmallLake, data_type: DataType) -> None:
    market = "um" if data_type in data_types_of(Market.UM) else "option"
    key = series("BTCUSDT", "1h" if data_type.has_interval else None, market, data_type)
    lake.put(key, days_from("2024-01-01", 1))
    rows = day_table(key, date(2024, 1, 1)).num_rows
    [made] = (export(lake, "csv", key) / market / data_type).rglob("*.csv")
    assert len(made.read_text().splitlines()) == rows + 1
    [made] = (export(lake, "parquet", key) / market / data_type).rglob("*.parquet")
    assert pq.read_metadata(made).num_rows == rows


# --- pairs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("symbol", "market", "pair"),
    [
        ("BTCUSDT", "spot", Pair("BTC", "USDT")),
        ("USDCUSDT", "spot", Pair("USDC", "USDT")),
        ("BETHETH", "spot", Pair("BETH", "ETH")),
        ("BTCFDUSD", "spot", Pair("BTC", "FDUSD")),
        ("1000PEPEUSDT", "um", Pair("1000PEPE", "USDT", "USDT")),
        ("BTCUSDT_240329", "um", Pair("BTC", "USDT", "USDT", date(2024, 3, 29))),
        ("BTCUSD_PERP", "cm", Pair("BTC", "USD", "BTC")),
    ],
)
def test_symbols_are_split_into_assets(lake: SmallLake, symbol: str, market: str, pair: Pair) -> None:
    assert Pairs(lake.layout).of(series(symbol, "1h", market)) == pair


def test_recorded_symbols_are_split_as_by_binance(realdata: Path, lake: SmallLake) -> None:
    """Without a snapshot, the assets of a symbol are read from its name."""
    routes = json.loads((realdata / "rest/thrasher-corp__gocryptotrader/http.json").read_text())["routes"]
    pairs, paths = Pairs(lake.layout), {"spot": "/api/v3", "um": "/fapi/v1", "cm": "/dapi/v1"}
    for market, path in paths.items():
        symbols = routes[f"{path}/exchangeInfo"]["GET"][0]["data"]["symbols"]
        found = {one["symbol"]: pairs.of(series(one["symbol"], "1h", market)) for one in symbols}
        assert {name: (pair.base, pair.quote) for name, pair in found.items()} == {
            one["symbol"]: (one["baseAsset"], one["quoteAsset"]) for one in symbols
        }


def test_unknown_quote_asset_is_an_error_with_advice(lake: SmallLake) -> None:
    key = series("BTCNEWCOIN", "1h")
    with pytest.raises(UsageError, match=r"spot BTCNEWCOIN are not known.*spot_exchange_info"):
        Pairs(lake.layout).of(key)


def test_snapshot_of_exchange_info_wins_over_the_name(lake: SmallLake) -> None:
    row = {"symbol": "BTCNEWCOIN", "day": DAY, "base_asset": "BTC", "quote_asset": "NEWCOIN", "tick_size": 0.01}
    table = pa.Table.from_pylist([row], EXCHANGE_INFO_SCHEMA)
    assert store_snapshot(lake.layout, Market.SPOT, table)
    key = series("BTCNEWCOIN", "1h")
    assert Pairs(lake.layout).of(key) == Pair("BTC", "NEWCOIN", tick_size=0.01)
    lake.put(key, days_from("2024-01-01", 1))
    [path] = (export(lake, "nautilus", key) / "data" / "currency_pair").rglob("*.parquet")
    [found] = pq.read_table(path).to_pylist()
    assert (found["id"], found["price_increment"], found["size_increment"]) == (
        "BTCNEWCOIN.BINANCE",
        "0.01000000",
        "0.00000001",
    )
