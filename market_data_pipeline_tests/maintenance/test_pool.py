"""Processes beside a run: what they compute is what would be computed here, and nothing of them stays behind."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from market_data_pipeline.maintenance.pool import Processes

MUCH, PROVING = 1 << 30, "market_data_pipeline.lake.checksums"


@pytest.fixture
def processes() -> Iterator[Processes]:
    found = Processes(2, ahead=PROVING, worth_bytes=MUCH)
    yield found
    found.close()


def elsewhere(processes: Processes, size: int = MUCH) -> int:
    """The pid of the other process, once it is there."""
    processes.expect(size)
    while (pid := processes.compute(os.getpid)) == os.getpid():
        pass
    return pid


def test_a_little_is_computed_here(processes: Processes) -> None:
    before = psutil.Process().children()
    processes.expect(1 << 20)
    assert processes.compute(os.getpid) == os.getpid()
    assert psutil.Process().children() == before


def test_caller_sets_the_size_worth_a_process_and_its_imports() -> None:
    before = psutil.Process().children()
    processes = Processes(2, ahead=PROVING, worth_bytes=1 << 10)
    try:
        processes.expect(1 << 9)
        assert psutil.Process().children() == before
        elsewhere(processes, 1 << 10)
        with ThreadPoolExecutor(8) as threads:
            imported = set(
                threads.map(lambda _: processes.compute(_has_imported, "pyarrow.parquet", "pandas"), range(99))
            )
    finally:
        processes.close()
    assert (True, False) in imported


def _has_imported(*names: str) -> tuple[bool, ...]:
    return tuple(sys.modules.get(name) is not None for name in names)


def test_one_process_computes_all_by_itself() -> None:
    before = psutil.Process().children()
    processes = Processes(1, ahead=PROVING, worth_bytes=0)
    processes.expect(MUCH)
    assert processes.compute(os.getpid) == os.getpid()
    assert psutil.Process().children() == before


def test_nothing_waits_for_a_process_that_starts(processes: Processes) -> None:
    processes.expect(MUCH)
    assert processes.compute(os.getpid) == os.getpid()


def test_much_is_computed_elsewhere_too(processes: Processes) -> None:
    pid = elsewhere(processes)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: processes.compute(math.factorial, n), range(50)))
        pids = set(threads.map(lambda _: processes.compute(os.getpid), range(200)))
    assert found == [math.factorial(n) for n in range(50)]
    assert pid in pids


def test_an_error_is_raised_as_if_it_were_ours(processes: Processes) -> None:
    elsewhere(processes)
    with pytest.raises(ValueError, match="negative"):
        processes.compute(math.factorial, -1)


class IncompleteReadError(Exception):
    def __init__(self, got: int, expected: int) -> None:
        super().__init__(f"{got} of {expected} bytes")


def _read() -> None:
    raise IncompleteReadError(3, 7)


def test_error_that_cannot_be_unpickled_is_raised_too(processes: Processes) -> None:
    elsewhere(processes)
    with pytest.raises(IncompleteReadError, match="3 of 7 bytes"):
        processes.compute(_read)


def test_a_process_that_is_killed_costs_nothing_but_time(processes: Processes) -> None:
    os.kill(elsewhere(processes), signal.SIGKILL)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda n: processes.compute(abs, -n), range(20))) == list(range(20))


def test_none_is_left_after_the_run(processes: Processes) -> None:
    pid = elsewhere(processes)
    processes.close()
    assert not psutil.pid_exists(pid)
    processes.expect(MUCH)
    assert processes.compute(os.getpid) == os.getpid()


OWNER = """
import os
from market_data_pipeline.maintenance.pool import Processes
processes = Processes(2, ahead="market_data_pipeline.lake.checksums", worth_bytes=1)
processes.expect(1 << 30)
while (pid := processes.compute(os.getpid)) == os.getpid():
    pass
print(pid, flush=True)
input()
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_process() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        helper = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
    helper.wait(timeout=120)
    assert not helper.is_running()


def said_by(script: str) -> list[str]:
    """What a new process prints, to which nobody has told anything of memory."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MIMALLOC")}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env
    ).stdout.split()


@pytest.mark.parametrize("name", ["market_data_pipeline.cli", "market_data_pipeline.definitions"])
def test_arrow_memory_setting_comes_before_arrow_is_loaded(name: str) -> None:
    """Every entry point that fetches data sets it."""
    script = (
        "import os, sys, importlib, market_data_pipeline.lake.arrow_memory as p\n"
        "keep = p.reuse_memory\n"
        "p.reuse_memory = lambda: (print('pyarrow' in sys.modules), keep())\n"
        f"importlib.import_module({name!r})\n"
        "print(os.environ['MIMALLOC_PURGE_DELAY'])\n"
    )
    assert said_by(script) == ["False", "-1"]


def test_a_client_leaves_arrow_as_it_is() -> None:
    script = "import os, market_data_pipeline as m; m.MarketData; print(os.environ.get('MIMALLOC_PURGE_DELAY'))"
    assert said_by(script) == ["None"]
