"""Rows about ``ingest``: archives of a server on loopback become verified files of a lake. No Dagster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from benchmarks.baselines import bare_libraries, pandas_ingest
from benchmarks.data import Archives, Origin, serving, settings_of
from benchmarks.measure import Cost, apart, measured
from benchmarks.report import Baseline, Row
from market_data_pipeline.ingest import DayFailure, DayOutcome, Sources, ingest
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.series import SeriesKey


def ingest_klines(archives: Archives, work: Path) -> list[Row]:
    """365 days of 1m klines from daily zips, each with its checksum: two requests a day, then checks and one file."""
    return [_klines(archives, work, archives.daily, "ingest-klines", "daily zips", with_baselines=True)]


def ingest_klines_of_months(archives: Archives, work: Path) -> list[Row]:
    """The same from monthly zips, as Binance's archive has them for months that are over: two requests a month."""
    return [_klines(archives, work, archives.monthly, "ingest-months", "monthly zips", with_baselines=False)]


def ingest_trades(archives: Archives, work: Path) -> list[Row]:
    """7 days of a million aggTrades from daily zips: rows a second, and the peak memory of the processes that do it."""
    key, days = archives.trade_series, archives.trade_days
    with serving(archives.daily) as origin:
        runs = _ingests(origin, key, days, work / "trades", archives.scale.repetitions)
        with_pandas = apart(pandas_ingest, key, days, origin.url, work / "trades-pandas")
    bare = apart(bare_libraries, key, days, archives.daily, work / "trades-bare")
    rows = runs[0].rows
    what = f"ingest {len(days)} days of {rows / len(days) / 1e6:.2g} million aggTrades"
    return [
        Row(
            "ingest-trades",
            what,
            "rows/s",
            [run.rows / run.cost.seconds for run in runs],
            target=2e6,
            better="higher",
            baselines=[
                Baseline("pandas script", [rows / with_pandas.seconds]),
                Baseline("bare libraries", [rows / bare.seconds]),
            ],
            details=_details(runs),
        ),
        Row(
            "ingest-trades-memory",
            f"{what}: peak memory of all processes",
            "MB",
            [run.cost.peak_mb for run in runs],
            target=1500,
            baselines=[
                Baseline("pandas script", [with_pandas.peak_mb]),
                Baseline("bare libraries", [bare.peak_mb]),
            ],
        ),
    ]


def _klines(archives: Archives, work: Path, mirror: Path, name: str, source: str, *, with_baselines: bool) -> Row:
    key, days = archives.kline_series, archives.kline_days
    baselines = []

    def a_day(cost: Cost) -> float:
        return cost.seconds / len(days) * 1000

    with serving(mirror) as origin:
        runs = _ingests(origin, key, days, work / name, archives.scale.repetitions)
        if with_baselines:
            with_pandas = apart(pandas_ingest, key, days, origin.url, work / f"{name}-pandas")
            baselines = [
                Baseline("pandas script", [a_day(with_pandas)]),
                Baseline("bare libraries", [a_day(apart(bare_libraries, key, days, mirror, work / f"{name}-bare"))]),
            ]
    details = _details(runs) | {"rows_per_second": max(run.rows / run.cost.seconds for run in runs)}
    what = f"ingest {len(days)} days of 1m klines from {source}, for each day"
    return Row(name, what, "ms", [a_day(run.cost) for run in runs], baselines=baselines, details=details)


@dataclass(frozen=True, slots=True)
class Ingested:
    """What bringing days took.

    Attributes:
        cost: Of the process that did it, and those that helped.
        rows: Rows brought.
        server_cpu_seconds: What the server of the archives took meanwhile.
    """

    cost: Cost
    rows: int
    server_cpu_seconds: float = 0.0


def _details(runs: Sequence[Ingested]) -> dict[str, float]:
    least = min(runs, key=lambda run: run.cost.cpu_seconds)
    return {"cpu_seconds": least.cost.cpu_seconds, "server_cpu_seconds": least.server_cpu_seconds}


def _ingests(origin: Origin, key: SeriesKey, days: Sequence[date], root: Path, times: int) -> list[Ingested]:
    """Bring days into a new lake each time, each in a fresh process."""
    runs = []
    for n in range(times):
        before = origin.cpu_seconds()
        run = apart(ingest_into, root / str(n), origin.env, {key: days})
        runs.append(Ingested(run.cost, run.rows, origin.cpu_seconds() - before))
    return runs


def ingest_into(root: Path, env: Mapping[str, str], wanted: Mapping[SeriesKey, Sequence[date]]) -> Ingested:
    """Bring days into a lake; the time is that of ``ingest`` alone, without imports.

    Raises:
        RuntimeError: a day failed: what was measured would not be what it says.
    """
    import pandas  # noqa: F401, ICN001 - Arrow imports it when it is first used, which is no part of the work

    settings = settings_of(env, root)
    results: list[DayOutcome | DayFailure] = []
    with measured() as cost, Sources(settings) as sources:
        for key, days in wanted.items():
            results += ingest(key, days, layout=Layout(root), sources=sources, settings=settings)
        cost.look_at_helpers()
    failed = [result for result in results if isinstance(result, DayFailure)]
    if failed:
        raise RuntimeError(f"{len(failed)} days could not be ingested: {failed[0].reason}")
    return Ingested(cost, sum(result.row.rows for result in results))
