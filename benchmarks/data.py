"""What is measured on: archives made by the sandbox's generator, and a server of them in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import psutil

from market_data_pipeline.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.settings import PREFIX, Settings

FRESH = multiprocessing.get_context("spawn")
"""Processes that inherit nothing, so that what one has imported or cached is not another's gain."""

KLINES_FROM, TRADES_FROM = date(2024, 7, 1), date(2025, 3, 1)
"""First days: a year with both of spot's time units (milliseconds until 2024-12-31), and a week of microseconds."""

INTERVALS = ("1m", "5m", "1h", "1d")
"""Of the series of which there are many."""

ROUND_TRIP_SECONDS = 0.05
"""To an exchange far away."""

_Cadence = Literal["daily", "monthly"]
_LISTED = date(2017, 8, 17)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        kline_days: Days of 1m klines that are ingested and backfilled.
        trade_days: Days of aggTrades that are ingested.
        trades: aggTrades a day, give or take a tenth.
        symbols: Symbols that are queried together.
        query_days: Days that such a query spans.
        assets: Assets that a code location loads.
        repetitions: How often each thing is measured; the median counts.
        judged: Whether the targets, which are meant for the full size, are judged.
    """

    kline_days: int
    trade_days: int
    trades: int
    symbols: int
    query_days: int
    assets: int
    repetitions: int
    judged: bool


FULL = Scale(365, 7, 1_000_000, 10, 90, 400, 5, judged=True)
QUICK = Scale(62, 2, 250_000, 4, 20, 100, 1, judged=False)


@dataclass(frozen=True, slots=True)
class Archives:
    """Archives on disk, laid out as Binance's.

    Attributes:
        folder: Contains ``daily`` (zips of days only) and ``monthly`` (the same days in zips of months, too).
        scale: How much there is.
    """

    folder: Path
    scale: Scale

    @property
    def daily(self) -> Path:
        """The mirror that has daily zips only."""
        return self.folder / "daily"

    @property
    def monthly(self) -> Path:
        """The mirror that has monthly zips, as Binance's archive has for months that are over."""
        return self.folder / "monthly"

    @property
    def many(self) -> Path:
        """The mirror that has one day of :attr:`many_series`."""
        return self.folder / "many"

    @property
    def many_series(self) -> list[SeriesKey]:
        """As many series of klines as a code location has assets, of symbols of their own."""
        symbols = symbol_names(self.scale.assets // len(INTERVALS))
        return [klines(symbol, interval) for symbol in symbols for interval in INTERVALS]

    @property
    def kline_days(self) -> list[date]:
        """The days of klines of :attr:`kline_series`."""
        return days_from(KLINES_FROM, self.scale.kline_days)

    @property
    def trade_days(self) -> list[date]:
        """The days of aggTrades."""
        return days_from(TRADES_FROM, self.scale.trade_days)

    @property
    def query_days(self) -> list[date]:
        """The days that queries span: the last ones of the klines."""
        return self.kline_days[-self.scale.query_days :]

    @property
    def kline_series(self) -> SeriesKey:
        """The series with a year of 1m klines."""
        return klines(symbol_names(1)[0])

    @property
    def trade_series(self) -> SeriesKey:
        """The series with days of many aggTrades."""
        return SeriesKey(EXCHANGE, Market.SPOT, DataType.AGG_TRADES, _BUSY)


_BUSY = "BUSYUSDT"


def days_from(first: date, count: int) -> list[date]:
    """Days that follow one another."""
    return [first + timedelta(days=n) for n in range(count)]


def symbol_names(count: int) -> list[str]:
    """Names of made-up symbols."""
    return [f"COIN{n:03d}USDT" for n in range(count)]


def klines(symbol: str, interval: str = "1m") -> SeriesKey:
    """The series of a symbol's klines in spot."""
    return SeriesKey(EXCHANGE, Market.SPOT, DataType.KLINES, symbol, interval)


def make_archives(folder: Path, scale: Scale) -> Archives:
    """Write all archives that are measured on, unless the folder has them from an earlier run of the same scale."""
    archives = Archives(folder, scale)
    done = folder / f"{scale}.made"
    if done.exists():
        return archives
    others = [klines(name) for name in symbol_names(scale.symbols)[1:]]
    jobs: list[tuple[Path, list[SeriesKey], list[date], int, Sequence[_Cadence]]] = [
        *((archives.daily, [archives.trade_series], [day], scale.trades, ("daily",)) for day in archives.trade_days),
        (archives.daily, [archives.kline_series], archives.kline_days, 20_000, ("daily",)),
        (archives.monthly, [archives.kline_series], archives.kline_days, 20_000, ("daily", "monthly")),
        *((archives.daily, [key], archives.query_days, 20_000, ("daily",)) for key in others),
        (archives.many, archives.many_series, archives.query_days[-1:], 500, ("daily",)),
    ]
    with ProcessPoolExecutor(mp_context=FRESH) as pool:
        for made in [pool.submit(_write, *job) for job in jobs]:
            made.result()
    done.touch()
    return archives


# The sandbox is imported where it is used: what is measured runs in processes that do without it.


def _write(folder: Path, keys: list[SeriesKey], days: list[date], trades: int, cadences: Sequence[_Cadence]) -> None:
    from market_data_pipeline.sandbox import GeneratedSymbol, write_mirror

    symbols = [
        GeneratedSymbol(key.market, key.symbol, _LISTED, trades_per_day=trades, price=60_000.0, quantity_decimals=5)
        for key in {key.symbol: key for key in keys}.values()
    ]
    write_mirror(folder, keys, days, symbols=symbols, cadences=cadences)


@dataclass(frozen=True, slots=True)
class Origin:
    """A server of archives.

    Attributes:
        env: Environment variables that point the pipeline at it.
        process: Its process, for the CPU that it takes.
    """

    env: dict[str, str]
    process: psutil.Process

    @property
    def url(self) -> str:
        """Where it listens."""
        return next(iter(self.env.values()))

    def cpu_seconds(self) -> float:
        """CPU that it has taken so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


def settings_of(env: Mapping[str, str], root: Path, universe: Path = Path("universe.yaml")) -> Settings:
    """Settings of a lake in ``root`` that is filled from an :class:`Origin`, whatever the environment says."""
    own: dict[str, Any] = {"_env_file": None, "dir": root, "budget_dir": root / "budget", "universe": universe}
    own |= {name.removeprefix(PREFIX).lower(): url for name, url in env.items()}
    return Settings(**own)


@contextmanager
def serving(mirror: Path, latency: float = 0.0) -> Iterator[Origin]:
    """The sandbox in a process of its own, so that its CPU is apart; it still shares the machine's cores.

    Args:
        mirror: The archives.
        latency: Seconds that each answer is late.
    """
    ours, theirs = FRESH.Pipe()
    process = FRESH.Process(target=_serve, args=(mirror, latency, theirs), daemon=True)
    process.start()
    theirs.close()  # so that ours ends where the server could not start
    try:
        yield Origin(ours.recv(), psutil.Process(process.pid))
    finally:
        ours.close()
        process.join(10)


def _serve(mirror: Path, latency: float, to_parent: Connection) -> None:
    from market_data_pipeline.sandbox import Delay, Sandbox

    with Sandbox(mirror=mirror) as sandbox:
        if latency:
            sandbox.faults.add(Delay(path="", latency=latency))
        to_parent.send(sandbox.settings_env())
        # The parent sends nothing: its end of the pipe closes when it is done, or dies.
        to_parent.poll(None)
