"""The algebra of the generated exchange: klines follow from trades, days join, nothing depends on what was asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from market_data_pipeline.clock import day_start_us
from market_data_pipeline.errors import UsageError
from market_data_pipeline.model.series import DataType, Market, SeriesKey
from market_data_pipeline.sandbox import DEFAULT_SYMBOLS, GeneratedSymbol, Sandbox, write_mirror
from market_data_pipeline.sandbox.csv_writer import Decimals, csv_text
from market_data_pipeline.sandbox.generator import DAY_US, day_of_agg_trade, generate_trades, klines_of
from market_data_pipeline.sandbox.rows import TradeRows
from market_data_pipeline_tests.sandbox.conftest import NOW, csv_rows

Get = Callable[..., requests.Response]
DAY = date(2025, 2, 3)
TRADED = [one for one in DEFAULT_SYMBOLS if one.market is not Market.OPTION]


def symbol(market: Market, name: str) -> GeneratedSymbol:
    return next(s for s in DEFAULT_SYMBOLS if (s.market, s.symbol) == (market, name))


def key(market: Market, name: str, interval: str | None = None) -> SeriesKey:
    return SeriesKey("binance", market, DataType.KLINES if interval else DataType.AGG_TRADES, name, interval)


def rebuilt(trades: list[list[str]], span: int, contract: int | None) -> dict[int, list[Decimal]]:
    """Candles out of a CSV of aggTrades, one trade after another with Decimal; times in the CSV's own unit."""
    candles: dict[int, list[Decimal]] = {}
    for _, price_text, quantity_text, first, last, at, maker, *_ in trades:
        price, quantity = Decimal(price_text), Decimal(quantity_text)
        turnover = price * quantity if contract is None else (quantity * contract / price).quantize(Decimal("1e-8"))
        open_time = int(at) // span * span
        nought = Decimal(0)
        candle = candles.setdefault(open_time, [price, price, price, price, *[nought] * 5])
        candle[1], candle[2], candle[3] = max(candle[1], price), min(candle[2], price), price
        taker_buys = maker.lower() == "false"
        added = (quantity, turnover, Decimal(int(last) - int(first) + 1), quantity * taker_buys, turnover * taker_buys)
        for column, value in enumerate(added, start=4):
            candle[column] += value
    return candles


@pytest.mark.parametrize("interval", ["1m", "4h"])
@pytest.mark.parametrize(
    ("market", "name", "contract"),
    [
        (Market.SPOT, "BNBUSDT", None),
        (Market.UM, "SOLUSDT", None),
        (Market.CM, "BTCUSD_PERP", 100),
    ],
)
def test_klines_of_the_archive_follow_from_its_agg_trades(
    get: Get, market: Market, name: str, contract: int | None, interval: str
) -> None:
    trades = csv_rows(get(f"/{key(market, name).archive_daily(DAY)}").content)
    klines = csv_rows(get(f"/{key(market, name, interval).archive_daily(DAY)}").content)
    scale = 1_000_000 if market is Market.SPOT else 1_000
    span = {"1m": 60, "4h": 14_400}[interval] * scale
    candles = rebuilt(trades, span, contract)

    start = (day_start_us(DAY) // 1_000_000) * scale
    assert [int(row[0]) for row in klines] == list(range(start, start + 86_400 * scale, span))
    assert all(int(row[6]) == int(row[0]) + span - 1 and row[11] == "0" for row in klines)
    last = None
    for row in klines:
        shown = [Decimal(value) for value in (*row[1:6], *row[7:11])]
        if int(row[0]) in candles:
            assert shown == candles[int(row[0])]
        elif last is not None:
            assert shown == [last] * 4 + [Decimal(0)] * 5
        last = shown[3]
    assert len(candles) > len(klines) * 0.8


def test_a_quiet_symbol_has_flat_minutes(get: Get) -> None:
    klines = csv_rows(get(f"/{key(Market.SPOT, 'LUNAUSDT', '1m').archive_daily(date(2021, 5, 1))}").content)
    flat = [row for row in klines if Decimal(row[5]) == 0]
    assert 0 < len(flat) < len(klines)
    assert all(row[8] == "0" and len(set(row[1:5])) == 1 for row in flat)


@pytest.mark.parametrize("generated", TRADED, ids=lambda s: f"{s.market}-{s.symbol}")
def test_days_join(generated: GeneratedSymbol) -> None:
    days = [generated.listed + timedelta(n) for n in range(4)]
    trades = [generate_trades(generated, 7, day) for day in days]
    first = 0 if generated.market is Market.SPOT else 1
    assert trades[0].agg_trade_id[0] == first
    for day, today in zip(days, trades, strict=True):
        assert np.all(np.diff(today.agg_trade_id) == 1)
        assert np.all(np.diff(today.time) >= 0)
        assert day_start_us(day) < today.time[0]
        assert today.time[-1] < day_start_us(day) + DAY_US
        assert np.all(today.price > 0)
        assert np.all(today.quantity > 0)
        assert np.all(today.last_trade_id >= today.first_trade_id)
        holes = today.first_trade_id[1:] - today.last_trade_id[:-1] - 1
        if generated.market is Market.UM:
            assert 0 < np.count_nonzero(holes) < len(holes) // 50
        else:
            assert not np.any(holes)
        assert len(np.unique(today.time)) < len(today)
    for yesterday, today in pairwise(trades):
        assert today.agg_trade_id[0] == yesterday.agg_trade_id[-1] + 1
        assert today.first_trade_id[0] > yesterday.last_trade_id[-1]
        assert today.price[0] == yesterday.price[-1] == today.opening
        for at in (0, -1):
            assert day_of_agg_trade(generated, 7, int(today.agg_trade_id[at])) == today.day


def test_a_day_depends_on_seed_symbol_and_day_alone() -> None:
    btc = symbol(Market.SPOT, "BTCUSDT")
    alone = TradeRows(generate_trades(btc, 1, DAY)).csv(microseconds=True)
    for other in range(3):
        generate_trades(btc, other, DAY + timedelta(other))
    assert TradeRows(generate_trades(btc, 1, DAY)).csv(microseconds=True) == alone
    assert TradeRows(generate_trades(btc, 2, DAY)).csv(microseconds=True) != alone
    assert TradeRows(generate_trades(btc, 1, DAY + timedelta(1))).csv(microseconds=True) != alone


def test_two_sandboxes_serve_the_same_bytes(get: Get) -> None:
    path = f"/{key(Market.UM, 'ETHUSDT').archive_daily(DAY)}"
    with Sandbox(now=NOW, symbols=[symbol(Market.UM, "ETHUSDT")]) as other:
        again = requests.get(other.url + path, timeout=120)
    assert again.content == get(path).content
    assert again.headers["ETag"] == get(path).headers["ETag"]


def test_trading_opens_and_closes_within_a_day(get: Get) -> None:
    first = csv_rows(get(f"/{key(Market.SPOT, 'BTCUSDT', '1h').archive_daily(date(2017, 8, 17))}").content)
    assert [int(row[0]) // 3_600_000 % 24 for row in first] == list(range(4, 24))
    last = csv_rows(get(f"/{key(Market.SPOT, 'LUNAUSDT', '1m').archive_daily(date(2022, 5, 13))}").content)
    assert len(last) == 40
    assert get(f"/{key(Market.SPOT, 'LUNAUSDT', '1m').archive_daily(date(2022, 5, 14))}").status_code == 404


@pytest.mark.parametrize("market", [Market.SPOT, Market.UM, Market.CM])
def test_a_symbol_is_delisted_and_listed_again(market: Market) -> None:
    away = (date(2025, 1, 20), date(2025, 2, 19))
    one = dataclasses.replace(
        symbol(market, "BTCUSD_PERP" if market is Market.CM else "BTCUSDT"), trades_per_day=200, breaks=(away,)
    )
    daily, trades = key(market, one.symbol, "1h"), key(market, one.symbol)
    around = [date(2025, 1, 19), *away, date(2025, 2, 20)]
    prefix = {Market.SPOT: "/api/v3", Market.UM: "/fapi/v1", Market.CM: "/dapi/v1"}[market]
    with Sandbox(now=NOW, symbols=[one]) as sandbox, requests.Session() as session:

        def get(path: str, **params: Any) -> requests.Response:
            return session.get(f"{sandbox.url}{path}", params=params, timeout=120)

        for series in (daily, trades):
            answers = [get(f"/{series.archive_daily(day)}").status_code for day in around]
            assert answers == [200, 404, 404, 200]
            listing = get("/", prefix=series.archive_daily(away[0])[: -len("20.zip")]).text
            assert "2025-01-19.zip<" in listing
            assert "2025-01-20.zip<" not in listing
        hours = [int(row[0]) for row in get(f"{prefix}/klines", symbol=one.symbol, interval="1h", limit=400).json()]
        assert set(np.diff(hours).tolist()) == {3_600_000, 32 * 24 * 3_600_000 - 23 * 3_600_000}
        assert len(csv_rows(get(f"/{daily.archive_monthly(away[0])}").content)) == 19 * 24
        before, after = (csv_rows(get(f"/{trades.archive_daily(day)}").content) for day in (around[0], around[-1]))
        assert int(after[0][0]) == int(before[-1][0]) + 1
        ask = {"symbol": one.symbol, "fromId": before[-1][0], "limit": 2}
        if market is Market.SPOT:
            answer = get(f"{prefix}/aggTrades", **ask).json()
            assert [str(trade["a"]) for trade in answer] == [before[-1][0], after[0][0]]
        else:  # by the time that it is listed again, futures serve no trade of before
            assert get(f"{prefix}/aggTrades", **ask).json()["code"] == -4166
            sandbox.set_time(datetime(2025, 1, 20, 1, tzinfo=UTC))
            answer = get(f"{prefix}/aggTrades", **ask).json()
            assert [str(trade["a"]) for trade in answer] == [before[-1][0]]
            sandbox.set_time(datetime(2025, 2, 20, 12, tzinfo=UTC))
            answer = get(f"{prefix}/aggTrades", **{**ask, "fromId": after[0][0], "limit": 1}).json()
            assert [str(trade["a"]) for trade in answer] == [after[0][0]]
            sandbox.set_time(NOW)
        status = "contractStatus" if market is Market.CM else "status"
        assert get(f"{prefix}/exchangeInfo").json()["symbols"][0][status] == "TRADING"
        sandbox.set_time(datetime(2025, 2, 1, tzinfo=UTC))
        assert get(f"{prefix}/exchangeInfo").json()["symbols"][0][status] == (
            "BREAK" if market is Market.SPOT else "CLOSE"
        )


def test_an_open_candle_grows_with_the_clock() -> None:
    btc = symbol(Market.SPOT, "BTCUSDT")
    trades = generate_trades(btc, 0, DAY)
    noon = day_start_us(DAY) + DAY_US // 2
    early = klines_of(trades.until(noon + 10_000_000), 60_000_000, noon + 10_000_000)
    late = klines_of(trades.until(noon + 50_000_000), 60_000_000, noon + 50_000_000)
    assert early.open_time[-1] == late.open_time[-1] == noon
    assert early.volume[-1] < late.volume[-1]
    assert np.array_equal(early.volume[:-1], late.volume[:-1])


def test_markets_agree_on_an_assets_price() -> None:
    markets = [(Market.SPOT, "BTCUSDT"), (Market.UM, "BTCUSDT"), (Market.CM, "BTCUSD_PERP")]
    for day in (date(2021, 5, 1), DAY, date(2026, 7, 4)):
        trades = [generate_trades(symbol(*name), 0, day) for name in markets]
        prices = [float(t.price[0]) / 10**t.symbol.price_decimals for t in trades]
        assert max(prices) / min(prices) < 1.01


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"price_decimals": 8}, "8 decimals"),
        ({"delisted": date(2017, 8, 17)}, "listed on 2017-08-17"),
        ({"breaks": ((date(2017, 8, 17), date(2017, 9, 1)),)}, "away from 2017-08-17 to 2017-09-01"),
        ({"breaks": ((date(2019, 1, 2), date(2019, 1, 1)),)}, "away from"),
    ],
)
def test_a_symbol_that_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        dataclasses.replace(symbol(Market.SPOT, "BTCUSDT"), **changes)


@pytest.mark.parametrize("value", [0, 1, 9, 10, 99_999_999, 123_456_789_012, 9_000_000_000_000_000_000])
@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_numbers_are_spelt_as_they_are(value: int, decimals: int) -> None:
    units = np.array([value, 5], np.int64)
    plain, padded, trimmed = (
        csv_text([Decimals(units, decimals, **more)]).decode().split()[0]
        for more in ({}, {"shown": 8}, {"trimmed": True})
    )
    true = Decimal(value).scaleb(-decimals)
    assert Decimal(plain) == Decimal(padded) == Decimal(trimmed) == true
    assert plain == f"{true:.{decimals}f}"
    assert padded == f"{true:.8f}"
    digits = trimmed.partition(".")[2]
    assert digits == "0" or (digits and not digits.endswith("0"))


@pytest.mark.slow
def test_a_day_of_a_million_trades_has_a_file(tmp_path: Path) -> None:
    busy = dataclasses.replace(symbol(Market.SPOT, "BTCUSDT"), trades_per_day=1_000_000)
    (path,) = write_mirror(tmp_path, [key(Market.SPOT, "BTCUSDT")], [DAY], symbols=[busy])
    assert path.stat().st_size > 10_000_000
