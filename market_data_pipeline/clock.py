"""What time it is. Everything in the project asks here, so that a test can move time in one place."""

from __future__ import annotations

from datetime import UTC, date, datetime


def now() -> datetime:
    """The present moment, zone-aware in UTC."""
    return datetime.now(UTC)


def today() -> date:
    """The present day in UTC, which is the day that Binance's daily files follow."""
    return now().date()
