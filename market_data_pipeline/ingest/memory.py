"""A bound on what days that are being worked on take in memory together, however many and however big they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from market_data_pipeline.model.waits import Stop, Wait

_LOOK_AGAIN_SECONDS = 1.0


class Reservation:
    """What one worker has taken from a :class:`MemoryBudget`."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._taken = 0

    def take(self, size: int) -> None:
        """Wait until ``size`` bytes are free, and take them; what was taken before is part of them."""
        if size > self._taken:
            self.give_back()
            self._budget._take(size)  # the two are one thing
            self._taken = size

    def give_back(self) -> None:
        """Free what was taken."""
        self._budget._take(-self._taken)
        self._taken = 0


class MemoryBudget:
    """Bytes that workers share. One that is bigger than the whole budget works alone.

    Args:
        total: Bytes.
        stop: What ends its waits.
    """

    def __init__(self, total: int, stop: Stop | None = None) -> None:
        self._total = total
        self._used = 0
        self._changed = threading.Condition()
        self._stop = stop or Stop()

    @contextmanager
    def reservation(self) -> Iterator[Reservation]:
        """A reservation that is given back at the end."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            reservation.give_back()

    def _take(self, size: int) -> None:
        with self._changed:
            wait = None
            while size > 0 and self._used > 0 and self._used + size > self._total:
                self._stop.check()
                wait = wait or Wait(self._stop)
                wait.note(
                    f"Waiting for memory: {size >> 20} MB are wanted, and days in work take {self._used >> 20} of "
                    f"{self._total >> 20} MB (MARKET_DATA_MEMORY_MB)."
                )
                self._changed.wait(_LOOK_AGAIN_SECONDS)
            self._used += size
            self._changed.notify_all()
