"""What one run shares, however many series it brings: hosts, and what may be in work at a time."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from market_data_pipeline.ingest.memory import MemoryBudget
from market_data_pipeline.processes import cpus
from market_data_pipeline.series import Market
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.rest import RestApi
from market_data_pipeline.sources.vision import Archive


class Sources:
    """Where data comes from, for one run: what is off or used up stays so until the run ends.

    Attributes:
        archive: data.binance.vision.
        computing: One for each zip that may be read at a time, in threads: libraries, which let go of Python's lock,
            take nearly all of a big one's time.
        memory: What the days in work may take together.
        places: One for each day that may be in work at a time.
    """

    def __init__(self, settings: Settings) -> None:
        self.archive = Archive(settings)
        self.computing = threading.Semaphore(cpus())
        self.memory = MemoryBudget(settings.memory_mb << 20)
        self.places = threading.Semaphore(settings.download_threads)
        self._settings = settings
        self._rest: dict[Market, RestApi] = {}
        self._lock = threading.Lock()

    def rest(self, market: Market) -> RestApi:
        """REST of a market."""
        with self._lock:
            if market not in self._rest:
                self._rest[market] = RestApi(market, self._settings)
            return self._rest[market]

    def close(self) -> None:
        """Close all connections."""
        self.archive.close()
        for api in self._rest.values():
            api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
