"""What analysts get from ``MarketData``: rows in four types, errors in words, and days that are fetched when asked."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from market_data_pipeline import MarketData, clock
from market_data_pipeline.client import Result
from market_data_pipeline.errors import DamagedFileError, MarketDataError, UsageError
from market_data_pipeline.lake import parquet, partitions
from market_data_pipeline.model.day import FAILED, DayRecord
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.sandbox import LateArchive, WrongChecksum
from market_data_pipeline.sql import errors
from market_data_pipeline.sql.file_lists import as_pattern
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline_tests.support.readers import read_until
from market_data_pipeline_tests.support.small_lake import TRADES_A_DAY, SmallLake, day_table, days_from, series
from market_data_pipeline_tests.support.world import World, klines

BTC, ETH = series("BTCUSDT", "1h"), series("ETHUSDT", "1h")
TRADES = series("BTCUSDT")
PROFILE = series("BTCUSDT", data_type="tradeProfile")
FACES = ("arrow", "df", "pl", "relation")
at = datetime.fromisoformat

# Small lakes lack most days of a range; `test_client_gaps` is about the warning.
pytestmark = pytest.mark.filterwarnings("ignore::market_data_pipeline.GapWarning")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> SmallLake:
    lake = SmallLake(tmp_path_factory.mktemp("written") / "data")
    for key in (ETH, BTC, TRADES, PROFILE):
        lake.put(key, days_from("2024-01-01", 10))
    return lake


@pytest.fixture
def lake(written: SmallLake, tmp_path: Path) -> SmallLake:
    """Ten days of two symbols of 1h candles, of trades and of profiles, from 2024-01-01 on."""
    shutil.copytree(written.root, tmp_path / "data")
    return SmallLake(tmp_path / "data")


@pytest.fixture
def market(lake: SmallLake) -> MarketData:
    return MarketData(lake.root)


def as_arrow(result: Result, face: str) -> pa.Table:
    """One face of a result, as an Arrow table with zone-aware times and plain text."""
    value: Any = getattr(result, face)()
    faces: dict[str, Callable[[], pa.Table]] = {
        "arrow": lambda: value,
        "df": lambda: pa.Table.from_pandas(value, preserve_index=False),
        "pl": lambda: value.to_arrow(),
        "relation": lambda: value.to_arrow_table(),
    }
    table = faces[face]()
    for n, field in enumerate(table.schema):
        if (
            pa.types.is_dictionary(field.type)
            or pa.types.is_large_string(field.type)
            or pa.types.is_string_view(field.type)
        ):
            table = table.set_column(n, field.name, table[field.name].cast(pa.string()))
        if face == "df" and field.name == "day":
            table = table.set_column(n, field.name, table[field.name].cast(pa.date32()))
        if face == "relation" and pa.types.is_timestamp(field.type):
            assert field.type.tz is None
            table = table.set_column(n, field.name, table[field.name].cast(pa.timestamp("us", "UTC")))
    return table.replace_schema_metadata()


# --- what comes ------------------------------------------------------------------------------------------------


def test_rows_are_ordered_by_symbol_and_time_with_lake_columns(market: MarketData) -> None:
    frame = market.klines(["ETHUSDT", "BTCUSDT"], "1h", "2024-01-02", "2024-01-04").df()
    assert list(frame.columns) == lake_schema(BTC.market, BTC.data_type).names
    assert list(frame["symbol"]) == ["BTCUSDT"] * 48 + ["ETHUSDT"] * 48
    assert set(frame["interval"]) == {"1h"}
    hours = pd.date_range("2024-01-02", periods=48, freq="h", tz="UTC")
    assert list(frame["open_time"]) == [*hours, *hours]
    assert list(frame["open"]) == [*range(24)] * 4


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: m.klines(["BTCUSDT", "ETHUSDT"], "1h", "2024-01-02T05:00", "2024-01-04T07:00"),
        lambda m: m.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-03", columns=["close", "open"]),
        lambda m: m.agg_trades("BTCUSDT", "2024-01-02T05:00", "2024-01-04T07:00"),
        lambda m: m.trade_profile("BTCUSDT", "2024-01-02", "2024-01-05"),
        lambda m: m.klines("BTCUSDT", "1h", "2030-01-01", "2030-02-01"),
        lambda m: m.agg_trades("BTCUSDT", "2030-01-01", "2030-02-01"),
        lambda m: m.trade_profile("BTCUSDT", "2030-01-01", "2030-02-01"),
    ],
    ids=["klines", "columns", "trades", "profile", "no klines", "no trades", "no profile"],
)
def test_every_face_hands_out_the_same_rows(market: MarketData, ask: Callable[[MarketData], Result]) -> None:
    result = ask(market)
    expected = as_arrow(result, "arrow")
    for face in FACES:
        table = as_arrow(result, face)
        assert table.schema.names == expected.schema.names, face
        assert table.equals(expected), face


def test_frames_have_the_unit_of_times_of_their_pandas(market: MarketData, monkeypatch: pytest.MonkeyPatch) -> None:
    """pandas 2 makes times in nanoseconds, and merges on times of one unit only."""
    monkeypatch.setattr(pd, "__version__", "2.2.3")
    result = market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-03")
    expected = result.arrow()["open_time"].to_pylist()
    assert str(result.df()["open_time"].dtype) == "datetime64[ns, UTC]"
    assert result.df()["open_time"].to_list() == expected
    late = market.sql("SELECT TIMESTAMPTZ '2500-01-01 00:00:00+00' AS late, now() AS now").df()
    assert late.dtypes.astype(str).to_dict() == {"late": "datetime64[us, UTC]", "now": "datetime64[ns, UTC]"}


def test_types_and_zones_of_each_face(market: MarketData) -> None:
    result = market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-03")
    assert isinstance(result.df(), pd.DataFrame)
    assert str(result.df()["open_time"].dtype) == "datetime64[us, UTC]"
    assert isinstance(result.pl(), pl.DataFrame)
    assert result.pl().schema["close_time"] == pl.Datetime("us", "UTC")
    assert result.arrow().schema.field("open_time").type == pa.timestamp("us", "UTC")
    relation = result.relation()
    assert str(relation.types[relation.columns.index("open_time")]) == "TIMESTAMP"


def test_sql_counts_time_in_utc_whatever_the_zone_of_the_machine(lake: SmallLake) -> None:
    code = (
        "import sys; from market_data_pipeline import MarketData; market = MarketData(sys.argv[1]);"
        "query = \"SELECT current_setting('TimeZone') AS zone, epoch(TIMESTAMPTZ '2024-01-01 00:00') AS s\";"
        "print(market.sql(query).arrow().to_pylist(), market.sql(query).relation().to_arrow_table().to_pylist())"
    )
    environment = {**os.environ, "TZ": "America/New_York"}
    run = subprocess.run(
        [sys.executable, "-c", code, str(lake.root)], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.count("'zone': 'UTC', 's': 1704067200.0") == 2


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2024-01-02", "2024-01-04"),
        (date(2024, 1, 2), date(2024, 1, 4)),
        (at("2024-01-02T00:00"), at("2024-01-04T00:00")),
        (datetime(2024, 1, 2, tzinfo=UTC), "2024-01-04T00:00:00Z"),
        (datetime(2024, 1, 2, 9, tzinfo=timezone(timedelta(hours=9))), "2024-01-03T19:00-05:00"),
        (pd.Timestamp("2024-01-02"), pd.Timestamp("2024-01-03 19:00", tz="America/New_York")),
        ("2024-01-01T23:00:00.000001", "2024-01-03T23:00:00.000001"),
    ],
)
def test_start_is_inclusive_and_end_exclusive_in_every_notation(market: MarketData, start: Any, end: Any) -> None:
    result = market.klines("BTCUSDT", "1h", start, end)
    for face in FACES:
        times = as_arrow(result, face)["open_time"].to_pylist()
        assert (times[0], times[-1]) == (at("2024-01-02T00:00Z"), at("2024-01-03T23:00Z"))
        assert len(times) == 48


def test_trades_are_cut_at_the_microsecond(market: MarketData) -> None:
    step = timedelta(days=1) / TRADES_A_DAY
    third = at("2024-01-02T00:00") + 3 * step
    for face in FACES:
        assert as_arrow(market.agg_trades("BTCUSDT", third, third + step), face).num_rows == 1
        assert (
            as_arrow(market.agg_trades("BTCUSDT", third + timedelta(microseconds=1), third + step), face).num_rows == 0
        )
        assert (
            as_arrow(market.agg_trades("BTCUSDT", third, third + step + timedelta(microseconds=1)), face).num_rows == 2
        )


def test_part_of_a_day_equals_the_whole_day_filtered(lake: SmallLake, market: MarketData) -> None:
    """The day has many row groups."""
    rows = 3 * parquet.ROW_GROUP_ROWS
    day = date(2024, 2, 1)
    whole = day_table(TRADES, day)
    times = clock.day_start_us(day) + np.arange(rows) * (clock.US_PER_DAY // rows)
    many = whole.take(np.zeros(rows, dtype=np.int64)).set_column(
        whole.schema.names.index("transact_time"), "transact_time", pa.array(times, pa.timestamp("us"))
    )
    parquet.write_table(lake.layout.file(TRADES, day), many)
    for start, end in (("00:00", "01:00"), ("07:59:59", "08:00:01"), ("23:00", "23:59"), ("02:00", "21:00")):
        result = market.agg_trades("BTCUSDT", f"2024-02-01T{start}", f"2024-02-01T{end}", columns="price")
        first, last = (clock.to_us(at(f"2024-02-01T{clock_time}+00:00")) for clock_time in (start, end))
        inside = int(np.count_nonzero((times >= first) & (times < last)))
        assert inside > 0
        assert result.arrow().num_rows == inside


def test_profiles_belong_to_days_with_midnight_in_the_range(market: MarketData) -> None:
    def days_of(start: str, end: str) -> list[Any]:
        return [*market.trade_profile("BTCUSDT", start, end).arrow()["day"].to_pylist()]

    assert days_of("2024-01-02", "2024-01-04") == [date(2024, 1, 2), date(2024, 1, 3)]
    assert days_of("2024-01-02T00:01", "2024-01-04T00:01") == [date(2024, 1, 3), date(2024, 1, 4)]
    assert days_of("2024-01-02T00:01", "2024-01-02T23:00") == []


def test_no_end_means_now(market: MarketData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: at("2024-01-05T03:30+00:00"))
    times = market.klines("BTCUSDT", "1h", "2024-01-05").arrow()["open_time"].to_pylist()
    assert times[-1] == at("2024-01-05T03:00Z")


def test_symbol_interval_and_time_come_with_any_columns(market: MarketData) -> None:
    assert market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-03", columns="close").df().columns.tolist() == [
        "symbol", "interval", "open_time", "close"
    ]  # fmt: skip
    assert market.agg_trades("BTCUSDT", "2024-01-02", columns=["quantity", "price", "price"]).pl().columns == [
        "symbol", "transact_time", "quantity", "price"
    ]  # fmt: skip


def test_each_market_has_its_own_rows_and_columns(lake: SmallLake, market: MarketData) -> None:
    lake.put(series("BTCUSD_PERP", "1h", "cm"), [date(2024, 1, 1)])
    lake.put(series("BTCUSDT", "1h", "um"), [date(2024, 1, 1)], version=7)
    frame = market.klines("BTCUSD_PERP", "1h", "2024-01-01", "2024-01-02", market="cm").df()
    assert "base_volume" in frame
    assert len(frame) == 24
    assert set(market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02", market="um").df()["close"]) == {7.0}
    assert set(market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02").df()["close"]) == {0.0}


def test_missing_days_are_skipped_and_counted_in_the_repr(lake: SmallLake, market: MarketData) -> None:
    lake.layout.file(BTC, date(2024, 1, 3)).unlink()
    result = market.klines(["BTCUSDT", "ETHUSDT"], "1h", "2024-01-02", "2024-01-05T12:00")
    assert result.arrow().num_rows == 2 * 84 - 24
    assert repr(result) == (
        "<spot klines 1h of BTCUSDT, ETHUSDT from 2024-01-02 00:00 to 2024-01-05 12:00 UTC: 7 of 8 days stored>"
    )


def test_unbounded_range_returns_all_stored_days(market: MarketData) -> None:
    for face in FACES:
        assert as_arrow(market.klines("BTCUSDT", "1h", "0001-01-01", "9999-12-31"), face).num_rows == 240
    assert market.klines("BTCUSDT", "1h", "0001-01-01", "0001-01-01").arrow().num_rows == 0


def test_root_comes_from_the_settings(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_DIR", str(lake.root))
    assert MarketData().klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02").arrow().num_rows == 24
    assert repr(MarketData()).startswith(f"<MarketData {str(lake.root)!r}, ")


def test_a_result_outlives_its_market_data(lake: SmallLake) -> None:
    relations = [
        MarketData(lake.root).klines("BTCUSDT", "1h", "2024-01-01", "2024-01-03").relation(),
        MarketData(lake.root).sql("FROM binance_spot.klines WHERE symbol = 'BTCUSDT'").relation(),
    ]
    gc.collect()
    assert [relation.to_arrow_table().num_rows for relation in relations] == [48, 240]


def test_relations_of_one_market_data_can_be_joined(market: MarketData) -> None:
    bitcoin = market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-02", columns="close").relation().set_alias("b")
    ether = market.klines("ETHUSDT", "1h", "2024-01-01", "2024-01-03", columns="close").relation().set_alias("e")
    assert bitcoin.join(ether, "b.open_time = e.open_time").to_arrow_table().num_rows == 24


def test_threads_may_share_it(market: MarketData) -> None:
    def ask(n: int) -> tuple[int, int, int]:
        day = f"2024-01-{n % 9 + 1:02d}"
        result = market.klines(["BTCUSDT", "ETHUSDT"], "1h", day, f"2024-01-{n % 9 + 2:02d}")
        counted = market.sql(f"SELECT count(*) AS n FROM binance_spot.candles('BTCUSDT', '1h', '{day}')").arrow()
        return result.arrow().num_rows, len(result.df()), counted["n"][0].as_py() // 24 + n % 9

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(ask, range(40))) == {(48, 48, 10)}


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda m: m.klines("BTCUSD", "1h", "2024-01-01"), r"BTCUSD is not stored .* mean BTCUSDT.* BTCUSDT, ETHUSDT"),
        (lambda m: m.klines("btcusdt", "1h", "2024-01-01"), r"btcusdt is not stored .* mean BTCUSDT"),
        (lambda m: m.klines("BTCUSDT", "4m", "2024-01-01"), r"no stored interval .* divides 4m\. Stored: 1h\."),
        (lambda m: m.klines("BTCUSDT", "15m", "2024-01-01"), r"not stored with interval 15m in spot\..* are: 1h\."),
        (lambda m: m.klines("BTCUSDT", "1 hour", "2024-01-01"), r"no kline interval '1 hour' in spot\..*1s, 1m, 3m"),
        (lambda m: m.klines("BTCUSDT", "1s", "2024-01-01", market="um"), r"no kline interval '1s' in um\..*1m, 3m"),
        (lambda m: m.klines("BTCUSDT", "1h", "2024-01-01", market="usdm"), r"no market 'usdm'\..*: spot, um, cm"),
        (lambda m: m.klines("BTCUSDT", "1h", "2024-01-01", market="cm"), r"No cm klines are stored in .*sync=True"),
        (lambda m: m.klines("BTCUSDT", "1h", "2024-01-01", columns=["clsoe"]), r"no column 'clsoe' .* mean close\?"),
        (lambda m: m.agg_trades("BTCUSDT", "2024-01-01", columns="close"), r"no column 'close' .*agg_trade_id, price"),
        (lambda m: m.klines([], "1h", "2024-01-01"), r"has no symbol"),
        (lambda m: m.klines(5, "1h", "2024-01-01"), r"5 is not the name of a symbol"),
        (lambda m: m.klines(["BTCUSDT", None], "1h", "2024-01-01"), r"None is not the name of a symbol"),
        (lambda m: m.klines("../BTC", "1h", "2024-01-01"), r"'\.\./BTC' cannot be a symbol"),
        (lambda m: m.klines("BTCUSDT", "1h", "2024-02-30"), r"start is '2024-02-30', which is not a date"),
        (lambda m: m.klines("BTCUSDT", "1h", "yesterday"), r"start is 'yesterday', which is not a date\. Pass a date"),
        (lambda m: m.klines("BTCUSDT", "1h", 20240101), r"start is 20240101, which is not a date"),
        (lambda m: m.klines("BTCUSDT", "1h", pd.NaT), r"start is NaT, which is not a date"),
        (lambda m: m.klines("BTCUSDT", "1h", "2024-01-01", "soon"), r"end is 'soon', which is not a date"),
        (lambda m: m.klines("BTCUSDT", "1h", "0001-01-01T00:00+02:00"), r"outside the calendar"),
        (lambda m: m.klines("BTCUSDT", "1h", "2024-01-05", "2024-01-04"), r"start \(2024-01-05 00:00 UTC\) is after"),
        (lambda m: m.klines("BTCUSDT", "1h", "2999-01-01"), r"start \(2999-01-01 00:00 UTC\) is after now"),
        (lambda m: m.sql("SELEC 1"), r"syntax error"),
        (lambda m: m.sql("FROM binance_spot.kline"), r"kline does not exist.*"),
        (lambda m: m.sql("SELECT clos FROM binance_spot.klines"), r"clos"),
        (lambda m: m.sql("SELECT * FROM market"), r"market does not exist"),
        (lambda m: m.sql("SELECT 'x'::INT").df(), r"Could not convert"),
        (lambda m: m.sql("CREATE TABLE t (a INT)"), r"One query is answered at a time .* not CREATE"),
        (lambda m: m.sql("SELECT 1; SELECT 2"), r"One query is answered at a time .* not SELECT and SELECT"),
        (lambda m: m.sql(" "), r"One query is answered at a time .* not nothing"),
    ],
)  # fmt: skip
def test_unknown_or_invalid_selection_is_refused_clearly(
    market: MarketData, ask: Callable[[MarketData], Any], said: str
) -> None:
    with pytest.raises(UsageError, match=f"(?s){said}"):
        ask(market)


def test_a_series_that_has_failed_only_is_known_and_empty(lake: SmallLake, market: MarketData) -> None:
    lake.note(series("SOLUSDT", "1h"), DayRecord(day=date(2024, 1, 1), outcome=FAILED))
    assert market.klines("SOLUSDT", "1h", "2024-01-01", "2024-01-02").df().empty


# --- damaged and vanishing files ---------------------------------------------------------------------------------

DAMAGES = ("cut", "empty", "page", "footer", "other columns")


def damage_file(path: Path, damage: str) -> None:
    whole = path.read_bytes()
    if damage == "other columns":
        parquet.write_table(path, pa.table({"open_time": [1]}))
    elif damage == "footer":
        path.write_bytes(whole[:-200] + b"\xff" * 190 + whole[-10:])
    else:
        path.write_bytes({"cut": whole[:500], "empty": b"", "page": b"PAR1" + b"\xff" * 800 + whole[804:]}[damage])


@pytest.mark.parametrize(
    ("face", "damage"),
    [
        # A relation is lazy: what is wrong inside of a file is said, by DuckDB itself, when it is run.
        *[(face, damage) for face in ("arrow", "df", "pl") for damage in DAMAGES],
        ("relation", "cut"),
        ("relation", "empty"),
        ("relation", "footer"),
    ],
)
def test_a_damaged_file_is_named(lake: SmallLake, market: MarketData, face: str, damage: str) -> None:
    path = lake.layout.file(BTC, date(2024, 1, 1))
    damage_file(path, damage)
    with pytest.raises(DamagedFileError, match=str(path)):
        getattr(market.klines(["BTCUSDT", "ETHUSDT"], "1h", "2024-01-01", "2024-01-05"), face)()
    assert market.klines("BTCUSDT", "1h", "2024-01-02", "2024-01-05").arrow().num_rows == 72


def test_a_damaged_file_is_named_by_sql_and_other_views_go_on(lake: SmallLake, market: MarketData) -> None:
    path = lake.layout.file(BTC, date(2024, 1, 1))
    good = path.read_bytes()
    path.write_bytes(b"damaged")
    with pytest.raises(DamagedFileError, match=str(path)):
        market.sql("SELECT count(*) FROM binance_spot.klines").arrow()
    assert market.sql("SELECT count(*) AS n FROM binance_spot.agg_trades").arrow()["n"][0].as_py() == 1000
    assert market.coverage().df()["outcome"].value_counts().to_dict() == {"held": 39, "failed": 1}
    path.write_bytes(good)
    assert market.sql("SELECT count(*) AS n FROM binance_spot.klines").arrow()["n"][0].as_py() == 480


@pytest.mark.parametrize("damage", ["cut", "empty", "page", "footer"])
def test_file_damaged_after_the_views_were_made_is_named(lake: SmallLake, market: MarketData, damage: str) -> None:
    result = market.sql("SELECT sum(close), max(symbol), max(high) FROM binance_spot.klines")
    path = lake.layout.file(ETH, date(2024, 1, 5))
    damage_file(path, damage)
    with pytest.raises(DamagedFileError, match=str(path)):
        result.df()


def test_lost_file_is_distinct_from_one_never_stored(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path / "a[b] *?")
    lake.put(BTC, [date(2024, 1, 1)])
    gone, never = lake.layout.file(BTC, date(2024, 1, 2)), tmp_path / "never.parquet"
    market = MarketData(lake.root)
    with pytest.raises(DamagedFileError, match=re.escape(f"{gone} is gone. Backfill that day")):
        market.sql(f"FROM read_parquet('{as_pattern(gone)}')")
    with pytest.raises(UsageError, match="The query cannot be run"):
        market.sql(f"FROM read_parquet('{never}')")
    with pytest.raises(UsageError, match="The query cannot be run"):
        market.sql(f"FROM read_parquet('{as_pattern(lake.root)}/*.parquet')")


@pytest.mark.parametrize("face", ["arrow", "df", "pl"])
def test_file_removed_after_listing_does_not_break_the_read(
    lake: SmallLake, market: MarketData, monkeypatch: pytest.MonkeyPatch, face: str
) -> None:
    listed, gone = partitions.day_files_between, lake.layout.file(BTC, date(2024, 1, 3))

    def list_then_remove(*args: Any) -> Any:
        days = listed(*args)
        gone.unlink(missing_ok=True)
        return days

    monkeypatch.setattr(partitions, "day_files_between", list_then_remove)
    result = market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-05")
    assert as_arrow(result, face).num_rows == 72


@pytest.mark.parametrize("damage", ["cut", "page", "footer"])
def test_file_replaced_during_a_read_is_read_again(
    lake: SmallLake, market: MarketData, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """DuckDB fails because the file changed between two of its reads."""
    path = lake.layout.file(ETH, date(2024, 1, 5))
    good = path.read_bytes()
    result = market.sql("FROM binance_spot.klines")
    damage_file(path, damage)
    looked = errors.may_have_been_replaced

    def look_while_it_is_written(error: duckdb.Error) -> bool:
        path.write_bytes(good)
        return looked(error)

    monkeypatch.setattr(errors, "may_have_been_replaced", look_while_it_is_written)
    assert result.arrow().num_rows == 480


def test_the_next_read_sees_a_day_that_was_replaced(lake: SmallLake, market: MarketData) -> None:
    result = market.klines("BTCUSDT", "1h", "2024-01-01", "2024-01-03", columns="close")
    query = market.sql("SELECT max(close) AS close FROM binance_spot.candles('BTCUSDT', '1h', '2024-01-01')")
    assert set(result.df()["close"]) == {0.0}
    lake.put(BTC, [date(2024, 1, 2)], version=5)
    for face in FACES:
        assert set(as_arrow(result, face)["close"].to_pylist()) == {0.0, 5.0}
        assert as_arrow(query, face)["close"].to_pylist() == [5.0]


@pytest.mark.slow
def test_four_processes_read_while_another_replaces_files(lake: SmallLake) -> None:
    publish_catalog(lake.layout)
    # Forked from a server that has imported what they need, and nothing else: they share that time.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([read_until.__module__, "pytest"])
    reading_now, stop, wrong = server.Semaphore(0), server.Event(), server.Queue()
    readers = [server.Process(target=read_until, args=(str(lake.root), reading_now, stop, wrong)) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        assert all(reading_now.acquire(timeout=120) for _ in readers)
        for version in range(8):
            for key in (BTC, ETH):
                lake.put(key, days_from("2024-01-01", 10), version=version)
            if version % 2 == 0:
                lake.put(series(f"S{version}USDT"), [date(2024, 1, 1)])  # so that the catalog is swapped, too
                publish_catalog(lake.layout)
    finally:
        stop.set()
        for reader in readers:
            reader.join(120)
    assert [reader.exitcode for reader in readers] == [0] * 4
    assert wrong.empty(), wrong.get()


# --- SQL ---------------------------------------------------------------------------------------------------------


def test_sql_runs_over_the_views_and_hands_out_zone_aware_times(market: MarketData) -> None:
    result = market.sql(
        "SELECT symbol, max(open_time) AS last, count(*) AS n FROM binance_spot.klines GROUP BY symbol ORDER BY symbol"
    )
    assert result.arrow().to_pylist() == [
        {"symbol": "BTCUSDT", "last": at("2024-01-10T23:00Z"), "n": 240},
        {"symbol": "ETHUSDT", "last": at("2024-01-10T23:00Z"), "n": 240},
    ]
    assert str(result.df()["last"].dtype) == "datetime64[us, UTC]"
    assert repr(result).endswith("binance_spot.klines G…: symbol, last, n>")


@pytest.mark.parametrize(
    "query", ["DESCRIBE binance_spot.klines", "EXPLAIN SELECT 1", "PIVOT binance_spot.klines ON symbol USING max(open)"]
)
def test_sql_answers_every_kind_of_question(market: MarketData, query: str) -> None:
    assert not market.sql(query).df().empty


def test_sql_sees_series_that_came_after_the_first_query(lake: SmallLake, market: MarketData) -> None:
    count = "SELECT count(*) AS n FROM binance_um.agg_trades"
    assert market.sql(count).arrow()["n"][0].as_py() == 0
    lake.put(series("BTCUSDT", market="um"), [date(2024, 1, 1)])
    assert market.sql(count).arrow()["n"][0].as_py() == TRADES_A_DAY


def test_coverage_counts_stored_and_failed_days(lake: SmallLake, market: MarketData) -> None:
    lake.put(BTC, [date(2024, 1, 11)], final=False)
    lake.note(ETH, DayRecord(day=date(2024, 1, 11), outcome=FAILED, failure="checksum", reason="It differs."))
    days: Any = market.coverage().df()
    recent = days[(days["day"] == "2024-01-11")].set_index("symbol")
    assert recent.loc["BTCUSDT", ["outcome", "final", "source"]].tolist() == ["held", False, "rest"]
    assert recent.loc["ETHUSDT", ["outcome", "failure", "reason"]].tolist() == ["failed", "checksum", "It differs."]
    assert len(days) == 42


def test_an_empty_lake_answers_sql_and_coverage(tmp_path: Path) -> None:
    market = MarketData(tmp_path / "nowhere")
    assert market.sql("FROM binance_spot.klines").df().empty
    assert market.coverage().df().empty
    assert not (tmp_path / "nowhere").exists()


# --- sync --------------------------------------------------------------------------------------------------------

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2026-02-01}
    aggTrades: {from: 2026-02-01}
"""
LOCK = "spot:\n  BTCUSDT: [{from: 2017-08-17, until: null}]\n"


@pytest.fixture
def synced(world: World, monkeypatch: pytest.MonkeyPatch) -> MarketData:
    """A notebook beside a sandbox, at 2026-03-05 12:00:30."""
    world.at("2026-03-05T12:00:30")
    (world.root / "universe.yaml").write_text(UNIVERSE)
    (world.root / "universe.lock.yaml").write_text(LOCK)
    environment = {
        **world.sandbox.settings_env(),
        "MARKET_DATA_UNIVERSE": str(world.root / "universe.yaml"),
        "MARKET_DATA_BUDGET_DIR": str(world.root / "budget"),
        "MARKET_DATA_RETRY_BACKOFF_SECONDS": "0.01",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return MarketData(world.root)


@pytest.mark.slow
def test_the_first_call_downloads_and_the_second_only_reads(world: World, synced: MarketData) -> None:
    def ask() -> Result:
        return synced.klines("BTCUSDT", "1h", "2026-03-01", "2026-03-06", sync=True)

    assert ask().arrow().num_rows == 4 * 24 + 12
    assert "5 of 5 days stored" in repr(ask())
    world.forget()
    assert ask().arrow().num_rows == 4 * 24 + 12
    assert world.asked() == []

    world.at("2026-03-05T13:00:30")
    assert ask().arrow().num_rows == 4 * 24 + 13
    assert world.asked("zip") == []
    world.forget()

    world.at("2026-03-06T10:00:00")  # the archive has the day now
    assert ask().arrow().num_rows == 5 * 24
    assert any("2026-03-05.zip" in path for path in world.asked())
    assert synced.coverage().df()["final"].all()
    world.forget()
    assert ask().arrow().num_rows == 5 * 24
    assert world.asked() == []


@pytest.mark.slow
def test_day_waiting_for_its_archive_is_requested_once_an_hour(world: World, synced: MarketData) -> None:
    world.sandbox.faults.add(LateArchive(days=(date(2026, 3, 4),), days_late=2))

    def ask() -> list[str]:
        world.forget()
        assert synced.klines("BTCUSDT", "1h", "2026-03-04", "2026-03-05", sync=True).arrow().num_rows == 24
        return world.asked("2026-03-04.zip")

    assert ask() != []
    world.at("2026-03-05T12:59:00")
    assert ask() == []
    world.at("2026-03-05T13:01:00")
    assert ask() != []


@pytest.mark.slow
def test_failed_days_are_reported_and_stored_days_are_read(world: World, synced: MarketData) -> None:
    world.sandbox.faults.add(WrongChecksum(path="2026-03-02"))
    with pytest.raises(MarketDataError, match=r"(?s)1 of 3 days could not be fetched\..*2026-03-02.*Without sync=True"):
        synced.klines("BTCUSDT", "1h", "2026-03-01", "2026-03-04", sync=True)
    assert synced.klines("BTCUSDT", "1h", "2026-03-01", "2026-03-04").arrow().num_rows == 48


@pytest.mark.slow
def test_profiles_are_fetched_with_their_trades(world: World, synced: MarketData) -> None:
    assert synced.trade_profile("BTCUSDT", "2026-03-03", "2026-03-05", sync=True).arrow().num_rows == 2
    world.forget()
    assert synced.trade_profile("BTCUSDT", "2026-03-03", "2026-03-05", sync=True).arrow().num_rows == 2
    assert synced.agg_trades("BTCUSDT", "2026-03-03", "2026-03-05", sync=True).arrow().num_rows > 0
    assert world.asked() == []


@pytest.mark.slow
def test_sync_fetches_the_source_of_composed_candles(world: World, synced: MarketData) -> None:
    """The universe has 1h alone, so 3h, 4h and days of a zone are composed from it, whether or not it is stored."""
    candles = synced.klines("BTCUSDT", "3h", "2026-03-01", "2026-03-03", sync=True).df()
    assert candles[["parts", "complete"]].values.tolist() == [[3, True]] * 16
    assert world.asked("zip") != []
    world.forget()
    assert synced.klines("BTCUSDT", "4h", "2026-03-01", "2026-03-03", sync=True).df()["parts"].tolist() == [4] * 12
    assert world.asked() == []
    day = synced.klines("BTCUSDT", "1d", "2026-03-03", "2026-03-04", tz="America/New_York", sync=True)
    assert day.df()[["parts", "complete"]].values.tolist() == [[24, True]]
    assert {path.split("/")[-2] for path in world.asked("zip")} == {"1h"}


@pytest.mark.slow
def test_sync_of_an_interval_that_no_series_has_is_an_error(synced: MarketData) -> None:
    with pytest.raises(MarketDataError, match=r"15m"):
        synced.klines("BTCUSDT", "45m", "2026-03-01", "2026-03-03", sync=True)


@pytest.mark.slow
def test_file_removed_by_hand_is_fetched_again(world: World, synced: MarketData) -> None:
    assert synced.klines("BTCUSDT", "1h", "2026-03-01", "2026-03-03", sync=True).arrow().num_rows == 48
    world.layout.file(klines("BTCUSDT", "1h"), date(2026, 3, 2)).unlink()
    assert synced.klines("BTCUSDT", "1h", "2026-03-01", "2026-03-03", sync=True).arrow().num_rows == 48


def test_sync_of_an_uncollected_series_explains_how_to_add_it(synced: MarketData) -> None:
    with pytest.raises(UsageError, match="market-data add ETHUSDT 1h"):
        synced.klines("ETHUSDT", "1h", "2026-03-01", "2026-03-02", sync=True)


@pytest.mark.slow
def test_sync_is_silent_and_leaves_the_environment_unchanged(world: World, synced: MarketData) -> None:
    before = repr(MarketData())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        synced.klines("BTCUSDT", "1h", "2026-03-01", "2026-03-02", sync=True)
    assert [str(w.message) for w in said if issubclass(w.category, (dg.PreviewWarning, dg.BetaWarning))] == []
    assert repr(MarketData()) == before


def test_sync_before_the_universe_starts_explains_the_remedy(synced: MarketData) -> None:
    with pytest.raises(UsageError, match=r"from 2026-02-01 on .*, so 2026-01-20 cannot be fetched\. Set an earlier"):
        synced.klines("BTCUSDT", "1h", "2026-01-20", "2026-02-03", sync=True)


@pytest.mark.slow
def test_sync_before_the_listing_fetches_the_days_since(world: World, synced: MarketData) -> None:
    (world.root / "universe.lock.yaml").write_text("spot:\n  BTCUSDT: [{from: 2026-02-01, until: null}]\n")
    assert synced.klines("BTCUSDT", "1h", "2026-01-20", "2026-02-03", sync=True).arrow().num_rows == 48
    world.forget()
    assert synced.klines("BTCUSDT", "1h", "2026-01-20", "2026-02-03", sync=True).arrow().num_rows == 48
    assert world.asked() == []
