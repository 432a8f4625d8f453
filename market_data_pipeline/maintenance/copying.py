"""Copy a lake into another store: from a folder into a bucket, back, or between buckets.

Each file's bytes are compared with the hash on record before they are written. A day counts as copied once the ledger
of the copy has it, so that a call after a crash continues. What stays on one machine, such as Dagster's records, is not
copied.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.checksums import CHANGED
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, refresh_ledger
from market_data_pipeline.lake.partitions import day_files, day_files_of_month, known_series
from market_data_pipeline.model.day import HELD, DayFile, DayRecord
from market_data_pipeline.model.series import SeriesKey

_AREAS = ("quarantine", "quality", "universe")
"""What else belongs to a lake."""

_SAVE_EVERY_SECONDS = 10.0


@dataclass
class CopyReport:
    """Result of a copy.

    Attributes:
        files: Number of copied files.
        bytes: Their size.
        there: Number of days that the copy had already.
        newer: Number of days that have a newer version in the copy. It stays.
        troubles: Reason why a file or series was not copied, by name.
    """

    files: int = 0
    bytes: int = 0
    there: int = 0
    newer: int = 0
    troubles: dict[str, str] = field(default_factory=dict)


def copy_lake(
    source: Layout, target: Layout, *, wait_seconds: float = 0, on_progress: Callable[[], None] | None = None
) -> CopyReport:
    """Copy all series of a lake, and what else belongs to it. Files that the copy has are not read again.

    Args:
        source: The lake. It may be written meanwhile: days that arrive during the copy are left to the next call.
        target: The copy. It may have days already.
        wait_seconds: How long to wait for another writer of a series of the copy.
        on_progress: Called after each series.
    """
    report = CopyReport()
    for key in known_series(source):
        try:
            with storage.only_writer(target.lock(key), wait_seconds, str(key)):
                _SeriesCopy(source, target, key, report).run()
        except MarketDataError as error:
            report.troubles[str(key)] = str(error)
        if on_progress is not None:
            on_progress()
    for area in _AREAS:
        _copy_area(source, target, area, report)
    return report


@dataclass
class _SeriesCopy:
    source: Layout
    target: Layout
    key: SeriesKey
    report: CopyReport

    def run(self) -> None:
        storage.remove_leftovers(self.target.folder(self.key))
        ledger = Ledger.read(self.source.ledger(self.key))
        files = day_files(self.source, self.key)
        refresh_ledger(ledger, self.source, self.key, files)
        ours = Ledger.read(self.target.ledger(self.key))
        there = day_files(self.target, self.key)
        refresh_ledger(ours, self.target, self.key, there)
        saved_at, changed = time.monotonic(), False
        for path, days in _by_file(files).items():
            rows = {day: row for day in days if (row := ledger.get(day)) is not None and row.outcome == HELD}
            todo = {day: row for day, row in rows.items() if self._is_wanted(files[day], row, ours.get(day), there)}
            if not todo:
                continue
            try:
                self._copy(files[next(iter(todo))], path, rows, ours)
            except MarketDataError as error:
                self.report.troubles[str(path)] = str(error)
                continue
            changed = True
            if time.monotonic() - saved_at > _SAVE_EVERY_SECONDS:
                ours.write(self.target.ledger(self.key))
                saved_at, changed = time.monotonic(), False
        for day, row in ledger.rows.items():  # days without a file: failed, not listed
            if row.outcome != HELD and ours.get(day) is None:
                ours.put(row)
                changed = True
        if changed:
            ours.write(self.target.ledger(self.key))

    def _is_wanted(self, file: DayFile, row: DayRecord, ours: DayRecord | None, there: Mapping[date, DayFile]) -> bool:
        if ours is None or ours.outcome != HELD or row.day not in there:
            return True
        if ours.content_sha256 == row.content_sha256 and there[row.day].of_month == file.of_month:
            self.report.there += 1
            return False
        if ours.content_sha256 == row.content_sha256:
            return file.of_month  # the month was closed since
        is_newer = (row.final, row.fetched_at) > (ours.final, ours.fetched_at) if row.fetched_at else False
        if ours.fetched_at is None or is_newer:
            return True
        self.report.newer += 1
        return False

    def _copy(self, file: DayFile, path: Path, rows: Mapping[date, DayRecord], ours: Ledger) -> None:
        try:
            data, _ = storage.read(path)
        except OSError as error:
            raise MarketDataError(f"{path} cannot be read ({error.strerror}). It was not copied.") from error
        sha256 = hashlib.sha256(data).hexdigest()
        if all(row.rules_out(file._replace(day=day), sha256) for day, row in rows.items()):
            raise MarketDataError(f"{CHANGED.format(path=path)} It was not copied.")
        to = self.target.month(self.key, file.day) if file.of_month else self.target.file(self.key, file.day)
        stat = storage.put(to, data)
        if file.of_month:
            stats = {one.day: one.stat for one in day_files_of_month(self.target, self.key, _first(file.day), stat)}
        else:
            stats = {file.day: stat}
        for day, row in rows.items():
            own, month = (None, sha256) if file.of_month else (sha256, None)
            placed = replace(row, bytes=stats[day].bytes, version=stats[day].version)
            ours.put(replace(placed, file_sha256=own, month_sha256=month))
        self.report.files += 1
        self.report.bytes += len(data)


def _first(day: date) -> date:
    return day.replace(day=1)


def _by_file(files: Mapping[date, DayFile]) -> dict[Path, list[date]]:
    found: dict[Path, list[date]] = {}
    for day, file in files.items():
        found.setdefault(file.path, []).append(day)
    return found


def _copy_area(source: Layout, target: Layout, area: str, report: CopyReport) -> None:
    for path in storage.list_paths(source.root / area, "**/*"):
        stat = storage.head(path)
        if stat is None or path.suffix == ".lock" or path.name.endswith(storage.TEMPORARY):
            continue
        to = target.root / path.relative_to(source.root)
        there = storage.head(to)
        try:
            data, _ = storage.read(path)
            if there is not None and there.bytes == len(data) and storage.read(to)[0] == data:
                continue
            storage.put(to, data)
        except (OSError, MarketDataError) as error:
            report.troubles[str(path)] = str(error)
            continue
        report.files += 1
        report.bytes += len(data)
