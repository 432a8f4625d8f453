"""The universe as of a date: who was listed, and how it ranked, without a look at the future."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline import GapError, GapWarning, MarketData
from market_data_pipeline.cli import main
from market_data_pipeline.errors import NotStoredError, UsageError
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.universe.listings import DELISTED_AFTER
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.small_lake import day_table, series

DAY = timedelta(days=1)
Volumes = Mapping[str, Mapping[date, float]]
"""Volume by symbol and stored day. 0 is a candle without a trade."""


def store(root: Path, volumes: Volumes, market: str = "spot") -> MarketData:
    """Store 1d candles."""
    layout = Layout(root)
    for symbol, days in volumes.items():
        key = series(symbol, "1d", market)
        for day, volume in days.items():
            layout.file(key, day).parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(layout.file(key, day), candle(key, day, volume))
    if not (root / "universe.yaml").exists():
        lock(root, {})
    return MarketData(root)


def candle(key: SeriesKey, day: date, volume: float) -> pa.Table:
    """A day's candle with as many trades as its volume, rounded up."""
    table = any_candle(key, day)
    schema = lake_schema(key.market, key.data_type)
    for name in ("volume", "quote_volume", "count"):
        if name in schema.names:
            value = -int(-volume // 1) if name == "count" else volume
            table = table.set_column(
                schema.get_field_index(name), schema.field(name), pa.array([value], schema.field(name).type)
            )
    return table


any_candle = cache(day_table)


def lock(root: Path, listings: Mapping[str, Sequence[tuple[date, date | None]]], market: str = "spot") -> None:
    """Write a universe and its lock."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "universe.yaml").write_text(
        "collect: [{market: spot, symbols: [BTCUSDT], klines: {intervals: [1d], from: 2020-01-01}}]\n"
    )
    lines = []
    for symbol, spans in listings.items():
        texts = [f"{{from: {first}, until: {last or 'null'}}}" for first, last in spans]
        lines.append(f"  {symbol}: [{', '.join(texts)}]")
    (root / "universe.lock.yaml").write_text("\n".join([f"{market}:", *lines]) + "\n" if lines else "")


def days(first: str, count: int, volume: float = 1) -> dict[date, float]:
    return {date.fromisoformat(first) + n * DAY: volume for n in range(count)}


def symbols(result: Any) -> list[str]:
    return result.arrow()["symbol"].to_pylist()  # type: ignore[no-any-return]


def test_symbols_are_ranked_by_volume_of_the_days_before(tmp_path: Path) -> None:
    market = store(
        tmp_path, {"AUSDT": days("2024-01-01", 9, 3), "BUSDT": days("2024-01-01", 4, 1) | days("2024-01-05", 5, 100)}
    )
    assert symbols(market.universe("2024-01-05", lookback="3 days")) == ["AUSDT", "BUSDT"]
    found = market.universe("2024-01-06", lookback="3 days").arrow().to_pylist()
    assert [(row["symbol"], row["quote_volume"], row["rank"]) for row in found] == [("BUSDT", 102, 1), ("AUSDT", 9, 2)]
    assert found[0]["date"] == date(2024, 1, 6)
    assert (found[0]["listed_from"], found[0]["age_days"]) == (date(2024, 1, 1), 5)


def test_delisted_symbol_is_a_member_until_its_last_trade(tmp_path: Path) -> None:
    """um goes on with flat candles after a delisting."""
    market = store(
        tmp_path,
        {"BTCUSDT": days("2024-01-01", 40), "FTTUSDT": days("2024-01-01", 10) | days("2024-01-11", 30, 0)},
        "um",
    )
    table = market.universe(start="2024-01-10", end="2024-01-13", every="1 day", market="um").arrow().to_pylist()
    assert [(row["date"].day, row["symbol"]) for row in table] == [
        (10, "BTCUSDT"),
        (10, "FTTUSDT"),
        (11, "BTCUSDT"),
        (11, "FTTUSDT"),
        (12, "BTCUSDT"),
    ]
    assert {row["listed_until"] for row in table} == {None}
    known = market.universe("2024-01-11", market="um", hindsight=True).arrow().to_pylist()
    assert [row["listed_until"] for row in known] == [None, date(2024, 1, 10)]


def test_dates_are_the_same_day_of_each_month(tmp_path: Path) -> None:
    market = store(tmp_path, {"BTCUSDT": days("2024-01-01", 100)})
    table = market.universe(start="2024-01-31", top=1).arrow()
    assert table["date"].to_pylist() == [date(2024, 1, 31), date(2024, 2, 29), date(2024, 3, 31)]


def test_quote_and_exclusions_choose_what_is_ranked(tmp_path: Path) -> None:
    market = store(tmp_path, {name: days("2024-01-01", 5) for name in ("BTCUSDT", "BTCUPUSDT", "ETHBTC")})
    assert symbols(market.universe("2024-01-05", quote="USDT", exclude="*UPUSDT")) == ["BTCUSDT"]


def test_young_symbols_are_left_out_by_their_age(tmp_path: Path) -> None:
    lock(tmp_path, {"NEWUSDT": [(date(2024, 1, 5), None)], "OLDUSDT": [(date(2018, 1, 1), None)]})
    market = store(tmp_path, {"OLDUSDT": days("2024-01-01", 30), "NEWUSDT": days("2024-01-05", 26)})
    assert symbols(market.universe("2024-01-14", min_age="10 days", on_gap="ignore")) == ["OLDUSDT"]
    assert symbols(market.universe("2024-01-15", min_age="10 days", on_gap="ignore")) == ["OLDUSDT", "NEWUSDT"]
    (old,) = market.universe("2024-01-14", quote="OLDUSDT", on_gap="ignore").arrow().to_pylist()
    assert old["listed_from"] == date(2018, 1, 1)


def test_reused_ticker_is_another_instrument(tmp_path: Path) -> None:
    """LUNABUSD names Terra 2.0 from 2022-05-31 on, a few days after Terra Classic."""
    market = store(
        tmp_path, {"LUNABUSD": days("2022-05-01", 26, 9) | days("2022-05-31", 9), "X": days("2022-05-01", 39)}
    )
    before, after = (market.universe(day, quote="BUSD").arrow().to_pylist()[0] for day in ("2022-05-20", "2022-06-02"))
    assert (before["instrument"], before["quote_volume"]) == ("LUNABUSD#1", 19 * 9)
    assert (after["instrument"], after["quote_volume"], after["age_days"]) == ("LUNABUSD#2", 2, 2)
    assert after["listed_from"] == date(2022, 5, 31)


def test_same_coin_that_comes_back_is_one_instrument(tmp_path: Path) -> None:
    market = store(tmp_path, {"USDCUSDT": days("2022-09-01", 26) | days("2023-03-11", 9), "X": days("2022-09-01", 250)})
    (back,) = market.universe("2023-03-14", quote="USDT").arrow().to_pylist()
    assert (back["instrument"], back["listed_from"]) == ("USDCUSDT#1", date(2023, 3, 11))
    assert symbols(market.universe("2022-12-01")) == ["X"]


def test_listed_symbol_that_is_not_stored_is_reported(tmp_path: Path) -> None:
    lock(tmp_path, {"BTCUSDT": [(date(2024, 1, 1), None)], "LOSTUSDT": [(date(2024, 1, 3), date(2024, 1, 20))]})
    market = store(tmp_path, {"BTCUSDT": days("2024-01-01", 40)})
    with pytest.warns(GapWarning, match=r"LOSTUSDT 1d, 2024-01-03 to 2024-01-09: missing"):
        assert symbols(market.universe("2024-01-10")) == ["BTCUSDT"]
    with pytest.raises(GapError) as error:
        market.universe("2024-01-10", on_gap="raise")
    assert [gap.key.symbol for gap in error.value.gaps] == ["LOSTUSDT"]
    assert symbols(market.universe("2024-02-05", lookback="7 days")) == ["BTCUSDT"]


def test_new_and_replaced_files_are_seen(tmp_path: Path) -> None:
    market = store(tmp_path, {"AUSDT": days("2024-01-01", 3, 2), "BUSDT": days("2024-01-01", 3, 1)})
    assert symbols(market.universe("2024-01-04")) == ["AUSDT", "BUSDT"]
    store(tmp_path, {"BUSDT": {date(2024, 1, 3): 50}, "CUSDT": days("2024-01-02", 2, 20)})
    assert symbols(market.universe("2024-01-04")) == ["BUSDT", "CUSDT", "AUSDT"]
    Layout(tmp_path).file(series("CUSDT", "1d"), date(2024, 1, 3)).unlink()
    assert symbols(market.universe("2024-01-04")) == ["BUSDT", "AUSDT"]


def test_damaged_table_of_volumes_is_made_again(tmp_path: Path) -> None:
    market = store(tmp_path, {"AUSDT": days("2024-01-01", 3)})
    market.universe("2024-01-04")
    (path,) = tmp_path.rglob("daily_volumes.parquet")
    path.write_bytes(b"damaged")
    assert symbols(market.universe("2024-01-04")) == ["AUSDT"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"as_of": "2024-01-01"}, "first stored spot 1d candle is of 2024-01-01. Pass 2024-01-02 or later"),
        ({"start": "2019-01-01", "end": "2024-01-02"}, "The universe of 2019-01-01 is not known"),
        ({}, "Pass either as_of"),
        ({"as_of": "2024-01-02", "start": "2024-01-02"}, "Pass either as_of"),
        ({"as_of": "2024-01-02T12:00"}, "has a time of day"),
        ({"start": "2024-01-02", "end": "2024-01-02"}, "so there is no date"),
        ({"as_of": "2024-01-02", "by": "price"}, "There is no column 'price' to rank by in spot"),
        ({"as_of": "2024-01-02", "top": 0}, "top is 0"),
        ({"as_of": "2024-01-02", "lookback": "0 days"}, "at least 1 day"),
        ({"as_of": "2024-01-02", "min_age": "a while"}, "min_age is 'a while'"),
        ({"as_of": "2024-01-02", "every": "0 months"}, "every is '0 months'"),
        ({"as_of": "2024-01-02", "market": "um"}, "No um klines of interval 1d are stored"),
    ],
)
def test_impossible_request_is_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    market = store(tmp_path, {"AUSDT": days("2024-01-01", 3)})
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        market.universe(**arguments)


def test_date_after_the_newest_candle_is_refused(tmp_path: Path) -> None:
    market = store(tmp_path, {"AUSDT": days("2024-01-01", 3)})
    with pytest.raises(NotStoredError, match="The newest one is of 2024-01-03"):
        market.universe("2024-01-05")


# --- nothing known only later leaks -----------------------------------------------------------------------------------

FIRST = date(2022, 5, 1)
LENGTH = 60
SYMBOLS = ("AUSDT", "BUSDT", "LUNABUSD")  # the last one names another coin from 2022-05-31 on


@st.composite
def histories(draw: st.DrawFn) -> dict[str, dict[date, float]]:
    """Runs of traded, flat and absent days of a few symbols."""
    found: dict[str, dict[date, float]] = {"BTCUSDT": {FIRST + n * DAY: 1.0 for n in range(LENGTH)}}
    runs = st.tuples(st.sampled_from(["traded", "flat", "absent"]), st.integers(1, 25), st.floats(0.5, 1e9))
    for symbol in SYMBOLS:
        drawn = draw(st.lists(runs, min_size=1, max_size=6))
        kinds = itertools.chain.from_iterable([(kind, volume)] * length for kind, length, volume in drawn)
        found[symbol] = {
            FIRST + n * DAY: volume * (1 + n / 7) if kind == "traded" else 0.0
            for n, (kind, volume) in enumerate(itertools.islice(kinds, LENGTH))
            if kind != "absent"
        }
    return found


def spans_known_on(stored: Mapping[date, float], day: date) -> list[tuple[date, date | None]]:
    """The listing as ``universe refresh`` derives it on a day, from files of the days before."""
    spans: list[tuple[date, date | None]] = []
    last: date | None = None
    for one in sorted(d for d in stored if d < day):
        if last is not None and one - last <= DELISTED_AFTER + DAY:
            spans[-1] = (spans[-1][0], one)
        else:
            spans.append((one, one))
        last = one
    if last is not None and day - DAY - last <= DELISTED_AFTER:
        spans[-1] = (spans[-1][0], None)
    return spans


def link(one: Path, other: Path, days: Mapping[str, Sequence[date]]) -> None:
    """Give another lake some of the files of one."""
    for symbol, some in days.items():
        key = series(symbol, "1d")
        Layout(other).folder(key).mkdir(parents=True)
        for day in some:
            Layout(other).file(key, day).hardlink_to(Layout(one).file(key, day))


@settings(max_examples=sized(10, 50))
@given(volumes=histories(), known=st.integers(1, LENGTH - 1), with_lock=st.booleans())
def test_later_days_do_not_change_an_answer(volumes: Volumes, known: int, with_lock: bool) -> None:
    """A query for a date gives the same answer on a lake that ends there and on one that goes on."""
    day = FIRST + known * DAY
    answers = []
    with TemporaryDirectory() as folder:
        longer, shorter = Path(folder) / "longer", Path(folder) / "shorter"
        store(longer, volumes)
        link(longer, shorter, {symbol: [d for d in some if d < day] for symbol, some in volumes.items()})
        for root, end in ((shorter, day), (longer, FIRST + LENGTH * DAY)):
            listings = {symbol: spans_known_on(some, end) for symbol, some in volumes.items()} if with_lock else {}
            lock(root, {symbol: spans for symbol, spans in listings.items() if spans})
            market = MarketData(root)
            answers.append(
                [
                    market.universe(day, lookback="20 days", on_gap="ignore").arrow(),
                    market.universe(day, by="count", top=2, min_age="9 days", on_gap="ignore").arrow(),
                    market.universe(start=FIRST + DAY, end=day + DAY, every="5 days", on_gap="ignore").arrow(),
                ]
            )
    assert answers[0] == answers[1]


# --- SQL --------------------------------------------------------------------------------------------------------------


def rows(market: MarketData, query: str) -> list[dict[str, Any]]:
    return market.sql(query).arrow().to_pylist()


def test_listings_in_sql_have_the_whole_history(tmp_path: Path) -> None:
    lock(tmp_path, {"BTCUSDT": [(date(2020, 1, 1), None)], "GONEUSDT": [(date(2021, 1, 1), date(2021, 6, 1))]})
    market = store(
        tmp_path,
        {
            "BTCUSDT": days("2022-01-01", 200),
            "LUNABUSD": days("2022-05-01", 26) | days("2022-05-31", 20),
            "XNOUSDT": days("2022-02-01", 100) | days("2022-05-12", 20, 0),
        },
    )
    assert [tuple(row.values())[1:] for row in rows(market, "FROM universe.listings")] == [
        ("BTCUSDT", "BTCUSDT#1", date(2020, 1, 1), None, "candles", None, None),
        ("GONEUSDT", "GONEUSDT#1", date(2021, 1, 1), date(2021, 6, 1), "archive listing", None, None),
        ("LUNABUSD", "LUNABUSD#1", date(2022, 5, 1), date(2022, 5, 26), "candles", None, None),
        ("LUNABUSD", "LUNABUSD#2", date(2022, 5, 31), date(2022, 6, 19), "candles", None, None),
        ("XNOUSDT", "XNOUSDT#1", date(2022, 2, 1), date(2022, 5, 11), "candles", "NANOUSDT#1", 1),
    ]


@pytest.mark.parametrize("day", ["2022-05-02", "2022-05-29", "2022-06-10", "2022-07-30"])
def test_members_in_sql_are_those_of_python(tmp_path: Path, day: str) -> None:
    market = store(
        tmp_path,
        {"BTCUSDT": days("2022-05-01", 90), "LUNABUSD": days("2022-05-01", 26) | days("2022-05-31", 20)},
    )
    columns = ["date", "symbol", "instrument", "listed_from", "age_days"]
    expected = market.universe(day, on_gap="ignore").arrow().select(columns).sort_by("symbol").to_pylist()
    assert rows(market, f"FROM universe.members('spot', DATE '{day}')") == expected


def test_volumes_in_sql_follow_the_lake(tmp_path: Path) -> None:
    market = store(tmp_path, {"AUSDT": days("2024-01-01", 2, 3)})
    query = "SELECT sum(quote_volume) AS v, count(*) AS n FROM universe.daily_volumes WHERE market = 'spot'"
    assert rows(market, query) == [{"v": 6, "n": 2}]
    store(tmp_path, {"AUSDT": {date(2024, 1, 3): 4.0}})
    assert rows(market, query) == [{"v": 10, "n": 3}]


def test_schema_is_empty_without_candles(tmp_path: Path) -> None:
    lock(tmp_path, {})
    market = MarketData(tmp_path)
    assert rows(market, "FROM universe.listings") == rows(market, "FROM universe.members('um', '2024-01-01')") == []


def test_command_answers_from_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, {"AUSDT": days("2024-01-01", 2)})
    monkeypatch.setenv("MARKET_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("MARKET_DATA_UNIVERSE", str(tmp_path / "universe.yaml"))
    asked = CliRunner().invoke(main, ["sql", "--csv", "SELECT symbol FROM universe.members('spot', '2024-01-03')"])
    assert asked.output.splitlines() == ["symbol", "AUSDT"]
