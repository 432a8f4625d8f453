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

from market_data_pipeline.processes import Processes

MUCH = 1 << 30


@pytest.fixture
def processes() -> Iterator[Processes]:
    found = Processes(2)
    yield found
    found.close()


def elsewhere(processes: Processes) -> int:
    """The pid of the other process."""
    pid = processes.compute(MUCH, os.getpid)
    assert pid != os.getpid()
    return pid


def test_a_little_is_computed_here(processes: Processes) -> None:
    assert processes.compute(1 << 20, os.getpid) == os.getpid()


def test_one_process_computes_all_by_itself() -> None:
    assert {Processes(1).compute(MUCH, os.getpid) for _ in range(3)} == {os.getpid()}


def test_much_is_computed_elsewhere_too(processes: Processes) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: processes.compute(MUCH, math.factorial, n), range(50)))
        pids = set(threads.map(lambda _: processes.compute(0, os.getpid), range(200)))
    assert found == [math.factorial(n) for n in range(50)]
    assert elsewhere(processes) in pids


def test_an_error_is_raised_as_if_it_were_ours(processes: Processes) -> None:
    processes.compute(MUCH, math.factorial, 3)
    with ThreadPoolExecutor(2) as threads:
        for answer in [threads.submit(processes.compute, MUCH, math.factorial, -1) for _ in range(4)]:
            with pytest.raises(ValueError, match="negative"):
                answer.result()


def test_a_process_that_is_killed_costs_nothing_but_time(processes: Processes) -> None:
    os.kill(elsewhere(processes), signal.SIGKILL)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda n: processes.compute(MUCH, abs, -n), range(20))) == list(range(20))


def test_none_is_left_after_the_run(processes: Processes) -> None:
    pid = elsewhere(processes)
    processes.close()
    assert not psutil.pid_exists(pid)
    assert processes.compute(MUCH, os.getpid) == os.getpid()


OWNER = """
import os
from market_data_pipeline.processes import Processes
processes = Processes(2)
print(processes.compute(1 << 30, os.getpid), flush=True)
input()
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_process() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        helper = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
    helper.wait(timeout=30)
    assert not helper.is_running()
