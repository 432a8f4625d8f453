"""Follow streams with binance-sdk-spot at the server of the first argument. Prints messages as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from binance_common.configuration import ConfigurationWebSocketStreams
from binance_sdk_spot.spot import Spot

URL = sys.argv[1].replace("http", "ws", 1)


async def main() -> None:
    spot = Spot(config_ws_streams=ConfigurationWebSocketStreams(stream_url=URL))
    connection = await spot.websocket_streams.create_connection()
    arrived: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    kline = await connection.kline(symbol="btcusdt", interval="1h")
    kline.on("message", lambda data: arrived.put_nowait(("kline", data.to_dict())))
    trade = await connection.agg_trade(symbol="btcusdt")
    trade.on("message", lambda data: arrived.put_nowait(("trade", data.to_dict())))
    found: dict[str, Any] = {}
    while len(found) < 2:
        name, data = await arrived.get()
        found[name] = data
    await connection.close_connection(close_session=True)
    print(json.dumps(found))


asyncio.run(main())
