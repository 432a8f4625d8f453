"""Read spot with Binance's own SDK from the server of the first argument. Prints the answers as JSON."""

from __future__ import annotations

import json
import sys

from binance_common.configuration import ConfigurationRestAPI
from binance_sdk_spot.spot import Spot

URL, FIRST, LAST = sys.argv[1:]
spot = Spot(config_rest_api=ConfigurationRestAPI(base_path=URL)).rest_api
span = {"symbol": "SOLUSDT", "start_time": int(FIRST), "end_time": int(LAST), "limit": 1000}
klines = spot.klines(interval="1m", **span).data()
trades = spot.agg_trades(**span).data()
found = {
    "klines": [[getattr(value, "actual_instance", value) for value in row] for row in klines],
    "trades": [one.to_dict() for one in trades],
    "symbols": [one.symbol for one in spot.exchange_info().data().symbols],
}
print(json.dumps({"found": found}))
