"""Types that a source returns. Downloading does not belong here (``binance/archive.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from market_data_pipeline.model.provenance import ChecksumStatus


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A zip as the archive serves it, with the result of its verification.

    Attributes:
        sha256: SHA-256 of the bytes, in hex.
        etag: The ETag, without quotes.
        last_modified: The Last-Modified header (HTTP date).
        checksum: ``verified``; ``missing`` if no ``.CHECKSUM`` is published; ``accepted`` if a person did.
        fetched_at: Time of the response (UTC).
        checksum_etag: ETag of the ``.CHECKSUM``, without quotes. None if none is published.
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
        """The file name without ``.zip``. The CSV inside has the same stem."""
        return self.url.rsplit("/", 1)[-1].removesuffix(".zip")
