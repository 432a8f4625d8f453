"""Server-sent events: what the feed has, what a client missed, and what ends a stream."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.request import urlopen

import pytest

from market_data_pipeline import clock
from market_data_pipeline.lake.feed_status import write_status
from market_data_pipeline.lake.forming_candles import FormingCandle, FormingWriter
from market_data_pipeline.model.live_updates import CandleUpdate
from market_data_pipeline.server import event_stream
from market_data_pipeline.server.live_hub import MOST_CLIENTS
from market_data_pipeline_tests.support.live_server import (
    HOURS,
    MINUTES,
    SECONDS,
    TRADES,
    LiveServer,
    candle,
    live_server,
    trade,
)
from market_data_pipeline_tests.support.live_world import live_rows_of
from market_data_pipeline_tests.support.processes import until
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from

PATH = "candles/BTCUSDT/1h"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose lake has three old days, and live rows of the last six hours."""
    lake = SmallLake(tmp_path_factory.mktemp("events") / "data")
    lake.put(HOURS, days_from("2024-01-01", 3))
    with live_server(lake) as server:
        server.stored(6)
        yield server


@pytest.fixture(autouse=True)
def _no_client_is_left(server: LiveServer) -> Iterator[None]:
    yield
    server.hub.began()
    until(lambda: len(server.hub) == 0, "all clients are gone", SECONDS, 0.01)


def last_hours(count: int) -> list[int]:
    """The open times of the last hours that are over."""
    now = clock.to_us(clock.now()) // HOURS.step * HOURS.step
    return [now - n * HOURS.step for n in range(count, 0, -1)]


def test_candles_are_sent_as_the_feed_has_them(server: LiveServer) -> None:
    with server.events(PATH) as events:
        assert events.answer.headers["content-type"].startswith("text/event-stream")
        assert events.answer.headers["cache-control"] == "no-store"
        server.followed()
        server.hub.publish([candle(close=4.0), candle(close=4.5), candle(close=5.0, closed=True), candle(MINUTES)])
        found = [events.next() for _ in range(3)]
    assert [one["data"]["close"] for one in found] == [4.0, 4.5, 5.0]
    assert [one["data"]["state"] for one in found] == ["forming", "forming", "live"]
    assert [one.get("id") for one in found] == [None, None, str(candle().open_us)]
    assert found[0]["data"]["as_of"] == candle().event_us
    assert {one["event"] for one in found} == {"candle"}
    assert list(found[2]["data"]) == [*list(day_table(HOURS, clock.today()).column_names[2:]), "state"]


def test_trades_are_sent_with_their_ids(server: LiveServer) -> None:
    with server.events("agg-trades/BTCUSDT") as events:
        server.followed(TRADES)
        server.hub.publish([trade(5), trade(6)])
        first, second = events.next(), events.next()
    assert first == {
        "id": "1700000005000000.5",
        "event": "trade",
        "data": {
            "agg_trade_id": 5,
            "price": 62445.66,
            "quantity": 0.5,
            "first_trade_id": 10,
            "last_trade_id": 11,
            "transact_time": 1_700_000_005_000_000,
            "is_buyer_maker": False,
            "is_best_match": True,
            "state": "live",
        },
    }
    assert second["data"]["agg_trade_id"] == 6


def test_the_open_candle_comes_first(server: LiveServer) -> None:
    values = candle(close=7.0).values
    with FormingWriter(server.lake.layout, [HOURS]) as writer:
        writer.put(FormingCandle(HOURS, values, 1))
        writer.beat()
        with server.events(PATH) as events:
            assert events.next()["data"] == {**events_data(candle(close=7.0)), "state": "forming", "as_of": 1}


def events_data(update: CandleUpdate) -> dict[str, Any]:
    names = day_table(HOURS, clock.today()).column_names[2:]
    return dict(zip(names, update.values, strict=True))


def test_the_newest_moments_are_sent_as_they_change(server: LiveServer) -> None:
    """Those of all followed series first. The list says that there are streams."""

    def closed(opened: int) -> None:
        state = {"last_closed": f"{clock.naive_from_us(opened).isoformat()}Z"}
        write_status(server.lake.layout, {"updated_at": clock.now().isoformat(), "series": {str(HOURS): state}})

    *_, before, last = last_hours(6)
    closed(before)
    with server.events("/api/v1/system/series/stream") as events:
        assert events.next()["data"]["until"] == {"spot/klines/BTCUSDT/1h": iso(last)}
        closed(last)
        assert events.next()["data"]["until"] == {"spot/klines/BTCUSDT/1h": iso(last + HOURS.step)}
    with urlopen(f"{server.url}/api/v1/system/series", timeout=SECONDS) as answer:
        document = json.loads(answer.read())
    assert (document["live"], document["streams"]) == (True, True)


def iso(us: int) -> str:
    return f"{clock.naive_from_us(us).isoformat()}Z"


# --- what a client missed ---------------------------------------------------------------------------------------------


def test_a_client_that_comes_back_misses_nothing(server: LiveServer) -> None:
    """It gets the rows after its last one, and nothing twice, also if the feed sends one of them just now."""
    hours = last_hours(6)
    newest = live_rows_of(day_table(HOURS, clock.day_of_us(hours[-1])), HOURS)
    row = next(row for row in newest if row.values[0] == hours[-1])
    for path, headers in ((PATH, {"Last-Event-ID": str(hours[2])}), (f"{PATH}?last_event_id={hours[2]}", {})):
        with server.events(path, headers) as events:
            server.followed()
            known = CandleUpdate(HOURS, 1, True, row.values, ())
            stale = CandleUpdate(HOURS, 1, False, row.values, ())
            server.hub.publish([stale, known, candle(close=9.0, closed=True)])
            found = [events.next() for _ in range(4)]
        assert [int(one["id"]) for one in found] == [*hours[3:], candle().open_us]
        assert [one["data"]["state"] for one in found] == ["live"] * 4


def test_a_corrected_candle_is_sent_again(server: LiveServer) -> None:
    hours = last_hours(6)
    with server.events(PATH, {"Last-Event-ID": str(hours[-2])}) as events:
        assert int(events.next()["id"]) == hours[-1]
        server.hub.publish([candle(close=3.0, opened=hours[-1], closed=True)])
        again = events.next()
    assert (int(again["id"]), again["data"]["close"]) == (hours[-1], 3.0)


def test_what_is_too_old_is_named_as_a_gap(server: LiveServer) -> None:
    with server.events(PATH, {"Last-Event-ID": str(clock.day_start_us(days_from("2024-01-02", 1)[0]))}) as events:
        gap = events.next()
        assert gap["event"] == "gap"
        assert gap["data"]["from"] == "2024-01-02T00:00:00Z"
        assert gap["data"]["to"] > (clock.now() - timedelta(days=31)).isoformat()[:10]
        rest = events.next()
        while rest["event"] == "gap":  # days that the lake does not have
            rest = events.next()
        assert int(rest["id"]) == last_hours(6)[0]


def test_missed_trades_are_sent_again(server: LiveServer) -> None:
    """Several trades share a time, so the id decides."""
    begin = clock.to_us(clock.now()) - 600_000_000
    rows = live_rows_of(day_table(TRADES, clock.today()).slice(0, 20), TRADES)
    times = [begin + n // 4 * 1_000_000 for n in range(20)]
    moved = [replace(row, values=(*row.values[:5], at, *row.values[6:])) for row, at in zip(rows, times, strict=True)]
    server.writer.append(TRADES, moved)
    after = moved[9].values
    with server.events("agg-trades/BTCUSDT", {"Last-Event-ID": f"{after[5]}.{after[0]}"}) as events:
        server.followed(TRADES)
        found = [events.next()["data"]["agg_trade_id"] for _ in range(10)]
    assert found == [row.values[0] for row in moved[10:]]


# --- refusals and ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "status", "words"),
    [
        ("candles/BTCUSDT/1m", {}, 404, "It follows BTCUSDT 1h (spot)"),
        ("candles/BTCUSDT/1m?market=um", {"Last-Event-ID": "0x12"}, 422, "Last-Event-ID"),
        ("candles/BTCUSDT/1h", {"Last-Event-ID": "9" * 30}, 422, "Last-Event-ID"),
        ("candles/BTCUSDT/1h", {"Last-Event-ID": "1700000005000000.5"}, 422, "Last-Event-ID"),
        ("agg-trades/BTCUSDT", {"Last-Event-ID": "1700000005000000"}, 422, "Last-Event-ID"),
        ("candles/%2e%2e/1h", {}, 404, ""),
        ("candles/BTCUSDT/" + "9" * 9, {}, 422, "interval"),
        ("mark-price-klines/BTCUSDT/1m", {}, 404, "nothing of this type"),
        ("metrics/BTCUSDT", {}, 404, "/docs"),
    ],
)
def test_a_stream_that_is_not_there_is_a_problem(
    server: LiveServer, path: str, headers: dict[str, str], status: int, words: str
) -> None:
    answered, problem = server.refused(path, headers)
    assert answered == status
    assert words in problem["detail"]


def test_a_feed_that_does_not_run_is_a_problem(server: LiveServer) -> None:
    server.hub.ended()
    status, problem = server.refused(PATH)
    assert (status, problem["retry-after"]) == (503, "5")
    assert "does not run at the moment" in problem["detail"]


def test_the_number_of_clients_is_bounded(server: LiveServer) -> None:
    held = [server.hub.client() for _ in range(MOST_CLIENTS)]
    try:
        assert server.refused(PATH)[0] == 503
    finally:
        for one in held:
            one.close()


def test_a_client_that_does_not_read_is_ended(server: LiveServer) -> None:
    slow, port = server.hub.slow, int(server.url.rpartition(":")[2])
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        raw.connect(("127.0.0.1", port))
        raw.sendall(b"GET /api/v1/market/stream/agg-trades/BTCUSDT HTTP/1.1\r\nHost: localhost\r\n\r\n")
        server.followed(TRADES)
        updates = [trade(number) for number in range(1_000)]

        def ended() -> bool:
            if not server.hub._arrived:  # the server has passed on what came before
                server.hub.publish(updates)
            return server.hub.slow > slow

        until(ended, "it is ended", SECONDS, 0.001)
    assert server.hub.slow == slow + 1


def test_a_client_that_does_not_read_cannot_stay(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets no last event, because it does not read, and is cut off."""
    monkeypatch.setattr(event_stream, "_END_SECONDS", 0.2)
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        raw.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        raw.sendall(b"GET /api/v1/market/stream/agg-trades/BTCUSDT HTTP/1.1\r\nHost: localhost\r\n\r\n")
        server.followed(TRADES)
        [client] = server.hub._followers[TRADES]

        def is_blocked() -> bool:
            if not server.hub._arrived and not client._waiting:
                server.hub.publish([trade(number) for number in range(500)])
                return False
            return len(client._waiting) > 200

        until(is_blocked, "it is blocked", SECONDS, 0.1)
        assert len(server.hub) == 1
        server.hub.ended()
        until(lambda: len(server.hub) == 0, "it is gone", SECONDS, 0.01)
        assert TRADES not in server.hub._followers


def test_a_stream_ends_with_the_feed(server: LiveServer) -> None:
    with server.events(PATH) as events:
        server.followed()
        server.hub.ended()
        assert events.next() == {"event": "end", "data": {"reason": "The live feed ended. Connect again later"}}
        assert events.answer.readline() == b""


def test_streams_are_counted_at_their_start(server: LiveServer) -> None:
    with server.events(PATH):
        server.followed()
    until(lambda: len(server.hub) == 0, "the client is gone", SECONDS, 0.01)

    with urlopen(f"{server.url}/metrics", timeout=SECONDS) as answer:
        counted = answer.read().decode()
    assert 'route="/api/v1/market/stream/candles/{symbol}/{interval}",status="200"' in counted
