"""Days are removed by processes that are killed in between: what is left is whole, and a second call continues."""

from __future__ import annotations

import signal
import subprocess

import pytest

from market_data_pipeline import MarketData
from market_data_pipeline.lake.day_records import rows_as_on_disk
from market_data_pipeline.lake.partitions import day_files, known_series
from market_data_pipeline.lake.removal import remove_days, remove_series_data
from market_data_pipeline.model.day import HELD
from market_data_pipeline_tests.support import removing_process
from market_data_pipeline_tests.support.processes import PYTHON
from market_data_pipeline_tests.support.world import World, days, klines

DAYS = klines("BTCUSDT", "1d")
STORED, GOING = days("2026-03-01", "2026-03-04"), days("2026-03-01", "2026-03-02")


def killed(world: World, step: int, *what: str) -> int:
    command = [PYTHON, removing_process.__file__, str(world.layout.root), str(step), *what]
    return subprocess.run(command, check=False, timeout=300).returncode


@pytest.mark.parametrize("step", [1, 2])
def test_a_killed_removal_of_days_leaves_whole_days(world: World, step: int) -> None:
    world.ingest(DAYS, STORED)
    assert killed(world, step, *map(str, GOING)) == -signal.SIGKILL
    left = STORED[step - 1 :]
    assert list(day_files(world.layout, DAYS)) == left
    table, _ = rows_as_on_disk(world.layout, DAYS)
    assert set(table["outcome"].to_pylist()) == {HELD}, "no day counts as lost"
    frame = MarketData(world.layout.root).klines("BTCUSDT", "1d", "2026-03-01", "2026-03-05", on_gap="ignore").df()
    assert len(frame) == len(left)
    remove_days(world.layout, DAYS, GOING)
    assert list(day_files(world.layout, DAYS)) == sorted(world.ledger(DAYS).rows) == STORED[2:]


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_killed_removal_of_a_series_is_continued(world: World, step: int) -> None:
    world.ingest(DAYS, STORED)
    assert killed(world, step, "all") == -signal.SIGKILL
    assert known_series(world.layout) == [DAYS], "it can still be named"
    remove_series_data(world.layout, DAYS)
    assert known_series(world.layout) == []
