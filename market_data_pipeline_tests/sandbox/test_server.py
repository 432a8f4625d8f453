"""The server itself: its log, its clock, its door for other processes."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import requests

from market_data_pipeline.errors import UsageError
from market_data_pipeline.sandbox import Sandbox, serve
from market_data_pipeline_tests.sandbox.conftest import NOW

Get = Callable[..., requests.Response]


def test_every_setting_points_at_it(sandbox: Sandbox) -> None:
    streams = sandbox.url.replace("http", "ws")
    assert sandbox.settings_env() == {
        f"MARKET_DATA_{name}_URL": sandbox.url for name in ("VISION", "VISION_LISTING", "SPOT", "UM", "CM")
    } | {
        "MARKET_DATA_SPOT_STREAM_URL": streams,
        "MARKET_DATA_UM_STREAM_URL": f"{streams}/market",
        "MARKET_DATA_CM_STREAM_URL": f"{streams}/cm",
    }


def test_requests_are_logged_as_they_came(get: Get, sandbox: Sandbox) -> None:
    get("/api/v3/klines", params={"symbol": "BTCUSDT", "interval": "1m", "limit": 5})
    get("/data/spot/daily/klines/币安人生USDT/1m/x.zip")
    requests.head(f"{sandbox.url}/?prefix=a b&delimiter=/", timeout=120)
    seen = [(r.method, r.path, r.query, r.status, r.weight) for r in sandbox.requests]
    assert seen == [
        ("GET", "/api/v3/klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": "5"}, 200, 2),
        ("GET", "/data/spot/daily/klines/币安人生USDT/1m/x.zip", {}, 404, 0),
        ("HEAD", "/", {"prefix": "a b", "delimiter": "/"}, 200, 0),
    ]
    sandbox.clear_requests()
    assert sandbox.requests == []


def test_many_clients_at_once(sandbox: Sandbox) -> None:
    path = "/data/spot/daily/klines/ETHUSDT/1m/ETHUSDT-1m-2025-01-{:02}.zip"
    local = threading.local()

    def fetch(n: int) -> tuple[int, bytes]:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        return n % 20, local.session.get(sandbox.url + path.format(n % 20 + 1), timeout=120).content

    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(fetch, range(200)))
    assert len(set(bodies)) == 20
    assert len(sandbox.requests) == 200


def test_the_door_for_other_processes(get: Get, sandbox: Sandbox) -> None:
    door = f"{sandbox.url}/_sandbox"
    post, delete = requests.post, requests.delete
    faults: list[dict[str, object]] = [
        {"kind": "Status", "path": "/api/", "status": 451},
        {"kind": "MissingDay", "days": ["2025-02-03"], "series": "spot"},
        {"kind": "MarketOutage", "start": "2025-02-05T00:00:00Z", "end": "2025-02-05T01:00:00Z"},
    ]
    assert post(f"{door}/faults", json=faults[0], timeout=120).status_code == 200
    assert [f["kind"] for f in post(f"{door}/faults", json=faults[1:], timeout=120).json()] == [
        f["kind"] for f in faults
    ]
    assert get("/api/v3/time").status_code == 451
    assert get("/data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2025-02-03.zip").status_code == 404
    (first, second) = get("/_sandbox/requests").json()
    assert (first["path"], first["status"], second["status"]) == ("/api/v3/time", 451, 404)
    assert delete(f"{door}/requests", timeout=120).json() == []
    assert delete(f"{door}/faults", timeout=120).json() == []
    assert get("/api/v3/time").status_code == 200

    moved = post(f"{door}/time", json={"now": "2024-06-01T00:00:00Z"}, timeout=120).json()
    assert moved == {"now": "2024-06-01T00:00:00+00:00"}
    assert get("/api/v3/time").json()["serverTime"] == 1_717_200_000_000
    post(f"{door}/time", json={"now": None}, timeout=120)
    assert abs(get("/api/v3/time").json()["serverTime"] / 1_000 - time.time()) < 30


@pytest.mark.parametrize(
    ("door", "message", "says"),
    [
        ("faults", {"kind": "Flood"}, "There are: Delay, Status"),
        ("faults", {"kind": "Status"}, "status"),
        ("time", {"now": "yesterday"}, "ISO time"),
    ],
)
def test_a_message_that_cannot_be_read_is_refused(
    sandbox: Sandbox, door: str, message: dict[str, str], says: str
) -> None:
    answer = requests.post(f"{sandbox.url}/_sandbox/{door}", json=message, timeout=120)
    assert answer.status_code == 400
    assert says in answer.json()["error"]


def test_taken_port_is_reported(sandbox: Sandbox) -> None:
    port = int(sandbox.url.rsplit(":", 1)[1])
    with pytest.raises(UsageError, match=f"port {port}"), Sandbox(port=port):
        pass


def test_a_naive_time_is_utc(sandbox: Sandbox, get: Get) -> None:
    sandbox.set_time(NOW.replace(tzinfo=None))
    assert get("/api/v3/time").json()["serverTime"] == 1_740_832_215_000


@pytest.mark.slow
def test_serve_runs_in_a_process_of_its_own() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(port,), kwargs={"now": datetime(2025, 3, 1, tzinfo=UTC)}, daemon=True)
    process.start()
    try:
        with requests.Session() as session:
            retries = requests.adapters.Retry(total=None, connect=60, backoff_factor=0.1, backoff_max=0.5)
            session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries))
            assert (
                session.get(f"http://127.0.0.1:{port}/api/v3/time", timeout=120).json()["serverTime"]
                == 1_740_787_200_000
            )
    finally:
        process.terminate()
        process.join(120)
        process.close()
