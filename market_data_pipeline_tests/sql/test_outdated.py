"""SQL that was made before months were closed: it answers in full, or it says that it is to be asked again."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.cli.sql import run_query
from market_data_pipeline.client.session import Views
from market_data_pipeline.defs.platform.tables import load_days
from market_data_pipeline.errors import MarketDataError, StorageError
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.closed_months import close_months
from market_data_pipeline.maintenance.compaction import compact
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.settings import load_settings
from market_data_pipeline.sql import errors, file_lists, views
from market_data_pipeline.sql.file_lists import marks_of, stored_series
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

HOURS = series("BTCUSDT", "1h")
COUNT = "SELECT count(*) AS n FROM binance_spot.klines"
MACRO = "SELECT count(*) AS n FROM binance_spot.candles('BTCUSDT', '1h', '2024-01-01')"
TWICE = "SELECT count(*) AS n FROM binance_spot.klines a JOIN binance_spot.klines b USING (symbol, open_time)"
ASK_AGAIN = "ask-again"


@pytest.fixture(scope="module")
def two_months(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two months of an hourly series that are over."""
    lake = SmallLake(tmp_path_factory.mktemp("months") / "data")
    lake.put(HOURS, days_from("2024-01-01", 60))
    return lake.root


@pytest.fixture
def lake(two_months: Path, tmp_path: Path) -> SmallLake:
    """A copy of the two months."""
    return SmallLake(shutil.copytree(two_months, tmp_path / "data"))


def close_and_remove(lake: SmallLake) -> None:
    """Close all months that may be, and remove their days, as two runs of ``compact`` with its grace between do."""
    for _ in range(2):
        compact(load_settings(dir=lake.root), [HOURS], grace=timedelta(0))
    assert not list(lake.layout.folder(HOURS).glob("*.parquet"))


@pytest.mark.parametrize("query", [COUNT, MACRO, TWICE])
def test_lazy_relation_is_stale_once_days_are_removed(lake: SmallLake, query: str) -> None:
    """Without a word it would find the rows of February only, or none."""
    market = MarketData(lake.root)
    run, not_run = market.sql(query).relation(), market.sql(query).relation()
    assert run.fetchall() == [(1440,)]
    close_and_remove(lake)
    for relation in (run, not_run):
        with pytest.raises(duckdb.IOException, match=ASK_AGAIN):
            relation.fetchall()
    assert market.sql(query).relation().fetchall() == [(1440,)]
    assert run.fetchall() == not_run.fetchall() == [(1440,)]  # the views are those of the lake again


def test_relation_over_files_is_stale_once_they_are_removed(lake: SmallLake) -> None:
    """DuckDB alone would name the file of a day that the lake still has."""
    publish_catalog(lake.layout)
    rows = MarketData(lake.root).klines("BTCUSDT", "1h", "2024-01-01", "2024-02-20")
    relation = rows.relation()
    assert len(relation.fetchall()) == 50 * 24
    close_months(lake.layout, HOURS)
    assert len(relation.fetchall()) == 50 * 24
    close_and_remove(lake)
    with pytest.raises(duckdb.IOException, match=ASK_AGAIN):
        relation.fetchall()
    assert len(rows.relation().fetchall()) == 50 * 24


def test_relation_over_files_is_stale_once_they_moved(lake: SmallLake) -> None:
    publish_catalog(lake.layout)
    rows = MarketData(lake.root).klines("BTCUSDT", "1h", "2024-01-01", "2024-02-20").relation()
    lake.root.rename(lake.root.with_name("moved"))
    with pytest.raises(duckdb.IOException, match=ASK_AGAIN):
        rows.fetchall()


def test_input_of_an_asset_is_stale_once_days_are_removed(lake: SmallLake) -> None:
    publish_catalog(lake.layout)
    relation = load_days(lake.layout, HOURS, days_from("2024-01-01", 31), duckdb.DuckDBPyRelation)
    assert relation.columns == lake_schema(HOURS.market, HOURS.data_type).names
    assert len(relation.fetchall()) == 31 * 24
    close_and_remove(lake)
    with pytest.raises(duckdb.IOException, match=ASK_AGAIN):
        relation.fetchall()
    relation = load_days(lake.layout, HOURS, days_from("2024-01-02", 3), duckdb.DuckDBPyRelation)
    assert len(relation.fetchall()) == 3 * 24


def test_relation_over_files_needs_no_mark(lake: SmallLake) -> None:
    """Nobody wrote one in a folder that only `ingest` has seen, or that is read-only."""
    rows = MarketData(lake.root).klines("BTCUSDT", "1h", "2024-01-01", "2024-01-03")
    assert len(rows.relation().fetchall()) == 48
    assert views.newest_mark(lake.layout, HOURS.market, HOURS.data_type) is None


def test_lazy_relation_goes_on_while_days_stay(lake: SmallLake) -> None:
    relation = MarketData(lake.root).sql(COUNT).relation()
    close_months(lake.layout, HOURS)
    publish_catalog(lake.layout)
    assert relation.fetchall() == [(1440,)]


def test_lazy_relation_sees_days_that_came_after_it(lake: SmallLake) -> None:
    relation = MarketData(lake.root).sql(COUNT).relation()
    lake.put(HOURS, [date(2024, 3, 1)])
    assert relation.fetchall() == [(1464,)]


def test_relation_run_in_another_thread_follows_the_same_rule(lake: SmallLake) -> None:
    relation = MarketData(lake.root).sql(COUNT).relation()
    close_and_remove(lake)
    with ThreadPoolExecutor(1) as thread, pytest.raises(duckdb.IOException, match=ASK_AGAIN):
        thread.submit(relation.fetchall).result()


@pytest.mark.parametrize("face", ["arrow", "df", "pl"])
def test_rows_that_we_take_are_queried_again_automatically(
    lake: SmallLake, monkeypatch: pytest.MonkeyPatch, face: str
) -> None:
    """The months are closed, and their days removed, between the look at the lake and the read."""
    result = MarketData(lake.root).sql(COUNT)
    meanwhile(lake, monkeypatch)
    assert [int(str(n)) for n in getattr(result, face)()["n"]] == [1440]


@pytest.mark.parametrize(("form", "printed"), [("csv", "n\n1440\n"), ("json", '[\n  {"n": 1440}\n]\n'), (None, "1440")])
def test_command_line_queries_again_automatically(
    lake: SmallLake,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: str | None,
    printed: str,
) -> None:
    meanwhile(lake, monkeypatch)
    run_query(load_settings(dir=lake.root), COUNT, form)
    assert printed in capsys.readouterr().out


def meanwhile(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have months closed and days removed as soon as the views are made, before they are read."""
    prepare = Views._prepare

    def overtaken(self: Views, session: duckdb.DuckDBPyConnection, query: str, *rest: Any) -> None:
        prepare(self, session, query, *rest)
        if list(lake.layout.folder(HOURS).glob("*.parquet")):
            close_and_remove(lake)

    monkeypatch.setattr(Views, "_prepare", overtaken)


def test_days_that_no_answer_needs_are_not_opened(lake: SmallLake) -> None:
    """Days of a month that was closed long ago may be there, half removed or damaged."""
    close_and_remove(lake)
    stray = lake.layout.file(HOURS, date(2024, 1, 1))
    stray.write_bytes(b"half of a file")
    for query in (COUNT, MACRO):
        relation = MarketData(lake.root).sql(query).relation()
        assert relation.fetchall() == [(1440,)]
        stray.unlink()
        assert relation.fetchall() == [(1440,)]
        stray.write_bytes(b"half of a file")


@pytest.mark.parametrize("own_files", [True, False], ids=["days", "months only"])
def test_reader_that_may_not_write_reads_without_marks(
    lake: SmallLake, monkeypatch: pytest.MonkeyPatch, own_files: bool
) -> None:
    if not own_files:
        close_and_remove(lake)
    for mark in lake.root.glob("lake/**/marks"):
        shutil.rmtree(mark)

    def refuse(*_: object) -> None:
        raise StorageError("The disk is read-only.")

    monkeypatch.setattr(parquet, "write_table", refuse)
    for query in (COUNT, MACRO):
        assert MarketData(lake.root).sql(query).arrow()["n"].to_pylist() == [1440]
    assert not list(lake.root.glob("lake/**/marks/*"))


def test_mark_that_came_too_late_is_not_relied_on(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Months are closed between the list of them and its mark, which ``compact`` would not know to remove."""
    write, listed = parquet.write_table, stored_series(lake.layout)

    def overtaken(path: Path, table: pa.Table, *rest: Any) -> Any:
        monkeypatch.setattr(parquet, "write_table", write)
        close_and_remove(lake)
        return write(path, table, *rest)

    monkeypatch.setattr(parquet, "write_table", overtaken)
    assert file_lists.marked_now(lake.layout) == (stored_series(lake.layout), True)
    assert stored_series(lake.layout) != listed
    assert MarketData(lake.root).sql(COUNT).arrow()["n"].to_pylist() == [1440]


def test_catalog_whose_marks_are_gone_is_published_again(lake: SmallLake) -> None:
    publish_catalog(lake.layout)
    for mark, _ in marks_of(stored_series(lake.layout)):
        mark.unlink()
    with duckdb.connect(publish_catalog(lake.layout), read_only=True) as opened:
        assert opened.execute(COUNT).fetchall() == [(1440,)]


def test_leftovers_of_killed_mark_writers_are_removed(lake: SmallLake) -> None:
    publish_catalog(lake.layout)
    (mark, _), *_ = marks_of(stored_series(lake.layout))
    old, new = mark.with_name(".old.parquet.1-aa.tmp"), mark.with_name(".new.parquet.1-aa.tmp")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    lake.put(series("ETHUSDT", "1h"), days_from("2024-01-01", 1))
    publish_catalog(lake.layout)
    assert (old.exists(), new.exists()) == (False, True)


def test_error_of_an_outdated_query_explains_the_remedy(lake: SmallLake) -> None:
    error = duckdb.IOException(f'No files found that match the pattern "{marks_of(stored_series(lake.layout))[0][0]}"')
    assert type(errors.lake_error(error, lake.layout)) is MarketDataError
    assert "Run it again" in str(errors.lake_error(error, lake.layout))
