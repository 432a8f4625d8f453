"""Where a day's rows came from and what they are: the record in every Parquet footer of the lake.

It is complete from the start, since adding a fact later means rewriting the lake. Readers accept records of older and
newer versions: what they do not know is ignored, what is absent takes its default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Protocol, Self, cast

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, model_validator

from market_data_pipeline.findings import Finding
from market_data_pipeline.version_1 import with_fields

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


class Digest(Protocol):
    """What ``hashlib`` makes."""

    def update(self, data: Any, /) -> None:
        """Take in bytes."""


def content_sha256(table: pa.Table) -> str:
    """SHA-256 over a table's column values, independent of how a file encodes them.

    Columns go in one after another, in the table's order: the name, a zero byte, then the values as little-endian
    int64 (integers and times in µs), float64 or one byte a boolean. Label columns (symbol, interval), which are the
    same in every row, go in as text once.
    """
    digest = hashlib.sha256()
    add_content(digest, table)
    return digest.hexdigest()


def add_content(digest: Digest, table: pa.Table) -> None:
    """Go on with a :func:`content_sha256` that has taken in the columns before a table's."""
    if table.num_rows > _ROWS_AT_ONCE:
        for part in _content(table):
            digest.update(part)
    else:
        # Each update lets other threads in, and has to wait for them: longer than a day of candles takes.
        digest.update(b"".join(_content(table)))


_ROWS_AT_ONCE = 10_000


def _content(table: pa.Table) -> Iterator[bytes | pa.Buffer | memoryview]:
    batches = [batch.columns for batch in table.to_batches()]
    for number, name in enumerate(table.schema.names):
        yield name.encode() + b"\0"
        chunks = [columns[number] for columns in batches]
        if chunks and isinstance(chunks[0], pa.DictionaryArray):
            yield _label_of(cast("list[pa.DictionaryArray[Any, Any]]", chunks))
        else:
            yield from map(bytes_of, chunks)


# To ask Arrow for a conversion takes longer than to hash a day of 1m klines, so what lies in memory as it is hashed is
# taken as it lies.


def _label_of(chunks: Sequence[pa.DictionaryArray[Any, Any]]) -> bytes:
    if len(chunks) == 1 and len(chunks[0].dictionary) == 1 and not chunks[0].null_count:
        [chunk] = chunks
        if len(chunk) and not np.frombuffer(memoryview(bytes_of(chunk.indices)), np.uint8).any():
            return str(chunk.dictionary[0]).encode()
    labels = dict.fromkeys(str(value) for chunk in chunks for value in chunk.unique().dictionary_decode().to_pylist())
    return ",".join(labels).encode()


def bytes_of(values: pa.Array[Any]) -> pa.Buffer | memoryview:
    """The values of a column, but labels, as :func:`content_sha256` takes them in."""
    kind, rows = values.type, len(values)
    if pa.types.is_boolean(kind):
        values = values.cast(pa.uint8())
        kind = values.type
    if values.null_count or not rows:
        return _bytes_with_nulls(values)
    width = kind.bit_width // 8
    buffer = cast("pa.Buffer", values.buffers()[1])
    return buffer.slice(values.offset * width, rows * width)


def _bytes_with_nulls(values: pa.Array[Any]) -> memoryview:
    if pa.types.is_timestamp(values.type):
        values = values.view(pa.int64())
    elif pa.types.is_date32(values.type):
        values = values.view(pa.int32())
    return np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).data
