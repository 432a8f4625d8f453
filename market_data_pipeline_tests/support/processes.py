"""Real processes over a data folder of their own, with a sandbox for Binance: started, waited for, and always ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TypeVar

import psutil

from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox import Sandbox
from market_data_pipeline.settings import PREFIX

PYTHON = sys.executable
MARKET_DATA = str(Path(PYTHON).with_name("market-data"))
"""The command, as it was installed beside the interpreter."""

_OUTPUT = "output-"

_T = TypeVar("_T")


@dataclass
class Desk:
    """Somebody's data folder, with a universe, and settings in the environment of the processes that work there.

    Attributes:
        root: The data folder.
        sandbox: What stands in for Binance.
        universe: What ``universe.yaml`` says.
        settings: Further settings, by their names.
    """

    root: Path
    sandbox: Sandbox
    universe: str
    settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "universe.yaml").write_text(self.universe)
        self.layout = Layout(self.root)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process here, with nothing of the project's that the machine's user has set."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "DAGSTER_"))}
        own: dict[str, object] = {
            "DIR": self.root,
            "UNIVERSE": self.root / "universe.yaml",
            "BUDGET_DIR": self.root / "budget",
            "RETRY_BACKOFF_SECONDS": 0.01,
            **self.settings,
        }
        return {**inherited, **self.sandbox.settings_env(), **{f"{PREFIX}{name}": str(own[name]) for name in own}}

    @contextmanager
    def market_data(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """``market-data`` with arguments as a process of its own; it and all that it starts end with the block."""
        with running([MARKET_DATA, *command], self.environment, self.root) as process:
            yield process

    def run(self, *command: str) -> None:
        """Run ``market-data`` with arguments to its end, which must be a good one."""
        with self.market_data(*command) as process:
            assert process.wait(900) == 0

    def run_in(self, environment: Mapping[str, str], *command: str, code: int = 0) -> None:
        """Run ``market-data`` in another environment to its end, with an exit code."""
        with running([MARKET_DATA, *command], environment, self.root) as process:
            assert process.wait(280) == code

    def output(self) -> str:
        """What the processes here have said so far."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.root.glob(f"{_OUTPUT}*")))

    def days_held(self, keys: Iterable[SeriesKey]) -> dict[SeriesKey, set[date]]:
        """The days of series that have a file at this moment."""
        return {
            key: {date.fromisoformat(path.stem) for path in self.layout.folder(key).glob("????-??-??.parquet")}
            for key in keys
        }


def until(found: Callable[[], _T], what: str, seconds: float, pause: float = 0.1) -> _T:
    """Ask again and again until the answer is true, and return it.

    Args:
        found: What is asked.
        what: What is waited for, for the error.
        seconds: How long to wait at most.
        pause: Seconds between two questions.
    """
    end = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(pause)
    return answer


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own; neither it nor what it starts outlives the block. A failure shows its output.

    Args:
        command: What to start.
        environment: Its environment, whole.
        folder: Its working folder.
    """
    log = folder / f"{_OUTPUT}{time.monotonic_ns()}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    except BaseException:
        sys.stdout.write(f"--- {' '.join(command)} said:\n{log.read_text(errors='replace')[-20_000:]}\n")
        raise
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    # Dagster's run processes may leave the group, and are children still.
    family = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    _, alive = psutil.wait_procs(family, timeout=5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for one in alive:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
