"""Memory that Arrow keeps for the next file. Imports nothing, because it counts only before Arrow is loaded."""

from __future__ import annotations

import os

PURGE_DELAY = "MIMALLOC_PURGE_DELAY"
"""Tells Arrow's allocator when to give back to the system what is freed: after how many ms, or -1 for never."""

KEEP_MEMORY = {
    PURGE_DELAY: "-1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}
"""Arrow's allocator and glibc's keep what is freed for the next file; getting it back takes a tenth of the time."""


def keep_memory() -> None:
    """Have Arrow keep what it frees, in this process and those that it starts; without effect once Arrow is loaded.

    For processes that bring data and end. One that lives long, such as a notebook's, should give back what it had.
    """
    os.environ.setdefault(PURGE_DELAY, KEEP_MEMORY[PURGE_DELAY])
