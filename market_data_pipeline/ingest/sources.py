"""Shared resources of one run: hosts, threads and memory, for all its series. Fetching does not belong here."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from market_data_pipeline.ingest.memory import MemoryBudget
from market_data_pipeline.model.series import Market
from market_data_pipeline.model.waits import Stop
from market_data_pipeline.settings import Settings, cpus
from market_data_pipeline.sources.binance.archive import ArchiveClient
from market_data_pipeline.sources.binance.rest import RestApi


class Sources:
    """Sources of data for one run. A host that is off, or a spent allowance, stays so until the run ends.

    Attributes:
        archive: data.binance.vision.
        computing: Threads that read zips, one per CPU. Libraries that release the GIL take nearly all of the time.
        memory: Memory budget of the days in progress.
        at_a_time: Maximum days in progress: more than download slots, because other days are read and written.
        places: One slot per day in progress.
        stop: Ends all waits of the run when it is interrupted.
    """

    def __init__(self, settings: Settings) -> None:
        self.stop = Stop()
        self.archive = ArchiveClient(settings, self.stop)
        self.computing = ThreadPoolExecutor(cpus(), thread_name_prefix="compute")
        self.memory = MemoryBudget(settings.memory_mb << 20, self.stop)
        self.at_a_time = 2 * settings.download_threads
        self.places = threading.Semaphore(self.at_a_time)
        self._settings = settings
        self._rest: dict[Market, RestApi] = {}
        self._lock = threading.Lock()

    def rest(self, market: Market) -> RestApi:
        """Return REST of a market."""
        with self._lock:
            if market not in self._rest:
                self._rest[market] = RestApi(market, self._settings, self.stop)
            return self._rest[market]

    def close(self) -> None:
        """Close all connections, and end the threads."""
        self.computing.shutdown(wait=not self.stop.is_set, cancel_futures=self.stop.is_set)
        self.archive.close()
        for api in self._rest.values():
            api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
