"""Batch the requests of several threads: a computing thread takes all waiting requests along.

Under low load, each request is computed at once. Under high load, batches grow and the time per request drops: a day of
1m klines takes 5.0 ms of processor time instead of 6.2. The computation itself does not belong here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_K = TypeVar("_K")
_A = TypeVar("_A")
_V = TypeVar("_V")


@dataclass
class Batcher(Generic[_K, _A, _V]):
    """Compute values for single requests, in batches.

    Attributes:
        one: Compute the value of one key and its argument.
        many: Compute several values at once and yield each with its key. Keys left out go to ``one``.
        computing: Executor of the computations.
        most: Maximum batch size.
    """

    one: Callable[[_K, _A], _V]
    many: Callable[[Mapping[_K, _A]], Iterable[tuple[_K, _V]]]
    computing: Executor
    most: int
    _waiting: deque[tuple[_K, _A, Future[_V]]] = field(default_factory=deque)

    def compute(self, key: _K, argument: _A) -> _V:
        """Return the computed value of one argument.

        Args:
            key: Key of the request, unique among the requests in progress.
            argument: Argument of the computation.

        Raises:
            Exception: The error of the computation.
        """
        answer: Future[_V] = Future()
        self._waiting.append((key, argument, answer))
        # One call per waiting request. Each takes at least one, so none is left over.
        self.computing.submit(self._compute_waiting)
        return answer.result()

    def _compute_waiting(self) -> None:
        taken: list[tuple[_K, _A, Future[_V]]] = []
        while self._waiting and len(taken) < self.most:
            try:
                taken.append(self._waiting.popleft())
            except IndexError:  # another thread took it
                break
        left = {key: (argument, answer) for key, argument, answer in taken}
        try:
            if len(taken) > 1:
                for key, value in self.many({key: argument for key, (argument, _) in left.items()}):
                    left.pop(key)[1].set_result(value)
                for key in list(left):
                    self.computing.submit(self._compute, key, *left[key])
                    del left[key]
        except BaseException as error:  # noqa: BLE001 - raised in the requesting thread
            for _, answer in left.values():
                answer.set_exception(error)
            return
        for key, (argument, answer) in left.items():
            self._compute(key, argument, answer)

    def _compute(self, key: _K, argument: _A, answer: Future[_V]) -> None:
        try:
            answer.set_result(self.one(key, argument))
        except BaseException as error:  # noqa: BLE001 - raised in the requesting thread
            answer.set_exception(error)
