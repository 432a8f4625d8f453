"""Updates that a live feed passes on while it runs: candles and trades, each as soon as the feed has it.

They are values. Making them belongs to ``live``, and sending them to clients to ``server``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from market_data_pipeline.model.series import SeriesKey


@dataclass(frozen=True, slots=True)
class CandleUpdate:
    """A candle that closed, or the newest state of one that is open.

    Attributes:
        event_us: Time of the exchange's message, or of REST's answer, in microseconds since 1970 (UTC).
        values: In the order of the lake's columns, without labels. Times are microseconds since 1970 (UTC).
        texts: o, h, l, c, v, q, V, Q as the exchange wrote them. From REST, they have eight decimals.
        first_id: First trade id. -1 if the candle has no trade, or comes from REST, which has no ids.
        last_id: Last trade id.
        is_old: It ended before the feed began, and REST fills it in. Only clients that come back may miss it.
    """

    key: SeriesKey
    event_us: int
    closed: bool
    values: tuple[float | int, ...]
    texts: tuple[str, ...]
    first_id: int = -1
    last_id: int = -1
    is_old: bool = False

    @property
    def open_us(self) -> int:
        """Return the open time in microseconds since 1970 (UTC)."""
        return int(self.values[0])


@dataclass(frozen=True, slots=True)
class TradeUpdate:
    """A trade, in the order of ids.

    Attributes:
        event_us: Time of the exchange's message, or of REST's answer, in microseconds since 1970 (UTC).
        values: In the order of the lake's columns, without labels. Times are microseconds since 1970 (UTC).
        texts: Price and quantity as the exchange wrote them. From REST, they have eight decimals.
        is_old: False. Trades begin with the first that the feed sees, or go on where it ended.
    """

    key: SeriesKey
    event_us: int
    values: tuple[float | int | bool, ...]
    texts: tuple[str, str]
    is_old: bool = False

    @property
    def trade_id(self) -> int:
        """Return the id of the trade."""
        return int(self.values[0])

    @property
    def time_us(self) -> int:
        """Return the time of the trade in microseconds since 1970 (UTC)."""
        return int(self.values[5])


LiveUpdate = CandleUpdate | TradeUpdate


class LiveListener(Protocol):
    """Someone to whom a feed passes updates. The feed calls it from its own thread."""

    def wants(self, key: SeriesKey) -> bool:
        """Return True if updates of a series are wanted now. It is called for each message, and must be quick."""
        ...

    def publish(self, updates: Sequence[LiveUpdate]) -> None:
        """Take updates, in order. Closed candles and trades are stored already. It must not block."""
        ...

    def began(self) -> None:
        """Take notice that the feed runs."""
        ...

    def ended(self) -> None:
        """Take notice that the feed does not run any more, or does not yet run again."""
        ...
