"""The server's answers on a lake made from the sandbox equal the sandbox's own."""

from __future__ import annotations

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from market_data_pipeline import clock
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.binance_dialect import STATISTICS, TICKERS
from market_data_pipeline.model.series import Market
from market_data_pipeline.server.app import build_app
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe.exchange_info import snapshot_of, store_snapshot
from market_data_pipeline_tests.server.binance.conftest import BEGIN, END, HOUR, NOW, PATHS, SYMBOLS, Twins, plain


@pytest.mark.parametrize("market", list(SYMBOLS))
def test_klines_equal_the_sandbox(twins: Twins, market: Market) -> None:
    ask = {"symbol": SYMBOLS[market], "interval": "1m", "startTime": BEGIN, "limit": 1000}
    served, own = twins.both(f"{PATHS[market]}/klines", **ask)
    assert len(served) == 1000
    assert plain(served) == plain(own)


@pytest.mark.parametrize("market", list(SYMBOLS))
@pytest.mark.parametrize("endpoint", ["klines", "aggTrades"])
def test_newest_rows_up_to_a_time_equal_the_sandbox(twins: Twins, market: Market, endpoint: str) -> None:
    ask = {"symbol": SYMBOLS[market], "endTime": END - 1, "limit": 300}
    served, own = twins.both(
        f"{PATHS[market]}/{endpoint}", **ask, **({"interval": "1h"} if endpoint == "klines" else {})
    )
    assert plain(served) == plain(own)[-len(served) :]
    assert len(served) == (72 if endpoint == "klines" else 300)


@pytest.mark.parametrize("market", [Market.UM, Market.CM])
@pytest.mark.parametrize("endpoint", ["markPriceKlines", "indexPriceKlines", "premiumIndexKlines", "continuousKlines"])
def test_price_candles_equal_the_sandbox(twins: Twins, market: Market, endpoint: str) -> None:
    symbol = SYMBOLS[market]
    ask = {"symbol": symbol, "pair": symbol.partition("_")[0], "contractType": "PERPETUAL", "interval": "1h"}
    served, own = twins.both(f"{PATHS[market]}/{endpoint}", **ask, startTime=BEGIN, endTime=END - 1)
    assert len(served) == 72
    counts = endpoint == "continuousKlines"  # the others have the number of samples, which no archive is kept of
    assert [row if counts else [*row[:8], *row[9:]] for row in plain(served)] == [
        row if counts else [*row[:8], *row[9:]] for row in plain(own)
    ]


@pytest.mark.parametrize("market", [Market.UM, Market.CM])
def test_funding_rates_equal_the_sandbox(twins: Twins, market: Market) -> None:
    ask = {"symbol": SYMBOLS[market], "startTime": BEGIN, "endTime": END - 1}
    served, own = twins.both(f"{PATHS[market]}/fundingRate", **ask)
    assert len(served) == 9
    assert plain(served) == plain(own)


@pytest.mark.parametrize("endpoint", list(STATISTICS))
def test_statistics_equal_the_sandbox(twins: Twins, endpoint: str) -> None:
    ask = {"symbol": SYMBOLS[Market.UM], "period": "5m", "startTime": BEGIN, "endTime": END - 1, "limit": 500}
    served, own = twins.both(f"/futures/data/{endpoint}", **ask)
    assert len(served) == 500
    assert plain(served) == plain(own)


@pytest.mark.parametrize("market", list(SYMBOLS))
def test_exchange_info_equals_the_sandbox_but_for_steps(twins: Twins, market: Market) -> None:
    """Without a snapshot, the lake does not know the steps and the listing."""
    served, own = twins.both(f"{PATHS[market]}/exchangeInfo")
    unknown = ("filters", "onboardDate", "pricePrecision", "quantityPrecision")
    [mine] = served["symbols"]
    [theirs] = [one for one in own["symbols"] if one["symbol"] == SYMBOLS[market]]
    assert {**served, "symbols": []} == {**own, "symbols": []}
    assert {name: one for name, one in mine.items() if name not in unknown} == {
        name: one for name, one in theirs.items() if name not in unknown
    }


@pytest.mark.parametrize("market", list(SYMBOLS))
def test_exchange_info_with_a_snapshot_equals_the_sandbox(twins: Twins, market: Market) -> None:
    """All of it, except that a snapshot has the day of the listing without its time."""
    own = requests.get(f"{twins.sandbox.url}{PATHS[market]}/exchangeInfo", timeout=60).json()
    table, layout = snapshot_of(own, clock.now()), Layout(twins.root)
    assert store_snapshot(layout, market, table)
    app = build_app(load_settings(dir=twins.root, universe=twins.root / "universe.yaml"))
    with TestClient(app, base_url="http://localhost") as client:
        [mine] = client.get(f"{PATHS[market]}/exchangeInfo").json()["symbols"]
    [theirs] = [one for one in own["symbols"] if one["symbol"] == SYMBOLS[market]]
    assert mine.pop("onboardDate", 0) // DAY == theirs.pop("onboardDate", 0) // DAY
    assert mine == theirs
    for path in layout.exchange_info(market).iterdir():
        path.unlink()


@pytest.mark.parametrize("market", list(SYMBOLS))
def test_single_trades_equal_the_sandbox(twins: Twins, market: Market) -> None:
    """From an id on, over midnight. The newest ones of both are of other moments."""
    path, symbol = f"{PATHS[market]}/historicalTrades", SYMBOLS[market]
    newest = twins.ask(path, symbol=symbol, limit=3)[1]
    assert BEGIN < newest[0]["time"] < END
    [around] = twins.ask(f"{PATHS[market]}/aggTrades", symbol=symbol, startTime=BEGIN + DAY, limit=1)[1]
    for first in (around["f"] - 100, newest[0]["id"]):
        served, own = twins.both(path, symbol=symbol, fromId=first, limit=200)
        assert served
        assert plain(served) == plain(own)[: len(served)]
    assert len(twins.ask(path, symbol=symbol, fromId=around["f"], limit=200)[1]) == 200


UNKNOWN_TO_CANDLES = {"lastQty", "firstId", "lastId", "openTime", "closeTime", "time"}


@pytest.mark.parametrize("market", list(SYMBOLS))
@pytest.mark.parametrize("endpoint", TICKERS)
def test_tickers_equal_the_sandbox(twins: Twins, market: Market, endpoint: str) -> None:
    """At the end of the newest stored day, all but what no candle has: orders, ids and times within a minute."""
    path, ask = f"{PATHS[market]}/{endpoint}", {"symbol": SYMBOLS[market]}
    twins.world.at("2026-03-05T00:00:00")
    try:
        answers = list(twins.both(path, **ask))
        assert [one["symbol"] for one in twins.ask(path)[1]] == [SYMBOLS[market]]
        if market is Market.CM:
            assert twins.ask(path, pair="BTCUSD") == (200, answers[0])
        else:
            answers = [[one] for one in answers]
    finally:
        twins.world.at(NOW)
    served, own = (
        {name: value for name, value in plain(one).items() if name not in UNKNOWN_TO_CANDLES} for [one] in answers
    )
    assert served == pytest.approx(own, rel=1e-9, abs=2e-8)
    if endpoint == "ticker/24hr":
        assert answers[0][0]["openTime"] == END - DAY
        assert answers[0][0]["closeTime"] == END - 1


def test_small_tickers_of_spot_equal_the_sandbox(twins: Twins) -> None:
    served, own = twins.both("/api/v3/ticker/24hr", symbol="SOLUSDT", type="MINI")
    assert own.keys() - served.keys() == {"firstId", "lastId"}
    assert served.keys() < own.keys()


def test_trades_go_on_from_an_id_over_midnight(twins: Twins) -> None:
    for market, symbol in SYMBOLS.items():
        path = f"{PATHS[market]}/aggTrades"
        found = twins.ask(path, symbol=symbol, startTime=BEGIN + 24 * HOUR - 60_000, limit=1000)[1]
        assert found[0]["T"] < BEGIN + 24 * HOUR < found[-1]["T"]
        assert twins.ask(path, symbol=symbol, fromId=found[3]["a"], limit=20)[1] == found[3:23]
        assert [one["a"] for one in found] == list(range(found[0]["a"], found[0]["a"] + 1000))


def test_spot_has_microseconds(twins: Twins) -> None:
    ask: dict[str, str | int] = {"symbol": "SOLUSDT", "interval": "1m", "startTime": BEGIN, "limit": 2}
    path = "/api/v3/klines"
    headers = {"X-MBX-TIME-UNIT": "MICROSECOND"}
    for _ in range(2):  # the second time from the cached answers
        fine = twins.served.get(path, params=ask, headers=headers).json()
        coarse = twins.served.get(path, params=ask).json()
        assert [row[0] for row in fine] == [row[0] * 1000 for row in coarse]


DAY = 24 * HOUR
ENDPOINTS = ("klines", "aggTrades", "markPriceKlines", "fundingRate")
FAULTS = ("symbol", "interval", "reversed", "limit", "endTime")


@settings(max_examples=60)
@given(st.data())
def test_random_requests_equal_the_sandbox(twins: Twins, data: st.DataObject) -> None:
    """Any request inside of the stored days has the sandbox's answer. With one fault, it has the sandbox's code."""
    market = data.draw(st.sampled_from(list(SYMBOLS)), "market")
    endpoint = data.draw(st.sampled_from(ENDPOINTS[: 2 if market is Market.SPOT else None]), "endpoint")
    fault = data.draw(st.sampled_from([None] * 5 + [*FAULTS]), "fault")
    # The sandbox has trades of futures of a day only.
    first = END - 10 * HOUR if endpoint == "aggTrades" and market is not Market.SPOT else BEGIN
    begin = data.draw(st.integers(first, END - 2), "start")
    end = data.draw(
        st.integers(
            begin,
            min(END - 1, begin + data.draw(st.sampled_from([HOUR - 1, 72 * HOUR] if fault is None else [HOUR - 1]))),
        ),
        "end",
    )
    ask: dict[str, str | int] = {"symbol": SYMBOLS[market], "startTime": begin, "endTime": end}
    if endpoint.endswith("lines"):
        ask["interval"] = data.draw(st.sampled_from(["1h", "1m"] if endpoint == "klines" else ["1h"]), "interval")
    if (limit := data.draw(st.none() | st.integers(1, 1000), "limit")) is not None:
        ask["limit"] = limit
    match fault:
        case "symbol":
            ask["symbol"] = data.draw(st.sampled_from(["NOUSDT", "sol", "..", "A/B", "A'B", ""]), "symbol")
        case "interval" if "interval" in ask:
            ask["interval"] = data.draw(st.sampled_from(["7m", "1x", "", "1H"]), "interval")
        case "reversed":
            ask |= {"startTime": end + 1, "endTime": begin}
        case "limit":
            ask["limit"] = data.draw(st.sampled_from([0, -1, 10**9]), "limit")
        case "endTime":
            ask["endTime"] = data.draw(st.sampled_from(["x", "-1", "1e12", "9" * 21]), "endTime")
    served, own = twins.both(f"{PATHS[market]}/{endpoint}", **ask)
    if endpoint == "markPriceKlines" and isinstance(own, list):  # without the number of samples
        served, own = ([[*row[:8], *row[9:]] for row in rows] for rows in (served, own))
    assert plain(served) == plain(own)
