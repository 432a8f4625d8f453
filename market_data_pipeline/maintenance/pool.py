"""Worker processes for work that is mostly Python, such as reading many small files. A worker takes 0.5 s and 150 MB.

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
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from market_data_pipeline.lake.arrow_memory import REUSE_MEMORY

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


def compute_all(function: Callable[..., _T], calls: Iterable[Sequence[Any]], processes: int) -> Generator[_T]:
    """Yield the value of a function for each call, in order.

    If no worker can be started, or one ends, this process continues alone.

    Args:
        function: A function of a module. It is pickled, and so are its arguments and its values.
        calls: The arguments of each call.
        processes: Number of workers. With 1, this process computes all calls.

    Raises:
        Exception: Whatever the function raises.
    """
    left = deque(calls)
    if processes > 1:
        from loky import ProcessPoolExecutor

        theirs, ours = Pipe(duplex=False)
        pool = None
        try:
            pool = ProcessPoolExecutor(processes, initializer=_prepare, initargs=(theirs,), env=REUSE_MEMORY)
            for task in [pool.submit(function, *call) for call in left]:
                value: _T = task.result()
                left.popleft()
                yield value
        except (BrokenExecutor, OSError, NotImplementedError) as error:  # the last two: no process or semaphore is left
            logger.warning("A worker process ended or could not be started (%s). This process continues alone.", error)
        finally:
            if pool is not None:
                pool.shutdown(kill_workers=True)
            ours.close()
    yield from (function(*call) for call in left)


def end_with_parent(parent: Connection) -> None:
    """Let a worker ignore Ctrl-C, and end as soon as its parent does: once the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run finishes the days in progress
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _prepare(parent: Connection) -> None:
    end_with_parent(parent)
    sys.modules["pandas"] = None  # type: ignore[assignment]  # Arrow would import it for a type check in 0.4 s


def _end_with(parent: Connection) -> None:
    with suppress(EOFError):
        parent.recv()  # nothing is ever sent
    os._exit(0)
