"""Candles of one series: which are stored, which are late, which are contested, and the one that is open. Pure.

A candle counts once the exchange closes it (``x=true``), or once REST shows it with a later one. Trades do not belong
here (``trades.py``).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from market_data_pipeline.lake.live_rows import CloseState, LiveRow
from market_data_pipeline.live.effects import SECOND_US, Append, AskCandles, Effect, Notice, ShowForming, backoff_us
from market_data_pipeline.model.series import SeriesKey, interval_us
from market_data_pipeline.sources.binance.websocket import CandleEvent

LATE_US = 5 * SECOND_US
"""Time after the end of a candle until REST is asked. Closes of quiet symbols come 2 seconds late."""
_JITTER_US = SECOND_US
_SURELY_CLOSED_US = 90 * SECOND_US
"""Time after which a candle is closed although REST has no later one, even if a clock is off by a minute."""
_ENDED_US = 10 * SECOND_US
"""Time after its end at which a candle is no longer shown as open, although it was not closed."""
_MOST_ASKED = 490
"""Most candles in one request. More have a higher weight in futures."""
_REMEMBERED = 200
"""Number of stored candles that are compared with repeated messages."""
_PATIENCE = 3
"""Answers of REST without a candle until it counts as absent."""

Values = tuple[float | int, ...]


@dataclass
class CandleTrack:
    """State of one series of candles.

    Attributes:
        next_us: Open time of the first candle that is neither stored nor absent. All before it are settled.
        absent: Open times of candles that REST does not have, although it has later ones.
        late: Number of candles that came from REST.
        repeated: Number of messages about stored candles.
        forming: Newest state of the candle that is open. None if there is none, or nothing is known of it.
    """

    key: SeriesKey
    next_us: int
    absent: set[int] = field(default_factory=set)
    late: int = 0
    repeated: int = 0
    event_us: int = 0
    forming: CandleEvent | None = None
    step: int = field(init=False)
    _began_us: int = 0
    _stored: dict[int, Values] = field(default_factory=dict)
    _contested: set[int] = field(default_factory=set)
    _missed: dict[int, int] = field(default_factory=dict)
    _asking: bool = False
    _attempts: int = 0
    _retry_us: int = 0

    def __post_init__(self) -> None:
        self.step = interval_us(self.key.interval or "1m")
        self._late_us = LATE_US + zlib.crc32(str(self.key).encode()) % _JITTER_US

    def resume(self, stored: Iterable[Values]) -> None:
        """Take candles that an earlier process stored."""
        self._stored.update({int(values[0]): values for values in stored})
        self._advance()

    @property
    def last_closed_us(self) -> int:
        """Return the open time of the last candle without open ones before it."""
        return self.next_us - self.step

    def open_gaps(self, now_us: int) -> list[int]:
        """Return the open times of candles that are late."""
        ended = (now_us - self._late_us) // self.step * self.step
        missing = (at for at in range(self.next_us, ended, self.step) if at not in self._stored)
        return sorted({*missing, *self._contested})

    def closed(self, event: CandleEvent, now_us: int, *, proven: bool = False) -> list[Effect]:
        """Take a closed candle of the stream."""
        opened, values = event.open_us, event.values
        if opened + self.step > now_us + _SURELY_CLOSED_US:
            return [Notice(self.key, "future", f"A candle of {opened} was closed before its end, and is ignored.")]
        if opened < self.next_us - _REMEMBERED * self.step:
            self.repeated += 1
            return []
        known = self._stored.get(opened)
        if known is None and (opened >= self.next_us or opened in self.absent):
            self.absent.discard(opened)
            return self._store(values, CloseState.PROVEN if proven else CloseState.CLOSED, event)
        self.repeated += 1
        if known is None or known == values:
            return []
        return self.contest(opened, "A candle was sent twice with different values")

    def formed(self, event: CandleEvent, now_us: int) -> list[Effect]:
        """Take an update of a candle that is open. An older one than the last, or of a closed candle, is ignored."""
        known, opened = self.forming, event.open_us
        if not now_us - self.step - _ENDED_US < opened <= now_us + _SURELY_CLOSED_US:
            return []
        if opened < self.next_us or opened in self._stored:
            return []
        if known is not None and (event.event_us <= known.event_us or opened < known.open_us):
            return []
        self.forming = event
        return [ShowForming(self.key, event)]

    def forget_forming(self) -> list[Effect]:
        """Leave the series without an open candle."""
        if self.forming is None:
            return []
        self.forming = None
        return [ShowForming(self.key, None)]

    def contest(self, opened: int, why: str) -> list[Effect]:
        """Let REST decide about a stored candle."""
        self._contested.add(opened)
        return [Notice(self.key, "contested", f"{why}: {opened}. REST decides.")]

    def prove(self, opened: int) -> list[Effect]:
        """Record that a stored candle equals the candle of its trades."""
        values = self._stored.get(opened)
        if values is None or opened in self._contested:
            return []
        return [Append(self.key, (LiveRow(values, CloseState.PROVEN),), is_news=False)]

    def tick(self, now_us: int) -> list[Effect]:
        """Return what is due: a request, or the end of an open candle that was not closed."""
        self._began_us = self._began_us or now_us
        effects: list[Effect] = []
        if self.forming is not None and self.forming.open_us + self.step + _ENDED_US <= now_us:
            effects += self.forget_forming()
        if self._asking or now_us < self._retry_us:
            return effects
        late = self.open_gaps(now_us)
        if not late:
            return effects
        self._asking = True
        end = min(late[-1] + self.step, late[0] + _MOST_ASKED * self.step)
        return [*effects, AskCandles(self.key, late[0], end)]

    def unanswered_us(self, now_us: int) -> int:
        """Return the time since the end of the first candle that REST does not have either. 0 if it was not asked."""
        return max(0, now_us - self.next_us - self.step) if self._attempts >= _PATIENCE else 0

    def answered(self, ask: AskCandles, rows: Sequence[Values], now_us: int) -> list[Effect]:
        """Take REST's answer: candles in order, also one that may not be closed."""
        self._asking = False
        newest = int(rows[-1][0]) if rows else 0
        effects: list[Effect] = []
        found = set[int]()
        for values in rows:
            opened = int(values[0])
            closed = opened < newest or opened + self.step + _SURELY_CLOSED_US < now_us
            if not closed or not ask.start_us <= opened < ask.end_us:
                continue
            found.add(opened)
            if self._is_decided_by(values):
                self.late += 1
                effects += self._store(values, CloseState.REST)
            self._contested.discard(opened)
        effects += self._miss(range(ask.start_us, min(ask.end_us, newest), self.step), found)
        self._attempts = 0 if found else self._attempts + 1
        self._retry_us = now_us + (SECOND_US if found else backoff_us(self._attempts))
        return effects

    def failed(self, now_us: int) -> None:
        """Record that a request failed."""
        self._asking = False
        self._attempts += 1
        self._retry_us = now_us + backoff_us(self._attempts)

    def _is_decided_by(self, values: Values) -> bool:
        """Return True if a candle of REST is new, or differs from the stored one."""
        opened = int(values[0])
        known = self._stored.get(opened)
        if known is None:
            return opened >= self.next_us
        return known != values

    def _miss(self, expected: Iterable[int], found: set[int]) -> list[Effect]:
        effects: list[Effect] = []
        for opened in expected:
            if opened in found or opened in self._stored or opened < self.next_us:
                self._contested.discard(opened)
                continue
            self._missed[opened] = self._missed.get(opened, 0) + 1
            if self._missed[opened] >= _PATIENCE:
                del self._missed[opened]
                self.absent.add(opened)
                effects.append(Notice(self.key, "absent", f"REST has later candles, but none of {opened}."))
        self._advance()
        return effects

    def _store(self, values: Values, state: CloseState, event: CandleEvent | None = None) -> list[Effect]:
        self._stored[int(values[0])] = values
        self._missed.pop(int(values[0]), None)
        self._advance()
        is_old = event is None and int(values[0]) + self.step <= self._began_us
        is_over = self.forming is not None and self.forming.open_us <= int(values[0])
        append = Append(self.key, (LiveRow(values, state),), (event,), is_old=is_old)
        return [append, *(self.forget_forming() if is_over else [])]

    def _advance(self) -> None:
        while self.next_us in self._stored or self.next_us in self.absent:
            forgotten = self.next_us - _REMEMBERED * self.step
            self._stored.pop(forgotten, None)
            self.absent.discard(forgotten)
            self.next_us += self.step
