"""A process pool for work that is mostly Python, such as reading many small files. A process takes 0.5 s and 150 MB.

``concurrent.futures`` imports the main script again in each process, which restarts a user's script without a guard.
loky does not. Its processes end with this process even if it is killed, and ignore Ctrl-C. The functions to compute do
not belong here.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from market_data_pipeline.lake.arrow_memory import REUSE_MEMORY

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Processes:
    """Run several functions in parallel: one in this process, each of the others in a worker process.

    Args:
        number: Number of processes, this one included.
        ahead: Module that workers import at start.
        worth_bytes: Expected bytes from which workers start.
    """

    def __init__(self, number: int, *, ahead: str, worth_bytes: int) -> None:
        self._workers = number - 1
        self._ahead = ahead
        self._worth_bytes = worth_bytes
        self._expected = 0
        self._is_here = False
        self._idle = 0
        self._pool: Any = None
        self._changed = threading.Condition()

    def expect(self, size: int) -> None:
        """Announce work. Call this early, because workers take time to start.

        Args:
            size: Bytes to read. Workers start once their sum reaches ``worth_bytes``.
        """
        with self._changed:
            self._expected += size
            if self._expected < self._worth_bytes or not self._workers:
                return
            number, self._workers = self._workers, 0
        from loky import ProcessPoolExecutor

        theirs, self._ours = Pipe(duplex=False)
        pool = None
        try:
            prepare = (self._ahead, theirs)
            pool = self._pool = ProcessPoolExecutor(number, initializer=_prepare, initargs=prepare, env=REUSE_MEMORY)
            for _ in range(number):
                pool.submit(os.getpid).add_done_callback(self._welcome)
        except (OSError, NotImplementedError) as error:  # the system has no process or no semaphore left
            self._lose(pool, str(error))

    def compute(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function and return its value. Wait until this process or a worker is free.

        Args:
            function: A function of a module. It is pickled, and so are its arguments and its value.

        Raises:
            Exception: whatever the function raises.
        """
        with self._changed:
            # One call at a time in this process, because threads share the GIL.
            self._changed.wait_for(lambda: self._idle or not self._is_here)
            pool = self._pool if self._idle else None
            if pool is None:
                self._is_here = True
            else:
                self._idle -= 1
        try:
            if pool is None:
                return function(*args, **kwargs)
            result: _T = pool.submit(function, *args, **kwargs).result()
        except BrokenExecutor as error:
            if pool is None:
                raise
            self._lose(pool, str(error))
            return self.compute(function, *args, **kwargs)
        else:
            return result
        finally:
            with self._changed:
                if pool is None:
                    self._is_here = False
                elif pool is self._pool:
                    self._idle += 1
                self._changed.notify()

    def _welcome(self, ready: Future[int]) -> None:
        with self._changed:
            if self._pool is not None and not ready.cancelled() and ready.exception() is None:
                self._idle += 1
                self._changed.notify()

    def _lose(self, pool: object, why: str) -> None:
        """Continue in this process alone."""
        with self._changed:
            if pool is not self._pool:
                return
            logger.warning("A worker process ended or could not be started (%s). This process continues alone.", why)
        self.close()

    def close(self) -> None:
        """End the workers. They must be idle."""
        with self._changed:
            pool, self._pool, self._workers, self._idle = self._pool, None, 0, 0
            self._changed.notify_all()
        if pool is not None:
            pool.shutdown(kill_workers=True)
            self._ours.close()


def _prepare(ahead: str, parent: Connection) -> None:
    """Prepare a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run finishes the days in progress
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.modules["pandas"] = None  # type: ignore[assignment]  # Arrow would import it for a type check in 0.4 s
    import_module(ahead)


def _end_with(parent: Connection) -> None:
    with suppress(EOFError):
        parent.recv()  # nothing is ever sent
    os._exit(0)
