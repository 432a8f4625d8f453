"""What time it is, and microseconds since 1970, which is how the project counts time. Always UTC.

Everything in the project asks here what time it is, as ``clock.now()``, so that a test can move time in one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

US_PER_DAY = 86_400_000_000
"""Microseconds in a day; Binance's days have no leap seconds."""

TOLERANCE = timedelta(minutes=5)
"""How far in the future a moment on record may lie: beyond, it was written while this machine's clock was wrong."""

_EPOCH_DAY = date(1970, 1, 1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def now() -> datetime:
    """The present moment, zone-aware in UTC."""
    return datetime.now(UTC)


def is_future(moment: datetime) -> bool:
    """Return True if a zone-aware moment on record lies further in the future than a right clock could write."""
    return moment > now() + TOLERANCE


def today() -> date:
    """The present day in UTC, which is the day that Binance's daily files follow."""
    return now().date()


def day_start_us(day: date) -> int:
    """Midnight at which a day begins, in microseconds since 1970."""
    return (day - _EPOCH_DAY).days * US_PER_DAY


def day_of_us(microseconds: int) -> date:
    """The day in which a moment lies."""
    return _EPOCH_DAY + timedelta(days=microseconds // US_PER_DAY)


def to_us(moment: datetime) -> int:
    """A zone-aware moment in microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def naive_utc(moment: datetime) -> datetime:
    """A zone-aware moment as tables keep it: UTC, without zone."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def naive_from_us(microseconds: int) -> datetime:
    """A moment as tables keep it, UTC without zone, from microseconds since 1970."""
    return (_EPOCH + timedelta(microseconds=microseconds)).replace(tzinfo=None)


def days_of_month(day: date) -> tuple[date, ...]:
    """All days of the month of a day."""
    return _days_from(day.replace(day=1))


@lru_cache
def _days_from(first: date) -> tuple[date, ...]:
    following = (first + timedelta(days=32)).replace(day=1)
    return tuple(first + timedelta(days=n) for n in range((following - first).days))


def days_between(first: date, last: date) -> list[date]:
    """The days from ``first`` to ``last``, both included; none where ``last`` is earlier."""
    return [first + n * DAY for n in range((last - first).days + 1)]


def contiguous_ranges(days: Iterable[date], at_most: int | None = None) -> Iterator[tuple[date, date]]:
    """Split days into runs of consecutive days, in order, as Dagster's range runs want them.

    Args:
        days: Days in any order; a day named twice counts once.
        at_most: Longest run in days; None for no limit.

    Yields:
        First and last day of each run, both included.

    >>> list(contiguous_ranges([date(2024, 1, 1), date(2024, 1, 2), date(2024, 1, 5)]))
    [(datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)), (datetime.date(2024, 1, 5), datetime.date(2024, 1, 5))]
    """
    first = last = None
    for day in sorted(set(days)):
        if first is None or last is None:
            first = last = day
        elif day - last == DAY and (at_most is None or (last - first).days + 1 < at_most):
            last = day
        else:
            yield first, last
            first = last = day
    if first is not None and last is not None:
        yield first, last
