"""SQL over HTTP: one query that reads the views. Everything else is refused, and no query outlives its limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from market_data_pipeline.server.app import build_app
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.server.conftest import KEY, WITH_KEY
from market_data_pipeline_tests.server.test_access import problem
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from, series

SQL = "/api/v1/sql"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sql") / "data"
    SmallLake(root).put(series("BTCUSDT", "1h"), days_from("2024-01-01", 3))
    (root / "secret.csv").write_text("secret\n1\n")
    return root


def client_of(root: Path, seconds: float) -> TestClient:
    """A client whose queries may take so many seconds and 64 MB."""
    settings = load_settings(dir=root, sql_seconds=seconds, sql_memory_mb=64, sql_disk_mb=1)
    return TestClient(build_app(settings, keys=[KEY]), base_url="http://localhost", headers=WITH_KEY)


@pytest.fixture(scope="module")
def sql(root: Path) -> TestClient:
    return client_of(root, 30)


def test_query_is_answered_in_every_format(sql: TestClient) -> None:
    body = {"query": "SELECT symbol, count(*) AS n FROM binance_spot.klines WHERE symbol = ? GROUP BY 1"}
    answer = sql.post(SQL, json={**body, "params": ["BTCUSDT"]})
    assert answer.json() == {"rows": 1, "truncated": False, "columns": {"symbol": ["BTCUSDT"], "n": [72]}}
    as_csv = sql.post(SQL, json={**body, "params": ["BTCUSDT"]}, headers={"Accept": "text/csv"})
    assert as_csv.text == '"symbol","n"\n"BTCUSDT",72\n'
    as_arrow = sql.post(
        SQL, json={**body, "params": ["BTCUSDT"]}, headers={"Accept": "application/vnd.apache.arrow.stream"}
    )
    assert pa.ipc.open_stream(as_arrow.content).read_all()["n"].to_pylist() == [72]


def test_more_rows_than_the_limit_are_cut_and_told(sql: TestClient) -> None:
    answer = sql.post(SQL, json={"query": "FROM binance_spot.klines ORDER BY open_time", "limit": 5})
    document = answer.json()
    assert (document["rows"], document["truncated"], answer.headers["x-truncated"]) == (5, True, "true")


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO binance_spot.klines SELECT * FROM binance_spot.klines",
        "COPY (SELECT 1) TO 'stolen.csv'",
        "SET memory_limit = '8GB'",
        "SELECT 1; SELECT 2",
        "FROM read_csv('{root}/secret.csv')",
        "FROM read_parquet('https://example.org/x.parquet')",
        "FROM nothing",
        "'; DROP TABLE x; --",
    ],
)
def test_what_is_no_query_of_the_views_is_refused(sql: TestClient, root: Path, query: str) -> None:
    """One of each kind: the door is that of ``MarketData.sql``, and ``client/test_queries.py`` has every other."""
    answer = sql.post(SQL, json={"query": query.format(root=root)})
    assert problem(answer) == (422, "invalid-request")
    assert "secret" not in answer.text.replace("secret.csv", "")
    assert not list(root.parent.rglob("stolen*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("SELECT count(*) FROM range(1000000000000)", 0.3),
        ("SELECT list(a.range) FROM range(100000000) a", 30),
        ("SELECT repeat('x', 2000000000)", 30),
        ("WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r", 0.3),
    ],
)
def test_query_without_end_or_bounds_is_ended(root: Path, query: str, seconds: float) -> None:
    sql = client_of(root, seconds)
    assert problem(sql.post(SQL, json={"query": query})) == (422, "query-limit")
    assert sql.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b"{}", "application/json", (422, "invalid-request")),
        (b"[1]", "application/json", (422, "invalid-request")),
        (b'{"query": ""}', "application/json", (422, "invalid-request")),
        (b'{"query": 5}', "application/json", (422, "invalid-request")),
        (b'{"query": "SELECT 1", "limit": 0}', "application/json", (422, "invalid-request")),
        (b'{"query": "SELECT 1", "limit": true}', "application/json", (422, "invalid-request")),
        (b'{"query": "SELECT 1", "params": {}}', "application/json", (422, "invalid-request")),
        (b'{"query": "SELECT 1", "unrestricted": true}', "application/json", (422, "invalid-request")),
        (b"\xff\xfe", "application/json", (422, "invalid-request")),
        (b"not JSON", "application/json", (422, "invalid-request")),
        (b"SELECT 1", "text/plain", (415, "unsupported-media-type")),
        (b"query=SELECT+1", "application/x-www-form-urlencoded", (415, "unsupported-media-type")),
        (b'{"query": "' + b"x" * 200_000 + b'"}', "application/json", (413, "too-large")),
    ],
)
def test_wrong_body_is_explained(sql: TestClient, body: bytes, content_type: str, expected: tuple[int, str]) -> None:
    assert problem(sql.post(SQL, content=body, headers={"Content-Type": content_type})) == expected


def test_sql_needs_a_key(sql: TestClient) -> None:
    answer = sql.post(SQL, json={"query": "SELECT 1"}, headers={"Authorization": ""})
    assert problem(answer) == (401, "key-needed")


def nested(depth: int) -> dict[str, Any]:
    return {"query": "SELECT " + "(" * depth + "1" + ")" * depth}


def test_deeply_nested_query_is_refused_or_answered(sql: TestClient) -> None:
    assert sql.post(SQL, json=nested(20_000)).status_code in (200, 422)
    assert json.loads(sql.post(SQL, json=nested(3)).text)["rows"] == 1
