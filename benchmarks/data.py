"""What is measured on: archives made by the sandbox's generator, and a server of them in a process of its own."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil

from benchmarks.processes import FRESH, started, workers
from market_data_pipeline import clock
from market_data_pipeline.model.series import EXCHANGE, DataType, Market, SeriesKey
from market_data_pipeline.settings import PREFIX, Settings

T = TypeVar("T")

KLINES_FROM, TRADES_FROM = date(2024, 7, 1), date(2025, 3, 1)
"""First days: a year with both of spot's time units (milliseconds until 2024-12-31), and two weeks of microseconds."""

MONTHS_FROM_YEAR = 2018
"""First year of the monthly zips."""

MONTHS_OF_A_YEAR = 12

MICROSECONDS_FROM = date(2025, 1, 1)
"""Spot's archives have microseconds from this day on, milliseconds before."""

INTERVALS = ("1m", "5m", "1h", "1d")
"""Of the series of which there are many."""

ROUND_TRIP_SECONDS = 0.05
"""To an exchange far away."""

_LISTED = date(2017, 8, 17)
_MINUTE_US = 60_000_000


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        kline_days: Days of 1m klines that are ingested and backfilled from daily zips.
        trade_days: Days of aggTrades that are ingested.
        trades: aggTrades a day, give or take a tenth.
        symbols: Symbols that are queried together.
        symbols_of_types: Symbols whose funding rates, metrics and mark prices are backfilled together.
        query_days: Days that such a query spans.
        months: Months of 1m klines in monthly zips.
        lake_days: Days of 1m klines of each symbol in the lake that SQL is asked over.
        assets: Assets that a code location loads, and series of which there is a day.
        universe: Symbols that are ranked by their volume.
        repetitions: How often each thing is measured; the median counts.
        judged: Whether the targets, which are meant for the full size, are judged.
    """

    kline_days: int
    trade_days: int
    trades: int
    symbols: int
    query_days: int
    months: int
    lake_days: int
    assets: int
    universe: int
    repetitions: int
    judged: bool
    symbols_of_types: int = 8

    @property
    def digest(self) -> str:
        """Tells scales apart: archives of two do not lie in one folder."""
        return _digest(self)


FULL = Scale(365, 14, 1_000_000, 10, 90, 96, 3 * 365, 400, 600, 5, judged=True)
QUICK = Scale(62, 2, 250_000, 4, 20, 6, 120, 40, 60, 1, judged=False, symbols_of_types=2)


@dataclass(frozen=True, slots=True)
class Archives:
    """Archives on disk, laid out as Binance's; each part is made when it is first asked for, and then kept.

    Attributes:
        folder: Where they lie. What is expensive to make and is no archive, such as a big lake, is kept there, too.
        scale: How much there is of each.
        tools: Where published tools are installed, each into a folder of its own; None where they are not wanted.
    """

    folder: Path
    scale: Scale
    tools: Path | None = None

    def klines(self) -> Path:
        """Make a mirror with daily zips of :attr:`kline_series`."""
        self._make("daily", [([self.kline_series], days, 20_000) for days in _pieces(self.kline_days)])
        return self.folder / "daily"

    def trades(self) -> Path:
        """Make the same mirror with the days of :attr:`trade_series` in it."""
        self._make("daily", [([self.trade_series], [day], self.scale.trades) for day in self.trade_days])
        return self.folder / "daily"

    def symbols(self) -> Path:
        """Make the same mirror with :attr:`query_days` of as many symbols as are queried together in it."""
        others = [klines(name) for name in symbol_names(self.scale.symbols)[1:]]
        self.klines()
        self._make("daily", [([key], self.query_days, 20_000) for key in others])
        return self.folder / "daily"

    def many(self) -> Path:
        """Make a mirror that has :attr:`short_days` of :attr:`many_series`."""
        self._make("many", [(keys, self.short_days, 500) for keys in _pieces(self.many_series)])
        return self.folder / "many"

    def small_types(self) -> Path:
        """Make a mirror that has :attr:`kline_days` of :attr:`small_series`, of whole months those in monthly zips."""
        jobs: list[_Job] = []
        for key in self.small_series:
            cadences: tuple[Cadence, ...] = ("daily",) if key.data_type is DataType.METRICS else ("daily", "monthly")
            jobs.append(([key], self.kline_days, 500, cadences))
        self._make("types", jobs)
        return self.folder / "types"

    def single_trades(self) -> Path:
        """Make the mirror of daily zips with the days of :attr:`single_series` in it."""
        self._make("daily", [([self.single_series], [day], self.scale.trades) for day in self.trade_days])
        return self.folder / "daily"

    def monthly(self) -> Path:
        """Make a mirror that has monthly and daily zips of :attr:`kline_series`, as the archive has of months gone by.

        They hold the year of the daily zips, again and again, with the times of :attr:`months`.
        """
        mirror, key = self.folder / "monthly", self.kline_series
        done = self.folder / "monthly.made"
        if not done.exists():
            daily = [self.klines() / key.archive_daily(day) for day in self.kline_days]
            with workers() as pool:
                for made in [pool.submit(write_month, mirror, key, month, daily) for month in self.months]:
                    made.result()
            done.touch()
        return mirror

    def _make(self, mirror: str, jobs: Sequence[_Job]) -> None:
        """Write daily zips by the sandbox's generator, unless they were written before."""
        done = self.folder / f"{mirror} {_digest(jobs)}.made"
        if done.exists():
            return
        (self.folder / mirror).mkdir(parents=True, exist_ok=True)
        with workers() as pool:
            for made in [pool.submit(_write, self.folder / mirror, *job) for job in jobs]:
                made.result()
        done.touch()

    @property
    def many_series(self) -> list[SeriesKey]:
        """As many series of klines as a code location has assets, of symbols of their own."""
        symbols = symbol_names(self.scale.assets // len(INTERVALS))
        return [klines(symbol, interval) for symbol in symbols for interval in INTERVALS]

    @property
    def small_series(self) -> list[SeriesKey]:
        """Funding rates, metrics and 1h candles of the mark price, of symbols of um."""
        types = ((DataType.FUNDING_RATE, None), (DataType.METRICS, None), (DataType.MARK_PRICE_KLINES, "1h"))
        symbols = symbol_names(self.scale.symbols_of_types)
        return [SeriesKey(EXCHANGE, Market.UM, one, symbol, interval) for symbol in symbols for one, interval in types]

    @property
    def kline_days(self) -> list[date]:
        """The days of the daily zips of :attr:`kline_series`."""
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
    def short_days(self) -> list[date]:
        """The days that there are of many series: the last two of the klines."""
        return self.kline_days[-2:]

    @property
    def months(self) -> list[date]:
        """The first days of the months of the monthly zips."""
        return [date(MONTHS_FROM_YEAR + n // 12, n % 12 + 1, 1) for n in range(self.scale.months)]

    @property
    def kline_series(self) -> SeriesKey:
        """The series with a year of 1m klines, or with years of them in monthly zips."""
        return klines(symbol_names(1)[0])

    @property
    def trade_series(self) -> SeriesKey:
        """The series with days of many aggTrades."""
        return SeriesKey(EXCHANGE, Market.SPOT, DataType.AGG_TRADES, _BUSY)

    @property
    def single_series(self) -> SeriesKey:
        """The series with the single trades of the same days."""
        return SeriesKey(EXCHANGE, Market.SPOT, DataType.TRADES, _BUSY)


Cadence = Literal["daily", "monthly"]
_Job = tuple[list[SeriesKey], list[date], int] | tuple[list[SeriesKey], list[date], int, tuple[Cadence, ...]]
"""Series, their days, trades a day, and the kinds of zips, which are daily ones if not given."""
_BUSY = "BUSYUSDT"


def days_from(first: date, count: int) -> list[date]:
    """Days that follow one another."""
    return [first + timedelta(days=n) for n in range(count)]


def symbol_names(count: int) -> list[str]:
    """Names of made-up symbols."""
    return [f"COIN{n:03d}USDT" for n in range(count)]


def klines(symbol: str, interval: str = "1m") -> SeriesKey:
    """Return the series of a symbol's klines in spot."""
    return SeriesKey(EXCHANGE, Market.SPOT, DataType.KLINES, symbol, interval)


def days_of_months(months: Sequence[date]) -> list[date]:
    """All days of some months."""
    return [day for month in months for day in clock.days_of_month(month)]


def _digest(thing: object) -> str:
    return hashlib.sha256(repr(thing).encode()).hexdigest()[:16]


def _pieces(things: list[T]) -> list[list[T]]:
    """Things in as many pieces as there are cores."""
    size = -(-len(things) // (os.cpu_count() or 1))
    return [things[n : n + size] for n in range(0, len(things), size)]


# The sandbox is imported where it is used: what is measured runs in processes that do without it.


def _write(
    folder: Path, keys: list[SeriesKey], days: list[date], trades: int, cadences: tuple[Cadence, ...] = ("daily",)
) -> None:
    from market_data_pipeline.sandbox import GeneratedSymbol, write_mirror

    symbols = [
        GeneratedSymbol(key.market, key.symbol, _LISTED, trades_per_day=trades, price=60_000.0, quantity_decimals=5)
        for key in {key.symbol: key for key in keys}.values()
    ]
    write_mirror(folder, keys, days, symbols=symbols, cadences=cadences)


def write_month(mirror: Path, key: SeriesKey, month: date, daily: Sequence[Path]) -> None:
    """Write a monthly zip and the daily ones of its days, of the rows of others, which are taken in turn.

    Args:
        mirror: Where to.
        key: The series, of 1m klines in spot.
        month: Its first day.
        daily: The zips of days that follow each other from :data:`KLINES_FROM` on.
    """
    lines: list[bytes] = []
    for day in clock.days_of_month(month):
        with zipfile.ZipFile(daily[(day - KLINES_FROM).days % len(daily)]) as archive:
            rows = archive.read(archive.namelist()[0]).splitlines()
        start, unit = clock.day_start_us(day), 1 if day >= MICROSECONDS_FROM else 1000
        of_day = []
        for n, row in enumerate(rows):
            _, open_, high, low, close, volume, _, rest = row.split(b",", 7)
            opened = start + n * _MINUTE_US
            closed = opened + _MINUTE_US - unit
            first, last = (str(moment // unit).encode() for moment in (opened, closed))
            of_day.append(b",".join((first, open_, high, low, close, volume, last, rest)))
        _write_zip(mirror / key.archive_daily(day), of_day)
        lines += of_day
    _write_zip(mirror / key.archive_monthly(month), lines)


def _write_zip(path: Path, lines: Sequence[bytes]) -> None:
    from market_data_pipeline.sandbox.zips import make_zip

    data = make_zip([(f"{path.stem}.csv", b"\n".join(lines) + b"\n")])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.with_name(f"{path.name}.CHECKSUM").write_text(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")


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
    """Return settings of a lake in ``root`` that is filled from an :class:`Origin`, whatever the environment says."""
    own: dict[str, Any] = {"_env_file": None, "dir": root, "budget_dir": root / "budget", "universe": universe}
    own |= {name.removeprefix(PREFIX).lower(): url for name, url in env.items()}
    return Settings(**own)


@contextmanager
def serving(mirror: Path, latency: float = 0.0) -> Iterator[Origin]:
    """Run the sandbox in its own process, so that its CPU counts apart; it still shares the machine's cores.

    Args:
        mirror: The archives.
        latency: Seconds that each answer is late.
    """
    with started((mirror, latency), lambda: _server(mirror, latency)) as origin:
        yield origin


@contextmanager
def _server(mirror: Path, latency: float) -> Iterator[Origin]:
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
