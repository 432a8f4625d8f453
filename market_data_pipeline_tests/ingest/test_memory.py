"""The bound on memory holds, and whoever is bigger than all of it works alone instead of never."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.ingest.memory import MemoryBudget


@given(st.lists(st.integers(1, 150), min_size=1, max_size=12))
def test_together_they_never_take_more_than_there_is_unless_one_is_alone(sizes: list[int]) -> None:
    budget, total = MemoryBudget(100), 100
    lock, taken, seen = threading.Lock(), list[int](), list[tuple[int, int]]()

    def work(size: int) -> None:
        with budget.reservation() as memory:
            memory.take(size)
            with lock:
                taken.append(size)
                seen.append((sum(taken), len(taken)))
            with lock:
                taken.remove(size)

    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(seen) == len(sizes)
    assert all(used <= total or number == 1 for used, number in seen)


def test_taking_less_than_before_changes_nothing() -> None:
    budget = MemoryBudget(100)
    with budget.reservation() as memory:
        memory.take(80)
        memory.take(60)
        done = threading.Event()

        def other() -> None:
            with budget.reservation() as second:
                second.take(40)
                done.set()

        thread = threading.Thread(target=other)
        thread.start()
        assert not done.wait(0.05)
        memory.give_back()
        assert done.wait(20)
        thread.join()
