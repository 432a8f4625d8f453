"""The bound on memory holds, and whoever is bigger than all of it works alone instead of never."""

from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.ingest.memory import MemoryBudget


@given(st.lists(st.integers(1, 150), min_size=1, max_size=10))
@settings(max_examples=50)
def test_reservations_never_exceed_memory_unless_one_is_alone(sizes: list[int]) -> None:
    budget, total = MemoryBudget(100), 100
    changed = threading.Condition()
    waiting, holding, leaving, gone = list(sizes), list[int](), list[int](), list[int]()

    def work(size: int) -> None:
        with budget.reservation() as memory:
            memory.take(size)
            with changed:
                waiting.remove(size)
                holding.append(size)
                changed.notify_all()
                changed.wait_for(lambda: size in leaving, 20)
                leaving.remove(size)
                holding.remove(size)
        with changed:
            gone.append(size)
            changed.notify_all()

    def all_in_that_fit() -> bool:
        return bool(holding) and not any(sum(holding) + size <= total for size in waiting)

    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    with changed:
        for _ in sizes:
            assert changed.wait_for(all_in_that_fit, 20), (holding, waiting)
            assert sum(holding) <= total or len(holding) == 1
            leaving.append(holding[0])
            changed.notify_all()
            assert changed.wait_for(lambda: len(gone) + len(holding) + len(waiting) == len(sizes) and not leaving, 20)
    for thread in threads:
        thread.join(120)


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
        assert done.wait(120)
        thread.join()
