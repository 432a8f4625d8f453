"""The broker between launcher and workers: a Celery app, its queues, and what both sides must have in common.

Celery carries one small message per run. States of runs are in Dagster's records and signs of life in PostgreSQL, so no
result backend is needed, and any broker of Celery works. Executing a run belongs to ``worker.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dagster import AssetKey, DagsterRun

from market_data_pipeline import __version__
from market_data_pipeline.defs.keys import is_series, series_of
from market_data_pipeline.errors import EnvironmentFaultError, UsageError
from market_data_pipeline.model.series import DataType
from market_data_pipeline.settings import Settings
from market_data_pipeline.universe.resolved import lock_path

if TYPE_CHECKING:
    from celery import Celery

RUNS, TRADES = "runs", "trades"
QUEUES = (RUNS, TRADES)
"""Queues of runs. A worker takes from both, unless its command names some."""

QUEUE_TAG, TASK_TAG = "market_data/queue", "market_data/task"
"""Tags of a run: the queue that it must go to, and the id of its message."""

TASK = "market_data.run"

_HEAVY = (DataType.AGG_TRADES, DataType.TRADES, DataType.BOOK_TICKER, DataType.TRADE_PROFILE)
"""Data types whose days take up to gigabytes of memory."""

_DAY_SECONDS = 86_400

PUBLISH_POLICY = {"max_retries": 8, "interval_start": 0.2, "interval_step": 1.0, "interval_max": 4.0}
"""Attempts to reach the broker for a run: for about 25 s."""


def broker_app(broker: str) -> Celery:
    """Return the Celery app of a broker.

    Raises:
        UsageError: The extra is not installed.
    """
    try:
        from celery import Celery
    except ImportError:
        raise UsageError(
            'MARKET_DATA_BROKER needs the extra celery. Install it: pip install "market-data-pipeline[celery]"'
        ) from None
    app = Celery("market_data", broker=broker)
    app.conf.update(
        task_ignore_result=True,
        task_default_queue=RUNS,
        # A message is removed when its run begins. A run that is lost after that is found by its missing sign of life.
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        # Redis: a worker takes a message only if it is idle, so that none is lost with a killed one.
        worker_disable_prefetch=broker.startswith(("redis", "rediss", "sentinel")),
        worker_max_tasks_per_child=50,
        worker_proc_alive_timeout=300,  # a process imports everything before its first run
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": _DAY_SECONDS,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
        },
        broker_connection_timeout=5,
    )
    return app


def queue_of(run: DagsterRun) -> str:
    """Return the queue of a run: that of its tag, or ``trades`` if it has trades, or ``runs``."""
    if named := run.tags.get(QUEUE_TAG):
        return str(named)
    return TRADES if has_trades(run.asset_selection or ()) else RUNS


def has_trades(assets: Iterable[AssetKey]) -> bool:
    """Return True if days of one of these assets are big."""
    return any(is_series(asset) and series_of(asset).data_type in _HEAVY for asset in assets)


@dataclass(frozen=True, slots=True)
class Build:
    """Version and universe of a host. They must be equal in a team, so that a run means the same everywhere.

    Attributes:
        version: Of this package.
        universe: Hash of ``universe.yaml`` and its lock.
    """

    version: str
    universe: str

    def differs(self, other: Build) -> str:
        """Return the differences as text. Empty if there are none."""
        versions = f"version {self.version} instead of {other.version}" if self.version != other.version else ""
        universes = "another universe.yaml or universe.lock.yaml" if self.universe != other.universe else ""
        return " and ".join(filter(None, [versions, universes]))

    def as_message(self) -> dict[str, Any]:
        """Return this as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker that answers.

    Attributes:
        name: Its name.
        build: Its version and universe.
        queues: The queues that it takes from.
    """

    name: str
    build: Build
    queues: tuple[str, ...]


def workers_of(broker: str, seconds: float = 3.0) -> list[WorkerState]:
    """Ask all workers of a broker for their state.

    Raises:
        EnvironmentFaultError: The broker cannot be reached.
    """
    app = broker_app(broker)
    try:
        app.connection_for_write().ensure_connection(max_retries=1, timeout=5)
        answers = app.control.broadcast(TASK_STATE, reply=True, timeout=seconds)
    except Exception as error:  # of the broker's own client
        raise EnvironmentFaultError(f"The broker cannot be reached ({str(error).splitlines()[0]}).") from error
    return [
        WorkerState(name, Build(**state["build"]), tuple(state["queues"]))
        for answer in answers
        for name, state in answer.items()
    ]


TASK_STATE = "market_data_state"
"""Question that each worker answers with its state."""


def build_of(settings: Settings) -> Build:
    """Return the build of this host."""
    digest = hashlib.sha256()
    for path in (settings.universe, lock_path(settings.universe)):
        digest.update(path.read_bytes() if path.exists() else b"-")
    return Build(__version__, digest.hexdigest()[:16])
