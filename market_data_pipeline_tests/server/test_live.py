"""Live rows over HTTP: in the rows, states, versions and pages. And the heartbeat of the feed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

import pytest
from starlette.testclient import TestClient

from market_data_pipeline import clock
from market_data_pipeline.lake.feed_status import write_status
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


def test_ready_checks_the_heartbeat_of_a_feed(client: TestClient, lake: SmallLake) -> None:
    assert client.get("/ready").json()["live"] is None
    now = clock.now()
    write_status(lake.layout, {"process": os.getpid(), "updated_at": now.isoformat()})
    assert client.get("/ready").json()["live"] == "runs"
    write_status(lake.layout, {"process": os.getpid(), "updated_at": (now - timedelta(minutes=1)).isoformat()})
    assert client.get("/ready").status_code == 503
    write_status(lake.layout, {"process": 2**22 + 1, "updated_at": (now - timedelta(minutes=1)).isoformat()})
    assert client.get("/ready").json()["live"] == "ended"
