"""Settings of Arrow's memory allocator. They take effect only before Arrow is loaded.

Do not import anything here that loads Arrow.
"""

from __future__ import annotations

import os

PURGE_DELAY = "MIMALLOC_PURGE_DELAY"
"""Delay in ms after which Arrow's allocator returns freed memory to the system; -1 means never."""

REUSE_MEMORY = {
    PURGE_DELAY: "-1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}
"""Arrow's and glibc's allocators reuse freed memory for the next file. This takes a tenth of the time."""


def reuse_memory() -> None:
    """Make Arrow reuse freed memory in this process and its children. No effect once Arrow is loaded.

    Use it in processes that ingest data and end. A long-lived process, such as a notebook, should return its memory.
    """
    os.environ.setdefault(PURGE_DELAY, REUSE_MEMORY[PURGE_DELAY])
