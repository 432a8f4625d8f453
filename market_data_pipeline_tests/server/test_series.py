"""Routes of series: how far each reaches, and the calendar of one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from market_data_pipeline import clock
from market_data_pipeline.lake.feed_status import write_status
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

NOW = datetime(2024, 2, 10, 12, tzinfo=UTC)
CALENDAR = "/api/v1/system/calendar"
HOURS = {"market": "spot", "data_type": "klines", "symbol": "BTCUSDT", "interval": "1h"}


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is noon of the day after the newest hours of the lake."""
    monkeypatch.setattr(clock, "now", lambda: NOW)


def listed(client: TestClient) -> dict[tuple[str, str | None], Any]:
    found = client.get("/api/v1/system/series").json()["series"]
    return {(one["data_type"], one["interval"]): one for one in found}


def test_series_have_their_first_and_newest_moment(client: TestClient) -> None:
    found = listed(client)
    hours = found["klines", "1h"]
    assert (hours["first"], hours["last"], hours["days"]) == ("2024-01-01", "2024-02-09", 40)
    assert (hours["until"], hours["state"], hours["days_behind"]) == ("2024-02-10T00:00:00Z", "current", 0)
    minutes = found["klines", "1m"]
    assert (minutes["until"], minutes["state"], minutes["days_behind"]) == ("2024-01-06T00:00:00Z", "behind", 35)
    trades = found["aggTrades", None]
    assert (trades["path"], trades["until"]) == ("agg-trades", "2024-01-04T00:00:00Z")


def test_candles_reach_to_the_end_of_the_newest_row(client: TestClient, lake: SmallLake) -> None:
    from market_data_pipeline_tests.support.small_lake import day_table

    key, [today] = series("BTCUSDT", "1h"), days_from("2024-02-10", 1)
    assert listed(client)["klines", "1h"]["last"] == "2024-02-09"
    lake.put_table(key, today, day_table(key, today).slice(0, 11))
    client.app.state.server.listed = None  # type: ignore[attr-defined] # instead of waiting two seconds
    assert listed(client)["klines", "1h"]["until"] == "2024-02-10T11:00:00Z"


@pytest.mark.parametrize(("age", "state"), [(1, "live"), (60, "current")])
def test_running_feed_makes_its_series_live(client: TestClient, lake: SmallLake, age: int, state: str) -> None:
    closed = {"last_closed": "2024-02-10T10:00:00.000Z", "lateness_seconds": 3600.0, "open_gaps": 0}
    updated = (NOW - timedelta(seconds=age)).isoformat()
    write_status(lake.layout, {"updated_at": updated, "series": {str(series("BTCUSDT", "1h")): closed}})
    document = client.get("/api/v1/system/series").json()
    found = listed(client)
    assert document["live"] is (state == "live")
    assert found["klines", "1h"]["state"] == state
    assert found["klines", "1h"]["until"] == f"2024-02-10T{'11' if state == 'live' else '00'}:00:00Z"
    assert found["klines", "1m"]["live"] is None


def test_calendar_has_every_day_of_the_series(client: TestClient, lake: SmallLake) -> None:
    lake.put(series("BTCUSDT", "1h"), days_from("2024-02-10", 1), final=False)
    found = client.get(CALENDAR, params=HOURS).json()
    assert found["runs"] == [["2024-01-01", "2024-02-09", "final"], ["2024-02-10", "2024-02-10", "provisional"]]
    assert found["counts"] == {"final": 40, "provisional": 1}
    [year] = found["years"]
    assert (year["year"], year["weeks"]) == (2024, 53)
    assert year["paths"]["provisional"] == "M5 5h1v1h-1z"


def test_calendar_is_one_picture_for_each_year(client: TestClient, lake: SmallLake) -> None:
    lake.put(series("BTCUSDT", "1h"), days_from("2022-12-31", 2))
    found = client.get(CALENDAR, params=HOURS).json()
    assert [year["year"] for year in found["years"]] == [2024, 2023, 2022]
    assert found["years"][2]["paths"] == {"final": "M52 5h1v1h-1z"}


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"symbol": "NOSUCH"}, 404),
        ({"symbol": "../.."}, 404),
        ({"interval": None}, 404),
        ({"interval": "2h"}, 404),
        ({"market": "moon"}, 422),
        ({"data_type": "nothing"}, 422),
    ],
)
def test_calendar_of_an_unknown_series_is_a_problem(
    client: TestClient, changed: dict[str, str | None], status: int
) -> None:
    parameters = {name: value for name, value in {**HOURS, **changed}.items() if value is not None}
    answer = client.get(CALENDAR, params=parameters)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
