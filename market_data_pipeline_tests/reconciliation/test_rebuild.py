"""Klines against what they can be rebuilt from: what is found, with both values, and what is explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline import clock
from market_data_pipeline.lake import parquet
from market_data_pipeline.model.datasets import MARKETS
from market_data_pipeline.model.findings import Finding, Range, Severity, Verdict
from market_data_pipeline.model.lineage import source_of
from market_data_pipeline.model.reconciliation import DayReconciled, Difference, Reason
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import INTERVALS, SeriesKey
from market_data_pipeline.reconciliation.bars import DaySides
from market_data_pipeline.reconciliation.rebuild import reconcile_days
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.world import World, agg_trades, days, klines

DAY = date(2024, 3, 5)
START = clock.day_start_us(DAY)
MINUTE = 60_000_000
EXACT = ("open", "high", "low", "close", "count")


def trade_table(key: SeriesKey, rows: pd.DataFrame) -> pa.Table:
    """aggTrades of a day, of columns agg_trade_id, price, quantity, first, last, us (after midnight), maker."""
    columns = {
        "symbol": pa.array([key.symbol] * len(rows)).dictionary_encode(),
        "agg_trade_id": rows["agg_trade_id"],
        "price": rows["price"].astype(float),
        "quantity": rows["quantity"].astype(float),
        "first_trade_id": rows["first"],
        "last_trade_id": rows["last"],
        "transact_time": pa.array(START + rows["us"].to_numpy(np.int64)).cast(pa.timestamp("us")),
        "is_buyer_maker": rows["maker"].astype(bool),
        "is_best_match": [True] * len(rows),
    }
    schema = lake_schema(key.market, key.data_type)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def naive(rows: pd.DataFrame, key: SeriesKey, contract: float = 1.0) -> pa.Table:
    """All candles of the day, from trades one by one: the slow and plain way that the fast one must equal."""
    step = INTERVALS[key.interval or ""] * 1_000_000
    inverse = MARKETS[key.market].inverse
    found: list[list[Any]] = []
    close = 0.0
    by_bar: dict[int, list[dict[str, Any]]] = {}
    for row in rows[rows["first"] >= 0].sort_values("agg_trade_id").to_dict("records"):
        by_bar.setdefault(row["us"] // step, []).append({str(name): value for name, value in row.items()})
    for number in range(clock.US_PER_DAY // step):
        bar = by_bar.get(number, [])
        prices = [row["price"] for row in bar]
        quantities, makers = [row["quantity"] for row in bar], [row["maker"] for row in bar]
        values = [
            contract * quantity / price if inverse else price * quantity
            for price, quantity in zip(prices, quantities, strict=True)
        ]
        first = prices[0] if prices else close
        close = prices[-1] if prices else close
        opened = START + number * step
        found.append(
            [
                opened, first, max(prices, default=close), min(prices, default=close), close, float(sum(quantities)),
                opened + step - 1000, float(sum(values)), sum(row["last"] - row["first"] + 1 for row in bar),
                float(sum(one for one, maker in zip(quantities, makers, strict=True) if not maker)),
                float(sum(one for one, maker in zip(values, makers, strict=True) if not maker)),
            ]
        )  # fmt: skip
    schema = lake_schema(key.market, key.data_type)
    columns: list[Any] = [pa.array([label] * len(found)).dictionary_encode() for label in (key.symbol, key.interval)]
    for field, column in zip(list(schema)[2:], zip(*found, strict=True), strict=True):
        whole = pa.types.is_timestamp(field.type) or pa.types.is_integer(field.type)
        columns.append(pa.array(column, pa.int64() if whole else pa.float64()).cast(field.type))
    return pa.table(columns, schema=schema)


def at(minutes: float) -> datetime:
    """The open time of the bar of a minute after midnight."""
    return datetime(2024, 3, 5) + timedelta(minutes=minutes)  # noqa: DTZ001 - the lake's times have no zone


def altered(table: pa.Table, row: int, **values: float) -> pa.Table:
    """A table with other values in one row."""
    for name, value in values.items():
        column = table.column(name).to_pylist()
        column[row] = value
        index = table.column_names.index(name)
        table = table.set_column(index, table.schema.field(name), pa.array(column, table.schema.field(name).type))
    return table


def without(table: pa.Table, *rows: int) -> pa.Table:
    """A table without some rows."""
    return table.take([n for n in range(table.num_rows) if n not in rows])


def gap(verdict: Verdict, first_minute: int, last_minute: int) -> Finding:
    """What the gaps check says of missing minutes."""
    one = Range(
        first=START + first_minute * MINUTE, last=START + last_minute * MINUTE, count=last_minute - first_minute + 1
    )
    return Finding(
        check="gaps", rule=verdict, severity=Severity.WARN, count=one.count, message="Missing.", ranges=(one,)
    )


class Bench:
    """Both sides of a day as files."""

    def __init__(self, folder: Path, market: str = "spot", symbol: str = "XYZUSDT") -> None:
        self.folder = folder
        self.market, self.symbol = market, symbol
        self.trades, self.minutes = agg_trades(symbol, market), klines(symbol, "1m", market)

    def write(self, name: str, table: pa.Table) -> Path:
        path = self.folder / f"{name}.parquet"
        parquet.write_table(path, table)
        return path

    def compare(
        self,
        rows: pd.DataFrame | pa.Table,
        candles: pa.Table,
        key: SeriesKey | None = None,
        around: Mapping[str, pd.DataFrame] | None = None,
        klines_findings: Sequence[Finding] = (),
        source_findings: Sequence[Finding] = (),
    ) -> DayReconciled:
        source = rows if isinstance(rows, pa.Table) else trade_table(self.trades, rows)
        neighbours = {name: self.write(name, trade_table(self.trades, one)) for name, one in (around or {}).items()}
        sides = DaySides(
            DAY,
            self.write("klines", candles),
            self.write("source", source),
            klines_findings=tuple(klines_findings),
            source_findings=tuple(source_findings),
            before=neighbours.get("before"),
            after=neighbours.get("after"),
        )
        (found,) = reconcile_days(key or self.minutes, [sides])
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def futures(tmp_path: Path) -> Bench:
    return Bench(tmp_path, "um")


def some_trades(count: int = 400, first_id: int = 100, seed: int = 1, size: int = 2) -> pd.DataFrame:
    """Trades over the day, each aggTrade of one or more trades; ids follow one another."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, size + 1, count)
    last = first_id * 2 + np.cumsum(sizes)
    return pd.DataFrame(
        {
            "agg_trade_id": first_id + np.arange(count),
            "price": random.integers(9_900, 10_100, count) / 100,
            "quantity": random.integers(1, 5_000, count) / 1000,
            "first": last - sizes + 1,
            "last": last,
            "us": np.sort(random.integers(0, clock.US_PER_DAY // 1000, count)) * 1000,
            "maker": random.integers(0, 2, count).astype(bool),
        }
    )


def edges(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The trades right before and after, as the days around have them: nothing is missing at midnight."""
    head, tail = rows.iloc[:1].copy(), rows.iloc[-1:].copy()
    for one, step, us in ((head, -1, -1000), (tail, 1, clock.US_PER_DAY)):
        one["agg_trade_id"] += step
        one[["first", "last"]] = int(one["first"].iloc[0]) - 1 if step < 0 else int(one["last"].iloc[0]) + 1
        one["us"] = us
    return {"before": head, "after": tail}


def shown(found: DayReconciled) -> list[tuple[datetime, str, float | None, float | None, str]]:
    return [(d.open_time, d.column, d.klines, d.rebuilt, d.reason) for d in found.differences]


# --- what the sandbox's exchange publishes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("market", "symbol", "day", "contract"),
    [
        ("spot", "BTCUSDT", "2026-03-02", None),
        ("spot", "BTCUSDT", "2024-03-02", None),
        ("um", "BTCUSDT", "2026-03-02", None),
        ("cm", "BTCUSD_PERP", "2026-03-02", 100.0),
    ],
)
def test_klines_that_follow_from_trades_differ_in_no_bar(
    world: World, market: str, symbol: str, day: str, contract: float | None
) -> None:
    wanted = days(day, (date.fromisoformat(day) + timedelta(days=1)).isoformat())
    keys = [klines(symbol, interval, market) for interval in ("1m", "5m", "1h", "1d")]
    for key in [agg_trades(symbol, market), *keys, *([klines(symbol, "1s")] if market == "spot" else [])]:
        world.ingest(key, wanted)
    keys += [klines(symbol, "1s")] if market == "spot" else []

    for key in keys:
        sides = [DaySides(one, world.layout.file(key, one), world.layout.file(source_of(key), one)) for one in wanted]
        found = reconcile_days(key, sides)

        assert [one.bars for one in found] == [86_400 // INTERVALS[key.interval or ""]] * 2
        assert [one.differences for one in found] == [(), ()], key
        assert [one.contract_size for one in found] == [contract if key.interval == "1m" else None] * 2


def test_an_altered_bar_is_found_with_both_values(world: World) -> None:
    key, trades, day = klines("BTCUSDT", "1m", "um"), agg_trades("BTCUSDT", "um"), date(2026, 3, 2)
    world.ingest(key, [day])
    world.ingest(trades, [day])
    table = parquet.read_table(world.layout.file(key, day))
    true = table.slice(600, 1).to_pylist()[0]
    parquet.write_table(
        world.layout.file(key, day), altered(table, 600, high=true["high"] + 1, taker_buy_volume=true["volume"] * 2)
    )

    (found,) = reconcile_days(key, [DaySides(day, world.layout.file(key, day), world.layout.file(trades, day))])

    assert (found.bars, found.differing, found.explained) == (1440, 1, 0)
    high, taker = found.differences
    assert high == Difference(true["open_time"], "high", true["high"] + 1, true["high"])
    assert (taker.column, taker.klines) == ("taker_buy_volume", true["volume"] * 2)
    assert taker.rebuilt == pytest.approx(true["taker_buy_volume"], rel=1e-9)


# --- against a plain rebuild ---------------------------------------------------------------------------------------

changes = st.dictionaries(
    st.tuples(
        st.integers(0, 23),
        st.sampled_from([*EXACT, "volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume"]),
    ),
    st.sampled_from([1.0, -1.0, 0.5, 1e-5]),  # of the value, or of 1: beyond what sums may be apart, and no count
    max_size=6,
)


@settings(max_examples=sized(20, 60))
@given(
    interval=st.sampled_from(["1m", "1h"]),
    count=st.integers(1, 80),
    seed=st.integers(0, 2**32),
    changed=changes,
    sentinels=st.sets(st.integers(0, 79)),
)
def test_every_changed_value_is_found_and_no_other(
    tmp_path_factory: pytest.TempPathFactory,
    interval: str,
    count: int,
    seed: int,
    changed: Mapping[tuple[int, str], float],
    sentinels: set[int],
) -> None:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    key = klines("XYZUSDT", interval)
    rows = some_trades(count, seed=seed)
    rows.loc[rows.index.isin(sentinels), ["price", "quantity", "first", "last"]] = [0.0, 0.0, -1, -1]
    true = naive(rows, key)
    counts = true.column("count").to_pylist()
    traded, flat = np.flatnonzero(np.array(counts) > 0), np.flatnonzero(np.array(counts) == 0)
    some_bars = [*traded[:12], *flat, *traded[12:]][:24]
    values = {(int(some_bars[n]), column): by for (n, column), by in changed.items()}
    said = true
    for (bar, column), by in values.items():
        value = true.column(column)[bar].as_py()
        other = int(value + np.sign(by)) if column == "count" else value + by * max(1.0, value)
        said = altered(said, bar, **{column: other})

    found = bench.compare(rows if interval == "1m" else naive(rows, bench.minutes), said, key)

    minutes = INTERVALS[interval] // 60
    # Of a bar without trades nothing but volume and number of trades can be compared.
    expected = {(at(bar * minutes), column) for bar, column in values if counts[bar]}
    filled = {at(bar * minutes) for bar, column in values if not counts[bar] and column in ("volume", "count")}
    assert {(one.open_time, one.column) for one in found.differences if one.open_time not in filled} == expected
    assert found.differing == len({time for time, _ in expected} | filled)
    for one in found.differences:
        bar = int((one.open_time - at(0)).total_seconds()) // INTERVALS[interval]
        assert one.klines == said.column(one.column)[bar].as_py()
        if counts[bar]:
            assert one.rebuilt == pytest.approx(true.column(one.column)[bar].as_py(), rel=1e-9)


# --- what explains a difference ------------------------------------------------------------------------------------


def test_ids_skipped_by_futures_explain_a_bar_with_more_trades(futures: Bench) -> None:
    every = some_trades(size=1)
    row = 200
    left_out = every.iloc[row]
    rows = every.drop(index=row)
    rows["agg_trade_id"] = every["agg_trade_id"].iloc[0] + np.arange(len(rows))

    found = futures.compare(rows, naive(every, futures.minutes), around=edges(rows))

    assert (found.differing, found.explained, found.unexplained) == (1, 1, 0)
    assert {one.reason for one in found.differences} == {Reason.SKIPPED_TRADES}
    assert {one.ids for one in found.differences} == {str(int(left_out["first"]))}
    [count] = [one for one in found.differences if one.column == "count"]
    assert count.klines == (count.rebuilt or 0) + 1


def test_spot_leaves_no_trade_out(bench: Bench) -> None:
    every = some_trades(size=1)
    rows = every.drop(index=200)
    rows["agg_trade_id"] = every["agg_trade_id"].iloc[0] + np.arange(len(rows))

    found = bench.compare(rows, naive(every, bench.minutes), around=edges(rows))

    assert (found.differing, found.explained) == (1, 0)


def test_skipped_trade_does_not_explain_an_altered_price(futures: Bench) -> None:
    every = some_trades(count=5_000, size=1)
    rows = every.drop(index=200)
    rows["agg_trade_id"] = every["agg_trade_id"].iloc[0] + np.arange(len(rows))
    minute = int(every["us"].iloc[200]) // MINUTE
    candles = naive(rows, futures.minutes)  # a bar that has no more than the aggTrades
    high = candles.column("high")[minute].as_py()

    found = futures.compare(rows, altered(candles, minute, high=high + 1), around=edges(rows))

    assert shown(found) == [(at(minute), "high", high + 1, high, "")]


@pytest.mark.parametrize("market", ["um", "cm"])
@pytest.mark.parametrize(
    ("column", "factor"),
    [
        (None, 1.0),
        ("value", 1e6),
        ("value", 1.05),
        ("value", 1e-6),
        ("taker_value", 0.0),
        ("taker_value", 1e6),
        ("taker_value", 1.05),
        ("taker_volume", 2.0),
        ("volume", 1e6),
    ],
)
def test_skipped_trade_explains_only_a_possible_volume_and_value(
    tmp_path: Path, market: str, column: str | None, factor: float
) -> None:
    bench = Bench(tmp_path, market)
    every = some_trades(count=5_000, size=1)
    row = 200
    minute = int(every["us"].iloc[row]) // MINUTE
    in_bar = every["us"] // MINUTE == minute
    every.loc[in_bar, "maker"] = every.index[in_bar] % 2 == 1
    every.loc[row, "maker"] = False
    rows = every.drop(index=row)
    rows["agg_trade_id"] = every["agg_trade_id"].iloc[0] + np.arange(len(rows))
    candles = naive(every, bench.minutes, contract=10.0 if market == "cm" else 1.0)
    if column is not None:
        quote = "base" if market == "cm" else "quote"
        name = {
            "value": f"{quote}_volume",
            "taker_value": f"taker_buy_{quote}_volume",
            "taker_volume": "taker_buy_volume",
        }.get(column, column)
        candles = altered(candles, minute, **{name: candles.column(name)[minute].as_py() * factor})

    found = bench.compare(rows, candles, around=edges(rows))

    assert found.differing == 1
    assert found.explained == (column is None)


@pytest.mark.parametrize("market", ["um", "cm"])
@pytest.mark.parametrize(("factor", "explained"), [(1.0, 1), (1e6, 0), (1e-6, 0)])
def test_missing_minutes_explain_only_a_possible_value(
    tmp_path: Path, market: str, factor: float, explained: int
) -> None:
    bench = Bench(tmp_path, market)
    contract = 10.0 if market == "cm" else 1.0
    rows, hours = some_trades(count=5_000), klines("XYZUSDT", "1h", market)
    minutes = without(naive(rows, bench.minutes, contract), *range(300, 310))
    candles = naive(rows, hours, contract)
    name = "base_volume" if market == "cm" else "quote_volume"

    found = bench.compare(minutes, altered(candles, 5, **{name: candles.column(name)[5].as_py() * factor}), hours)

    assert (found.differing, found.explained) == (1, explained)


def test_trades_that_were_taken_back_explain_a_bar_in_spot(bench: Bench) -> None:
    every = some_trades(size=1)
    rows = every.copy()
    rows.loc[200, ["price", "quantity", "first", "last"]] = [0.0, 0.0, -1, -1]

    found = bench.compare(rows, naive(every, bench.minutes), around=edges(rows))

    assert (found.differing, found.explained) == (1, 1)
    assert {one.reason for one in found.differences} == {Reason.TAKEN_BACK}


@pytest.mark.parametrize("market", ["spot", "um"])
def test_missing_agg_trades_are_not_blamed_on_klines(tmp_path: Path, market: str) -> None:
    bench = Bench(tmp_path, market)
    every = some_trades()
    rows = every.drop(index=range(100, 150))

    found = bench.compare(rows, naive(every, bench.minutes), around=edges(rows))

    minutes = {at(us // MINUTE) for us in every["us"].iloc[100:150]}
    assert {one.open_time for one in found.differences} == minutes
    assert found.unexplained == 0
    assert {one.reason for one in found.differences} == {Reason.MISSING_TRADES}


def test_a_day_of_trades_cut_short_is_not_blamed_on_klines(bench: Bench) -> None:
    every = some_trades()
    rows = every.iloc[:150]

    alone = bench.compare(rows, naive(every, bench.minutes))
    known = bench.compare(rows, naive(every, bench.minutes), around=edges(every))

    for found in (alone, known):
        assert found.differing > 200
        assert found.unexplained == 0
        assert {one.reason for one in found.differences} == {Reason.MISSING_TRADES}


def test_where_the_next_day_goes_on_the_trades_are_all_there(bench: Bench) -> None:
    every = some_trades()
    candles = naive(every, bench.minutes)
    last = int(every["us"].iloc[-1]) // MINUTE
    volume = candles.column("volume")[last].as_py()
    count = candles.column("count")[last].as_py()
    value = candles.column("quote_volume")[last].as_py() + candles.column("low")[last].as_py()
    more = altered(candles, last, volume=volume + 1, quote_volume=value, count=count + 1)

    unproven = bench.compare(every, more)
    proven = bench.compare(every, more, around=edges(every))

    assert (unproven.differing, unproven.explained) == (1, 1)
    assert (proven.differing, proven.explained) == (1, 0)


def test_agg_trade_across_two_minutes_explains_both_bars(futures: Bench) -> None:
    rows = some_trades(size=1)
    row = 200
    minute = int(rows["us"].iloc[row]) // MINUTE
    every = rows.drop(index=row)
    edge = (minute + 1) * MINUTE
    # Three trades of one order, of which Binance makes one aggTrade with the time of the first.
    three = pd.concat([rows.iloc[[row]]] * 3, ignore_index=True)
    three["us"] = [edge - 20_000, edge + 10_000, edge + 30_000]
    first = int(rows["first"].iloc[row])
    rows.loc[row + 1 :, ["first", "last"]] += 2
    every.loc[row + 1 :, ["first", "last"]] += 2
    three["first"] = three["last"] = [first, first + 1, first + 2]
    three["agg_trade_id"] = [rows["agg_trade_id"].iloc[row]] * 3
    rows.loc[row, ["first", "last", "us"]] = [first, first + 2, edge - 20_000]
    rows["quantity"] = rows["quantity"].where(rows.index != row, rows["quantity"] * 3)
    every = pd.concat([every, three]).sort_values(["us"], kind="stable")
    every["agg_trade_id"] = np.arange(len(every))
    rows = rows.sort_values("us", kind="stable")
    rows["agg_trade_id"] = np.sort(rows["agg_trade_id"])

    found = futures.compare(rows, naive(every, futures.minutes), around=edges(rows))

    assert {one.open_time for one in found.differences} == {
        at(minute),
        at(minute + 1),
    }
    assert {one.reason for one in found.differences} == {Reason.ACROSS_BARS}
    assert found.unexplained == 0


def test_volume_moved_to_the_next_bar_needs_such_an_agg_trade(futures: Bench) -> None:
    """Without one agg trade across the two minutes it is unexplained."""
    rows = some_trades(count=5_000, size=1)
    candles = naive(rows, futures.minutes)
    for minute, by in ((300, 0.5), (301, -0.5)):
        candles = altered(candles, minute, volume=candles.column("volume")[minute].as_py() + by)

    found = futures.compare(rows, candles, around=edges(rows))

    assert (found.differing, found.explained) == (2, 0)


def test_a_candle_that_is_not_there_although_there_were_trades(bench: Bench) -> None:
    rows = some_trades(count=5_000)
    candles = without(naive(rows, bench.minutes), 300, 301, 302)
    defect, outage = gap(Verdict.ARCHIVE_DEFECT, 300, 300), gap(Verdict.OUTAGE, 301, 301)

    found = bench.compare(rows, candles, klines_findings=[defect, outage])

    counts = naive(rows, bench.minutes).column("count").to_pylist()
    assert shown(found) == [
        (at(300), "candle", None, counts[300], Reason.KNOWN_GAP),
        (at(301), "candle", None, counts[301], ""),  # an outage, it was said: no trade took place
        (at(302), "candle", None, counts[302], ""),
    ]
    assert found.differences[0].ids == "archive_defect"
    assert found.bars == 1437


def test_bars_are_not_blamed_for_candles_off_the_grid(bench: Bench) -> None:
    """Minutes 300 to 309 begin 17 seconds late, so that they have a part of each bar to 310; 700 lacks besides."""
    rows = some_trades(count=5_000)
    candles = without(naive(rows, bench.minutes), 700)
    opened = candles.column("open_time").to_pylist()
    opened[300:310] = [at(n + 17 / 60) for n in range(300, 310)]
    index = candles.column_names.index("open_time")
    field = candles.schema.field("open_time")
    shifted = candles.set_column(index, field, pa.array(opened, field.type))
    late = Range(first=START + 300 * MINUTE + 17_000_000, last=START + 309 * MINUTE + 17_000_000, count=10)
    off = Finding(check="integrity", rule="off_grid", severity=Severity.INFO, count=10, message="", ranges=(late,))

    found = bench.compare(rows, shifted, klines_findings=[off])

    assert {one.open_time: one.reason for one in found.differences} == {
        at(700): "",
        **{at(n): Reason.OFF_GRID for n in range(300, 310)},
    }


def test_longer_candle_is_not_blamed_for_missing_minutes(bench: Bench) -> None:
    rows, hours = some_trades(count=5_000), klines("XYZUSDT", "1h")
    minutes = without(naive(rows, bench.minutes), *range(300, 310))

    found = bench.compare(minutes, naive(rows, hours), hours)
    in_an_outage = bench.compare(minutes, naive(rows, hours), hours, source_findings=[gap(Verdict.OUTAGE, 300, 309)])

    assert {(one.open_time, one.reason) for one in found.differences} == {(at(300), Reason.MISSING_CANDLES)}
    assert found.unexplained == 0
    assert (in_an_outage.differing, in_an_outage.explained) == (1, 0)


def test_a_flat_minute_is_no_price_of_a_longer_candle(bench: Bench) -> None:
    rows, hours = some_trades(count=30), klines("XYZUSDT", "1h")
    minutes = naive(rows, bench.minutes)
    assert minutes.column("count").to_pylist().count(0) > 1400

    assert bench.compare(minutes, naive(rows, hours), hours).differences == ()


def test_a_candle_without_trades_is_as_binance_writes_it(bench: Bench) -> None:
    rows = some_trades(count=30)
    candles = naive(rows, bench.minutes)
    flat = candles.column("count").to_pylist().index(0)
    other = altered(candles, flat, open=1.0, high=1.0, low=1.0, close=1.0)

    assert bench.compare(rows, other).differences == ()


def test_contracts_are_inverse_and_their_size_is_derived(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "cm", "ABCUSD_PERP")
    rows = some_trades(count=3_000)
    rows["quantity"] = np.ceil(rows["quantity"] * 10)
    true = naive(rows, bench.minutes, contract=10.0)
    base = np.round(true.column("base_volume").to_numpy(), 8)
    index = true.column_names.index("base_volume")
    candles = true.set_column(index, true.schema.field(index), pa.array(base))

    assert (found := bench.compare(rows, candles)).differences == ()
    assert found.contract_size == 10.0

    wrong = bench.compare(rows, altered(candles, 700, base_volume=base[700] * 1.001))
    assert [(one.open_time, one.column, one.klines) for one in wrong.differences] == [
        (at(700), "base_volume", base[700] * 1.001)
    ]
    assert wrong.differences[0].rebuilt == pytest.approx(base[700], rel=1e-6)


def test_day_without_trades_and_with_flat_candles_is_equal(bench: Bench) -> None:
    rows = some_trades(count=10)
    nothing = rows.iloc[:0]
    assert bench.compare(nothing, naive(nothing, bench.minutes)).differences == ()
    lost = bench.compare(nothing, naive(rows, bench.minutes))
    assert lost.differing
    assert lost.unexplained == 0


def test_day_stores_a_thousand_differences_and_counts_all(bench: Bench) -> None:
    rows = some_trades(count=5_000)
    candles = naive(rows, bench.minutes)
    for name in ("high", "low"):
        index = candles.column_names.index(name)
        other = pa.array(candles.column(name).to_numpy() + 0.001)
        candles = candles.set_column(index, candles.schema.field(index), other)

    found = bench.compare(rows, candles, around=edges(rows))

    assert len(found.differences) == 1000
    assert found.differing == int((candles.column("count").to_numpy() > 0).sum())
    assert found.explained == 0


# --- recorded data -------------------------------------------------------------------------------------------------


def test_the_trade_that_um_left_out_of_recorded_data_is_normal(recorded: World) -> None:
    """No klines were recorded for that day, so they are made of the trades, once without the skipped one, once with."""
    trades, key, day = agg_trades("APEUSDT", "um"), klines("APEUSDT", "1m", "um"), date(2024, 10, 18)
    assert recorded.one(trades, "2024-10-18").row.outcome == "held"
    table = recorded.table(trades, "2024-10-18")
    frame = table.to_pandas().rename(
        columns={"first_trade_id": "first", "last_trade_id": "last", "is_buyer_maker": "maker"}
    )
    frame["us"] = frame["transact_time"].astype("datetime64[us]").astype("int64") - clock.day_start_us(day)
    shift = clock.day_start_us(day) - START
    step = pa.scalar(timedelta(microseconds=shift))

    def candles_of(rows: pd.DataFrame) -> Path:
        made = naive(rows, key)
        for name in ("open_time", "close_time"):
            index = made.column_names.index(name)
            times = pa.compute.add(made.column(name), step)
            made = made.set_column(index, made.schema.field(index), times)
        path = recorded.root / "candles.parquet"
        parquet.write_table(path, made)
        return path

    (normal,) = reconcile_days(key, [DaySides(day, candles_of(frame), recorded.layout.file(trades, day))])
    assert (normal.bars, normal.differing) == (1440, 0)

    skipped = frame[frame["first"] == 551701360].copy()
    skipped[["first", "last"]] = 551701359
    skipped["us"] -= 1000
    (found,) = reconcile_days(
        key, [DaySides(day, candles_of(pd.concat([frame, skipped])), recorded.layout.file(trades, day))]
    )
    assert (found.differing, found.explained) == (1, 1)
    assert {(one.reason, one.ids) for one in found.differences} == {(Reason.SKIPPED_TRADES, "551701359")}
    assert {one.column for one in found.differences} == {
        "volume", "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume",
    }  # fmt: skip
