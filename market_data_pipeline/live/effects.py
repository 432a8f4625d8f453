"""Effects that the pure part of the feed requests. Carrying them out does not belong here (``feed.py``)."""

from __future__ import annotations

from dataclasses import dataclass

from market_data_pipeline.lake.live_rows import LiveRow
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.sources.binance.websocket import CandleEvent, TradeEvent

SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Append:
    """Store rows.

    Attributes:
        events: The messages that they come from, one for each row. None of REST.
        is_news: False if the rows are stored with the same values already.
        is_old: True if they ended before the feed began.
    """

    key: SeriesKey
    rows: tuple[LiveRow, ...]
    events: tuple[CandleEvent | TradeEvent | None, ...] = ()
    is_news: bool = True
    is_old: bool = False


@dataclass(frozen=True, slots=True)
class ShowForming:
    """Replace the open candle of a series. None leaves it without one."""

    key: SeriesKey
    candle: CandleEvent | None


@dataclass(frozen=True, slots=True)
class AskCandles:
    """Ask REST for candles with ``start_us <= open_time < end_us``, and for the one after them, if there is one."""

    key: SeriesKey
    start_us: int
    end_us: int


@dataclass(frozen=True, slots=True)
class AskTrades:
    """Ask REST for trades by id, both ends inclusive."""

    key: SeriesKey
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a person may want to know."""

    key: SeriesKey
    kind: str
    text: str


Effect = Append | ShowForming | AskCandles | AskTrades | Notice


def backoff_us(attempts: int) -> int:
    """Return the pause before the next request after failed ones: 5 seconds, doubled each time, at most 5 minutes."""
    return min(5 << min(max(attempts - 1, 0), 10), 300) * SECOND_US
