"""Write generated archives to disk, so that measurements exclude the generator. Serving them does not belong here."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox.exchange import ArchiveKey, Cadence, GeneratedExchange
from market_data_pipeline.sandbox.faults import Faults
from market_data_pipeline.sandbox.symbols import GeneratedSymbol


def write_mirror(
    folder: Path | str,
    keys: Iterable[SeriesKey],
    days: Iterable[date],
    seed: int = 0,
    symbols: Iterable[GeneratedSymbol] | None = None,
    cadences: Iterable[Cadence] = ("daily",),
) -> list[Path]:
    """Write generated zips, each with its CHECKSUM, in the archive's folder layout.

    Args:
        folder: the folder to create ``data/…`` in. Pass it to ``Sandbox(mirror=folder)``.
        keys: the series to write.
        days: the days to write. Monthly zips cover every month that contains one of them.
        seed: selects one of many histories.
        symbols: the listed symbols. None lists the default ones.
        cadences: ``daily``, ``monthly`` or both.

    Returns:
        The zips written. Days on which a symbol has no archive are skipped.
    """
    wanted = sorted(days)
    if not wanted:
        return []
    after = datetime.combine(wanted[-1] + timedelta(62), time(0), UTC)
    exchange = GeneratedExchange(lambda: after, Faults(), seed, symbols)
    written = []
    for key in keys:
        archives = [ArchiveKey(key, "daily", day) for day in wanted if "daily" in cadences]
        if "monthly" in cadences:
            archives += [ArchiveKey(key, "monthly", day) for day in sorted({day.replace(day=1) for day in wanted})]
        for archive in archives:
            names = (archive.key, f"{archive.key}.CHECKSUM")
            files = [(name, file) for name in names if (file := exchange.file(name)) is not None]
            for name, file in files:
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.body)
            if files:
                written.append(Path(folder) / archive.key)
    return written
