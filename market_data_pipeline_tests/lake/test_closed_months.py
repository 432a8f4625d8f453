"""Closed months: which are closed, what they hold, how a day of one is written, and who is told what."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline import MarketData, clock
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.closed_months import (
    close_months,
    closed_days,
    record_month,
    remove_closed_days,
    write_day,
)
from market_data_pipeline.lake.day_records import corrected
from market_data_pipeline.lake.ledger import Ledger, refresh_ledger
from market_data_pipeline.lake.months import DayInMonth, encode_month, read_month
from market_data_pipeline.lake.parquet import encode_table
from market_data_pipeline.lake.partitions import day_files, day_files_between, read_day_file, read_record
from market_data_pipeline.lake.reader import read_days
from market_data_pipeline.model import findings
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import FAILED, DayFile, FileStat
from market_data_pipeline.model.findings import Finding, Severity
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sql.publish import publish_catalog, retire_catalogs
from market_data_pipeline_tests.support.documents import query_by_hand
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from, series

HOURS, MINUTES = series("BTCUSDT", "1h"), series("ETHUSDT", "1m")
JANUARY, FEBRUARY = days_from("2024-01-01", 31), days_from("2024-02-01", 29)


@pytest.fixture(scope="module")
def two_months(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("months") / "data").root


@pytest.fixture
def lake(two_months: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallLake:
    """January and February 2024 of an hourly series, looked at in the middle of March."""
    monkeypatch.setattr(clock, "now", lambda: datetime(2024, 3, 15, 12, tzinfo=UTC))
    return SmallLake(shutil.copytree(two_months, tmp_path, dirs_exist_ok=True))


def filled(root: Path) -> SmallLake:
    lake = SmallLake(root)
    lake.put(HOURS, [*JANUARY, *FEBRUARY])
    return lake


def all_rows(lake: SmallLake, key: SeriesKey = HOURS) -> pa.Table:
    return read_days(list(day_files(lake.layout, key).values()), lake_schema(key.market, key.data_type))


def own_files(lake: SmallLake, key: SeriesKey = HOURS) -> list[date]:
    return list(storage.list_dates(lake.layout.folder(key)))


def remove_own_files(lake: SmallLake, key: SeriesKey = HOURS) -> int:
    """Remove the own files of days of closed months, as after the grace period."""
    due, _ = closed_days(lake.layout, key, datetime(2100, 1, 1, tzinfo=UTC))
    return remove_closed_days(lake.layout, key, due)


def is_right(lake: SmallLake, key: SeriesKey = HOURS) -> bool:
    """Whether the ledger speaks of what lies on the disk."""
    return not corrected(lake.layout, [key]).to_pylist()


def test_a_closed_month_has_the_rows_and_the_records_of_its_days(lake: SmallLake) -> None:
    before = all_rows(lake)
    records = {day: read_record(held) for day, held in day_files(lake.layout, HOURS).items()}
    assert close_months(lake.layout, HOURS) == [JANUARY[0], FEBRUARY[0]]
    assert {held.path.name for held in day_files(lake.layout, HOURS).values()} == {
        "2024-01.parquet",
        "2024-02.parquet",
    }
    assert all_rows(lake).equals(before)
    assert {day: read_record(held) for day, held in day_files(lake.layout, HOURS).items()} == records
    assert is_right(lake)
    assert close_months(lake.layout, HOURS) == []


def test_the_days_of_a_closed_month_share_its_bytes(lake: SmallLake) -> None:
    close_months(lake.layout, HOURS)
    held = day_files_between(lake.layout, HOURS, JANUARY[0], JANUARY[-1])
    assert sum(one.stat.bytes for one in held) == lake.layout.month(HOURS, JANUARY[0]).stat().st_size


def test_daily_files_go_after_the_grace_period_and_no_others(lake: SmallLake) -> None:
    before = all_rows(lake)
    close_months(lake.layout, HOURS)
    written = datetime.fromtimestamp(lake.layout.month(HOURS, JANUARY[0]).stat().st_mtime, UTC)
    assert closed_days(lake.layout, HOURS, written - timedelta(hours=1)) == ([], [*JANUARY, *FEBRUARY])
    assert closed_days(lake.layout, HOURS, written + timedelta(hours=1)) == ([*JANUARY, *FEBRUARY], [])
    assert remove_own_files(lake) == 60
    assert own_files(lake) == []
    assert all_rows(lake).equals(before)
    assert is_right(lake)


def found(rule: str, severity: Severity) -> Finding:
    """What the gaps check may say of a day."""
    return Finding(check="gaps", rule=rule, severity=severity, count=1, message="a candle")


def provisional(lake: SmallLake) -> None:
    lake.put(HOURS, [JANUARY[7]], final=False)


def open_gap(lake: SmallLake) -> None:
    lake.put(HOURS, [JANUARY[7]], findings=(found("archive_defect", Severity.ERROR),))


def gone(lake: SmallLake) -> None:
    lake.layout.file(HOURS, JANUARY[7]).unlink()


def damaged(lake: SmallLake) -> None:
    path = lake.layout.file(HOURS, JANUARY[7])
    path.write_bytes(path.read_bytes()[:-40])


def changed_by_hand(lake: SmallLake) -> None:
    path = lake.layout.file(HOURS, JANUARY[7])
    table = parquet.read_table(path)
    parquet.write_table(path, table.slice(1), parquet.read_provenance(path))


@pytest.mark.parametrize("why", [provisional, open_gap, gone, damaged, changed_by_hand])
def test_a_month_with_a_day_that_may_change_stays_open(lake: SmallLake, why: Callable[[SmallLake], None]) -> None:
    why(lake)
    assert close_months(lake.layout, HOURS) == [FEBRUARY[0]]
    assert not lake.layout.month(HOURS, JANUARY[0]).exists()


def test_current_or_partly_stored_month_is_not_closed(lake: SmallLake) -> None:
    lake.put(MINUTES, days_from("2024-02-02", 40))
    assert close_months(lake.layout, MINUTES) == []


def test_trades_stay_in_days(lake: SmallLake) -> None:
    trades = series("BTCUSDT")
    lake.put(trades, JANUARY)
    assert close_months(lake.layout, trades) == []
    assert remove_own_files(lake, trades) == 0
    assert own_files(lake, trades) == JANUARY


def rewrite(lake: SmallLake, day: date, version: int) -> None:
    """Write a day of a series as its writer does."""
    record = read_record(day_files_between(lake.layout, HOURS, day, day)[0])
    table = day_table(HOURS, day, version)
    encoded = encode_table(table, record)
    write_day(lake.layout, HOURS, record, encoded)


def test_a_day_of_a_closed_month_is_written_into_it(lake: SmallLake) -> None:
    close_months(lake.layout, HOURS)
    remove_own_files(lake)
    before = all_rows(lake)
    rewrite(lake, JANUARY[7], version=3)
    assert own_files(lake) == []
    assert read_day_file(day_files_between(lake.layout, HOURS, JANUARY[7], JANUARY[7])[0]).table.equals(
        day_table(HOURS, JANUARY[7], 3)
    )
    after = all_rows(lake)
    assert (after.slice(0, 7 * 24), after.slice(8 * 24)) == (before.slice(0, 7 * 24), before.slice(8 * 24))
    ledger = Ledger.read(lake.layout.ledger(HOURS))
    record_month(ledger, lake.layout, HOURS, JANUARY[7])
    assert {row.outcome for row in ledger.rows.values()} == {"held"}
    assert refresh_ledger(ledger, lake.layout, HOURS) == []


def test_market_verdict_survives_a_crash_before_the_ledger_write(lake: SmallLake) -> None:
    judged = found("suspended", Severity.INFO)
    ledger_path = lake.layout.ledger(HOURS)
    row = Ledger.read(ledger_path).rows[JANUARY[3]]
    lake.note(HOURS, replace(row, findings=findings.to_json([judged])))
    before = ledger_path.read_bytes()
    close_months(lake.layout, HOURS)
    ledger_path.write_bytes(before)  # the process was killed before it wrote
    assert not is_right(lake)
    ledger = Ledger.read(ledger_path)
    refresh_ledger(ledger, lake.layout, HOURS)
    assert ledger.rows[JANUARY[3]].findings_list() == (judged,)
    ledger.write(ledger_path)
    assert is_right(lake)


def test_damaged_month_fails_its_days_until_they_are_fetched(lake: SmallLake) -> None:
    close_months(lake.layout, HOURS)
    remove_own_files(lake)
    record = read_record(day_files_between(lake.layout, HOURS, JANUARY[7], JANUARY[7])[0])
    month = lake.layout.month(HOURS, JANUARY[0])
    month.write_bytes(month.read_bytes()[:-100])
    ledger = Ledger.read(lake.layout.ledger(HOURS))
    assert refresh_ledger(ledger, lake.layout, HOURS) == JANUARY
    assert {ledger.rows[day].failure for day in JANUARY} == {"damaged"}
    assert month.name in (ledger.rows[JANUARY[0]].reason or "")
    write_day(lake.layout, HOURS, record, encode_table(day_table(HOURS, JANUARY[7]), record))
    assert own_files(lake) == [JANUARY[7]]
    refresh_ledger(ledger, lake.layout, HOURS)
    assert [day for day in JANUARY if ledger.rows[day].outcome != FAILED] == [JANUARY[7]]


def test_day_missing_from_a_month_is_named(lake: SmallLake) -> None:
    month = lake.layout.month(HOURS, JANUARY[0])
    days = [DayInMonth(*read_day_file(held)) for held in day_files_between(lake.layout, HOURS, JANUARY[0], JANUARY[-2])]
    storage.put(month, encode_month(days, spec_of(HOURS)))
    held = DayFile(HOURS, JANUARY[-1], month, FileStat(1, 1))
    with pytest.raises(DamagedFileError, match=r"2024-01\.parquet is damaged .* no rows of 2024-01-31"):
        read_record(held)


def test_rows_of_a_day_are_read_without_the_rest_of_the_month(lake: SmallLake) -> None:
    lake.put(MINUTES, JANUARY)
    close_months(lake.layout, MINUTES)
    with pq.ParquetFile(lake.layout.month(MINUTES, JANUARY[0])) as file:
        groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert groups == [7 * 1440] * 4 + [3 * 1440]
    assert len(read_month(lake.layout.month(MINUTES, JANUARY[0]), lake_schema(MINUTES.market, MINUTES.data_type))) == 31


@given(bounds=st.tuples(st.integers(0, 60 * 24), st.integers(0, 60 * 24)), closed=st.sets(st.sampled_from([1, 2])))
def test_any_range_has_the_same_rows_from_months_as_from_days(
    tmp_path_factory: pytest.TempPathFactory, bounds: tuple[int, int], closed: set[int]
) -> None:
    lake = _lake_with(tmp_path_factory, closed)
    first, last = sorted(bounds)
    start, end = (_BEGIN + timedelta(hours=hours) for hours in (first, last))
    days = day_files_between(lake.layout, HOURS, start.date(), end.date())
    rows = read_days(days, lake_schema(HOURS.market, HOURS.data_type), start, end)
    assert rows["open_time"].to_pylist() == [_BEGIN + timedelta(hours=hours) for hours in range(first, last)]
    assert rows["open"].to_pylist() == [hours % 24 for hours in range(first, last)]


_BEGIN = datetime.combine(JANUARY[0], datetime.min.time())
_LAKES: dict[frozenset[int], SmallLake] = {}


def _lake_with(tmp_path_factory: pytest.TempPathFactory, closed: set[int]) -> SmallLake:
    """January and February, with these months closed and the own files of their days gone."""
    known = frozenset(closed)
    if known not in _LAKES:
        lake = _LAKES[known] = SmallLake(tmp_path_factory.mktemp("closed"))
        lake.put(HOURS, [*JANUARY, *FEBRUARY])
        for month in known:
            days = clock.days_of_month(date(2024, month, 1))
            held = [read_day_file(one) for one in day_files_between(lake.layout, HOURS, days[0], days[-1])]
            storage.put(lake.layout.month(HOURS, days[0]), encode_month(held, spec_of(HOURS)))
        remove_own_files(lake)
    return _LAKES[known]


@pytest.mark.parametrize("face", ["arrow", "relation"])
def test_client_reads_closed_months_and_single_days(lake: SmallLake, face: str) -> None:
    lake.put(HOURS, days_from("2024-03-01", 10))
    market = MarketData(lake.root)
    wanted = market.klines("BTCUSDT", "1h", "2024-01-05", "2024-03-05", market="spot")
    before, version = wanted.arrow(), wanted.version
    close_months(lake.layout, HOURS)
    for _ in range(2):
        result = market.klines("BTCUSDT", "1h", "2024-01-05", "2024-03-05", market="spot")
        rows = result.arrow() if face == "arrow" else result.relation().order("open_time").to_arrow_table()
        assert rows.num_rows == before.num_rows == 60 * 24
        assert rows["open"].to_pylist() == before["open"].to_pylist()
        assert result.version == version
        remove_own_files(lake)


QUERIES = (
    "SELECT count(*), min(open_time), max(open_time), sum(open) FROM binance_spot.klines",
    "SELECT count(*), sum(open) FROM binance_spot.klines WHERE symbol = 'BTCUSDT' AND open_time < '2024-02-10'",
    "SELECT open_time FROM binance_spot.klines WHERE symbol = 'BTCUSDT' ORDER BY open_time DESC LIMIT 5",
    "FROM binance_spot.candles('BTCUSDT', '1h', '2024-01-05 06:00', '2024-02-03 07:00') ORDER BY ALL",
    "SELECT count(*) FROM binance_spot.candles('BTCUSDT', '1h', '2024-02-20')",
    "SELECT count(*) FROM binance_spot.candles('ETHUSDT', '1h', '2024-01-01')",
    "SELECT count(*) FROM binance_spot.candles('NOSUCH', '1h', '2024-01-01')",
)


def answers(connection: duckdb.DuckDBPyConnection) -> list[list[tuple[object, ...]]]:
    return [connection.sql(query).fetchall() for query in QUERIES]


def catalog_of(lake: SmallLake) -> duckdb.DuckDBPyConnection:
    # Of one path, DuckDB opens one file a process, also where another has taken its place.
    opened = lake.root / f"{uuid4()}.duckdb"
    shutil.copyfile(publish_catalog(lake.layout), opened)
    return duckdb.connect(opened, read_only=True)


@pytest.mark.parametrize("folder", ["data", "Ma\u0308rkte 📈"])
def test_sql_answers_alike_before_and_after_a_month_is_closed(folder: str, lake: SmallLake) -> None:
    lake = filled(lake.root / folder)
    lake.put(series("ETHUSDT", "1h"), JANUARY[3:])
    lake.put(HOURS, days_from("2024-03-01", 5))
    with catalog_of(lake) as opened_before:
        before = answers(opened_before)
        close_months(lake.layout, HOURS)
        of_month, of_day = lake.layout.month(HOURS, JANUARY[0]), lake.layout.file(HOURS, JANUARY[4])
        shutil.copyfile(of_month, of_month.with_name("2024-01-old.parquet"))
        shutil.copyfile(of_month, of_day.with_name(of_month.name))
        assert answers(opened_before) == before  # reads the days, which are there still
        shutil.copyfile(of_day, of_month.with_name(of_day.name))
        with catalog_of(lake) as opened_after:
            assert answers(opened_after) == before
            retire_catalogs(lake.layout)
            remove_own_files(lake)
            assert answers(opened_after) == before
            with pytest.raises(duckdb.Error, match="open-the-catalog-again"):
                answers(opened_before)
    assert MarketData(lake.root).sql(QUERIES[0]).arrow().num_rows == 1


def test_sql_of_a_lake_whose_days_are_all_in_closed_months(lake: SmallLake) -> None:
    with catalog_of(lake) as connection:
        before = answers(connection)
    close_months(lake.layout, HOURS)
    remove_own_files(lake)
    lake.layout.folder(HOURS).rmdir()
    with catalog_of(lake) as connection:
        assert answers(connection) == before


def test_view_names_a_closed_month_that_was_removed(lake: SmallLake) -> None:
    close_months(lake.layout, HOURS)
    month = lake.layout.month(HOURS, JANUARY[0])
    with catalog_of(lake) as opened:
        month.unlink()
        with pytest.raises(duckdb.IOException, match=str(month)):
            opened.sql(QUERIES[0]).fetchall()
    with catalog_of(lake) as opened:  # its days are still there
        [(count, *_)] = opened.sql(QUERIES[0]).fetchall()
    assert count == (len(JANUARY) + len(FEBRUARY)) * 24


def test_open_catalog_finds_days_after_all_were_in_closed_months(lake: SmallLake) -> None:
    close_months(lake.layout, HOURS)
    remove_own_files(lake)
    with catalog_of(lake) as opened:
        [(before, *_)] = opened.sql(QUERIES[0]).fetchall()
        lake.put(HOURS, days_from("2024-03-01", 1))
        [(after, *_)] = opened.sql(QUERIES[0]).fetchall()
    assert (before, after) == (60 * 24, 61 * 24)


def test_catalog_is_published_again_for_a_closed_month_only(lake: SmallLake) -> None:
    first = storage.head(publish_catalog(lake.layout))
    close_months(lake.layout, HOURS)
    second = storage.head(publish_catalog(lake.layout))
    assert first != second
    retire_catalogs(lake.layout)
    remove_own_files(lake)
    assert storage.head(publish_catalog(lake.layout)) == second


def test_query_by_hand_reads_each_row_once(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    query = query_by_hand()
    lake.layout.root.joinpath("data").symlink_to(lake.layout.root)
    monkeypatch.chdir(lake.layout.root)
    lake.put(HOURS, days_from("2024-03-01", 5))
    for _ in range(2):
        found = duckdb.execute(f"SELECT count(DISTINCT open_time), count(*) FROM ({query})")
        assert found.fetchall() == [(65 * 24, 65 * 24)]
        close_months(lake.layout, HOURS)
