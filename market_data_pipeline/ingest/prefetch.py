"""Prefetch series: a run processes one after another, while the next ones are fetched in the background.

Without it, a run over a day of hundreds of series would spend nearly all its time waiting for responses. Fetching the
days of one series does not belong here (``run.py``).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date
from typing import Generic, TypeVar

from market_data_pipeline.model.series import SeriesKey

_T = TypeVar("_T")


@dataclass
class _Series(Generic[_T]):
    """A started series, and its results so far. They end with None, or with its error if it failed."""

    days: tuple[date, ...]
    results: queue.SimpleQueue[_T | BaseException | None] = field(default_factory=queue.SimpleQueue)


class Prefetcher(Generic[_T]):
    """Fetch the series of a run ahead, in the given order.

    Args:
        fetch: Fetch days of one series and yield one result per day. Several threads call it at once.
        wanted: The series and days of the run, in order.
        side_by_side: Maximum series at a time.
    """

    def __init__(
        self,
        fetch: Callable[[SeriesKey, Sequence[date]], Generator[_T]],
        wanted: Sequence[tuple[SeriesKey, Sequence[date]]],
        side_by_side: int,
    ) -> None:
        self._fetch = fetch
        self._left = {key: tuple(days) for key, days in wanted}
        self._started: dict[SeriesKey, _Series[_T]] = {}
        self._most = 2 * side_by_side
        self._threads = ThreadPoolExecutor(side_by_side, thread_name_prefix="ahead")
        self._stopped = threading.Event()
        if len(self._left) > 1:
            self._start_more()

    def days(self, key: SeriesKey, days: Sequence[date]) -> Iterator[_T]:
        """Yield the results of a series as they come. The series need not be among the prefetched ones.

        Raises:
            Exception: The error of fetching it, after the results so far.
        """
        self._left.pop(key, None)
        series = self._started.pop(key, None)
        if series is None or series.days != tuple(days):
            yield from self._fetch(key, days)
            return
        self._start_more()
        while (result := series.results.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result

    def _start_more(self) -> None:
        while self._left and len(self._started) < self._most:
            key = next(iter(self._left))
            series = self._started[key] = _Series[_T](self._left.pop(key))
            self._threads.submit(self._work, key, series)

    def _work(self, key: SeriesKey, series: _Series[_T]) -> None:
        end: BaseException | None = None
        try:
            if not self._stopped.is_set():
                with closing(self._fetch(key, series.days)) as results:
                    for result in results:
                        series.results.put(result)
                        if self._stopped.is_set():
                            break
        except BaseException as error:  # noqa: BLE001 - raised by ``days``
            end = error
        series.results.put(end)

    def close(self) -> None:
        """Stop. Days in progress are finished and stored, even if no caller reads their results."""
        self._stopped.set()
        self._threads.shutdown(cancel_futures=True)
