"""A process that compacts a lake and is killed before one of its steps; ``test_compacting.py`` starts it.

Arguments: the data folder and the step.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from market_data_pipeline import compacting
from market_data_pipeline.lake import catalog, closing, files
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.settings import load_settings

GRACE = timedelta(seconds=10)
"""Longer than a reader of the test takes for an answer."""

STEPS: dict[str, tuple[Any, str, int]] = {
    "the month's bytes are on the disk": (os, "fsync", 1),
    "the ledger speaks of the month": (closing, "note_month", 1),
    "the ledger is written": (Ledger, "write", 1),
    "the catalog is published": (catalog, "_publish", 1),
    "older catalogs are retired": (files, "remove", 1),
    "all days are removed": (files, "remove", 9),
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
    compacting.compact(load_settings(dir=root), catalog.series_held(Layout(root)), grace=GRACE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
