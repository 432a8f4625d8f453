"""Files of the lake to publish: closed months and open days of a series, with the hash of their bytes.

Where a table has its data files belongs to ``data_files.py``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from market_data_pipeline import clock
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.day_records import rows_as_on_disk
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import file_columns, path_of_file
from market_data_pipeline.model.day import HELD, FileStat
from market_data_pipeline.model.series import SeriesKey

_UNSETTLED_NS = 2_000_000_000
"""Age (ns) below which a file or folder may change again without a new modification time."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the lake.

    Attributes:
        key: Its series.
        period: Its day or closed month, e.g. ``2024-01-15`` or ``2024-01``.
        path: Its path now. Another version may replace the file at any time.
        stat: Size and modification time of the version with these bytes.
        sha256: SHA-256 of all its bytes.
    """

    key: SeriesKey
    period: str
    path: Path
    stat: FileStat
    sha256: str


def files_to_publish(layout: Layout, key: SeriesKey) -> tuple[list[StoredFile], dict[str, str]]:
    """Return the stored files of a series in order of time, and the reason for each period that cannot be read.

    Raises:
        StorageError: The system cannot read the ledger.
    """
    table, _ = rows_as_on_disk(layout, key, ("file_sha256", "month_sha256", "reason"))
    rows: dict[int, dict[str, Any]] = {
        clock.day_number(row["day"]): row
        for row in table.select(["day", "outcome", "version", "file_sha256", "month_sha256", "reason"]).to_pylist()
    }
    found, unread = list[StoredFile](), dict[str, str]()
    for first, days, size, version in np.stack(file_columns(layout, key), axis=1).tolist():
        whole_month = days > 1
        period = f"{clock.day_of_number(first):{'%Y-%m' if whole_month else '%Y-%m-%d'}}"
        path, stat = path_of_file(layout, key, first, days), FileStat(size, version)
        of_file = [rows.get(day) for day in range(first, first + days)]
        lost = next((row for row in of_file if row is not None and row["outcome"] != HELD), None)
        if lost is not None:
            unread[period] = lost["reason"] or f"{path} cannot be read."
            continue
        # A row of another version of the file does not have its hash.
        column = "month_sha256" if whole_month else "file_sha256"
        hashes = {row[column] if row is not None and row["version"] == version else None for row in of_file}
        try:
            [sha256] = hashes if len(hashes) == 1 else [None]
            if sha256 is None:
                sha256, stat = _hashed(path)
        except FileNotFoundError:
            continue  # removed, or part of a month that was closed since: the next publish finds it
        except OSError as error:
            unread[period] = str(parquet.damaged(path, error))
            continue
        found.append(StoredFile(key, period, path, stat, sha256))
    return found, unread


def _hashed(path: Path) -> tuple[str, FileStat]:
    data, stat = storage.read(path)
    return hashlib.sha256(data).hexdigest(), stat


def signature(layout: Layout, key: SeriesKey, now_ns: int) -> str | None:
    """Return a text that changes with the stored files of a series, without reading any.

    Args:
        now_ns: Time of the system in nanoseconds.

    Returns:
        None if something changed so recently that the next change may leave the same text.
    """
    places = (layout.ledger(key), layout.folder(key), layout.months(key))
    stats = [_stat_of(path) for path in places]
    if any(one and now_ns - one[0] < _UNSETTLED_NS for one in stats):
        return None
    return " ".join("-" if one is None else f"{one[0]}.{one[1]}" for one in stats)


def _stat_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_size
