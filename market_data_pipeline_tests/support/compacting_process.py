"""A process whose children compact a lake and are killed, each before one of the steps;
``market_data_pipeline_tests/integration/test_compacting.py`` starts it.

Argument: the data folder. It reads steps from standard input, forks for each, so that everything is imported once, and
prints the child's exit code.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from market_data_pipeline.lake import closed_months, partitions, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.maintenance import compaction
from market_data_pipeline.settings import load_settings
from market_data_pipeline.sql import publish

GRACE = timedelta(seconds=10)
"""Longer than a reader of the test takes for an answer."""

STEPS: dict[str, tuple[Any, str, int]] = {
    "the month's bytes are on the disk": (os, "fsync", 1),
    "the ledger speaks of the month": (closed_months, "record_month", 1),
    "the ledger is written": (Ledger, "write", 1),
    "the catalog is published": (publish, "_publish", 1),
    "older catalogs are retired": (storage, "remove", 1),
    "all days are removed": (storage, "remove", 9),
}
"""What is called, and the number of the call that is not done any more."""


def main(root: Path, step: str) -> None:
    """Compact until the step is reached."""
    place, name, number = STEPS[step]
    done: Callable[..., Any] = getattr(place, name)
    calls = 0

    def do_or_die(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return done(*args, **kwargs)

    setattr(place, name, do_or_die)
    compaction.compact(load_settings(dir=root), partitions.known_series(Layout(root)), grace=GRACE)


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            main(Path(sys.argv[1]), line.strip())
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
