"""Processes beside this one, for whoever has much to compute: they are handed values, and hand back values.

They are for what is mostly Python, such as reading many small files, which threads would take turns in. They cost half
a second to start and 150 MB each, so only who has much to do starts them, and begins without.

Python's own pools are no help here: they begin each process by importing the program's main script again, which in a
user's script without a guard starts everything anew. These processes import what they are asked to compute and nothing
else, end with this one even if it is killed, and leave Ctrl-C to it.
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
"""What went wrong, or the value."""

_COMMAND = (sys.executable, "-c", "from market_data_pipeline.maintenance.pool import serve; serve()")


class Processes:
    """Computes as many things at a time as there are CPUs: one here, each of the others in a process of its own.

    Args:
        number: How many processes, this one counted.
        ahead: Module that they import before they are asked for anything.
        worth_bytes: How much is read here alone.
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
        """Say as early as it is known that there will be something to compute, lest it wait for processes to start.

        Args:
            size: Bytes that will have to be read, which tell whether processes are worth it.
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
                logger.warning("No process could be started (%s); this one goes on alone.", error)
                self._to_start = 0

    def compute(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The function's value. Waits while as much is being computed as may be.

        Args:
            function: A function of a module; it, its arguments and its value are pickled.
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
                logger.warning(
                    "A process that computes beside this one ended before it answered; the work goes on without it."
                )
                self._lose(worker)
                return self.compute(function, *args, **kwargs)
        finally:
            self._leave(worker)
        if error is not None:
            raise error
        result: _T = value
        return result

    def _welcome(self, worker: _Worker) -> None:
        """Wait until a process is there."""
        try:
            worker.greet()
        except (OSError, EOFError, pickle.UnpicklingError):
            self._lose(worker)
        else:
            self._leave(worker)

    def _place(self) -> _Worker | None:
        """A process with nothing to do, or None for this one; waits until there is either."""
        with self._changed:
            # One at a time here: threads share Python's lock.
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
        """End the other processes, which have nothing to do."""
        with self._changed:
            ended, self._all, self._idle, self._to_start = self._all, [], [], 0
        for worker in ended:
            worker.end()


class _Worker:
    """A process that computes one thing at a time."""

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
        """Wait until it has imported what it needs."""
        try:
            pickle.load(self._answers)  # noqa: S301 - our own process wrote it
        finally:
            self._greeted.set()

    def ask(self, what: object) -> _Answer:
        """Have it computed there."""
        pickle.dump(what, self._questions, protocol=5)
        self._questions.flush()
        answer: _Answer = pickle.load(self._answers)  # noqa: S301 - our own process wrote it
        return answer

    def end(self) -> None:
        self._process.kill()
        self._greeted.wait()  # nobody may be reading what is closed
        self._process.communicate()


class _WithoutPandas(importlib.abc.MetaPathFinder):
    """Arrow imports pandas where it is installed, which takes 0.4 s, to tell whether an argument is of it."""

    @override
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def serve() -> None:
    """Answer what comes on standard input, until it is closed: by :class:`Processes`, or since that process ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run finishes the days that are in work
    answers = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)  # whatever is printed is no answer
    sys.meta_path.insert(0, _WithoutPandas())
    import_module(sys.argv[1])  # what it will be asked for
    _answer(answers, "ready")
    while True:
        try:
            function, args, kwargs = pickle.load(sys.stdin.buffer)  # noqa: S301 - the process that started us wrote it
        except EOFError:
            return
        try:
            answer: _Answer = (None, function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it is raised over there
            answer = (_sendable(error), None)
        _answer(answers, answer)


def _sendable(error: Exception) -> Exception:
    """The error, or what it says where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - ours
    except Exception:  # noqa: BLE001 - whatever its class does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _answer(answers: IO[bytes], what: object) -> None:
    pickle.dump(what, answers, protocol=5)
    answers.flush()
