"""How a thing is measured: its time, its CPU and its peak memory, with those of the processes that help it."""

from __future__ import annotations

import gc
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_LOOK_EVERY_SECONDS = 0.2


@dataclass(slots=True)
class Cost:
    """What something took.

    Attributes:
        seconds: Wall time.
        cpu_seconds: CPU of this process, all threads, and of the processes that it started and has ended meanwhile.
        peak_mb: The most memory that the process has had so far (resident, MB), and its helpers.
        helpers_mb: The sum of what each of its helpers has had at most: no less than they ever had at the same time.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mb: float = 0.0
    helpers_mb: float = 0.0

    def look_at_helpers(self) -> None:
        """Take in the memory of the processes that this one has started, while they live."""
        peaks = 0.0
        for helper in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, StopIteration):
                peaks += peak_memory_mb(helper)
        self.helpers_mb = max(self.helpers_mb, peaks)

    @contextmanager
    def watching_helpers(self) -> Iterator[None]:
        """Look at them again and again, where they are gone when the work is done."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_LOOK_EVERY_SECONDS):
                self.look_at_helpers()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure a block; the cost is complete when the block is left."""
    cost = Cost()
    gc.collect()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - wall
    cost.cpu_seconds = _cpu_seconds() - cpu
    cost.peak_mb = peak_memory_mb(psutil.Process()) + cost.helpers_mb


def _cpu_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def peak_memory_mb(process: psutil.Process) -> float:
    """Return the peak resident memory of a process in MB (10⁶ bytes), or today's if the peak is unknown."""
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        # ru_maxrss of a Linux process begins with what its parent had when it was started; VmHWM is its own.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    if process.pid == os.getpid():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    return float(process.memory_info().rss / 1e6)
