"""How a thing is measured: in a fresh process, several times, with its time, its CPU and its peak memory."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from benchmarks.data import FRESH

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Cost:
    """What something took.

    Attributes:
        seconds: Wall time.
        cpu_seconds: CPU of this process, all threads.
        peak_mb: The most memory that the process has had so far (resident, MB).
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mb: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure a block; the cost is complete when the block is left."""
    cost = Cost()
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - wall
    cost.cpu_seconds = time.process_time() - cpu
    cost.peak_mb = peak_memory_mb()


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=FRESH) as pool:
        return pool.submit(function, *args, **kwargs).result()


def median(values: list[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def peak_memory_mb() -> float:
    """The most resident memory that this process has had, in MB (10⁶ bytes)."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss of a Linux process begins with what its parent had when it was started; VmHWM is its own.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
