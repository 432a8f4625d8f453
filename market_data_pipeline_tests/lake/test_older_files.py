"""Files of an older version beside those of this one: they say of their columns that they might be null."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from market_data_pipeline import MarketData, clock
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.checksums import verify_days
from market_data_pipeline.lake.closed_months import close_months, write_day
from market_data_pipeline.lake.day_records import is_as_on_disk, rows_as_on_disk
from market_data_pipeline.lake.ledger import Ledger, refresh_ledger
from market_data_pipeline.lake.months import DayInMonth, encode_month
from market_data_pipeline.lake.partitions import day_files, day_files_between, read_day_file
from market_data_pipeline.lake.reader import read_days
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import FAILED, DayRecord, FindingColumns
from market_data_pipeline.model.needs import NeedKind, needs
from market_data_pipeline.model.schema import lake_schema, may_be_null
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from, series

JANUARY = days_from("2024-01-01", 31)
KEYS = [series("BTCUSDT", "1h"), series("BTCUSDT")]


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallLake:
    """January of two series, every second day of an older version."""
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 3, 15, 12, tzinfo=UTC))
    lake = SmallLake(tmp_path)
    for key in KEYS:
        lake.put(key, JANUARY)
        ledger = Ledger.read(lake.layout.ledger(key))
        for held in day_files_between(lake.layout, key, JANUARY[0], JANUARY[-1])[::2]:
            record, table = read_day_file(held)
            parquet.write_table(held.path, older(table), record, spec_of(key))
        refresh_ledger(ledger, lake.layout, key)
        ledger.write(lake.layout.ledger(key))
    return lake


def older(table: pa.Table) -> pa.Table:
    return table.cast(may_be_null(table.schema))


def truth(key: SeriesKey, days: list[date]) -> pa.Table:
    return pa.concat_tables([day_table(key, day) for day in days]).unify_dictionaries()


def is_required(path: Path) -> list[bool]:
    """Whether each column of a file says that it is never null, as other readers see it."""
    with pq.ParquetFile(path) as file:
        return [file.schema.column(at).max_definition_level == 0 for at in range(len(file.schema))]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_older_files_are_read_and_verified_with_new_ones(lake: SmallLake, key: SeriesKey) -> None:
    paths = [held.path for held in day_files_between(lake.layout, key, JANUARY[0], JANUARY[1])]
    assert [set(is_required(path)) for path in paths] == [{False}, {True}]
    held = list(day_files(lake.layout, key).values())
    assert read_days(held, lake_schema(key.market, key.data_type)).equals(truth(key, JANUARY))
    assert [proof.fault for proof in verify_days(lake.layout, key, JANUARY)] == [None] * 31
    market = MarketData(lake.root)
    january = "2024-01-01", "2024-02-01"
    result = market.klines("BTCUSDT", "1h", *january) if key.interval else market.agg_trades("BTCUSDT", *january)
    rows = truth(key, JANUARY).num_rows
    assert (result.arrow().num_rows, result.relation().to_arrow_table().num_rows) == (rows, rows)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_missing_value_in_one_is_damage(lake: SmallLake, key: SeriesKey) -> None:
    [held] = day_files_between(lake.layout, key, JANUARY[0], JANUARY[0])
    record, table = read_day_file(held)
    name = spec_of(key).key
    values = table.column(name).to_pylist()
    lost = pa.array([None, *values[1:]]).cast(table.column(name).type)
    at = table.schema.get_field_index(name)
    parquet.write_table(held.path, older(table).set_column(at, name, lost), record, spec_of(key))
    [fault] = [proof.fault for proof in verify_days(lake.layout, key, JANUARY[:1])]
    assert fault is not None
    assert f"{name} is missing in a row" in fault
    with pytest.raises(DamagedFileError, match=held.path.name):
        read_days([held], lake_schema(key.market, key.data_type))


def test_older_files_are_closed_and_an_older_month_is_rewritten(lake: SmallLake) -> None:
    key = KEYS[0]
    assert close_months(lake.layout, key) == [JANUARY[0]]
    month = lake.layout.month(key, JANUARY[0])
    held = list(day_files(lake.layout, key).values())
    assert {one.path for one in held} == {month}
    assert set(is_required(month)) == {True}
    assert read_days(held, lake_schema(key.market, key.data_type)).equals(truth(key, JANUARY))

    found = [read_day_file(one) for one in held]
    storage.put(month, encode_month([DayInMonth(one.record, older(one.table)) for one in found], spec_of(key)))
    assert set(is_required(month)) == {False}
    assert [proof.fault for proof in verify_days(lake.layout, key, JANUARY)] == [None] * 31
    assert read_days(held, lake_schema(key.market, key.data_type)).equals(truth(key, JANUARY))
    write_day(lake.layout, key, found[9].record, parquet.encode_table(found[9].table, found[9].record, spec_of(key)))
    assert set(is_required(month)) == {True}
    assert [proof.fault for proof in verify_days(lake.layout, key, JANUARY)] == [None] * 31


def test_failed_day_that_version_1_called_final_is_tried_again(tmp_path: Path) -> None:
    lake, key, day = SmallLake(tmp_path), KEYS[0], date(2024, 1, 2)
    lake.put(key, JANUARY[:1])
    lake.note(key, DayRecord(day, FAILED, failure="absent", final=True))
    path = lake.layout.ledger(key)
    table = pq.read_table(path)
    names = set(table.column_names) - set(FindingColumns.__annotations__) | {"findings"}
    pq.write_table(table.select([name for name in table.column_names if name in names]), path)
    ledger = Ledger.read(path)
    failed, stored = ledger.rows[day], ledger.rows[JANUARY[0]]
    assert (failed.final, stored.final) == (False, True)
    assert needs(failed, datetime(2024, 3, 1, tzinfo=UTC)).kind is not NeedKind.NOTHING


def test_ledger_with_times_of_files_is_read_under_new_names(lake: SmallLake) -> None:
    """A ledger of an older version has the column ``mtime_ns``. The next write renames it."""
    path = lake.layout.ledger(KEYS[0])
    today = pq.read_table(path)
    names = ["mtime_ns" if name == "version" else name for name in today.column_names]
    parquet.write_table(path, today.rename_columns(names))
    assert is_as_on_disk(lake.layout, KEYS[0])
    assert rows_as_on_disk(lake.layout, KEYS[0])[1] is False
    ledger = Ledger.read(path)
    assert refresh_ledger(ledger, lake.layout, KEYS[0]) == []
    ledger.write(path)
    assert pq.read_table(path) == today
