"""When a day that is not as it should be is asked for again: with growing pauses, and never in a loop.

A day may be asked for again when what it lacks may have come since: a gap whose verdict is open, or a failure that
passes by itself (the network, a host that refused, a budget used up). A failure that lies in the published bytes passes
only when other bytes, or another checksum, are published: the sweep over the listing sees that by the ETags and marks
the day, see :func:`marked`. The count of attempts is what the pauses grow by, so marking a day starts it anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime, time, timedelta

from market_data_pipeline import clock
from market_data_pipeline.findings import Basis, Finding
from market_data_pipeline.lake.ledger import EMPTY, FAILED, HELD, NOT_LISTED, LedgerRow
from market_data_pipeline.quality.standing import continuity, is_told
from market_data_pipeline.series import DataType, Listing, SeriesKey
from market_data_pipeline.specs import spec_of

_DAY = timedelta(days=1)

LASTING = frozenset({"checksum", "malformed", "conflict", "absent", "unproven"})
"""Kinds of failure that the same answer of the archive would only bring again."""

WITHOUT_ARCHIVE = frozenset({"absent", "unpublished", "host_off", "rest_answer"})
"""Kinds of failure of a day for which the archive had nothing and REST did not stand in."""

REFUSED = LASTING - WITHOUT_ARCHIVE
"""Kinds of failure of a day whose archive was fetched, and is not to be taken."""

FIRST_PAUSE = timedelta(hours=1)
LONGEST_PAUSE = timedelta(days=7)
PAUSE_WITHIN_REACH = timedelta(minutes=45)
"""Longest pause while REST still serves rows of the day, and soon will not: each hour's tick of `repair` asks."""


def pause_after(attempts: int) -> timedelta:
    """How long a day rests after so many attempts: an hour after the first, doubling, never more than a week."""
    doublings = min(max(attempts, 1) - 1, 10)
    return min(FIRST_PAUSE * (1 << doublings), LONGEST_PAUSE)


def pause_ended(since: datetime, seen: datetime, now: datetime) -> bool:
    """Whether one of the pauses that follow each other from a moment on has ended since one looked last.

    Args:
        since: The moment.
        seen: When one looked last.
        now: The present moment.
    """
    ends, attempts = since, 0
    while ends <= now:
        attempts += 1
        ends += pause_after(attempts)
        if seen < ends <= now:
            return True
    return False


def is_due(row: LedgerRow, now: datetime, reach: timedelta | None = None) -> bool:
    """Whether a day is to be asked for again now, by itself. A day that is not over is the hourly schedule's.

    Args:
        row: The day's row in the ledger.
        now: The present moment, zone-aware.
        reach: How far back REST serves the series, see :func:`reach_of`; None where there is no limit.
    """
    if row.day >= clock.naive_utc(now).date() or not _may_change(row):
        return False
    return _has_rested(row, now, reach)


def reach_of(key: SeriesKey) -> timedelta | None:
    """How far back from now REST serves a series; None where there is no limit."""
    return None if key.data_type is DataType.TRADE_PROFILE else spec_of(key).rest.reach


def _has_rested(row: LedgerRow, now: datetime, reach: timedelta | None) -> bool:
    """Whether the pause after a day's newest attempt is over.

    What REST will soon not serve any more is asked for at each tick, and once afterwards, when its verdict becomes one
    that stays.
    """
    if row.asked_at is None or row.attempts == 0:
        return True
    naive, pause = clock.naive_utc(now), pause_after(row.attempts)
    if reach is not None:
        gone = datetime.combine(row.day + _DAY, time()) + reach
        if naive < gone:
            pause = min(pause, PAUSE_WITHIN_REACH)
        elif row.asked_at < gone:
            return True
    return naive >= row.asked_at + pause


def is_settled(row: LedgerRow, now: datetime, reach: timedelta | None = None) -> bool:
    """Whether a day need not be asked of any source: it is held and final, or without rows, and nothing is due."""
    return (row.held or (row.outcome == EMPTY and row.final)) and not is_due(row, now, reach)


def _may_change(row: LedgerRow) -> bool:
    """Whether another attempt may find something else than the newest one did."""
    if row.replaced_by is not None and row.attempts == 0:
        return True
    if row.failure in LASTING:
        return False
    if row.outcome == HELD:
        # Of a final day, an older failure tells nothing any more, unless it was met in replacing the day.
        again = row.open or row.replaced_by is not None or (row.failure is not None and not row.final)
        return again or Basis.RULE_REPLACED in row.bases
    return row.outcome == FAILED or (row.outcome == EMPTY and not row.final)


def waits_for_archive(row: LedgerRow, now: datetime) -> bool:
    """Whether a day that is over needs nothing but its archive, which has not been published yet, or was not seen.

    Args:
        row: The day's row in the ledger.
        now: The present moment, zone-aware.
    """
    if row.final or row.day >= clock.naive_utc(now).date():
        return False
    return row.outcome in (HELD, EMPTY) or (row.outcome == FAILED and row.failure in WITHOUT_ARCHIVE)


def is_worth_asking(row: LedgerRow, now: datetime, reach: timedelta | None = None) -> bool:
    """Whether to ask for a day without a look at the listing: it is due, or its archive may have been published.

    Args:
        row: The day's row in the ledger.
        now: The present moment, zone-aware.
        reach: How far back REST serves the series; None where there is no limit.
    """
    return is_due(row, now, reach) or (waits_for_archive(row, now) and not is_refused(row))


def is_refused(row: LedgerRow) -> bool:
    """Whether the archive of a day was fetched and refused, so that only other bytes or another checksum help."""
    return not row.final and row.failure in REFUSED and not (row.replaced_by and row.attempts == 0)


def is_not_listed(row: LedgerRow, listing: Listing) -> bool:
    """Whether a day is still known not to be listed: the listing may have been refreshed since it was asked for."""
    return row.outcome == NOT_LISTED and not (listing.spans and listing.covers(row.day))


def unmet_midnights(key: SeriesKey, rows: Mapping[date, LedgerRow], now: datetime) -> list[date]:
    """Days of aggTrades that are due because ids do not run on from one to the next, and no verdict says why.

    Neighbours are looked at together when either is brought; a run that was killed in between leaves them so. Candles
    lie on a grid, so that what lacks at midnight is a gap of the day itself.

    Args:
        key: The series.
        rows: Its ledger, or what it has of days that may meet.
        now: The present moment, zone-aware.

    Returns:
        Both days of each such midnight, in order.
    """
    if key.interval is not None:
        return []
    days: set[date] = set()
    for found in continuity(key, rows, clock.naive_utc(now).date()):
        pair = (rows[found.day - _DAY], rows[found.day])
        if not is_told(key, found, rows, _stays) and all(_has_rested(row, now, reach_of(key)) for row in pair):
            days.update(row.day for row in pair)
    return sorted(days)


def _stays(finding: Finding) -> bool:
    """Whether another attempt would find the same."""
    return not finding.open


def is_known(row: LedgerRow, etag: str) -> bool:
    """Whether an archive as listed is the one that a day's rows came from, or one that was refused before.

    Args:
        row: The day's row in the ledger.
        etag: Of the archive, as listed.
    """
    if row.etag == etag:
        return row.outcome != FAILED or row.failure in LASTING
    return row.replaced_by == etag and row.attempts > 0 and row.failure in LASTING


def was_refused(row: LedgerRow, etag: str) -> bool:
    """Whether a day that is held keeps its rows because an archive that was to replace them was refused.

    Args:
        row: The day's row in the ledger.
        etag: Of the archive, as listed.
    """
    return row.outcome == HELD and row.failure in REFUSED and is_known(row, etag)


def is_underway(row: LedgerRow, etag: str) -> bool:
    """Whether a day is marked for an archive already and was not refused it: its pauses go on as they are.

    Args:
        row: The day's row in the ledger.
        etag: Of the archive, as listed.
    """
    return row.replaced_by == etag and row.failure not in LASTING


def marked(row: LedgerRow, etag: str) -> LedgerRow:
    """The row of a day for which another archive is listed than the one that it knows: due at once, and only once.

    Args:
        row: The day's row in the ledger.
        etag: Of the archive, as listed.
    """
    return replace(row, replaced_by=etag, attempts=0)
