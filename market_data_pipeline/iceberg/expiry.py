"""Old snapshots: remove those of a certain age from a table, and then the files that no snapshot needs.

A file that no snapshot names may belong to a publish that has not committed yet. So it stays for a grace.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

from pyiceberg.table import Table

from market_data_pipeline import clock
from market_data_pipeline.clock import DAY
from market_data_pipeline.iceberg.catalog import LOST_RACE
from market_data_pipeline.iceberg.data_files import DataFiles
from market_data_pipeline.iceberg.hints import hint_files
from market_data_pipeline.settings import Settings

GRACE = DAY
"""Age from which a file that no snapshot names is deleted."""

_SHARE = 0.25
"""Expiry looks at all files of a table. It waits until the oldest snapshot is older than the setting by this share."""


class Expired(NamedTuple):
    """Snapshots that were removed, and files that were deleted then."""

    snapshots: int = 0
    files: int = 0


def expire(table: Table, files: DataFiles, settings: Settings, *, at_once: bool = False) -> Expired:
    """Remove old snapshots of a table, except the newest and those with a tag, and delete what none needs.

    Args:
        table: The table, with its newest metadata.
        files: Its files.
        settings: The age of snapshots.
        at_once: Delete unneeded files even if no snapshot is old. By default, wait until some are.
    """
    keep = timedelta(hours=settings.iceberg_keep_hours)
    before = clock.to_us(clock.now() - keep) // 1000
    named = {ref.snapshot_id for ref in table.metadata.refs.values()}
    old = [one for one in table.metadata.snapshots if one.timestamp_ms < before and one.snapshot_id not in named]
    due = clock.to_us(clock.now() - keep * (1 + _SHARE)) // 1000
    if not at_once and not any(one.timestamp_ms < due for one in old):
        return Expired()
    try:
        if old:
            table.maintenance.expire_snapshots().by_ids([one.snapshot_id for one in old]).commit()
    except LOST_RACE:
        return Expired()  # the next publish expires them
    needed = set(_needed(table))
    unneeded = [place for place, age in files.listed() if place not in needed and age >= GRACE.total_seconds()]
    for place in unneeded:
        files.remove(place)
    return Expired(len(old), len(unneeded))


def _needed(table: Table) -> Iterator[str]:
    """Yield each file that a snapshot or the catalog needs."""
    metadata, seen = table.metadata, set[str]()
    for location in (table.metadata_location, *(one.metadata_file for one in metadata.metadata_log)):
        yield from (location, *hint_files(location))
    yield from (one.statistics_path for one in (*metadata.statistics, *metadata.partition_statistics))
    for snapshot in metadata.snapshots:
        yield snapshot.manifest_list
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path not in seen:
                seen.add(manifest.manifest_path)
                yield manifest.manifest_path
                yield from (entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io))
