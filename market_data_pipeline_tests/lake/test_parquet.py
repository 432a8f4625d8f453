"""How files of the lake are read: which columns, in whose threads, and what is said of files that are not right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import parquet, storage

COUNTING = """
import os, sys
from pathlib import Path
from market_data_pipeline.lake import parquet
path = Path(sys.argv[1])
before = set(os.listdir("/proc/self/task"))
rows = parquet.read_table(path).num_rows, parquet.read_table(path, ["b"]).num_rows
rows += (parquet.read_encoded(parquet.encode_table(parquet.read_table(path))).num_rows,)
print(rows, len(set(os.listdir("/proc/self/task")) - before))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "2026-02-05.parquet"
    parquet.write_table(path, pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"], "c": [0.1, 0.2, 0.3]}))
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="a process's threads are counted in /proc")
def test_reading_leaves_no_thread_to_outlive_the_script(path: Path) -> None:
    """A script ended by SIGABRT after its right answers: a thread of Arrow's let go of a Python file too late."""
    done = subprocess.run([sys.executable, "-c", COUNTING, path], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "(3, 3, 3) 0"


def test_columns_come_in_the_requested_order(path: Path) -> None:
    assert parquet.read_table(path, ["c", "a"]).to_pydict() == {"c": [0.1, 0.2, 0.3], "a": [1, 2, 3]}
    assert parquet.read_table(path).column_names == ["a", "b", "c"]


def test_a_file_without_a_column_is_named(path: Path) -> None:
    with pytest.raises(DamagedFileError, match=r"2026-02-05\.parquet is damaged .*a column is missing.*nowhere"):
        parquet.read_table(path, ["a", "nowhere"])


def test_unopenable_file_is_distinct_from_a_damaged_one(path: Path) -> None:
    """The system's error is the cause of ours."""
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedFileError) as refused:
        parquet.read_table(path)
    assert isinstance(refused.value.__cause__, IsADirectoryError)


@pytest.mark.parametrize("content", [None, b"", b"no Parquet at all"])
def test_a_file_that_is_none_is_named(path: Path, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"2026-02-05\.parquet"):
        parquet.read_table(path)


def test_temporary_folder_is_below_the_root_and_removed(tmp_path: Path) -> None:
    with storage.temporary_folder(tmp_path) as folder:
        assert folder.is_dir()
        assert folder.is_relative_to(tmp_path / "tmp")
        with storage.temporary_folder(tmp_path) as other:
            assert other != folder
        assert folder.is_dir()
    assert not list((tmp_path / "tmp").iterdir())


def test_temporary_folder_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "tmp" / "1-dead"
    left.mkdir(parents=True)
    (left / "catalog.duckdb").touch()
    left.with_suffix(".lock").touch()
    with storage.temporary_folder(tmp_path) as folder:
        assert [path.name for path in (tmp_path / "tmp").iterdir() if path.is_dir()] == [folder.name]


def test_writer_removes_leftovers_of_a_killed_one(tmp_path: Path) -> None:
    left, of_another = tmp_path / ".1h.parquet.1-dead.tmp", tmp_path / ".1m.parquet.1-dead.tmp"
    left.touch()
    of_another.touch()
    with storage.only_writer(tmp_path / "1h.lock", 0, "1h"):
        assert not left.exists()
        assert of_another.exists()
