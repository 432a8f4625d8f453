"""Locks and flushes on file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
import os
import stat
from pathlib import Path

import pytest
from filelock import Timeout

from market_data_pipeline.errors import SeriesBusyError, StorageError
from market_data_pipeline.lake import locks, storage
from market_data_pipeline_tests.support.world import World, klines

BTC = klines("BTCUSDT", "1h")


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=lambda number: errno.errorcode[number])
def no_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_reported", set())


@pytest.mark.usefixtures("no_flock")
def test_series_is_written_without_flock_and_warned_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for day in ("2026-03-01", "2026-03-02"):
            assert world.one(BTC, day).row.final
    assert [record.getMessage() for record in caplog.records if "has no locks" in record.getMessage()] == [
        record.getMessage() for record in caplog.records
    ]
    assert len(caplog.records) == 1
    assert not list(world.root.rglob("*.soft"))


@pytest.mark.usefixtures("no_flock")
def test_soft_lock_excludes_a_second_writer(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with locks.held(lock):
        with pytest.raises(Timeout), locks.held(lock):
            pass
        with pytest.raises(SeriesBusyError), storage.only_writer(lock, 0.1, "a"):
            pass
    with locks.held(lock):
        pass


def _hold_and_die(lock: Path) -> None:
    with locks.held(lock):
        os._exit(9)


@pytest.mark.usefixtures("no_flock")
def test_soft_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    killed = multiprocessing.get_context("fork").Process(target=_hold_and_die, args=(lock,))
    killed.start()
    killed.join()
    assert (tmp_path / "a.lock.soft").exists()
    with locks.held(lock, 10):
        pass


def _failing(monkeypatch: pytest.MonkeyPatch, number: int, *, folders: bool) -> None:
    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) is folders:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(locks, "_reported", set())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EPERM])
def test_folder_that_cannot_be_flushed_takes_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    _failing(monkeypatch, number, folders=True)
    storage.put(tmp_path / "a", b"rows")
    assert (tmp_path / "a").read_bytes() == b"rows"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_unflushable_file_is_written_and_warned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    _failing(monkeypatch, number, folders=False)
    for name in "ab":
        storage.put(tmp_path / name, b"rows")
        assert (tmp_path / name).read_bytes() == b"rows"
    [said] = caplog.records
    assert os.strerror(number) in said.getMessage()
    assert "verify --local" in said.getMessage()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EIO, "has a fault"),
        (errno.EROFS, "read-only file system"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOSPC, "The disk is full"),
    ],
)
@pytest.mark.parametrize("folders", [False, True])
def test_fault_of_the_disk_is_named_with_its_own_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, folders: bool
) -> None:
    _failing(monkeypatch, number, folders=folders)
    with pytest.raises(StorageError, match=words) as refused:
        storage.put(tmp_path / "a", b"rows")
    assert "Check who may write" not in str(refused.value)
