"""A process that removes days of a lake and is killed at one of its steps;
``market_data_pipeline_tests/lake/test_removal.py`` starts it.

Arguments: the data folder, the number of the removal of a file that is not done any more, and the days or ``all``.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import date
from pathlib import Path

from market_data_pipeline.lake import removal, storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import known_series


def main(root: Path, number: int, days: list[str]) -> None:
    """Remove until the step is reached."""
    done, calls = storage.remove, 0

    def do_or_die(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        done(path)

    setattr(storage, "remove", do_or_die)  # noqa: B010 - mypy refuses the assignment
    layout = Layout(root)
    for key in known_series(layout):
        if days == ["all"]:
            removal.remove_series_data(layout, key)
        else:
            removal.remove_days(layout, key, [date.fromisoformat(day) for day in days])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
