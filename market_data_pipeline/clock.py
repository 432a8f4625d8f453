"""The current time, and conversions between days and microseconds since 1970. Always UTC.

Every module calls ``clock.now()``, so that a test can move time in one place. Waiting does not belong here.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

US_PER_DAY = 86_400_000_000
"""Microseconds in a day; Binance's days have no leap seconds."""

TOLERANCE = timedelta(minutes=5)
"""A recorded time further in the future was written while this machine's clock was wrong."""

_EPOCH_DAY = date(1970, 1, 1)
_EPOCH_ORDINAL = _EPOCH_DAY.toordinal()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def now() -> datetime:
    """Return the current time, zone-aware in UTC."""
    return datetime.now(UTC)


def is_future(moment: datetime) -> bool:
    """Return True if a recorded zone-aware time is more than ``TOLERANCE`` in the future."""
    return moment > now() + TOLERANCE


def today() -> date:
    """Return the current UTC day. Binance's daily files use UTC days, too."""
    return now().date()


def day_start_us(day: date) -> int:
    """Return the midnight at which a day begins, in microseconds since 1970."""
    return (day - _EPOCH_DAY).days * US_PER_DAY


def day_number(day: date) -> int:
    """Return the number of days since 1970."""
    return (day - _EPOCH_DAY).days


def day_of_number(number: int) -> date:
    """Return the day of a number of days since 1970."""
    return date.fromordinal(number + _EPOCH_ORDINAL)


def midnight(day: date) -> datetime:
    """Return the midnight at which a day begins (UTC, without zone)."""
    return datetime.combine(day, datetime.min.time())


def day_of_us(microseconds: int) -> date:
    """Return the UTC day of a time in microseconds since 1970."""
    return _EPOCH_DAY + timedelta(days=microseconds // US_PER_DAY)


def to_us(moment: datetime) -> int:
    """Convert a zone-aware time to microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def naive_utc(moment: datetime) -> datetime:
    """Convert a zone-aware time to the form of the tables: UTC, without zone."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def naive_from_us(microseconds: int) -> datetime:
    """Convert microseconds since 1970 to the form of the tables: UTC, without zone."""
    return (_EPOCH + timedelta(microseconds=microseconds)).replace(tzinfo=None)


def days_of_month(day: date) -> tuple[date, ...]:
    """Return all days of the month of a day."""
    return _days_from(day.replace(day=1))


def months_before(day: date, months: int) -> date:
    """Return the same day of an earlier month, or the last day of a shorter month. Never before the year 1.

    >>> months_before(date(2024, 3, 31), 1), months_before(date(2024, 2, 29), 12)
    (datetime.date(2024, 2, 29), datetime.date(2023, 2, 28))
    """
    year, month = divmod(day.year * 12 + day.month - 1 - months, 12)
    if year < date.min.year:
        return date.min
    return date(year, month + 1, min(day.day, monthrange(year, month + 1)[1]))


@lru_cache
def _days_from(first: date) -> tuple[date, ...]:
    return tuple(days_between(first, (first + 32 * DAY).replace(day=1) - DAY))


def days_between(first: date, last: date) -> list[date]:
    """Return the days from ``first`` to ``last``, both included. The list is empty if ``last`` is earlier."""
    return [first + n * DAY for n in range((last - first).days + 1)]


def contiguous_ranges(days: Iterable[date], at_most: int | None = None) -> Iterator[tuple[date, date]]:
    """Split days into runs of consecutive days, in order. Dagster's range runs take them in this form.

    Args:
        days: Days in any order. Duplicates count once.
        at_most: Longest run in days. None means no limit.

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
