"""The benchmarks: each runs on very little data, and its numbers are kept."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from rich.console import Console

from benchmarks.__main__ import BENCHMARKS, measure
from benchmarks.data import FULL, QUICK, Archives, Scale
from benchmarks.growth import growth_rows
from benchmarks.measure import measured
from benchmarks.processes import sharing_processes
from benchmarks.report import Baseline, Row, show
from benchmarks.tools import DAILY_TOOLS, Tool, beside

TINY = Scale(
    kline_days=3,
    trade_days=2,
    trades=2_000,
    symbols=2,
    query_days=2,
    months=1,
    lake_days=33,
    assets=4,
    universe=5,
    repetitions=1,
    judged=False,
    symbols_of_types=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where archives are made once for all of them, which share processes, too."""
    with sharing_processes():
        yield tmp_path_factory.mktemp("benchmarks")


@pytest.mark.slow
@pytest.mark.xdist_group("benchmarks")
@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_runs_with_its_baselines_and_stores_numbers(name: str, folder: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    rows = measure([name], TINY, folder, tmp_path / "results", Console(file=shown, width=200))

    [path] = (tmp_path / "results").iterdir()
    kept = json.loads(path.read_text())
    assert [row["name"] for row in kept["rows"]] == [row.name for row in rows] != []
    assert kept["scale"]["kline_days"] == 3
    assert kept["machine"]["cores"] >= 1
    for row in kept["rows"]:
        assert row["measured"] > 0
        assert row["name"] in shown.getvalue()
        for baseline in row["baselines"]:
            assert baseline["measured"] > 0
            assert baseline["what"] in shown.getvalue()


def test_a_target_is_reached_from_the_better_side() -> None:
    assert Row("a", "", "ms", [50, 60, 90], target=60).reached is True
    assert Row("a", "", "ms", [50, 61, 62], target=60).reached is False
    assert Row("a", "", "rows/s", [1.9e6, 2.1e6, 2.2e6], target=2e6, better="higher").reached is True
    assert Row("a", "", "rows/s", [1.9e6], target=2e6, better="higher").reached is False
    assert Row("a", "", "ms", [50]).reached is None


def test_growth_excludes_the_fixed_cost_of_a_backfill() -> None:
    """2 s to begin with, then 10 ms a day; of the second, 20 ms for each beyond the hundredth."""
    linear = growth_rows("growth-days", "days", "day", {10: [2.1], 100: [3.0], 400: [6.0]})
    worse = growth_rows("growth-days", "days", "day", {10: [2.1], 100: [3.0], 400: [9.0]})

    assert [round(row.measured) for row in linear] == [210, 30, 15, 10]
    assert [row.reached for row in linear] == [None, None, None, True]
    assert [round(row.measured) for row in worse] == [210, 30, 22, 20]
    assert worse[-1].reached is False
    assert len(growth_rows("growth-days", "days", "day", {1: [2.1], 4: [3.0]})) == 2


def test_an_advantage_above_one_is_ours() -> None:
    assert Row("a", "", "ms", [5]).advantage(Baseline("b", [10])) == 2
    assert Row("a", "", "rows/s", [5], better="higher").advantage(Baseline("b", [10])) == 0.5


def _installed(tools: Path, name: str, script: str) -> Tool:
    """A tool in an environment of its own, that of these tests."""
    tool = Tool(name, (f"{name}==1",), "Parquet", script)
    python = tools / name / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (tools / name / "installed").write_text(repr(tool.packages))
    return tool


def test_published_tool_is_compared_only_if_it_fetched_all_rows(tmp_path: Path) -> None:
    folder = tmp_path / "tools"
    archives = Archives(tmp_path, TINY, folder)
    tools = [
        _installed(folder, "whole", "import sys; print('Done', sys.argv[1:5]); print(2.0, 4320)"),
        _installed(folder, "short", "print(2.0, 1440)"),
        _installed(folder, "broken", "raise SystemExit('no such symbol')"),
        Tool("absent", ("absent==1",), "Parquet", "print(2.0, 4320)"),
    ]
    (folder / "absent").touch()  # no folder, so no environment can be made in it
    days = archives.kline_days

    baselines, remarks = beside(
        tools, archives, archives.kline_series, days, "http://127.0.0.1", tmp_path / "out", 4320
    )

    assert baselines == [Baseline("whole (Parquet)", [2160.0])]
    assert remarks[:2] == ["short: brought 1,440 of 4,320 rows", "broken: failed (no such symbol)"]
    assert remarks[2].startswith("absent: not installed (")
    shown = io.StringIO()
    row = Row("ingest", "", "rows/s", [4320.0], better="higher", baselines=baselines, remarks=remarks)
    show([row], TINY, Console(file=shown, width=200))
    assert "whole (Parquet): 2,160 rows/s (2×)" in shown.getvalue()
    assert "broken: failed (no such symbol)" in shown.getvalue()


def test_archives_of_another_scale_are_not_reused() -> None:
    assert len({scale.digest for scale in (FULL, QUICK, TINY, replace(TINY, trades=3_000))}) == 4
    assert replace(TINY).digest == TINY.digest


def test_published_tool_is_installed_only_on_request(tmp_path: Path) -> None:
    archives = Archives(tmp_path, TINY)
    assert beside(DAILY_TOOLS, archives, archives.kline_series, archives.kline_days, "", tmp_path, 1) == ([], [])
    assert list(tmp_path.iterdir()) == []


def test_peak_memory_counts_helper_processes() -> None:
    """Trades are read in processes of their own, which the memory of the one that asks them does not show."""
    hundred_mb = "import sys; taken = b'x' * 100_000_000; print('taken', flush=True); sys.stdin.read()"
    with measured() as alone:
        pass
    with measured() as together:
        helpers = [Popen([sys.executable, "-c", hundred_mb], stdin=PIPE, stdout=PIPE) for _ in range(2)]
        for helper in helpers:
            assert helper.stdout is not None
            helper.stdout.readline()
        together.look_at_helpers()
        for helper in helpers:
            helper.communicate()
    assert together.helpers_mb > 200
    assert together.peak_mb >= alone.peak_mb + 200
    assert together.cpu_seconds > alone.cpu_seconds
