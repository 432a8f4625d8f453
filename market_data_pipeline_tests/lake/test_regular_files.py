"""Named pipes, folders, sockets and devices where a file should be: no command waits for them, and none breaks."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from market_data_pipeline.errors import DamagedFileError, StorageError
from market_data_pipeline.lake import parquet, quarantine, regular_files, storage
from market_data_pipeline.lake.partitions import day_files, months_closed
from market_data_pipeline.maintenance.scrub import verify_local
from market_data_pipeline.model.outcomes import DayFailure
from market_data_pipeline_tests.support.shell import shell
from market_data_pipeline_tests.support.world import World, days, klines

BTC, DAY = klines("BTCUSDT", "1h"), date(2026, 2, 5)
WEEK = days("2026-02-03", "2026-02-07")
UNIVERSE = """
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {intervals: [1h], from: 2026-02-03}
"""


def a_socket(path: Path) -> None:
    # A socket's path may have some hundred letters only, and a test's folder has as many.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def a_link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_suffix(".pipe"))
    path.symlink_to(path.with_suffix(".pipe"))


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "socket": a_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to a pipe": a_link_to_a_pipe,
}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def in_place_of(path: Path, make: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)


@kinds
def test_only_regular_files_are_opened(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "2024-01-01.parquet"
    make(path)
    assert storage.head(path) is None
    assert storage.list_dates(tmp_path) == {}
    for read in (regular_files.read_regular, storage.read):
        with pytest.raises(OSError, match=r"not a regular file|No such device|[Dd]irectory"):
            read(path)
    for read_parquet in (parquet.read_table, parquet.read_provenance):
        with pytest.raises(DamagedFileError, match=r"not a regular file|No such device|[Dd]irectory"):
            read_parquet(path)


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"here")
    (tmp_path / "2024-01-01.parquet").symlink_to("file")
    assert regular_files.read_regular(tmp_path / "2024-01-01.parquet") == b"here"
    assert list(storage.list_dates(tmp_path)) == [date(2024, 1, 1)]


@kinds
def test_a_day_in_the_lake_is_fetched_again(world: World, make: Callable[[Path], object]) -> None:
    world.ingest(BTC, WEEK)
    path = world.layout.file(BTC, DAY)
    in_place_of(path, make)
    assert verify_local(world.settings, [BTC]).to_fetch == {BTC: [DAY]}
    results = world.ingest(BTC, WEEK)
    if path.is_dir() and not path.is_symlink():
        [failed] = [result for result in results if isinstance(result, DayFailure)]
        assert (failed.day, str(path) in failed.reason) == (DAY, True)
        shutil.rmtree(path)
        world.ingest(BTC, WEEK)
    assert path.is_file()
    assert verify_local(world.settings, [BTC]).all_well


@kinds
def test_a_closed_month_is_passed_over(world: World, make: Callable[[Path], object]) -> None:
    world.ingest(BTC, WEEK)
    in_place_of(world.layout.month(BTC, DAY), make)
    assert (list(day_files(world.layout, BTC)), months_closed(world.layout, BTC)) == (WEEK, [])
    assert verify_local(world.settings, [BTC]).all_well
    world.layout.file(BTC, DAY).unlink()
    assert all(result.row.is_stored_final for result in world.ingest(BTC, WEEK))


@kinds
def test_a_ledger_is_named(world: World, make: Callable[[Path], object]) -> None:
    world.ingest(BTC, WEEK)
    in_place_of(world.layout.ledger(BTC), make)
    with pytest.raises(StorageError, match="cannot be read"):
        world.ingest(BTC, WEEK)
    assert "cannot be read" in verify_local(world.settings, [BTC]).troubles[BTC]


@kinds
def test_quarantine_passes_it_over(world: World, make: Callable[[Path], object]) -> None:
    in_place_of(world.layout.quarantine(BTC) / "BTCUSDT-1h-2026-02-05.0123456789ab.zip", make)
    in_place_of(world.layout.quarantine(BTC) / "BTCUSDT-1h-2026-02-04.0123456789ab.json", make)
    (world.layout.quarantine(BTC) / "BTCUSDT-1h-2026-02-04.0123456789ab.zip").write_bytes(b"PK")
    [entry] = quarantine.entries(world.layout)
    assert entry.kind == quarantine.UNKNOWN
    assert all(result.row.is_stored_final for result in world.ingest(BTC, WEEK))


def test_commands_report_the_fault_and_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    market_data = shell(world, monkeypatch, UNIVERSE)
    world.ingest(BTC, WEEK)
    in_place_of(world.layout.file(BTC, DAY), os.mkfifo)
    for command in (["status"], ["coverage"], ["sql", "SELECT count(*) AS n FROM binance_spot.klines"]):
        assert market_data(*command).exit_code in (0, 1), command
    in_place_of(world.root / "universe.yaml", os.mkfifo)
    refused = market_data("sync")
    assert refused.exit_code == 2
    assert "universe.yaml cannot be read" in refused.stderr
    assert "not a regular file" in refused.stderr
