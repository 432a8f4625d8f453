"""The ledger of a series: one row for each day that was ever requested. Failures are recorded only here.

Rows of stored days can be rebuilt from the files' footers. :func:`refresh_ledger` does so if folder and ledger differ:
after a crash, a deleted ledger or a manual change. The states of a day belong to ``model/day.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from datetime import date
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError, StorageError
from market_data_pipeline.lake import locks, parquet, storage
from market_data_pipeline.lake.checksums import CHANGED, content_sha256
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_files, parse_day_file, read_record
from market_data_pipeline.model import findings as findings_
from market_data_pipeline.model.datasets import ARCHIVE_BEGINS
from market_data_pipeline.model.day import (
    FAILED,
    HELD,
    DayFile,
    DayRecord,
    FileStat,
    FindingColumns,
    Lost,
    after,
    finding_columns,
    record_of,
)
from market_data_pipeline.model.findings import Basis, Severity
from market_data_pipeline.model.provenance import Provenance
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.model.version_1 import with_fields

_UTC_US = pa.timestamp("us")
_TYPES: Mapping[str, pa.DataType] = {
    "date": pa.date32(),
    "str": pa.string(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "datetime": _UTC_US,
}

LEDGER_SCHEMA = pa.schema([(one.name, _TYPES[str(one.type).removesuffix(" | None")]) for one in fields(DayRecord)])
"""Columns of a ledger: the fields of a record."""

_DEFAULTS = {one.name: one.default for one in fields(DayRecord) if one.default is not MISSING}


@cache  # made when it is first needed: an expression with a value makes Arrow import pandas
def may_need_fetch() -> pc.Expression:
    """Select rows of days that may need another fetch.

    They are provisional or open, have a replaced archive, or were checked by a replaced rule.
    """
    return (
        ~pc.field("final")
        | pc.field("replaced_by").is_valid()
        | pc.field("retry")
        | pc.match_substring(pc.field("bases"), Basis.RULE_REPLACED)
    )


@cache
def checks_do_not_pass() -> pc.Expression:
    """Select rows of stored days whose checks warn or fail. They include every incomplete day."""
    return (pc.field("outcome") == HELD) & (
        pc.field("integrity").isin([Severity.WARN.value, Severity.ERROR.value])
        | pc.field("gaps").isin([Severity.WARN.value, Severity.ERROR.value])
        | pc.field("failure").is_valid()
    )


class Ledger:
    """A series' ledger in memory, by day."""

    def __init__(self, rows: Iterable[DayRecord] = (), stat: FileStat | None = None) -> None:
        self.rows: dict[date, DayRecord] = {row.day: row for row in rows}
        self._stat = stat

    @classmethod
    def read(cls, path: Path, where: pc.Expression | None = None) -> Self:
        """Read a ledger. A missing or damaged one is empty, because it can be rebuilt from the footers.

        Args:
            where: Filter of rows; None reads all. Reading the few unsettled days of ten years is thirty times as fast.
                A ledger of an older version without the filter's column is read whole.
        """
        table, stat = _read_table(path)
        if table is None:
            return cls(stat=stat)
        try:
            table = _with_told_columns(table)
            if where is not None:
                with suppress(pa.ArrowInvalid):
                    table = table.filter(where)
            return cls((DayRecord(**row) for row in _believable(table).to_pylist()), stat)
        except (TypeError, ValueError, OverflowError, pa.ArrowException):
            return cls(stat=stat)

    def write(self, path: Path) -> None:
        """Write the ledger, atomically. It must be the one that was read, unless a lock excludes others.

        Raises:
            SeriesBusyError: Another process has written it since it was read, or this process has lost the series'
                lock to another host of its team.
            StorageError: The write failed. The stored ledger is unchanged.
        """
        ordered = [self.rows[day] for day in sorted(self.rows)]
        columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in ordered] for name in LEDGER_SCHEMA.names}
        encoded = parquet.encode_table(pa.table(columns, schema=LEDGER_SCHEMA))
        with locks.fence(path.with_suffix(".lock")):
            self._stat = storage.put(path, encoded, if_match=self._stat)

    def put(self, row: DayRecord) -> None:
        """Store a row, and replace the previous one of its day."""
        self.rows[row.day] = row

    def get(self, day: date) -> DayRecord | None:
        """Return the row of a day; None if the day was never requested."""
        return self.rows.get(day)

    def days(self, outcome: str = HELD) -> list[date]:
        """Return the days with an outcome, in order."""
        return sorted(day for day, row in self.rows.items() if row.outcome == outcome)


def _read_table(path: Path) -> tuple[pa.Table | None, FileStat]:
    """Read a ledger and its version. A missing or damaged one is None."""
    try:
        data, stat = storage.read(path)
    except FileNotFoundError:
        return None, storage.ABSENT
    except OSError as error:
        # The ledger itself may be good, and only it knows the failed days.
        raise StorageError(f"{path} cannot be read ({error.strerror}). Nothing was changed.") from error
    try:
        return _with_new_names(parquet.parse_table(path, data)), stat
    except DamagedFileError:
        return None, stat


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of a ledger. Derive those that are missing in an older version from the others.

    Args:
        columns: Names of columns. The result may have more.

    Raises:
        DamagedFileError: The ledger cannot be read, or a column is missing and cannot be derived.
    """
    wanted = list(dict.fromkeys(columns))
    if _NEW.isdisjoint(wanted):
        return parquet.read_table(path, wanted)
    also = () if _TOLD.isdisjoint(wanted) else ("bases",)
    try:
        return parquet.read_table(path, list(dict.fromkeys((*wanted, *also))))
    except DamagedFileError as error:
        table = _with_new_names(parquet.read_table(path))
        with suppress(pa.ArrowException, ValueError):
            table = _with_told_columns(table)
        if not set(wanted) <= set(table.column_names):
            raise error from None
        return table


_TOLD = frozenset({"findings", "bases", "retry"})
"""Columns that a ledger of version 0.1 does not have or stores in another form."""

_NEW = _TOLD | {"version"}
"""The same, of any older version."""

_OLD_NAMES = {"mtime_ns": "version"}
"""Columns of older versions that have another name today. The next write gives them today's name."""


def _with_new_names(table: pa.Table) -> pa.Table:
    if _OLD_NAMES.keys().isdisjoint(table.column_names):
        return table
    return table.rename_columns([_OLD_NAMES.get(name, name) for name in table.column_names])


def _with_told_columns(table: pa.Table) -> pa.Table:
    """Add the columns that a ledger of version 0.1 does not have."""
    names = table.column_names
    if "bases" in names or "findings" not in names:
        return table
    texts = pc.unique(table["findings"]).to_pylist()
    derived = {text: finding_columns(with_fields(findings_.from_json(text or "[]"))) for text in texts}
    # Version 0.1 left a day final that failed after it was not listed, so nobody tried it again.
    if {"final", "outcome"} <= set(names):
        stays = pc.and_(table["final"], pc.not_equal(table["outcome"], pa.scalar(FAILED)))
        table = _with(table, "final", stays)
    rows: list[Mapping[str, Any]] = [derived[text] for text in table["findings"].to_pylist()]
    for name in FindingColumns.__annotations__:
        column = pa.chunked_array([pa.array([row[name] for row in rows], LEDGER_SCHEMA.field(name).type)])
        table = _with(table, name, column) if name in names else table.append_column(LEDGER_SCHEMA.field(name), column)
    return table


def _believable(table: pa.Table) -> pa.Table:
    """Return the columns of a ledger with the types of :data:`LEDGER_SCHEMA` and without impossible numbers and times.

    A request time in the future comes from a wrong clock and becomes null. Other nulls become the column's default, if
    it has one.

    Raises:
        ArrowException: The table is not a ledger.
        ValueError: The columns match no version.
    """
    known = [name for name in LEDGER_SCHEMA.names if name in table.column_names]
    if len(known) < min(len(LEDGER_SCHEMA.names), len(table.column_names)):
        raise ValueError("the columns match no version: a name is damaged")
    table = table.select(known).cast(pa.schema([LEDGER_SCHEMA.field(name) for name in known]))
    if "asked_at" in known:
        asked, latest = table["asked_at"], clock.naive_utc(clock.now() + clock.TOLERANCE)
        earliest = clock.midnight(ARCHIVE_BEGINS)
        possible = pc.and_(pc.less_equal(asked, pa.scalar(latest)), pc.greater_equal(asked, pa.scalar(earliest)))
        table = _with(table, "asked_at", pc.if_else(possible, asked, pa.scalar(None, _UTC_US)))
    if "attempts" in known:
        table = _with(table, "attempts", pc.max_element_wise(table["attempts"], 0))
    for name in known:
        if table[name].null_count and _DEFAULTS.get(name) is not None:
            table = _with(table, name, table[name].fill_null(_DEFAULTS[name]))
    return table


def _with(table: pa.Table, name: str, column: pa.ChunkedArray[Any]) -> pa.Table:
    return table.set_column(table.column_names.index(name), LEDGER_SCHEMA.field(name), column)


def recorded(path: Path) -> dict[date, DayRecord]:
    """Return the stored days and those that failed as damaged, with nothing but the identity and hashes of their files.

    Args:
        path: The ledger. A missing or damaged one has no days.

    Raises:
        StorageError: The system cannot read the ledger.
    """
    table, _ = _read_table(path)
    if table is None:
        return {}
    for name in {"file_sha256", "month_sha256"}.difference(table.column_names):  # a ledger of an older version
        table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    try:
        on_record = pc.field("file_sha256").is_valid() | pc.field("month_sha256").is_valid()
        table = table.filter((pc.field("outcome") == HELD) | on_record)
        rows = table.select(["outcome", "rows", "bytes", "version", "file_sha256", "month_sha256"]).to_pylist()
        return {day: DayRecord(day, **row) for day, row in zip(parquet.days_of(table), rows, strict=True)}
    except (KeyError, pa.ArrowInvalid):  # the columns match no version
        return {}


class StoredContent(NamedTuple):
    """Content of a stored day: the hash of its values, and when its rows were fetched (µs, UTC)."""

    sha256: str | None
    fetched_us: int | None


def stored_contents(path: Path, first: date, last: date) -> dict[date, StoredContent]:
    """Return the content of each stored day, eight times as fast as reading a whole ledger of ten years.

    Args:
        path: The ledger. A missing or damaged one has no days.
        last: Last UTC day, inclusive.

    Raises:
        StorageError: The system cannot read the ledger.
    """
    table, _ = _read_table(path)
    try:
        if table is None:
            return {}
        inside = (pc.field("outcome") == HELD) & (pc.field("day") >= first) & (pc.field("day") <= last)
        rows = table.select(["day", "outcome", "content_sha256", "fetched_at"]).filter(inside)
        columns = parquet.days_of(rows), rows["content_sha256"].to_pylist(), parquet.us_of(rows, "fetched_at")
        return {day: StoredContent(sha256, at) for day, sha256, at in zip(*columns, strict=True)}
    except (KeyError, pa.ArrowInvalid):  # the columns match no version
        return {}


def refresh_ledger(
    ledger: Ledger, layout: Layout, key: SeriesKey, on_disk: Mapping[date, DayFile] | None = None
) -> list[date]:
    """Refresh a series' ledger from the files on disk. Return the days that changed.

    New days are trusted by their footer, if it names this day and series. A file is read whole and verified against its
    footer if its size or time differs from the ledger, or if it was found damaged before.

    Args:
        on_disk: The stored days, for a ledger with a part of the days. None lists the folder.
    """
    on_disk = day_files(layout, key) if on_disk is None else on_disk
    changed: list[date] = []
    for day, stored in on_disk.items():
        row = ledger.get(day)
        if row is not None and row.matches_file(stored.stat):
            continue
        changed.append(day)
        ledger.put(row_of_file(stored, row))
    for day in ledger.days(HELD):
        if day not in on_disk:
            changed.append(day)
            gone = f"{layout.file(key, day)} is gone. Backfill that day to restore it."
            ledger.put(after(ledger.rows[day], day, Lost(gone)))
    return changed


def row_of_file(stored: DayFile, row: DayRecord | None) -> DayRecord:
    """Return the row of a day whose file does not match the ledger: stored, or failed as damaged.

    Args:
        row: The ledger's row of the day. If None, the file is trusted by its footer, if that names this day and series.
            Otherwise the file was changed or found damaged before. It is read whole and verified against its footer and
            the hash on record.
    """
    try:
        if row is None:
            return record_of(read_record(stored), stored.stat)
        return _verified(stored, row)
    except DamagedFileError as error:
        return after(row, stored.day, Lost(str(error), damaged=True))


def _verified(stored: DayFile, row: DayRecord) -> DayRecord:
    """Read a file that does not match the ledger, and return its row.

    Raises:
        DamagedFileError: The file does not match its footer, or was changed after it was written.
    """
    try:
        data, _ = storage.read(stored.path)
    except OSError as error:
        raise parquet.damaged(stored.path, error) from error
    sha256 = hashlib.sha256(data).hexdigest()
    as_written = row.sha256_of(stored) == sha256
    if not as_written and row.outcome != HELD and row.sha256_of(stored) is not None:
        raise DamagedFileError(CHANGED.format(path=stored.path))
    record, table = parse_day_file(stored, data)
    schema = lake_schema(stored.key.market, stored.key.data_type)
    if not as_written and (not table.schema.equals(schema) or content_sha256(table) != record.content_sha256):
        raise DamagedFileError(
            f"{stored.path} does not match its footer: it was changed after it was written. "
            "Backfill that day to replace it."
        )
    found = record_of(record, stored.stat, attempts=max(1, row.attempts))
    # In a closed month, another day may have been written since. `scrub` sees all of its days and decides.
    if not as_written and not stored.of_month and is_changed(stored, row, record):
        raise DamagedFileError(CHANGED.format(path=stored.path))
    if row.outcome == HELD and _same_version(row, found):
        # For example, a month was closed. The ledger has more than the footer: candles were classified since.
        # The month's hash stays: other days of the month show if it was rewritten.
        return replace(row, bytes=stored.stat.bytes, version=stored.stat.version)
    return replace(found, month_sha256=sha256) if stored.of_month else replace(found, file_sha256=sha256)


def is_changed(stored: DayFile, row: DayRecord, record: Provenance) -> bool:
    """Return True if a file whose hash differs from the ledger is damaged, and not another version of the day.

    A killed run may have written a newer version without updating the ledger.
    """
    if row.sha256_of(stored) is None:
        return False
    if row.outcome != HELD or row.matches_file(stored.stat):
        return True
    found = record_of(record, stored.stat)
    newer = found.fetched_at is not None and row.fetched_at is not None and found.fetched_at > row.fetched_at
    return not newer and (found.content_sha256, found.final) == (row.content_sha256, row.final)


def _same_version(row: DayRecord, other: DayRecord) -> bool:
    """Return True if two ledger rows describe the same content, fetched at the same time."""
    version = attrgetter("content_sha256", "fetched_at", "final", "source", "etag")
    return bool(version(row) == version(other))
