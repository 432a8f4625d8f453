"""The pure part of the feed: any order, loss and duplication of messages gives the truth, once REST has answered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_pipeline.lake.live_rows import CloseState, LiveRow
from market_data_pipeline.live.candles import Values
from market_data_pipeline.live.effects import Append, AskCandles, AskTrades, Effect, Notice, ShowForming
from market_data_pipeline.live.market import MarketFeed, make_feed
from market_data_pipeline.live.trades import TradeCandle
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sources.binance.websocket import CandleEvent, StreamEvent, TradeEvent

MINUTE = 60_000_000
SECOND = 1_000_000
START = 1_772_366_400_000_000
CANDLES = SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", "1m")
TRADES = SeriesKey(EXCHANGE, Market.UM, DataType.AGG_TRADES, "BTCUSDT")
MINUTES, A_MINUTE = 6, 3


def trade(number: int) -> TradeEvent:
    """One of three trades a minute."""
    at = START + number * MINUTE // A_MINUTE + SECOND
    price, quantity = 100 + number * 7 % 13, 1 + number % 4
    values = (number, float(price), float(quantity), number, number, at, number % 2 == 0)
    return TradeEvent(TRADES, at, number, number, number, at, price * 10**8, quantity * 10**8, number % 2 == 0, values)


TRUE_TRADES = [trade(number) for number in range(MINUTES * A_MINUTE)]


def candle(minute: int) -> CandleEvent:
    """The candle of the trades of a minute."""
    opened = START + minute * MINUTE
    inside = [t for t in TRUE_TRADES if opened <= t.time_us < opened + MINUTE]
    made = TradeCandle(inside[0])
    for one in inside:
        made.add(one)
    parts = (
        made.open,
        made.high,
        made.low,
        made.close,
        made.volume,
        made.value // 10**8,
        made.taker,
        made.taker_value // 10**8,
    )
    o, h, low, c, v, q, taker, taker_q = (part / 1e8 for part in parts)
    values = (opened, o, h, low, c, v, opened + MINUTE - 1000, q, made.count, taker, taker_q)
    return CandleEvent(CANDLES, opened + MINUTE, opened, True, made.first_id, made.last_id, values, parts)


TRUE_CANDLES = [candle(minute) for minute in range(MINUTES)]


@dataclass
class World:
    """A feed with its stored rows and a REST that answers with the truth, or fails as often as it is told to."""

    failures: int = 0
    feed: MarketFeed = field(default_factory=lambda: make_feed([CANDLES, TRADES], {CANDLES: START}, {TRADES: 0}))
    stored: dict[SeriesKey, dict[int, LiveRow]] = field(default_factory=lambda: {CANDLES: {}, TRADES: {}})
    notices: list[Notice] = field(default_factory=list)
    asked: list[Effect] = field(default_factory=list)
    forming: list[CandleEvent | None] = field(default_factory=list)
    now: int = START

    def do(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Append):
                self.stored[effect.key].update({int(row.values[0]): row for row in effect.rows})
            elif isinstance(effect, Notice):
                self.notices.append(effect)
            elif isinstance(effect, ShowForming):
                self.forming.append(effect.candle)
            else:
                self.asked.append(effect)
                self.do(self.answer(effect))

    def answer(self, ask: AskCandles | AskTrades) -> list[Effect]:
        if self.failures:
            self.failures -= 1
            return self.feed.failed(ask, self.now)
        if isinstance(ask, AskTrades):
            known = [t for t in TRUE_TRADES if ask.first <= t.trade_id <= ask.last and t.time_us <= self.now]
            return self.feed.answered_trades(ask, known, self.now)
        known_candles = [c.values for c in TRUE_CANDLES if ask.start_us <= c.open_us <= ask.end_us]
        return self.feed.answered_candles(ask, [v for v in known_candles if v[0] <= self.now], self.now)

    def send(self, event: StreamEvent) -> None:
        self.do(self.feed.take(event, self.now))

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += SECOND
            self.do(self.feed.tick(self.now))

    def settle(self) -> None:
        """Let an hour pass after the last trade, with one more trade, which shows the loss of those before it."""
        self.now = max(self.now, START + MINUTES * MINUTE)
        self.send(TRUE_TRADES[-1])
        self.wait(1_200)

    def candles(self) -> list[Values]:
        return [row.values for _, row in sorted(self.stored[CANDLES].items())]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    order=st.permutations([*range(MINUTES * (A_MINUTE + 1))]),
    lost=st.sets(st.integers(0, MINUTES * (A_MINUTE + 1) - 1)),
    repeated=st.lists(st.integers(0, MINUTES * (A_MINUTE + 1) - 1), max_size=10),
    pauses=st.lists(st.integers(0, 90), max_size=MINUTES * (A_MINUTE + 1)),
    failures=st.integers(0, 2),
    sorted_first=st.booleans(),
)
def test_any_order_loss_and_repetition_gives_the_truth(
    order: list[int], lost: set[int], repeated: list[int], pauses: list[int], failures: int, sorted_first: bool
) -> None:
    events: list[CandleEvent | TradeEvent] = [*TRUE_CANDLES, *TRUE_TRADES]
    world = World(failures)
    world.now = START + MINUTES * MINUTE if not sorted_first else START
    sent = [events[n] for n in (sorted(order) if sorted_first else order) if n not in lost]
    sent += [events[n] for n in repeated if n not in lost]
    for number, event in enumerate(sent):
        world.now = max(world.now, event.event_us)
        world.send(event)
        world.wait(pauses[number] if number < len(pauses) else 0)
    world.settle()
    assert world.candles() == [c.values for c in TRUE_CANDLES]
    assert sorted(world.stored[TRADES]) == [t.trade_id for t in TRUE_TRADES]
    assert [row.values for _, row in sorted(world.stored[TRADES].items())] == [t.values for t in TRUE_TRADES]
    assert {notice.kind for notice in world.notices} == set()


def in_time(world: World) -> None:
    """Send everything when it happens."""
    events: list[CandleEvent | TradeEvent] = [*TRUE_CANDLES, *TRUE_TRADES]
    for event in sorted(events, key=lambda event: event.event_us):
        world.now = event.event_us + SECOND
        world.send(event)


def test_without_faults_rest_is_never_asked() -> None:
    world = World()
    in_time(world)
    world.wait(20)
    assert world.asked == []
    assert world.candles() == [c.values for c in TRUE_CANDLES]


def test_candles_are_proven_by_their_trades() -> None:
    """The first candle may have had trades before the feed began."""
    world = World()
    in_time(world)
    world.wait(20)
    states = [row.state for _, row in sorted(world.stored[CANDLES].items())]
    assert states == [CloseState.CLOSED, *[CloseState.PROVEN] * (MINUTES - 2), CloseState.PROVEN]


def test_a_late_candle_is_asked_for_after_five_seconds() -> None:
    world = World()
    world.now = START + MINUTE
    world.wait(4)
    assert world.asked == []
    world.wait(3)
    assert world.asked == [AskCandles(CANDLES, START, START + MINUTE)]
    assert [row.state for row in world.stored[CANDLES].values()] == [CloseState.REST]


def test_many_late_candles_take_one_request() -> None:
    world = World()
    world.now = START + 5 * MINUTE + 10 * SECOND
    world.wait(1)
    assert world.asked == [AskCandles(CANDLES, START, START + 5 * MINUTE)]


def test_an_open_candle_of_rest_is_not_stored() -> None:
    """REST shows the candle of the running minute, too. It counts only with a later one."""
    world = World()
    world.now = START + MINUTE + 10 * SECOND
    effects = world.feed.answered_candles(
        AskCandles(CANDLES, START, START + MINUTE), [TRUE_CANDLES[0].values], world.now
    )
    assert effects == []


def changed(event: CandleEvent, close: float) -> CandleEvent:
    values = (*event.values[:4], close, *event.values[5:])
    units = (*event.units[:3], int(close * 10**8), *event.units[4:])
    return CandleEvent(CANDLES, event.event_us, event.open_us, True, event.first_id, event.last_id, values, units)


def test_a_candle_that_differs_from_its_trades_is_corrected() -> None:
    world = World()
    for event in TRUE_TRADES:
        world.now = event.event_us + SECOND
        world.send(event)
    world.now = START + 2 * MINUTE + 2 * SECOND
    world.send(changed(TRUE_CANDLES[1], 101.0))
    world.wait(10)
    assert world.stored[CANDLES][TRUE_CANDLES[1].open_us].values == TRUE_CANDLES[1].values
    assert [notice.kind for notice in world.notices] == ["contested"]
    assert world.feed.counts["unequal"] == 1


def test_two_different_closes_are_decided_by_rest() -> None:
    world = World()
    in_time(world)
    world.send(changed(TRUE_CANDLES[3], 105.5))
    world.wait(10)
    assert world.candles() == [c.values for c in TRUE_CANDLES]


def test_a_candle_from_the_future_is_ignored() -> None:
    world = World()
    world.send(TRUE_CANDLES[4])
    assert world.stored[CANDLES] == {}
    assert [notice.kind for notice in world.notices] == ["future"]


def test_absent_candles_end_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """REST has later candles but not this one: after three answers, it counts as absent."""
    monkeypatch.setattr(f"{__name__}.TRUE_CANDLES", [c for c in TRUE_CANDLES if c.open_us != START + MINUTE])
    world = World()
    world.now = START + 4 * MINUTE
    world.wait(60)
    assert world.feed.candles[CANDLES].absent == {START + MINUTE}
    assert [notice.kind for notice in world.notices] == ["absent"]
    count = len(world.asked)
    world.wait(30)
    assert (
        len([ask for ask in world.asked[count:] if isinstance(ask, AskCandles) and ask.start_us <= START + MINUTE]) == 0
    )


def test_lost_trades_that_rest_does_not_have_are_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.TRUE_TRADES", [t for t in TRUE_TRADES if t.trade_id != 4])
    world = World()
    world.now = START + MINUTES * MINUTE
    for event in TRUE_TRADES:
        world.send(event)
    world.wait(300)
    assert world.feed.trades[TRADES].gaps == [(4, 4)]
    assert sorted(world.stored[TRADES]) == [t.trade_id for t in TRUE_TRADES]
    assert [notice.kind for notice in world.notices] == ["gap"]


def test_an_absurd_trade_id_is_ignored() -> None:
    world = World()
    absurd = trade(0)
    world.send(
        TradeEvent(TRADES, absurd.event_us, 10**9, 1, 1, absurd.time_us, 1, 1, True, (10**9, *absurd.values[1:]))
    )
    world.wait(60)
    assert world.asked == []
    assert [notice.kind for notice in world.notices] == ["implausible"]


# --- open candles -----------------------------------------------------------------------------------------------------


def still_open(minute: int, second: int) -> CandleEvent:
    """A candle that is not closed, some seconds after it opened."""
    event = TRUE_CANDLES[minute]
    at = event.open_us + second * SECOND
    return CandleEvent(CANDLES, at, event.open_us, False, event.first_id, event.last_id, event.values, event.units)


def shown(*events: CandleEvent) -> list[CandleEvent | None]:
    """Return the open candles that the feed shows, one after the other."""
    world = World()
    for event in events:
        world.now = max(world.now, event.event_us)
        world.send(event)
    return world.forming


def test_an_open_candle_is_shown_until_it_closes() -> None:
    first, second = still_open(0, 10), still_open(0, 20)
    assert shown(first, second, TRUE_CANDLES[0]) == [first, second, None]
    assert shown(first, TRUE_CANDLES[0], still_open(1, 2)) == [first, None, still_open(1, 2)]


def test_older_and_repeated_updates_are_ignored() -> None:
    first, second = still_open(0, 10), still_open(0, 20)
    assert shown(second, second, first) == [second]
    assert shown(TRUE_CANDLES[0], second) == []
    assert shown(still_open(1, 2), still_open(0, 59)) == [still_open(1, 2)]


def test_an_open_candle_is_never_stored() -> None:
    world = World()
    world.now = START + 59 * SECOND
    world.send(still_open(0, 59))
    assert world.stored[CANDLES] == {}
    world.wait(1)
    assert world.asked == []


def test_an_ended_candle_is_not_shown_for_long() -> None:
    """Its close did not come, and REST does not answer. Ten seconds after its end, its state is no news any more."""
    world = World(failures=1_000)
    world.now = START + 59 * SECOND
    world.send(still_open(0, 59))
    world.wait(10)
    assert world.forming == [still_open(0, 59)]
    world.wait(1)
    assert world.forming == [still_open(0, 59), None]
    world.send(still_open(0, 60))
    assert len(world.forming) == 2


def test_a_close_from_rest_ends_an_open_candle() -> None:
    world = World()
    world.now = START + 59 * SECOND
    world.send(still_open(0, 59))
    world.wait(9)
    assert [row.state for row in world.stored[CANDLES].values()] == [CloseState.REST]
    assert world.forming == [still_open(0, 59), None]


def test_a_lost_connection_ends_all_open_candles() -> None:
    world = World()
    world.send(still_open(0, 10))
    world.do(world.feed.lost([CANDLES, TRADES]))
    world.do(world.feed.lost([CANDLES, TRADES]))
    assert world.forming == [still_open(0, 10), None]


def test_an_open_candle_from_the_future_is_ignored() -> None:
    world = World()
    world.send(still_open(4, 1))
    assert world.forming == []


# --- delistings -------------------------------------------------------------------------------------------------------

HOURS = SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "ETHUSDT", "1h")
QUARTER = 15 * MINUTE


def requests_of(feed: MarketFeed, begin: int, minutes: int) -> list[AskCandles]:
    """The requests of some minutes. REST answers with nothing."""
    found = []
    for now in range(begin, begin + minutes * MINUTE, 10 * SECOND):
        for effect in feed.tick(now):
            assert isinstance(effect, AskCandles)
            found.append(effect)
            feed.answered_candles(effect, [], now)
    return found


def test_delisted_symbol_is_not_asked_for_ever() -> None:
    """Until exchangeInfo is asked, requests are five minutes apart. Then they end, until it trades again."""
    feed = make_feed([CANDLES, HOURS], {CANDLES: START, HOURS: START}, {})
    assert not feed.doubts_listings(START)
    assert len(requests_of(feed, START, 15)) > 3
    assert not feed.doubts_listings(START + QUARTER)
    requests_of(feed, START + QUARTER, 3)
    now = START + 18 * MINUTE
    assert feed.doubts_listings(now)
    [notice] = feed.take_listing({"ETHUSDT"})
    assert isinstance(notice, Notice)
    assert (notice.key, notice.kind) == (CANDLES, "not_trading")
    assert requests_of(feed, now, 30) == []
    assert feed.doubts_listings(now)  # so that a new listing is seen
    assert feed.take_listing({"ETHUSDT"}) == []
    assert feed.take_listing({"ETHUSDT", "BTCUSDT"}) == []
    assert {ask.key for ask in requests_of(feed, now + 30 * MINUTE, 6)} == {CANDLES}


def test_candle_of_the_stream_ends_a_delisting() -> None:
    feed = make_feed([CANDLES], {CANDLES: START}, {})
    feed.take_listing(set())
    assert feed.not_trading == {"BTCUSDT"}
    feed.take(candle(1), START + 2 * MINUTE + SECOND)
    assert feed.not_trading == set()
    assert feed.tick(START + 2 * MINUTE + 10 * SECOND) == [AskCandles(CANDLES, START, START + MINUTE)]
