"""Sockets in Binance's dialect: messages, requests, limits, and clients that mean harm."""

from __future__ import annotations

import json
import socket as sockets
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from market_data_pipeline.server import run
from market_data_pipeline.server.app import build_app
from market_data_pipeline.server.live_hub import MOST_CLIENTS, MOST_WAITING
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.support.live_server import (
    HOURS,
    MINUTES,
    PERPETUAL,
    SECONDS,
    TRADES,
    LiveServer,
    candle,
    live_server,
    trade,
)
from market_data_pipeline_tests.support.processes import until
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from

KEY = "a-key-of-these-tests"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    lake = SmallLake(tmp_path_factory.mktemp("sockets") / "data")
    lake.put(HOURS, days_from("2024-01-01", 2))
    with live_server(lake) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_client_is_left(server: LiveServer) -> Iterator[None]:
    yield
    server.hub.began()
    until(lambda: len(server.hub) == 0 and not server.hub._followers, "all clients are gone", SECONDS, 0.01)


def received(socket: ClientConnection) -> Any:
    return json.loads(socket.recv(timeout=SECONDS))


def asked(socket: ClientConnection, request: Any) -> Any:
    """Send a request, and return the answer to it."""
    socket.send(request if isinstance(request, (str, bytes)) else json.dumps(request))
    return received(socket)


# --- messages ---------------------------------------------------------------------------------------------------------


def test_messages_have_the_form_of_binance(server: LiveServer) -> None:
    opened = 1_700_000_000_000_000 // HOURS.step * HOURS.step
    with server.socket("/ws/btcusdt@kline_1h/btcusdt@aggTrade") as socket:
        server.hub.publish([candle(opened=opened), candle(opened=opened, closed=True), trade(7)])
        messages = [received(socket) for _ in range(3)]
    k = {"t": 1699999200000, "T": 1700002799999, "s": "BTCUSDT", "i": "1h", "f": 17, "L": 19, "o": "1.00", "c": "4.00"}
    k |= {"h": "5.00", "l": "0.50", "v": "2.000", "n": 3, "x": False, "q": "8.0", "V": "1.000", "Q": "4.0", "B": "0"}
    kline = {"e": "kline", "E": 1699999201500, "s": "BTCUSDT", "k": k}
    assert messages[:2] == [kline, {**kline, "k": {**k, "x": True}}]
    agg = {"e": "aggTrade", "E": 1700000007002, "s": "BTCUSDT", "a": 7, "p": "62445.66000000", "q": "0.5000"}
    assert messages[2] == {**agg, "f": 14, "l": 15, "T": 1700000007000, "m": False, "M": True}


def test_combined_streams_name_their_stream(server: LiveServer) -> None:
    with server.socket("/stream?streams=btcusdt@aggTrade/btcusdt@kline_1h&timeUnit=MICROSECOND") as socket:
        server.hub.publish([trade(1), candle()])
        first, second = received(socket), received(socket)
    assert (first["stream"], first["data"]["T"]) == ("btcusdt@aggTrade", 1_700_000_001_000_000)
    assert (second["stream"], second["data"]["k"]["T"]) == ("btcusdt@kline_1h", candle().values[6])


@pytest.mark.parametrize(
    ("path", "key", "name"),
    [
        ("", HOURS, "btcusdt@kline_1h"),
        ("/market", MINUTES, "btcusdt@kline_1m"),
        ("/cm", PERPETUAL, "btcusd_perp@kline_1m"),
    ],
)
def test_each_market_has_its_path(server: LiveServer, path: str, key: Any, name: str) -> None:
    with server.socket(f"{path}/ws") as socket:
        assert asked(socket, {"method": "SUBSCRIBE", "params": [name], "id": 1}) == {"result": None, "id": 1}
        server.hub.publish([candle(key)])
        assert received(socket)["k"]["t"] == candle(key).open_us // 1_000


def test_subscriptions_begin_and_end(server: LiveServer) -> None:
    with server.socket("/ws/1") as socket:  # some clients number their connections
        assert asked(socket, {"method": "LIST_SUBSCRIPTIONS", "id": "a"}) == {"result": [], "id": "a"}
        asked(socket, {"method": "SUBSCRIBE", "params": ["btcusdt@aggTrade", "btcusdt@kline_1h"], "id": 2})
        server.hub.publish([trade(1)])
        assert received(socket)["a"] == 1
        asked(socket, {"method": "UNSUBSCRIBE", "params": ["btcusdt@aggTrade"]})
        server.hub.publish([trade(2), candle()])
        assert received(socket)["e"] == "kline"
        listed = asked(socket, {"method": "LIST_SUBSCRIPTIONS", "id": None})
        assert listed == {"result": ["btcusdt@kline_1h"], "id": None}
    with server.socket("/market/ws") as socket:
        assert asked(socket, {"method": "GET_PROPERTY", "params": ["combined"], "id": 5})["result"] is False
        assert asked(socket, {"method": "SET_PROPERTY", "params": ["combined", True], "id": 6})["result"] is None
        asked(socket, {"method": "SUBSCRIBE", "params": ["btcusdt@kline_1m"], "id": 7})
        server.hub.publish([candle(MINUTES)])
        assert received(socket)["stream"] == "btcusdt@kline_1m"


def test_each_client_gets_all_messages_in_order(server: LiveServer) -> None:
    with server.socket("/ws/btcusdt@aggTrade") as one, server.socket("/ws/btcusdt@aggTrade") as other:
        for number in range(0, 600, 3):
            server.hub.publish([trade(number + n) for n in range(3)])
        for socket in (one, other):
            assert [received(socket)["a"] for _ in range(600)] == list(range(600))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/ws/btcusdt@kline_1m", 400, "does not follow 'btcusdt@kline_1m' of spot"),
        ("/ws/BTCUSDT@aggTrade", 400, "It follows: BTCUSDT 1h (spot), BTCUSDT aggTrades (spot)"),
        ("/stream?streams=btcusdt@kline_1h/btcusdt@depth", 400, "btcusdt@depth"),
        ("/cm/ws/btcusdt@kline_1m", 400, "of cm"),
        ("/cm/ws/" + "a/" * 201, 400, "at most 200 streams"),
        ("/um/ws", 404, "/market/ws"),
        ("/nothing", 404, "There are no streams at /nothing"),
        ("/api/v1/market/candles/BTCUSDT/1h", 404, "/stream"),
    ],
    ids=[*map(str, range(8))],
)
def test_a_stream_that_is_not_there_is_refused(server: LiveServer, path: str, status: int, words: str) -> None:
    with pytest.raises(InvalidStatus) as refused, server.socket(path):
        pass
    answer = refused.value.response
    assert answer.status_code == status
    assert words in json.loads(answer.body or b"")["msg"]


def test_a_long_address_is_refused(server: LiveServer) -> None:
    with pytest.raises(InvalidStatus) as refused, server.socket("/ws/" + "a@aggTrade/" * 2_000):
        pass
    assert refused.value.response.status_code == 431
    assert b"subscribe" in (refused.value.response.body or b"")


def test_a_subscription_to_nothing_changes_nothing(server: LiveServer) -> None:
    with server.socket("/ws/btcusdt@kline_1h") as socket:
        names = ["btcusdt@aggTrade", "btcusdt@depth"]
        error = asked(socket, {"method": "SUBSCRIBE", "params": names, "id": 3})
        assert (error["error"]["code"], error["id"]) == (2, 3)
        assert "does not follow 'btcusdt@depth'" in error["error"]["msg"]
        assert asked(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 4})["result"] == ["btcusdt@kline_1h"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no JSON", 3),
        ("", 3),
        (b"\x00\xff", 3),
        ("[" * 60_000, 3),
        ("1" * 60_000, 3),
        ("[1, 2]", 2),
        ("null", 2),
        ('{"params": ["a"]}', 2),
        ('{"method": ["SUBSCRIBE"], "id": 1}', 2),
        ('{"method": "DROP TABLE", "id": 1}', 2),
        ('{"method": "SUBSCRIBE", "params": "btcusdt@aggTrade", "id": 1}', 2),
        ('{"method": "SUBSCRIBE", "params": [5, null, {}], "id": 1}', 2),
        ('{"method": "SUBSCRIBE", "params": [], "id": 1}', 2),
        ('{"method": "SUBSCRIBE", "params": ["' + "x" * 60_000 + '"], "id": 1}', 2),
        ('{"method": "LIST_SUBSCRIPTIONS", "id": -1}', 2),
        ('{"method": "LIST_SUBSCRIPTIONS", "id": {"a": 1}}', 2),
        ('{"method": "LIST_SUBSCRIPTIONS", "id": true}', 2),
        ('{"method": "SET_PROPERTY", "params": ["combined", "yes"], "id": 1}', 1),
        ('{"method": "SET_PROPERTY", "params": ["color", true], "id": 1}', 0),
        ('{"method": "GET_PROPERTY", "params": [], "id": 1}', 0),
    ],
    ids=[*map(str, range(20))],
)
def test_garbage_is_answered_with_an_error(server: LiveServer, text: str | bytes, code: int) -> None:
    with server.socket("/ws") as socket:
        error = asked(socket, text)["error"]
        assert error["code"] == code
        assert len(error["msg"]) < 400
        assert asked(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 1})["result"] == []


def test_a_server_without_a_feed_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its sockets and its server-sent events."""
    app = build_app(load_settings(dir=tmp_path_factory.mktemp("nothing")))
    with run.serving(app) as url:
        with pytest.raises(InvalidStatus) as refused:
            connect(f"{url.replace('http', 'ws', 1)}/ws", proxy=None)
        assert refused.value.response.status_code == 404
        assert b"serve --live" in (refused.value.response.body or b"")
        answer = requests.get(f"{url}/api/v1/market/stream/candles/BTCUSDT/1h", timeout=SECONDS)
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (403, "not-enabled")
        assert "serve --live" in answer.json()["detail"]


def test_a_foreign_page_cannot_connect(server: LiveServer) -> None:
    with pytest.raises(InvalidStatus) as refused, server.socket("/ws", origin="https://evil.example"):
        pass
    assert refused.value.response.status_code == 403
    raw = sockets.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    with pytest.raises(InvalidStatus) as refused:
        connect("ws://evil.example/ws", sock=raw, proxy=None)
    assert refused.value.response.status_code == 403


def test_streams_need_a_key_if_all_routes_do(tmp_path_factory: pytest.TempPathFactory) -> None:
    lake = SmallLake(tmp_path_factory.mktemp("keys") / "data")
    with live_server(lake, keys=[KEY], key_for_all=True) as server:
        with pytest.raises(InvalidStatus) as refused, server.socket("/ws"):
            pass
        assert refused.value.response.status_code == 401
        with server.socket("/ws", additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
            assert asked(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 1})["result"] == []
        with server.socket("/ws", additional_headers={"X-MBX-APIKEY": KEY}):
            pass
        with server.events("candles/BTCUSDT/1h") as events:
            assert events.answer.status == 401
        with server.events("candles/BTCUSDT/1h", {"Authorization": f"Bearer {KEY}"}) as events:
            assert events.answer.status == 200


# --- limits -----------------------------------------------------------------------------------------------------------


def closed_with(socket: ClientConnection) -> tuple[int, str]:
    """Read until the server closes the connection, and return its code and reason."""
    try:
        while True:
            socket.recv(timeout=SECONDS)
    except ConnectionClosed as closed:
        return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (1006, "")


def test_too_many_requests_end_a_connection(server: LiveServer) -> None:
    with server.socket("/ws") as socket:
        for number in range(6):
            socket.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": number}))
        assert closed_with(socket) == (1008, "Too many requests")


def test_an_oversized_message_ends_a_connection(server: LiveServer) -> None:
    with server.socket("/ws") as socket:
        socket.send("x" * (run.MOST_FRAME_BYTES + 1))
        assert closed_with(socket)[0] == 1009


def test_a_flood_of_pings_ends_a_connection(server: LiveServer) -> None:
    with server.socket("/ws/btcusdt@aggTrade") as socket:
        server.followed(TRADES)
        with suppress(ConnectionClosed, OSError):
            for _ in range(50):
                socket.ping()
        assert closed_with(socket)[0] == 1006


def test_a_flood_of_fragments_ends_a_connection(server: LiveServer) -> None:
    with server.socket("/ws/btcusdt@aggTrade") as socket:
        server.followed(TRADES)
        with suppress(ConnectionClosed, OSError):
            for number in range(200):
                socket.protocol.send_continuation(b"", fin=False) if number else socket.protocol.send_text(
                    b"", fin=False
                )
                socket.socket.sendall(b"".join(socket.protocol.data_to_send()))
        assert closed_with(socket)[0] == 1006


def test_bytes_that_are_no_frames_end_a_connection(server: LiveServer) -> None:
    with server.socket("/ws/btcusdt@aggTrade") as socket:
        server.followed(TRADES)
        socket.socket.sendall(b"\xff" * 1_000)
        assert closed_with(socket)[0] in (1002, 1006)


def test_a_client_that_does_not_read_is_closed(server: LiveServer) -> None:
    """Its queue and the buffers of the system fill up. It finds the reason if it reads again."""
    slow = server.hub.slow
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4_096)
    raw.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    updates = [trade(number, quantity="0." + "5" * 2_000) for number in range(200)]
    with (
        server.socket("/ws/btcusdt@aggTrade", sock=raw, max_queue=1) as socket,
        server.socket("/ws/btcusdt@aggTrade") as other,
    ):
        server.followed(TRADES, 2)
        sent = 0
        while len(server.hub._followers[TRADES]) == 2:
            server.hub.publish(updates)
            for _ in updates:  # another client is not disturbed
                assert received(other)["e"] == "aggTrade"
            sent += len(updates)
            assert sent < 100 * MOST_WAITING
            if any(one.ending is not None for one in server.hub._clients):
                break
        assert closed_with(socket) == (1008, "The client reads too slowly")
    until(lambda: server.hub.slow == slow + 1, "it is counted", SECONDS, 0.01)


def test_the_number_of_clients_is_bounded(server: LiveServer) -> None:
    held = [server.hub.client() for _ in range(MOST_CLIENTS)]
    try:
        with pytest.raises(InvalidStatus) as refused, server.socket("/ws"):
            pass
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["Retry-After"] == "5"
    finally:
        for client in held:
            client.close()


def test_an_idle_connection_stays(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit for the head of a request does not count for sockets."""
    monkeypatch.setattr(run, "HEAD_SECONDS", 0.1)
    with server.socket("/ws/btcusdt@aggTrade") as socket:
        with pytest.raises(TimeoutError):
            socket.recv(timeout=0.4)
        server.hub.publish([trade(1)])
        assert received(socket)["a"] == 1


def test_pings_are_answered(server: LiveServer) -> None:
    with server.socket("/ws") as socket:
        assert socket.ping(b"x").wait(SECONDS)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_the_end_of_the_feed_ends_all_streams(server: LiveServer) -> None:
    with server.socket("/ws/btcusdt@aggTrade") as socket:
        server.followed(TRADES)
        server.hub.ended()
        code, reason = closed_with(socket)
        assert code == 1013
        assert "Connect again" in reason
    with pytest.raises(InvalidStatus) as refused, server.socket("/ws"):
        pass
    assert refused.value.response.status_code == 503
    server.hub.began()
    with server.socket("/ws"):
        pass


def test_a_server_that_stops_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    lake = SmallLake(tmp_path_factory.mktemp("stops") / "data")
    with ExitStack() as stack:
        with live_server(lake) as server:
            socket = stack.enter_context(server.socket("/ws/btcusdt@aggTrade"))
            events = stack.enter_context(server.events("candles/BTCUSDT/1h"))
            server.followed(TRADES)
            server.followed(HOURS)
            began = time.monotonic()
        assert time.monotonic() - began < 9  # it did not wait for the clients to go
        assert closed_with(socket)[0] in (1001, 1012)
        assert events.next()["data"]["reason"] == "The server stops"
