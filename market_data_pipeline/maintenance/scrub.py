"""Scrub the lake: read every file and compare its bytes with the hash on record.

Only this finds a file with flipped bits but the same size and time. Damaged days are marked in the ledger. Fetching
them again belongs to ``ingest``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from time import perf_counter

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError, MarketDataError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.checksums import CHANGED, DayVerification, verify_days
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, is_changed, recorded, refresh_ledger
from market_data_pipeline.lake.partitions import day_files, day_files_between, read_record
from market_data_pipeline.maintenance.pool import compute_all
from market_data_pipeline.model.day import HELD, DayRecord, Lost, after
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings, cpus

_FILES_AT_ONCE = 32
_BYTES_AT_ONCE = 4 << 20
"""Size of a bundle for one process. Small bundles avoid a long wait for the last one."""

_WORTH_BYTES = 32 << 20
"""Bytes from which workers start. This process reads as many in about the time that a worker takes to start."""

OnProgress = Callable[[int], None]
"""Called with the number of further days that are done."""


@dataclass
class LocalReport:
    """Result of a scrub.

    Attributes:
        files: Number of files read, by series.
        faults: Days whose file is missing or does not match its record, with the reason.
        troubles: Series whose ledger could not be read or written, with the reason.
    """

    files: dict[SeriesKey, int] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    faults: dict[SeriesKey, dict[date, str]] = field(default_factory=dict)
    troubles: dict[SeriesKey, str] = field(default_factory=dict)

    @property
    def to_fetch(self) -> dict[SeriesKey, list[date]]:
        """Return the days whose file is to be replaced, by series."""
        return {key: sorted(days) for key, days in self.faults.items()}

    @property
    def all_well(self) -> bool:
        """Return True if every file matches its record."""
        return not self.faults and not self.troubles


def verify_local(
    settings: Settings,
    keys: Iterable[SeriesKey],
    *,
    mark: bool = True,
    processes: int = 1,
    on_progress: OnProgress | None = None,
) -> LocalReport:
    """Read every file of series and verify its bytes against the SHA-256 on record.

    A file without a SHA-256 on record is compared with its footer: schema, rows, key order, statistics and content
    hash. If it matches, the SHA-256 of its bytes is recorded. A day with a fault is marked as failed in the ledger, so
    that the next run replaces it.

    Args:
        settings: Location of the lake, and how long to wait for a series that another run writes.
        keys: The series, derived ones included.
        mark: Write the result into the ledgers.
        processes: Number of reading processes. 0 means one per CPU. Small files (1m klines) need Python's GIL half of
            the time, so threads would not help. Workers start only if there is much to read.
        on_progress: Called with the number of further files read.
    """
    layout = Layout(settings.root)
    report = LocalReport()
    began = perf_counter()
    wanted: dict[SeriesKey, dict[date, int]] = {}
    known: dict[SeriesKey, dict[date, DayRecord]] = {}
    for key in keys:
        try:
            known[key] = recorded(layout.ledger(key))
            on_disk = {day: file.stat.bytes for day, file in day_files(layout, key).items()}
            wanted[key] = dict(sorted((dict.fromkeys(known[key], 0) | on_disk).items()))
        except MarketDataError as error:
            report.troubles[key] = str(error)
    unrecorded: dict[SeriesKey, list[DayVerification]] = {key: [] for key in wanted}
    for key, proofs in _proofs(layout, wanted, known, processes or cpus()):
        report.files[key] = report.files.get(key, 0) + len(proofs)
        report.rows += sum(proof.rows for proof in proofs)
        report.bytes += sum(proof.stat.bytes for proof in proofs if proof.stat)
        unrecorded[key] += [proof for proof in proofs if not proof.as_written]
        if on_progress is not None:
            on_progress(len(proofs))
    for key, proofs in unrecorded.items():
        changed = _changed(layout, key, [proof for proof in proofs if not proof.fault], known[key])
        results = [changed.get(proof.day, proof) for proof in proofs]
        if faults := {proof.day: proof.fault for proof in results if proof.fault}:
            report.faults[key] = faults
        if mark and results:
            try:
                _record(layout, key, results, settings.lock_wait_seconds if faults else 0)
            except MarketDataError as error:
                if faults:  # else the next scrub records the hashes
                    report.troubles[key] = str(error)
    report.seconds = perf_counter() - began
    return report


def _proofs(
    layout: Layout,
    wanted: Mapping[SeriesKey, Mapping[date, int]],
    known: Mapping[SeriesKey, Mapping[date, DayRecord]],
    processes: int,
) -> Iterator[tuple[SeriesKey, list[DayVerification]]]:
    """Read all files in parallel, in bundles of one series."""
    bundles = [(key, days) for key, sizes in wanted.items() for days in _bundles(sizes)]
    is_much = sum(sum(sizes.values()) for sizes in wanted.values()) >= _WORTH_BYTES
    calls = [(layout, key, days, _known_of(days, known[key])) for key, days in bundles]
    found = compute_all(verify_days, calls, processes if is_much else 1)
    return zip((key for key, _ in bundles), found, strict=True)


def _bundles(sizes: Mapping[date, int]) -> list[list[date]]:
    bundles: list[list[date]] = []
    bytes_in_last = 0
    for day, size in sizes.items():
        if not bundles or len(bundles[-1]) == _FILES_AT_ONCE or bytes_in_last + size > _BYTES_AT_ONCE:
            bundles.append([])
            bytes_in_last = 0
        bundles[-1].append(day)
        bytes_in_last += size
    return bundles


def _record(layout: Layout, key: SeriesKey, proofs: Iterable[DayVerification], wait_seconds: float) -> None:
    """Mark days of damaged or missing files as failed, and record the SHA-256 of verified files without one.

    Raises:
        SeriesBusyError: another run writes the series and did not finish in time.
        StorageError: the ledger cannot be written.
    """
    with storage.only_writer(layout.lock(key), wait_seconds, str(key)):
        ledger = Ledger.read(layout.ledger(key))
        refresh_ledger(ledger, layout, key)
        for proof in proofs:
            row = ledger.get(proof.day)
            file = next(iter(day_files_between(layout, key, proof.day, proof.day)), None)
            if (file.stat if file else None) != proof.stat:
                continue  # a run has replaced the file since it was read
            if proof.fault:
                ledger.put(after(row, proof.day, Lost(proof.fault, damaged=proof.stat is not None)))
            elif row is not None and row.outcome == HELD and file is not None:
                own, month = (None, proof.sha256) if file.of_month else (proof.sha256, None)
                ledger.put(replace(row, file_sha256=own, month_sha256=month))
        ledger.write(layout.ledger(key))


def _known_of(days: Sequence[date], known: Mapping[date, DayRecord]) -> dict[date, DayRecord]:
    """Return the records of days, and of the rest of their months."""
    months = {day.replace(day=1) for day in days}
    return {day: known[day] for month in months for day in clock.days_of_month(month) if day in known}


def _changed(
    layout: Layout, key: SeriesKey, proofs: Sequence[DayVerification], known: Mapping[date, DayRecord]
) -> dict[date, DayVerification]:
    """Return files that match their footer but not the bytes on record, although no run rewrote them.

    A closed month is written as a whole, so its file is a newer version if one of its days is.
    """
    hashed = [proof for proof in proofs if (of := known.get(proof.day)) and (of.file_sha256 or of.month_sha256)]
    if not hashed:
        return {}
    ledger = Ledger.read(layout.ledger(key))
    found: dict[Path, dict[date, DayVerification]] = {}
    newer: set[Path] = set()
    for proof in hashed:
        row, files = ledger.get(proof.day), day_files_between(layout, key, proof.day, proof.day)
        if row is None or not files or files[0].stat != proof.stat:
            continue
        file = files[0]
        try:
            if is_changed(file, row, read_record(file)):
                fault = CHANGED.format(path=file.path)
                found.setdefault(file.path, {})[proof.day] = replace(proof, fault=fault)
            elif file.of_month:
                newer.add(file.path)
        except DamagedFileError:
            continue  # replaced since it was read
    return {day: proof for path, days in found.items() if path not in newer for day, proof in days.items()}
