"""What is on record of days as they lie on the disk: final or provisional, hashes, findings, or why they failed.

Ledgers are read for this, and files that a ledger does not speak of: new ones are believed by their footer, those that
were changed or found damaged are proven against it. Reading rows (``reader.py``) needs neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import parquet
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import SCHEMA, Ledger, read_columns, reconcile, row_of_file
from market_data_pipeline.lake.partitions import days_on_disk
from market_data_pipeline.model.day import HELD, DayFile, DayRecord, Lost, after
from market_data_pipeline.model.findings import Severity, Verdict
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.model.states import EXPLAINED


def rows_on_record(
    layout: Layout,
    key: SeriesKey,
    on_disk: Mapping[date, DayFile],
    first: date,
    last: date,
    *,
    only: Sequence[date] | None = None,
) -> dict[date, DayRecord]:
    """What is known of the days of a series, as they lie on the disk.

    Args:
        layout: Where the lake lies.
        key: The series.
        on_disk: The days from first to last that have rows on the disk.
        first: First UTC day.
        last: Last UTC day, included.
        only: Days to look at; None for all from first to last.

    Returns:
        A row for each day with a file, and for those without one of which the ledger speaks. A day whose file is gone,
        or is not what it says, has failed.

    Raises:
        StorageError: the system refuses to read the ledger.
    """
    inside = (pc.field("day") >= first) & (pc.field("day") <= last)
    if only is not None:
        inside &= pc.field("day").isin(pa.array(only, pa.date32()))
    known = Ledger.read(layout.ledger(key), inside).rows
    for day, row in known.items():
        if row.outcome == HELD and day not in on_disk:
            known[day] = after(None, day, Lost("its file is gone"))
    for day, held in on_disk.items():
        found = known.get(day)
        if found is None or not found.speaks_of(held.stat):
            known[day] = row_of_file(held, found)
    return known


def sound_among(layout: Layout, key: SeriesKey, on_disk: Mapping[date, DayFile]) -> set[date]:
    """Return those of some stored days that are final, pass their checks and have no gap that nothing explains.

    This is by the ledger, for the files that it speaks of. A day that is not among them may be sound, too. The ledger's
    columns are kept from call to call, as long as the file is the same.
    """
    if not on_disk:
        return set()
    path = layout.ledger(key)
    try:
        told = path.stat()
        sound = _sound(path, (told.st_mtime_ns, told.st_size, told.st_ino))
    except OSError:
        return set()
    begin, end = np.searchsorted(sound.day, [_number(min(on_disk)), _number(max(on_disk)) + 1])
    columns = (sound.day[begin:end].tolist(), sound.bytes[begin:end].tolist(), sound.mtime_ns[begin:end].tolist())
    known = {day: (size, mtime_ns) for day, size, mtime_ns in zip(*columns, strict=True)}
    return {day for day, held in on_disk.items() if known.get(_number(day)) == (held.stat.bytes, held.stat.mtime_ns)}


class _Sound(NamedTuple):
    """Days since 1970 that are sound, in order, with size and time of the files that the ledger speaks of."""

    day: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    mtime_ns: npt.NDArray[np.int64]


_NOT_EXPLAINED = "|".join(sorted(set(Verdict) - EXPLAINED))
_IS_SOUND = (
    (pc.field("outcome") == HELD)
    & pc.field("final")
    & (pc.field("integrity") != Severity.ERROR.value)
    & ~pc.match_substring_regex(pc.field("verdicts"), _NOT_EXPLAINED)
)
_KEPT_LEDGERS = 256
"""Ledgers of which the columns are kept: ten years are 90 kB."""


@lru_cache(maxsize=_KEPT_LEDGERS)
def _sound(path: Path, _version: tuple[int, int, int]) -> _Sound:
    try:
        table = parquet.read_table(path, [*_SPEAKING, "final", "integrity", "verdicts"])
        sound = table.filter(_IS_SOUND).sort_by("day")
        days = sound["day"].cast(pa.date32()).cast(pa.int32())
        return _Sound(*(np.asarray(column, dtype=np.int64) for column in (days, sound["bytes"], sound["mtime_ns"])))
    except (DamagedFileError, pa.ArrowInvalid, KeyError):  # or of an older version, which lacks a column
        nothing = np.empty(0, dtype=np.int64)
        return _Sound(nothing, nothing, nothing)


def _number(day: date) -> int:
    return day.toordinal() - _EPOCH


_EPOCH = date(1970, 1, 1).toordinal()

_SPEAKING = ("day", "outcome", "bytes", "mtime_ns")
"""Columns of a ledger that tell which files it speaks of."""


def rows_as_on_disk(layout: Layout, key: SeriesKey, columns: Sequence[str] = ()) -> tuple[pa.Table, bool]:
    """A series' ledger, corrected in memory where it does not speak of the files that lie there.

    A ledger that is lost or behind, or whose files were changed or removed by hand, is mended by its next writer.

    Args:
        layout: Where the lake lies.
        key: The series.
        columns: Of the ledger; more may come.

    Returns:
        A row for each day, and whether it is another than the ledger has.

    Raises:
        StorageError: the system refuses to read the ledger.
    """
    path = layout.ledger(key)
    try:
        table = read_columns(path, (*_SPEAKING, *columns))
        if _speaks_of(table, days_on_disk(layout, key)):
            return table, False
    except DamagedFileError:
        pass
    ledger = Ledger.read(path)
    reconcile(ledger, layout, key)
    return pa.Table.from_pylist([asdict(row) for row in ledger.rows.values()], SCHEMA), True


def _speaks_of(ledger: pa.Table, on_disk: Mapping[date, DayFile]) -> bool:
    """Whether the days that a ledger has as held are those with a file, and the files those that it knows."""
    held = ledger.filter(pc.field("outcome") == HELD)
    known = zip(parquet.days_of(held), held["bytes"].to_pylist(), held["mtime_ns"].to_pylist(), strict=True)
    return set(known) == {(day, held.stat.bytes, held.stat.mtime_ns) for day, held in on_disk.items()}


SERIES_LABELS = ("exchange", "market", "data_type", "symbol", "interval")

CORRECTED = pa.schema([*((name, pa.string()) for name in ("series", *SERIES_LABELS)), *SCHEMA])
"""The name of a series for people, its labels, and what its ledger should say of a day."""


def corrected(layout: Layout, keys: Iterable[SeriesKey]) -> pa.Table:
    """All days of those series whose ledgers do not speak of the files that lie there, as they lie on the disk.

    A folder is listed for each series. No ledger is written: the next writer of the series does.

    Returns:
        A table of :data:`CORRECTED`, empty where every ledger is right.

    Raises:
        StorageError: the system refuses to read a ledger.
    """
    rows = []
    for key in keys:
        table, is_other = rows_as_on_disk(layout, key)
        if is_other:
            labels = {name: getattr(key, name) for name in SERIES_LABELS}
            rows += [{"series": str(key), **labels, **row} for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, CORRECTED)
