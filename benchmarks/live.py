"""Rows about the live feed: messages become stored rows, in one thread. No network."""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks.data import Archives
from benchmarks.report import Baseline, Row
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.live_rows import LiveWriter
from market_data_pipeline.live.effects import Append
from market_data_pipeline.live.market import make_feed
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sources.binance.websocket import StreamDecoder

_START_US = 1_772_366_400_000_000
_TOGETHER = 50
"""Messages that arrive together, so their rows are written together."""


def live_messages(archives: Archives, work: Path) -> list[Row]:
    """AggTrades of one symbol: decode, check ids, make candles of 1m, and append rows. Beside ``json.loads`` alone."""
    trades = SeriesKey(EXCHANGE, Market.UM, DataType.AGG_TRADES, "BTCUSDT")
    candles = SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", "1m")
    messages = [_message(number) for number in range(min(archives.scale.trades, 100_000))]
    speeds, bare = list[float](), list[float]()
    for repetition in range(archives.scale.repetitions):
        decoder = StreamDecoder(Market.UM, [trades, candles], 1_000)
        feed = make_feed([trades, candles], {candles: _START_US}, {trades: 0})
        began = time.process_time()
        with LiveWriter(Layout(work / str(repetition))) as writer:
            for at in range(0, len(messages), _TOGETHER):
                effects = [
                    effect
                    for message in messages[at : at + _TOGETHER]
                    for effect in feed.take(decoder.decode(message), _START_US)
                ]
                writer.append(trades, [row for effect in effects if isinstance(effect, Append) for row in effect.rows])
        speeds.append(len(messages) / (time.process_time() - began))
        began = time.process_time()
        for message in messages:
            json.loads(message)
        bare.append(len(messages) / (time.process_time() - began))
    what = "aggTrades of a stream: decoded, made into candles and stored, per second of one core"
    return [Row("live-messages", what, "messages/s", speeds, 20e3, "higher", [Baseline("json.loads alone", bare)])]


def _message(number: int) -> bytes:
    at = _START_US // 1_000 + number * 5
    facts = {"a": number, "p": "62445.66", "q": "0.118", "f": number, "l": number, "T": at, "m": number % 3 == 0}
    data = {"e": "aggTrade", "E": at + 155, "s": "BTCUSDT", **facts, "nq": "0.118", "st": 1}
    return json.dumps({"stream": "btcusdt@aggTrade", "data": data}).encode()
