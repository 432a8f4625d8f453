"""Scrub of the lake: read every file and compare its bytes with the hash on record.

Nothing else shows a file that lost bits at the same size and time. Damaged days are marked in the ledger; fetching
them again belongs to ``ingest``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from time import perf_counter

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError, MarketDataError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.checksums import CHANGED, DayVerification, Recorded, verify_days
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, is_changed, recorded, refresh_ledger
from market_data_pipeline.lake.partitions import days_between, days_on_disk, read_record
from market_data_pipeline.maintenance.pool import Processes
from market_data_pipeline.model.day import HELD, DayFile, Lost, after
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings, cpus

_FILES_AT_ONCE = 32
_BYTES_AT_ONCE = 4 << 20
"""What a process is handed at a time: little enough that none waits long for another at the end."""

_WORTH_BYTES = 32 << 20
"""Bytes that one process reads by itself, in about the time that another takes to start."""

OnProgress = Callable[[int], None]
"""Told how many more days are done."""


@dataclass
class LocalReport:
    """What reading the lake found.

    Attributes:
        files: Files that were read, by series.
        rows: Rows in them.
        bytes: Their size.
        seconds: How long it took.
        faults: Days whose file is not what its footer says, or is gone, with the reason.
        troubles: Series whose ledger could not be told, with the reason.
    """

    files: dict[SeriesKey, int] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    faults: dict[SeriesKey, dict[date, str]] = field(default_factory=dict)
    troubles: dict[SeriesKey, str] = field(default_factory=dict)

    @property
    def to_bring(self) -> dict[SeriesKey, list[date]]:
        """The days whose file is to be replaced, by series."""
        return {key: sorted(days) for key, days in self.faults.items()}

    @property
    def all_well(self) -> bool:
        """Whether every file is what its footer says."""
        return not self.faults and not self.troubles


def prove_local(
    settings: Settings,
    keys: Iterable[SeriesKey],
    *,
    mark: bool = True,
    processes: int = 1,
    on_progress: OnProgress | None = None,
) -> LocalReport:
    """Read every file of series and compare it with the SHA-256 on record of all its bytes.

    A file without one on record is compared with its footer: schema, rows, order of keys, statistics, sha256 of the
    content. If all is well, the SHA-256 of its bytes is put on record.

    A file that is not as it was written is noted as failed in the ledger, so that the next run that is asked for the
    day replaces it.

    Args:
        settings: Where the lake is, and how long to wait for a series that is being written.
        keys: The series, derived ones too.
        mark: Whether to write what was found into the ledgers.
        processes: How many processes may read, this one counted; 0 takes one for each CPU. Small files (1m klines) take
            Python's lock half of the time, so threads would wait for one another. Others are started where there is
            much to read.
        on_progress: Told how many more files were read.
    """
    layout = Layout(settings.root)
    report = LocalReport()
    began = perf_counter()
    wanted: dict[SeriesKey, dict[date, int]] = {}
    known: dict[SeriesKey, dict[date, Recorded]] = {}
    for key in keys:
        try:
            known[key] = recorded(layout.ledger(key))
            wanted[key] = _days_to_prove(layout, key, known[key])
        except MarketDataError as error:
            report.troubles[key] = str(error)
    faulty: dict[SeriesKey, dict[date, DayVerification]] = {key: {} for key in wanted}
    new: dict[SeriesKey, list[DayVerification]] = {key: [] for key in wanted}
    for key, proofs in _proofs(layout, wanted, known, processes or cpus()):
        report.files[key] = report.files.get(key, 0) + len(proofs)
        report.rows += sum(proof.rows for proof in proofs)
        report.bytes += sum(proof.stat.bytes for proof in proofs if proof.stat)
        faulty[key].update((proof.day, proof) for proof in proofs if proof.fault)
        new[key] += [proof for proof in proofs if not proof.fault and not proof.as_written]
        if on_progress is not None:
            on_progress(len(proofs))
    for key, faults in faulty.items():
        faults |= _changed(layout, key, new[key], known[key])
        if mark:
            _put_on_record(layout, key, [proof for proof in new[key] if proof.day not in faults])
        if faults:
            report.faults[key] = {day: proof.fault or "" for day, proof in faults.items()}
            if mark:
                try:
                    _mark_damaged(layout, key, faults.values(), settings.lock_wait_seconds)
                except MarketDataError as error:
                    report.troubles[key] = str(error)
    report.seconds = perf_counter() - began
    return report


def _proofs(
    layout: Layout,
    wanted: Mapping[SeriesKey, Mapping[date, int]],
    known: Mapping[SeriesKey, Mapping[date, Recorded]],
    processes: int,
) -> Iterator[tuple[SeriesKey, list[DayVerification]]]:
    """Read all files, in bundles of one series, by so many processes."""
    bundles = [(key, days) for key, sizes in wanted.items() for days in _bundles(sizes)]
    beside = Processes(processes, ahead=verify_days.__module__, worth_bytes=_WORTH_BYTES)
    with closing(beside), ThreadPoolExecutor(processes, thread_name_prefix="prove") as readers:
        beside.expect(sum(sum(sizes.values()) for sizes in wanted.values()))
        tasks = [
            readers.submit(beside.compute, verify_days, layout, key, days, _known_of(days, known[key]))
            for key, days in bundles
        ]
        try:
            for (key, _), task in zip(bundles, tasks, strict=True):
                yield key, task.result()
        finally:
            for task in tasks:
                task.cancel()


def _days_to_prove(layout: Layout, key: SeriesKey, known: Iterable[date]) -> dict[date, int]:
    """The days that have a file, and those that should have one by the ledger, with its size in bytes; in order."""
    sizes = dict.fromkeys(known, 0)
    sizes |= {day: held.stat.bytes for day, held in days_on_disk(layout, key).items()}
    return dict(sorted(sizes.items()))


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


def _mark_damaged(layout: Layout, key: SeriesKey, proofs: Iterable[DayVerification], wait_seconds: float) -> None:
    """Note files that are not what they say as failed days.

    Raises:
        SeriesBusyError: another run writes the series and did not finish in time.
        StorageError: the ledger cannot be written.
    """
    with storage.only_writer(layout.lock(key), wait_seconds, str(key)):
        ledger = Ledger.read(layout.ledger(key))
        refresh_ledger(ledger, layout, key)
        for proof in proofs:
            # A run may have replaced the file since it was read.
            held = days_between(layout, key, proof.day, proof.day)
            if (held[0].stat if held else None) == proof.stat:
                lost = Lost(proof.fault or "", damaged=proof.stat is not None)
                ledger.put(after(ledger.get(proof.day), proof.day, lost))
        ledger.write(layout.ledger(key))


def _known_of(days: Sequence[date], known: Mapping[date, Recorded]) -> dict[date, Recorded]:
    """What is on record of days, and of the rest of their months."""
    months = {day.replace(day=1) for day in days}
    return {day: known[day] for month in months for day in clock.days_of_month(month) if day in known}


def _changed(
    layout: Layout, key: SeriesKey, proofs: Sequence[DayVerification], known: Mapping[date, Recorded]
) -> dict[date, DayVerification]:
    """Of files that hold what their footer says, those whose bytes are not the ones on record although they should be.

    A closed month is written whole, so that its file is another version if any of its days is.
    """
    asked = [proof for proof in proofs if (of := known.get(proof.day)) and (of.file_sha256 or of.month_sha256)]
    if not asked:
        return {}
    ledger = Ledger.read(layout.ledger(key))
    found: dict[Path, dict[date, DayVerification]] = {}
    newer: set[Path] = set()
    for proof in asked:
        row, held = ledger.get(proof.day), _file_of(layout, key, proof)
        if row is None or held is None:
            continue
        try:
            if is_changed(held, row, read_record(held)):
                fault = CHANGED.format(path=held.path)
                found.setdefault(held.path, {})[proof.day] = replace(proof, fault=fault)
            elif held.of_month:
                newer.add(held.path)
        except DamagedFileError:
            continue  # it was replaced since it was read
    return {day: proof for path, days in found.items() if path not in newer for day, proof in days.items()}


def _file_of(layout: Layout, key: SeriesKey, proof: DayVerification) -> DayFile | None:
    """The file of a day, if it is still the one that was proven."""
    return next((held for held in days_between(layout, key, proof.day, proof.day) if held.stat == proof.stat), None)


def _put_on_record(layout: Layout, key: SeriesKey, proofs: Sequence[DayVerification]) -> None:
    """Note the SHA-256 of files that were proven without one. A series that is being written is left for next time."""
    if not proofs:
        return
    with suppress(MarketDataError), storage.only_writer(layout.lock(key), 0, str(key)):
        ledger = Ledger.read(layout.ledger(key))
        refresh_ledger(ledger, layout, key)
        for proof in proofs:
            row, held = ledger.get(proof.day), _file_of(layout, key, proof)
            if row is not None and row.outcome == HELD and held is not None:
                own, month = (None, proof.sha256) if held.of_month else (proof.sha256, None)
                ledger.put(replace(row, file_sha256=own, month_sha256=month))
        ledger.write(layout.ledger(key))
