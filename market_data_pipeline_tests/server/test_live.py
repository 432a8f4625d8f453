"""Live rows over HTTP: in the rows, states, versions and pages. And the heartbeat of the feed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

import pytest
from starlette.testclient import TestClient

from market_data_pipeline import clock
from market_data_pipeline.lake.feed_status import write_status
from market_data_pipeline.lake.forming_candles import FormingCandle, FormingWriter
from market_data_pipeline.lake.live_rows import LiveWriter
from market_data_pipeline_tests.support.live_world import live_rows_of
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from, series

HOURS = "/api/v1/market/candles/BTCUSDT/1h"
KEY = series("BTCUSDT", "1h")
(DAY,) = days_from("2024-02-10", 1)
"""The day after those of the lake."""
SPAN = {"start_time": "2024-02-09T20:00", "end_time": "2024-02-10T06:00"}


@pytest.fixture
def writer(lake: SmallLake) -> Iterator[LiveWriter]:
    with LiveWriter(lake.layout) as writer:
        writer.append(KEY, live_rows_of(day_table(KEY, DAY).slice(0, 6), KEY))
        yield writer


def test_answers_have_live_rows_and_name_them(client: TestClient, writer: LiveWriter) -> None:
    answer = client.get(HOURS, params=SPAN).json()
    assert answer["columns"]["open"] == [20, 21, 22, 23, 0, 1, 2, 3, 4, 5]
    assert [span["state"] for span in answer["states"]] == ["final", "live"]
    assert answer["missing"] == []


def test_the_newest_rows_are_live_ones(client: TestClient, writer: LiveWriter) -> None:
    answer = client.get(HOURS, params={"limit": 3, "end_time": "2024-02-10T06:00"}).json()
    assert answer["columns"]["open"] == [3, 4, 5]


def test_a_new_live_row_ends_a_cached_answer(client: TestClient, writer: LiveWriter) -> None:
    span = {**SPAN, "end_time": "2024-02-10T07:00"}
    before = client.get(HOURS, params=span)
    assert client.get(HOURS, params=span, headers={"If-None-Match": before.headers["etag"]}).status_code == 304
    assert "immutable" not in before.headers["cache-control"]
    writer.append(KEY, live_rows_of(day_table(KEY, DAY).slice(6, 1), KEY))
    after = client.get(HOURS, params=span, headers={"If-None-Match": before.headers["etag"]})
    assert (after.status_code, after.json()["columns"]["open"][-1]) == (200, 6)
    assert after.json()["version"] != before.json()["version"]


def test_pages_of_live_rows_are_the_whole(client: TestClient, writer: LiveWriter) -> None:
    token: dict[str, str] = {}
    found: list[int] = []
    while True:
        answer = client.get(HOURS, params={**SPAN, **token, "limit": 3}).json()
        found += answer["columns"]["open"]
        if answer["next_page_token"] is None:
            break
        token = {"page_token": answer["next_page_token"]}
    assert found == [20, 21, 22, 23, 0, 1, 2, 3, 4, 5]


# --- open candles -----------------------------------------------------------------------------------------------------


@pytest.fixture
def forming(lake: SmallLake, writer: LiveWriter) -> Iterator[FormingWriter]:
    """A feed that runs, and whose candle of 06:00 is open."""
    with FormingWriter(lake.layout, [KEY]) as forming:
        forming.put(open_candle(5.0))
        forming.beat()
        yield forming


def open_candle(close: float, hour: int = 6) -> FormingCandle:
    opened = clock.day_start_us(DAY) + hour * 3_600_000_000
    values = (opened, 5.0, 9.0, 1.0, close, 1.0, opened + 3_600_000_000 - 1, 1.0, 1, 1.0, 1.0)
    return FormingCandle(KEY, values, opened + int(close * 1_000_000))


OPEN = {**SPAN, "end_time": "2024-02-10T12:00", "columns": "close", "include_forming": "true"}


def test_the_open_candle_is_the_last_row_if_requested(client: TestClient, forming: FormingWriter) -> None:
    answer = client.get(HOURS, params=OPEN)
    assert answer.json()["columns"]["close"] == [0] * 10 + [5]
    assert answer.json()["states"][-1] == {
        "from": "2024-02-10T06:00:00Z",
        "to": "2024-02-10T07:00:00Z",
        "state": "forming",
        "source": "live",
        "as_of": "2024-02-10T06:00:05Z",
    }
    closed = client.get(HOURS, params={**OPEN, "include_forming": "false"}).json()
    assert closed["columns"]["close"] == [0] * 10
    assert closed["version"] == answer.json()["version"]
    assert [span["state"] for span in closed["states"]] == ["final", "live"]
    newest = client.get(HOURS, params={"limit": 2, "include_forming": "true", "end_time": "2024-02-10T12:00"})
    assert newest.json()["columns"]["close"] == [0, 5]
    composed = client.get(HOURS.replace("1h", "2h"), params=OPEN).json()
    assert composed["columns"]["close"] == [0] * 5
    rows = client.get("/api/v3/klines", params={"symbol": "BTCUSDT", "interval": "1h", "limit": 2}).json()
    assert [float(row[1]) for row in rows] == [4, 5]


def test_each_state_of_the_open_candle_is_a_new_answer(client: TestClient, forming: FormingWriter) -> None:
    before = client.get(HOURS, params=OPEN)
    assert "max-age=0" in before.headers["cache-control"] or "max-age=1" in before.headers["cache-control"]
    known = {"If-None-Match": before.headers["etag"]}
    assert client.get(HOURS, params=OPEN, headers=known).status_code == 304
    forming.put(open_candle(6.0))
    after = client.get(HOURS, params=OPEN, headers=known)
    assert (after.status_code, after.json()["columns"]["close"][-1]) == (200, 6)
    forming.clear(KEY)
    assert client.get(HOURS, params=OPEN).json()["columns"]["close"] == [0] * 10


def test_the_open_candle_is_on_the_last_page(client: TestClient, forming: FormingWriter) -> None:
    for limit in (1, 5, 10, 11, 12):
        token: dict[str, str] = {}
        found: list[float] = []
        while True:
            answer = client.get(HOURS, params={**OPEN, **token, "limit": limit}).json()
            found += answer["columns"]["close"]
            assert ("forming" in str(answer["states"])) == (found[-1] == 5)
            if answer["next_page_token"] is None:
                break
            token = {"page_token": answer["next_page_token"]}
        assert found == [0] * 10 + [5]


def test_an_open_candle_that_closed_is_a_row(client: TestClient, forming: FormingWriter, writer: LiveWriter) -> None:
    writer.append(KEY, live_rows_of(day_table(KEY, DAY, version=3).slice(6, 1), KEY))
    answer = client.get(HOURS, params=OPEN).json()
    assert answer["columns"]["close"] == [0] * 10 + [3]
    assert [span["state"] for span in answer["states"]] == ["final", "live"]
    writer.append(KEY, live_rows_of(day_table(KEY, DAY, version=3).slice(8, 1), KEY))
    forming.put(open_candle(4.0, hour=7))  # and one whose close is missing, with a later row
    assert client.get(HOURS, params=OPEN).json()["columns"]["close"] == [0] * 10 + [3, 3]


def test_ready_checks_the_heartbeat_of_a_feed(client: TestClient, lake: SmallLake) -> None:
    assert client.get("/ready").json()["live"] is None
    now = clock.now()
    write_status(lake.layout, {"process": os.getpid(), "updated_at": now.isoformat()})
    assert client.get("/ready").json()["live"] == "runs"
    write_status(lake.layout, {"process": os.getpid(), "updated_at": (now - timedelta(minutes=1)).isoformat()})
    assert client.get("/ready").status_code == 503
    write_status(lake.layout, {"process": 2**22 + 1, "updated_at": (now - timedelta(minutes=1)).isoformat()})
    assert client.get("/ready").json()["live"] == "ended"
