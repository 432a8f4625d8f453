"""Publishing: tables equal the lake at any moment, after every fault."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import ManifestFile
from pyiceberg.table import Table

from market_data_pipeline.errors import EnvironmentFaultError
from market_data_pipeline.iceberg import commits, publishing
from market_data_pipeline.iceberg.catalog import LOST_RACE, opened_catalog
from market_data_pipeline.iceberg.comparison import compare_tables, rows_that_differ
from market_data_pipeline.iceberg.data_files import PlacedFile, described
from market_data_pipeline.iceberg.stored_files import StoredFile, files_to_publish
from market_data_pipeline.iceberg.tables import TABLES, TableForm
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.closed_months import close_months, remove_closed_days
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import known_series
from market_data_pipeline.lake.removal import remove_series_data
from market_data_pipeline.model.day import FileStat
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline_tests.iceberg.conftest import BTC, ETH, JANUARY, Lakehouse
from market_data_pipeline_tests.support.small_lake import day_table, series
from market_data_pipeline_tests.support.world import days

FIRST, SECOND = JANUARY[:2]


def differences(house: Lakehouse) -> list[str]:
    keys = known_series(house.layout)
    return [one.reason for one in (*rows_that_differ(house.settings, keys), *compare_tables(house.settings, keys))]


def test_every_data_type_has_a_table_that_equals_the_lake(house: Lakehouse) -> None:
    for name in TABLES:
        interval = "12h" if name.data_type.has_interval else None
        house.put(SeriesKey("binance", name.market, name.data_type, "BTCUSD_PERP", interval), JANUARY[:2])
    report = house.publish()
    assert (report.changed, report.added, report.commits, report.troubles) == (
        len(TABLES),
        2 * len(TABLES),
        len(TABLES),
        {},
    )
    assert differences(house) == []
    with opened_catalog(house.settings) as catalog:
        named = {identifier for space in catalog.list_namespaces() for identifier in catalog.list_tables(space)}
        assert named == {name.identifier for name in TABLES}
        for name in TABLES:
            assert catalog.load_table(name.identifier).schema().fields == TableForm(name).schema.fields
    partitions = [field.name for field in house.table("klines").spec().fields]
    assert partitions == ["symbol", "interval", "open_time_month"]
    assert [field.name for field in house.table("agg_trades").spec().fields] == ["symbol", "transact_time_day"]


def test_a_closed_month_takes_the_place_of_its_days_at_once(house: Lakehouse) -> None:
    house.put(BTC, [*JANUARY, date(2024, 2, 1)])
    house.publish()
    before = house.table().current_snapshot()
    assert before is not None
    close_months(house.layout, BTC)
    report = house.publish()
    assert (report.added, report.removed, report.commits) == (1, 31, 1)
    assert remove_closed_days(house.layout, BTC, JANUARY) == 31
    assert house.rows(BTC).num_rows == house.rows(BTC, before.snapshot_id).num_rows == 32 * 24
    assert house.publish().commits == 0
    assert differences(house) == []


def test_data_files_are_links_and_not_copies(house: Lakehouse) -> None:
    house.put(BTC, [FIRST])
    house.publish()
    [linked] = house.data_files()
    assert linked.samefile(house.layout.file(BTC, FIRST))
    house.put(BTC, [FIRST], version=1)
    house.publish()
    assert len(house.data_files()) == 2, "the replaced version stays for its snapshot"


def test_files_are_copied_where_links_are_impossible(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, path: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    house.put(BTC, [FIRST])
    house.publish()
    house.publish()
    [copied] = house.data_files()
    assert not copied.samefile(house.layout.file(BTC, FIRST))
    assert differences(house) == []


def test_an_unchanged_lake_makes_no_snapshot_and_reads_nothing(
    house: Lakehouse, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.put(BTC, JANUARY[:3])
    house.put(ETH, JANUARY[:3])
    house.publish()
    looked = list[SeriesKey]()

    def look(layout: Layout, key: SeriesKey) -> Any:
        looked.append(key)
        return files_to_publish(layout, key)

    monkeypatch.setattr(publishing, "files_to_publish", look)
    assert house.publish().commits == 0
    assert looked == []
    house.put(ETH, JANUARY[3:4])
    assert house.publish().added == 1
    assert looked == [ETH]


def test_no_reader_sees_none_or_both_versions_of_a_day(house: Lakehouse) -> None:
    house.put(BTC, JANUARY[:3])
    house.publish()
    seen, stop = list[list[float]](), threading.Event()

    def read() -> None:
        while not stop.is_set():
            rows = house.rows(BTC)
            assert rows.num_rows == 72
            seen.append(house.versions(BTC, SECOND))

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(1, 9):
        house.put(BTC, [SECOND], version=version)
        house.publish()
    stop.set()
    reader.join()
    assert {len(one) for one in seen} == {1}
    assert house.versions(BTC, SECOND) == [8]


class Killed(BaseException):
    """The process ends here."""


def kill_at(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Kill a publish at its n-th step: a link, a metadata file written, or a commit in the catalog, before or after."""
    left = [steps]

    def step() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def around(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*given: object, **named: object) -> object:
            step()
            result = real(*given, **named)
            step()
            return result

        monkeypatch.setattr(owner, name, call)

    around(os, "link")
    around(storage, "put")
    around(SqlCatalog, "commit_table")
    yield "ready"


def test_a_publish_killed_at_any_step_leaves_old_or_new(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next publish completes it."""
    house.put(BTC, JANUARY[:2])
    house.publish()
    version = steps = 0
    killed = True
    while killed:
        version, steps = version + 1, steps + 1
        house.put(BTC, [FIRST], version=version)
        with monkeypatch.context() as patched:
            list(kill_at(steps, patched))
            try:
                house.publish()
                killed = False
            except Killed:
                assert house.rows(BTC).num_rows == 48
                assert house.versions(BTC, FIRST)[0] in (version - 1, version)
        house.publish()
        assert house.versions(BTC, FIRST) == [version]
    assert steps > 10
    assert differences(house) == []


def test_of_two_publishers_one_wins_and_the_other_retries(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    house.put(BTC, JANUARY[:2])
    house.publish()
    house.put(BTC, [FIRST], version=1)
    house.put(ETH, [FIRST])
    real, others = commits.commit, [ETH]

    def late(*given: object) -> Table:
        if others:
            house.publish(others.pop())
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(publishing, "commit", late)
    monkeypatch.setattr(publishing, "_PAUSE_SECONDS", 0)
    assert house.publish().commits == 1
    snapshots = house.table().metadata.snapshots
    assert len(snapshots) == 3
    assert (house.versions(BTC, FIRST), house.rows(ETH).num_rows) == ([1], 24)
    assert differences(house) == []


def test_a_publisher_that_never_wins_says_so(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*given: object) -> Table:
        raise LOST_RACE

    monkeypatch.setattr(publishing, "commit", lose)
    monkeypatch.setattr(publishing, "_PAUSE_SECONDS", 0)
    house.put(BTC, [FIRST])
    with pytest.raises(EnvironmentFaultError, match="Leave the publishing of a table to one schedule"):
        house.publish()


def test_files_without_numbers_are_read_by_name(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their columns are found by name, next to files whose columns are numbered."""
    monkeypatch.setattr(parquet, "numbered_writer", parquet._plain_writer)
    house.put(BTC, [FIRST])
    monkeypatch.undo()
    house.put(BTC, [SECOND])
    numbered = [pq.read_schema(house.layout.file(BTC, day)).field("open").metadata for day in (FIRST, SECOND)]
    assert numbered == [None, {b"PARQUET:field_id": b"4"}]
    house.publish()
    assert house.rows(BTC).num_rows == 48
    assert differences(house) == []


def test_a_removed_series_leaves_the_table(house: Lakehouse) -> None:
    house.put(BTC, JANUARY[:2])
    house.put(ETH, JANUARY[:2])
    house.publish()
    remove_series_data(house.layout, ETH)
    house.publish(BTC)
    assert house.rows(ETH).num_rows == 48, "only a publish of everything knows what is gone"
    assert house.publish().removed == 2
    assert (house.rows(ETH).num_rows, house.rows(BTC).num_rows) == (0, 48)


def test_a_removed_day_leaves_the_table(house: Lakehouse) -> None:
    house.put(BTC, JANUARY[:3])
    house.publish()
    house.layout.file(BTC, SECOND).unlink()
    assert house.publish().removed == 1
    assert house.rows(BTC).num_rows == 48


def test_a_damaged_file_is_left_out_and_its_old_version_stays(house: Lakehouse) -> None:
    house.put(BTC, JANUARY[:2])
    house.publish()
    storage.put(house.layout.file(BTC, FIRST), b"PAR1 this is no file")
    house.put(BTC, [SECOND], version=3)
    report = house.publish()
    assert list(report.troubles) == ["spot/klines/BTCUSDT/1h 2024-01-01"]
    assert (house.versions(BTC, FIRST), house.versions(BTC, SECOND)) == ([0], [3])


def test_rows_of_another_series_or_day_are_refused(house: Lakehouse) -> None:
    house.put(BTC, [FIRST])
    house.put_table(BTC, SECOND, day_table(ETH, SECOND))
    two_months = pa.concat_tables([day_table(BTC, day) for day in days("2024-01-31", "2024-02-01")])
    house.put_table(BTC, JANUARY[2], two_months)
    troubles = house.publish().troubles
    assert "it has rows of ETHUSDT 1h" in troubles["spot/klines/BTCUSDT/1h 2024-01-02"]
    assert "it has rows of more than 2024-01-03" in troubles["spot/klines/BTCUSDT/1h 2024-01-03"]
    assert house.rows(BTC).num_rows == 24


def test_a_day_replaced_while_it_is_published_is_taken(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    house.put(BTC, JANUARY[:2])
    real, replaced = os.link, [FIRST]

    def link(source: Path, path: Path) -> None:
        if replaced:
            house.put(BTC, [replaced.pop()], version=5)
        real(source, path)

    monkeypatch.setattr(os, "link", link)
    house.publish()
    assert (house.versions(BTC, FIRST), house.versions(BTC, SECOND)) == ([5], [0])


def test_a_moved_data_folder_is_published_anew(house: Lakehouse) -> None:
    house.put(BTC, JANUARY[:2])
    house.publish()
    moved = Lakehouse(house.root.rename(house.root.with_name("moved")))
    assert moved.publish().added == 2
    assert differences(moved) == []


def test_what_other_programs_wrote_is_replaced(house: Lakehouse) -> None:
    """Another program wrote the files of two series anew, into one manifest, and lost rows of one."""
    house.put(BTC, [FIRST])
    house.put(ETH, [FIRST])
    house.publish()
    table, form = house.table(), TableForm(TABLES[0])
    with table.transaction() as transaction, transaction.update_snapshot().overwrite() as overwrite:
        for task in table.scan().plan_files():
            overwrite.delete_data_file(task.file)
        for key, rows in ((BTC, 24), (ETH, 20)):
            path = house.layout.iceberg_table(*form.name.identifier) / f"data/compacted-{key.symbol}.parquet"
            pq.write_table(day_table(key, FIRST).slice(0, rows), path)
            stored = StoredFile(key, "2024-01-01", path, FileStat(0, 0), "")
            placed = PlacedFile(f"file://{path}", path.stat().st_size, pq.read_metadata(path))
            overwrite.append_data_file(described(form, stored, placed))
    assert (house.rows(BTC).num_rows, house.rows(ETH).num_rows) == (24, 20)
    assert [one.key for one in rows_that_differ(house.settings, [BTC, ETH])] == [ETH]
    assert house.publish(BTC).changed == 1
    assert house.rows(ETH).num_rows == 20, "its file shared the manifest"
    house.publish()
    assert differences(house) == []


def test_a_new_column_is_added_with_its_number(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    form = TableForm(TABLES[0])
    fields = form.schema.fields
    with monkeypatch.context() as older:
        older.setattr(TableForm, "schema", type(form.schema)(*fields[:-1], schema_id=0))
        house.put(BTC, [FIRST])
        house.publish()
        assert house.table().schema().fields == fields[:-1]
    house.put(BTC, [SECOND])
    house.publish()
    assert house.table().schema().fields == fields
    assert house.rows(BTC).num_rows == 48


def test_a_plan_reads_the_manifests_of_one_series_only(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [series(f"S{number}USDT", "1d") for number in range(6)]
    for key in keys:
        house.put(key, days("2023-12-01", "2024-02-29"))
    house.publish()
    read = list[str]()
    fetch = ManifestFile.fetch_manifest_entry

    def noted(self: ManifestFile, *given: Any, **named: Any) -> Any:
        read.append(self.manifest_path)
        return fetch(self, *given, **named)

    monkeypatch.setattr(ManifestFile, "fetch_manifest_entry", noted)
    condition = "symbol = 'S3USDT' and interval = '1d' and open_time = '2023-12-07T00:00:00'"
    assert len(list(house.table().scan(row_filter=condition).plan_files())) == 1
    assert len(read) == 1
    house.put(keys[0], days("2024-02-29", "2024-02-29"), version=1)
    read.clear()
    house.publish(keys[0])
    assert len(read) == 2, "of the changed series, both"


def test_an_empty_lake_has_no_tables(house: Lakehouse) -> None:
    report = house.publish()
    assert (report.series, report.commits) == (0, 0)
    assert not list(house.layout.iceberg.glob("binance_*"))


def test_data_type_names_are_those_of_the_views() -> None:
    assert {name.data_type for name in TABLES} == set(DataType)
