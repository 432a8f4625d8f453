"""Bytes that were refused, kept with the reason: a person can look at them, and accept a wrong checksum for good.

A refused zip lies in its series' folder below ``quarantine/`` under a name that has the beginning of its sha256, with a
record (JSON) of the same name beside it. Acceptance is written into the record and is bound to those bytes: another zip
of the same day is refused as before.

What belongs here: keeping, finding, accepting and letting go of refused bytes. What does not: what is wrong with them
(``sources``), and bringing the day (``ingest``).
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from market_data_pipeline import clock
from market_data_pipeline.errors import DamagedFileError, StorageError, UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.regular_files import read_regular, reading
from market_data_pipeline.model import version_1
from market_data_pipeline.model.day import NOT_LISTED
from market_data_pipeline.model.provenance import ChecksumStatus
from market_data_pipeline.model.series import DataType, Market, SeriesKey

logger = logging.getLogger(__name__)

CHECKSUM = "checksum"
"""The kind of refusal that can be accepted: the bytes are not those that the published checksum speaks of."""

UNKNOWN = "unknown"
"""The kind of an entry whose record cannot be read."""

_SHORT = 12
"""Digits of the sha256 in a file's name."""
_LEAST_PREFIX = 6
_NAME = re.compile(rf"(?P<stem>.+-(?P<period>\d{{4}}-\d\d(?:-\d\d)?))\.(?P<sha256>[0-9a-f]{{{_SHORT}}})\.zip")


class Acceptance(BaseModel):
    """That a person took bytes for good although their checksum says otherwise.

    Attributes:
        by: Who, as the machine knows them.
        at: When (UTC).
        reason: Why, in that person's words; may be empty.
    """

    model_config = ConfigDict(frozen=True)

    by: str
    at: datetime
    reason: str = ""


class _Record(BaseModel):
    """The JSON beside a refused zip."""

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


@dataclass(frozen=True, slots=True)
class Entry:
    """A zip that was refused.

    Attributes:
        key: The series that it should have been of.
        path: Where its bytes lie.
        archive_key: Its key in the archive's bucket.
        day: The UTC day that it is about; None of a monthly zip.
        first: The first UTC day that it is about.
        sha256: Of the bytes, as recorded.
        size: Of the zip, in bytes.
        kind: Why it was refused, in one word, as ledgers have it; ``unknown`` where the record cannot be read.
        reason: Why, in words.
        at: When it was refused (UTC).
        etag: As the archive gave it, without quotes.
        accepted: Who accepted it, and when; None where nobody did.
        beginning: The bytes were not a zip, and only how they begin is stored.
        published_sha256: The sha256 that the archive published; None if the file was refused for another reason.
    """

    key: SeriesKey
    path: Path
    archive_key: str
    day: date | None
    first: date
    sha256: str
    size: int
    kind: str
    reason: str
    at: datetime
    etag: str | None = None
    accepted: Acceptance | None = None
    beginning: bool = False
    published_sha256: str | None = None

    @property
    def name(self) -> str:
        """What people call it by: the name of its file."""
        return self.path.name

    @property
    def stem(self) -> str:
        """Name of the archive's zip, without ``.zip``."""
        return self.archive_key.rsplit("/", 1)[-1].removesuffix(".zip")

    @property
    def days(self) -> list[date]:
        """The UTC days that it is about: one, or those of a month."""
        if self.day is not None:
            return [self.day]
        return list(clock.days_of_month(self.first))

    def read(self) -> bytes:
        """The bytes.

        Raises:
            DamagedFileError: they are not those that were refused, or cannot be read.
        """
        try:
            data = read_regular(self.path)
        except OSError as error:
            raise DamagedFileError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        if self.beginning:
            raise DamagedFileError(f"What came was not a zip. Only its beginning is stored: {data[:80]!r}.")
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise DamagedFileError(
                f"{self.path} does not hold the bytes that were refused: it was changed since. Retry its day instead."
            )
        return data


DEFAULT_BYTES = 2_000_000_000
"""How much all refused bytes may take together where no setting says so."""

_FILES = 20_000
"""How many refused files there may be in all."""

_COPIES = 3
"""How many versions of one archive are stored: Binance replaces an archive once or twice."""

_BEGINNING_BYTES = 1024
"""How much is stored of bytes that are not a zip, such as a web page."""


# --- keeping --------------------------------------------------------------------------------------------------------


def put(
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
    most_bytes: int = DEFAULT_BYTES,
) -> Path | None:
    """Keep refused bytes with the reason. Only the holder of the series' lock may call this.

    The same bytes again keep their record as it is, unless they are refused for another reason; an acceptance stays.
    Of what is not a zip only the beginning is stored, and only the newest of an archive.

    Quarantine is bounded: in all, and for one series to half of it. When it is full, older versions of archives go
    first, then monthly zips, the oldest first. What a person accepted and the only version of a daily archive never go:
    new bytes are then not stored.

    Args:
        layout: Where everything lies.
        key: The series.
        archive_key: Key of the zip in the archive's bucket.
        data: The bytes.
        kind: Why they were refused, in one word, as ledgers have it.
        reason: Why, in words.
        day: The UTC day that the zip is about; None of a monthly zip.
        at: When it was refused (UTC).
        etag: As the archive gave it, without quotes.
        published_sha256: The sha256 that the archive published, if the bytes have another one.
        most_bytes: How much all refused bytes may take together.

    Returns:
        Where the bytes lie; None if there is no room for them.

    Raises:
        StorageError: the disk refuses.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    stem = archive_key.rsplit("/", 1)[-1].removesuffix(".zip")
    path = layout.quarantine(key) / f"{stem}.{sha256[:_SHORT]}.zip"
    known = _read_record(path)
    if known is not None and (known.kind, known.reason) == (kind, reason) and path.exists():
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
    storage.write_bytes(path, stored)
    _write_record(path, record)
    return path


def _make_room(layout: Layout, key: SeriesKey, path: Path, stem: str, size: int, most_bytes: int) -> bool:
    """Give up what may go until a file of a size has room; return False if it has none."""
    for entry in _surplus(list(_entries_named(layout, key, stem)), path):
        release(entry)
    sizes = {
        other: stat.bytes
        for other in layout.quarantined.rglob("*.zip")
        if other != path and (stat := storage.stat(other)) is not None
    }
    share = most_bytes // 2

    def has_share() -> bool:
        return size + sum(sizes[other] for other in sizes if other.parent == path.parent) <= share

    def fits() -> bool:
        return has_share() and size + sum(sizes.values()) <= most_bytes and len(sizes) < _FILES

    if fits() or size > share:
        return size <= share
    for entry in _that_may_go([entry for entry in entries(layout) if entry.path != path]):
        if entry.key == key or has_share():
            release(entry)
            sizes.pop(entry.path, None)
        if fits():
            return True
    return False


def _surplus(versions: Sequence[Entry], path: Path) -> list[Entry]:
    """Return the versions of one archive that go in any case, when another is stored at a path."""
    others = [entry for entry in versions if entry.path != path and entry.accepted is None]
    zips = sorted((entry for entry in others if not entry.beginning), key=lambda entry: entry.at)
    return [*(entry for entry in others if entry.beginning), *zips[: max(0, len(zips) - (_COPIES - 1))]]


def _that_may_go(found: Sequence[Entry]) -> list[Entry]:
    """Return the entries that may be given up, in the order in which they go."""
    newest: dict[tuple[SeriesKey, str], datetime] = {}
    for entry in found:
        newest[entry.key, entry.stem] = max(entry.at, newest.get((entry.key, entry.stem), entry.at))
    open_ = [entry for entry in found if entry.accepted is None]
    older = [entry for entry in open_ if entry.at < newest[entry.key, entry.stem]]
    months = [entry for entry in open_ if entry.day is None and entry not in older]
    return [*sorted(older, key=lambda entry: entry.at), *sorted(months, key=lambda entry: entry.at)]


# --- finding --------------------------------------------------------------------------------------------------------


def entries(layout: Layout) -> list[Entry]:
    """Everything that is quarantined, ordered by series and day; other files below the folder are passed over."""
    found = [
        entry
        for path in sorted(layout.quarantined.rglob("*.zip"))
        if (key := _series_of(path, layout)) is not None and (entry := _entry(path, key)) is not None
    ]
    return sorted(found, key=lambda entry: (entry.key.asset_path, entry.first, entry.at))


def entries_of(layout: Layout, key: SeriesKey) -> list[Entry]:
    """What is quarantined of one series, ordered by day."""
    found = (_entry(path, key) for path in sorted(layout.quarantine(key).glob("*.zip")))
    return sorted((entry for entry in found if entry is not None), key=lambda entry: (entry.first, entry.at))


def find(layout: Layout, text: str) -> list[Entry]:
    """The entries that a person may mean.

    Args:
        layout: Where everything lies.
        text: Name of the file, here or in the archive, with or without ``.zip``; or at least six first digits of its
            sha256.
    """
    wanted = text.removesuffix(".zip")
    prefix = wanted.lower() if re.fullmatch(rf"[0-9a-fA-F]{{{_LEAST_PREFIX},64}}", wanted) else None
    return [
        entry
        for entry in entries(layout)
        if wanted in (entry.name.removesuffix(".zip"), entry.stem) or (prefix and entry.sha256.startswith(prefix))
    ]


def accepted_sha256(layout: Layout, key: SeriesKey, archive_key: str) -> frozenset[str]:
    """The sha256 of those bytes that a person accepted as an archive's zip, whatever its checksum says.

    Looks into the series' own folder only, and at nothing where that does not exist.
    """
    stem = archive_key.rsplit("/", 1)[-1].removesuffix(".zip")
    return frozenset(
        entry.sha256
        for entry in _entries_named(layout, key, stem)
        if entry.accepted is not None and entry.archive_key == archive_key
    )


def _entries_named(layout: Layout, key: SeriesKey, stem: str) -> Iterator[Entry]:
    for path in layout.quarantine(key).glob("*.zip"):
        if path.name.startswith(f"{stem}.") and (entry := _entry(path, key)) is not None:
            yield entry


# --- accepting, letting go ------------------------------------------------------------------------------------------


def accept(layout: Layout, entry: Entry, *, by: str, at: datetime, reason: str = "") -> Entry:
    """Mark bytes as accepted, so that their day loads although the published checksum is another.

    Args:
        layout: Where everything lies.
        entry: What is accepted.
        by: Who accepts it.
        at: When (UTC).
        reason: Why.

    Returns:
        The entry as it is now.

    Raises:
        UsageError: it was refused for another reason than its checksum.
        DamagedFileError: the bytes are no longer those that were refused.
        SeriesBusyError: a run is writing the series.
        StorageError: the disk refuses.
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
    return replace(entry, accepted=acceptance)


_WAIT_SECONDS = 10.0
"""How long a person waits for a run that is writing the series."""


def release(entry: Entry) -> None:
    """Remove an entry: its bytes and its record. What the system refuses to remove stays, and is logged."""
    for path in (entry.path, _record_path(entry.path)):
        try:
            storage.remove(path)
        except StorageError as error:
            logger.warning("%s", error)


def release_mended(layout: Layout, key: SeriesKey, ledger: Ledger) -> list[Entry]:
    """Remove the entries of days that are now held by a good file, and return them.

    Monthly zips stay: that their days are held from daily ones says nothing of them. So do accepted bytes whose day
    is held by just them. Only the holder of the series' lock may call this.
    """
    mended = [entry for entry in entries_of(layout, key) if entry.day is not None and is_mended(entry, ledger)]
    for entry in mended:
        release(entry)
    return mended


def is_mended(entry: Entry, ledger: Ledger, days: Iterable[date] | None = None) -> bool:
    """Whether all days of an entry are held by good files that were not made of it, or were never listed.

    Args:
        entry: What was refused.
        ledger: Of its series.
        days: Those of its days that matter; None means all.
    """
    rows = [ledger.get(day) for day in (entry.days if days is None else days)]
    return all(
        row is not None
        and row.failure is None
        and (row.outcome == NOT_LISTED or (row.held and row.checksum != ChecksumStatus.ACCEPTED))
        for row in rows
    )


# --- records --------------------------------------------------------------------------------------------------------


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_record(path: Path) -> _Record | None:
    try:
        return _Record.model_validate_json(read_regular(_record_path(path)))
    except (OSError, ValidationError):
        return None


def _write_record(path: Path, record: _Record) -> None:
    storage.write_bytes(_record_path(path), record.model_dump_json(indent=2, exclude_none=True).encode())


def _entry(path: Path, key: SeriesKey) -> Entry | None:
    """A zip of the folder with its record; without a record that can be read, what the file itself tells."""
    match = _NAME.fullmatch(path.name)
    stat = storage.stat(path)
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
        return Entry(
            key=key,
            path=path,
            archive_key=key.archive_monthly(first) if day is None else key.archive_daily(first),
            day=day,
            first=first,
            sha256=_sha256_of(path),
            size=stat.bytes,
            kind=UNKNOWN,
            reason=f"{_record_path(path)}, which said why, cannot be read. Retry the day to learn it anew.",
            at=datetime.fromtimestamp(stat.mtime_ns // 1_000_000_000, UTC),
        )
    return Entry(
        key=key,
        path=path,
        archive_key=record.file,
        day=day,
        first=first,
        sha256=record.sha256,
        size=stat.bytes,
        kind=record.kind,
        reason=record.reason,
        at=record.at,
        etag=record.etag,
        accepted=record.accepted,
        beginning=record.beginning,
        published_sha256=record.published_sha256,
    )


def _sha256_of(path: Path) -> str:
    try:
        with reading(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _series_of(path: Path, layout: Layout) -> SeriesKey | None:
    """The series in whose folder a file lies: the inverse of :meth:`Layout.quarantine`."""
    match path.parent.relative_to(layout.quarantined).parts:
        case (exchange, market, data_type, "daily", symbol, *interval) if len(interval) <= 1:
            try:
                return SeriesKey(exchange, Market(market), DataType(data_type), symbol, *interval)
            except (UsageError, ValueError):
                return None
        case _:
            return None
