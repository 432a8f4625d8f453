"""What several threads ask for one by one, computed together: a thread that computes takes along what waits.

Where little is asked for, each answer is computed at once; where more is asked for than can be computed meanwhile, more
of it is computed together, which takes less time for each.
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
class Together(Generic[_K, _A, _V]):
    """Answers to those who ask for one each.

    Attributes:
        one: The answer for one key and its argument.
        many: Answers for several at once, by key, each as soon as it is there; those left out are had from ``one``.
        computing: Its threads compute.
        most: How many may be computed together.
    """

    one: Callable[[_K, _A], _V]
    many: Callable[[Mapping[_K, _A]], Iterable[tuple[_K, _V]]]
    computing: Executor
    most: int
    _waiting: deque[tuple[_K, _A, Future[_V]]] = field(default_factory=deque)

    def ask(self, key: _K, argument: _A) -> _V:
        """The answer for one argument.

        Args:
            key: Nobody else asks for it meanwhile.
            argument: What is asked for.

        Raises:
            Exception: whatever computing it raised.
        """
        answer: Future[_V] = Future()
        self._waiting.append((key, argument, answer))
        # A call for each that waits, which takes one at least: none is left without.
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
        except BaseException as error:  # noqa: BLE001 - raised where it was asked for
            for _, answer in left.values():
                answer.set_exception(error)
            return
        for key, (argument, answer) in left.items():
            self._compute(key, argument, answer)

    def _compute(self, key: _K, argument: _A, answer: Future[_V]) -> None:
        try:
            answer.set_result(self.one(key, argument))
        except BaseException as error:  # noqa: BLE001 - raised where it was asked for
            answer.set_exception(error)
