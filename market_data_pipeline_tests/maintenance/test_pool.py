"""Processes beside a run: what they compute is what would be computed here, and nothing of them stays behind."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys

import loky
import psutil
import pytest

from market_data_pipeline.maintenance.pool import compute_all

CALLS = [(n,) for n in range(50)]


def workers() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "resource_tracker" not in " ".join(one.cmdline())]


def test_one_process_computes_all_by_itself() -> None:
    before = workers()
    assert list(compute_all(os.getpid, [()] * 3, 1)) == [os.getpid()] * 3
    assert workers() == before


def test_workers_compute_the_same_and_in_order() -> None:
    assert list(compute_all(math.factorial, CALLS, 2)) == [math.factorial(n) for (n,) in CALLS]


def test_workers_compute_everything_and_end() -> None:
    before = workers()
    pids = set(compute_all(os.getpid, [()] * 20, 2))
    assert os.getpid() not in pids
    assert not any(map(psutil.pid_exists, pids))
    assert workers() == before


def test_no_worker_is_left_if_the_rest_is_not_wanted() -> None:
    before = workers()
    found = compute_all(os.getpid, [()] * 20, 2)
    pid = next(found)
    found.close()
    assert not psutil.pid_exists(pid)
    assert workers() == before


def test_a_worker_does_not_import_pandas() -> None:
    assert set(compute_all(_has_imported, [("pandas",)] * 4, 2)) == {False}


def _has_imported(name: str) -> bool:
    return sys.modules.get(name) is not None


def test_an_error_is_raised_as_if_it_were_ours() -> None:
    with pytest.raises(ValueError, match="negative"):
        list(compute_all(math.factorial, [(-1,)], 2))


class IncompleteReadError(Exception):
    def __init__(self, got: int, expected: int) -> None:
        super().__init__(f"{got} of {expected} bytes")


def _read() -> None:
    raise IncompleteReadError(3, 7)


def test_error_that_cannot_be_unpickled_is_raised_too() -> None:
    with pytest.raises(IncompleteReadError, match="3 of 7 bytes"):
        list(compute_all(_read, [()], 2))


def _die_unless(process: int, value: int) -> int:
    if value == 7 and os.getpid() != process:
        os.kill(os.getpid(), signal.SIGKILL)
    return -value


def test_this_process_continues_if_a_worker_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    calls = [(os.getpid(), n) for n in range(20)]
    assert list(compute_all(_die_unless, calls, 2)) == [-n for n in range(20)]
    assert "This process continues alone." in caplog.text


def test_this_process_computes_all_if_no_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("Resource temporarily unavailable")

    monkeypatch.setattr(loky, "ProcessPoolExecutor", fail)
    assert list(compute_all(abs, [(-n,) for n in range(5)], 2)) == list(range(5))


OWNER = """
import os
from market_data_pipeline.maintenance.pool import compute_all
found = compute_all(os.getpid, [()] * 9, 2)
print(next(found), flush=True)
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
