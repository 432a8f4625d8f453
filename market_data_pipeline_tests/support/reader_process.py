"""A process that reads a lake whenever others change it; ``market_data_pipeline_tests/integration/test_readers.py``
starts it.

Arguments: the data folder and the candles' interval. It prints ``ready`` after its first round, ends when its standard
input does, and then prints in JSON what it has seen. Anything that is not as it should be ends it with a traceback.
"""

from __future__ import annotations

import json
import select
import sys
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

import duckdb

from market_data_pipeline import MarketData
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.series import INTERVALS
from market_data_pipeline.sql.errors import may_have_been_replaced
from market_data_pipeline_tests.support.small_lake import series

SYMBOLS = ["BTCUSDT", "ETHUSDT"]
START, END = "2024-01-01", "2025-01-01"
INTERVAL = sys.argv[2] if len(sys.argv) > 2 else "1m"
CANDLES_A_DAY = 86_400 // INTERVALS.get(INTERVAL, 60)

Day = tuple[str, date, int, int]
"""Symbol, UTC day, rows, and distinct moments among them."""

DAYS = f"""
SELECT symbol, open_time::DATE, count(*), count(DISTINCT open_time)
FROM binance_spot.klines WHERE "interval" = '{INTERVAL}' GROUP BY ALL
"""
CANDLES = f"""
SELECT symbol, open_time::DATE, count(*), count(DISTINCT open_time)
FROM binance_spot.candles('BTCUSDT', '{INTERVAL}', '{START}', '{END}') GROUP BY ALL
"""


def of_frame(market: MarketData) -> list[Day]:
    """Days as pandas sees them."""
    frame = market.klines(SYMBOLS[0], INTERVAL, START, END, columns="close", on_gap="ignore").df()
    groups = frame.groupby(frame["open_time"].dt.date)["open_time"]
    return [(SYMBOLS[0], day, len(times), times.nunique()) for day, times in groups]


def of_relation(market: MarketData) -> list[Day]:
    """Days as a DuckDB relation over the files sees them."""
    rows = market.klines(SYMBOLS[0], INTERVAL, START, END).relation()
    return rows.aggregate("symbol, open_time::DATE, count(*), count(DISTINCT open_time)").fetchall()


def of_views(market: MarketData) -> list[Day]:
    """Days as a query over the views sees them."""
    return market.sql(DAYS).relation().fetchall()


def of_catalog(path: Path) -> list[Day]:
    """Days as any SQL tool sees them that opens the catalog file."""
    with duckdb.connect(str(path), read_only=True) as connection:
        return [*connection.execute(DAYS).fetchall(), *connection.execute(CANDLES).fetchall()]


TRIES = 20


class Notebook:
    """Somebody's notebook, with the catalog open all the time, who opens it again if DuckDB reports an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened = duckdb.connect(str(path), read_only=True)

    def days(self) -> list[Day]:
        """Days as a query over the views sees them."""
        return self.trying_again(lambda: self._opened.execute(DAYS).fetchall())

    def trying_again(self, read: Callable[[], list[Day]]) -> list[Day]:
        """What is read; of one path, DuckDB opens one file a process, so all of this one's wait for the notebook."""

        def open_again() -> None:
            self._opened.close()
            self._opened = duckdb.connect(str(self._path), read_only=True)

        return asking_again(read, open_again)


def asking_again(read: Callable[[], list[Day]], before: Callable[[], None] = lambda: None) -> list[Day]:
    """Read, as often as DuckDB says that a file was replaced or is gone: people are told to ask again then.

    How often that happens depends on how busy the machine is. Whatever is read in the end must be right.
    """
    for _ in range(TRIES):
        try:
            return read()
        except duckdb.Error as error:
            if not may_have_been_replaced(error):
                raise
            before()
    return read()


def check(days: Iterable[Day]) -> int:
    """Refuse half days and duplicates; return how many days were seen."""
    found = list(days)
    for symbol, day, rows, moments in found:
        assert (rows, moments) == (CANDLES_A_DAY, CANDLES_A_DAY), f"{symbol} {day}: {rows} rows, {moments} moments"
    return len(found)


LOOK_SECONDS = 0.005


class Watch:
    """Sees when files of the lake or its catalog come, go or are replaced: each of that changes a folder."""

    def __init__(self, root: Path) -> None:
        keys, layout = [series(symbol, INTERVAL) for symbol in SYMBOLS], Layout(root)
        ledgers = {layout.ledger(key).parent for key in keys}
        self._folders = [root, *ledgers, *(place(key) for key in keys for place in (layout.folder, layout.months))]
        self._known = self._state()

    def until_changed(self) -> bool:
        """Wait until something has changed since the last call or the start; return False if standard input ended."""
        while not select.select([sys.stdin], [], [], 0)[0]:
            state = self._state()
            if state != self._known:
                self._known = state
                return True
            select.select([sys.stdin], [], [], LOOK_SECONDS)
        return False

    def _state(self) -> list[int]:
        return [folder.stat().st_mtime_ns if folder.is_dir() else 0 for folder in self._folders]


def main(root: Path) -> None:
    """Read until standard input ends: once at the start, after each change, and once at the end."""
    market, catalog = MarketData(root), root / "catalog.duckdb"
    notebook = Notebook(catalog)
    ways: dict[str, Callable[[], list[Day]]] = {
        "frame": lambda: of_frame(market),
        "relation": lambda: asking_again(lambda: of_relation(market)),
        "views": lambda: of_views(market),
        "catalog": lambda: notebook.trying_again(lambda: of_catalog(catalog)),
        "kept catalog": notebook.days,
    }
    seen: dict[str, list[int]] = {way: [] for way in ways}

    def read_all() -> None:
        for way, read in ways.items():
            seen[way].append(check(read()))

    watch = Watch(root)
    read_all()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while watch.until_changed():
        read_all()
    read_all()
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
