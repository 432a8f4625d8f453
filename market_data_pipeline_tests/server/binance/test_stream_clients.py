"""Real clients of Binance's streams read ``market-data serve --live`` by changing one URL."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from market_data_pipeline_tests.clients import run_client
from market_data_pipeline_tests.support.live_server import HOURS, MINUTES, LiveServer, candle, live_server, trade
from market_data_pipeline_tests.support.small_lake import SmallLake, days_from

pytestmark = [pytest.mark.clients, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose feed has a candle and a trade ten times a second."""
    lake = SmallLake(tmp_path_factory.mktemp("streams") / "data")
    lake.put(HOURS, days_from("2024-01-01", 2))
    with live_server(lake) as server:
        done = threading.Event()

        def publish() -> None:
            number = 0
            while not done.wait(0.1):
                number += 1
                server.hub.publish([candle(), candle(MINUTES), trade(number)])

        thread = threading.Thread(target=publish)
        thread.start()
        yield server
        done.set()
        thread.join()


def test_python_binance_follows_streams(server: LiveServer) -> None:
    found = run_client("binance", "read_python_binance_streams.py", server.url)
    assert (found["kline"]["k"]["t"], found["kline"]["k"]["c"]) == (candle().open_us // 1_000, "4.00")
    assert (found["trade"]["e"], found["trade"]["p"]) == ("aggTrade", "62445.66000000")
    assert found["combined"]["stream"] == "btcusdt@kline_1h"
    assert found["um"]["data"]["k"]["i"] == "1m"


def test_the_official_sdk_follows_streams(server: LiveServer) -> None:
    found = run_client("binance", "read_binance_sdk_streams.py", server.url)
    assert found["kline"]["k"]["c"] == "4.00"
    assert found["trade"]["p"] == "62445.66000000"


def test_ccxt_follows_streams(server: LiveServer) -> None:
    found = run_client("ccxt", "read_ccxt_streams.py", server.url)
    [[opened, *values]] = found["kline"]
    assert (opened, values) == (candle().open_us // 1_000, [1.0, 5.0, 0.5, 4.0, 2.0])
    assert found["trade"][0]["price"] == 62445.66
