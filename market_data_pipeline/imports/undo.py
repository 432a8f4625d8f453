"""Undo an import: remove exactly the days that it stored and that nothing replaced since."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from market_data_pipeline import clock
from market_data_pipeline.imports.journal import Journal, JournalDay, find_journal
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model.day import FileStat
from market_data_pipeline.model.series import SeriesKey


@dataclass(slots=True)
class UndoReport:
    """Result of undoing an import.

    Attributes:
        removed: Days that are as before the import again.
        stay: Days that were replaced since, by series. They stay.
    """

    identity: str
    removed: int = 0
    stay: dict[str, list[str]] = field(default_factory=dict)


def undo_import(layout: Layout, identity: str, wait_seconds: float) -> UndoReport:
    """Undo an import. Days that were replaced since, for example by their archive, stay. A second undo does nothing.

    Args:
        identity: Name of the import.
        wait_seconds: How long to wait for another writer of a series.

    Raises:
        UsageError: There is no such import.
        SeriesBusyError: Another run writes a series and did not finish in time.
        StorageError: The disk refuses.
    """
    journal = find_journal(layout, identity)
    report = UndoReport(identity)
    if journal.read_report().get("undone_at"):
        return report
    by_series: dict[SeriesKey, list[JournalDay]] = {}
    for day in journal.days():
        by_series.setdefault(day.key, []).append(day)
    for key, days in by_series.items():
        with storage.only_writer(layout.lock(key), wait_seconds, str(key)):
            _undo_series(layout, journal, key, days, report)
    journal.remove_copies()
    journal.write_report({**journal.read_report(), "undone_at": clock.now().isoformat()})
    return report


def _undo_series(
    layout: Layout, journal: Journal, key: SeriesKey, days: Sequence[JournalDay], report: UndoReport
) -> None:
    path = layout.ledger(key)
    ledger = Ledger.read(path)
    changed = False
    for day in reversed(days):
        if not _is_as_imported(layout, ledger, day):
            if ledger.get(day.day) is None and storage.head(layout.file(key, day.day)) is None:
                continue  # the import was killed before it stored the day
            report.stay.setdefault(str(key), []).insert(0, day.day.isoformat())
            continue
        before = day.before
        if day.replaces and before is not None:
            before = replace(
                before, version=_restore(layout, journal, day, FileStat(before.bytes, before.version)).version
            )
        else:
            storage.remove(layout.file(key, day.day))
        if before is None:
            ledger.rows.pop(day.day, None)
        else:
            ledger.put(before)
        report.removed += 1
        changed = True
    if changed and ledger.rows:
        ledger.write(path)
    elif changed:
        storage.remove(path)
    storage.remove_empty(layout.folder(key), layout.root)  # the folders that the import made


def _is_as_imported(layout: Layout, ledger: Ledger, day: JournalDay) -> bool:
    """Return True if a day's file is the one that the import wrote, or was removed by an undo that was killed."""
    try:
        data, _ = storage.read(layout.file(day.key, day.day))
    except OSError:
        row = ledger.get(day.day)
        return not day.replaces and row is not None and row.file_sha256 == day.sha256
    return hashlib.sha256(data).hexdigest() == day.sha256


def _restore(layout: Layout, journal: Journal, day: JournalDay, stat: FileStat) -> FileStat:
    """Write the file from before the import, with the version by which the ledger knows it, if the store can."""
    data, _ = storage.read(journal.copy_of(day.key, day.day))
    return storage.restore(layout.file(day.key, day.day), data, stat)
