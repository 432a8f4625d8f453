"""Read three markets with ccxt from the server of the first argument. Prints the answers as JSON."""

from __future__ import annotations

import json
import sys

import ccxt

URL, FIRST, LAST = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
exchange = ccxt.binance()
exchange.urls["api"] |= {
    "public": f"{URL}/api/v3",
    "fapiPublic": f"{URL}/fapi/v1",
    "dapiPublic": f"{URL}/dapi/v1",
    "fapiData": f"{URL}/futures/data",
}
exchange.load_markets()
PAIRS = {"spot": "SOL/USDT", "um": "SOL/USDT:USDT", "cm": "BTC/USD:BTC"}
found = {"symbols": sorted(exchange.symbols)}
for market, pair in PAIRS.items():
    found[f"{market} 1m"] = exchange.fetch_ohlcv(pair, "1m", FIRST, 1000, {"until": LAST})
    found[f"{market} 1h"] = exchange.fetch_ohlcv(pair, "1h", FIRST, 48)
    trades = exchange.fetch_trades(pair, LAST - 8 * 3_600_000, 1000)  # of futures, Binance has those of a day only
    found[f"{market} trades"] = [[one[name] for name in ("id", "timestamp", "price", "amount")] for one in trades]
    if market != "spot":
        rates = exchange.fetch_funding_rate_history(pair, FIRST, 100, {"until": LAST})
        found[f"{market} funding"] = [[one["timestamp"], one["fundingRate"]] for one in rates]
interest = exchange.fetch_open_interest_history(PAIRS["um"], "5m", FIRST, 100, {"until": LAST})
found["um interest"] = [[one["timestamp"], one["openInterestAmount"], one["openInterestValue"]] for one in interest]
errors = {}
try:
    exchange.fetch_ohlcv(PAIRS["spot"], "1m", FIRST - 10 * 86_400_000, 100)
except ccxt.BaseError as error:
    errors["before"] = [type(error).__name__, str(error)]
exchange.apiKey, exchange.secret = "key", "secret"
exchange.urls["api"] |= {"private": f"{URL}/api/v3", "sapi": f"{URL}/sapi/v1"}
try:
    exchange.fetch_balance()
except ccxt.BaseError as error:
    errors["account"] = [type(error).__name__, str(error)]
print(json.dumps({"found": found, "errors": errors}))
