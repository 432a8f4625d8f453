"""Messages of streams: what is read from them, and what is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.model.binance_dialect import stream_name
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.sources.binance.websocket import (
    CandleEvent,
    MarkPriceEvent,
    ReplyEvent,
    ShutdownEvent,
    StreamDecoder,
    StreamEvent,
    TradeEvent,
    UnreadableError,
    units,
)

CANDLES = SeriesKey(EXCHANGE, Market.UM, DataType.KLINES, "BTCUSDT", "1m")
TRADES = SeriesKey(EXCHANGE, Market.UM, DataType.AGG_TRADES, "BTCUSDT")
MARK = SeriesKey(EXCHANGE, Market.UM, DataType.MARK_PRICE_KLINES, "BTCUSDT", "1m")

K: dict[str, Any] = {
    "t": 1772366400000, "T": 1772366459999, "s": "BTCUSDT", "i": "1m", "f": 100, "L": 119, "o": "62486.60",
    "c": "62450.62", "h": "62488.55", "l": "62445.66", "v": "0.361", "n": 20, "x": True, "q": "22548.13969",
    "V": "0.012", "Q": "749.46702", "B": "0",
}  # fmt: skip
KLINE: dict[str, Any] = {"e": "kline", "E": 1772366461473, "s": "BTCUSDT", "k": K, "st": 1}
TRADE: dict[str, Any] = {
    "e": "aggTrade", "E": 1772366448811, "s": "BTCUSDT", "a": 7, "p": "62445.66", "q": "0.118", "f": 8, "l": 9,
    "T": 1772366448656, "m": True, "nq": "0.118", "st": 1,
}  # fmt: skip


def decode(message: dict[str, Any], stream: str = "") -> StreamEvent:
    name = stream or f"btcusdt@{'kline_1m' if message.get('e') == 'kline' else 'aggTrade'}"
    return DECODER.decode(json.dumps({"stream": name, "data": message}))


DECODER = StreamDecoder(Market.UM, [CANDLES, TRADES, MARK], 1_000)


def test_closed_candle_has_the_lakes_columns() -> None:
    event = decode(KLINE)
    assert isinstance(event, CandleEvent)
    assert event.key == CANDLES
    assert event.values == (
        1772366400000000, 62486.60, 62488.55, 62445.66, 62450.62, 0.361, 1772366459999000, 22548.13969, 20, 0.012,
        749.46702,
    )  # fmt: skip


def test_trade_has_the_lakes_columns() -> None:
    event = decode(TRADE)
    assert isinstance(event, TradeEvent)
    assert event.values == (7, 62445.66, 0.118, 8, 9, 1772366448656000, True)


def test_spot_has_microseconds_and_one_more_column() -> None:
    key = SeriesKey(EXCHANGE, Market.SPOT, DataType.AGG_TRADES, "BTCUSDT")
    message = {**TRADE, "E": TRADE["E"] * 1000, "T": TRADE["T"] * 1000 + 7}
    event = StreamDecoder(Market.SPOT, [key], 1).decode(json.dumps({"stream": "btcusdt@aggTrade", "data": message}))
    assert isinstance(event, TradeEvent)
    assert event.values[5:] == (1772366448656007, True, True)


def test_other_messages_are_told_apart() -> None:
    mark = {"e": "markPriceUpdate", "E": 1772366448811, "s": "BTCUSDT", "p": "1", "T": 5}
    assert decode(mark, "btcusdt@markPrice@1s") == MarkPriceEvent("BTCUSDT", 1772366448811000)
    assert decode({"e": "serverShutdown", "E": 5}, "!serverShutdown") == ShutdownEvent()
    assert DECODER.decode('{"result":null,"id":1}') == ReplyEvent()
    assert "Invalid" in DECODER.decode('{"error":{"code":3,"msg":"Invalid JSON"},"id":null}').error  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\xff\xfe",
        b"",
        b"null",
        b"[]",
        b"<html>502</html>",
        b'{"stream":5,"data":[]}',
        b'{"result":null}',
        b"[" * 5000 + b"]" * 5000,
        b'{"stream":"btcusdt@aggTrade","data":{"e":"trade"}}',
        json.dumps({"stream": "btcusdt@kline_1m", "data": KLINE})[:-9].encode(),
    ],
)
def test_garbage_is_refused(frame: bytes) -> None:
    with pytest.raises(UnreadableError):
        DECODER.decode(frame)


@pytest.mark.parametrize(
    ("message", "stream"),
    [
        ({**KLINE, "s": "ETHUSDT"}, ""),
        ({**KLINE, "k": {**K, "s": "ETHUSDT"}}, ""),
        ({**KLINE, "k": {**K, "i": "3m"}}, ""),
        (KLINE, "ethusdt@kline_1m"),
        ({**TRADE, "s": "ETHUSDT"}, ""),
        (TRADE, "btcusdt@kline_1m"),
    ],
)
def test_other_symbols_and_intervals_are_refused(message: dict[str, Any], stream: str) -> None:
    with pytest.raises(UnreadableError):
        decode(message, stream)


WRONG: list[Any] = [
    None,
    [],
    {},
    "NaN",
    "Infinity",
    "-1",
    "1e5",
    "",
    "1_000",
    " 1",
    "１２",
    "0x10",
    -1,
    1.5,
    1 << 80,
    5,
]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("name", ["o", "h", "l", "c", "v", "q", "V", "Q", "t", "T", "n", "x", "i", "s"])
def test_wrong_values_in_candles_are_refused(name: str, value: object) -> None:
    """Five trades are possible where twenty were. All other values are impossible."""
    message = {**KLINE, "k": {**K, name: value}}
    if (name, value) == ("n", 5):
        decode(message)
        return
    with pytest.raises(UnreadableError):
        decode(message)


@pytest.mark.parametrize("value", WRONG[:-1], ids=repr)
@pytest.mark.parametrize("name", ["a", "p", "q", "f", "l", "T", "m", "E", "s"])
def test_wrong_values_in_trades_are_refused(name: str, value: object) -> None:
    with pytest.raises(UnreadableError):
        decode({**TRADE, name: value})


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_change_is_refused_or_a_valid_event(data: st.DataObject) -> None:
    """No bytes raise another error than the one for unreadable messages."""
    frame = bytearray(json.dumps({"stream": "btcusdt@kline_1m", "data": KLINE}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    event: object = None
    with suppress(UnreadableError):
        event = DECODER.decode(bytes(frame))
    assert event is None or isinstance(event, StreamEvent)


@given(st.decimals(min_value=0, max_value=10**12, places=8))
def test_units_are_exact(number: Decimal) -> None:
    assert units(f"{number:f}") == int(number * 10**8)


def test_index_prices_have_no_stream() -> None:
    assert stream_name(SeriesKey(EXCHANGE, Market.UM, DataType.INDEX_PRICE_KLINES, "BTCUSDT", "1m")) is None
