"""The contract of all stores: the same tests for the lake, PostgreSQL, and both together."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from market_data_pipeline import UsageError, clock
from market_data_pipeline.lake.reader import time_column
from market_data_pipeline.model.datasets import SPECS
from market_data_pipeline.model.schema import WORD, lake_schema
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.stores.base import RowState
from market_data_pipeline_tests.stores.conftest import Case
from market_data_pipeline_tests.support.small_lake import day_table, series

HOURS = series("BTCUSDT", "1h")
TRADES = series("BTCUSDT")
DAY, NEXT, LATER = date(2024, 3, 1), date(2024, 3, 2), date(2024, 3, 4)
MORNING, NOON, EVENING = (datetime(2024, 3, 5, hour, tzinfo=UTC) for hour in (6, 12, 18))


def with_close(rows: pa.Table, close: float) -> pa.Table:
    """Return candles with another close."""
    place = rows.column_names.index("close")
    return rows.set_column(place, rows.schema.field("close"), pa.array([float(close)] * rows.num_rows))


def closes(case: Case, key: SeriesKey = HOURS, **options: Any) -> list[float]:
    column: Any = case.store.load(key, **options)["close"]
    return list(column.to_pylist())


def utc(*parts: int) -> datetime:
    """Return a moment in UTC, without zone."""
    return datetime(*parts, tzinfo=UTC).replace(tzinfo=None)  # type: ignore[misc,arg-type]  # no zone among the parts


def test_saved_rows_are_loaded_equal_to_the_bit(case: Case) -> None:
    rows = day_table(HOURS, DAY, 7)

    report = case.store.save(HOURS, rows)

    assert (report.inserted, report.written, report.conflicts) == (24, 24, 0)
    assert case.store.load(HOURS).equals(rows)
    assert case.store.save(HOURS, rows).unchanged == 24
    assert case.store.load(HOURS).equals(rows)


def test_empty_store_has_nothing(case: Case) -> None:
    assert case.store.load(HOURS).equals(lake_schema(Market.SPOT, DataType.KLINES).empty_table())
    assert not case.store.exists(HOURS)
    assert case.store.get_date_range(HOURS) is None
    assert case.store.get_missing_dates(HOURS, DAY, NEXT) == [DAY, NEXT]
    assert case.store.delete(HOURS) == 0
    assert case.store.save(HOURS, day_table(HOURS, DAY).slice(0, 0)).written == 0


def test_range_has_a_start_and_no_end_row(case: Case) -> None:
    case.store.save(HOURS, day_table(HOURS, DAY))
    start, end = utc(2024, 3, 1, 5), utc(2024, 3, 1, 8)

    assert case.store.load(HOURS, start, end)["open"].to_pylist() == [5, 6, 7]
    there = timezone(timedelta(hours=2))
    same = [moment.replace(tzinfo=UTC).astimezone(there) for moment in (start, end)]
    assert case.store.load(HOURS, *same)["open"].to_pylist() == [5, 6, 7]
    assert case.store.load(HOURS, start, end, last=2)["open"].to_pylist() == [6, 7]
    assert case.store.load(HOURS, last=2)["open"].to_pylist() == [22, 23]
    assert case.store.load(HOURS, last=0).num_rows == 0
    assert case.store.exists(HOURS, start, end)
    assert not case.store.exists(HOURS, utc(2024, 3, 2), None)


def test_days_and_missing_days_are_listed(case: Case) -> None:
    for day in (DAY, LATER):
        case.store.save(HOURS, day_table(HOURS, day))

    assert case.store.get_date_range(HOURS) == (DAY, LATER)
    assert case.store.get_missing_dates(HOURS, DAY - timedelta(days=1), LATER) == [
        date(2024, 2, 29),
        date(2024, 3, 2),
        date(2024, 3, 3),
    ]


def test_series_do_not_mix(case: Case) -> None:
    others = [series("ETHUSDT", "1h"), series("BTCUSDT", "2h"), series("BTCUSDT", "1h", "um")]
    case.store.save(HOURS, day_table(HOURS, DAY, 1))
    for key in others:
        case.store.save(key, day_table(key, DAY, 2))

    assert case.store.load(HOURS).equals(day_table(HOURS, DAY, 1))
    assert case.store.delete(HOURS) == 24
    assert all(case.store.load(key).equals(day_table(key, DAY, 2)) for key in others)


def test_rows_are_deleted_by_range(case: Case) -> None:
    case.store.save(HOURS, day_table(HOURS, DAY))
    case.store.save(HOURS, day_table(HOURS, NEXT))

    assert case.store.delete(HOURS, utc(2024, 3, 1, 2), utc(2024, 3, 1, 23)) == 21
    assert case.store.load(HOURS, end=utc(2024, 3, 2))["open"].to_pylist() == [0, 1, 23]
    assert case.store.delete(HOURS, utc(2024, 3, 2)) == 24
    assert case.store.get_date_range(HOURS) == (DAY, DAY)


# --- upward only -----------------------------------------------------------------------------------------------------


def test_rows_move_upward_only(case: Case) -> None:
    rows = day_table(HOURS, DAY).slice(0, 3)
    for state in (RowState.FORMING, RowState.LIVE, RowState.PROVISIONAL):
        assert case.store.save(HOURS, with_close(rows, int(state)), state, seen_at=MORNING).written == 3
    assert closes(case) == [2, 2, 2]

    for state in (RowState.FORMING, RowState.LIVE):
        assert case.store.save(HOURS, with_close(rows, 9), state, seen_at=EVENING).ignored == 3
    assert closes(case) == [2, 2, 2]


def test_final_rows_are_never_overwritten(case: Case) -> None:
    rows = day_table(HOURS, DAY, 5)
    case.put_final(HOURS, DAY, rows)

    for state in (RowState.FORMING, RowState.LIVE, RowState.PROVISIONAL):
        case.store.save(HOURS, with_close(rows, 9), state, seen_at=EVENING)

    stored = case.store.load(HOURS, with_state=True)
    assert stored.drop_columns(["state", "seen_at"]).equals(rows)
    assert set(stored["state"].to_pylist()) == {RowState.FINAL}


def test_final_day_replaces_rows_of_lower_states(case: Case) -> None:
    case.store.save(HOURS, day_table(HOURS, DAY, 1), RowState.LIVE)
    case.put_final(HOURS, DAY, day_table(HOURS, DAY, 2))

    assert case.store.load(HOURS).equals(day_table(HOURS, DAY, 2))
    assert case.store.load(HOURS, last=5).equals(day_table(HOURS, DAY, 2).slice(19))


def test_conflict_is_reported_and_the_newest_row_wins(case: Case) -> None:
    rows = day_table(HOURS, DAY).slice(0, 3)
    case.store.save(HOURS, rows, seen_at=NOON)

    older = case.store.save(HOURS, with_close(rows, 8).slice(1), seen_at=MORNING)
    assert (older.conflicts, older.replaced, older.ignored) == (2, 0, 2)
    assert closes(case) == [0, 0, 0]

    newer = case.store.save(HOURS, with_close(rows, 9).slice(1), seen_at=EVENING)
    assert (newer.conflicts, newer.replaced, newer.ignored) == (2, 2, 0)
    assert closes(case) == [0, 9, 9]
    [first, _] = newer.examples
    assert (first.time, first.columns, first.replaced) == (utc(2024, 3, 1, 1), ("close",), True)


def test_forming_candle_changes_without_a_conflict(case: Case) -> None:
    row = day_table(HOURS, DAY).slice(0, 1)
    for close, at in ((1, MORNING), (2, NOON)):
        report = case.store.save(HOURS, with_close(row, close), RowState.FORMING, seen_at=at)
        assert (report.written, report.conflicts) == (1, 0)

    assert closes(case) == []
    assert not case.store.exists(HOURS)
    assert case.store.get_date_range(HOURS) is None
    assert closes(case, least=RowState.FORMING) == [2]


def test_state_and_time_are_returned_on_request(case: Case) -> None:
    case.store.save(HOURS, day_table(HOURS, DAY).slice(0, 1), RowState.LIVE, seen_at=NOON)

    [row] = case.store.load(HOURS, with_state=True).to_pylist()
    assert (row["state"], row["seen_at"]) == (RowState.LIVE, NOON.replace(tzinfo=None))
    assert case.store.load(HOURS, least=RowState.PROVISIONAL).num_rows == 0


# --- rows of callers -------------------------------------------------------------------------------------------------


def test_rows_in_any_order_and_twice_are_stored_once(case: Case) -> None:
    rows = day_table(HOURS, DAY)
    shuffled = pa.concat_tables([rows.take(np.arange(24)[::-1]), rows.slice(3, 5)])
    shuffled = shuffled.select(["close", *(name for name in shuffled.column_names if name not in ("close", "symbol"))])

    assert case.store.save(HOURS, shuffled).inserted == 24
    assert case.store.load(HOURS).equals(rows)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: rows.drop_columns(["close"]), "no column 'close'"),
        (lambda rows: rows.append_column("vwap", rows["close"]), "an unknown column 'vwap'"),
        (lambda rows: rows.set_column(2, "open_time", pa.array(["x"] * rows.num_rows)), "'open_time'"),
        (lambda rows: rows.set_column(3, "open", pa.nulls(rows.num_rows, pa.float64())), "24 nulls"),
        (lambda rows: rows.set_column(0, "symbol", pa.array(["ETHUSDT"] * rows.num_rows)), "another symbol"),
        (lambda rows: pa.concat_tables([rows, with_close(rows, 5)]), "the same open_time, but another close"),
    ],
    ids=["missing", "unknown", "type", "null", "symbol", "twice"],
)
def test_rows_that_do_not_fit_are_refused(case: Case, change: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        case.store.save(HOURS, change(day_table(HOURS, DAY)))
    assert not case.store.exists(HOURS)


def any_rows(key: SeriesKey, day: date) -> pa.Table:
    """Two rows of any data type, with a negative zero, a huge number, ids above 2**53, and a null if it may be."""
    columns: list[Any] = []
    start = clock.midnight(day)
    spec = SPECS.get((key.market, key.data_type))
    for number, field in enumerate(lake_schema(key.market, key.data_type)):
        if field.type == WORD:
            columns.append(pa.array([getattr(key, field.name)] * 2).dictionary_encode().cast(WORD))
        elif pa.types.is_timestamp(field.type):
            columns.append(
                pa.array([start + timedelta(microseconds=n + number) for n in (1, 86_000_000_000)], field.type)
            )
        elif pa.types.is_date32(field.type):
            columns.append(pa.array([day, day + timedelta(days=1)], field.type))
        elif pa.types.is_floating(field.type):
            second = None if field.nullable and spec is not None else 1.7976931348623157e308
            columns.append(pa.array([0.1 + 0.2 if number % 2 else -0.0, second], field.type))
        elif pa.types.is_boolean(field.type):
            columns.append(pa.array([True, False], field.type))
        elif pa.types.is_string(field.type):
            columns.append(pa.array(['it\'s "so"\\', "买入"], field.type))
        else:
            columns.append(pa.array([2**53 + number, 2**62 + number], field.type))
    return pa.table(columns, schema=lake_schema(key.market, key.data_type))


ANY_SERIES = [
    SeriesKey(EXCHANGE, market, data_type, "BTC'\"USD", "1h" if data_type.has_interval else None)
    for market, data_type in [*SPECS, (Market.SPOT, DataType.TRADE_PROFILE)]
]


def bits(table: pa.Table) -> list[Any]:
    """Return all values, floats as their bits."""
    columns: list[Any] = table.columns
    return [
        np.asarray(column.fill_null(0)).view(np.int64).tolist() + column.is_valid().to_pylist()
        if pa.types.is_floating(column.type)
        else column.to_pylist()
        for column in columns
    ]


@pytest.mark.parametrize("key", ANY_SERIES, ids=lambda key: f"{key.market}-{key.data_type}")
def test_every_data_type_is_stored_to_the_bit(case: Case, key: SeriesKey) -> None:
    rows = any_rows(key, DAY)

    assert case.store.save(key, rows).inserted == 2

    assert case.store.load(key).schema.equals(rows.schema)
    assert bits(case.store.load(key)) == bits(rows)
    assert case.store.save(key, rows).unchanged == 2
    last = rows[time_column(key.data_type)][1].as_py()
    begin = last if isinstance(last, datetime) else clock.midnight(last)
    assert bits(case.store.load(key, begin, begin + timedelta(hours=1))) == bits(rows.slice(1))
    assert case.store.get_date_range(key) == (DAY, begin.date())
    assert case.store.get_missing_dates(key, DAY, begin.date()) == []
    assert case.store.delete(key, begin) == 1
    assert bits(case.store.load(key)) == bits(rows.slice(0, 1))
    assert not case.store.exists(replace(key, symbol="ETHUSD"))


def test_many_rows_are_stored_and_raised(case: Case) -> None:
    """More than fit a prepared statement: they travel by copy."""
    minutes = series("BTCUSDT", "1m")
    case.store.save(minutes, day_table(minutes, DAY, 1), RowState.LIVE)
    report = case.store.save(minutes, day_table(minutes, DAY, 2), RowState.PROVISIONAL)

    assert (report.replaced, report.inserted) == (1440, 0)
    assert case.store.load(minutes).equals(day_table(minutes, DAY, 2))
    both = pa.concat_tables([day_table(minutes, DAY, 2), day_table(minutes, NEXT, 2)])
    report = case.store.save(minutes, both, RowState.PROVISIONAL)
    assert (report.unchanged, report.inserted) == (1440, 1440)
    assert case.store.load(minutes).equals(both)


def test_trades_are_found_by_time_and_ordered_by_id(case: Case) -> None:
    for day in (NEXT, DAY):
        case.store.save(TRADES, day_table(TRADES, day))

    ids = np.asarray(case.store.load(TRADES)["agg_trade_id"])
    assert len(ids) == 200
    assert (np.diff(ids) > 0).all()
    noon = utc(2024, 3, 1, 12)
    assert case.store.load(TRADES, noon, utc(2024, 3, 2)).equals(day_table(TRADES, DAY).slice(50))
    assert case.store.load(TRADES, last=3).equals(day_table(TRADES, NEXT).slice(97))
