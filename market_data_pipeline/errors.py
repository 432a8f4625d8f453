"""The faults that a user can meet. Each message says what happened, to what, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from market_data_pipeline.sources.protocol import ArchiveFile


class MarketDataError(Exception):
    """A foreseeable fault: its text is for people, and no traceback is shown for it."""


class UsageError(MarketDataError):
    """Something asked for does not exist or cannot be meant: an unknown symbol, a date that is none. Exit code 2."""


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


class StorageError(MarketDataError):
    """The disk refuses: it is full, or a folder cannot be written to. What was there before is untouched."""


class DamagedFileError(MarketDataError):
    """A file of the lake cannot be read as what it should be."""


class SeriesBusyError(MarketDataError):
    """Another process has been writing the same series for longer than we may wait."""


class RecordsError(MarketDataError):
    """Dagster's records of a data folder cannot be used."""


class UiRunsError(MarketDataError):
    """A UI runs over the same data folder."""


class NotHeldError(MarketDataError):
    """Days were asked for that the lake does not hold."""


class EnvironmentFaultError(MarketDataError):
    """The machine refuses: a disk, a file, a database, memory."""


class QueryLimitError(MarketDataError):
    """A query needs more time or memory than it may take."""
