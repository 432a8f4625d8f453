"""Processes end with the one that started them, also if that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from market_data_pipeline.cli.signals import LAST_SECONDS
from market_data_pipeline.defs.platform.descendants import KILL_AFTER_SECONDS, STARTED_BY, end_with_this_process

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")

_SLEEP = "import sys, time; print('up', flush=True); time.sleep(600)"
_OBSTINATE = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {_SLEEP}"

_PARENT = """
import subprocess, sys
from market_data_pipeline.defs.platform.descendants import end_with_this_process

def start(*command):
    with_output = dict(stdout=subprocess.PIPE, text=True, start_new_session=True)
    process = subprocess.Popen([sys.executable, "-c", *command], **with_output)
    line = process.stdout.readline()
    return [process.pid, *map(int, line.split()[1:])]

stop = end_with_this_process(at_once="a-run")
pids = [pid for command in eval(sys.argv[1]) for pid in start(*command)]
print(*pids, flush=True)
for line in sys.stdin:
    stop()
    print("told", flush=True)
"""

_WITH_A_CHILD = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {_SLEEP!r}], stdout=subprocess.DEVNULL, start_new_session=True)
print("up", child.pid, flush=True)
time.sleep(600)
"""


@contextmanager
def parent(*commands: tuple[str, ...]) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Run a process that has started others; yield it and them."""
    command = [sys.executable, "-c", _PARENT, repr(commands)]
    started: list[psutil.Process] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            started = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
            yield process, started
        finally:
            process.kill()
            for one in started:
                with suppress(psutil.NoSuchProcess):
                    one.kill()


def are_gone(processes: list[psutil.Process]) -> bool:
    # Orphans are reaped by whoever adopts them, which in a container may be nobody.
    _, alive = psutil.wait_procs(processes, timeout=0.1)
    return all(one.status() == psutil.STATUS_ZOMBIE for one in alive)


def wait_until_gone(processes: list[psutil.Process]) -> None:
    while not are_gone(processes):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_and_their_children_end_with_a_process(number: signal.Signals) -> None:
    with parent((_WITH_A_CHILD,), (_SLEEP,)) as (process, started):
        assert len(started) == 3
        process.send_signal(number)
        wait_until_gone(started)


def test_descendants_end_when_a_process_ends_by_itself() -> None:
    with parent((_SLEEP,)) as (process, started):
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0
        wait_until_gone(started)


def test_named_processes_end_at_a_stop_others_with_the_parent() -> None:
    with parent((_SLEEP, "a-run"), (_SLEEP, "a-server")) as (process, (run, server)):
        assert process.stdin is not None
        process.stdin.write("stop\n")
        process.stdin.flush()
        wait_until_gone([run])
        assert not are_gone([server])
        process.kill()
        wait_until_gone([server])


@pytest.mark.slow
def test_process_that_ignores_sigterm_is_killed() -> None:
    with parent((_OBSTINATE,)) as (process, started):
        assert not are_gone(started)
        process.kill()
        wait_until_gone(started)
        assert are_gone(started)


def test_strangers_are_left_alone() -> None:
    """They may have been started by another process of the same kind."""
    environment: Mapping[str, str] = {**os.environ, STARTED_BY: "1-0123456789abcdef"}
    command = [sys.executable, "-c", _SLEEP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as stranger:
        with parent((_SLEEP,)) as (process, started):
            process.kill()
            wait_until_gone(started)
        assert stranger.poll() is None
        stranger.kill()


def test_all_is_over_within_ten_seconds() -> None:
    assert LAST_SECONDS < KILL_AFTER_SECONDS < 10


def test_without_proc_nothing_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("market_data_pipeline.defs.platform.descendants._PROCESSES", tmp_path)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a watcher was started"))
    end_with_this_process(at_once="a-run")()
    assert STARTED_BY not in os.environ
