"""Generated archives as files, for measurements in which their making must not count."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sandbox.exchange import Archive, Cadence, GeneratedExchange
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
    """Write generated zips, each with its CHECKSUM, laid out as the archive is.

    Args:
        folder: where ``data/…`` is made; give it to ``Sandbox(mirror=folder)``.
        keys: the series.
        days: the days; with monthly zips, every month that one of them lies in.
        seed: chooses one of many histories.
        symbols: what is listed, if not the default.
        cadences: ``daily``, ``monthly`` or both.

    Returns:
        The zips that were written; days on which a symbol has no archive have none.
    """
    wanted = sorted(days)
    if not wanted:
        return []
    after = datetime.combine(wanted[-1] + timedelta(62), time(0), UTC)
    exchange = GeneratedExchange(lambda: after, Faults(), seed, symbols)
    written = []
    for key in keys:
        archives = [Archive(key, "daily", day) for day in wanted if "daily" in cadences]
        if "monthly" in cadences:
            archives += [Archive(key, "monthly", day) for day in sorted({day.replace(day=1) for day in wanted})]
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
