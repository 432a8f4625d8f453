"""Connections: when they are opened, replaced and ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from market_data_pipeline.live.links import Link, LinkGroup

SECOND = 1_000_000
HOUR = 3_600 * SECOND


@dataclass
class Task:
    """A task that ends when it is told to."""

    ended: bool = False

    def done(self) -> bool:
        return self.ended

    def cancel(self) -> None:
        self.ended = True


@dataclass
class Group:
    """A group of two streams with its tasks."""

    tasks: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.group = LinkGroup(("a", "b"), self.start)

    def start(self, _link: Link) -> Task:
        self.tasks.append(Task())
        return self.tasks[-1]

    @property
    def running(self) -> list[int]:
        return [number for number, task in enumerate(self.tasks) if not task.ended]


def test_a_connection_that_ended_is_opened_again() -> None:
    links = Group()
    links.group.tick(0)
    links.tasks[0].ended = True
    links.group.tick(1)
    assert links.running == []
    links.group.tick(2 * SECOND)
    assert links.running == [1]
    assert links.group.ended == 1


def test_pauses_between_failures_grow() -> None:
    links = Group()
    now = 0
    starts: list[int] = []
    while len(starts) < 8:
        before = len(links.tasks)
        links.group.tick(now)
        if len(links.tasks) > before:
            starts.append(now)
            links.tasks[-1].ended = True
        now += SECOND // 10
    pauses = [later - earlier for earlier, later in pairwise(starts)]
    assert pauses[-1] > 8 * pauses[0]
    assert max(pauses) <= 61 * SECOND


def test_a_silent_connection_is_replaced() -> None:
    links = Group()
    links.group.tick(0)
    links.group.data(links.group.links[0], "a", 20 * SECOND)
    links.group.tick(49 * SECOND)
    assert links.running == [0]
    links.group.tick(51 * SECOND)
    links.group.tick(53 * SECOND)
    assert links.running == [1]
    assert links.group.silent == 1


def test_a_second_connection_opens_before_the_first_ends() -> None:
    links = Group()
    links.group.tick(0)
    for name in ("a", "b"):
        links.group.data(links.group.links[0], name, 23 * HOUR + SECOND)
    links.group.tick(23 * HOUR + SECOND)
    assert links.running == [0, 1]
    new = links.group.links[1]
    links.group.data(new, "a", 23 * HOUR + 2 * SECOND)
    links.group.tick(23 * HOUR + 2 * SECOND)
    assert links.running == [0, 1]
    links.group.data(new, "b", 23 * HOUR + 3 * SECOND)
    links.group.tick(23 * HOUR + 3 * SECOND)
    assert links.running == [1]


def test_an_announced_end_opens_a_second_connection() -> None:
    links = Group()
    links.group.tick(0)
    links.group.links[0].ends_soon = True
    links.group.tick(SECOND)
    assert links.running == [0, 1]


def test_quiet_streams_do_not_hold_the_old_connection() -> None:
    links = Group()
    links.group.tick(0)
    links.group.links[0].ends_soon = True
    links.group.data(links.group.links[0], "b", SECOND)
    links.group.tick(SECOND)
    for seconds in range(2, 130):
        for link in links.group.links:
            links.group.data(link, "a", seconds * SECOND)
        links.group.tick(seconds * SECOND)
    assert links.running == [1]


def test_closing_ends_all_connections() -> None:
    links = Group()
    links.group.tick(0)
    links.group.close()
    assert links.running == []


def test_a_group_is_fed_while_data_comes() -> None:
    links = Group()
    links.group.tick(0)
    assert not links.group.is_fed(0)  # connected, and nothing came
    links.group.data(links.group.links[0], "a", SECOND)
    assert links.group.is_fed(31 * SECOND)
    assert not links.group.is_fed(32 * SECOND)
    links.tasks[0].ended = True
    links.group.tick(2 * SECOND)
    assert not links.group.is_fed(2 * SECOND)
