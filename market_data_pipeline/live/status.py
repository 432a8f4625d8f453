"""The state of each series for the status file. Reading and writing that file belong to ``lake/feed_status.py``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from market_data_pipeline import clock
from market_data_pipeline.live.market import MarketFeed


def series_status(feed: MarketFeed, now_us: int) -> dict[str, dict[str, Any]]:
    """Return the state of each series by its name.

    Times are ISO in UTC. ``lateness_seconds`` counts from the end of the last candle without open ones before it, or
    from the last trade.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, track in feed.candles.items():
        found[str(key)] = {
            "last_event": _iso(track.event_us or feed.mark_prices.get(key.symbol, 0)),
            "last_closed": _iso(track.last_closed_us),
            "lateness_seconds": max(round((now_us - track.next_us) / 1e6, 1), 0.0),
            "open_gaps": len(track.open_gaps(now_us)),
            "absent": len(track.absent),
            "from_rest": track.late,
            "repeated": track.repeated,
        }
    for key, trades in feed.trades.items():
        found[str(key)] = {
            "last_event": _iso(trades.event_us),
            "last_closed": _iso(trades.last_us),
            "lateness_seconds": round((now_us - trades.last_us) / 1e6, 1) if trades.last_us else None,
            "open_gaps": len(trades.gaps) + (1 if trades.waiting else 0),
            "waiting": trades.waiting,
            "repeated": trades.repeated,
        }
    return found


def _iso(us: int) -> str | None:
    return status_time(clock.naive_from_us(us)) if us > 0 else None


def status_time(moment: datetime) -> str:
    """Return a time of the status: ISO, UTC, with milliseconds."""
    return f"{moment.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
