"""Access: keys, names of the server, and every wrong request. Each is answered with a problem document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from market_data_pipeline.server.app import build_app
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline_tests.server.conftest import KEY, WITH_KEY
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

MINUTES = "/api/v1/market/candles/BTCUSDT/1m"
ADMIN = "/api/v1/admin/cache/stats"


def problem(answer: Any) -> tuple[int, str]:
    """Return status and kind of a problem document, after a look at its form."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document = answer.json()
    assert document["status"] == answer.status_code
    assert document["title"]
    assert document["detail"]
    assert "Traceback" not in answer.text
    return answer.status_code, document["type"].rpartition(":")[2]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """A client of a server whose lake no test changes."""
    lake = SmallLake(tmp_path_factory.mktemp("access") / "data")
    lake.put(series("BTCUSDT", "1m"), days_from("2024-01-01", 1))
    return TestClient(build_app(load_settings(dir=lake.root), keys=[KEY]), base_url="http://localhost")


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "kind", "words"),
    [
        ("candles/NOSUCH/1m", 404, "unknown-series", "There are: BTCUSDT"),
        ("candles/BTCUSD/1m", 404, "unknown-series", "Did you mean BTCUSDT"),
        ("candles/BTCUSDT/1x", 404, "unknown-series", "Binance publishes"),
        ("candles/BTCUSDT/90s", 404, "unknown-series", ""),
        ("candles/BTCUSDT/1m?market=moon", 422, "invalid-request", "market"),
        ("metrics/BTCUSDT?market=spot", 422, "invalid-request", "market=um or cm"),
        ("candles/BTCUSDT/1m?limit=0", 422, "invalid-request", "limit"),
        ("candles/BTCUSDT/1m?limit=-1", 422, "invalid-request", "limit"),
        ("candles/BTCUSDT/1m?limit=1000000000", 422, "invalid-request", "limit"),
        ("candles/BTCUSDT/1m?limit=1e3", 422, "invalid-request", "limit"),
        ("candles/BTCUSDT/1m?start_time=2024-02-01&end_time=2024-01-01", 422, "invalid-request", "after end_time"),
        ("candles/BTCUSDT/1m?start_time=yesterday", 422, "invalid-request", "not a date"),
        ("candles/BTCUSDT/1m?start_time=99999999999999999", 422, "invalid-request", "calendar"),
        ("candles/BTCUSDT/1m?end_time=2024-13-45", 422, "invalid-request", "not a date"),
        ("candles/BTCUSDT/1m?start_time=0001-01-01T00:00%2B14:00", 422, "invalid-request", "calendar"),
        ("candles/BTCUSDT/1m?columns=price", 422, "invalid-request", "There are: symbol"),
        ("candles/BTCUSDT/1m?cache_strategy=never", 422, "invalid-request", "cache_strategy"),
        ("candles/BTCUSDT/1m?include_forming=perhaps", 422, "invalid-request", "include_forming"),
        ("candles/BTCUSDT/1m?format=xml", 422, "invalid-request", "format"),
        ("candles/BTCUSDT/1m?follow=oldest", 422, "invalid-request", "follow"),
        ("candles/BTCUSDT/1m?page_token=AAAA&limit=5", 422, "invalid-page-token", ""),
        ("candles/BTCUSDT/1m?cache_strategy=auto", 403, "not-enabled", "API key"),
        ("candles/BTCUSDT", 404, "not-found", "/docs"),
    ],
)
def test_wrong_parameter_is_explained(everything: TestClient, path: str, status: int, kind: str, words: str) -> None:
    answer = everything.get(f"/api/v1/market/{path}")
    assert problem(answer) == (status, kind)
    assert words in answer.json()["detail"]


@pytest.mark.parametrize("moment", ["0001-01-01", "9999-12-31", "-62135596800000", "253402300799999"])
def test_absurd_times_are_an_empty_or_whole_range(everything: TestClient, moment: str) -> None:
    after = everything.get(MINUTES, params={"start_time": moment, "limit": 3})
    before = everything.get(MINUTES, params={"end_time": moment, "limit": 3})
    found = [answer.json()["columns"]["open_time"] for answer in (after, before) if answer.status_code == 200]
    assert sorted(map(len, found)) in ([0, 3], [3])


@pytest.mark.parametrize(
    "symbol",
    ["..", "%2e%2e", "..%2f..%2fetc", "BTC'USDT", 'BTC"USDT', "BTC%00USDT", "BTC%2FUSDT", "%5C..", "BTC%0AUSDT", "*"],
)
def test_symbol_is_never_a_path(everything: TestClient, symbol: str) -> None:
    for path in (f"candles/{symbol}/1m", f"agg-trades/{symbol}"):
        status, kind = problem(everything.get(f"/api/v1/market/{path}"))
        assert (status, kind) in ((404, "unknown-series"), (404, "not-found"))


@settings(max_examples=150, deadline=None)
@given(symbol=st.text(min_size=1, max_size=50), interval=st.text(min_size=1, max_size=12))
def test_no_text_in_a_path_fails(everything: TestClient, symbol: str, interval: str) -> None:
    from urllib.parse import quote

    path = "/".join(quote(part, safe="", errors="replace") for part in (symbol, interval))
    answer = everything.get(f"/api/v1/market/candles/{path}")
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_unknown_path_and_method_are_problems(client: TestClient) -> None:
    assert problem(client.get("/nothing")) == (404, "not-found")
    answer = client.delete(MINUTES)
    assert problem(answer) == (405, "method-not-allowed")
    assert answer.headers["allow"] == "GET"


def test_damaged_file_is_named(client: TestClient, lake: SmallLake) -> None:
    path = lake.layout.file(series("BTCUSDT", "1m"), days_from("2024-01-02", 1)[0])
    path.write_bytes(b"no Parquet")
    answer = client.get(MINUTES, params={"start_time": "2024-01-02", "end_time": "2024-01-03"})
    assert problem(answer) == (503, "damaged-file")
    assert "2024-01-02" in answer.json()["detail"]
    assert client.get(MINUTES, params={"start_time": "2024-01-01", "end_time": "2024-01-02"}).status_code == 200


# --- the server's names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "not a host"}, 400),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "market.example"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://charts.example"}, 200),
    ],
)
def test_only_own_names_and_pages_are_answered(lake: SmallLake, headers: dict[str, str], status: int) -> None:
    settings = load_settings(dir=lake.root, serve_origins="https://charts.example", serve_hosts="market.example")
    with TestClient(build_app(settings), base_url="http://localhost") as client:
        answer = client.get(MINUTES, headers=headers)
    assert answer.status_code == status
    if status != 200:
        problem(answer)


def test_pages_of_an_allowed_origin_may_read(lake: SmallLake) -> None:
    settings = load_settings(dir=lake.root, serve_origins="https://charts.example")
    with TestClient(build_app(settings), base_url="http://localhost") as client:
        answer = client.get(MINUTES, headers={"Origin": "https://charts.example"})
        assert answer.headers["access-control-allow-origin"] == "https://charts.example"
        assert "access-control-allow-origin" not in client.get(MINUTES).headers


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Basic {KEY}"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Bearer \xe4\xf6"}, 401),
        (WITH_KEY, 200),
        ({"X-API-Key": KEY}, 200),
    ],
)
def test_admin_needs_a_key(everything: TestClient, headers: dict[str, str], status: int) -> None:
    answer = everything.get(ADMIN, headers={name.encode(): value.encode("latin-1") for name, value in headers.items()})
    assert answer.status_code == status
    if status == 401:
        assert problem(answer) == (401, "key-needed")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_admin_and_sql_are_off_without_keys(settings: Settings) -> None:
    with TestClient(build_app(settings), base_url="http://localhost") as client:
        for answer in (client.get(ADMIN), client.post("/api/v1/sql", json={"query": "SELECT 1"})):
            assert problem(answer) == (403, "not-enabled")
            assert "MARKET_DATA_API_KEYS" in answer.json()["detail"]


def test_every_route_needs_a_key_if_others_reach_the_server(settings: Settings) -> None:
    app = build_app(settings, keys=[KEY], key_for_all=True)
    with TestClient(app, base_url="http://localhost") as client:
        for path in (MINUTES, "/metrics", "/api/v1/system/cache-stats"):
            assert problem(client.get(path)) == (401, "key-needed")
            assert client.get(path, headers=WITH_KEY).status_code == 200
        for path in ("/health", "/ready", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert "private" in client.get(MINUTES, headers=WITH_KEY).headers["cache-control"]


# --- state of the server ----------------------------------------------------------------------------------------------


def test_ready_only_if_the_data_folder_is_readable(tmp_path: Path) -> None:
    with TestClient(build_app(load_settings(dir=tmp_path / "none")), base_url="http://localhost") as client:
        assert client.get("/health").status_code == 200
        assert problem(client.get("/ready")) == (503, "busy")


def test_metrics_count_requests_and_rows(client: TestClient) -> None:
    client.get(MINUTES, params={"limit": 7})
    text = client.get("/metrics").text
    assert 'market_data_rows_total{source="lake"} 7.0' in text
    assert "market_data_answer_cache_answers 1.0" in text
    assert 'market_data_http_requests_total{route="/api/v1/market/candles/{symbol}/{interval}",status="200"}' in text


def test_data_health_counts_days_of_every_series(client: TestClient, lake: SmallLake) -> None:
    lake.put(series("BTCUSDT", "1m"), days_from("2024-01-06", 2), final=False)
    document = client.get("/api/v1/system/data-health").json()
    assert document["totals"]["series"] == 3
    (minutes,) = [one for one in document["series"] if one["interval"] == "1m"]
    assert (minutes["final"], minutes["provisional"], minutes["missing"]) == (5, 2, 0)
