"""REST of the three markets: pages, limits, weights, time units, errors, and agreement with the archive."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from market_data_pipeline.model.series import Market
from market_data_pipeline.sandbox import Sandbox
from market_data_pipeline_tests.sandbox.conftest import NOW, csv_rows

Get = Callable[..., requests.Response]
MICROSECONDS = {"X-MBX-TIME-UNIT": "MICROSECOND"}
DAY = datetime(2025, 2, 3, tzinfo=UTC)
PATHS = {"spot": "/api/v3", "um": "/fapi/v1", "cm": "/dapi/v1"}
FOLDERS = {"spot": "spot", "um": "futures/um", "cm": "futures/cm"}
SYMBOLS = {"spot": "SOLUSDT", "um": "SOLUSDT", "cm": "BTCUSD_PERP"}


def ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000)


def archived(get: Get, market: str, kind: str) -> list[list[str]]:
    symbol, day = SYMBOLS[market], f"{DAY:%Y-%m-%d}"
    folder, stem = ("aggTrades", "aggTrades") if kind == "aggTrades" else (f"klines/{symbol}/{kind}", kind)
    path = f"{folder}/{symbol}" if kind == "aggTrades" else folder
    return csv_rows(get(f"/data/{FOLDERS[market]}/daily/{path}/{symbol}-{stem}-{day}.zip").content)


@pytest.mark.parametrize("market", PATHS)
def test_pages_of_klines_equal_the_archive(get: Get, market: str) -> None:
    rows: list[list[Any]] = []
    start, end = ms(DAY), ms(DAY + timedelta(days=1)) - 1
    headers = MICROSECONDS if market == "spot" else {}
    while True:
        parameters = {"symbol": SYMBOLS[market], "interval": "1m", "startTime": start, "endTime": end, "limit": 499}
        page = get(f"{PATHS[market]}/klines", params=parameters, headers=headers).json()
        rows += page
        if len(page) < 499:
            break
        start = (rows[-1][0] // 1_000 if market == "spot" else rows[-1][0]) + 1
    assert [[str(value) for value in row] for row in rows] == archived(get, market, "1m")


@pytest.mark.parametrize("market", PATHS)
def test_pages_of_agg_trades_equal_the_archive(get: Get, sandbox: Sandbox, market: str) -> None:
    now = DAY + timedelta(days=1, hours=9)
    sandbox.set_time(now)
    served = now - timedelta(hours=24) if market == "cm" else DAY
    expected = [line for line in archived(get, market, "aggTrades") if market == "spot" or int(line[5]) >= ms(served)]
    headers = MICROSECONDS if market == "spot" else {}
    rows: list[dict[str, Any]] = []
    following = int(expected[0][0])
    while len(rows) < len(expected):
        parameters = {"symbol": SYMBOLS[market], "fromId": following, "limit": 1000}
        page = get(f"{PATHS[market]}/aggTrades", params=parameters, headers=headers).json()
        assert page[0]["a"] == following
        rows += page
        following = page[-1]["a"] + 1
    for row, line in zip(rows, expected, strict=False):
        assert [row["a"], row["f"], row["l"], row["T"]] == [int(line[at]) for at in (0, 3, 4, 5)]
        assert (float(row["p"]), float(row["q"])) == (float(line[1]), float(line[2]))
        assert row["m"] is (line[6].lower() == "true")
    assert rows[len(expected)]["T"] > rows[len(expected) - 1]["T"], "a page runs on into the next day"


def test_agg_trades_between_two_times_include_both(get: Get, sandbox: Sandbox) -> None:
    sandbox.set_time(DAY + timedelta(days=1, hours=9))
    hour = {"startTime": ms(DAY), "endTime": ms(DAY + timedelta(hours=1)) - 1}
    rows = get("/fapi/v1/aggTrades", params={"symbol": "SOLUSDT", "limit": 1000, **hour}).json()
    lines = [line for line in archived(get, "um", "aggTrades") if int(line[5]) <= hour["endTime"]]
    assert [row["a"] for row in rows] == [int(line[0]) for line in lines][:1000]
    exact = {"startTime": rows[3]["T"], "endTime": rows[7]["T"]}
    assert {row["a"] for row in rows[3:8]} <= {
        row["a"] for row in get("/fapi/v1/aggTrades", params={"symbol": "SOLUSDT", **exact}).json()
    }


def test_end_is_inclusive_and_oldest_come_first(get: Get) -> None:
    ask = {"symbol": "BTCUSDT", "interval": "1h", "startTime": ms(DAY), "endTime": ms(DAY + timedelta(hours=3))}
    rows = get("/api/v3/klines", params=ask).json()
    assert [row[0] for row in rows] == [ms(DAY + timedelta(hours=n)) for n in range(4)]
    assert get("/api/v3/klines", params=ask | {"limit": 2}).json() == rows[:2]


def test_without_a_start_the_newest_come_with_the_open_candle(get: Get, sandbox: Sandbox) -> None:
    ask = {"symbol": "BTCUSDT", "interval": "1m", "limit": 1000}
    rows = get("/api/v3/klines", params=ask).json()
    assert len(rows) == 1000
    assert rows[-1][0] <= ms(NOW) < rows[-1][6]
    sandbox.set_time(NOW + timedelta(seconds=44))
    later = get("/api/v3/klines", params=ask).json()
    assert later[:-1] == rows[:-1]
    assert float(later[-1][5]) > float(rows[-1][5])
    sandbox.set_time(NOW + timedelta(seconds=60))
    closed = get("/api/v3/klines", params=ask).json()[-2]
    assert closed[0] == rows[-1][0]


def test_agg_trades_run_up_to_the_clock(get: Get, sandbox: Sandbox) -> None:
    ask = {"symbol": "BTCUSDT", "limit": 5}
    newest = get("/api/v3/aggTrades", params=ask).json()
    assert len(newest) == 5
    assert newest[-1]["T"] <= ms(NOW)
    sandbox.set_time(NOW + timedelta(minutes=2))
    following = get("/api/v3/aggTrades", params=ask | {"fromId": newest[-1]["a"] + 1, "limit": 1000}).json()
    assert following
    assert all(ms(NOW) - 1 <= row["T"] <= ms(NOW + timedelta(minutes=2)) for row in following)
    sandbox.set_time(NOW)
    assert get("/api/v3/aggTrades", params=ask | {"fromId": newest[-1]["a"] + 1}).json() == []


def test_a_start_before_the_listing_begins_with_the_first_candle(get: Get) -> None:
    ask = {"interval": "1m", "startTime": 0, "limit": 1}
    assert get("/api/v3/klines", params=ask | {"symbol": "BTCUSDT"}).json()[0][0] == ms(
        datetime(2017, 8, 17, 4, tzinfo=UTC)
    )
    first = get("/fapi/v1/klines", params=ask | {"symbol": "BTCUSDT"}).json()[0][0]
    assert first == ms(datetime(2019, 9, 8, tzinfo=UTC)), "um is in REST earlier than in the archive"
    before = ask | {"symbol": "BTCUSDT", "endTime": ms(datetime(2017, 8, 1, tzinfo=UTC))}
    assert get("/api/v3/klines", params=before).json() == []


def test_time_units(get: Get) -> None:
    ask = {"symbol": "BTCUSDT", "interval": "1m", "startTime": ms(DAY), "limit": 1}
    coarse = get("/api/v3/klines", params=ask).json()[0]
    fine = get("/api/v3/klines", params=ask, headers=MICROSECONDS).json()[0]
    assert (fine[0], fine[6]) == (coarse[0] * 1_000, coarse[6] * 1_000 + 999)
    assert get("/api/v3/klines", params=ask | {"startTime": fine[0]}).json()[0] == coarse
    assert get("/api/v3/time", headers=MICROSECONDS).json()["serverTime"] == ms(NOW) * 1_000
    assert get("/fapi/v1/time", headers=MICROSECONDS).json()["serverTime"] == ms(NOW)
    assert get("/fapi/v1/klines", params=ask, headers=MICROSECONDS).json()[0][0] == ms(DAY)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/v3/klines?symbol=NOUSDT&interval=1m", -1121),
        ("/api/v3/klines?interval=1m", -1102),
        ("/api/v3/klines?symbol=BTCUSDT", -1102),
        ("/api/v3/klines?symbol=BTCUSDT&interval=7m", -1120),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=1s", -1120),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=1501", -1130),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=1m&startTime=2&endTime=1", -1023),
        ("/api/v3/klines?symbol=BTCUSDT&interval=1m&startTime=1e12", -1100),
        ("/dapi/v1/klines?symbol=BTCUSD_PERP&interval=1d&startTime=1700000000000&endTime=1720000000000", -4088),
        ("/fapi/v1/aggTrades?symbol=BTCUSDT&startTime=1700000000000&endTime=1700003601000", -1127),
        ("/fapi/v1/aggTrades?symbol=BTCUSDT&startTime=1700000000000&fromId=5", -1128),
        ("/dapi/v1/aggTrades?symbol=NOUSD_PERP", -1121),
    ],
)
def test_refusals(get: Get, path: str, code: int) -> None:
    answer = get(path)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert answer.json()["msg"]


def test_limits(get: Get) -> None:
    ask = {"symbol": "BTCUSDT", "interval": "1m", "startTime": ms(DAY)}
    assert len(get("/api/v3/klines", params=ask).json()) == 500
    assert len(get("/api/v3/klines", params=ask | {"limit": 1500}).json()) == 1000
    assert len(get("/fapi/v1/klines", params=ask | {"limit": 1500}).json()) == 1500
    assert len(get("/api/v3/aggTrades", params={"symbol": "BTCUSDT"}).json()) == 500


@pytest.mark.parametrize(
    ("path", "weight"),
    [
        ("/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=1000", 2),
        ("/api/v3/aggTrades?symbol=BTCUSDT&limit=1000", 4),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=99", 1),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=499", 2),
        ("/fapi/v1/klines?symbol=BTCUSDT&interval=1m", 5),
        ("/dapi/v1/klines?symbol=BTCUSD_PERP&interval=1m&limit=1000", 5),
        ("/dapi/v1/klines?symbol=BTCUSD_PERP&interval=1m&limit=1001", 10),
        ("/fapi/v1/aggTrades?symbol=BTCUSDT&limit=10", 20),
    ],
)
def test_weights(get: Get, sandbox: Sandbox, path: str, weight: int) -> None:
    sandbox.weights.window = 1e9
    try:
        assert get(path).headers["X-MBX-USED-WEIGHT-1M"] == str(weight)
        assert get(path).headers["X-MBX-USED-WEIGHT-1M"] == str(2 * weight)
    finally:
        sandbox.weights.window = 60.0
    assert [request.weight for request in sandbox.requests] == [weight, weight]


def test_beyond_the_budget_comes_429_and_then_418(get: Get, sandbox: Sandbox) -> None:
    weights, budget = sandbox.weights, sandbox.weights.budgets[Market.UM]
    weights.budgets[Market.UM], weights.window, weights.ban_after = 40, 1e9, 2
    try:
        path = "/fapi/v1/aggTrades?symbol=BTCUSDT&limit=1"
        answers = [get(path) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429, 418, 418]
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers[2:])
        assert {answer.json()["code"] for answer in answers[2:]} == {-1003}
        assert get("/api/v3/time").status_code == 200, "each market has its own budget"
        weights.reset()
        assert get(path).status_code == 200
    finally:
        weights.budgets[Market.UM], weights.window, weights.ban_after = budget, 60.0, 20


def test_a_new_window_has_its_whole_budget(monkeypatch: pytest.MonkeyPatch, get: Get, sandbox: Sandbox) -> None:
    present = [1_700_000_000.0]
    monkeypatch.setattr("market_data_pipeline.sandbox.rest.time.time", lambda: present[0])
    monkeypatch.setitem(sandbox.weights.budgets, Market.SPOT, 4)
    path = "/api/v3/aggTrades?symbol=BTCUSDT&limit=1"
    assert [get(path).status_code for _ in range(2)] == [200, 429]
    present[0] += float(get(path).headers["Retry-After"])
    assert get(path).status_code == 200


def test_exchange_info_lists_what_there_is(get: Get, sandbox: Sandbox) -> None:
    spot = get("/api/v3/exchangeInfo").json()
    assert {s["symbol"]: s["status"] for s in spot["symbols"]} == {
        "BTCUSDT": "TRADING", "ETHUSDT": "TRADING", "SOLUSDT": "TRADING", "BNBUSDT": "TRADING", "LUNAUSDT": "BREAK",
    }  # fmt: skip
    assert spot["rateLimits"][0]["limit"] == 6000
    assert {s["contractStatus"] for s in get("/dapi/v1/exchangeInfo").json()["symbols"]} == {"TRADING"}
    assert {s["contractType"] for s in get("/fapi/v1/exchangeInfo").json()["symbols"]} == {"PERPETUAL"}
    one = get("/api/v3/exchangeInfo?symbol=BTCUSDT").json()["symbols"]
    assert [s["symbol"] for s in one] == ["BTCUSDT"]
    assert get("/api/v3/exchangeInfo?symbol=NOUSDT").json()["code"] == -1121


def test_delisted_symbol_has_its_history(get: Get) -> None:
    rows = get("/api/v3/klines?symbol=LUNAUSDT&interval=1m&limit=3").json()
    assert rows[-1][0] == ms(datetime(2022, 5, 13, 0, 39, tzinfo=UTC))


@pytest.mark.parametrize(("market", "hours"), [("um", 48), ("cm", 24)])
def test_futures_agg_trades_reach_back_a_day_or_two(get: Get, market: str, hours: int) -> None:
    path, minute = f"{PATHS[market]}/aggTrades?symbol={SYMBOLS[market]}", timedelta(minutes=1)
    oldest = NOW - timedelta(hours=hours)
    for too_old in ("&fromId=1", f"&startTime={ms(oldest - minute)}"):
        refused = get(path + too_old)
        assert (refused.status_code, refused.json()["code"]) == (400, -4166)
    assert get(f"{path}&startTime={ms(oldest + minute)}").json()
    assert get(path).json()


def test_um_and_cm_count_into_one_budget(get: Get, sandbox: Sandbox) -> None:
    get("/fapi/v1/time")
    answer = get("/dapi/v1/time")
    assert answer.headers["X-MBX-USED-WEIGHT-1M"] == "2"
    sandbox.weights.budgets[Market.UM] = 2
    try:
        assert get("/dapi/v1/time").status_code == 429
        assert get("/api/v3/time").status_code == 200
    finally:
        sandbox.weights.budgets[Market.UM] = 2_400
