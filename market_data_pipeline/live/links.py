"""Connections of one group of streams: when to open, replace and end them. Pure but for the tasks that it is given."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from market_data_pipeline.live.effects import SECOND_US

SILENT_US = 30 * SECOND_US
"""Time without data after which a connection is replaced. Pings and replies are no data."""
REPLACED_AFTER_US = 23 * 3_600 * SECOND_US
"""Age at which a second connection opens. Binance ends each after 24 hours."""
_OVERLAP_US = 120 * SECOND_US
"""Longest time of two connections. Quiet streams need not be seen on both."""
_LONGEST_PAUSE_US = 60 * SECOND_US


class Running(Protocol):
    """A task."""

    def done(self) -> bool:
        """Return True if it ended."""
        ...

    def cancel(self) -> object:
        """End it."""
        ...


@dataclass(eq=False)
class Link:
    """One connection."""

    opened_us: int
    data_us: int
    """Time of the last data, or of the start."""
    seen: set[str] = field(default_factory=set)
    ends_soon: bool = False
    task: Running | None = None


@dataclass
class LinkGroup:
    """The connections of one group of streams: one as a rule, two while one replaces the other.

    Args:
        start: Begin the task of a connection.
    """

    names: tuple[str, ...]
    start: Callable[[Link], Running]
    links: list[Link] = field(default_factory=list)
    ended: int = 0
    silent: int = 0
    _failures: int = 0
    _retry_us: int = 0

    def data(self, link: Link, name: str, now_us: int) -> None:
        """Record data of a stream."""
        link.data_us = now_us
        link.seen.add(name)
        self._failures = 0

    def tick(self, now_us: int) -> None:
        """Open, replace and end connections as needed."""
        for link in [link for link in self.links if link.task is None or link.task.done()]:
            self.links.remove(link)
            self.ended += 1
            self._back_off(now_us)
        for link in [link for link in self.links if now_us - link.data_us > SILENT_US]:
            self._end(link)
            self.silent += 1
            self._back_off(now_us)
        if not self.links:
            if now_us >= self._retry_us:
                self._open(now_us)
            return
        newest = self.links[-1]
        if len(self.links) == 1:
            if newest.ends_soon or now_us - newest.opened_us > REPLACED_AFTER_US:
                self._open(now_us)
        elif newest.seen and (newest.seen >= self.links[0].seen or now_us - newest.opened_us > _OVERLAP_US):
            self._end(self.links[0])

    def is_fed(self, now_us: int) -> bool:
        """Return True if a connection had data a moment ago."""
        return any(link.seen and now_us - link.data_us <= SILENT_US for link in self.links)

    def close(self) -> None:
        """End all connections."""
        for link in list(self.links):
            self._end(link)

    def _open(self, now_us: int) -> None:
        link = Link(now_us, now_us)
        link.task = self.start(link)
        self.links.append(link)

    def _end(self, link: Link) -> None:
        self.links.remove(link)
        if link.task is not None:
            link.task.cancel()

    def _back_off(self, now_us: int) -> None:
        pause = min(SECOND_US * 2**self._failures, _LONGEST_PAUSE_US)
        self._failures = min(self._failures + 1, 10)
        self._retry_us = now_us + int(pause * (0.5 + random.random() / 2))  # noqa: S311 - jitter
