"""End a process whose query goes far beyond its limits. DuckDB's own limits belong to ``session.py``."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from market_data_pipeline.client.session import Limits

_LOOK_SECONDS = 0.05
_GRACE_SECONDS = 5.0
_MEMORY_TIMES = 2
"""How much memory the process may take, in limits: DuckDB's own, and as much for what it hands out."""


@contextmanager
def ended_beyond(limits: Limits, end: Callable[[str], None]) -> Iterator[None]:
    """Call ``end`` with the reason if DuckDB does not end a query that is far beyond its limits.

    DuckDB looks at its limits between two pieces of work, and one function of one row can be a piece of hours or GB.

    Args:
        limits: Limits of the query.
        end: Ends the process. It runs in a thread of its own.
    """
    at_rest, over = _memory_mb(), threading.Event()

    def watch() -> None:
        begun = time.monotonic()
        while not over.wait(_LOOK_SECONDS):
            taken, seconds = _memory_mb() - at_rest, time.monotonic() - begun
            if limits.seconds and seconds > limits.seconds + _GRACE_SECONDS:
                end(f"The query took longer than {limits.seconds:g} seconds (MARKET_DATA_SQL_SECONDS).")
            if taken > limits.memory_mb * _MEMORY_TIMES:
                end(f"The query needs more than {limits.memory_mb} MB of memory (MARKET_DATA_SQL_MEMORY_MB).")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _memory_mb() -> float:
    """Return the resident memory of this process; its peak if the system does not report the current size."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS
