"""Jobs over HTTP: a request begins a command, and its job shows what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from market_data_pipeline import clock
from market_data_pipeline.sandbox import Sandbox
from market_data_pipeline.server.app import build_app
from market_data_pipeline.server.jobs import fetch_arguments
from market_data_pipeline_tests.server.conftest import KEY, WITH_KEY
from market_data_pipeline_tests.server.test_access import problem
from market_data_pipeline_tests.support.small_lake import days_from, series
from market_data_pipeline_tests.support.world import settings_of

ADMIN = "/api/v1/admin"


def ended(client: TestClient, location: str) -> dict[str, Any]:
    """Wait until a job ended, and return it."""
    jobs = client.app.state.server.jobs  # type: ignore[attr-defined]
    assert client.portal is not None
    client.portal.call(jobs.get(location.rpartition("/")[2]).done.wait)
    document: dict[str, Any] = client.get(location).json()
    return document


@pytest.fixture
def admin(client: TestClient) -> TestClient:
    """A client that sends its key."""
    client.headers.update(WITH_KEY)
    return client


@pytest.mark.slow
def test_gaps_scan_has_the_coverage_as_its_result(admin: TestClient) -> None:
    answer = admin.post(f"{ADMIN}/gaps/scan", params={"symbols": "BTCUSDT", "intervals": "1h"})
    assert answer.status_code == 202
    job = ended(admin, answer.headers["location"])
    assert (job["status"], job["exit_code"]) == ("succeeded", 0), job["errors"]
    (series_,) = job["result"]
    assert series_["series"] == "binance/spot/klines/BTCUSDT/1h"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("gaps/scan?symbols=..", "not a symbol"),
        ("gaps/fill?intervals=9x", "interval"),
        ("gaps/fill?data_types=secrets", "data type"),
        ("gaps/fill?market=moon", "market"),
        ("cache/preload?start=tomorrow", "start"),
        ("cache/preload?symbols=--yes", "not a symbol"),
        ("bootstrap/BTC%00", "not a symbol"),
        ("bootstrap/BTCUSDT?intervals=,", "interval"),
        ("bootstrap/BTCUSDT?start=9999-99-99", "start"),
    ],
)
def test_wrong_job_is_not_begun(live: TestClient, path: str, words: str) -> None:
    answer = live.post(f"{ADMIN}/{path}")
    assert problem(answer)[0] in (404, 422)
    assert words in answer.json()["detail"]


def test_unknown_job_is_not_found(admin: TestClient) -> None:
    assert problem(admin.get(f"{ADMIN}/jobs/none")) == (404, "not-found")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (series("BTCUSDT", "1h"), "--market spot --symbol BTCUSDT --interval 1h"),
        (series("BTCUSDT", market="um"), "--market um --data-type aggTrades --symbol BTCUSDT"),
        (
            series("BTCUSDT", "1h", "um", "markPriceKlines"),
            "--market um --data-type markPriceKlines --symbol BTCUSDT --interval 1h",
        ),
    ],
)
def test_fetch_is_a_backfill_of_the_series(key: Any, words: str) -> None:
    first, last = days_from("2024-01-01", 2)
    command = " ".join(fetch_arguments(key, first, last))
    assert command == f"backfill {words} --from 2024-01-01 --through 2024-01-02 --yes"


# --- with an exchange -------------------------------------------------------------------------------------------------

UNIVERSE = """\
collect:
  - market: spot
    symbols: [BTCUSDT]
    klines: {{intervals: [1h], from: {first}}}
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a server that fetches from the sandbox what is missing."""
    root = tmp_path_factory.mktemp("live") / "data"
    root.mkdir()
    first = clock.today() - 5 * clock.DAY
    (root / "universe.yaml").write_text(UNIVERSE.format(first=first))
    with Sandbox() as sandbox:
        settings = settings_of(root, sandbox, universe=root / "universe.yaml", serve_cache_strategy="auto")
        with TestClient(build_app(settings, keys=[KEY]), base_url="http://localhost", headers=WITH_KEY) as client:
            yield client


@pytest.mark.slow
def test_auto_fetches_missing_days_of_the_universe(live: TestClient) -> None:
    """The first answer names what is being fetched. Once the job ended, the rows are there."""
    day = clock.today() - 3 * clock.DAY
    span = {"start_time": str(day), "end_time": str(day + clock.DAY)}
    path = "/api/v1/market/candles/BTCUSDT/1h"
    first = live.get(path, params=span)
    assert first.status_code == 200, first.text
    assert first.json()["missing"][0]["reason"] == "being fetched (missing)"
    assert first.headers["retry-after"]
    assert "immutable" not in first.headers["cache-control"]
    again = live.get(path, params=span)
    (job,) = live.app.state.server.jobs.of_kind("fetch")  # type: ignore[attr-defined]
    assert job.id in again.json()["notes"][0]  # the same job is not begun twice
    done = ended(live, f"/api/v1/admin/jobs/{job.id}")
    assert done["status"] == "succeeded", done["errors"]
    document = live.get(path, params=span).json()
    assert len(document["columns"]["open"]) == 24
    assert (document["missing"], document["notes"]) == ([], [])
    fresh = live.get(path, params={**span, "cache_strategy": "force_fresh"}).json()
    assert "Final days cannot get fresher" in fresh["notes"][0] or fresh["states"][0]["state"] == "provisional"
    stats = live.get("/api/v1/system/cache-stats").json()
    assert stats["requests"]["lake"] >= 1


@pytest.mark.slow
def test_auto_never_fetches_what_is_not_in_the_universe(live: TestClient) -> None:
    answer = live.get("/api/v1/market/candles/ETHUSDT/1h", params={"start_time": "2026-01-01"})
    assert problem(answer) == (404, "unknown-series")
