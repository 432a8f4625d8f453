"""Quarantine of refused zips: store, find, accept and release them.

A zip is stored in its series' folder below ``quarantine/``, with a JSON record of the same name. Its name has the first
digits of its sha256. An acceptance applies to exactly these bytes. Detecting a fault belongs to ``sources``, fetching
the day to ``ingest``.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError, StorageError, UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.model import version_1
from market_data_pipeline.model.day import NOT_LISTED
from market_data_pipeline.model.provenance import ChecksumStatus
from market_data_pipeline.model.series import DataType, Market, SeriesKey

logger = logging.getLogger(__name__)

CHECKSUM = "checksum"
"""The only kind of refusal that can be accepted: the bytes do not match the published checksum."""

UNKNOWN = "unknown"
"""Kind of an entry whose record cannot be read."""

_SHORT = 12
"""Number of digits of the sha256 in a file name."""
_LEAST_PREFIX = 6
_NAME = re.compile(rf"(?P<stem>.+-(?P<period>\d{{4}}-\d\d(?:-\d\d)?))\.(?P<sha256>[0-9a-f]{{{_SHORT}}})\.zip")


class Acceptance(BaseModel):
    """A person's decision to load bytes despite their wrong checksum.

    Attributes:
        by: User name on the machine.
        at: Time of the decision (UTC).
        reason: The person's reason. It may be empty.
    """

    model_config = ConfigDict(frozen=True)

    by: str
    at: datetime
    reason: str = ""


class _Record(BaseModel):
    """The JSON record of a refused zip.

    Attributes:
        series: Name of the expected series.
        day: UTC day; None for a monthly zip.
        file: Key in the archive's bucket.
        sha256: SHA-256 of the bytes, as recorded.
        kind: Kind of the refusal, as in ledgers; ``unknown`` if the record cannot be read.
        at: Time of the refusal (UTC).
        etag: ETag from the archive, without quotes.
        accepted: The acceptance; None if nobody accepted the bytes.
        beginning: The bytes were not a zip, and only their beginning is stored.
        published_sha256: SHA-256 published by the archive; None if the bytes were refused for another reason.
    """

    model_config = ConfigDict(frozen=True)

    series: str
    day: date | None = None
    file: str
    sha256: str
    kind: str
    reason: str
    at: datetime
    etag: str | None = None
    accepted: Acceptance | None = None
    beginning: bool = False
    published_sha256: str | None = None

    @model_validator(mode="after")
    def _of_version_1(self) -> Self:
        if self.kind == CHECKSUM and self.published_sha256 is None:
            object.__setattr__(self, "published_sha256", version_1.published_sha256(self.reason, self.sha256))
        return self


class RefusedZip(_Record):
    """A refused zip with its record.

    Attributes:
        key: The expected series.
        path: Path of the stored bytes.
        size: Size of the zip in bytes.
    """

    key: SeriesKey
    path: Path
    first: date
    size: int

    @property
    def name(self) -> str:
        """Return the name of its file, which identifies it to users."""
        return self.path.name

    @property
    def stem(self) -> str:
        """Return the name of the archive's zip, without ``.zip``."""
        return _stem(self.file)

    @property
    def days(self) -> list[date]:
        """Return its UTC days: one, or all of a month."""
        if self.day is not None:
            return [self.day]
        return list(clock.days_of_month(self.first))

    def read(self) -> bytes:
        """Read the bytes.

        Raises:
            DamagedFileError: The bytes changed since the refusal, or cannot be read.
        """
        try:
            data, _ = storage.read(self.path)
        except OSError as error:
            raise DamagedFileError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        if self.beginning:
            raise DamagedFileError(f"The download was not a zip. Only its beginning is stored: {data[:80]!r}.")
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise DamagedFileError(
                f"{self.path} no longer has the refused bytes: it was changed since. Retry its day instead."
            )
        return data


_DEFAULT_BYTES = 2_000_000_000
"""Default limit of all refused bytes together."""

_FILES = 20_000
"""Limit of all refused files together."""

_COPIES = 3
"""Limit of stored versions of one archive. Binance replaces an archive once or twice."""

_BEGINNING_BYTES = 1024
"""Number of stored bytes of a download that is not a zip, such as a web page."""


# --- storing --------------------------------------------------------------------------------------------------------


def store(
    layout: Layout,
    key: SeriesKey,
    archive_key: str,
    data: bytes,
    *,
    kind: str,
    reason: str,
    day: date | None,
    at: datetime,
    etag: str | None = None,
    published_sha256: str | None = None,
    most_bytes: int = _DEFAULT_BYTES,
) -> Path | None:
    """Store refused bytes with the reason. The caller must have the series' lock.

    The record of bytes that are already stored changes only if they are refused for another reason. An acceptance
    stays. A download that is not a zip is stored only in part, and only the newest one of an archive.

    Quarantine has a limit, and one series may use half of it. When it is full, older versions of archives are removed
    first, then monthly zips, the oldest first. Accepted bytes and the only version of a daily archive are never
    removed. If this does not make room, the new bytes are not stored.

    Args:
        archive_key: Key of the zip in the archive's bucket.
        kind: Kind of the refusal, as in ledgers.
        day: UTC day of the zip; None for a monthly zip.
        at: Time of the refusal (UTC).
        etag: ETag from the archive, without quotes.
        published_sha256: SHA-256 published by the archive, if the bytes have another one.
        most_bytes: Limit of all refused bytes together.

    Returns:
        Path of the stored bytes; None if there is no room.

    Raises:
        StorageError: The write failed.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    stem = _stem(archive_key)
    path = layout.quarantine(key) / f"{stem}.{sha256[:_SHORT]}.zip"
    known = _read_record(path)
    if known is not None and (known.kind, known.reason) == (kind, reason) and storage.head(path) is not None:
        return path
    stored = data if data[:2] == b"PK" else data[:_BEGINNING_BYTES]
    if not _make_room(layout, key, path, stem, len(stored), most_bytes):
        return None
    record = _Record(
        series=str(key),
        day=day,
        file=archive_key,
        sha256=sha256,
        kind=kind,
        reason=reason,
        at=at,
        etag=etag,
        accepted=known.accepted if known else None,
        beginning=len(stored) < len(data),
        published_sha256=published_sha256,
    )
    storage.put(path, stored)
    _write_record(path, record)
    return path


def _make_room(layout: Layout, key: SeriesKey, path: Path, stem: str, size: int, most_bytes: int) -> bool:
    """Remove entries until a file of this size fits. Return False if it cannot fit."""
    for entry in _surplus(list(_entries_named(layout, key, stem)), path):
        release(entry)
    sizes = {
        other: stat.bytes
        for other in storage.list_paths(layout.quarantined, "**/*.zip")
        if other != path and (stat := storage.head(other)) is not None
    }
    share = most_bytes // 2

    def has_share() -> bool:
        return size + sum(sizes[other] for other in sizes if other.parent == path.parent) <= share

    def fits() -> bool:
        return has_share() and size + sum(sizes.values()) <= most_bytes and len(sizes) < _FILES

    if fits() or size > share:
        return size <= share
    for entry in _removable([entry for entry in entries(layout) if entry.path != path]):
        if entry.key == key or has_share():
            release(entry)
            sizes.pop(entry.path, None)
        if fits():
            return True
    return False


def _surplus(versions: Sequence[RefusedZip], path: Path) -> list[RefusedZip]:
    """Return the surplus versions of one archive when another version is stored at a path."""
    others = [entry for entry in versions if entry.path != path and entry.accepted is None]
    zips = sorted((entry for entry in others if not entry.beginning), key=lambda entry: entry.at)
    return [*(entry for entry in others if entry.beginning), *zips[: max(0, len(zips) - (_COPIES - 1))]]


def _removable(found: Sequence[RefusedZip]) -> list[RefusedZip]:
    """Return the entries that may be removed to make room, in order of removal."""
    newest: dict[tuple[SeriesKey, str], datetime] = {}
    for entry in found:
        newest[entry.key, entry.stem] = max(entry.at, newest.get((entry.key, entry.stem), entry.at))
    open_ = [entry for entry in found if entry.accepted is None]
    older = [entry for entry in open_ if entry.at < newest[entry.key, entry.stem]]
    months = [entry for entry in open_ if entry.day is None and entry not in older]
    return [*sorted(older, key=lambda entry: entry.at), *sorted(months, key=lambda entry: entry.at)]


# --- finding --------------------------------------------------------------------------------------------------------


def entries(layout: Layout) -> list[RefusedZip]:
    """Return all entries, ordered by series and day. Skip other files below the folder."""
    found = [
        entry
        for path in sorted(storage.list_paths(layout.quarantined, "**/*.zip"))
        if (key := _series_of(path, layout)) is not None and (entry := _entry(path, key)) is not None
    ]
    return sorted(found, key=lambda entry: (entry.key, entry.first, entry.at))


def entries_of(layout: Layout, key: SeriesKey) -> list[RefusedZip]:
    """Return the entries of one series, ordered by day."""
    return sorted(_entries_named(layout, key), key=lambda entry: (entry.first, entry.at))


def find(layout: Layout, text: str) -> list[RefusedZip]:
    """Find entries by name or hash.

    Args:
        text: Name of the file, here or in the archive, with or without ``.zip``. Or at least the first six digits of
            its sha256.
    """
    wanted = text.removesuffix(".zip")
    prefix = wanted.lower() if re.fullmatch(rf"[0-9a-fA-F]{{{_LEAST_PREFIX},64}}", wanted) else None
    return [
        entry
        for entry in entries(layout)
        if wanted in (entry.name.removesuffix(".zip"), entry.stem) or (prefix and entry.sha256.startswith(prefix))
    ]


def accepted_sha256(layout: Layout, key: SeriesKey, archive_key: str) -> frozenset[str]:
    """Return the SHA-256 of the accepted bytes of an archive's zip. Look only into the series' own folder."""
    named = _entries_named(layout, key, _stem(archive_key))
    return frozenset(one.sha256 for one in named if one.accepted is not None and one.file == archive_key)


def _entries_named(layout: Layout, key: SeriesKey, stem: str = "") -> Iterator[RefusedZip]:
    for path in sorted(storage.list_paths(layout.quarantine(key), "*.zip")):
        if path.name.startswith(f"{stem}." if stem else "") and (entry := _entry(path, key)) is not None:
            yield entry


# --- accepting, releasing -------------------------------------------------------------------------------------------


def accept(layout: Layout, entry: RefusedZip, *, by: str, at: datetime, reason: str = "") -> RefusedZip:
    """Accept bytes, so that their day loads despite the wrong checksum.

    Args:
        by: User name of the person.
        at: Time of the decision (UTC).

    Returns:
        The updated entry.

    Raises:
        UsageError: The zip was refused for another reason than its checksum.
        DamagedFileError: The bytes changed since the refusal, or the record is gone.
        SeriesBusyError: A run is writing the series.
        StorageError: The write failed.
    """
    if entry.kind != CHECKSUM:
        raise UsageError(
            f"{entry.name} cannot be accepted: it was refused as {entry.kind}, and only a wrong checksum can be "
            f"accepted. {entry.reason}"
        )
    entry.read()
    acceptance = Acceptance(by=by, at=at, reason=reason)
    with storage.only_writer(layout.lock(entry.key), _WAIT_SECONDS, str(entry.key)):
        record = _read_record(entry.path)
        if record is None:
            raise DamagedFileError(f"The record of {entry.path} is gone. Retry its day; nothing was accepted.")
        _write_record(entry.path, record.model_copy(update={"accepted": acceptance}))
    return entry.model_copy(update={"accepted": acceptance})


_WAIT_SECONDS = 10.0
"""Time to wait for a run that is writing the series."""


def release(entry: RefusedZip) -> None:
    """Remove an entry: its bytes and its record. Log files that cannot be removed."""
    for path in (entry.path, _record_path(entry.path)):
        try:
            storage.remove(path)
        except StorageError as error:
            logger.warning("%s", error)


def release_resolved(layout: Layout, key: SeriesKey, ledger: Ledger) -> list[RefusedZip]:
    """Remove the entries of days that are now stored from a good file. Return these entries.

    Monthly zips stay, because days stored from daily zips do not show that the monthly zip is good. Accepted bytes stay
    while their day is stored from them. The caller must have the series' lock.
    """
    mended = [entry for entry in entries_of(layout, key) if entry.day is not None and is_resolved(entry, ledger)]
    for entry in mended:
        release(entry)
    return mended


def is_resolved(entry: RefusedZip, ledger: Ledger, days: Iterable[date] | None = None) -> bool:
    """Return True if each day of an entry is stored from another good file, or was never listed.

    Args:
        days: Days to check; None checks all days of the entry.
    """
    rows = [ledger.get(day) for day in (entry.days if days is None else days)]
    return all(
        row is not None
        and row.failure is None
        and (row.outcome == NOT_LISTED or (row.is_stored_final and row.checksum != ChecksumStatus.ACCEPTED))
        for row in rows
    )


# --- records --------------------------------------------------------------------------------------------------------


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_record(path: Path) -> _Record | None:
    try:
        return _Record.model_validate_json(storage.read(_record_path(path))[0])
    except (OSError, ValidationError):
        return None


def _write_record(path: Path, record: _Record) -> None:
    storage.put(_record_path(path), record.model_dump_json(indent=2, exclude_none=True).encode())


def _entry(path: Path, key: SeriesKey) -> RefusedZip | None:
    """Return the entry of a zip and its record. If the record is unreadable, derive the entry from the file."""
    match = _NAME.fullmatch(path.name)
    stat = storage.head(path)
    if match is None or stat is None:
        return None
    period = match["period"]
    try:
        first = date.fromisoformat(period if len(period) == len("2024-01-01") else f"{period}-01")
    except ValueError:
        return None
    day = first if len(period) == len("2024-01-01") else None
    record = _read_record(path)
    if record is None or not record.sha256.startswith(match["sha256"]):
        record = _Record(
            series=str(key),
            file=key.archive_monthly(first) if day is None else key.archive_daily(first),
            sha256=_sha256_of(path),
            kind=UNKNOWN,
            reason=f"The reason is unknown because {_record_path(path)} cannot be read. Retry the day to see it again.",
            at=datetime.fromtimestamp((storage.modified_ns(path) or 0) // 1_000_000_000, UTC),
        )
    return RefusedZip(**{**dict(record), "day": day}, key=key, path=path, first=first, size=stat.bytes)


def _stem(archive_key: str) -> str:
    """Return the name of the archive's zip, without ``.zip``."""
    return archive_key.rsplit("/", 1)[-1].removesuffix(".zip")


def _sha256_of(path: Path) -> str:
    try:
        with storage.open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _series_of(path: Path, layout: Layout) -> SeriesKey | None:
    """Return the series of a quarantined file: the inverse of :meth:`Layout.quarantine`."""
    match path.parent.relative_to(layout.quarantined).parts:
        case (exchange, market, data_type, "daily", symbol, *interval) if len(interval) <= 1:
            try:
                return SeriesKey(exchange, Market(market), DataType(data_type), symbol, *interval)
            except (UsageError, ValueError):
                return None
        case _:
            return None
