"""Comparison of live rows with the archive's, and removal of those that the lake has.

Live rows of a day stay until the day is final in the ledger, however late its archive is. The feed and Dagster read the
record of comparisons. Reading and writing live rows belong to ``lake/live_rows.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError, StorageError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.live_rows import CLOSE_STATE, live_days, live_folder, read_live_rows, remove_live_rows
from market_data_pipeline.lake.reader import labels_of, read_day
from market_data_pipeline.model import faults
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.series import SeriesKey


@dataclass(frozen=True, slots=True)
class LiveComparison:
    """Live rows of a day, compared with the final day of the lake.

    Attributes:
        rows: Number of live rows.
        changed: Live rows whose values the archive changed.
        missing: Live rows that the archive does not have.
        evicted: True if the live rows were removed, because the lake has all of them.
    """

    series: str
    day: str
    rows: int
    changed: int
    missing: int
    evicted: bool


def comparisons_file(layout: Layout) -> Path:
    """Return the path of the record of comparisons, one JSON object a line."""
    return layout.local / "live" / "compared.jsonl"


def read_comparisons(layout: Layout) -> list[LiveComparison]:
    """Return all comparisons, the newest last. A day counts once: its last comparison."""
    found: dict[tuple[str, str], LiveComparison] = {}
    with suppress(FileNotFoundError):
        for line in comparisons_file(layout).read_bytes().splitlines():
            with suppress(ValueError, TypeError):  # a torn line of a killed process
                one = LiveComparison(**json.loads(line))
                found.pop((one.series, one.day), None)
                found[one.series, one.day] = one
    return list(found.values())


def evict_final_days(layout: Layout, key: SeriesKey, today: date) -> Iterator[LiveComparison]:
    """Compare the live rows of days that are final by now, and remove those that the lake has.

    A day whose live rows are not all in the archive stays, and is compared again each time.

    Args:
        today: Days before it are compared.

    Raises:
        StorageError: The disk refuses.
    """
    days = [day for day in live_days(layout, key) if day < today]
    if not days:
        return
    ledger = Ledger.read(layout.ledger(key))
    for day in days:
        row = ledger.get(day)
        if row is None or not row.is_stored_final:
            continue
        try:
            stored = read_day(layout, key, day)
        except DamagedFileError:
            continue
        found = _compared(layout, key, day, stored)
        if found.evicted:
            remove_live_rows(layout, key, day)
            with suppress(OSError):  # it has other days
                live_folder(layout, key).rmdir()
        _record(layout, found)
        yield found


def _compared(layout: Layout, key: SeriesKey, day: date, stored: pa.Table) -> LiveComparison:
    start = clock.day_start_us(day)
    live = read_live_rows(layout, key, start, start + clock.US_PER_DAY).drop_columns([CLOSE_STATE])
    is_stored, differs = overlap_of(key, live, stored)
    missing = int(np.count_nonzero(~is_stored))
    return LiveComparison(
        str(key), day.isoformat(), len(is_stored), int(np.count_nonzero(differs)), missing, missing == 0
    )


def overlap_of(key: SeriesKey, live: pa.Table, stored: pa.Table) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Compare live rows with stored rows of the same days, both ordered by key.

    Returns:
        For each live row, True if a stored row has its key, and True if that row has other values.
    """
    name = spec_of(key).key
    ours, theirs = _numbers(live, name), _numbers(stored, name)
    at = np.searchsorted(theirs, ours)
    there = at < len(theirs)
    there[there] = theirs[at[there]] == ours[there]
    differs = np.zeros(len(ours), np.bool_)
    for column in live.column_names:
        if column not in labels_of(key.data_type):
            differs[there] |= _numbers(live, column)[there] != _numbers(stored, column)[at[there]]
    return there, differs


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.float64] | npt.NDArray[np.int64]:
    column = table[name]
    if pa.types.is_timestamp(column.type):
        column = pc.divide(pc.cast(column, pa.int64()), 1_000)  # archives and streams differ in the unit of times
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.int8())
    numbers: npt.NDArray[np.int64] = column.to_numpy()
    return numbers


def _record(layout: Layout, found: LiveComparison) -> None:
    path = comparisons_file(layout)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(handle, f"{json.dumps(asdict(found))}\n".encode())
        finally:
            os.close(handle)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror or error}). {faults.remedy(error)}.") from error
