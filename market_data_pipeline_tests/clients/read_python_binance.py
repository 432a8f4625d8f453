"""Read three markets with python-binance from the server of the first argument. Prints the answers as JSON."""

from __future__ import annotations

import json
import sys
from itertools import islice

from binance.client import Client
from binance.exceptions import BinanceAPIException

URL, FIRST, LAST = sys.argv[1:]


class Local(Client):
    API_URL = f"{URL}/api"
    FUTURES_URL = f"{URL}/fapi"
    FUTURES_COIN_URL = f"{URL}/dapi"


client = Local()
trades = client.aggregate_trade_iter("SOLUSDT", start_str=FIRST)
span = {"startTime": int(sys.argv[2]), "endTime": int(sys.argv[3]), "limit": 1000}
found = {
    "spot 1m": client.get_historical_klines("SOLUSDT", "1m", int(FIRST), int(LAST)),
    "spot trades": list(islice(trades, 1500)),
    "spot symbols": [one["symbol"] for one in client.get_exchange_info()["symbols"]],
    "um 1h": client.futures_klines(symbol="SOLUSDT", interval="1h", **span),
    "um mark": client.futures_mark_price_klines(symbol="SOLUSDT", interval="1h", **span),
    "um 1m": client.futures_historical_klines("SOLUSDT", "1m", int(FIRST), int(LAST)),
    "um funding": client.futures_funding_rate(symbol="SOLUSDT", **span),
    "cm 1h": client.futures_coin_klines(symbol="BTCUSD_PERP", interval="1h", **span),
}
errors = {}
for name, call in {
    "unknown": lambda: client.get_klines(symbol="NOUSDT", interval="1m"),
    "order": lambda: Local("key", "secret").create_order(symbol="SOLUSDT", side="BUY", type="MARKET", quantity=1),
    "account": lambda: Local("key", "secret").futures_account(),
}.items():
    try:
        call()
    except BinanceAPIException as error:
        errors[name] = [error.status_code, error.code]
print(json.dumps({"found": found, "errors": errors}))
