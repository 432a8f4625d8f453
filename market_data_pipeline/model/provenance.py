"""Where a day's rows came from and what they are: the record in every Parquet footer of the lake.

It is complete from the start, since adding a fact later means rewriting the lake. Readers accept records of older and
newer versions: what they do not know is ignored, what is absent takes its default.
"""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from market_data_pipeline.model.findings import Finding
from market_data_pipeline.model.version_1 import with_fields

FOOTER_KEY = b"market_data_pipeline"
SCHEMA_VERSION = 2


class Source(StrEnum):
    """Where rows come from."""

    ARCHIVE_DAILY = "archive_daily"
    ARCHIVE_MONTHLY = "archive_monthly"
    REST = "rest"
    DERIVED = "derived"


class ChecksumStatus(StrEnum):
    """What is known of an archive's published checksum."""

    VERIFIED = "verified"
    MISSING = "missing"
    ACCEPTED = "accepted"
    """It does not match, and a person accepted the file nevertheless."""


class Part(BaseModel):
    """A run of rows that came from one place.

    Attributes:
        source: Which kind of place.
        url: Its address.
        first_row: Number of the part's first row in the file, from 0.
        rows: How many rows.
        fetched_at: When they were fetched (UTC); for REST by its clock, before it was asked.
        sha256: Of the zip; None for REST. Of a derived part, the `content_sha256` of the day that it is made of.
        etag: As the archive gave it, without quotes.
        last_modified: As the archive gave it (HTTP date).
        checksum: Status of the published checksum; None for REST.
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
        series: Name of the series.
        day: The UTC day.
        parts: Row ranges by source, in the order of the rows.
        final: Whether the day is settled; provisional days are fetched again when their archive is there.
        fetched_at: When the newest part was fetched (UTC).
        rows: Rows in the file.
        first_key: Key of the first row (open_time in µs, or agg_trade_id); None for a file without rows.
        last_key: Key of the last row.
        content_sha256: See :func:`content_sha256`.
        findings: What the checks found.
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
    schema_version: int = SCHEMA_VERSION
    writer_version: str = ""

    @model_validator(mode="after")
    def _with_fields(self) -> Self:
        """Read a record of an older version in the form that this one writes."""
        if self.schema_version < SCHEMA_VERSION:
            object.__setattr__(self, "findings", with_fields(self.findings))
            object.__setattr__(self, "schema_version", SCHEMA_VERSION)
        return self


def belongs_elsewhere(record: Provenance, series: str, day: date) -> str | None:
    """Which day of which series a record is of, in words; None where it is the one below whose name its file lies.

    Args:
        record: What a footer says.
        series: Name of the series that the file should be of.
        day: The UTC day that it should be of.
    """
    return None if (record.series, record.day) == (series, day) else f"it is {record.day} of {record.series}"
