"""Updates for listeners, made of what the feed stores or shows. Pure. Sending them belongs to ``server``."""

from __future__ import annotations

from collections.abc import Iterator

from market_data_pipeline.lake.live_rows import LiveRow
from market_data_pipeline.live.effects import Append, ShowForming
from market_data_pipeline.model.live_updates import CandleUpdate, LiveUpdate, TradeUpdate
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.sources.binance.websocket import CandleEvent, TradeEvent


def updates_of(effect: Append | ShowForming, now_us: int) -> Iterator[LiveUpdate]:
    """Yield the updates of an effect, in order.

    Args:
        now_us: The exchange's time, for rows of REST.
    """
    if isinstance(effect, ShowForming):
        if effect.candle is not None:
            yield _of_event(effect.candle)
        return
    for row, event in zip(effect.rows, effect.events, strict=True) if effect.is_news else ():
        if isinstance(event, CandleEvent):
            yield _of_event(event)
        elif isinstance(event, TradeEvent):
            yield TradeUpdate(event.key, event.event_us, event.values, _texts_of(event))
        else:
            yield _of_rest(effect.key, row, now_us, is_old=effect.is_old)


def _of_event(event: CandleEvent) -> CandleUpdate:
    return CandleUpdate(
        event.key, event.event_us, event.closed, event.values, event.texts, event.first_id, event.last_id
    )


def _texts_of(event: TradeEvent) -> tuple[str, str]:
    price, quantity = event.texts or (_decimal(event.values[1]), _decimal(event.values[2]))
    return price, quantity


_NUMBERS = (1, 2, 3, 4, 5, 7, 9, 10)
"""Places of o, h, l, c, v, q, V, Q among the columns of klines."""


def _of_rest(key: SeriesKey, row: LiveRow, now_us: int, *, is_old: bool) -> CandleUpdate:
    of_klines = key.data_type is DataType.KLINES
    texts = tuple(_decimal(row.values[place]) for place in _NUMBERS) if of_klines else ()
    return CandleUpdate(key, now_us, True, row.values, texts, is_old=is_old)


def _decimal(value: float) -> str:
    return f"{value:.8f}"
