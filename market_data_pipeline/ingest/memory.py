"""Memory budget of all days in progress. Estimating the size of a day does not belong here (``from_archive.py``)."""

from __future__ import annotations

import threading
from typing import Self

from market_data_pipeline.model.waits import Stop, Wait

_LOOK_AGAIN_SECONDS = 1.0


class Reservation:
    """One worker's share of a :class:`MemoryBudget`. As a context manager, it returns its bytes at the end."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._taken = 0

    def take(self, size: int) -> None:
        """Wait until ``size`` bytes are free, and take them. Bytes taken before are part of ``size``."""
        if size > self._taken:
            self.give_back()
            self._budget._take(size)
            self._taken = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Return all bytes to the budget."""
        self._budget._take(-self._taken)
        self._taken = 0


class MemoryBudget:
    """Bytes that workers share. A day bigger than the whole budget runs alone.

    Args:
        total: Bytes.
    """

    def __init__(self, total: int, stop: Stop | None = None) -> None:
        self._total = total
        self._used = 0
        self._changed = threading.Condition()
        self._stop = stop or Stop()

    def reservation(self) -> Reservation:
        """Open a reservation."""
        return Reservation(self)

    def _take(self, size: int) -> None:
        with self._changed:
            wait = None
            while size > 0 and self._used > 0 and self._used + size > self._total:
                self._stop.check()
                wait = wait or Wait(self._stop)
                wait.note(
                    f"Waiting for {size >> 20} MB of memory: days in progress use {self._used >> 20} of "
                    f"{self._total >> 20} MB (MARKET_DATA_MEMORY_MB)."
                )
                self._changed.wait(_LOOK_AGAIN_SECONDS)
            self._used += size
            self._changed.notify_all()
