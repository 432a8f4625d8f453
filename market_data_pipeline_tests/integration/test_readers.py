"""Two processes read while others write: no error, no duplicate, no half day."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner

from market_data_pipeline.cli import main
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.sandbox import MissingChecksum, Sandbox
from market_data_pipeline_tests.support import reader_process
from market_data_pipeline_tests.support.full_size import sized
from market_data_pipeline_tests.support.processes import PYTHON, Desk
from market_data_pipeline_tests.support.world import days, klines

pytestmark = pytest.mark.slow

READERS = 2
UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT, ETHUSDT]
    klines: {intervals: [1m], from: 2024-01-01}
"""
BTC, ETH = (klines(symbol, "1m") for symbol in reader_process.SYMBOLS)
PROVISIONAL = days("2024-01-11", "2024-01-18")
ALL = days("2024-01-11", sized("2024-02-04", "2024-03-10"))


def test_readers_see_whole_days_while_days_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox() as sandbox, ExitStack() as stack:
        desk = Desk(tmp_path / "data", sandbox, UNIVERSE)
        for name, value in {**desk.environment, "DAGSTER_HOME": ""}.items():
            monkeypatch.setenv(name, value)
        fault = sandbox.faults.add(MissingChecksum(days=PROVISIONAL))
        bring("BTCUSDT", PROVISIONAL)
        assert final(desk) == dict.fromkeys(PROVISIONAL, False)
        sandbox.faults.remove(fault)

        readers = [stack.enter_context(start_reader(desk.root, "1m", desk.environment)) for _ in range(READERS)]
        for process in readers:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        bring("BTCUSDT", ALL)  # replaces what is provisional, and goes on
        bring("ETHUSDT", ALL)  # a series that the published catalog has never heard of
        seen = [end_reader(process) for process in readers]

    assert final(desk) == dict.fromkeys(ALL, True)
    assert desk.days_held([BTC, ETH]) == {BTC: set(ALL), ETH: set(ALL)}
    for of_one in seen:
        for way, counts in of_one.items():
            series = 1 if way in ("frame", "relation") else 3 if way == "catalog" else 2
            assert counts == sorted(counts), way
            assert counts[0] < counts[-1] == series * len(ALL), way
        assert len(of_one["frame"]) > 3  # it did read while days were written


def bring(symbol: str, wanted: list[date]) -> None:
    """Backfill in this process: the readers are other processes, and none more has to start."""
    command = ["backfill", "--symbol", symbol, "--from", str(wanted[0]), "--through", str(wanted[-1])]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output


def final(desk: Desk) -> dict[date, bool]:
    return {day: row.final for day, row in Ledger.read(desk.layout.ledger(BTC)).rows.items()}


def start_reader(root: Path, interval: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PYTHON, reader_process.__file__, str(root), interval],
        env=environment,
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end_reader(process: subprocess.Popen[str]) -> dict[str, list[int]]:
    """Let a reader end after the round that it is in; return how many days it has seen in each way, round by round."""
    said, complaint = process.communicate(timeout=900)
    assert process.returncode == 0, complaint
    found: dict[str, list[int]] = json.loads(said)
    return found
