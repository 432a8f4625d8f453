"""Provenance of a day's rows: the record in every Parquet footer of the lake.

Adding a fact later means rewriting the lake. Readers accept older and newer versions: they ignore unknown fields, and
absent fields take their default. Reading and writing footers does not belong here (``lake.parquet``).
"""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.version_1 import with_fields

FOOTER_KEY = b"market_data_pipeline"
_SCHEMA_VERSION = 2


class Source(StrEnum):
    """Source of rows."""

    ARCHIVE_DAILY = "archive_daily"
    ARCHIVE_MONTHLY = "archive_monthly"
    REST = "rest"
    LIVE = "live"
    """Messages of streams, and answers of REST about late ones, stored by the live feed."""
    IMPORT = "import"
    """A file of an older cache. Its rows are not verified."""
    DERIVED = "derived"


GAP_FILL_SOURCES = frozenset({Source.REST, Source.LIVE})
"""Sources whose rows may fill the gaps of an archive."""

PROVISIONAL_SOURCES = GAP_FILL_SOURCES | {Source.IMPORT}
"""Sources of days that are provisional until the archive has them."""


class ChecksumStatus(StrEnum):
    """Status of an archive's published checksum."""

    VERIFIED = "verified"
    MISSING = "missing"
    ACCEPTED = "accepted"
    """It does not match, but a person accepted the file."""


class Part(BaseModel):
    """A run of rows from one source.

    Attributes:
        source: Kind of source.
        url: Its address.
        first_row: Number of the part's first row in the file, from 0.
        fetched_at: Time of the fetch (UTC). For REST it is the server's time before the request.
        sha256: SHA-256 of the zip. None for REST. For a derived part, the `content_sha256` of the source's day.
        etag: ETag as the archive sent it, without quotes.
        last_modified: HTTP date as the archive sent it.
        checksum: Status of the published checksum. None for REST.
    """

    model_config = ConfigDict(frozen=True)

    source: Source
    url: str
    first_row: int
    rows: int
    fetched_at: datetime
    sha256: str | None = None
    etag: str | None = None
    last_modified: str | None = None
    checksum: ChecksumStatus | None = None


class Provenance(BaseModel):
    """The record in a file's footer.

    Attributes:
        parts: Row ranges by source, in the order of the rows.
        final: True if the day is final. Provisional days are fetched again when their archive is published.
        fetched_at: Time of the fetch of the newest part (UTC).
        rows: Rows in the file.
        first_key: Key of the first row (open_time in µs, or agg_trade_id). None for a file without rows.
        last_key: Key of the last row.
        content_sha256: SHA-256 over the column values.
    """

    model_config = ConfigDict(frozen=True)

    series: str
    day: date
    parts: tuple[Part, ...]
    final: bool
    fetched_at: datetime
    rows: int
    first_key: int | None = None
    last_key: int | None = None
    content_sha256: str
    findings: tuple[Finding, ...] = ()
    schema_version: int = _SCHEMA_VERSION
    writer_version: str = ""

    @model_validator(mode="after")
    def _with_fields(self) -> Self:
        """Convert a record of an older version to the current form."""
        if self.schema_version < _SCHEMA_VERSION:
            object.__setattr__(self, "findings", with_fields(self.findings))
            object.__setattr__(self, "schema_version", _SCHEMA_VERSION)
        return self


def belongs_elsewhere(record: Provenance, series: str, day: date) -> str | None:
    """Return a message if a footer belongs to another series or day than its file name. None if they match.

    Args:
        series: Name of the series by the file's path.
        day: The UTC day by the file's path.
    """
    return None if (record.series, record.day) == (series, day) else f"it is {record.day} of {record.series}"
