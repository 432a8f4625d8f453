"""A process pool for work that is mostly Python, such as reading many small files. A process takes 0.5 s and 150 MB.

``concurrent.futures`` imports the main script again in each process, which restarts a user's script without a guard.
These processes import only the module they need, end with this process even if it is killed, and ignore Ctrl-C. The
functions to compute do not belong here.
"""

from __future__ import annotations

import importlib.abc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar, cast

from typing_extensions import override

from market_data_pipeline.lake.arrow_memory import REUSE_MEMORY

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_Answer = tuple[Exception | None, Any]
"""The exception, or the value."""

_COMMAND = (sys.executable, "-c", "from market_data_pipeline.maintenance.pool import serve; serve()")


class Processes:
    """Run several functions in parallel: one in this process, each of the others in a worker process.

    Args:
        number: Number of processes, this one included.
        ahead: Module that workers import at start.
        worth_bytes: Expected bytes from which workers start.
    """

    def __init__(
        self,
        number: int,
        *,
        ahead: str,
        worth_bytes: int,
    ) -> None:
        self._to_start = number - 1
        self._ahead = ahead
        self._worth_bytes = worth_bytes
        self._expected = 0
        self._here = 0
        self._all: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._changed = threading.Condition()

    def expect(self, size: int) -> None:
        """Announce work. Call this early, because workers take time to start.

        Args:
            size: Bytes to read. Workers start once their sum reaches ``worth_bytes``.
        """
        with self._changed:
            self._expected += size
            if self._expected < self._worth_bytes:
                return
            try:
                while self._to_start:
                    self._to_start -= 1
                    self._all.append(_Worker(self._ahead))
                    threading.Thread(target=self._welcome, args=(self._all[-1],), daemon=True).start()
            except OSError as error:
                logger.warning("No worker process could be started (%s). This process continues alone.", error)
                self._to_start = 0

    def compute(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function and return its value. Wait until this process or a worker is free.

        Args:
            function: A function of a module. It is pickled, and so are its arguments and its value.
            args: Its arguments.
            kwargs: Its arguments by name.

        Raises:
            Exception: whatever the function raises.
        """
        worker = self._place()
        try:
            if worker is None:
                return function(*args, **kwargs)
            try:
                error, value = worker.ask((function, args, kwargs))
            except (OSError, EOFError, pickle.UnpicklingError):
                logger.warning("A worker process ended before it answered. The work continues without it.")
                self._lose(worker)
                return self.compute(function, *args, **kwargs)
        finally:
            self._leave(worker)
        if error is not None:
            raise error
        result: _T = value
        return result

    def _welcome(self, worker: _Worker) -> None:
        """Wait until a worker is ready."""
        try:
            worker.greet()
        except (OSError, EOFError, pickle.UnpicklingError):
            self._lose(worker)
        else:
            self._leave(worker)

    def _place(self) -> _Worker | None:
        """Wait for a free worker and return it, or None for this process."""
        with self._changed:
            # One call at a time in this process, because threads share the GIL.
            self._changed.wait_for(lambda: self._idle or not self._here)
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
        with self._changed:
            if worker not in self._all:  # closed meanwhile
                return
            self._all.remove(worker)
            self._changed.notify_all()
        worker.end()

    def close(self) -> None:
        """End the workers. They must be idle."""
        with self._changed:
            ended, self._all, self._idle, self._to_start = self._all, [], [], 0
        for worker in ended:
            worker.end()


class _Worker:
    """A process that runs one function at a time."""

    def __init__(self, ahead: str) -> None:
        folder = str(Path(__file__).resolve().parents[2])
        known = os.environ.get("PYTHONPATH")
        path = {"PYTHONPATH": f"{folder}{os.pathsep}{known}" if known else folder}
        self._process = subprocess.Popen(  # noqa: S603 - this Python
            (*_COMMAND, ahead),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=REUSE_MEMORY | os.environ | path,
            bufsize=1 << 16,
        )
        self._questions = cast("IO[bytes]", self._process.stdin)
        self._answers = cast("IO[bytes]", self._process.stdout)
        self._greeted = threading.Event()

    def greet(self) -> None:
        """Wait until the worker has imported its module."""
        try:
            pickle.load(self._answers)  # noqa: S301 - our own process wrote it
        finally:
            self._greeted.set()

    def ask(self, what: object) -> _Answer:
        """Run a function in the worker and return the answer."""
        pickle.dump(what, self._questions, protocol=5)
        self._questions.flush()
        answer: _Answer = pickle.load(self._answers)  # noqa: S301 - our own process wrote it
        return answer

    def end(self) -> None:
        self._process.kill()
        self._greeted.wait()  # close the pipe only after its reader is done
        self._process.communicate()


class _WithoutPandas(importlib.abc.MetaPathFinder):
    """Hide pandas from Arrow, which otherwise imports it for a type check. That takes 0.4 s."""

    @override
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def serve() -> None:
    """Answer requests on standard input until it is closed by :class:`Processes` or by the end of that process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run finishes the days in progress
    answers = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)  # printed text must not mix with answers
    sys.meta_path.insert(0, _WithoutPandas())
    import_module(sys.argv[1])
    _answer(answers, "ready")
    while True:
        try:
            function, args, kwargs = pickle.load(sys.stdin.buffer)  # noqa: S301 - our parent wrote it
        except EOFError:
            return
        try:
            answer: _Answer = (None, function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the parent raises it
            answer = (_sendable(error), None)
        _answer(answers, answer)


def _sendable(error: Exception) -> Exception:
    """Return the error, or a RuntimeError with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - ours
    except Exception:  # noqa: BLE001 - whatever its class does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _answer(answers: IO[bytes], what: object) -> None:
    pickle.dump(what, answers, protocol=5)
    answers.flush()
