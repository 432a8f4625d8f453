"""Months are closed by processes that are killed at each step, while others read: each day is there once."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import pytest

from market_data_pipeline import clock
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.day_records import corrected
from market_data_pipeline.lake.partitions import day_files
from market_data_pipeline.maintenance.compaction import compact
from market_data_pipeline.settings import load_settings
from market_data_pipeline.sql.publish import publish_catalog
from market_data_pipeline_tests.integration.test_readers import end_reader, start_reader
from market_data_pipeline_tests.support import compacting_process
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.processes import PYTHON, until
from market_data_pipeline_tests.support.small_lake import SmallLake, series

pytestmark = pytest.mark.slow

READERS = sized(1, 2)
BTC = series("BTCUSDT", "1h")
MONTHS = [clock.days_of_month(date(2024, month, 1)) for month in range(1, 7)]


def test_readers_see_each_day_once_during_killed_compactions(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path)
    settings = load_settings(dir=tmp_path)
    with ExitStack() as stack:
        lake.put(BTC, MONTHS[0])
        publish_catalog(lake.layout)
        readers = [stack.enter_context(start_reader(tmp_path, "1h", dict(os.environ))) for _ in range(READERS)]
        compacting = stack.enter_context(
            subprocess.Popen(
                [PYTHON, compacting_process.__file__, str(tmp_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        for process in readers:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for step, month in zip(compacting_process.STEPS, MONTHS, strict=True):
            lake.put(BTC, month)
            if compacting_process.STEPS[step][1] == "remove":
                grace_is_over(lake.layout.month(BTC, MONTHS[0][0]))
            assert ended(compacting, step) == -signal.SIGKILL, step
            report = compact(settings, [BTC])
            assert (report.troubles, report.removed) == ({}, 0)
        seen = [end_reader(process) for process in readers]

    days = [day for month in MONTHS for day in month]
    assert list(day_files(lake.layout, BTC)) == days
    assert days[0] not in storage.list_dates(lake.layout.folder(BTC))  # whose grace period was over
    assert not corrected(lake.layout, [BTC]).to_pylist()
    assert [path.name for path in tmp_path.rglob("*") if path.name.endswith(storage.TEMPORARY)] == []
    for of_one in seen:
        for way, counts in of_one.items():
            assert counts == sorted(counts), way
            assert counts[-1] == (2 if way == "catalog" else 1) * len(days), way
        assert len(of_one["frame"]) > 3  # it did read while months were closed


def ended(compacting: subprocess.Popen[str], step: str) -> int:
    """Compact until a step, and return the exit code."""
    assert compacting.stdin is not None
    assert compacting.stdout is not None
    compacting.stdin.write(f"{step}\n")
    compacting.stdin.flush()
    return int(compacting.stdout.readline())


def grace_is_over(month: Path) -> None:
    """Wait until the days of a month that was closed may be removed."""
    over = month.stat().st_mtime + compacting_process.GRACE.total_seconds()
    until(lambda: time.time() > over, "the end of the grace period", seconds=60)
