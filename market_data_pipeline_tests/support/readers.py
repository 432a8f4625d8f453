"""What a process does that reads the small lake over and over while others write. It imports little, to start soon."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event, Semaphore

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.client import MarketData
from market_data_pipeline.sql.errors import may_have_been_replaced


def read_until(root: str, reading: Semaphore, stop: Event, wrong: Queue[str]) -> None:
    """Read ten days of two symbols by all ways; report whatever is not 20 whole days, each of one version.

    Args:
        root: Root of the lake.
        reading: Released after the first round.
        stop: Set when it is enough.
        wrong: Gets what a reader must never see.
    """
    market = MarketData(root)
    symbols = ["BTCUSDT", "ETHUSDT"]
    rounds = 0
    while rounds == 0 or not stop.is_set():
        relation = market.klines(symbols, "1h", "2024-01-01", "2024-01-11").relation()
        tables = {
            "arrow": market.klines(symbols, "1h", "2024-01-01", "2024-01-11", columns="close").arrow(),
            "relation": _asked_again(relation.to_arrow_table),
            "sql": market.sql("FROM binance_spot.klines").arrow(),
        }
        with duckdb.connect(f"{root}/catalog.duckdb", read_only=True) as catalog:
            tables["catalog"] = _asked_again(catalog.sql("FROM binance_spot.klines").to_arrow_table)
        for way, table in tables.items():
            wrong_days = _wrong_days(table)
            if wrong_days:
                wrong.put(f"{way}: {wrong_days}")
        rounds += 1
        if rounds == 1:
            reading.release()


def _asked_again(read: Callable[[], pa.Table]) -> pa.Table:
    """What a person does whom DuckDB tells that a file is invalid, where it was replaced in that moment."""
    for _ in range(5):
        try:
            return read()
        except duckdb.Error as error:
            if not may_have_been_replaced(error):
                raise
    return read()


def _wrong_days(table: pa.Table) -> str:
    days_of_rows = pc.floor_temporal(table["open_time"], unit="day")
    keyed = pa.table([table["symbol"].cast(pa.string()), days_of_rows, table["close"]], ["symbol", "day", "close"])
    days = keyed.group_by(["symbol", "day"]).aggregate([("close", "count"), ("close", "count_distinct")]).to_pylist()
    wrong = [day for day in days if (day["close_count"], day["close_count_distinct"]) != (24, 1)]
    return f"{len(days)} days, wrong: {wrong}" if wrong or len(days) != 20 else ""
