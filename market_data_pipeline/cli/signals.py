"""SIGTERM and Ctrl-C: the process ends within ten seconds, with the exit code that a shell gives a signal.

The waits that a signal ends do not belong here (``model/waits.py``).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from market_data_pipeline.model.waits import end_process

LAST_SECONDS = 8.0
"""Seconds for the process to end by itself and store its days."""

_NO_MORE = b"\0"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending_the_process() -> Iterator[None]:
    """Let a signal end everything that waits, and the process with exit code 128 + the signal's number.

    Dagster replaces the handlers of signals while it runs a job. So the signals are heard of through Python's wake-up
    pipe, too, by a thread of its own.
    """
    ignored = {number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN}
    heard = _Heard(ignored)
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    if signal.SIGINT in ignored:
        # As of a shell's background job. Dagster gives SIGTERM the handler of SIGINT, which must not be to ignore it.
        signal.signal(signal.SIGINT, _interrupt_unless_sigint)
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    threading.Thread(target=heard.listen, args=(receiver,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(sender, _NO_MORE)
        heard.all.wait(1)
        if heard.number is not None:
            end_now(128 + heard.number)


class _Heard:
    """The first signal that came."""

    def __init__(self, ignored: Collection[int]) -> None:
        self._listened = frozenset(_SIGNALS) - frozenset(ignored)
        self.number: int | None = None
        self.all = threading.Event()

    def listen(self, receiver: int) -> None:
        while numbers := os.read(receiver, 64):
            ends = [number for number in numbers if number in self._listened]
            if ends and self.number is None:
                self.number = ends[0]
                threading.Thread(target=self._insist, name="insist", daemon=True).start()
                end_process()
            if _NO_MORE[0] in numbers:
                self.all.set()

    def _insist(self) -> None:
        threading.Event().wait(LAST_SECONDS)
        end_now(128 + (self.number or 0))


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _interrupt_unless_sigint(number: int, _frame: FrameType | None) -> None:
    if number != signal.SIGINT:
        raise KeyboardInterrupt


def end_now(code: int) -> None:
    """End the process, whatever its threads are doing: what they have not stored by now is fetched again."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
