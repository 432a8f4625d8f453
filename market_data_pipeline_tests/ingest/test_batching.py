"""Several threads ask for one thing each, and are answered in batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from market_data_pipeline.ingest.batching import Batcher

T = TypeVar("T")

WAIT_SECONDS = 60


class Squares:
    """Squares of numbers, of odd ones only one by one; what was computed together is noted."""

    def __init__(self) -> None:
        self.together: list[list[int]] = []
        self.alone: list[int] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def one(self, key: int, number: int) -> int:
        self.alone.append(key)
        self.begun.set()
        assert self.go_on.wait(WAIT_SECONDS)
        if number < 0:
            raise ValueError(f"{number} is negative")
        return number**2

    def many(self, numbers: Mapping[int, int]) -> Iterator[tuple[int, int]]:
        self.together.append(list(numbers))
        for key, number in numbers.items():
            if number == 13:
                raise RuntimeError("13 among them")
            if number % 2 == 0:
                yield key, number**2


class Announcing(ThreadPoolExecutor):
    """Threads that say when they were given something to do."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.submitted = threading.Semaphore(0)

    @override
    def submit(self, function: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        try:
            return super().submit(function, *args, **kwargs)
        finally:
            self.submitted.release()


def asked(numbers: Mapping[int, int], most: int) -> tuple[Squares, dict[int, Future[int]]]:
    """All numbers asked for while the first, which is asked for alone, is being computed."""
    squares, answers = Squares(), {}
    with Announcing(1) as computing, ThreadPoolExecutor(len(numbers)) as askers:
        batcher = Batcher(squares.one, squares.many, computing, most)
        waiting = iter(numbers.items())
        key, number = next(waiting)
        answers[key] = askers.submit(batcher.compute, key, number)
        assert squares.begun.wait(WAIT_SECONDS)
        for key, number in waiting:
            answers[key] = askers.submit(batcher.compute, key, number)
        for _ in numbers:
            assert computing.submitted.acquire(timeout=WAIT_SECONDS)
        squares.go_on.set()
    return squares, answers


def test_waiting_work_is_batched_and_refused_work_runs_alone() -> None:
    """Each item that the batch leaves out is computed by itself."""
    squares, answers = asked({1: 10, 2: 20, 3: 30, 4: 41, 5: 50, 6: 60}, most=4)
    assert {key: answer.result() for key, answer in answers.items()} == {
        1: 100,
        2: 400,
        3: 900,
        4: 1681,
        5: 2500,
        6: 3600,
    }
    assert [len(group) for group in squares.together] == [4]
    assert squares.alone[0] == 1
    assert 4 in squares.alone


def test_failed_item_raises_for_its_own_caller() -> None:
    _, answers = asked({1: 2, 2: -3, 3: 4}, most=8)
    with pytest.raises(ValueError, match="-3 is negative"):
        answers[2].result()
    assert (answers[1].result(), answers[3].result()) == (4, 16)


def test_no_one_waits_for_ever_where_computing_together_breaks() -> None:
    _, answers = asked({1: 2, 2: 4, 3: 13, 4: 6}, most=8)
    failed = {key for key, answer in answers.items() if answer.exception() is not None}
    assert 3 in failed
    assert 1 not in failed
    for key in {2, 4} - failed:
        assert answers[key].result() > 0


def test_no_caller_waits_forever_if_the_threads_end() -> None:
    squares, computing = Squares(), Announcing(1)
    batcher = Batcher(squares.one, squares.many, computing, 8)
    with ThreadPoolExecutor(3) as askers:
        answers = [askers.submit(batcher.compute, 0, 2)]
        assert squares.begun.wait(WAIT_SECONDS)
        answers += [askers.submit(batcher.compute, key, number) for key, number in ((1, 4), (2, 5))]
        for _ in range(3):
            assert computing.submitted.acquire(timeout=WAIT_SECONDS)
        computing.shutdown(wait=False)
        squares.go_on.set()
        assert answers[0].result(WAIT_SECONDS) == 4
        assert answers[1].result(WAIT_SECONDS) == 16
        with pytest.raises(RuntimeError, match="after shutdown"):
            answers[2].result(WAIT_SECONDS)


@given(st.lists(st.integers(-50, 50).filter(lambda n: n != 13), min_size=1, max_size=40), st.integers(1, 9))
def test_everyone_gets_an_answer_of_their_own(numbers: list[int], most: int) -> None:
    squares = Squares()
    squares.go_on.set()
    with ThreadPoolExecutor(2) as computing, ThreadPoolExecutor(8) as askers:
        batcher = Batcher(squares.one, squares.many, computing, most)
        answers = [askers.submit(batcher.compute, at, number) for at, number in enumerate(numbers)]
    for number, answer in zip(numbers, answers, strict=True):
        if number < 0 and number % 2:
            assert isinstance(answer.exception(), ValueError)
        elif answer.exception() is None:
            assert answer.result() == number**2
        else:
            assert number < 0
