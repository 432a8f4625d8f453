"""The weight that REST requests may cost: one budget for all processes of a machine, since Binance counts by address.

Weight is taken from a bucket in a SQLite file that all processes share, whatever share of the limit each may use; each
host has its own. Binance's own count (``X-MBX-USED-WEIGHT-1M``), which includes other programs behind the same address,
sets it right. A ban (418) is on record beside the bucket, so that no process asks into it.

By default the bucket is one user's, since a folder that all users write to would let any of them put what they like in
its place.
"""

from __future__ import annotations

import getpass
import re
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from pyrate_limiter import Duration, Limiter, Rate, SQLiteBucket

from market_data_pipeline.lake import files

LOOK_AGAIN_SECONDS = 0.5
"""How long whoever waits does so before it looks whether there is still something to wait for."""

_NEARLY = 0.95
"""Part of the whole limit at which we wait for the next minute, whoever used it."""


def shared_folder() -> Path:
    """Where the budgets of this machine's user lie."""
    return Path(tempfile.gettempdir()) / f"market-data-pipeline-{getpass.getuser()}"


class WeightBudget:
    """A host's budget.

    Args:
        host: Name of the host.
        per_minute: Binance's limit for one address.
        share: Part of it that all processes together may have used when we take more.
        folder: Where the budget is kept, for all processes.
    """

    def __init__(self, host: str, per_minute: int, share: float, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^A-Za-z0-9.-]", "_", host)
        self._limit = per_minute
        self.ours = max(1, int(per_minute * share))
        self._ban = folder / f"{stem}.banned-until"
        path = folder / f"{stem}.sqlite"
        with FileLock(folder / f"{stem}.setup.lock"):  # two processes may not make the table at the same time
            bucket = SQLiteBucket.init_from_file(
                [Rate(self.ours, Duration.MINUTE)], db_path=str(path), use_file_lock=True
            )
        self._limiter = Limiter(bucket)
        self._lock = threading.Lock()
        self._used, self._minute = 0, -1

    def acquire(self, weight: int, refuse: Callable[[], None] = lambda: None) -> None:
        """Wait until a request of this weight may be sent.

        Args:
            weight: Of the request.
            refuse: Called before and again and again while waiting; it raises where the request is not to be sent any
                more, so that nobody waits a minute for nothing.
        """
        refuse()
        while (pause := self._pause_for_others(weight)) > 0:
            time.sleep(min(pause, LOOK_AGAIN_SECONDS))
            refuse()
        while not self._limiter.try_acquire("rest", min(weight, self.ours), timeout=LOOK_AGAIN_SECONDS):
            refuse()

    def observe(self, used: int) -> None:
        """Take over Binance's count of what this address has used in the present minute."""
        with self._lock:
            self._used, self._minute = used, _minute()

    def _pause_for_others(self, weight: int) -> float:
        with self._lock:
            if self._minute != _minute() or self._used + weight <= self._limit * _NEARLY:
                return 0.0
            return 60 - time.time() % 60

    def ban(self, seconds: float) -> None:
        """Put on record that the host has banned this address."""
        files.write_bytes(self._ban, str(time.time() + seconds).encode())

    def banned_until(self) -> datetime | None:
        """When the ban on record ends (UTC); None where there is none."""
        try:
            until = float(self._ban.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return datetime.fromtimestamp(until, UTC) if until > time.time() else None

    def close(self) -> None:
        """Let go of the bucket."""
        self._limiter.close()


def _minute() -> int:
    return int(time.time() // 60)
