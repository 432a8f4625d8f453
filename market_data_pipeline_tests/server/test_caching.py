"""Caching: a version is sent once, a final range is immutable, and nothing old is served after a change."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from market_data_pipeline import clock
from market_data_pipeline.server.app import build_app
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

HOURS = "/api/v1/market/candles/BTCUSDT/1h"
SPAN = {"start_time": "2024-01-01", "end_time": "2024-01-03"}
KEY_OF = series("BTCUSDT", "1h")


def test_same_version_is_sent_once(client: TestClient) -> None:
    first = client.get(HOURS, params=SPAN)
    again = client.get(HOURS, params=SPAN, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert again.headers["cache-control"] == first.headers["cache-control"]
    for header in (f"W/{first.headers['etag']}", f'"other", {first.headers["etag"]}', "*"):
        assert client.get(HOURS, params=SPAN, headers={"If-None-Match": header}).status_code == 304
    assert client.get(HOURS, params=SPAN, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"version": 0, "final": False},
    ],
)
def test_changed_day_is_sent_again(client: TestClient, lake: SmallLake, change: dict[str, int]) -> None:
    """Other rows, and also another state of the same rows, because the states are part of the answer."""
    first = client.get(HOURS, params=SPAN)
    lake.put(KEY_OF, days_from("2024-01-02", 1), **change)  # type: ignore[arg-type]
    again = client.get(HOURS, params=SPAN, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 200
    assert again.headers["etag"] != first.headers["etag"]
    same_rows = "version" in change and not change["version"]
    assert (again.json()["version"] == first.json()["version"]) == same_rows


def test_change_outside_of_the_range_leaves_the_version(client: TestClient, lake: SmallLake) -> None:
    first = client.get(HOURS, params=SPAN)
    lake.put(KEY_OF, days_from("2024-01-09", 1), version=1)
    again = client.get(HOURS, params=SPAN, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304


def test_file_without_a_ledger_row_is_served_at_once(client: TestClient, lake: SmallLake) -> None:
    """A day is written before its ledger. The folder shows it."""
    span = {"start_time": "2024-02-20", "end_time": "2024-02-21"}
    assert client.get(HOURS, params=span).json()["columns"]["open"] == []
    lake.write_file(KEY_OF, days_from("2024-02-20", 1)[0])
    assert len(client.get(HOURS, params=span).json()["columns"]["open"]) == 24


def test_removed_day_is_missing_at_once(client: TestClient, lake: SmallLake) -> None:
    assert client.get(HOURS, params=SPAN).json()["missing"] == []
    lake.layout.file(KEY_OF, days_from("2024-01-02", 1)[0]).unlink()
    answer = client.get(HOURS, params=SPAN).json()
    assert len(answer["columns"]["open"]) == 24
    assert [span["from"] for span in answer["missing"]] == ["2024-01-02T00:00:00Z"]


def test_answers_are_cached_and_counted(client: TestClient) -> None:
    for _ in range(3):
        client.get(HOURS, params=SPAN)
    stats = client.get("/api/v1/system/cache-stats").json()
    assert (stats["encoded"]["hits"], stats["encoded"]["misses"], stats["encoded"]["answers"]) == (2, 1, 1)
    assert stats["requests"] == {"hot": 0, "lake": 3, "exchange": 0}
    assert stats["rows"]["lake"] == 3 * 48
    assert stats["hit_rate"] == {"requests": 1.0, "rows": 1.0}


def test_cache_of_answers_is_bounded(lake: SmallLake) -> None:
    settings = load_settings(dir=lake.root, serve_cache_mb=1)
    with TestClient(build_app(settings), base_url="http://localhost") as client:
        for limit in range(1000, 1200):
            client.get("/api/v1/market/candles/BTCUSDT/1m", params={"start_time": "2024-01-01", "limit": limit})
        stats = client.get("/api/v1/system/cache-stats").json()["encoded"]
    assert 0 < stats["bytes"] <= stats["most_bytes"] == 1_000_000


# --- freshness --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """A client of a lake with final, provisional and missing days."""
    lake = SmallLake(tmp_path_factory.mktemp("mixed") / "data")
    days = days_from("2024-01-01", 12)
    lake.put(KEY_OF, [*days[:4], *days[6:9]])
    lake.put(KEY_OF, days[9:11], final=False)
    return TestClient(build_app(load_settings(dir=lake.root)), base_url="http://localhost")


NOT_FINAL = {4, 5, 9, 10, 11}
"""Numbers of the days from 2024-01-01 on that are missing or provisional."""


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.integers(0, 12 * 24),
    hours=st.integers(0, 200),
    limit=st.integers(1, 100),
    open_end=st.booleans(),
)
def test_immutable_only_if_all_days_are_final(
    mixed: TestClient, first: int, hours: int, limit: int, open_end: bool
) -> None:
    begin = 1_704_067_200_000 + first * 3_600_000
    end = {} if open_end else {"end_time": begin + hours * 3_600_000}
    answer = mixed.get(HOURS, params={"start_time": begin, "limit": limit, **end})
    document = answer.json()
    until = document["end"] or "2026-12-01T00:00:00Z"
    days = {
        (day - datetime(2024, 1, 1, tzinfo=UTC)).days
        for day in _days(datetime.fromisoformat(document["start"]), datetime.fromisoformat(until))
    }
    immutable = "immutable" in answer.headers["cache-control"]
    is_final = not (days & NOT_FINAL) and all(day < 11 for day in days) and document["end"] is not None
    assert immutable == is_final


def _days(first: datetime, until: datetime) -> list[datetime]:
    day = first.replace(hour=0, minute=0, second=0)
    found = []
    while day < until:
        found.append(day)
        day += clock.DAY
    return found


def test_newest_rows_are_never_immutable(client: TestClient) -> None:
    """The same URL has other rows tomorrow."""
    header = client.get(HOURS, params={"end_time": "2024-01-03"}).headers["cache-control"]
    assert "immutable" not in header
    assert "immutable" not in client.get(HOURS).headers["cache-control"]


def test_range_of_today_is_fresh_until_the_minute_is_over(
    client: TestClient, lake: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = days_from("2024-02-10", 1)
    lake.put(KEY_OF, today, final=False)
    now = datetime(2024, 2, 10, 12, 0, 45, tzinfo=UTC)
    monkeypatch.setattr(clock, "now", lambda: now)
    answer = client.get(HOURS, params={"start_time": "2024-02-10"})
    assert answer.headers["cache-control"] == "public, max-age=15"
    assert answer.json()["states"][0]["state"] == "provisional"
