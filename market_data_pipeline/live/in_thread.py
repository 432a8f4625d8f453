"""A feed in a process with other work: a thread with a loop of its own, which starts the feed again.

Following streams belongs to ``feed.py``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from typing import Self

from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.live.feed import Feed
from market_data_pipeline.model.live_updates import LiveListener

logger = logging.getLogger(__name__)

_PAUSES = (1.0, 5.0, 15.0, 60.0)
"""Seconds before a feed starts again after each failure in a row. The last one repeats."""
_STEADY_SECONDS = 300.0
"""Time after which a failure is the first of a new row."""
_END_SECONDS = 30.0


class FeedThread:
    """Run a feed in a thread for the duration of a ``with`` block.

    A feed that fails later, for example because the disk is full, is started again after a pause. Until then, its
    listener knows that it ended.

    Raises:
        MarketDataError: The feed cannot start. Another one may write to the data folder.
    """

    def __init__(self, feed: Feed, listener: LiveListener) -> None:
        self._feed = feed
        self._listener = listener
        self._thread = threading.Thread(target=self._run, name="live-feed", daemon=True)
        self._known = threading.Event()
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._known.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        if self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # it ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_END_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._follow())
        except BaseException as error:
            self._failure = error
            if self._known.is_set():
                logger.exception("The live feed ended.")
        finally:
            self._known.set()
            self._listener.ended()

    async def _follow(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        failures = 0
        while not self._stopped.is_set():
            began_at = self._loop.time()
            try:
                await self._feed.run(self._stop, self._began)
            except Exception as error:
                if not self._known.is_set():
                    raise
                if self._loop.time() - began_at > _STEADY_SECONDS:
                    failures = 0
                pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
                failures += 1
                self._listener.ended()
                if isinstance(error, MarketDataError):
                    logger.error("The live feed ended, and starts again in %g s: %s", pause, error)  # noqa: TRY400
                else:
                    logger.exception("The live feed failed, and starts again in %g s.", pause)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), pause)

    def _began(self) -> None:
        self._listener.began()
        self._known.set()
