"""The hub between the live feed of this process and its clients: who follows what, and a bounded queue for each.

The feed publishes from its own thread; everything else runs in the loop of the server. The form in which a client gets
an update belongs to ``event_stream.py`` and ``binance/sockets.py``.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any

from market_data_pipeline.model.live_updates import LiveUpdate
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.server.problems import ProblemError, ProblemKind

MOST_CLIENTS = 256
"""Most clients of streams. Other requests need connections, too."""
MOST_WAITING = 1_000
"""Most updates that wait for one client."""
_MOST_ARRIVED = 100_000
"""Most updates that wait for the loop of the server."""
_BATCH = 256
"""Most updates that a client takes at once."""


class Ending(Enum):
    """Why a client's stream ends: the close code of a socket, and the reason in words."""

    SLOW = (1008, "The client reads too slowly")
    TOO_MANY_REQUESTS = (1008, "Too many requests")
    TOO_MANY_STREAMS = (1008, "Too many streams")
    FEED_ENDED = (1013, "The live feed ended. Connect again later")
    SERVER_SLOW = (1013, "The server is too slow for the live feed. Connect again later")
    SERVER_ENDS = (1001, "The server stops")

    @property
    def code(self) -> int:
        """Return the close code of RFC 6455."""
        return self.value[0]

    @property
    def reason(self) -> str:
        """Return the reason in words."""
        return self.value[1]


class SharedUpdate:
    """An update, and its texts, each made once for all clients."""

    __slots__ = ("_texts", "update")

    def __init__(self, update: LiveUpdate) -> None:
        self.update = update
        self._texts: dict[Hashable, str] = {}

    def text(self, form: Hashable, make: Callable[[LiveUpdate], str]) -> str:
        """Return the update in a form."""
        text = self._texts.get(form)
        if text is None:
            text = self._texts[form] = make(self.update)
        return text


class LiveClient:
    """One client with its queue. It ends if the queue is full, because the client reads too slowly.

    Attributes:
        takes_old: The client came back, and so also takes what the feed fills in after its own start.
    """

    def __init__(self, hub: LiveHub) -> None:
        self._hub = hub
        self.takes_old = False
        self._waiting: deque[SharedUpdate] = deque()
        self._ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.ending: Ending | None = None

    def follow(self, key: SeriesKey) -> None:
        """Get the updates of a series from now on."""
        self._hub.add(key, self)

    def leave(self, key: SeriesKey) -> None:
        """Get no more updates of a series."""
        self._hub.remove(key, self)

    def put(self, one: SharedUpdate) -> None:
        """Add an update to the queue."""
        if self.ending is not None or (one.update.is_old and not self.takes_old):
            return
        if len(self._waiting) >= MOST_WAITING:
            self.end(Ending.SLOW)
            return
        self._waiting.append(one)
        self._ready.set()

    def end(self, ending: Ending) -> None:
        """End the stream of this client. The first reason counts."""
        if self.ending is None:
            self.ending = ending
            self._waiting.clear()
            self.ended.set()

    async def take(self, seconds: float | None = None) -> list[SharedUpdate]:
        """Wait for updates. They are empty if none came in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]
        if not self._waiting:
            self._ready.clear()
        return taken

    async def serve(self, *work: Coroutine[Any, Any, object]) -> None:
        """Do all of the work until a part of it ends, or this client does. An OSError means that its peer is gone."""
        tasks = [asyncio.create_task(one) for one in (*work, self.ended.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for error in results:
            if isinstance(error, Exception) and not isinstance(error, OSError):
                raise error

    def close(self) -> None:
        """Leave the hub."""
        self._hub.forget(self)


class LiveHub:
    """Passes the updates of the live feed on to all clients that follow their series.

    Args:
        series: The series that the feed follows.
    """

    def __init__(self, series: Iterable[SeriesKey]) -> None:
        self.series = frozenset(series)
        self.runs = False
        self.slow = 0
        """Number of clients that were ended because they read too slowly."""
        self._followers: dict[SeriesKey, set[LiveClient]] = {}
        self._clients: set[LiveClient] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._arrived: deque[LiveUpdate] = deque()
        self._is_scheduled = False
        self._is_overrun = False
        self._lock = threading.Lock()

    # --- the feed, in its thread -----------------------------------------------------------------------------

    def wants(self, key: SeriesKey) -> bool:
        """Return True if a client follows a series."""
        return key in self._followers

    def publish(self, updates: Sequence[LiveUpdate]) -> None:
        """Pass updates on to the loop of the server."""
        with self._lock:
            self._arrived.extend(updates)
            if len(self._arrived) > _MOST_ARRIVED:
                self._arrived.clear()
                self._is_overrun = True
            if self._is_scheduled:
                return
            self._is_scheduled = True
        if not self._call(self._deliver):
            self._is_scheduled = False
            self._arrived.clear()

    def began(self) -> None:
        """Take notice that the feed runs."""
        self.runs = True

    def ended(self) -> None:
        """End all streams, because the feed does not run any more."""
        self.runs = False
        self._call(lambda: self._end_all(Ending.FEED_ENDED))

    def _call(self, work: Callable[[], object]) -> bool:
        if self._loop is None:
            return False
        try:
            self._loop.call_soon_threadsafe(work)
        except RuntimeError:  # the loop is closed
            return False
        return True

    # --- the loop of the server ------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to pass updates on, in the loop that runs now."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """End all streams, because the server stops."""
        self._closed = True
        self._end_all(Ending.SERVER_ENDS)

    def client(self) -> LiveClient:
        """Return a new client, which must be closed at the end.

        Raises:
            ProblemError: The feed does not run at the moment, or there are too many clients.
        """
        if self._closed or not self.runs:
            raise ProblemError(
                ProblemKind.BUSY, "The live feed does not run at the moment. Connect again later.", {"Retry-After": "5"}
            )
        if len(self._clients) >= MOST_CLIENTS:
            raise ProblemError(
                ProblemKind.BUSY,
                f"The server has {MOST_CLIENTS} clients of streams. Connect again later.",
                {"Retry-After": "5"},
            )
        client = LiveClient(self)
        self._clients.add(client)
        return client

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self._clients)

    def add(self, key: SeriesKey, client: LiveClient) -> None:
        """Let a client follow a series."""
        self._followers.setdefault(key, set()).add(client)

    def remove(self, key: SeriesKey, client: LiveClient) -> None:
        """Let a client leave a series."""
        followers = self._followers.get(key)
        if followers is not None:
            followers.discard(client)
            if not followers:
                del self._followers[key]

    def forget(self, client: LiveClient) -> None:
        """Let a client leave everything."""
        self._clients.discard(client)
        self.slow += client.ending is Ending.SLOW
        for key in [key for key, followers in self._followers.items() if client in followers]:
            self.remove(key, client)

    def _deliver(self) -> None:
        with self._lock:
            arrived, self._arrived = self._arrived, deque()
            overrun, self._is_scheduled, self._is_overrun = self._is_overrun, False, False
        if overrun:
            self._end_all(Ending.SERVER_SLOW)
            return
        for update in arrived:
            followers = self._followers.get(update.key)
            if followers:
                one = SharedUpdate(update)
                for client in followers:
                    client.put(one)

    def _end_all(self, ending: Ending) -> None:
        for client in list(self._clients):
            client.end(ending)


def followed_names(series: Iterable[SeriesKey]) -> str:
    """Return the series that a feed follows, as text for messages."""
    names = sorted(f"{one.symbol} {one.interval or one.data_type} ({one.market})" for one in series)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"


_LISTED = 12
