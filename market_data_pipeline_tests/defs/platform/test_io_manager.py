"""Loading days of the lake by annotation, and writing what derived assets return."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.platform import tables
from market_data_pipeline.defs.platform.tables import as_arrow, load_files, split_by_day, store_days
from market_data_pipeline.errors import MarketDataError, NotStoredError
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.closed_months import close_months, closed_days, remove_closed_days
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.maintenance.scrub import verify_local
from market_data_pipeline.model.day import EMPTY, FAILED, NOT_LISTED, DayRecord
from market_data_pipeline.model.provenance import Source
from market_data_pipeline.model.schema import TRADE_PROFILE_SCHEMA, lake_schema
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline_tests.support.fakes import KLINES, PROFILE, TRADES, Project, day, hold, put

TYPES = [duckdb.DuckDBPyRelation, pa.Table, pd.DataFrame, pl.DataFrame, pl.LazyFrame, object]


def load(project: Project, key: SeriesKey, kind: Any, first: int, last: int | None = None) -> Any:
    with project.definitions.get_asset_value_loader(instance=project.instance) as loader:
        if last is None:
            return loader.load_asset_value(asset_key_of(key), python_type=kind, partition_key=str(day(first)))
        chosen = dg.PartitionKeyRange(str(day(first)), str(day(last)))
        return loader.load_asset_value(asset_key_of(key), python_type=kind, partition_key_range=chosen)


@pytest.mark.parametrize("kind", TYPES)
def test_range_loads_as_the_requested_type(project: Project, kind: Any) -> None:
    for number in (1, 2, 3, 4):
        hold(project.layout, KLINES, day(number))

    loaded = load(project, KLINES, kind, 2, 3)

    assert isinstance(loaded, duckdb.DuckDBPyRelation if kind is object else kind)
    frame = as_arrow(loaded)
    assert frame.column_names == lake_schema(KLINES.market, KLINES.data_type).names
    moments: list[Any] = frame["open_time"].to_pylist()
    assert [moment.date() for moment in moments] == [day(2)] * 24 + [day(3)] * 24
    assert frame["symbol"].to_pylist() == ["BTCUSDT"] * 48
    assert frame["open"].to_pylist() == [102.0 + n for n in range(24)] + [103.0 + n for n in range(24)]


@pytest.mark.parametrize("kind", TYPES)
def test_a_folder_that_reads_like_a_pattern_is_taken_at_its_word(tmp_path: Path, kind: Any) -> None:
    """Below ``a[b]``, a reader that takes paths for patterns looks into ``ab``."""
    project, other = Project(tmp_path / "a[b]"), Layout(tmp_path / "ab")
    hold(project.layout, KLINES, day(2))
    other.file(KLINES, day(2)).parent.mkdir(parents=True)
    parquet.write_table(other.file(KLINES, day(2)), lake_schema(KLINES.market, KLINES.data_type).empty_table())
    with project.instance:
        assert as_arrow(load(project, KLINES, kind, 2)).num_rows == 24


@pytest.mark.parametrize("kind", [pa.Table, pd.DataFrame, pl.DataFrame])
def test_days_whose_month_is_closed_meanwhile_load(
    project: Project, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """Their own files are listed, and removed before they are read."""
    for number in range(1, 32):
        hold(project.layout, KLINES, day(number))
    listed = tables.stored_files

    def list_then_remove(*args: Any) -> Any:
        held = listed(*args)
        close_months(project.layout, KLINES)
        due, _ = closed_days(project.layout, KLINES, datetime(2100, 1, 1, tzinfo=UTC))
        remove_closed_days(project.layout, KLINES, due)
        return held

    monkeypatch.setattr(tables, "stored_files", list_then_remove)
    assert as_arrow(load(project, KLINES, kind, 2, 3)).num_rows == 48
    assert not list(project.layout.folder(KLINES).glob("*.parquet"))


def test_one_day_loads(project: Project) -> None:
    hold(project.layout, KLINES, day(1))
    hold(project.layout, KLINES, day(2))
    assert load(project, KLINES, pa.Table, 2)["open"].to_pylist()[0] == 102.0


@pytest.mark.parametrize("kind", TYPES)
def test_days_without_data_are_empty_with_the_right_columns(project: Project, kind: Any) -> None:
    put(project.layout, KLINES, DayRecord(day=day(1), outcome=NOT_LISTED, final=True))
    put(project.layout, KLINES, DayRecord(day=day(2), outcome=EMPTY))

    frame = as_arrow(load(project, KLINES, kind, 1, 2))

    assert frame.num_rows == 0
    assert frame.column_names == lake_schema(KLINES.market, KLINES.data_type).names


def test_missing_days_are_named_with_the_reason(project: Project) -> None:
    hold(project.layout, KLINES, day(1))
    put(project.layout, KLINES, DayRecord(day=day(2), outcome=FAILED, failure="checksum", reason="It does not match."))

    with pytest.raises(
        NotStoredError, match=r"1h: days missing in the lake: 2024-01-02, 2024-01-03.*It does not match"
    ):
        load(project, KLINES, pa.Table, 1, 3)


def test_a_day_whose_file_was_found_damaged_is_not_loaded(project: Project) -> None:
    for number in (1, 2):
        hold(project.layout, KLINES, day(number))
    path = project.layout.file(KLINES, day(2))
    record, table = parquet.parse_whole(path, path.read_bytes())
    parquet.write_table(path, table.slice(1), record)
    verify_local(project.settings, [KLINES])

    with pytest.raises(NotStoredError, match=r"days missing in the lake: 2024-01-02\. .*does not match its footer"):
        load(project, KLINES, pa.Table, 1, 2)
    assert load(project, KLINES, pa.Table, 1).num_rows == 24


def test_stored_day_loads_without_a_ledger(project: Project) -> None:
    hold(project.layout, KLINES, day(1))
    project.layout.ledger(KLINES).unlink()
    assert load(project, KLINES, pa.Table, 1).num_rows == 24


def test_unsupported_type_is_refused_with_the_supported_ones(tmp_path: Path) -> None:
    with pytest.raises(MarketDataError, match=r"pathlib\.Path.*pyarrow\.Table"):
        load_files([], TRADE_PROFILE_SCHEMA, Path)


def profile_rows(days: Sequence[date]) -> pa.Table:
    numbers = {name: [1.0] * len(days) for name in TRADE_PROFILE_SCHEMA.names}
    return pa.table(
        {
            **numbers,
            "symbol": ["BTCUSDT"] * len(days),
            "day": list(days),
            "trades": [1] * len(days),
            "agg_trades": [1] * len(days),
        }
    ).cast(TRADE_PROFILE_SCHEMA)


@pytest.mark.parametrize(
    "convert", [pa.table, pa.Table.to_pandas, pl.from_arrow, lambda t: duckdb.connect().from_arrow(t)]
)
def test_an_output_becomes_one_file_a_day_whatever_its_type(project: Project, convert: Any) -> None:
    days = [day(1), day(2)]
    rows = profile_rows(days)
    parts = split_by_day(PROFILE, as_arrow(convert(rows)), TRADE_PROFILE_SCHEMA, days)
    assert {when: part and part.to_pylist() for when, part in parts.items()} == {
        when: rows.slice(number, 1).to_pylist() for number, when in enumerate(days)
    }


def test_outputs_of_other_days_are_refused() -> None:
    with pytest.raises(MarketDataError, match="rows of 2024-01-05"):
        split_by_day(PROFILE, profile_rows([day(5)]), TRADE_PROFILE_SCHEMA, [day(1)])


def test_outputs_with_other_columns_are_refused() -> None:
    with pytest.raises(MarketDataError, match=r"tradeProfile/BTCUSDT: .*columns"):
        split_by_day(PROFILE, profile_rows([day(1)]).drop_columns(["vwap"]), TRADE_PROFILE_SCHEMA, [day(1)])


def test_value_that_is_no_table_is_refused() -> None:
    with pytest.raises(MarketDataError, match=r"builtins\.str"):
        as_arrow("rows")


def test_derived_day_is_as_final_as_its_source_and_names_it(project: Project) -> None:
    final = hold(project.layout, TRADES, day(1))
    hold(project.layout, TRADES, day(2), final=False)
    put(project.layout, TRADES, DayRecord(day=day(3), outcome=NOT_LISTED, final=True))

    assert project.run(1, 3, PROFILE).success

    ledger = Ledger.read(project.layout.ledger(PROFILE))
    assert {when: (row.outcome, row.final) for when, row in ledger.rows.items()} == {
        day(1): ("held", True),
        day(2): ("held", False),
        day(3): ("not_listed", True),
    }
    record = parquet.read_provenance(project.layout.file(PROFILE, day(1)))
    assert [(part.source, part.url, part.sha256) for part in record.parts] == [
        (Source.DERIVED, TRADES.file(day(1)), final.content_sha256)
    ]
    assert ledger.rows[day(1)].bytes == project.layout.file(PROFILE, day(1)).stat().st_size
    [row] = load(project, PROFILE, pa.Table, 1).to_pylist()
    assert (row["volume"], row["agg_trades"], row["day"]) == (10.0, 10, day(1))


def test_a_derived_day_is_replaced_by_a_second_run(project: Project) -> None:
    store_days(project.layout, PROFILE, [day(1)], profile_rows([day(1)]), [TRADES], 1)
    hold(project.layout, TRADES, day(1))

    project.run(1, 1, PROFILE)

    assert load(project, PROFILE, pa.Table, 1)["volume"].to_pylist() == [10.0]
    assert Ledger.read(project.layout.ledger(PROFILE)).rows[day(1)].attempts == 2
