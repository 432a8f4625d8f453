"""The status of the live feed: one JSON file below ``live/`` that is replaced each second.

Making a status does not belong here (``live/status.py``).
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from market_data_pipeline import clock
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.locks import is_running

STATUS_VERSION = 1


def status_file(layout: Layout) -> Path:
    """Return the path of the status file."""
    return layout.feed_status


def read_status(layout: Layout) -> dict[str, Any] | None:
    """Return the last status. None if the feed never ran. It runs now if ``updated_at`` is a few seconds old."""
    try:
        found = json.loads(storage.read(status_file(layout))[0])
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class FeedState(StrEnum):
    """State of a live feed, by its status file."""

    RUNS = "runs"
    """It wrote its status within the last 30 seconds."""
    ENDED = "ended"
    """Its process is gone."""
    HANGS = "hangs"
    """Its process exists, but does not write its status."""


_YOUNG = timedelta(seconds=30)


def feed_state(layout: Layout) -> FeedState | None:
    """Return the state of the feed. None if none ever ran."""
    status = read_status(layout)
    if status is None:
        return None
    try:
        updated = datetime.fromisoformat(str(status["updated_at"]))
        process = int(status["process"])
    except (KeyError, ValueError):
        return FeedState.ENDED
    if clock.now() - updated < _YOUNG:
        return FeedState.RUNS
    return FeedState.HANGS if is_running(process) else FeedState.ENDED


def write_status(layout: Layout, status: dict[str, Any]) -> None:
    """Replace the status file.

    Raises:
        StorageError: The file cannot be written.
    """
    storage.put(status_file(layout), json.dumps(status, indent=1).encode())
