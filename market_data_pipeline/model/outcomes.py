"""What came of a day: the words in which ``ingest`` reports to whoever asked for it.

They stand apart from it because importing ``ingest`` means importing every source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.series import SeriesKey


class Action(StrEnum):
    """What was done for a day."""

    FETCHED = "fetched"
    EXTENDED = "extended"
    HELD = "held"
    EMPTY = "empty"
    NOT_LISTED = "not_listed"


@dataclass(frozen=True, slots=True)
class DayOutcome:
    """A day that is as it should be.

    Attributes:
        key: The series.
        day: The UTC day.
        row: The day's row in the ledger.
        action: What was done for it.
        seconds: How long its worker took.
        downloaded: Bytes fetched for it from the archive.
    """

    key: SeriesKey
    day: date
    row: DayRecord
    action: Action
    seconds: float = 0.0
    downloaded: int = 0


@dataclass(frozen=True, slots=True)
class DayFailure:
    """A day that could not be had; what was held of it before stays.

    Attributes:
        key: The series.
        day: The UTC day.
        failure: Kind, one word.
        reason: For people: what happened and what to do.
        row: The day's row in the ledger; its outcome is ``held`` where an older good file stays.
        seconds: How long its worker took.
        downloaded: Bytes fetched for it from the archive.
    """

    key: SeriesKey
    day: date
    failure: str
    reason: str
    row: DayRecord
    seconds: float = 0.0
    downloaded: int = 0


DayResult = DayOutcome | DayFailure
OnResult = Callable[[DayResult], None]
"""Told of each day as soon as it is done; the command line's progress bar listens here, in the same process."""
