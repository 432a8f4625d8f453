"""Interruptible waits. A wait of more than a minute logs its reason.

Every wait of the pipeline uses a :class:`Stop`: rate limits, locks, memory, retries. An interrupted run sets it, and so
does the CLI at SIGTERM or Ctrl-C. The order of shutdown does not belong here.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

SAY_AFTER_SECONDS = 60.0
"""A longer wait is logged."""

_SAY_AGAIN_SECONDS = 600.0
"""Each reason is logged at most once in this time, for all threads together."""


class StoppedError(KeyboardInterrupt):
    """The run was interrupted while this thread waited. Its work in progress is not stored."""


class Stop:
    """A switch that ends all its waits, including those that begin later."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._actions: list[Callable[[], None]] = []
        with _lock:
            _all.add(self)
            if _process_ends.is_set():
                self._event.set()

    @property
    def is_set(self) -> bool:
        """Return True if all waits must end."""
        return self._event.is_set()

    def set(self) -> None:
        """End all waits."""
        self._event.set()
        for action in list(self._actions):
            action()

    def on_set(self, action: Callable[[], None]) -> None:
        """Call ``action`` when this is set, from the thread that sets it."""
        self._actions.append(action)
        if self.is_set:
            action()

    def check(self) -> None:
        """Raise :class:`StoppedError` if this is set."""
        if self.is_set:
            raise StoppedError

    def sleep(self, seconds: float) -> None:
        """Sleep; raise :class:`StoppedError` as soon as this is set."""
        if self._event.wait(max(seconds, 0.0)):
            raise StoppedError

    @contextmanager
    def if_interrupted(self) -> Iterator[None]:
        """Set this if Ctrl-C or Dagster interrupts the block, so that its threads end, too."""
        try:
            yield
        except (Exception, GeneratorExit):
            raise
        except BaseException:
            self.set()
            raise


class Wait:
    """One wait. It begins with its construction.

    Args:
        stop: Ends the wait.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._began = time.monotonic()

    def sleep(self, seconds: float, reason: str, left: float = 0.0) -> None:
        """Sleep for a part of the wait.

        Args:
            seconds: Length of the part.
            reason: Reason of the wait, as a sentence.
            left: Known remaining seconds of the whole wait.
        """
        self.note(reason, left)
        self._stop.sleep(seconds)

    def note(self, reason: str, left: float = 0.0) -> None:
        """Log the reason if the whole wait lasts longer than a minute."""
        if time.monotonic() - self._began + left >= SAY_AFTER_SECONDS:
            _say(reason)


@contextmanager
def reporting(report: Callable[[str], object]) -> Iterator[None]:
    """Pass the reasons of long waits to ``report``, too, from every thread."""
    handler = _Reporter(report)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Reporter(logging.Handler):
    def __init__(self, report: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report(record.getMessage())


def end_process() -> None:
    """Set every :class:`Stop` of this process, and those that are made later."""
    with _lock:
        _process_ends.set()
        stops = list(_all)
    for stop in stops:
        stop.set()


def as_duration(seconds: float) -> str:
    """Format a duration for people.

    >>> as_duration(59), as_duration(170), as_duration(7300), as_duration(300_000)
    ('59 s', '3 min', '2 h', '3 days')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    for unit, size, until in (("min", 60, 100), ("h", 3600, 72)):
        if seconds < size * until:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


_all: weakref.WeakSet[Stop] = weakref.WeakSet()
_process_ends = threading.Event()
_said: dict[str, float] = {}
_lock = threading.RLock()


def _say(reason: str) -> None:
    # The same reason may come with other numbers.
    key = "".join(character for character in reason if not character.isdigit())
    now = time.monotonic()
    with _lock:
        if now - _said.get(key, -_SAY_AGAIN_SECONDS) < _SAY_AGAIN_SECONDS:
            return
        _said[key] = now
    logger.warning(reason)
