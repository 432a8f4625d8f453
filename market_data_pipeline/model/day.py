"""A day of a series: its record, its stages, and the events that change the record. Pure.

Reading and writing records does not belong here (``lake.ledger``). Neither do the needs of a day (``needs``) or the
state that users see (``model.states``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, TypedDict

from market_data_pipeline import clock
from market_data_pipeline.model import findings
from market_data_pipeline.model.findings import FLAT, MISSING, Basis, Finding, Verdict
from market_data_pipeline.model.provenance import Provenance
from market_data_pipeline.model.series import SeriesKey

HELD, FAILED, EMPTY, NOT_LISTED = "held", "failed", "empty", "not_listed"
"""Outcomes of a day in a ledger."""

LASTING = frozenset({"checksum", "malformed", "conflict", "absent", "unproven"})
"""Kinds of failure that repeat as long as the archive gives the same answer."""

WITHOUT_ARCHIVE = frozenset({"absent", "unpublished", "host_off", "rest_answer"})
"""Kinds of failure if the archive did not have the day, and REST gave no rows."""

REFUSED = LASTING - WITHOUT_ARCHIVE
"""Kinds of failure if the archive was fetched and refused."""

DAMAGED, GONE = "damaged", "gone"
"""Kinds of failure if the stored file is unreadable or missing."""


@dataclass(frozen=True, slots=True)
class FileStat:
    """Cheap identity of a file's version.

    Attributes:
        bytes: Size in bytes.
        version: Number that the store gives to each version of a file. Compare it for equality only. On disk it is the
            modification time in nanoseconds.
    """

    bytes: int
    version: int


@dataclass(frozen=True, slots=True)
class DayRecord:
    """The ledger's record of one day of one series.

    Attributes:
        outcome: ``held`` (stored in a readable file, final or provisional), ``failed`` (fetched, but not stored),
            ``empty`` (fetched without rows, e.g. today before the first candle closed) or ``not_listed``.
        final: True if the day is final. Not-listed days are final.
        rows: Rows in the file.
        bytes: Size of the file in bytes.
        version: The store's number for the version of the file; see :class:`FileStat`.
        source: Sources of the rows, joined by ``+``.
        checksum: Status of the archive's checksum.
        archive_sha256: SHA-256 of the zip.
        etag: ETag of the zip.
        last_modified: HTTP date of the zip.
        content_sha256: SHA-256 over the column values.
        first_key: Key of the first row.
        last_key: Key of the last row.
        integrity: Worst severity of the integrity check: info (passed), warn or error.
        gaps: Worst severity of the gaps check.
        missing: Number of rows missing inside the day, as far as known.
        quiet: Number of flat candles (no trade).
        findings: All findings as JSON.
        verdicts: The distinct verdicts of the gaps check, joined by ``+``.
        bases: The distinct bases of the findings, joined by ``+``.
        retry: True if another attempt may change a verdict.
        replaced_by: ETag of an archive that replaces the source of the stored rows. Set by the sweep over the listing,
            or when such an archive was refused. The day is fetched again; after a refusal, only for another archive or
            another checksum. None if the stored rows came from the current archive.
        checksum_etag: ETag of the ``.CHECKSUM`` of the zip that the newest attempt refused. None if it refused no zip,
            or if the zip had no ``.CHECKSUM``.
        attempts: Number of attempts since the last success. The backoff grows with it.
        failure: Kind of failure of the newest attempt. None if it succeeded. A stored day stays stored after a failure.
        fetched_at: Time of the fetch of the rows (UTC, without zone).
        asked_at: Time of the newest attempt (UTC, without zone).
        file_sha256: SHA-256 of all bytes of the day's own file as written. None if the file is older than this column
            and was not verified since, or if its month is closed. It stays on record if the file is damaged.
        month_sha256: SHA-256 of all bytes of the file of the day's closed month. None if the month is not closed.
    """

    day: date
    outcome: str
    final: bool = False
    rows: int = 0
    bytes: int = 0
    version: int = 0
    source: str | None = None
    checksum: str | None = None
    archive_sha256: str | None = None
    etag: str | None = None
    last_modified: str | None = None
    content_sha256: str | None = None
    first_key: int | None = None
    last_key: int | None = None
    integrity: str | None = None
    gaps: str | None = None
    missing: int = 0
    quiet: int = 0
    findings: str = "[]"
    verdicts: str = ""
    bases: str = ""
    retry: bool = False
    replaced_by: str | None = None
    checksum_etag: str | None = None
    attempts: int = 0
    failure: str | None = None
    reason: str | None = None
    fetched_at: datetime | None = None
    asked_at: datetime | None = None
    # Hashes of files are not part of equality: the same rows can be written in different files.
    file_sha256: str | None = field(default=None, compare=False)
    month_sha256: str | None = field(default=None, compare=False)

    @property
    def is_stored_final(self) -> bool:
        """Return True if the day is stored and final."""
        return self.outcome == HELD and self.final

    @property
    def is_marked(self) -> bool:
        """Return True if another archive was listed after the last fetch."""
        return self.replaced_by is not None and self.attempts == 0

    @property
    def open(self) -> bool:
        """Return True if a gap of a stored day has a verdict that another attempt may change."""
        return self.outcome == HELD and self.retry

    def matches_file(self, stat: FileStat) -> bool:
        """Return True if the day is stored in a file of this size and version."""
        return self.outcome == HELD and (self.bytes, self.version) == (stat.bytes, stat.version)

    def sha256_of(self, stored: DayFile) -> str | None:
        """Return the recorded SHA-256 of all bytes of the file that has the day's rows."""
        return self.month_sha256 if stored.of_month else self.file_sha256

    def rules_out(self, stored: DayFile, sha256: str) -> bool:
        """Return True if a file with this SHA-256 is damaged: another hash is on record for its size and time.

        A file with another modification time may be a newer version from a killed run.
        """
        expected = self.sha256_of(stored)
        return expected not in (None, sha256) and (self.outcome != HELD or self.matches_file(stored.stat))

    def findings_list(self) -> tuple[Finding, ...]:
        """Return the parsed findings."""
        return findings.from_json(self.findings)


class FindingColumns(TypedDict):
    """Ledger columns that are derived from the findings of a day."""

    findings: str
    verdicts: str
    bases: str
    retry: bool


def finding_columns(found: Sequence[Finding]) -> FindingColumns:
    """Return the ledger columns that are derived from findings."""
    return FindingColumns(
        findings=findings.to_json(found),
        verdicts=findings.verdicts_of(found),
        bases=findings.bases_of(found),
        retry=any(finding.open for finding in found),
    )


# --- stages ---------------------------------------------------------------------------------------------------------


class Stage(StrEnum):
    """Stage of a day between never fetched and final."""

    NEW = "new"
    """Never fetched."""
    NOT_LISTED = "not_listed"
    """The symbol was not traded on that day."""
    EMPTY = "empty"
    """Fetched, but no source had rows yet."""
    OUTAGE = "outage"
    """Final without rows, because nothing was traded all day."""
    RETRY = "retry"
    """Not stored. The last attempt failed temporarily, the file was lost, or a new archive is published."""
    ABSENT = "absent"
    """Not stored. No source has the day. Only a later archive helps."""
    REFUSED = "refused"
    """Not stored. The archive's bytes were refused. Only other bytes, or another checksum, help."""
    PROVISIONAL = "provisional"
    """Stored from REST, or from an archive without a checksum. It waits for its archive."""
    PROVISIONAL_RETRY = "provisional_retry"
    """Provisional, and another attempt may add rows at once."""
    PROVISIONAL_REFUSED = "provisional_refused"
    """Provisional, and the archive's bytes were refused."""
    FINAL = "final"
    """Stored as in its archive. Nothing is left to do."""
    FINAL_RETRY = "final_retry"
    """Final, with gaps that REST may still fill."""
    FINAL_REFUSED = "final_refused"
    """Final, but an archive that should replace it was refused. The stored rows stay."""
    REPLACED = "replaced"
    """Final, but another archive is published. It must be fetched."""
    PUBLISHED = "published"
    """Provisional, and a new archive is published."""


def stage_of(record: DayRecord | None) -> Stage:
    """Return the stage of a day.

    Args:
        record: The day's record. None if it was never fetched.
    """
    if record is None:
        return Stage.NEW
    if record.outcome == NOT_LISTED:
        return Stage.NOT_LISTED
    if record.outcome == HELD:
        return _stage_of_final(record) if record.final else _stage_of_provisional(record)
    if record.is_marked:
        return Stage.RETRY
    if record.outcome == EMPTY and record.final:
        return Stage.OUTAGE
    if record.failure in REFUSED:
        return Stage.REFUSED
    if record.failure in LASTING:
        return Stage.ABSENT
    return Stage.EMPTY if record.outcome == EMPTY else Stage.RETRY


def _stage_of_final(record: DayRecord) -> Stage:
    if record.is_marked:
        return Stage.REPLACED
    if record.failure in LASTING:
        return Stage.FINAL_REFUSED
    if record.replaced_by is not None:
        return Stage.REPLACED
    # A temporary failure does not count: the stored rows are final, and nothing replaces them.
    return Stage.FINAL_RETRY if record.open or Basis.RULE_REPLACED in record.bases else Stage.FINAL


def _stage_of_provisional(record: DayRecord) -> Stage:
    if record.is_marked:
        return Stage.PUBLISHED
    if record.failure in REFUSED:
        return Stage.PROVISIONAL_REFUSED
    if record.failure in LASTING:
        return Stage.PROVISIONAL
    if record.replaced_by is not None:
        return Stage.PUBLISHED
    again = record.open or record.failure is not None or Basis.RULE_REPLACED in record.bases
    return Stage.PROVISIONAL_RETRY if again else Stage.PROVISIONAL


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored:
    """Rows were written.

    Attributes:
        stat: Size and modification time of the file.
        sha256: SHA-256 of all bytes of the day's own file. None if not known.
        at: Time of the newest attempt (UTC). None means the time in the footer.
    """

    footer: Provenance
    stat: FileStat
    sha256: str | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The sources were fetched again, and the stored rows stay unchanged.

    Attributes:
        at: Time of the attempt (UTC).
        archive: True if the day no longer waits for the archive that the sweep found.
    """

    at: datetime
    archive: bool = False


@dataclass(frozen=True, slots=True)
class NothingThere:
    """No source has rows yet, or none ever will.

    Attributes:
        at: Time of the attempt (UTC).
        findings: Reasons why there will be no rows. Empty if rows may still come.
    """

    at: datetime
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Unlisted:
    """By the listing, the symbol was not traded on the day.

    Attributes:
        at: Time of the look at the listing (UTC).
    """

    at: datetime


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt to fetch the day failed.

    Attributes:
        kind: Kind of the failure in one word.
        at: Time of the attempt (UTC).
        etag: ETag of the refused zip. None if no zip came.
        checksum_etag: ETag of the ``.CHECKSUM`` of that zip.
    """

    kind: str
    reason: str
    at: datetime
    etag: str | None = None
    checksum_etag: str | None = None


@dataclass(frozen=True, slots=True)
class OtherArchive:
    """The listing has another archive, or another checksum, than the record.

    Attributes:
        etag: ETag of the archive in the listing.
    """

    etag: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The day's file is unreadable or missing.

    Attributes:
        reason: Message that describes the fault.
        damaged: True if a file exists. Its hashes stay on record, so that the file never counts as good.
    """

    reason: str
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Classified:
    """Flat candles were compared with the rest of the market.

    Attributes:
        findings: All new findings of the day. They replace the old ones.
    """

    findings: tuple[Finding, ...]


Event = Stored | Confirmed | NothingThere | Unlisted | Failed | OtherArchive | Lost | Classified


def after(record: DayRecord | None, day: date, event: Event) -> DayRecord:
    """Return the record of a day after an event.

    Args:
        record: The record before. None if the day was never fetched.
    """
    known = record or DayRecord(day=day, outcome=FAILED)
    match event:
        case Stored(footer=footer, stat=stat, sha256=sha256, at=at):
            row = record_of(footer, stat, attempts=next_attempt(record), file_sha256=sha256)
            return row if at is None else replace(row, asked_at=clock.naive_utc(at))
        case Confirmed(at=at, archive=archive):
            good = replace(known, failure=None, reason=None, checksum_etag=None, attempts=next_attempt(record))
            return replace(good, asked_at=clock.naive_utc(at), replaced_by=None if archive else known.replaced_by)
        case NothingThere(at=at, findings=found):
            return _without_rows(record, DayRecord(day, EMPTY, final=bool(found)), at, found)
        case Unlisted(at=at):
            return _without_rows(record, DayRecord(day, NOT_LISTED, final=True), at)
        case Failed():
            return _failed(record, known, event)
        case OtherArchive(etag=etag):
            return replace(known, replaced_by=etag, attempts=0)
        case Lost(reason=reason, damaged=damaged):
            lost = DayRecord(day, FAILED, failure=GONE, reason=reason, attempts=known.attempts)
            if not damaged:
                return lost
            return replace(lost, failure=DAMAGED, file_sha256=known.file_sha256, month_sha256=known.month_sha256)
        case Classified(findings=found):
            return _classified(known, found)


def next_attempt(record: DayRecord | None) -> int:
    """Return the number of the next attempt. It is 1 after a success, also for a day that still grows.

    Args:
        record: The record so far. None if the day was never fetched.
    """
    if record is None or (record.outcome == HELD and record.failure is None and not record.open):
        return 1
    return record.attempts + 1


def _without_rows(
    record: DayRecord | None, empty: DayRecord, at: datetime, found: tuple[Finding, ...] = ()
) -> DayRecord:
    if record is not None and record.outcome == empty.outcome == NOT_LISTED:
        return record
    attempts = record.attempts if record else 0
    return replace(
        empty,
        **finding_columns(found),
        missing=sum(finding.count for finding in found),
        # A day that is not over is fetched each hour, and may have no rows for a while.
        attempts=attempts + 1 if empty.outcome == EMPTY and at.date() > empty.day else attempts,
        replaced_by=record.replaced_by if record and not empty.final else None,
        asked_at=clock.naive_utc(at),
    )


def _failed(record: DayRecord | None, known: DayRecord, event: Failed) -> DayRecord:
    """Return the record after a failed attempt. A stored day stays stored, with the failure on record."""
    stored, etag = known.outcome == HELD, event.etag
    return replace(
        known,
        outcome=HELD if stored else FAILED,
        final=known.final and stored,
        attempts=next_attempt(record),
        failure=event.kind,
        reason=event.reason,
        # The ETag of a stored day stays that of its rows. The refused archive is the one that would replace them.
        etag=known.etag if stored else etag,
        replaced_by=etag if stored and etag and etag != known.etag else known.replaced_by,
        checksum_etag=event.checksum_etag,
        asked_at=clock.naive_utc(event.at),
    )


def _classified(known: DayRecord, found: tuple[Finding, ...]) -> DayRecord:
    """Return the record with findings that are newer than the footer.

    A new unconfirmed verdict is due at once, so that REST can confirm it. The attempts at another archive
    still count: zero would mean that this archive was not tried yet.
    """
    columns = finding_columns(found)
    unconfirmed = Verdict.UNCONFIRMED in columns["verdicts"].split("+")
    is_new = unconfirmed and Verdict.UNCONFIRMED not in known.verdicts.split("+")
    gaps = findings.worst(found, "gaps").value
    return replace(known, **columns, gaps=gaps, attempts=0 if is_new and known.replaced_by is None else known.attempts)


def record_of(footer: Provenance, stat: FileStat, *, attempts: int = 1, file_sha256: str | None = None) -> DayRecord:
    """Return the record of a day whose file has a footer."""
    newest = max(footer.parts, key=lambda part: part.fetched_at, default=None)
    archive = next((part for part in footer.parts if part.sha256), None)
    return DayRecord(
        day=footer.day,
        outcome=HELD,
        final=footer.final,
        rows=footer.rows,
        bytes=stat.bytes,
        version=stat.version,
        source="+".join(dict.fromkeys(part.source.value for part in footer.parts)) or None,
        checksum=archive.checksum.value if archive and archive.checksum else None,
        archive_sha256=archive.sha256 if archive else None,
        etag=archive.etag if archive else None,
        last_modified=archive.last_modified if archive else None,
        content_sha256=footer.content_sha256,
        first_key=footer.first_key,
        last_key=footer.last_key,
        integrity=findings.worst(footer.findings, "integrity").value,
        gaps=findings.worst(footer.findings, "gaps").value,
        missing=sum(f.count for f in footer.findings if f.check == "gaps" and f.rule in MISSING),
        quiet=sum(f.count for f in footer.findings if f.check == "gaps" and f.rule in FLAT),
        **finding_columns(footer.findings),
        attempts=attempts,
        fetched_at=clock.naive_utc(newest.fetched_at if newest else footer.fetched_at),
        asked_at=clock.naive_utc(footer.fetched_at),
        file_sha256=file_sha256,
    )


# --- transitions ----------------------------------------------------------------------------------------------------

_PROVISIONAL = frozenset({Stage.PROVISIONAL, Stage.PROVISIONAL_RETRY})
_FINAL = frozenset({Stage.FINAL, Stage.FINAL_RETRY})
_LOST: Mapping[type[Event], frozenset[Stage]] = {Lost: frozenset({Stage.RETRY})}
_NOT_STORED: Mapping[type[Event], frozenset[Stage]] = {
    Stored: _PROVISIONAL | _FINAL,
    NothingThere: frozenset({Stage.EMPTY, Stage.OUTAGE}),
    Unlisted: frozenset({Stage.NOT_LISTED}),
    Failed: frozenset({Stage.RETRY, Stage.ABSENT, Stage.REFUSED}),
    **_LOST,
}
_STORED_PROVISIONAL: Mapping[type[Event], frozenset[Stage]] = {
    Stored: _PROVISIONAL | _FINAL,
    Confirmed: _PROVISIONAL | {Stage.PUBLISHED},
    Failed: _PROVISIONAL | {Stage.PROVISIONAL_REFUSED, Stage.PUBLISHED},
    Classified: _PROVISIONAL | {Stage.PROVISIONAL_REFUSED, Stage.PUBLISHED},
    OtherArchive: frozenset({Stage.PUBLISHED}),
    **_LOST,
}
_STORED_FINAL: Mapping[type[Event], frozenset[Stage]] = {
    Stored: _FINAL,
    Confirmed: _FINAL | {Stage.REPLACED},
    Failed: _FINAL | {Stage.FINAL_REFUSED, Stage.REPLACED},
    Classified: _FINAL | {Stage.FINAL_REFUSED, Stage.REPLACED},
    OtherArchive: frozenset({Stage.REPLACED}),
    **_LOST,
}

_WAITING: Mapping[type[Event], frozenset[Stage]] = {**_NOT_STORED, OtherArchive: frozenset({Stage.RETRY})}

TRANSITIONS: Mapping[Stage, Mapping[type[Event], frozenset[Stage]]] = {
    **dict.fromkeys((Stage.NEW, Stage.NOT_LISTED), _NOT_STORED),
    **dict.fromkeys((Stage.EMPTY, Stage.OUTAGE, Stage.RETRY, Stage.ABSENT, Stage.REFUSED), _WAITING),
    **dict.fromkeys(
        (Stage.PROVISIONAL, Stage.PROVISIONAL_RETRY, Stage.PROVISIONAL_REFUSED, Stage.PUBLISHED), _STORED_PROVISIONAL
    ),
    **dict.fromkeys((Stage.FINAL, Stage.FINAL_RETRY, Stage.FINAL_REFUSED, Stage.REPLACED), _STORED_FINAL),
}
"""The stages after each event, by the stage before it. An event without an entry does not happen."""


class DayFile(NamedTuple):
    """A day of a series and the file with its rows.

    Attributes:
        path: The day's own file, or the file of its closed month.
        stat: Identity of the file's version. In a closed month, each day has its share of the bytes.
    """

    key: SeriesKey
    day: date
    path: Path
    stat: FileStat

    @property
    def of_month(self) -> bool:
        """Return True if the file has the whole month."""
        return len(self.path.stem) < len("2024-01-01")
