"""What is not stored, not valid or not market data is refused with Binance's codes, never with a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from market_data_pipeline import clock
from market_data_pipeline.model.series import ListingSpans, Market
from market_data_pipeline.server.app import build_app
from market_data_pipeline.settings import load_settings
from market_data_pipeline.universe.edit import write_lock
from market_data_pipeline_tests.support.small_lake import SmallLake, day_table, days_from, series
from market_data_pipeline_tests.support.world import utc

HOUR = 3_600_000
DAY = 24 * HOUR
UNIVERSE = """\
collect:
- market: spot
  symbols: [LUNAUSDT, BTCUSDT]
  klines: {intervals: [1h], from: 2024-01-01}
"""


def ms(text: str) -> int:
    """Milliseconds of a moment in UTC."""
    return clock.to_us(utc(text)) // 1000


@pytest.fixture
def served(lake: SmallLake, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A server of five days of BTCUSDT with a hole, at noon of 2024-02-20. LUNAUSDT was delisted on 2024-01-03."""
    monkeypatch.setattr(clock, "now", lambda: utc("2024-02-20T12:00"))
    lake.put(series("ETHUSDT", "1h"), [*days_from("2024-01-01", 2), *days_from("2024-01-05", 2)])
    lake.put(series("LUNAUSDT", "1h"), days_from("2024-01-01", 3))
    lake.put(series("LUNAUSDT"), days_from("2024-01-01", 3))
    universe = lake.root / "universe.yaml"
    universe.write_text(UNIVERSE)
    first, last = days_from("2024-01-01", 3)[::2]
    spans = {"LUNAUSDT": ListingSpans(((first, last),)), "BTCUSDT": ListingSpans(((first, None),))}
    write_lock(universe, {(Market.SPOT, symbol): listing for symbol, listing in spans.items()})
    settings = load_settings(dir=lake.root, universe=universe)
    with TestClient(build_app(settings), base_url="http://localhost") as client:
        yield client


def ask(served: TestClient, path: str, **parameters: Any) -> tuple[int, Any]:
    answer = served.get(path, params=parameters)
    assert answer.headers["content-type"] == "application/json;charset=UTF-8"
    assert "Traceback" not in answer.text
    return answer.status_code, answer.json()


def klines(served: TestClient, symbol: str, start: str | int | None, end: str | None = None, **more: Any) -> Any:
    span = {"startTime": ms(start) if isinstance(start, str) else start, "endTime": None if end is None else ms(end)}
    given = {name: value for name, value in span.items() if value is not None}
    return ask(served, "/api/v3/klines", symbol=symbol, interval="1h", **given, **more)


# --- ranges ------------------------------------------------------------------------------------------------------


def test_hole_inside_of_a_range_is_refused(served: TestClient) -> None:
    status, found = klines(served, "ETHUSDT", "2024-01-01", "2024-01-06")
    assert (status, found["code"]) == (400, -1130)
    assert "ETHUSDT 1h of spot from 2024-01-03 00:00 to 2024-01-05 00:00 UTC (missing)" in found["msg"]
    assert "`market-data sync`" in found["msg"]
    status, found = klines(served, "ETHUSDT", "2024-01-01", limit=48)
    assert (status, len(found)) == (200, 48)


def test_range_without_stored_rows_is_no_empty_list(served: TestClient) -> None:
    ranges = [("2023-06-01", "2023-06-02"), ("2024-01-03", "2024-01-04"), ("2024-02-15", "2024-02-16")]
    for start, end in [*ranges, ("2024-02-20T11:00", None), (None, "2023-12-31")]:
        status, found = klines(served, "ETHUSDT", start, end)
        assert (status, found["code"]) == (400, -1130), (start, end)
        assert "It is stored from 2024-01-01 to 2024-01-06." in found["msg"]


def test_end_in_the_past_needs_all_rows_before_it(served: TestClient) -> None:
    assert klines(served, "ETHUSDT", "2024-01-05", "2024-01-08")[1]["code"] == -1130
    status, found = klines(served, "ETHUSDT", "2024-01-05")
    assert (status, len(found)) == (200, 48)
    assert klines(served, "ETHUSDT", "2024-01-05", "2030-01-01") == (200, found)
    assert klines(served, "ETHUSDT", "2024-01-05", "2024-02-20T12:00") == (200, found)


def test_start_before_binance_means_the_oldest_stored_row(served: TestClient) -> None:
    status, found = klines(served, "ETHUSDT", 0, limit=2)
    assert (status, [row[0] for row in found]) == (200, [ms("2024-01-01"), ms("2024-01-01T01:00")])


def test_nothing_follows_a_delisting(served: TestClient) -> None:
    assert klines(served, "LUNAUSDT", "2024-01-04", "2024-01-10") == (200, [])
    assert klines(served, "LUNAUSDT", "2023-12-01", "2023-12-31") == (200, [])
    status, found = klines(served, "LUNAUSDT", "2023-12-01", "2024-01-31", limit=1000)
    assert (status, len(found)) == (200, 72)
    path, last = "/api/v3/aggTrades", ask(served, "/api/v3/aggTrades", symbol="LUNAUSDT", limit=1)[1][0]["a"]
    assert ask(served, path, symbol="LUNAUSDT", fromId=last + 1) == (200, [])
    status, found = ask(served, path, symbol="BTCUSDT", fromId=last + 1)
    assert (status, found["code"]) == (400, -1130)
    assert f"with id {last + 1}" in found["msg"]


def test_future_past_and_reversed_spans_are_empty(served: TestClient) -> None:
    assert klines(served, "ETHUSDT", "2030-01-01") == (200, [])
    assert klines(served, "ETHUSDT", int("9" * 20)) == (200, [])
    assert klines(served, "ETHUSDT", "2024-01-02", "2024-01-01") == (200, [])
    assert klines(served, "ETHUSDT", None, "1970-01-01") == (200, [])


def test_longer_intervals_are_composed_of_whole_candles(served: TestClient) -> None:
    """The lake has 40 days of hours from 2024-01-01, a Monday, so that the sixth week has days that are missing."""
    status, weeks = ask(served, "/api/v3/klines", symbol="BTCUSDT", interval="1w", startTime=ms("2024-01-01"))
    assert (status, [row[0] for row in weeks]) == (200, [ms("2024-01-01") + n * 7 * DAY for n in range(5)])
    assert all(row[6] == row[0] + 7 * DAY - 1 for row in weeks)
    status, months = ask(served, "/api/v3/klines", symbol="BTCUSDT", interval="1M", startTime=ms("2024-01-01"))
    assert (status, [row[0] for row in months]) == (200, [ms("2024-01-01")])
    status, cut = ask(
        served, "/api/v3/klines", symbol="BTCUSDT", interval="1w", startTime=ms("2024-01-01"), endTime=ms("2024-01-03")
    )
    assert (status, cut) == (200, weeks[:1])


# --- parameters --------------------------------------------------------------------------------------------------

VALID = {"symbol": "BTCUSDT", "interval": "1h"}


INVALID: list[tuple[dict[str, str], int]] = [
    ({"symbol": "NOUSDT"}, -1121),
    ({"symbol": ""}, -1102),
    ({"symbol": "btcusdt"}, -1100),
    ({"symbol": "BTC'USDT"}, -1100),
    ({"symbol": "BTC/USDT"}, -1100),
    ({"symbol": "../../etc/passwd"}, -1100),
    ({"symbol": ".."}, -1121),
    ({"symbol": "BTC\x00USDT"}, -1100),
    ({"symbol": "B" * 5000}, -1100),
    ({"symbol": "币安人生USDT"}, -1121),
    ({"interval": ""}, -1102),
    ({"interval": "7m"}, -1120),
    ({"interval": "1s"}, -1120),
    ({"limit": "0"}, -1130),
    ({"limit": "-1"}, -1100),
    ({"limit": "1.5"}, -1100),
    ({"startTime": "yesterday"}, -1100),
    ({"startTime": "-1"}, -1100),
    ({"endTime": "1e12"}, -1100),
    ({"endTime": "9" * 21}, -1100),
]


def test_invalid_parameters_have_codes_of_binance(served: TestClient) -> None:
    for given, code in INVALID:
        status, found = ask(served, "/api/v3/klines", **(VALID | given))
        assert (status, found["code"]) == (400, code), given
        assert found["msg"]


def test_limits_follow_each_market(served: TestClient, lake: SmallLake) -> None:
    lake.put(series("BTCUSDT", "1m", "um"), days_from("2024-01-01", 2))
    given = {"symbol": "BTCUSDT", "interval": "1m", "startTime": ms("2024-01-01")}
    assert len(ask(served, "/api/v3/klines", **given)[1]) == 500
    assert len(ask(served, "/api/v3/klines", **given, limit=10**9)[1]) == 1000
    assert len(ask(served, "/fapi/v1/klines", **given, limit=1500)[1]) == 1500
    assert ask(served, "/fapi/v1/klines", **given, limit=1501)[1]["code"] == -1130


def test_types_that_are_not_stored_are_named(served: TestClient, lake: SmallLake) -> None:
    lake.put(series("BTCUSDT", "1m", "um"), days_from("2024-01-01", 1))
    for path in ("/fapi/v1/fundingRate", "/fapi/v1/aggTrades", "/futures/data/openInterestHist"):
        status, found = ask(served, path, symbol="BTCUSDT", period="5m")
        assert (status, found["code"]) == (400, -1130)
        assert "It has klines." in found["msg"]
    assert ask(served, "/futures/data/openInterestHist", symbol="NOUSDT", period="5m")[1]["code"] == -1121
    assert (
        ask(served, "/fapi/v1/continuousKlines", pair="BTCUSDT", contractType="NEXT_QUARTER", interval="1m")[0] == 400
    )


# --- routes ------------------------------------------------------------------------------------------------------


FORBIDDEN = [
    ("POST", "/api/v3/order"),
    ("GET", "/api/v3/account?timestamp=1&signature=00"),
    ("DELETE", "/fapi/v1/order"),
    ("GET", "/fapi/v2/balance"),
    ("PUT", "/dapi/v1/listenKey"),
    ("POST", "/sapi/v1/asset/transfer"),
    ("POST", "/api/v3/klines"),
    ("GET", "/api/v3/%00"),
]


def test_orders_and_accounts_are_forbidden(served: TestClient) -> None:
    for method, path in FORBIDDEN:
        answer = served.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (403, -2015), path
        assert "This is no exchange" in answer.json()["msg"]


def test_data_that_no_lake_has_is_not_supported(served: TestClient) -> None:
    for path in ("/api/v3/depth", "/api/v3/ticker/bookTicker", "/fapi/v1/premiumIndex", "/dapi/v1/openInterest"):
        status, found = ask(served, path, symbol="BTCUSDT")
        assert (status, found["code"]) == (404, -1020)


def test_answers_have_headers_of_binance(served: TestClient) -> None:
    for path in ("/api/v3/ping", "/api/v3/time", "/api/v3/exchangeInfo", "/api/v3/klines?symbol=BTCUSDT&interval=1h"):
        answer = served.get(path)
        assert answer.status_code == 200
        assert int(answer.headers["X-MBX-USED-WEIGHT-1M"]) > 0
    again = served.get("/api/v3/klines?symbol=BTCUSDT&interval=1h")
    assert again.content == answer.content
    assert again.headers["X-MBX-USED-WEIGHT-1M"] == "2"


def test_delisted_symbols_stay_listed(served: TestClient) -> None:
    symbols = ask(served, "/api/v3/exchangeInfo")[1]["symbols"]
    assert {one["symbol"]: one["status"] for one in symbols} == {
        "BTCUSDT": "TRADING",
        "ETHUSDT": "TRADING",
        "LUNAUSDT": "BREAK",
    }
    one = ask(served, "/api/v3/exchangeInfo", symbols='["LUNAUSDT"]')[1]["symbols"]
    assert [found["baseAsset"] for found in one] == ["LUNA"]
    assert ask(served, "/api/v3/exchangeInfo", symbol="NOUSDT")[1]["code"] == -1121
    assert ask(served, "/api/v3/exchangeInfo", symbols="NOUSDT")[1]["code"] == -1100


def test_tickers_are_of_the_newest_stored_candles(served: TestClient) -> None:
    """Minutes of BTCUSDT end with 2024-01-05. Opens count the minutes of a day, and all other values are 0."""
    assert ask(served, "/api/v3/ticker/price", symbol="BTCUSDT")[1] == {"symbol": "BTCUSDT", "price": "0.00000000"}
    day = ask(served, "/api/v3/ticker/24hr", symbol="BTCUSDT")[1]
    assert (day["openTime"], day["closeTime"]) == (ms("2024-01-05"), ms("2024-01-06") - 1)
    assert len(ask(served, "/api/v3/ticker/price")[1]) == 3
    assert ask(served, "/api/v3/ticker/24hr", symbol="NOUSDT")[1]["code"] == -1121


def test_tickers_without_all_candles_are_refused(served: TestClient, lake: SmallLake) -> None:
    """One symbol is refused with the reason. Among all symbols it is left out, and none at all is no empty list."""
    lake.put(series("XRPUSDT", "1h"), days_from("2024-01-04", 1))
    lake.put(series("XRPUSDT", "1d"), days_from("2024-01-01", 5))
    lake.put(series("ADAUSDT"), days_from("2024-01-04", 1))
    short = series("BNBUSDT", "1h"), days_from("2024-01-04", 1)[0]
    lake.put_table(*short, day_table(*short).slice(0, 12))
    status, found = ask(served, "/api/v3/ticker/24hr", symbol="BNBUSDT")
    assert (status, found["code"]) == (400, -1130)
    assert "not have all klines of BNBUSDT in spot of the 24 hours up to 2024-01-04 12:00" in found["msg"]
    assert ask(served, "/api/v3/ticker/price", symbol="BNBUSDT")[0] == 200
    assert ask(served, "/api/v3/ticker/24hr", symbol="XRPUSDT")[0] == 200
    status, found = ask(served, "/api/v3/ticker/24hr", symbol="ADAUSDT")
    assert (status, found["code"]) == (400, -1130)
    assert "no klines of ADAUSDT in spot" in found["msg"]
    assert len(ask(served, "/api/v3/ticker/24hr")[1]) == 4
    status, found = ask(served, "/dapi/v1/ticker/price")
    assert (status, found["code"]) == (400, -1130)
    assert found["msg"].endswith("The lake has no klines in cm.")
    for path, given, code in (
        ("/dapi/v1/ticker/price", {"pair": "BTCUSD"}, -1121),
        ("/dapi/v1/ticker/24hr", {"pair": "BTCUSD", "symbol": "BTCUSD_PERP"}, -1128),
        ("/api/v3/ticker/24hr", {"symbols": '["BTCUSDT"]', "symbol": "BTCUSDT"}, -1128),
    ):
        assert ask(served, path, **given)[1]["code"] == code


def test_server_with_keys_refuses_in_the_same_form(lake: SmallLake) -> None:
    settings = load_settings(dir=lake.root, universe=lake.root / "universe.yaml")
    with TestClient(build_app(settings, keys=["a-key"], key_for_all=True), base_url="http://localhost") as client:
        path = "/api/v3/klines?symbol=BTCUSDT&interval=1h&startTime=0"
        refused = client.get(path)
        assert (refused.status_code, refused.json()["code"]) == (401, -2015)
        assert client.get(path, headers={"X-MBX-APIKEY": "a-key"}).status_code == 200
        assert client.get(path, headers={"Host": "evil.example"}).json()["code"] == -2015
