"""WebSocket streams: messages that agree with REST, limits, the end of connections, and faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Opcode
from websockets.sync.client import ClientConnection, connect

from market_data_pipeline.model.binance_dialect import SOCKET_RULES, SocketRules
from market_data_pipeline.model.series import Market
from market_data_pipeline.sandbox import (
    CutSockets,
    DamagedMessages,
    Fault,
    LateClose,
    MessageDamage,
    Sandbox,
    SilentSockets,
    SkewedClock,
    Status,
)
from market_data_pipeline_tests.sandbox.conftest import NOW

SYMBOLS = {"spot": "BTCUSDT", "um": "BTCUSDT", "cm": "BTCUSD_PERP"}
BASES = {"spot": "", "um": "/market", "cm": "/cm"}
REST = {"spot": "/api/v3", "um": "/fapi/v1", "cm": "/dapi/v1"}
TEN_MINUTES = timedelta(minutes=10)


@pytest.fixture(autouse=True)
def _rules(sandbox: Sandbox) -> Iterator[None]:
    yield
    sandbox.sockets.rules.update(SOCKET_RULES)


@contextmanager
def streams(sandbox: Sandbox, market: str, *names: str, suffix: str = "") -> Iterator[ClientConnection]:
    """Connect to the combined streams of a market."""
    url = sandbox.url.replace("http", "ws", 1) + BASES[market]
    with connect(
        f"{url}/stream?streams={'/'.join(names)}{suffix}", max_size=1 << 20, max_queue=None, ping_interval=None
    ) as socket:
        yield socket


def read(socket: ClientConnection, until: str) -> list[dict[str, Any]]:
    """Return the messages up to the first close of a candle that contains a text."""
    found = []
    while True:
        text = socket.recv(timeout=60)
        found.append(json.loads(text).get("data", {}))
        if until in str(text) and found[-1].get("e") == "kline" and found[-1]["k"]["x"]:
            return found


def last_close(sandbox: Sandbox, minutes: int = 9) -> str:
    """Return the text of the candle that opens some minutes after ``NOW``."""
    opened = NOW.replace(second=0) + timedelta(minutes=minutes)
    return f'"t":{int(opened.timestamp() * 1000)}'


def after_ten_minutes(sandbox: Sandbox, market: str, *kinds: str) -> list[dict[str, Any]]:
    """Return the messages of ten minutes, with the close of each candle that opened before the last."""
    symbol = SYMBOLS[market].lower()
    with streams(sandbox, market, *(f"{symbol}@{kind}" for kind in kinds)) as socket:
        sandbox.set_time(NOW + TEN_MINUTES)
        return read(socket, last_close(sandbox))


@pytest.mark.parametrize("market", SYMBOLS)
def test_closed_candles_are_those_of_rest(sandbox: Sandbox, market: str) -> None:
    messages = after_ten_minutes(sandbox, market, "kline_1m")
    closed = [m["k"] for m in messages if m["k"]["x"]]
    params = {"symbol": SYMBOLS[market], "interval": "1m", "startTime": str(closed[0]["t"]), "limit": str(len(closed))}
    rows = requests.get(f"{sandbox.url}{REST[market]}/klines", params=params, timeout=60).json()
    names = ("t", "o", "h", "l", "c", "v", "T", "q", "n", "V", "Q")
    assert [[k[name] for name in names] for k in closed] == [row[:11] for row in rows]
    assert len(closed) == 10


@pytest.mark.parametrize("market", SYMBOLS)
def test_trades_are_those_of_rest(sandbox: Sandbox, market: str) -> None:
    trades = [m for m in after_ten_minutes(sandbox, market, "aggTrade", "kline_1m") if m["e"] == "aggTrade"]
    params = {"symbol": SYMBOLS[market], "fromId": str(trades[0]["a"]), "limit": str(len(trades))}
    rows = requests.get(f"{sandbox.url}{REST[market]}/aggTrades", params=params, timeout=60).json()
    assert [{name: trade[name] for name in row} for trade, row in zip(trades, rows, strict=True)] == rows
    assert [t["a"] for t in trades] == list(range(trades[0]["a"], trades[0]["a"] + len(trades)))


def test_candles_follow_from_trades(sandbox: Sandbox) -> None:
    messages = after_ten_minutes(sandbox, "um", "aggTrade", "kline_1m")
    closed = [m["k"] for m in messages if m["e"] == "kline" and m["k"]["x"]][1:]
    for candle in closed:
        inside = [m for m in messages if m["e"] == "aggTrade" and candle["t"] <= m["T"] <= candle["T"]]
        assert (candle["f"], candle["L"]) == (inside[0]["f"], inside[-1]["l"])
        assert candle["n"] == sum(t["l"] - t["f"] + 1 for t in inside)


def test_spot_sends_microseconds_when_asked(sandbox: Sandbox) -> None:
    with streams(sandbox, "spot", "btcusdt@kline_1m", suffix="&timeUnit=MICROSECOND") as socket:
        sandbox.set_time(NOW + TEN_MINUTES)
        (first, *_) = (m["k"] for m in read(socket, "") if m["k"]["x"])
    assert first["T"] - first["t"] == 59_999_999


def test_mark_price_of_futures(sandbox: Sandbox) -> None:
    with streams(sandbox, "um", "btcusdt@markPrice@1s") as socket:
        sandbox.set_time(NOW + TEN_MINUTES)
        mark = json.loads(socket.recv(timeout=60))["data"]
    assert abs(float(mark["p"]) / float(mark["i"]) - 1) < 0.001


def test_raw_streams_are_subscribed_by_message(sandbox: Sandbox) -> None:
    with connect(f"{sandbox.url.replace('http', 'ws')}/ws", ping_interval=None) as socket:
        socket.send('{"method":"SUBSCRIBE","params":["btcusdt@kline_1m","btcusdt@nonsense"],"id":7}')
        assert json.loads(socket.recv(timeout=60)) == {"result": None, "id": 7}
        sandbox.set_time(NOW + TEN_MINUTES)
        assert json.loads(socket.recv(timeout=60))["e"] == "kline"
        socket.send("no JSON")
        while "error" not in json.loads(socket.recv(timeout=60)):
            pass


def test_old_um_path_acknowledges_and_is_silent(sandbox: Sandbox) -> None:
    with connect(f"{sandbox.url.replace('http', 'ws')}/um/ws", ping_interval=None) as old:
        old.send('{"method":"SUBSCRIBE","params":["btcusdt@kline_1m"],"id":1}')
        assert json.loads(old.recv(timeout=60)) == {"result": None, "id": 1}
        for _ in range(2):
            after_ten_minutes(sandbox, "um", "kline_1m")
            sandbox.set_time(NOW)
        with pytest.raises(TimeoutError):
            old.recv(timeout=0)


def test_too_many_streams_end_the_connection(sandbox: Sandbox) -> None:
    sandbox.sockets.rules[Market.CM] = SocketRules(streams=2)
    with connect(f"{sandbox.url.replace('http', 'ws')}/cm/ws", ping_interval=None) as socket:
        socket.send('{"method":"SUBSCRIBE","params":["a@aggTrade","b@aggTrade","c@aggTrade"],"id":1}')
        with pytest.raises(ConnectionClosed, match="Too many streams"):
            socket.recv(timeout=60)


def test_too_many_requests_end_the_connection(sandbox: Sandbox) -> None:
    with connect(f"{sandbox.url.replace('http', 'ws')}/ws", ping_interval=None) as socket:
        for number in range(6):
            socket.send(f'{{"method":"LIST_SUBSCRIPTIONS","id":{number}}}')
        with pytest.raises(ConnectionClosed, match="Too many requests"):
            read(socket, "never")


def test_a_client_that_answers_no_ping_is_cut(sandbox: Sandbox) -> None:
    with streams(sandbox, "spot", "btcusdt@nothing") as socket, streams(sandbox, "spot", "btcusdt@kline_1m") as good:
        send: Any = socket.protocol.send_frame
        socket.protocol.send_frame = lambda frame: None if frame.opcode is Opcode.PONG else send(frame)  # type: ignore[method-assign]
        for minutes in (1, 2, 3):
            sandbox.set_time(NOW + timedelta(minutes=minutes))
            read(good, last_close(sandbox, minutes - 1))
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=60)
        assert len(sandbox.sockets.connections) == 1


def test_connections_end_after_a_day(sandbox: Sandbox) -> None:
    with streams(sandbox, "um", "btcusdt@nothing") as socket:
        sandbox.set_time(NOW + timedelta(hours=24))
        with pytest.raises(ConnectionClosed) as ended:
            socket.recv(timeout=60)
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 1001


def test_shutdown_is_announced_before_the_end(sandbox: Sandbox) -> None:
    with streams(sandbox, "spot", "btcusdt@nothing") as socket:
        assert sandbox.sockets.announce_shutdown(60) == 1
        assert json.loads(socket.recv(timeout=60))["stream"] == "!serverShutdown"
        sandbox.set_time(NOW + timedelta(minutes=2))
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=60)


def test_requests_to_connect_can_be_refused(sandbox: Sandbox) -> None:
    sandbox.faults.add(Status(path="^/market/stream", status=503, times=1))
    with pytest.raises(InvalidStatus, match="503"), streams(sandbox, "um", "btcusdt@kline_1m"):
        pass
    with streams(sandbox, "um", "btcusdt@kline_1m"):
        pass
    assert [(r.method, r.status) for r in sandbox.requests] == [("WEBSOCKET", 503), ("WEBSOCKET", 101)]


@pytest.mark.parametrize("fault", [CutSockets(every=0.0), CutSockets(every=1.0)])
def test_connections_are_cut(sandbox: Sandbox, fault: Fault) -> None:
    sandbox.faults.add(fault)
    with streams(sandbox, "um", "btcusdt@nothing") as socket:
        sandbox.set_time(NOW + TEN_MINUTES)
        with pytest.raises(ConnectionClosed) as ended:
            socket.recv(timeout=60)
    assert ended.value.rcvd is None


def test_silent_connections_still_answer_requests(sandbox: Sandbox) -> None:
    with streams(sandbox, "um", "btcusdt@kline_1m") as socket:
        sandbox.set_time(NOW + TEN_MINUTES)
        read(socket, last_close(sandbox))
        sandbox.faults.add(SilentSockets(streams="^um/"))
        with streams(sandbox, "spot", "btcusdt@kline_1m") as other:
            sandbox.set_time(NOW + 2 * TEN_MINUTES)
            read(other, last_close(sandbox, 19))
        sandbox.set_time(NOW + 3 * TEN_MINUTES)
        socket.send('{"method":"LIST_SUBSCRIPTIONS","id":3}')
        texts = [json.loads(socket.recv(timeout=60))]
        while "id" not in texts[-1]:
            texts.append(json.loads(socket.recv(timeout=60)))
        assert texts[-1] == {"result": ["btcusdt@kline_1m"], "id": 3}


def closes(messages: list[dict[str, Any]]) -> list[int]:
    return [m["k"]["t"] for m in messages if m["e"] == "kline" and m["k"]["x"]]


def test_late_and_missing_closes(sandbox: Sandbox) -> None:
    plain = closes(after_ten_minutes(sandbox, "um", "kline_1m", "kline_3m"))
    sandbox.set_time(NOW)
    sandbox.faults.add(LateClose(streams="kline_3m"))
    missing = closes(after_ten_minutes(sandbox, "um", "kline_1m", "kline_3m"))
    assert (len(plain), len(missing)) == (13, 10)
    sandbox.set_time(NOW)
    sandbox.faults.clear()
    sandbox.faults.add(LateClose(streams="kline_3m", seconds=200))
    late = closes(after_ten_minutes(sandbox, "um", "kline_1m", "kline_3m"))
    assert sorted(late)[:9] == sorted(plain)[:9]
    assert late != plain


@pytest.mark.parametrize("damage", [*MessageDamage])
def test_messages_are_damaged(sandbox: Sandbox, damage: MessageDamage) -> None:
    """All damage leaves the JSON of the true messages as it is."""
    plain = [json.dumps(m) for m in after_ten_minutes(sandbox, "um", "aggTrade", "kline_1m") if m["e"] == "aggTrade"]
    sandbox.set_time(NOW)
    sandbox.faults.add(DamagedMessages(damage=damage, share=0.3, streams="aggTrade"))
    found: list[str] = []
    with streams(sandbox, "um", "btcusdt@aggTrade", "btcusdt@kline_1m") as socket:
        sandbox.set_time(NOW + TEN_MINUTES)
        if damage is MessageDamage.OVERSIZED:
            with pytest.raises(ConnectionClosed, match="1009"):
                read(socket, last_close(sandbox))
            return
        while True:
            text = socket.recv(timeout=60)
            found.append(json.dumps(json.loads(text)["data"]) if str(text).startswith('{"stream":"') else str(text))
            if '"e":"kline"' in str(text) and '"x":true' in str(text) and last_close(sandbox) in str(text):
                break
    trades = [text for text in found if '"kline"' not in text]
    if damage is MessageDamage.LOST:
        assert 0 < len(trades) < len(plain)
    elif damage is MessageDamage.REORDERED:
        assert trades != plain
        assert len(set(trades)) > len(plain) - 20
    else:
        assert len(trades) > len(plain)
        assert [text for text in trades if text in plain][: len(plain)] != []


def test_skewed_clock_is_in_events_and_rest(sandbox: Sandbox) -> None:
    plain = {m["k"]["t"]: m["E"] for m in after_ten_minutes(sandbox, "um", "kline_1m") if m["k"]["x"]}
    sandbox.set_time(NOW)
    sandbox.faults.add(SkewedClock(streams="^um/", seconds=60))
    now = requests.get(f"{sandbox.url}/fapi/v1/time", timeout=60).json()["serverTime"]
    assert now == int((NOW + timedelta(minutes=1)).timestamp() * 1000)
    skewed = {m["k"]["t"]: m["E"] for m in after_ten_minutes(sandbox, "um", "kline_1m") if m["k"]["x"]}
    assert skewed == {opened: at + 60_000 for opened, at in plain.items()}


def test_the_clock_runs_faster(sandbox: Sandbox) -> None:
    sandbox.set_time(NOW, speed=3600)
    with streams(sandbox, "um", "btcusdt@kline_1m") as socket:
        found = closes(read(socket, last_close(sandbox, 30)))
    assert found == list(range(found[0], found[-1] + 1, 60_000))
    assert len(found) > 10  # the clock ran before the connection was there, too
