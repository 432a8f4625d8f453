"""Rows about ``ingest``: archives, from a disk or over HTTP, become verified files of a lake. No Dagster."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

from benchmarks.baselines import bare_libraries, days_of, months_of, pandas_ingest, polars_ingest
from benchmarks.data import MONTHS_OF_A_YEAR, ROUND_TRIP_SECONDS, Archives, Origin, days_of_months, serving, settings_of
from benchmarks.measure import Cost, measured
from benchmarks.processes import apart
from benchmarks.report import Baseline, Row
from benchmarks.tools import DAILY_TOOLS, MONTHLY_TOOLS, beside
from market_data_pipeline import clock
from market_data_pipeline.ingest.run import ingest
from market_data_pipeline.ingest.sources import Sources
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.provenance import ChecksumStatus
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.binance.archive import ArchiveClient, ArchiveFile

_REQUESTS_A_DAY = 2
"""The zip and its checksum."""

_BOUND_BY_WAITING = 1.25
"""How much longer than the waits alone it may take, and still count as bound by the number of connections."""

NO_HOSTS: Mapping[str, str] = {}
"""In place of a server's settings, where zips are read from this disk."""


def ingest_klines(archives: Archives, work: Path) -> list[Row]:
    """365 days of 1m klines from daily zips, each with its checksum, then checks and one file a day.

    Once over HTTP on loopback, two requests a day, beside scripts and published tools over the same server; once with
    the same zips read from this disk, beside what the libraries alone can do.
    """
    key, days, mirror = archives.kline_series, archives.kline_days, archives.klines()
    zips, times = days_of(key, days), archives.scale.repetitions
    with serving(mirror) as origin:
        over_http = _ingests(origin, key, days, work / "http", times)
        rows = over_http[0].rows
        scripts = _scripts(key, zips, origin.url, work / "http", rows)
        tools, lacking = beside(DAILY_TOOLS, archives, key, days, origin.url, work / "tools", rows)
    from_disk = _ingests(mirror, key, days, work / "disk", times)
    what = f"ingest {len(days)} days of 1m klines from daily zips"
    return [
        _speed("ingest-klines", f"{what}, over HTTP on loopback", over_http, 350e3, [*scripts, *tools], lacking),
        _speed("ingest-klines-disk", f"{what} on disk", from_disk, 700e3, _beside_disk(key, zips, mirror, work, rows)),
    ]


def ingest_klines_from_afar(archives: Archives, work: Path) -> list[Row]:
    """Measure the daily zips again, each answer of the archive 50 ms late."""
    key, days, mirror = archives.kline_series, archives.kline_days, archives.klines()
    with serving(mirror, ROUND_TRIP_SECONDS) as origin:
        runs = _ingests(origin, key, days, work / "far", min(3, archives.scale.repetitions))
        connections = settings_of(origin.env, work).download_threads
    waits = _REQUESTS_A_DAY * len(days) * ROUND_TRIP_SECONDS
    return [
        Row(
            "ingest-far",
            f"ingest {len(days)} days of 1m klines from daily zips, with 50 ms to each answer",
            "s",
            [run.cost.seconds for run in runs],
            target=_BOUND_BY_WAITING * waits / connections,
            baselines=[
                Baseline(f"nothing but waiting, on {connections} connections (computed)", [waits / connections]),
                Baseline("nothing but waiting, on one connection (computed)", [waits]),
            ],
        )
    ]


def ingest_klines_of_months(archives: Archives, work: Path) -> list[Row]:
    """Measure a year of 1m klines from monthly zips on disk; beside it, over HTTP: two requests a month."""
    key, months, mirror = archives.kline_series, archives.months[:MONTHS_OF_A_YEAR], archives.monthly()
    days, zips, times = days_of_months(months), months_of(key, months), archives.scale.repetitions
    with serving(mirror) as origin:
        over_http = _ingests(origin, key, days, work / "http", times)
        rows = over_http[0].rows
        tools, lacking = beside(MONTHLY_TOOLS, archives, key, days, origin.url, work / "tools", rows)
    from_disk = _ingests(mirror, key, days, work / "disk", times)
    baselines = [
        Baseline("ours, over HTTP on loopback", [run.rows_per_second for run in over_http]),
        *_beside_disk(key, zips, mirror, work, rows),
        *tools,
    ]
    what = f"ingest {len(days)} days of 1m klines from {len(months)} monthly zips on disk"
    return [_speed("ingest-months", what, from_disk, 1.2e6, baselines, lacking)]


def ingest_trades(archives: Archives, work: Path) -> list[Row]:
    """Two weeks, a week and a day of a million aggTrades a day, from daily zips over HTTP on loopback.

    Rows a second, and the peak memory of the processes that do it.
    """
    key, days, mirror = archives.trade_series, archives.trade_days, archives.trades()
    week, times = days[: -(-len(days) // 2)], archives.scale.repetitions
    with serving(mirror) as origin:
        whole = _ingests(origin, key, days, work / "trades", times)
        half = _ingests(origin, key, week, work / "week", times)
        one = _ingests(origin, key, days[:1], work / "day", times)
        with_pandas = apart(pandas_ingest, key, days_of(key, week), origin.url, work / "trades-pandas")
        with_polars = apart(polars_ingest, key, days_of(key, week), origin.url, work / "trades-polars")
    bare = apart(bare_libraries, key, days_of(key, week), mirror, work / "trades-bare")
    others = {"pandas script": with_pandas, "polars script": with_polars, "bare libraries, from disk": bare}
    baselines = [Baseline(name, [half[0].rows / cost.seconds]) for name, cost in others.items()]

    def what(runs: Sequence[Ingested], count: int) -> str:
        return f"ingest {count} days of {runs[0].rows / count / 1e6:.2g} million aggTrades"

    return [
        _speed("ingest-trades", what(whole, len(days)), whole, 4e6, baselines),
        _speed("ingest-trades-week", what(half, len(week)), half, 2e6, baselines),
        Row(
            "ingest-trades-day",
            f"ingest one day of {one[0].rows / 1e6:.2g} million aggTrades",
            "s",
            [run.cost.seconds for run in one],
            target=0.4,
            baselines=[Baseline(name, [cost.seconds / len(week)]) for name, cost in others.items()],
        ),
        Row(
            "ingest-trades-memory",
            f"{what(whole, len(days))}: peak memory of all processes",
            "MB",
            [run.cost.peak_mb for run in whole],
            target=1000,
            baselines=[Baseline(name, [cost.peak_mb]) for name, cost in others.items()],
        ),
    ]


def ingest_single_trades(archives: Archives, work: Path) -> list[Row]:
    """Measure single trades beside aggTrades of the same days: bytes of CSV for each second of processor time."""
    week = archives.trade_days[: -(-len(archives.trade_days) // 2)]
    archives.trades()
    mirror, times = archives.single_trades(), archives.scale.repetitions

    def speeds(key: SeriesKey) -> list[float]:
        size = sum(_csv_size(mirror / path) for path in days_of(key, week))
        runs = _ingests(mirror, key, week, work / key.data_type, times)
        return [size / 1e6 / max(run.cost.cpu_seconds, 0.01) for run in runs]

    joined, single = speeds(archives.trade_series), speeds(archives.single_series)
    return [
        Row(
            "ingest-single-trades",
            f"ingest {len(week)} days of single trades from daily zips on disk: CSV for each second of processor time",
            "MB/s",
            single,
            target=0.9 * median(joined),
            better="higher",
            baselines=[Baseline("aggTrades of the same days", joined)],
        )
    ]


def _csv_size(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return sum(one.file_size for one in archive.infolist())


def _speed(
    name: str,
    what: str,
    runs: Sequence[Ingested],
    target: float,
    baselines: list[Baseline],
    lacking: Sequence[str] = (),
) -> Row:
    least = min(runs, key=lambda run: run.cost.cpu_seconds)
    details = {"cpu_seconds": least.cost.cpu_seconds, "server_cpu_seconds": least.server_cpu_seconds}
    return Row(
        name,
        what,
        "rows/s",
        [run.rows_per_second for run in runs],
        target=target,
        better="higher",
        baselines=baselines,
        details=details,
        remarks=list(lacking),
    )


def _scripts(key: SeriesKey, zips: Sequence[str], where: str | Path, work: Path, rows: int) -> list[Baseline]:
    return [
        Baseline("pandas script", [rows / apart(pandas_ingest, key, zips, where, work / "pandas").seconds]),
        Baseline("polars script", [rows / apart(polars_ingest, key, zips, where, work / "polars").seconds]),
    ]


def _beside_disk(key: SeriesKey, zips: Sequence[str], mirror: Path, work: Path, rows: int) -> list[Baseline]:
    bare = apart(bare_libraries, key, zips, mirror, work / "bare")
    scripts = _scripts(key, zips, mirror, work / "disk", rows)
    return [Baseline("bare libraries", [rows / bare.seconds]), *scripts]


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

    @property
    def rows_per_second(self) -> float:
        """Of wall time."""
        return self.rows / self.cost.seconds


class DiskArchive(ArchiveClient):
    """The archive without HTTP: zips and their checksums, which must match, are read from a mirror."""

    def __init__(self, settings: Settings, mirror: Path) -> None:
        super().__init__(settings)
        self._mirror = mirror

    def fetch(
        self,
        path: str,
        admit: Callable[[int], None] | None = None,
        accepted: Collection[str] = (),
        most_bytes: int | None = None,  # noqa: ARG002 - the archive's signature
    ) -> ArchiveFile | None:
        """Read a zip and prove it; None where the mirror has none."""
        file = self._mirror / path
        if not file.exists():
            return None
        if admit is not None:
            admit(file.stat().st_size)
        data = file.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 != file.with_name(f"{file.name}.CHECKSUM").read_text().split()[0] and sha256 not in accepted:
            raise RuntimeError(f"{file} does not match its checksum: remove the folder that it is in.")
        return ArchiveFile(
            url=file.as_uri(),
            data=data,
            sha256=sha256,
            etag=None,
            last_modified=None,
            checksum=ChecksumStatus.VERIFIED,
            fetched_at=clock.now(),
        )


def _ingests(where: Origin | Path, key: SeriesKey, days: Sequence[date], root: Path, times: int) -> list[Ingested]:
    """Bring days into a new lake each time, each in a fresh process."""
    runs = []
    for n in range(times):
        if isinstance(where, Path):
            runs.append(apart(ingest_into, root / str(n), NO_HOSTS, {key: days}, where))
        else:
            before = where.cpu_seconds()
            run = apart(ingest_into, root / str(n), where.env, {key: days})
            runs.append(Ingested(run.cost, run.rows, where.cpu_seconds() - before))
    return runs


def ingest_into(
    root: Path, env: Mapping[str, str], wanted: Mapping[SeriesKey, Sequence[date]], mirror: Path | None = None
) -> Ingested:
    """Bring days into a lake; the time is that of ``ingest`` alone, without imports.

    Args:
        root: The lake's root.
        env: Where the archive is.
        wanted: Days of each series.
        mirror: Read zips from this folder, not from the archive.

    Raises:
        RuntimeError: a day failed: what was measured would not be what it says.
    """
    import pandas  # noqa: F401, ICN001 - Arrow imports it when it is first used, which is no part of the work

    settings = settings_of(env, root)
    results: list[DayOutcome | DayFailure] = []
    with measured() as cost, Sources(settings) as sources:
        if mirror is not None:
            sources.archive.close()
            sources.archive = DiskArchive(settings, mirror)
        for key, days in wanted.items():
            results += ingest(key, days, layout=Layout(root), sources=sources, settings=settings)
        cost.look_at_helpers()
    failed = [result for result in results if isinstance(result, DayFailure)]
    if failed:
        raise RuntimeError(f"{len(failed)} days could not be ingested: {failed[0].reason}")
    return Ingested(cost, sum(result.row.rows for result in results))
