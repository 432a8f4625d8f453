"""The size of Dagster's records, and the age from which they may be pruned. Imports of Dagster do not belong here."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from market_data_pipeline.errors import UsageError

BYTES_A_DAY = 4_000
"""Maximum bytes per day of a series with its checks. Measured: 2.7 kB with two checks."""

USUAL_BYTES_A_DAY, USUAL_BYTES_A_SERIES, EMPTY_HOME_BYTES = 3_500, 15_000, 330_000
"""Usual bytes per day, in addition per series of a run, and once for a new DAGSTER_HOME. Measured on the sandbox."""

BIG = 1_000_000_000
"""Bytes of records from which `status`, and a backfill that would create them, mention the size."""

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def size_of_records(home: Path) -> int:
    """Return the bytes of all files below a DAGSTER_HOME; 0 if there is none."""
    total = 0
    for folder, _, names in os.walk(home):
        for name in names:
            with suppress(OSError):  # SQLite's files come and go
                total += Path(folder, name).lstat().st_size
    return total


def parse_age(text: str) -> timedelta:
    """Parse an age such as ``90d``, ``12w`` or ``36h``.

    >>> parse_age("12w").days
    84

    Raises:
        UsageError: The text is not an age.
    """
    found = re.fullmatch(r"(\d{1,6})([hdw])", text.strip().lower(), re.ASCII)
    if found is None:
        raise UsageError(f"{text!r} is not an age. Write a number and h, d or w, e.g. 36h, 90d or 12w.")
    return int(found[1]) * _UNITS[found[2]]
