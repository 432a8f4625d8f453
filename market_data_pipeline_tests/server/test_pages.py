"""Pages: joined, they are the whole. A page of changed data is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from market_data_pipeline.client import MarketData
from market_data_pipeline.server.app import build_app
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from, series

MINUTES = "/api/v1/market/candles/BTCUSDT/1m"
TRADES = "/api/v1/market/agg-trades/BTCUSDT"
KINDS = {
    "candles/BTCUSDT/1m": "open_time",
    "candles/BTCUSDT/7m": "open_time",
    "candles/BTCUSDT/3d": "open_time",
    "agg-trades/BTCUSDT": "agg_trade_id",
    "trade-profile/BTCUSDT": "day",
}
"""Routes, and a column that identifies their rows."""


def crowded(lake: SmallLake) -> None:
    """Add a day of trades of which ten at a time share their moment."""
    key, (day,) = series("BTCUSDT"), days_from("2024-01-04", 1)
    table = day_table(key, day)
    times = table["transact_time"].to_pylist()
    column = table.schema.get_field_index("transact_time")
    same = [times[n // 10 * 10] for n in range(len(times))]
    lake.put_table(key, day, table.set_column(column, table.schema.field(column), [same]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a lake that no test changes. A day of minutes is missing."""
    lake = SmallLake(tmp_path_factory.mktemp("pages") / "data")
    lake.put(series("BTCUSDT", "1m"), [*days_from("2024-01-01", 2), *days_from("2024-01-04", 1)])
    lake.put(series("BTCUSDT"), days_from("2024-01-01", 3))
    lake.put(series("BTCUSDT", data_type="tradeProfile"), days_from("2024-01-01", 9))
    crowded(lake)
    with TestClient(build_app(load_settings(dir=lake.root)), base_url="http://localhost") as client:
        yield client


def pages(client: TestClient, path: str, **params: Any) -> Iterator[dict[str, Any]]:
    """Yield the documents of all pages."""
    token: dict[str, str] = {}
    while True:
        answer = client.get(path, params={**params, **token})
        assert answer.status_code == 200, answer.text
        document = answer.json()
        yield document
        if document["next_page_token"] is None:
            return
        token = {"page_token": document["next_page_token"]}


def joined(documents: list[dict[str, Any]], column: str) -> list[Any]:
    return [value for document in documents for value in document["columns"][column]]


@settings(max_examples=25)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    limit=st.integers(min_value=1, max_value=3000),
    start=st.integers(min_value=-60, max_value=5 * 1440),
    length=st.integers(min_value=0, max_value=6 * 1440),
)
def test_pages_joined_are_the_whole(whole: TestClient, kind: str, limit: int, start: int, length: int) -> None:
    """For every limit and range. Small limits get short ranges, so that no example has hundreds of pages."""
    length = min(length, limit * 20)
    begin = 1_704_067_200_000 + start * 60_000
    span = {"start_time": begin, "end_time": begin + length * 60_000}
    path, column = f"/api/v1/market/{kind}", KINDS[kind]
    every = list(pages(whole, path, limit=10_000, **span))
    some = list(pages(whole, path, limit=limit, **span))
    assert joined(some, column) == joined(every, column)
    assert all(len(one["columns"][column]) == limit for one in some[:-1])
    assert [one["start"] for one in some[1:]] == [one["end"] for one in some[:-1]]


def test_pages_split_trades_that_share_a_moment(whole: TestClient) -> None:
    found = list(pages(whole, TRADES, start_time="2024-01-04", end_time="2024-01-05", limit=7))
    ids = joined(found, "agg_trade_id")
    assert len(found) == 15
    assert ids == sorted(set(ids))
    assert len(ids) == 100


def test_without_a_start_the_newest_rows_come(whole: TestClient) -> None:
    answer = whole.get(MINUTES, params={"limit": 1500}).json()
    times = answer["columns"]["open_time"]
    assert len(times) == 1500
    assert times[-1] == 1_704_412_740_000_000  # 23:59 of the last stored day
    assert times[60] - times[59] == 60_000_000 + 86_400_000_000  # across the missing day
    assert answer["next_page_token"] is None


def test_missing_day_is_named_and_no_row_is_made_up(whole: TestClient) -> None:
    answer = whole.get(MINUTES, params={"start_time": "2024-01-02", "end_time": "2024-01-05", "limit": 10_000}).json()
    assert answer["missing"] == [{"from": "2024-01-03T00:00:00Z", "to": "2024-01-04T00:00:00Z", "reason": "missing"}]
    assert len(answer["columns"]["open"]) == 2 * 1440


def test_rows_equal_those_of_the_client(whole: TestClient) -> None:
    state = whole.app.state.server  # type: ignore[attr-defined]
    market = MarketData(state.settings.root)
    for interval in ("1m", "7m", "3d"):
        rows = market.klines("BTCUSDT", interval, "2024-01-01", "2024-01-05", on_gap="ignore").df()
        found = list(pages(whole, f"/api/v1/market/candles/BTCUSDT/{interval}", start_time="2024-01-01", limit=1000))
        for column in ("open", "close", "volume"):
            assert joined(found, column) == rows[column].tolist()


# --- changes between pages --------------------------------------------------------------------------------------------


def first_page(client: TestClient, **params: Any) -> dict[str, Any]:
    span: dict[str, Any] = {"start_time": "2024-01-01", "end_time": "2024-01-06", "limit": 2000}
    answer = client.get(MINUTES, params={**span, **params})
    document: dict[str, Any] = answer.json()
    return document


def test_changed_earlier_day_refuses_the_next_page(client: TestClient, lake: SmallLake) -> None:
    token = first_page(client)["next_page_token"]
    lake.put(series("BTCUSDT", "1m"), days_from("2024-01-01", 1), version=1)
    refused = first_page(client, page_token=token)
    assert (refused["status"], refused["type"].rpartition(":")[2]) == (409, "version-changed")
    followed = first_page(client, page_token=token, follow="latest")
    assert followed["start"] == "2024-01-02T09:20:00Z"


def test_changed_later_day_does_not_refuse_the_next_page(client: TestClient, lake: SmallLake) -> None:
    token = first_page(client)["next_page_token"]
    lake.put(series("BTCUSDT", "1m"), days_from("2024-01-05", 1), version=1)
    assert first_page(client, page_token=token)["start"] == "2024-01-02T09:20:00Z"


def test_token_of_another_server_process_works(client: TestClient, lake: SmallLake) -> None:
    token = first_page(client)["next_page_token"]
    with TestClient(build_app(load_settings(dir=lake.root)), base_url="http://localhost") as other:
        assert first_page(other, page_token=token)["start"] == "2024-01-02T09:20:00Z"


@given(token=st.one_of(st.text(max_size=60), st.from_regex(r"[A-Za-z0-9_-]{1,120}", fullmatch=True)))
@settings(max_examples=50)
def test_forged_page_token_is_refused(whole: TestClient, token: str) -> None:
    answer = whole.get(MINUTES, params={"start_time": "2024-01-01", "page_token": token})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_changed_page_token_is_refused(whole: TestClient) -> None:
    token = whole.get(MINUTES, params={"start_time": "2024-01-01", "limit": 5}).json()["next_page_token"]
    for at in range(0, len(token), 7):
        forged = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        answer = whole.get(MINUTES, params={"start_time": "2024-01-01", "limit": 5, "page_token": forged})
        assert answer.status_code in (409, 422), forged


def test_page_token_of_another_query_is_refused(whole: TestClient) -> None:
    token = whole.get(MINUTES, params={"start_time": "2024-01-01", "limit": 5}).json()["next_page_token"]
    answer = whole.get(TRADES, params={"start_time": "2024-01-01", "limit": 5, "page_token": token})
    assert answer.json()["type"].endswith("invalid-page-token")
