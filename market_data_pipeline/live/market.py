"""The state of one market's feed: events and answers in, effects out. Pure, and without a clock of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from market_data_pipeline.live.candles import CandleTrack, Values
from market_data_pipeline.live.effects import Append, AskCandles, AskTrades, Effect, Notice
from market_data_pipeline.live.trades import TradeTrack
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.sources.binance.websocket import (
    MOST_STREAMS,
    CandleEvent,
    MarkPriceEvent,
    StreamEvent,
    TradeEvent,
)

LONGEST_PROOF_US = 3_600_000_000
"""Longest candle that is compared with its trades."""

_SILENT_US = 900_000_000
"""Time without a candle, also from REST, after which a symbol may have been delisted."""


def is_followed(key: SeriesKey) -> bool:
    """Return True if the feed has this kind of series: aggTrades and all kinds of candles, of spot and futures."""
    return key.market in MOST_STREAMS and (key.data_type is DataType.AGG_TRADES or key.data_type.has_interval)


@dataclass
class MarketFeed:
    """All series of one market.

    Attributes:
        candles: Candles by series.
        trades: Trades by series.
        counts: Numbers of events by kind, for the status.
        not_trading: Symbols that did not trade in the last exchangeInfo. Their candles are not requested.
    """

    candles: dict[SeriesKey, CandleTrack]
    trades: dict[SeriesKey, TradeTrack]
    counts: Counter[str] = field(default_factory=Counter)
    mark_prices: dict[str, int] = field(default_factory=dict)
    """Time of the last mark price by symbol."""
    not_trading: set[str] = field(default_factory=set)
    _of_symbol: dict[str, TradeTrack] = field(default_factory=dict)
    _unproven: dict[SeriesKey, dict[int, CandleEvent]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._of_symbol = {key.symbol: track for key, track in self.trades.items()}

    def take(self, event: StreamEvent, now_us: int) -> list[Effect]:
        """Take an event of a stream."""
        if isinstance(event, TradeEvent):
            track = self.trades[event.key]
            track.event_us = max(track.event_us, event.event_us)
            return track.take((event,), now_us)
        if isinstance(event, CandleEvent):
            candles = self.candles[event.key]
            candles.event_us = max(candles.event_us, event.event_us)
            self.not_trading.discard(event.key.symbol)
            return self._closed(candles, event, now_us) if event.closed else candles.formed(event, now_us)
        if isinstance(event, MarkPriceEvent):
            self.mark_prices[event.symbol] = event.event_us
        return []

    def _closed(self, track: CandleTrack, event: CandleEvent, now_us: int) -> list[Effect]:
        trades = self._of_symbol.get(event.key.symbol)
        verdict = None if trades is None else trades.verdict(event, track.step)
        effects = track.closed(event, now_us, proven=verdict is True)
        if not any(isinstance(effect, Append) for effect in effects) or trades is None:
            return effects
        if verdict is False:
            effects += self._unequal(track, event)
        elif verdict is True:
            self.counts["proven"] += 1
        elif track.step in trades.steps:
            self._unproven.setdefault(event.key, {})[event.open_us] = event
        return effects

    def _unequal(self, track: CandleTrack, event: CandleEvent) -> list[Effect]:
        self.counts["unequal"] += 1
        return track.contest(event.open_us, "A candle differs from the candle of its trades")

    def tick(self, now_us: int) -> list[Effect]:
        """Return what is due: requests to REST, and proofs that waited for trades."""
        effects: list[Effect] = []
        for key, waiting in self._unproven.items():
            track, trades = self.candles[key], self._of_symbol[key.symbol]
            for opened, event in list(waiting.items()):
                verdict = trades.verdict(event, track.step)
                if verdict is None and not trades.is_past(event, track.step):
                    continue
                del waiting[opened]
                if verdict is True:
                    self.counts["proven"] += 1
                    effects += track.prove(opened)
                elif verdict is False:
                    effects += self._unequal(track, event)
        for key, track in self.candles.items():
            if key.symbol not in self.not_trading:
                effects += track.tick(now_us)
        for trade_track in self.trades.values():
            effects += trade_track.tick(now_us)
        return effects

    def lost(self, keys: Iterable[SeriesKey]) -> list[Effect]:
        """Take the loss of all connections of series: nothing is known of their open candles."""
        return [effect for key in keys if key in self.candles for effect in self.candles[key].forget_forming()]

    def doubts_listings(self, now_us: int) -> bool:
        """Return True if a symbol may not trade, so that exchangeInfo is needed."""
        return bool(self.not_trading) or any(
            track.unanswered_us(now_us) > _SILENT_US for track in self.candles.values()
        )

    def take_listing(self, trading: Collection[str]) -> list[Effect]:
        """Take the symbols that trade now. Requests for candles of others end until they trade again."""
        before = self.not_trading
        self.not_trading = {key.symbol for key in self.candles} - set(trading)
        return [
            Notice(key, "not_trading", "The symbol does not trade. Its candles are not requested until it does.")
            for key in {key.symbol: key for key in self.candles if key.symbol in self.not_trading - before}.values()
        ]

    def answered_candles(self, ask: AskCandles, rows: Sequence[Values], now_us: int) -> list[Effect]:
        """Take REST's candles."""
        return self.candles[ask.key].answered(ask, rows, now_us)

    def answered_trades(self, ask: AskTrades, trades: Sequence[TradeEvent], now_us: int) -> list[Effect]:
        """Take REST's trades."""
        return self.trades[ask.key].answered(trades, now_us)

    def failed(self, ask: AskCandles | AskTrades, now_us: int) -> list[Effect]:
        """Record that a request failed."""
        if isinstance(ask, AskTrades):
            return self.trades[ask.key].failed(now_us)
        self.candles[ask.key].failed(now_us)
        return []


def make_feed(
    keys: Iterable[SeriesKey], next_candle: Mapping[SeriesKey, int], next_trade: Mapping[SeriesKey, int | None]
) -> MarketFeed:
    """Create the state of a market.

    Args:
        keys: Series of one market.
        next_candle: Open time of the first candle to store, for each series of candles.
        next_trade: Id of the first trade to store. None or absent begins with the first that comes.
    """
    followed = [key for key in keys if is_followed(key)]
    candles = {key: CandleTrack(key, next_candle[key]) for key in followed if key.data_type.has_interval}
    klines = [track for key, track in candles.items() if key.data_type is DataType.KLINES]
    trades = {
        key: TradeTrack(
            key,
            tuple({t.step for t in klines if t.key.symbol == key.symbol and t.step <= LONGEST_PROOF_US}),
            next_trade.get(key),
        )
        for key in followed
        if key.data_type is DataType.AGG_TRADES
    }
    return MarketFeed(candles, trades)
