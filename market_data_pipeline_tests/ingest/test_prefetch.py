"""Series are brought ahead of the one that is asked for, and each is given out whole and in order."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import date

import pytest

from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.ingest.prefetch import Prefetcher
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline_tests.support.world import days, klines

A, B, C, D = (klines(symbol, "1h") for symbol in ("AUSDT", "BUSDT", "CUSDT", "DUSDT"))
WANTED = [(key, days("2026-03-01", "2026-03-03")) for key in (A, B, C, D)]
SOON = 20.0


class Bringing:
    """Brings days at once, counting how often each series was begun; some wait or fail."""

    def __init__(self) -> None:
        self.begun: Counter[SeriesKey] = Counter()
        self.waits: dict[SeriesKey, threading.Event] = {}
        self.started: dict[SeriesKey, threading.Event] = {key: threading.Event() for key, _ in WANTED}
        self.failing: set[SeriesKey] = set()
        self.closed: set[SeriesKey] = set()

    def __call__(self, key: SeriesKey, some: Sequence[date]) -> Generator[tuple[SeriesKey, date]]:
        self.begun[key] += 1
        self.started[key].set()
        try:
            for day in some:
                yield key, day
                if key in self.waits:
                    assert self.waits[key].wait(SOON)
                if key in self.failing:
                    raise MarketDataError(f"{key} is busy")
        finally:
            self.closed.add(key)


@contextmanager
def ahead(bringing: Bringing, side_by_side: int = 2) -> Iterator[Prefetcher[tuple[SeriesKey, date]]]:
    found = Prefetcher(bringing, WANTED, side_by_side)
    try:
        yield found
    finally:
        found.close()


def test_each_series_is_fetched_once_and_returned_in_order() -> None:
    bringing = Bringing()
    with ahead(bringing) as series:
        for key, some in WANTED:
            assert list(series.days(key, some)) == [(key, day) for day in some]
    assert bringing.begun == Counter([A, B, C, D])


def test_the_next_is_begun_before_the_first_is_done() -> None:
    bringing = Bringing()
    bringing.waits[A] = bringing.started[B]
    with ahead(bringing) as series:
        assert len(list(series.days(A, WANTED[0][1]))) == 3


def test_results_come_before_the_series_is_done() -> None:
    bringing = Bringing()
    bringing.waits[A] = threading.Event()
    with ahead(bringing) as series:
        results = series.days(A, WANTED[0][1])
        assert next(results) == (A, date(2026, 3, 1))
        bringing.waits[A].set()
        assert len(list(results)) == 2


def test_no_more_fetches_start_than_are_needed_soon() -> None:
    bringing = Bringing()
    with ahead(bringing, side_by_side=1) as series:
        for key in (A, B):
            assert bringing.started[key].wait(SOON)
        list(series.days(A, WANTED[0][1]))
        assert D not in bringing.begun


def test_error_comes_after_the_results_and_with_its_own_series() -> None:
    bringing = Bringing()
    bringing.failing = {B}
    with ahead(bringing) as series:
        assert len(list(series.days(A, WANTED[0][1]))) == 3
        results = series.days(B, WANTED[1][1])
        assert next(results) == (B, date(2026, 3, 1))
        with pytest.raises(MarketDataError, match="BUSDT/1h is busy"):
            next(results)
        assert len(list(series.days(C, WANTED[2][1]))) == 3


def test_unexpected_days_or_series_are_still_fetched() -> None:
    bringing = Bringing()
    other = klines("OTHERUSDT", "1h")
    bringing.started[other] = threading.Event()
    with ahead(bringing) as series:
        assert list(series.days(A, [date(2026, 3, 9)])) == [(A, date(2026, 3, 9))]
        assert list(series.days(other, [date(2026, 3, 9)])) == [(other, date(2026, 3, 9))]


def test_a_run_that_ends_early_leaves_nothing_at_work() -> None:
    bringing = Bringing()
    bringing.waits[A] = threading.Event()
    with ahead(bringing, side_by_side=1) as series:
        next(series.days(A, WANTED[0][1]))
        threading.Timer(0.05, bringing.waits[A].set).start()
    assert bringing.closed == {A}
    assert set(bringing.begun) == {A}
