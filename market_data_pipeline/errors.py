"""Every foreseeable error as one tree. Each message names what happened, where, and the next step.

Errors that only one module raises and catches do not belong here. `market_data_pipeline` exports all of these::

    MarketDataError
    ├── UsageError
    ├── SourceError
    │   ├── NetworkError
    │   ├── HostOffError
    │   ├── MalformedError
    │   ├── ChecksumError
    │   ├── ConflictError
    │   ├── UnprovenError
    │   ├── RestAnswerError
    │   ├── AbsentError
    │   │   └── RefusedError
    │   └── UnpublishedError
    │       └── BeyondReachError
    ├── StorageError
    ├── DamagedFileError
    ├── SeriesBusyError
    ├── RecordsError
    ├── UiRunsError
    ├── NotStoredError
    ├── GapError
    ├── QueryLimitError
    └── EnvironmentFaultError
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from market_data_pipeline.client.gaps import Gap
    from market_data_pipeline.sources.binance.archive import ArchiveFile

__all__ = [
    "AbsentError",
    "BeyondReachError",
    "ChecksumError",
    "ConflictError",
    "DamagedFileError",
    "EnvironmentFaultError",
    "GapError",
    "GapWarning",
    "HostOffError",
    "MalformedError",
    "MarketDataError",
    "NetworkError",
    "NotStoredError",
    "QueryLimitError",
    "RecordsError",
    "RefusedError",
    "RestAnswerError",
    "SeriesBusyError",
    "SourceError",
    "StorageError",
    "UiRunsError",
    "UnprovenError",
    "UnpublishedError",
    "UsageError",
]


class MarketDataError(Exception):
    """A foreseeable error. Its text is for people, and the CLI prints no traceback."""


class UsageError(MarketDataError):
    """The request is invalid, for example an unknown symbol or an impossible date. Exit code 2."""


class SourceError(MarketDataError):
    """A day could not be fetched from a source.

    Attributes:
        kind: Kind of failure, as in the ledger.
    """

    kind = "source"


class MalformedError(SourceError):
    """The bytes are not what the exchange publishes."""

    kind = "malformed"


class RestAnswerError(SourceError):
    """REST sent an answer of an unknown form. A later answer may be valid."""

    kind = "rest_answer"


class UnprovenError(SourceError):
    """The archive was published again without a checksum, so it cannot replace verified rows."""

    kind = "unproven"


class ChecksumError(SourceError):
    """The bytes do not match their published checksum.

    Attributes:
        file: The file as downloaded.
        published_sha256: SHA-256 that the archive published.
    """

    kind = "checksum"

    def __init__(self, message: str, file: ArchiveFile, published_sha256: str) -> None:
        super().__init__(message)
        self.file = file
        self.published_sha256 = published_sha256

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.file, self.published_sha256)


class NetworkError(SourceError):
    """A host did not answer, or failed at every retry."""

    kind = "network"


class HostOffError(SourceError):
    """A REST host refuses our requests (418, 403, 451). It is off for the rest of the run."""

    kind = "host_off"


class AbsentError(SourceError):
    """No source has the day."""

    kind = "absent"


class RefusedError(AbsentError):
    """REST refuses the request (400), for example for an unknown symbol. A retry would fail, too."""


class UnpublishedError(SourceError):
    """The archive does not have the day yet, and REST would cost more weight than a run may spend."""

    kind = "unpublished"


class BeyondReachError(UnpublishedError):
    """REST does not serve rows that old. Only the archive can have them."""


class ConflictError(SourceError):
    """Two different rows have the same key."""

    kind = "conflict"


class StorageError(MarketDataError):
    """The disk is full, or a folder is not writable. Existing files are unchanged."""


class DamagedFileError(MarketDataError):
    """A file of the lake is damaged or not of the expected form."""


class SeriesBusyError(MarketDataError):
    """Another process wrote the same series for longer than the lock timeout."""


class RecordsError(MarketDataError):
    """Dagster's records of a data folder cannot be used."""


class UiRunsError(MarketDataError):
    """A Dagster UI is running on the same data folder."""


class NotStoredError(MarketDataError):
    """The lake does not have some of the requested days."""


class GapError(MarketDataError):
    """Requested rows are missing without an explanation.

    Attributes:
        gaps: All gaps, by series and time.
    """

    def __init__(self, message: str, gaps: Sequence[Gap]) -> None:
        super().__init__(message)
        self.gaps = tuple(gaps)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.gaps)


class GapWarning(UserWarning):
    """Requested rows are missing without an explanation. See :class:`GapError`."""


class EnvironmentFaultError(MarketDataError):
    """The machine failed: a disk, a file, a database or memory."""


class QueryLimitError(MarketDataError):
    """A query exceeds its limit of time or memory."""
