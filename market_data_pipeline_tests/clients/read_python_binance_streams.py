"""Follow streams with python-binance at the server of the first argument. Prints messages as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from binance import AsyncClient, BinanceSocketManager

URL = sys.argv[1]


class Local(AsyncClient):
    API_URL = f"{URL}/api"


class Sockets(BinanceSocketManager):
    STREAM_URL = f"{URL.replace('http', 'ws', 1)}/"
    FSTREAM_URL = f"{URL.replace('http', 'ws', 1)}/"


async def main() -> None:
    client = await Local.create()
    sockets = Sockets(client)
    found: dict[str, Any] = {}
    for name, socket in {
        "kline": sockets.kline_socket("BTCUSDT", interval="1h"),
        "trade": sockets.aggtrade_socket("BTCUSDT"),
        "combined": sockets.multiplex_socket(["btcusdt@kline_1h"]),
        "um": sockets.futures_multiplex_socket(["btcusdt@kline_1m"]),
    }.items():
        async with socket as stream:
            found[name] = await stream.recv()
    await client.close_connection()
    print(json.dumps(found))


asyncio.run(main())
