"""The ledger of a series: one row for each day that was ever asked for.

It is the index that makes status, coverage and the ``quality`` views fast, and the only home of failures. What it says
of held days is derived from the files' footers, so it can be made again from them; :func:`reconcile` does so for the
days where the folder and the ledger differ (a crash between file and ledger, a ledger deleted, a file changed by hand).
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from datetime import date, datetime, time
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError, StorageError
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.lake.checksums import CHANGED, Recorded, content_sha256
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import days_on_disk, parse_whole, read_record
from market_data_pipeline.model import findings as findings_
from market_data_pipeline.model.datasets import ARCHIVE_BEGINS
from market_data_pipeline.model.day import (
    HELD,
    DayFile,
    DayRecord,
    FileStat,
    Lost,
    ToldColumns,
    after,
    record_of,
    told_columns,
)
from market_data_pipeline.model.findings import Basis, Severity
from market_data_pipeline.model.provenance import Provenance
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.model.version_1 import with_fields

_UTC_US = pa.timestamp("us")
SCHEMA = pa.schema(
    [  # type: ignore[arg-type]  # mypy joins the types of the columns to object
        ("day", pa.date32()),
        ("outcome", pa.string()),
        ("final", pa.bool_()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("source", pa.string()),
        ("checksum", pa.string()),
        ("archive_sha256", pa.string()),
        ("etag", pa.string()),
        ("last_modified", pa.string()),
        ("content_sha256", pa.string()),
        ("first_key", pa.int64()),
        ("last_key", pa.int64()),
        ("integrity", pa.string()),
        ("gaps", pa.string()),
        ("missing", pa.int64()),
        ("quiet", pa.int64()),
        ("findings", pa.string()),
        ("verdicts", pa.string()),
        ("bases", pa.string()),
        ("retry", pa.bool_()),
        ("replaced_by", pa.string()),
        ("checksum_etag", pa.string()),
        ("attempts", pa.int64()),
        ("failure", pa.string()),
        ("reason", pa.string()),
        ("fetched_at", _UTC_US),
        ("asked_at", _UTC_US),
        ("file_sha256", pa.string()),
        ("month_sha256", pa.string()),
    ]
)


_FIELDS = tuple(one.name for one in fields(DayRecord))
_DEFAULTS = {one.name: one.default for one in fields(DayRecord) if one.default is not MISSING}

UNSETTLED = (
    ~pc.field("final")
    | pc.field("replaced_by").is_valid()
    | pc.field("retry")
    | pc.match_substring(pc.field("bases"), Basis.RULE_REPLACED)
)
"""Rows of days that may have to be asked for again: not final, open, or of an archive that was replaced."""


CHECKS_DO_NOT_PASS = (pc.field("outcome") == HELD) & (
    pc.field("integrity").isin([Severity.WARN.value, Severity.ERROR.value])
    | pc.field("gaps").isin([Severity.WARN.value, Severity.ERROR.value])
    | pc.field("failure").is_valid()
)
"""Ledger rows of stored days whose checks warn or fail: all that are not complete are among them."""


class Ledger:
    """A series' ledger in memory, by day."""

    def __init__(self, rows: Iterable[DayRecord] = ()) -> None:
        self.rows: dict[date, DayRecord] = {row.day: row for row in rows}

    @classmethod
    def read(cls, path: Path, where: pc.Expression | None = None) -> Self:
        """Read a ledger; one that is absent or damaged is empty, since it can be made again from the footers.

        Args:
            path: The ledger.
            where: Which of its rows; all by default. Of ten years, those few days that are not settled are read thirty
                times as fast. An older version's ledger, which lacks a column, is read whole.
        """
        table = _read_table(path)
        if table is None:
            return cls()
        try:
            table = _with_told_columns(table)
            if where is not None:
                with suppress(pa.ArrowInvalid):
                    table = table.filter(where)
            return cls(DayRecord(**row) for row in _believable(table).to_pylist())
        except (TypeError, ValueError, OverflowError, pa.ArrowException):
            return cls()

    def write(self, path: Path) -> None:
        """Write the ledger, atomically."""
        ordered = [self.rows[day] for day in sorted(self.rows)]
        columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in ordered] for name in _FIELDS}
        parquet.write_table(path, pa.table(columns, schema=SCHEMA))

    def put(self, row: DayRecord) -> None:
        """Set the row of its day."""
        self.rows[row.day] = row

    def get(self, day: date) -> DayRecord | None:
        """The row of a day, None where the day was never asked for."""
        return self.rows.get(day)

    def days(self, outcome: str = HELD) -> list[date]:
        """Days with an outcome, in order."""
        return sorted(day for day, row in self.rows.items() if row.outcome == outcome)


def _read_table(path: Path, columns: list[str] | None = None) -> pa.Table | None:
    try:
        return parquet.read_table(path, columns)
    except DamagedFileError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT):
            # Not its fault: what it says of failed days is nowhere else.
            raise StorageError(f"{path} cannot be read ({cause.strerror}). Nothing was changed.") from cause
        return None


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Return columns of a ledger; those that an older version did not have are worked out from the others.

    Args:
        path: The ledger.
        columns: Names of columns; more may come.

    Raises:
        DamagedFileError: the ledger cannot be read, or lacks a column in every version.
    """
    wanted = list(dict.fromkeys(columns))
    if _NEW.isdisjoint(wanted):
        return parquet.read_table(path, wanted)
    try:
        return parquet.read_table(path, list(dict.fromkeys((*wanted, "bases"))))
    except DamagedFileError as error:
        table = parquet.read_table(path)
        with suppress(pa.ArrowException, ValueError):
            table = _with_told_columns(table)
        if not set(wanted) <= set(table.column_names):
            raise error from None
        return table


_NEW = frozenset({"findings", "bases", "retry"})
"""Columns that a ledger of version 0.1 does not have, or has in another form."""


def _with_told_columns(table: pa.Table) -> pa.Table:
    """Return the table of a ledger with the columns that version 0.1 did not have."""
    names = table.column_names
    if "bases" in names or "findings" not in names:
        return table
    texts = pc.unique(table["findings"]).to_pylist()
    told = {text: told_columns(with_fields(findings_.from_json(text or "[]"))) for text in texts}
    rows: list[Mapping[str, Any]] = [told[text] for text in table["findings"].to_pylist()]
    for name in ToldColumns.__annotations__:
        column = pa.chunked_array([pa.array([row[name] for row in rows], SCHEMA.field(name).type)])
        table = _with(table, name, column) if name in names else table.append_column(SCHEMA.field(name), column)
    return table


def _believable(table: pa.Table) -> pa.Table:
    """The columns of a ledger in the types of :data:`SCHEMA`, without numbers and times that nobody can have written.

    A day that was asked for in the future was so while the clock was wrong: when that was is not known. Nothing that
    may lack is null.

    Raises:
        ArrowException: it is no ledger.
        ValueError: it has the columns of no version.
    """
    known = [name for name in _FIELDS if name in table.column_names]
    if len(known) < min(len(_FIELDS), len(table.column_names)):
        raise ValueError("neither an older nor a newer version has these columns: a name lost a bit")
    table = table.select(known).cast(pa.schema([SCHEMA.field(name) for name in known]))
    if "asked_at" in known:
        asked, latest = table["asked_at"], clock.naive_utc(clock.now() + clock.TOLERANCE)
        earliest = datetime.combine(ARCHIVE_BEGINS, time())
        told = pc.and_(pc.less_equal(asked, pa.scalar(latest)), pc.greater_equal(asked, pa.scalar(earliest)))
        table = _with(table, "asked_at", pc.if_else(told, asked, pa.scalar(None, _UTC_US)))
    if "attempts" in known:
        table = _with(table, "attempts", pc.max_element_wise(table["attempts"], 0))
    for name in known:
        if table[name].null_count and _DEFAULTS.get(name) is not None:
            table = _with(table, name, table[name].fill_null(_DEFAULTS[name]))
    return table


def _with(table: pa.Table, name: str, column: pa.ChunkedArray[Any]) -> pa.Table:
    return table.set_column(table.column_names.index(name), SCHEMA.field(name), column)


def days_held(path: Path) -> list[date]:
    """The days that are held; forty times as fast as all that a ledger says of them.

    Args:
        path: The ledger; one that is absent or damaged knows of no day.

    Raises:
        StorageError: the system refuses to read the ledger.
    """
    table = _read_table(path, ["day", "outcome"])
    if table is None or table.column_names != ["day", "outcome"]:
        return []
    outcomes = zip(parquet.days_of(table), table["outcome"].to_pylist(), strict=True)
    return [day for day, outcome in outcomes if outcome == HELD]


def recorded(path: Path) -> dict[date, Recorded]:
    """Return the days that are held, and those that failed as damaged, with the hashes of their files.

    Args:
        path: The ledger; one that is absent or damaged knows of no day.

    Raises:
        StorageError: the system refuses to read the ledger.
    """
    table = _read_table(path)
    if table is None:
        return {}
    if "file_sha256" not in table.column_names:  # a ledger of an older version
        return dict.fromkeys(days_held(path), Recorded())
    try:
        on_record = pc.field("file_sha256").is_valid() | pc.field("month_sha256").is_valid()
        table = table.filter((pc.field("outcome") == HELD) | on_record)
        names = ("outcome", "rows", "bytes", "mtime_ns", "file_sha256", "month_sha256")
        columns = zip(parquet.days_of(table), *(table[name].to_pylist() for name in names), strict=True)
    except (KeyError, pa.ArrowInvalid):  # of no version that there was
        return {}
    return {
        day: Recorded(outcome == HELD, rows, FileStat(size, mtime_ns), own, month)
        for day, outcome, rows, size, mtime_ns, own, month in columns
    }


class Content(NamedTuple):
    """What is held of a day: the hash of the values in its columns, and when its rows were fetched (us, UTC)."""

    sha256: str | None
    fetched_us: int | None


def contents_held(path: Path, first: date, last: date) -> dict[date, Content]:
    """The content of each day that is held; eight times as fast as all that a ledger says of ten years.

    Args:
        path: The ledger; one that is absent or damaged knows of no day.
        first: First UTC day.
        last: Last UTC day, included.

    Raises:
        StorageError: the system refuses to read the ledger.
    """
    table = _read_table(path)
    try:
        if table is None:
            return {}
        inside = (pc.field("outcome") == HELD) & (pc.field("day") >= first) & (pc.field("day") <= last)
        held = table.select(["day", "outcome", "content_sha256", "fetched_at"]).filter(inside)
        columns = parquet.days_of(held), held["content_sha256"].to_pylist(), parquet.us_of(held, "fetched_at")
        return {day: Content(sha256, at) for day, sha256, at in zip(*columns, strict=True)}
    except (KeyError, pa.ArrowInvalid):  # of no version that there was
        return {}


def reconcile(ledger: Ledger, layout: Layout, key: SeriesKey) -> list[date]:
    """Bring a series' ledger up to what lies on the disk; return the days that changed.

    Days that the ledger does not know are believed by their footer, if it is that of the day of this series. A day
    whose file is not the one the ledger speaks of (other size or time, or one that was found damaged before) is read
    whole and proven against its footer.
    """
    on_disk = days_on_disk(layout, key)
    changed: list[date] = []
    for day, held in on_disk.items():
        row = ledger.get(day)
        if row is not None and row.speaks_of(held.stat):
            continue
        changed.append(day)
        ledger.put(row_of_file(held, row))
    for day in ledger.days(HELD):
        if day not in on_disk:
            changed.append(day)
            gone = f"{layout.file(key, day)} is gone. Backfill that day to bring it back."
            ledger.put(after(ledger.rows[day], day, Lost(gone)))
    return changed


def row_of_file(held: DayFile, row: DayRecord | None) -> DayRecord:
    """The row of a day by its file, where the ledger does not speak of that file: held, or failed as damaged.

    Args:
        held: The day and its file.
        row: What the ledger says of the day. Where it knows nothing, the file is believed by its footer, if that is of
            this day of this series; else, since the file was changed or found damaged before, it is read whole and
            proven against its footer and the hash on record, too.
    """
    try:
        if row is None:
            return record_of(read_record(held), held.stat)
        return _proven(held, row)
    except DamagedFileError as error:
        return after(row, held.day, Lost(str(error), damaged=True))


def _proven(held: DayFile, row: DayRecord) -> DayRecord:
    """The row of a file of which the ledger does not speak, once the file was read whole.

    Raises:
        DamagedFileError: it does not hold what its footer says, or not the bytes that were written.
    """
    try:
        data, _ = storage.read_bytes(str(held.path))
    except OSError as error:
        raise parquet.damaged(held.path, error) from error
    sha256 = hashlib.sha256(data).hexdigest()
    as_written = row.bytes_sha256(of_month=held.of_month) == sha256
    if not as_written and row.outcome != HELD and row.bytes_sha256(of_month=held.of_month) is not None:
        raise DamagedFileError(CHANGED.format(path=held.path))
    record, table = parse_whole(held, data)
    schema = lake_schema(held.key.market, held.key.data_type)
    if not as_written and (not table.schema.equals(schema) or content_sha256(table) != record.content_sha256):
        raise DamagedFileError(
            f"{held.path} does not hold what its footer says: it was changed after it was written. "
            "Backfill that day to replace it."
        )
    found = record_of(record, held.stat, attempts=max(1, row.attempts))
    # Of a closed month, another day may have been written since; whoever has all of its days in view decides.
    if not as_written and not held.of_month and is_changed(held, row, record):
        raise DamagedFileError(CHANGED.format(path=held.path))
    if row.outcome == HELD and _same_version(row, found):
        # E.g. of a month that was closed. What the ledger says goes further than the footer: candles were judged since.
        # The hash of a month stays as it is: other days of the month tell whether it was written anew.
        return replace(row, bytes=held.stat.bytes, mtime_ns=held.stat.mtime_ns)
    return replace(found, month_sha256=sha256) if held.of_month else replace(found, file_sha256=sha256)


def is_changed(held: DayFile, row: DayRecord, record: Provenance) -> bool:
    """Return True if a file whose bytes are not those on record is damaged, and not another version of the day.

    A run that was killed may have written a newer version that its ledger does not know.

    Args:
        held: The day and its file.
        row: What the ledger says of the day.
        record: What the file says of it.
    """
    if row.bytes_sha256(of_month=held.of_month) is None:
        return False
    if row.outcome != HELD or row.speaks_of(held.stat):
        return True
    found = record_of(record, held.stat)
    newer = found.fetched_at is not None and row.fetched_at is not None and found.fetched_at > row.fetched_at
    return not newer and (found.content_sha256, found.final) == (row.content_sha256, row.final)


def _same_version(row: DayRecord, other: DayRecord) -> bool:
    """Whether two rows are of the same rows of a day, fetched at the same time."""
    told = attrgetter("content_sha256", "fetched_at", "final", "source", "etag")
    return bool(told(row) == told(other))
