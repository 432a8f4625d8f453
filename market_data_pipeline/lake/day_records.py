"""Records of days as they are on disk: final or provisional, hashes, findings, or the failure.

They come from ledgers. Files that differ from the ledger are read instead: new files are trusted by their footer,
changed or damaged ones are verified against it. Reading rows belongs to ``lake/reader.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import LEDGER_SCHEMA, Ledger, read_columns, refresh_ledger
from market_data_pipeline.lake.partitions import DayColumns, day_columns
from market_data_pipeline.model.day import HELD, NOT_LISTED, DayFile, DayRecord
from market_data_pipeline.model.findings import Severity, Verdict
from market_data_pipeline.model.schema import empty_table
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
    """Return the records of a series' days as they are on disk.

    Args:
        on_disk: Stored days from first to last.
        last: Last UTC day, inclusive.
        only: Days to read; None for all from first to last.

    Returns:
        A record for each day that has a file or a ledger row. A day with a missing or damaged file has failed.

    Raises:
        StorageError: The system cannot read the ledger.
    """
    path = layout.ledger(key)
    if only is not None and len(only) <= _FEW_DAYS and (revision := storage.revision(path)) is not None:
        ledger = Ledger(_few_rows(path, revision, tuple(only)))
    else:
        inside = (pc.field("day") >= first) & (pc.field("day") <= last)
        if only is not None:
            inside &= pc.field("day").isin(pa.array(only, pa.date32()))
        ledger = Ledger.read(path, inside)
    refresh_ledger(ledger, layout, key, on_disk)
    return ledger.rows


_FEW_DAYS = 4
"""Most days whose records are cached. Servers read those of today and yesterday again and again."""


@lru_cache(maxsize=1024)
def _few_rows(path: Path, revision: tuple[int, ...], days: tuple[date, ...]) -> tuple[DayRecord, ...]:  # noqa: ARG001
    return tuple(Ledger.read(path, pc.field("day").isin(pa.array(days, pa.date32()))).rows.values())


def sound_among(layout: Layout, key: SeriesKey, on_disk: Mapping[date, DayFile]) -> set[date]:
    """Return the stored days that are final, pass their checks and have no unexplained gap.

    Only days whose files match the ledger are returned. Other days may be sound as well. The ledger's columns are
    cached until its file changes.
    """
    if not on_disk:
        return set()
    path = layout.ledger(key)
    try:
        revision = storage.revision(path)
    except OSError:
        return set()
    if revision is None:
        return set()
    sound = _sound(path, revision)
    begin, end = np.searchsorted(sound.day, [clock.day_number(min(on_disk)), clock.day_number(max(on_disk)) + 1])
    columns = (sound.day[begin:end].tolist(), sound.bytes[begin:end].tolist(), sound.version[begin:end].tolist())
    known = {day: (size, version) for day, size, version in zip(*columns, strict=True)}
    return {
        day
        for day, stored in on_disk.items()
        if known.get(clock.day_number(day)) == (stored.stat.bytes, stored.stat.version)
    }


class DayFacts(NamedTuple):
    """The facts of a day on record that readers of rows need. See :class:`DayRecord`."""

    day: date
    outcome: str
    final: bool
    source: str | None
    content_sha256: str | None
    replaced_by: str | None
    retry: bool
    reason: str | None

    @property
    def never_changes(self) -> bool:
        """Return True if nothing will replace the rows of the day, as far as is known today."""
        return self.outcome in (HELD, NOT_LISTED) and self.final and self.replaced_by is None and not self.retry


def facts_on_record(
    layout: Layout, key: SeriesKey, on_disk: Mapping[date, DayFile], first: date, last: date
) -> dict[date, DayFacts]:
    """Return the facts of a series' days as they are on disk, in order. It is a faster :func:`rows_on_record`.

    The ledger's columns are cached until its file changes. If stored days do not match them, the files are read.

    Raises:
        StorageError: The system cannot read the ledger.
    """
    path = layout.ledger(key)
    try:
        revision = storage.revision(path)
    except OSError:
        revision = None
    table = None if revision is None else _facts(path, revision)
    if table is not None:
        days = np.asarray(table["day"])
        begin, end = np.searchsorted(days, [clock.day_number(first), clock.day_number(last) + 1]).tolist()
        rows = table.slice(begin, end - begin).to_pylist()
        stored = {clock.day_of_number(row["day"]): row for row in rows if row["outcome"] == HELD}
        if {day: (row["bytes"], row["version"]) for day, row in stored.items()} == {
            day: (file.stat.bytes, file.stat.version) for day, file in on_disk.items()
        }:
            return {facts.day: facts for facts in map(_fact_of, rows)}
    records = rows_on_record(layout, key, on_disk, first, last)
    names = DayFacts._fields
    return {day: DayFacts(*(getattr(row, name) for name in names)) for day, row in sorted(records.items())}


def _fact_of(row: Mapping[str, Any]) -> DayFacts:
    content = row["content_sha256"]
    return DayFacts(
        clock.day_of_number(row["day"]),
        row["outcome"],
        row["final"],
        row["source"],
        None if content is None else content.hex(),
        row["replaced_by"],
        row["retry"],
        None,
    )


_FACTS = ("final", "source", "content_sha256", "replaced_by", "retry")

_CACHED_FACTS = 128
"""Ledgers whose facts are cached. Ten years take about 250 kB."""


@lru_cache(maxsize=_CACHED_FACTS)
def _facts(path: Path, _revision: tuple[int, ...]) -> pa.Table | None:
    """Return the facts of all days in order, with compact types. None if the ledger cannot be read."""
    try:
        table = read_columns(path, (*_FILE_COLUMNS, *_FACTS)).select([*_FILE_COLUMNS, *_FACTS]).sort_by("day")
        hashes = [None if one is None else bytes.fromhex(one) for one in table["content_sha256"].to_pylist()]
    except (DamagedFileError, pa.ArrowException, KeyError, ValueError):
        return None
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    columns["day"] = columns["day"].cast(pa.date32()).cast(pa.int32())
    columns["content_sha256"] = pa.array(hashes, pa.binary(32))
    for name in ("outcome", "source", "replaced_by"):
        columns[name] = columns[name].dictionary_encode()
    return pa.table(columns)


class _Sound(NamedTuple):
    """Sound days since 1970, in order, with size and modification time of their files in the ledger."""

    day: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    version: npt.NDArray[np.int64]


_NOT_EXPLAINED = "|".join(sorted(set(Verdict) - EXPLAINED))
_CACHED_LEDGERS = 256
"""Ledgers whose columns are cached. Ten years take 90 kB."""


@cache
def _is_sound() -> pc.Expression:
    return (
        (pc.field("outcome") == HELD)
        & pc.field("final")
        & (pc.field("integrity") != Severity.ERROR.value)
        & ~pc.match_substring_regex(pc.field("verdicts"), _NOT_EXPLAINED)
    )


@lru_cache(maxsize=_CACHED_LEDGERS)
def _sound(path: Path, _revision: tuple[int, ...]) -> _Sound:
    try:
        table = read_columns(path, [*_FILE_COLUMNS, "final", "integrity", "verdicts"])
        sound = table.filter(_is_sound()).sort_by("day")
        days = sound["day"].cast(pa.date32()).cast(pa.int32())
        return _Sound(*(np.asarray(column, dtype=np.int64) for column in (days, sound["bytes"], sound["version"])))
    except (DamagedFileError, pa.ArrowInvalid, KeyError):  # a column is missing in ledgers of older versions
        nothing = np.empty(0, dtype=np.int64)
        return _Sound(nothing, nothing, nothing)


_FILE_COLUMNS = ("day", "outcome", "bytes", "version")
"""Columns of a ledger that identify its files."""


def rows_as_on_disk(layout: Layout, key: SeriesKey, columns: Sequence[str] = ()) -> tuple[pa.Table, bool]:
    """Read a series' ledger, and correct it in memory if it does not match the files on disk.

    The ledger may be missing or stale, or files may have been changed or removed by hand. The next writer of the
    series repairs it.

    Args:
        columns: Columns to read. The result may have more.

    Returns:
        A row for each day, and True if the rows differ from the ledger.

    Raises:
        StorageError: The system cannot read the ledger.
    """
    path = layout.ledger(key)
    if storage.head(path) is not None:
        with suppress(DamagedFileError):
            table = read_columns(path, (*_FILE_COLUMNS, *columns))
            if _digest_of_rows(table) == _digest(day_columns(layout, key)):
                return table, False
    ledger = Ledger.read(path)
    refresh_ledger(ledger, layout, key)
    return pa.Table.from_pylist([asdict(row) for row in ledger.rows.values()], LEDGER_SCHEMA), True


def is_as_on_disk(layout: Layout, key: SeriesKey) -> bool:
    """Return True if a ledger's stored days and their files are exactly those on disk.

    This lists the folders of the series. What the ledger has is cached until its file changes.
    """
    path = layout.ledger(key)
    try:
        revision = storage.revision(path)
    except OSError:
        return False
    known = None if revision is None else _digest_of_ledger(path, revision)
    return known is not None and known == _digest(day_columns(layout, key))


_CACHED_DIGESTS = 50_000
"""Ledgers whose stored days are cached as a digest. One takes half a kilobyte."""


@lru_cache(maxsize=_CACHED_DIGESTS)
def _digest_of_ledger(path: Path, _revision: tuple[int, ...]) -> bytes | None:
    """Return the digest of a ledger's stored days. None if the ledger cannot be compared, because it is damaged."""
    try:
        return _digest_of_rows(read_columns(path, _FILE_COLUMNS))
    except (DamagedFileError, pa.ArrowException, KeyError, ValueError):
        return None


def _digest_of_rows(table: pa.Table) -> bytes | None:
    """Return the digest of the stored days in a ledger's rows. None if a value is missing."""
    try:
        stored = table.select(_FILE_COLUMNS).filter(pc.field("outcome") == HELD).drop_columns("outcome").sort_by("day")
        if any(column.null_count for column in stored.columns):
            return None
        days = stored["day"].cast(pa.date32()).cast(pa.int32())
        columns = (days, stored["bytes"], stored["version"])
        return _digest(DayColumns(*(np.asarray(column, dtype=np.int64) for column in columns)))
    except (pa.ArrowException, KeyError, ValueError):
        return None


def _digest(stored: DayColumns) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for column in stored:
        digest.update(column.tobytes())
    return digest.digest()


SERIES_LABELS = ("exchange", "market", "data_type", "symbol", "interval")

CORRECTED = pa.schema([*((name, pa.string()) for name in ("series", *SERIES_LABELS)), *LEDGER_SCHEMA])
"""The display name of a series, its labels, and the corrected ledger row of a day."""


def corrected(layout: Layout, keys: Iterable[SeriesKey]) -> pa.Table:
    """Return all days on disk of each series whose ledger does not match its files.

    This lists the folders of each series and writes no ledger. The next writer of the series does.

    Returns:
        A table of :data:`CORRECTED`; empty if every ledger is right.

    Raises:
        StorageError: The system cannot read a ledger.
    """
    rows = []
    for key in keys:
        if is_as_on_disk(layout, key):
            continue
        table, is_other = rows_as_on_disk(layout, key)
        if is_other:
            labels = {name: getattr(key, name) for name in SERIES_LABELS}
            rows += [{"series": str(key), **labels, **row} for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, CORRECTED) if rows else empty_table(CORRECTED)


def with_others(corrections: pa.Table, keys: Iterable[SeriesKey], others: pa.Table) -> pa.Table:
    """Return the corrections of some series together with earlier corrections of others.

    Args:
        corrections: Corrections of the series ``keys``.
        others: Earlier corrections. Those of ``keys`` are left out.
    """
    if not others.num_rows:
        return corrections
    names = pa.array([str(key) for key in keys], pa.string())
    return pa.concat_tables([others.filter(pc.invert(pc.is_in(others["series"], names))), corrections])
