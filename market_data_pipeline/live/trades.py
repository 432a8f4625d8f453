"""Trades of one symbol in the order of their ids, and the candles that follow from them. Pure.

Ids of aggTrades are contiguous, so a missing one shows. Candles of the stream do not belong here (``candles.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from market_data_pipeline.lake.live_rows import CloseState, LiveRow
from market_data_pipeline.live.effects import SECOND_US, Append, AskTrades, Effect, Notice, backoff_us
from market_data_pipeline.model.series import Market, SeriesKey
from market_data_pipeline.sources.binance.websocket import CandleEvent, TradeEvent

_REORDERED_US = 3 * SECOND_US
"""Time to wait for a missing trade before REST is asked."""
_MOST_AHEAD = 1_000_000
"""An id further ahead than this is no trade of the near future."""
_MOST_WAITING = 100_000
"""Most trades that wait for missing ones. Beyond that, the missing ones are a gap."""
_MOST_ASKED = 5_000
"""Most trades in one request of the feed: five pages of REST."""
_PATIENCE = 4
"""Requests without progress until missing trades count as a gap."""
_KEPT_CANDLES = 64


class TradeCandle:
    """A candle made of trades, exact: prices and quantities in units of 1e-8, turnover in units of 1e-16."""

    __slots__ = (
        "close",
        "count",
        "first_id",
        "high",
        "last_id",
        "low",
        "open",
        "taker",
        "taker_value",
        "value",
        "volume",
    )

    def __init__(self, trade: TradeEvent) -> None:
        self.open = self.high = self.low = self.close = trade.price
        self.first_id, self.last_id = trade.first_id, trade.last_id
        self.volume = self.value = self.taker = self.taker_value = self.count = 0

    def add(self, trade: TradeEvent) -> None:
        """Add a trade after all others."""
        price, quantity = trade.price, trade.quantity
        if price > self.high:
            self.high = price
        if price < self.low:
            self.low = price
        self.close, self.last_id = price, trade.last_id
        self.volume += quantity
        self.value += price * quantity
        self.count += trade.last_id - trade.first_id + 1
        if not trade.is_buyer_maker:
            self.taker += quantity
            self.taker_value += price * quantity

    def equals(self, candle: CandleEvent) -> bool:
        """Return True if a closed candle has the same ids, prices, count and volumes.

        The turnover of cm is in coins and rounded for each trade, so it is not compared.
        """
        o, h, low, c, v, q, taker, taker_q = candle.units
        same = (self.open, self.high, self.low, self.close, self.volume, self.taker) == (o, h, low, c, v, taker)
        same &= (self.first_id, self.last_id, self.count) == (candle.first_id, candle.last_id, candle.values[8])
        if candle.key.market is Market.CM:
            return same
        return same and (self.value, self.taker_value) == (q * 10**8, taker_q * 10**8)


@dataclass
class TradeTrack:
    """State of the trades of one symbol.

    Attributes:
        steps: Lengths of the candles to make, in microseconds.
        next_id: Id of the first trade that is not stored. None before the first trade.
        gaps: Ranges of ids that are missing for good, both ends inclusive.
    """

    key: SeriesKey
    steps: tuple[int, ...] = ()
    next_id: int | None = None
    gaps: list[tuple[int, int]] = field(default_factory=list)
    repeated: int = 0
    event_us: int = 0
    last_us: int = 0
    _ahead: dict[int, TradeEvent] = field(default_factory=dict)
    _candles: dict[int, dict[int, TradeCandle]] = field(default_factory=dict)
    _whole_from_us: int = 1 << 62
    """Candles that open after this moment have all of their trades."""
    _gap_since_us: int = 0
    _asking: bool = False
    _attempts: int = 0
    _retry_us: int = 0

    def __post_init__(self) -> None:
        self._candles = {step: {} for step in self.steps}

    @property
    def waiting(self) -> int:
        """Return the number of trades that wait for missing ones."""
        return len(self._ahead)

    def take(self, trades: Iterable[TradeEvent], now_us: int) -> list[Effect]:
        """Take trades of the stream or of REST, in any order."""
        taken: list[TradeEvent] = []
        effects: list[Effect] = []
        for trade in trades:
            if self.next_id is None:
                self.next_id = trade.trade_id
            if trade.trade_id < self.next_id:
                self.repeated += 1
            elif trade.trade_id == self.next_id:
                self._add(trade, taken)
            elif trade.trade_id - self.next_id > _MOST_AHEAD:
                effects.append(Notice(self.key, "implausible", f"The id {trade.trade_id} is ignored."))
            elif trade.trade_id in self._ahead:
                self.repeated += 1
            else:
                if not self._ahead:
                    self._gap_since_us = now_us
                self._ahead[trade.trade_id] = trade
        self._drain(taken)
        if len(self._ahead) > _MOST_WAITING:
            effects += self._give_up(taken)
        return [*self._append(taken), *effects]

    def tick(self, now_us: int) -> list[Effect]:
        """Return the request that is due."""
        if not self._ahead or self._asking or self.next_id is None or now_us < self._retry_us:
            return []
        if now_us - self._gap_since_us < _REORDERED_US:
            return []
        self._asking = True
        return [AskTrades(self.key, self.next_id, min(min(self._ahead) - 1, self.next_id + _MOST_ASKED - 1))]

    def answered(self, trades: Sequence[TradeEvent], now_us: int) -> list[Effect]:
        """Take REST's answer."""
        self._asking = False
        before = self.next_id
        effects = self.take(trades, now_us)
        if self.next_id != before or not self._ahead:
            self._attempts, self._retry_us = 0, now_us
        else:
            effects += self._failed(now_us)
        return effects

    def failed(self, now_us: int) -> list[Effect]:
        """Record that a request failed."""
        self._asking = False
        return self._failed(now_us)

    def _failed(self, now_us: int) -> list[Effect]:
        self._attempts += 1
        self._retry_us = now_us + backoff_us(self._attempts)
        if self._attempts < _PATIENCE or not self._ahead:
            return []
        taken: list[TradeEvent] = []
        effects = self._give_up(taken)
        return [*self._append(taken), *effects]

    def _append(self, taken: Sequence[TradeEvent]) -> list[Effect]:
        if not taken:
            return []
        return [Append(self.key, tuple(LiveRow(one.values, CloseState.CLOSED) for one in taken), tuple(taken))]

    def _give_up(self, taken: list[TradeEvent]) -> list[Effect]:
        first = min(self._ahead)
        gap = (self.next_id or first, first - 1)
        self.gaps.append(gap)
        self.next_id, self._attempts = first, 0
        self._whole_from_us = 1 << 62
        self._drain(taken)
        return [Notice(self.key, "gap", f"Trades {gap[0]} to {gap[1]} are missing. The archive will have them.")]

    def _drain(self, taken: list[TradeEvent]) -> None:
        while self._ahead and (trade := self._ahead.pop(self.next_id or 0, None)) is not None:
            self._add(trade, taken)

    def _add(self, trade: TradeEvent, taken: list[TradeEvent]) -> None:
        taken.append(trade)
        self.next_id = trade.trade_id + 1
        self._whole_from_us = min(self._whole_from_us, trade.time_us)
        self.last_us = max(self.last_us, trade.time_us)
        for step, candles in self._candles.items():
            opened = trade.time_us // step * step
            candle = candles.get(opened)
            if candle is None:
                candle = candles[opened] = TradeCandle(trade)
                while len(candles) > _KEPT_CANDLES:
                    del candles[next(iter(candles))]
            candle.add(trade)

    def verdict(self, candle: CandleEvent, step: int) -> bool | None:
        """Compare a closed candle with its trades. None if they are not all there (yet), or there are none."""
        if step not in self._candles or candle.values[8] == 0 or candle.open_us <= self._whole_from_us:
            return None
        made = self._candles[step].get(candle.open_us)
        if made is None or (made.last_id < candle.last_id and self.last_us < candle.open_us + step):
            return None
        return made.equals(candle)

    def is_past(self, candle: CandleEvent, step: int) -> bool:
        """Return True if no further trade of a candle can come."""
        return self.last_us >= candle.open_us + step
