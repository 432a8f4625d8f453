"""The store in a bucket: versions of days, fencing, conditions, and errors in words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from market_data_pipeline.errors import MarketDataError, SeriesBusyError, StorageError, UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.day_records import is_as_on_disk
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, refresh_ledger
from market_data_pipeline.lake.partitions import day_files, day_files_between, known_series, read_record
from market_data_pipeline.lake.reader import read_days
from market_data_pipeline.lake.storage import objects
from market_data_pipeline.lake.storage.objects import Objects, objects_of
from market_data_pipeline.model.places import ObjectPath, place_of, register
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.settings import load_settings
from market_data_pipeline.stores.parquet import ParquetStore
from market_data_pipeline_tests.support import bucket as buckets
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from, series

BTC = series("BTCUSDT", "1d")
FIRST = date(2024, 1, 1)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with buckets.moto() as url:
        yield url


@pytest.fixture
def root(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    buckets.use(monkeypatch, server)
    root = place_of(f"s3://lake/{tmp_path.name}")
    register(root, tmp_path)
    assert isinstance(root, ObjectPath)
    return root


@pytest.fixture
def lake(root: ObjectPath) -> SmallLake:
    return SmallLake(root)


def other_machine(root: ObjectPath, tmp_path: Path) -> Objects:
    """The store as another machine has it: with a lock folder and lists of its own."""
    register(root, tmp_path / "other")
    return Objects(objects_of(root).bucket)


def names(root: ObjectPath, below: str = "lake") -> list[str]:
    folder = (root / below).name_in_bucket
    return [stored.name for page in objects_of(root).bucket.pages(folder) for stored in page]


def test_day_is_found_by_its_newest_version(lake: SmallLake, root: ObjectPath) -> None:
    with storage.only_writer(lake.layout.lock(BTC), 1, "BTC"):
        lake.put(BTC, days_from("2024-01-01", 3))
        before = day_files(lake.layout, BTC)
        lake.put(BTC, [FIRST], version=7)
        now = day_files(lake.layout, BTC)
    assert [len([name for name in names(root) if f"/{day}-" in name]) for day in now] == [2, 1, 1]
    assert before[FIRST].stat != now[FIRST].stat
    table = read_days(list(now.values()), lake_schema(BTC.market, BTC.data_type))
    assert table["volume"].to_pylist() == [7, 0, 0]
    assert is_as_on_disk(lake.layout, BTC)
    assert known_series(lake.layout) == [BTC]
    assert len({name.rpartition("/")[2] for name in names(root)}) == 4  # no name is used twice


def test_removed_day_does_not_show_its_older_version(lake: SmallLake, root: ObjectPath) -> None:
    with storage.only_writer(lake.layout.lock(BTC), 1, "BTC"):
        lake.put(BTC, [FIRST])
        lake.put(BTC, [FIRST], version=1)
    path = lake.layout.file(BTC, FIRST)
    storage.remove(path)
    assert names(root) == []
    assert storage.head(path) is None
    with pytest.raises(FileNotFoundError):
        storage.read(path)


def test_replaced_versions_go_after_a_while(lake: SmallLake, root: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    with storage.only_writer(lake.layout.lock(BTC), 1, "BTC"):
        lake.put(BTC, [FIRST])
        lake.put(BTC, [FIRST], version=1)
        storage.remove_leftovers(lake.layout.folder(BTC))
        assert len(names(root)) == 2
    monkeypatch.setattr(objects, "_GRACE_NS", -3_600_000_000_000)
    with storage.only_writer(lake.layout.lock(BTC), 1, "BTC"):
        storage.remove_leftovers(lake.layout.folder(BTC))
    [left] = names(root)
    assert objects_of(root).physical(lake.layout.file(BTC, FIRST)) == left


def test_reader_of_an_old_list_finds_a_replaced_day(lake: SmallLake, root: ObjectPath, tmp_path: Path) -> None:
    """The object that it listed is gone. It lists again and reads the new version."""
    lake.put(BTC, [FIRST])
    path = lake.layout.file(BTC, FIRST)
    reader = Objects(objects_of(root).bucket)
    assert reader.head(path) is not None
    old = names(root)
    lake.put(BTC, [FIRST], version=3)
    objects_of(root).bucket.delete(old)
    data, stat = reader.read(path)
    assert (data, stat) == storage.read(path)


def test_writer_that_wakes_up_late_replaces_nothing(lake: SmallLake, root: ObjectPath, tmp_path: Path) -> None:
    """Its token is older. It stores days that nobody else did, and its ledger is refused."""
    late, path = other_machine(root, tmp_path), lake.layout.file(BTC, FIRST)
    with late.only_writer(lake.layout.lock(BTC), 1, "BTC"):
        lake.put(BTC, [FIRST])
        ledger = Ledger.read(lake.layout.ledger(BTC))
        register(root, tmp_path / "ours")
        with storage.only_writer(lake.layout.lock(BTC), 1, "BTC"):
            lake.put(BTC, [FIRST], version=9)
            ours = storage.head(path)
        late.put(path, b"older bytes")
        other_day = lake.layout.file(BTC, FIRST + timedelta(days=1))
        late.put(other_day, storage.read(path)[0])
        with pytest.raises(SeriesBusyError, match="written by another process"):
            ledger.write(lake.layout.ledger(BTC))
    seen = Objects(objects_of(root).bucket)
    assert seen.head(path) == ours
    assert seen.head(other_day) is not None
    assert Ledger.read(lake.layout.ledger(BTC)).rows[FIRST].bytes == ours.bytes if ours else False


def test_lost_token_is_taken_from_the_names(lake: SmallLake, root: ObjectPath) -> None:
    for version in range(3):
        with storage.only_writer(lake.layout.lock(BTC), 1, "BTC"):
            lake.put(BTC, [FIRST], version=version)
    objects_of(root).bucket.delete([lake.layout.lock(BTC).name_in_bucket])  # type: ignore[attr-defined]
    with storage.only_writer(lake.layout.lock(BTC), 1, "BTC"):
        lake.put(BTC, [FIRST], version=8)
    [stored] = day_files_between(lake.layout, BTC, FIRST, FIRST)
    assert read_days([stored], lake_schema(BTC.market, BTC.data_type))["volume"].to_pylist() == [8]


def test_days_of_a_killed_run_are_found_without_ledger(lake: SmallLake) -> None:
    with storage.only_writer(lake.layout.lock(BTC), 1, "BTC"):
        for day in days_from("2024-01-01", 3):
            lake.write_file(BTC, day)
    with storage.only_writer(lake.layout.lock(BTC), 1, "BTC"):
        ledger = Ledger.read(lake.layout.ledger(BTC))
        assert len(refresh_ledger(ledger, lake.layout, BTC)) == 3
        ledger.write(lake.layout.ledger(BTC))
    [first, *_] = day_files(lake.layout, BTC).values()
    assert read_record(first).day == FIRST


def test_plain_files_are_replaced_and_listed(root: ObjectPath) -> None:
    folder = root / "quality" / "a"
    for name in ("x.json", "y.parquet"):
        storage.put(folder / name, b"1")
        storage.put(folder / name, b"22")
    assert storage.read(folder / "x.json")[0] == b"22"
    assert storage.read_range(folder / "x.json", 1, 5) == b"2"
    assert storage.open_file(folder / "x.json").read() == b"22"
    assert storage.list_names(folder) == ["x.json", "y.parquet"]
    assert list(storage.list_paths(root / "quality", "**/*.parquet")) == [folder / "y.parquet"]
    with pytest.raises(FileExistsError):
        storage.put(folder / "x.json", b"3", create=True)
    storage.set_aside(folder / "y.parquet", ".damaged")
    assert storage.list_names(folder) == ["x.json", "y.parquet.damaged"]
    storage.remove_folder(root / "quality")
    assert names(root, "quality") == []


def test_big_file_is_read_in_parts(root: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_WHOLE_BYTES", 64)
    path = Layout(root).file(BTC, FIRST)
    data = bytes(range(256)) * 4
    storage.put(path, data)
    with storage.open_file(path) as file:
        file.seek(-10, 2)
        assert file.read() == data[-10:]
        file.seek(100)
        assert file.read(50) == data[100:150]


def test_folders_are_listed_while_their_lists_are_forgotten(lake: SmallLake, root: ObjectPath) -> None:
    lake.put(BTC, [FIRST])
    store, folder = objects_of(root), lake.layout.folder(BTC)
    found = store.list_paths(root / "lake", "**/*.parquet")
    first = next(found)
    store._forget_lists([folder])
    assert [first, *found] == [lake.layout.file(BTC, FIRST)]


def test_rows_from_outside_are_refused(lake: SmallLake, root: ObjectPath) -> None:
    rows = day_table(BTC, FIRST)
    store = ParquetStore(str(root))
    with pytest.raises(UsageError, match=r"s3://lake/.* is a bucket, and rows from outside are stored"):
        store.save(BTC, rows)
    with pytest.raises(UsageError, match="is a bucket"):
        store.delete(BTC)


def test_missing_bucket_is_told(root: ObjectPath, tmp_path: Path) -> None:
    elsewhere = place_of("s3://nobody/lake")
    register(elsewhere, tmp_path)
    with pytest.raises(StorageError, match="The bucket nobody does not exist at http"):
        SmallLake(elsewhere).put(BTC, [FIRST])


def test_dir_needs_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MarketDataError, match="write s3://bucket/prefix"):
        load_settings(dir="s3://")
    assert str(load_settings(dir="s3://lake/a", local_dir="here").root) == "s3://lake/a"
    assert Layout(load_settings(dir="s3://lake/a", local_dir="here").root).local == Path("here").absolute()


def test_object_paths_are_no_files() -> None:
    path = place_of("s3://lake/a") / "b.parquet"
    assert str(path) == "s3://lake/a/b.parquet"
    assert str(path.relative_to(place_of("s3://lake"))) == "a/b.parquet"
    assert path.with_suffix(".lock").name == "b.lock"
    with pytest.raises(TypeError, match="is not on a disk"):
        open(path)  # noqa: PTH123, SIM115
    assert not hasattr(path, "exists")
