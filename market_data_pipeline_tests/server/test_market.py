"""Rows over HTTP: what a client gets for candles, trades and every other data type."""

from __future__ import annotations

from starlette.testclient import TestClient

from market_data_pipeline.client import MarketData
from market_data_pipeline_tests.support.small_lake import SmallLake

HOURS = "/api/v1/market/candles/BTCUSDT/1h"


def test_candles_are_columns_with_state_and_version(client: TestClient, lake: SmallLake) -> None:
    answer = client.get(HOURS, params={"start_time": "2024-01-02", "end_time": "2024-01-03"})
    assert answer.status_code == 200
    document = answer.json()
    assert document["columns"]["open"] == list(range(24))
    assert document["columns"]["open_time"][0] == 1_704_153_600_000_000
    assert document["states"] == [
        {"from": "2024-01-02T00:00:00Z", "to": "2024-01-03T00:00:00Z", "state": "final", "source": "archive_daily"}
    ]
    assert document["missing"] == []
    rows = MarketData(lake.root).klines("BTCUSDT", "1h", "2024-01-02", "2024-01-03")
    assert document["version"] == rows.version
