"""Per-day results of an ingest run.

They are apart from ``ingest`` because importing ``ingest`` imports every source. Fetching does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.series import SeriesKey


class Action(StrEnum):
    """Action of ``ingest`` for a day."""

    FETCHED = "fetched"
    EXTENDED = "extended"
    HELD = "held"
    EMPTY = "empty"
    NOT_LISTED = "not_listed"


@dataclass(frozen=True, slots=True)
class DayOutcome:
    """Result of a successful day.

    Attributes:
        seconds: Time of its worker in seconds.
    """

    key: SeriesKey
    day: date
    row: DayRecord
    action: Action
    seconds: float = 0.0
    downloaded: int = 0


@dataclass(frozen=True, slots=True)
class DayFailure:
    """Result of a failed day. Rows that were stored before stay.

    Attributes:
        failure: Kind of failure in one word.
        reason: Message for people, with the next step.
        row: Its record after the run. The outcome is ``held`` if an older good file stays.
        seconds: Time of its worker in seconds.
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
"""Called for each day as soon as it is done, in the same process. The CLI's progress bar uses it."""
