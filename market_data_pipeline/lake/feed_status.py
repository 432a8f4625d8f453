"""The status of the live feed: one JSON file below ``live/`` that is replaced each second.

Making a status does not belong here (``live/status.py``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout

STATUS_VERSION = 1


def status_file(layout: Layout) -> Path:
    """Return the path of the status file."""
    return layout.root / "live" / "status.json"


def read_status(layout: Layout) -> dict[str, Any] | None:
    """Return the last status. None if the feed never ran. It runs now if ``updated_at`` is a few seconds old."""
    try:
        found = json.loads(status_file(layout).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_status(layout: Layout, status: dict[str, Any]) -> None:
    """Replace the status file.

    Raises:
        StorageError: The file cannot be written.
    """
    storage.write_bytes(status_file(layout), json.dumps(status, indent=1).encode())
