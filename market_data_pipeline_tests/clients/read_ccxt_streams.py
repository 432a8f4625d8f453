"""Follow streams with ccxt at the server of the first argument. Prints candles and trades as JSON."""

from __future__ import annotations

import asyncio
import json
import sys

import ccxt.pro

URL = sys.argv[1]


async def main() -> None:
    exchange = ccxt.pro.binance({"options": {"fetchMarkets": {"types": ["spot"]}}})
    exchange.urls["api"] |= {"public": f"{URL}/api/v3"}
    exchange.urls["api"]["ws"] |= {"spot": f"{URL.replace('http', 'ws', 1)}/ws"}
    exchange.options["defaultType"] = "spot"
    found = {
        "kline": await exchange.watch_ohlcv("BTC/USDT", "1h"),
        "trade": await exchange.watch_trades("BTC/USDT", params={"name": "aggTrade"}),
    }
    await exchange.close()
    print(json.dumps(found))


asyncio.run(main())
