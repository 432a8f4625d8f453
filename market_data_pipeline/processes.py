"""Processes beside this one, for a run that has much to compute: they are handed values, and hand back values.

Threads share Python's lock and the memory of one process, whose pages the kernel hands out to one thread at a time.
Processes cost half a second to start, so a run begins by itself, and goes on with processes once it has seen that there
is much to do.

Python's own pools are no help here: they begin each process by importing the program's main script again, which in a
user's script without a guard starts everything anew. These processes import what they are asked to compute and nothing
else, end with this one even if it is killed, and leave Ctrl-C to it.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar, cast

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_Answer = tuple[Exception | None, Any]
"""What went wrong, or the value."""

_WORTH_BYTES = 24 << 20
"""Bytes that a run computes by itself first: a second's work, twice what the processes cost to start."""

_COMMAND = (sys.executable, "-c", "from market_data_pipeline.processes import serve; serve()")


class Processes:
    """Computes, in this process and others, as many things at a time as there are CPUs. Threads share one.

    Args:
        number: How many processes, this one counted; 0 takes one for each CPU that this process may use.
    """

    def __init__(self, number: int = 0) -> None:
        self._to_start = (number or _cpus()) - 1
        self._seen = 0
        self._here = 0
        self._idle: list[_Worker] = []
        self._all: list[_Worker] = []
        self._changed = threading.Condition()

    def compute(self, size: int, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The function's value; where there is much to do, one call at a time is computed here, others elsewhere.

        Args:
            size: Bytes that it has to read, which tell whether other processes are worth it.
            function: A function of a module; it, its arguments and its value are pickled.
            args: Its arguments.
            kwargs: Its arguments by name.

        Raises:
            Exception: whatever the function raises.
        """
        worker = self._place(size)
        try:
            if worker is None:
                return function(*args, **kwargs)
            try:
                error, value = worker.ask((function, args, kwargs))
            except (OSError, EOFError, pickle.UnpicklingError):
                logger.warning("A process that reads archives ended before it answered; the run goes on without it.")
                self._lose(worker)
                return self.compute(0, function, *args, **kwargs)
        finally:
            self._leave(worker)
        if error is not None:
            raise error
        result: _T = value
        return result

    def _place(self, size: int) -> _Worker | None:
        """A process with nothing to do, or None for this one; waits until there is either."""
        with self._changed:
            self._seen += size
            if self._to_start and self._seen >= _WORTH_BYTES:
                self._to_start -= 1
                try:
                    self._all.append(_Worker())
                    self._idle.append(self._all[-1])
                except OSError as error:
                    logger.warning("No process could be started (%s); the run goes on without.", error)
                    self._to_start = 0
            self._changed.wait_for(lambda: self._idle or not self._all or not self._here)
            if self._idle:
                return self._idle.pop()
            self._here += 1
            return None

    def _leave(self, worker: _Worker | None) -> None:
        with self._changed:
            if worker is None:
                self._here -= 1
            elif worker in self._all:
                self._idle.append(worker)
            self._changed.notify()

    def _lose(self, worker: _Worker) -> None:
        worker.end()
        with self._changed:
            self._all.remove(worker)
            self._changed.notify_all()

    def close(self) -> None:
        """End the other processes, which have nothing to do."""
        with self._changed:
            for worker in self._all:
                worker.end()
            self._all, self._idle, self._to_start = [], [], 0


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process that computes one thing at a time."""

    def __init__(self) -> None:
        folder = str(Path(__file__).resolve().parents[1])
        known = os.environ.get("PYTHONPATH")
        environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{known}" if known else folder}
        self._process = subprocess.Popen(  # noqa: S603 - this Python
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=1 << 16
        )
        self._questions = cast("IO[bytes]", self._process.stdin)
        self._answers = cast("IO[bytes]", self._process.stdout)

    def ask(self, what: object) -> _Answer:
        """Have it computed there."""
        pickle.dump(what, self._questions, protocol=5)
        self._questions.flush()
        answer: _Answer = pickle.load(self._answers)  # noqa: S301 - our own process wrote it
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """Answer what comes on standard input, until it is closed: by :class:`Processes`, or since that process ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run finishes the days that are in work
    answers = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)  # whatever is printed is no answer
    while True:
        try:
            function, args, kwargs = pickle.load(sys.stdin.buffer)  # noqa: S301 - the process that started us wrote it
        except EOFError:
            return
        try:
            answer: _Answer = (None, function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it is raised over there
            answer = (error, None)
        pickle.dump(answer, answers, protocol=5)
        answers.flush()
