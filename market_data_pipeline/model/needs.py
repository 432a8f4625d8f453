"""What a day needs now: the one question of everyone who decides about a day. Pure.

Schedules, sync, the sweep over the archive and the client all ask :func:`needs`. A failed or incomplete day is tried
again after a pause that doubles. How a day is fetched does not belong here (``ingest``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from enum import StrEnum

from market_data_pipeline import clock
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import (
    EMPTY,
    FAILED,
    HELD,
    LASTING,
    NOT_LISTED,
    REFUSED,
    WITHOUT_ARCHIVE,
    DayRecord,
    Stage,
    stage_of,
)
from market_data_pipeline.model.series import DataType, Listing, SeriesKey
from market_data_pipeline.model.states import marked_with, source_mark

FIRST_PAUSE = timedelta(hours=1)
LONGEST_PAUSE = timedelta(days=7)
PAUSE_WITHIN_REACH = timedelta(minutes=45)
"""Longest pause while REST still serves rows of the day, and soon will not. The schedule `repair` ticks hourly."""

_DAY = timedelta(days=1)


class NeedKind(StrEnum):
    """Where what a day needs may come from."""

    NOTHING = "nothing"
    """Nothing is needed."""
    LATER = "later"
    """The day is not over. The hourly schedule fetches it."""
    ARCHIVE = "archive"
    """Its archive, which is not published yet."""
    OTHER_ARCHIVE = "other_archive"
    """Another archive, or another checksum, than the one that was refused."""
    REST = "rest"
    """REST, for rows that the archive does not have."""
    REFETCH = "refetch"
    """Every source anew."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a day needs.

    Attributes:
        kind: Where it may come from.
        at: When it was worked out (UTC, without zone).
        since: When the day was fetched last (UTC, without zone); None if never.
        not_before: When a schedule may try again (UTC, without zone); None means at once.
        awaits_archive: True if an archive that the listing shows now would bring the day further.
        is_final: True if the day is final, so that only a schedule tries again.
    """

    kind: NeedKind
    at: datetime
    since: datetime | None = None
    not_before: datetime | None = None
    awaits_archive: bool = False
    is_final: bool = False

    @property
    def is_due(self) -> bool:
        """Return True if a schedule is to fetch the day now."""
        tries = self.kind in (NeedKind.REST, NeedKind.REFETCH)
        return tries and (self.not_before is None or self.not_before <= self.at)

    @property
    def is_met(self) -> bool:
        """Return True if no source has to be asked for the day now, also if somebody requests it."""
        return self.is_final and not self.is_due

    @property
    def is_worth_asking(self) -> bool:
        """Return True if the sources may have more than the lake has, as far as is known without the listing."""
        return self.is_due or (self.awaits_archive and self.kind is not NeedKind.OTHER_ARCHIVE)


KINDS: Mapping[Stage, NeedKind] = {
    Stage.NEW: NeedKind.REFETCH,
    Stage.NOT_LISTED: NeedKind.NOTHING,
    Stage.EMPTY: NeedKind.REFETCH,
    Stage.OUTAGE: NeedKind.NOTHING,
    Stage.RETRY: NeedKind.REFETCH,
    Stage.ABSENT: NeedKind.ARCHIVE,
    Stage.REFUSED: NeedKind.OTHER_ARCHIVE,
    Stage.PROVISIONAL: NeedKind.ARCHIVE,
    Stage.PROVISIONAL_RETRY: NeedKind.REFETCH,
    Stage.PROVISIONAL_REFUSED: NeedKind.OTHER_ARCHIVE,
    Stage.PUBLISHED: NeedKind.REFETCH,
    Stage.FINAL: NeedKind.NOTHING,
    Stage.FINAL_RETRY: NeedKind.REST,
    Stage.FINAL_REFUSED: NeedKind.OTHER_ARCHIVE,
    Stage.REPLACED: NeedKind.REFETCH,
}
"""What a day of each stage needs."""


def needs(record: DayRecord | None, now: datetime, reach: timedelta | None = None) -> Need:
    """Return what a day needs.

    Args:
        record: The day's record; None if it was never fetched.
        now: The present moment, zone-aware.
        reach: How far back REST serves the series, see :func:`reach_of`; None means without limit.
    """
    at = clock.naive_utc(now)
    if record is None:
        return Need(NeedKind.REFETCH, at)
    is_final = record.final and record.outcome in (HELD, EMPTY)
    if record.day >= at.date():
        return Need(NeedKind.LATER, at, record.asked_at, is_final=is_final)
    without_archive = record.outcome in (HELD, EMPTY) or record.failure in WITHOUT_ARCHIVE
    return Need(
        KINDS[stage_of(record)],
        at,
        record.asked_at,
        rest_ends(record, at, reach),
        awaits_archive=without_archive and not record.final,
        is_final=is_final,
    )


def reach_of(key: SeriesKey) -> timedelta | None:
    """Return how far back from now REST serves a series; None means without limit."""
    return None if key.data_type is DataType.TRADE_PROFILE else spec_of(key).rest.reach


def pause_after(attempts: int) -> timedelta:
    """Return how long a day rests after a number of attempts: an hour, doubling, at most a week."""
    doublings = min(max(attempts, 1) - 1, 10)
    return min(FIRST_PAUSE * (1 << doublings), LONGEST_PAUSE)


def pause_ended(since: datetime, seen: datetime, now: datetime) -> bool:
    """Return True if one of the pauses that follow each other from a moment on has ended since the last look.

    Args:
        since: The moment.
        seen: The last look.
        now: The present moment.
    """
    ends, attempts = since, 0
    while ends <= now:
        attempts += 1
        ends += pause_after(attempts)
        if seen < ends <= now:
            return True
    return False


def rest_ends(record: DayRecord, at: datetime, reach: timedelta | None) -> datetime | None:
    """Return when the pause after the newest attempt ends; None if there is none.

    While REST still serves the day and soon will not, each hourly tick asks. Once it no longer does, one more attempt
    gives the final verdict.
    """
    if record.asked_at is None or record.attempts == 0:
        return None
    pause = pause_after(record.attempts)
    if reach is not None:
        gone = datetime.combine(record.day + _DAY, time()) + reach
        if at < gone:
            pause = min(pause, PAUSE_WITHIN_REACH)
        elif record.asked_at < gone:
            return None
    return record.asked_at + pause


def is_still_unlisted(record: DayRecord, listing: Listing) -> bool:
    """Return True if a day is not listed, also by the listing as refreshed since."""
    return record.outcome == NOT_LISTED and not (listing.spans and listing.covers(record.day))


# --- against the listing of the archive -----------------------------------------------------------------------------


def knows_archive(record: DayRecord, etag: str) -> bool:
    """Return True if an archive is the one that a day's rows came from, or one that was refused before.

    Args:
        record: The day's record.
        etag: Of the archive, as listed.
    """
    if record.etag == etag:
        return record.outcome != FAILED or record.failure in LASTING
    return record.replaced_by == etag and record.attempts > 0 and record.failure in LASTING


def refused_archive(record: DayRecord, etag: str) -> bool:
    """Return True if a stored day keeps its rows because an archive that was to replace them was refused.

    Args:
        record: The day's record.
        etag: Of the archive, as listed.
    """
    return record.outcome == HELD and record.failure in REFUSED and knows_archive(record, etag)


def expects_archive(record: DayRecord, etag: str) -> bool:
    """Return True if a day is marked for an archive already, and was not refused it: its pauses go on.

    Args:
        record: The day's record.
        etag: Of the archive, as listed.
    """
    return record.replaced_by == etag and record.failure not in LASTING


def profile_is_due(trades: DayRecord | None, profile: DayRecord | None) -> bool:
    """Return True if a day's profile is to be made: its aggTrades are stored, and it was not made of them.

    It is made again, too, if the checks of the aggTrades have begun or ceased to fail, so that its mark is right.

    Args:
        trades: The day's row in the ledger of the aggTrades.
        profile: The day's row in the ledger of the tradeProfile, whose ``archive_sha256`` is the content that it was
            made of.
    """
    if trades is None or trades.outcome != HELD:
        return False
    # A profile without rows (all of them sentinels) has no hash, but it is as final as its source.
    made_of = profile.archive_sha256 or trades.content_sha256 if profile else None
    if profile is None or (profile.final, made_of) != (trades.final, trades.content_sha256):
        return True
    return profile.outcome == HELD and marked_with(profile) != source_mark(trades)
