"""Replay of messages that Binance sent: candles made of trades equal Binance's."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path

from market_data_pipeline.live.trades import TradeCandle
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sources.binance.websocket import CandleEvent, StreamDecoder, TradeEvent

RECORDED = Path(__file__).with_name("um_2021-07-22.jsonl.gz")
SYMBOLS = ("SUSHIUSDT", "AKROUSDT", "KEEPUSDT", "CTKUSDT")


def events() -> list[CandleEvent | TradeEvent]:
    """The messages in order. All candles are marked as closed, so that their values are read."""
    keys = [SeriesKey(EXCHANGE, Market.UM, DataType.AGG_TRADES, symbol) for symbol in SYMBOLS]
    keys += [SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, symbol, "1m") for symbol in SYMBOLS]
    decoder = StreamDecoder(Market.UM, keys, 1_000)
    found = []
    for line in gzip.decompress(RECORDED.read_bytes()).decode().splitlines():
        event = decoder.decode(line.replace('"x":false', '"x":true'))
        assert isinstance(event, (CandleEvent, TradeEvent))
        found.append(event)
    return found


def test_all_recorded_messages_are_read() -> None:
    lines = gzip.decompress(RECORDED.read_bytes()).decode().splitlines()
    assert len(events()) == len(lines) == 158
    assert sum(json.loads(line)["data"].get("k", {}).get("x", False) for line in lines) == 4


def test_recorded_candles_follow_from_their_trades() -> None:
    """A candle can be checked if all of its trades were recorded. That is so for 15 messages, and all 15 agree."""
    trades: defaultdict[str, list[TradeEvent]] = defaultdict(list)
    for event in events():
        if isinstance(event, TradeEvent):
            trades[event.key.symbol].append(event)
    verdicts = []
    for event in events():
        if not isinstance(event, CandleEvent) or event.values[8] == 0:
            continue
        inside = [t for t in trades[event.key.symbol] if event.first_id <= t.first_id and t.last_id <= event.last_id]
        if not inside or inside[0].first_id != event.first_id or inside[-1].last_id != event.last_id:
            continue
        candle = TradeCandle(inside[0])
        for trade in inside:
            candle.add(trade)
        verdicts.append(candle.equals(event))
    assert verdicts == [True] * 15
