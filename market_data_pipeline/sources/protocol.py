"""A zip of the archive, as it was served."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from market_data_pipeline.model.provenance import ChecksumStatus


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A zip as the archive serves it, proven as far as the archive allows.

    Attributes:
        url: Its address.
        data: Its bytes.
        sha256: Of the bytes, in hex.
        etag: The archive's, without quotes.
        last_modified: The archive's (HTTP date).
        checksum: ``verified``; ``missing`` where no ``.CHECKSUM`` is published; ``accepted`` where a person did.
        fetched_at: When the answer came (UTC).
        checksum_etag: Of its ``.CHECKSUM``, without quotes; None where none is published.
    """

    url: str
    data: bytes
    sha256: str
    etag: str | None
    last_modified: str | None
    checksum: ChecksumStatus
    fetched_at: datetime
    checksum_etag: str | None = None

    @property
    def stem(self) -> str:
        """Its name without ``.zip``; its CSV has the same."""
        return self.url.rsplit("/", 1)[-1].removesuffix(".zip")
