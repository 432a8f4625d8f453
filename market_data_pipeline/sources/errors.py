"""What can go wrong with a source. Each kind is one word in the ledger; the text is for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.errors import MarketDataError

if TYPE_CHECKING:
    from market_data_pipeline.sources.file import ArchiveFile


class SourceError(MarketDataError):
    """A day could not be had from a source.

    Attributes:
        kind: The failure's kind as the ledger keeps it.
    """

    kind = "source"


class MalformedError(SourceError):
    """The bytes are not what the exchange publishes."""

    kind = "malformed"


class RestAnswerError(SourceError):
    """REST answered something that is not understood; another time it may answer otherwise."""

    kind = "rest_answer"


class UnprovenError(SourceError):
    """The archive was published again without a checksum, and cannot stand for rows that were proven."""

    kind = "unproven"


class ChecksumError(SourceError):
    """The bytes do not match their published checksum.

    Attributes:
        file: The file, as it was served.
        published_sha256: The sha256 that the archive published.
    """

    kind = "checksum"

    def __init__(self, message: str, file: ArchiveFile, published_sha256: str) -> None:
        super().__init__(message)
        self.file = file
        self.published_sha256 = published_sha256


class NetworkError(SourceError):
    """A host did not answer, or kept answering that it cannot."""

    kind = "network"


class HostOffError(SourceError):
    """A REST host refuses us (418, 403, 451), or is off for the rest of the run because it did."""

    kind = "host_off"


class AbsentError(SourceError):
    """No source has the day."""

    kind = "absent"


class RefusedError(AbsentError):
    """REST says that it does not serve such a request (400), e.g. of a symbol unknown to it: it would say so again."""


class UnpublishedError(SourceError):
    """The archive does not have the day yet, and over REST it would cost more weight than a run may spend."""

    kind = "unpublished"


class BeyondReachError(UnpublishedError):
    """REST does not serve rows so old: only the archive has them, now and later."""


class ConflictError(SourceError):
    """Two different rows have the same key."""

    kind = "conflict"
