"""Decide what a day needs now. Schedules, sync and the archive sweep all call :func:`needs`. Pure.

A failed or incomplete day is retried with exponential backoff. Fetching does not belong here (``ingest``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from market_data_pipeline import clock
from market_data_pipeline.model.datasets import is_bounded, spec_of
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
from market_data_pipeline.model.series import DataType, ListingSpans, SeriesKey
from market_data_pipeline.model.states import marked_with, source_mark

_FIRST_PAUSE = timedelta(hours=1)
LONGEST_PAUSE = timedelta(days=7)
_PAUSE_WITHIN_REACH = timedelta(minutes=45)
"""Longest pause before REST stops serving the day. The schedule `repair` ticks hourly."""

_ARCHIVE_AFTER = timedelta(hours=3)
"""Daily archives appear between 03:00 and 09:00 UTC of the next day."""

_PAUSE_OF_USERS = timedelta(hours=1)
"""Pause between requests of users for a day that waits for its archive."""


Wanted = dict[SeriesKey, list[date]]
"""UTC days by series."""


class NeedKind(StrEnum):
    """Kind of source that a day needs."""

    NOTHING = "nothing"
    """Nothing is needed."""
    LATER = "later"
    """The day is not over. The hourly schedule fetches it."""
    ARCHIVE = "archive"
    """Its archive, which is not published yet."""
    OTHER_ARCHIVE = "other_archive"
    """Another archive, or another checksum, than the refused one."""
    REST = "rest"
    """REST, for rows that the archive does not have."""
    REFETCH = "refetch"
    """A new fetch from every source."""


@dataclass(frozen=True, slots=True)
class Need:
    """The need of a day.

    Attributes:
        kind: Kind of source that can meet the need.
        at: Time of this decision (UTC, without zone).
        not_before: Earliest next attempt of a schedule (UTC, without zone). None means at once.
        awaits_archive: True if an archive in the listing would make the day final.
        is_final: True if the day is final, so that only a schedule retries.
    """

    kind: NeedKind
    at: datetime
    not_before: datetime | None = None
    awaits_archive: bool = False
    is_final: bool = False

    @property
    def is_due(self) -> bool:
        """Return True if a schedule should fetch the day now."""
        return self.kind in (NeedKind.REST, NeedKind.REFETCH) and self.has_rested

    @property
    def has_rested(self) -> bool:
        """Return True if the pause after the newest attempt is over."""
        return self.not_before is None or self.not_before <= self.at

    @property
    def is_met(self) -> bool:
        """Return True if the day needs no fetch now, even if a user requests it."""
        return self.is_final and not self.is_due

    @property
    def is_worth_asking(self) -> bool:
        """Return True if a source may have more than the lake. The listing is not read for this."""
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
"""Kind of need, by stage."""


def needs(record: DayRecord | None, now: datetime, reach: timedelta | None = None) -> Need:
    """Return the need of a day.

    Args:
        record: The day's record. None if it was never fetched.
        now: The current time, zone-aware.
        reach: Age of the oldest rows that REST serves, see :func:`reach_of`. None means no limit.
    """
    at = clock.naive_utc(now)
    if record is None:
        return Need(NeedKind.REFETCH, at)
    is_final = record.final and record.outcome in (HELD, EMPTY)
    if record.day >= at.date():
        return Need(NeedKind.LATER, at, is_final=is_final)
    without_archive = record.outcome in (HELD, EMPTY) or record.failure in WITHOUT_ARCHIVE
    return Need(
        KINDS[stage_of(record)],
        at,
        _next_attempt_at(record, at, reach),
        awaits_archive=without_archive and not record.final,
        is_final=is_final,
    )


def is_current(key: SeriesKey, record: DayRecord, now: datetime) -> bool:
    """Return True if no source can have more of a day now, so that a user's request needs no fetch.

    A failed day is always fetched. A day that grows is fetched once per candle. A day that waits for its archive is
    fetched once per hour, from 03:00 UTC of the next day on.

    Args:
        now: The current time, zone-aware.
    """
    need = needs(record, now, reach_of(key))
    if need.is_met or record.outcome == NOT_LISTED:
        return True
    if record.final or record.outcome == FAILED or record.asked_at is None:
        return False
    over = clock.midnight(record.day + clock.DAY)
    if need.at < over:
        return key.interval is not None and _candles_begun(key, need.at) == _candles_begun(key, record.asked_at)
    waits = need.at < over + _ARCHIVE_AFTER or need.at - record.asked_at < _PAUSE_OF_USERS
    return record.asked_at >= over and waits


def _candles_begun(key: SeriesKey, moment: datetime) -> int:
    """Return the number of candles that have begun since 1970. One more has closed only if one more has begun."""
    return clock.to_us(moment.replace(tzinfo=UTC)) // key.step


def reach_of(key: SeriesKey) -> timedelta | None:
    """Return the age of the oldest rows of a series that REST serves. None means no limit."""
    return None if key.data_type is DataType.TRADE_PROFILE else spec_of(key).rest.reach


def perishing_first(wanted: Mapping[SeriesKey, Iterable[date]], now: datetime) -> tuple[Wanted, Wanted]:
    """Split days into those that REST will soon no longer serve, to be fetched first, and all others.

    Metrics fill their gaps from REST, which has only the last 30 days. Trades are left out: REST has two days of them
    at most, they take many requests, and the archive has them.

    Args:
        wanted: UTC days of each series.
        now: The current time, zone-aware.

    Returns:
        The days within the reach of REST, and the others. Series without days are left out.
    """
    soon, later = Wanted(), Wanted()
    for key, days in wanted.items():
        reach = reach_of(key) if key.data_type is not DataType.TRADE_PROFILE and is_bounded(key) else None
        first = date.max if reach is None else (now - reach).date()
        for part, some in (
            (soon, [day for day in days if day >= first]),
            (later, [day for day in days if day < first]),
        ):
            if some:
                part[key] = some
    return soon, later


def pause_after(attempts: int) -> timedelta:
    """Return the backoff after a number of attempts. It starts at an hour, doubles, and ends at a week."""
    doublings = min(max(attempts, 1) - 1, 10)
    return min(_FIRST_PAUSE * (1 << doublings), LONGEST_PAUSE)


def pause_ended(since: datetime, seen: datetime, now: datetime) -> bool:
    """Return True if one of the consecutive pauses ended since the last look.

    Args:
        since: Start of the first pause.
        seen: Time of the last look.
        now: The current time.
    """
    ends, attempts = since, 0
    while ends <= now:
        attempts += 1
        ends += pause_after(attempts)
        if seen < ends <= now:
            return True
    return False


def _next_attempt_at(record: DayRecord, at: datetime, reach: timedelta | None) -> datetime | None:
    """Return the end of the pause after the newest attempt. None if there is no pause.

    Before a day leaves the reach of REST, every hourly tick retries. Afterwards, one more attempt gives the final
    verdict.
    """
    if record.asked_at is None or record.attempts == 0:
        return None
    pause = pause_after(record.attempts)
    if reach is not None:
        gone = clock.midnight(record.day + clock.DAY) + reach
        if at < gone:
            pause = min(pause, _PAUSE_WITHIN_REACH)
        elif record.asked_at < gone:
            return None
    return record.asked_at + pause


def is_still_unlisted(record: DayRecord, listing: ListingSpans) -> bool:
    """Return True if a day is recorded as not listed, and the refreshed listing agrees."""
    return record.outcome == NOT_LISTED and not (listing.spans and listing.covers(record.day))


# --- against the listing of the archive -----------------------------------------------------------------------------


def knows_archive(record: DayRecord, etag: str) -> bool:
    """Return True if an archive is the source of a day's rows, or was refused before.

    Args:
        etag: ETag of the archive in the listing.
    """
    if record.etag == etag:
        return record.outcome != FAILED or record.failure in LASTING
    return record.replaced_by == etag and record.attempts > 0 and record.failure in LASTING


def refused_archive(record: DayRecord, etag: str) -> bool:
    """Return True if a day is stored, and this archive was refused as its replacement.

    Args:
        etag: ETag of the archive in the listing.
    """
    return record.outcome == HELD and record.failure in REFUSED and knows_archive(record, etag)


def expects_archive(record: DayRecord, etag: str) -> bool:
    """Return True if a day is already marked for an archive that was not refused. Its backoff continues.

    Args:
        etag: ETag of the archive in the listing.
    """
    return record.replaced_by == etag and record.failure not in LASTING


def profile_is_due(trades: DayRecord | None, profile: DayRecord | None) -> bool:
    """Return True if a day's profile must be computed: its aggTrades are stored, and it was not made from them.

    A change in the check results of the aggTrades also counts, so that the profile's mark stays right.

    Args:
        trades: The day's record in the ledger of the aggTrades.
        profile: The day's record in the ledger of the tradeProfile. Its ``archive_sha256`` is the content hash of its
            source.
    """
    if trades is None or trades.outcome != HELD:
        return False
    # A profile without rows (all trades are sentinels) has no hash, but it is as final as its source.
    made_of = profile.archive_sha256 or trades.content_sha256 if profile else None
    if profile is None or (profile.final, made_of) != (trades.final, trades.content_sha256):
        return True
    return profile.outcome == HELD and marked_with(profile) != source_mark(trades)
