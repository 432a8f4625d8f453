"""Rows about Dagster: whole backfills on record, and how long a code location takes to load."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from benchmarks.baselines import days_of, months_of, pandas_ingest, pandas_ingest_each
from benchmarks.data import KLINES_FROM, ROUND_TRIP_SECONDS, Archives, days_of_months, serving, settings_of
from benchmarks.measure import Cost, measured, median
from benchmarks.processes import apart
from benchmarks.report import Baseline, Row
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_files
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline_tests.support.postgres import postgres_server

_FIVE_YEARS = 60
"""Months."""

_FEW = 2
"""Repetitions of what is told by its memory, which varies little."""


def backfill(archives: Archives, work: Path) -> list[Row]:
    """Measure a whole Dagster backfill of 365 days of 1m klines: one run, SQLite, a new DAGSTER_HOME, both checks.

    What ``market-data backfill`` does after its imports: universe, definitions, records, run, catalog. The same days
    come with Dagster's stock event log for comparison.
    """
    key, days, mirror = archives.kline_series, archives.kline_days, archives.klines()
    with serving(mirror) as origin:

        def costs(name: str, times: int, *, stock: bool) -> list[Cost]:
            return [apart(bring_all, work / f"{name}-{n}", origin.env, {key: days}, stock=stock) for n in range(times)]

        ours, stock = costs("ours", archives.scale.repetitions, stock=False), costs("stock", 1, stock=True)
    what = f"Dagster backfill of {len(days)} days of 1m klines in one run, with both checks"

    def a_day(costs: Sequence[Cost]) -> list[float]:
        return [cost.seconds / len(days) * 1000 for cost in costs]

    beside, name = a_day(stock), "Dagster's own event log"
    return [
        Row("backfill", f"{what}, for each day", "ms", a_day(ours), target=12, baselines=[Baseline(name, beside)]),
        _memory("backfill-memory", what, ours, [Baseline(name, [cost.peak_mb for cost in stock])]),
    ]


def backfill_team(archives: Archives, work: Path) -> list[Row]:
    """Measure the same backfill with Dagster's records and all locks in PostgreSQL, and in SQLite in turn.

    PostgreSQL is on this machine, with its default settings. Also count its connections, and the bytes of a day.
    """
    import psycopg2

    key, days, mirror = archives.kline_series, archives.kline_days, archives.klines()
    ours: list[Cost] = []
    sqlite: list[Cost] = []
    bytes_a_day: list[float] = []
    with serving(mirror) as origin, postgres_server() as server:
        most = _Most(server.url, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'market-data%'")
        for n in range(archives.scale.repetitions):
            sqlite.append(apart(bring_all, work / f"sqlite-{n}", origin.env, {key: days}))
            server.sql(f"CREATE DATABASE team_{n}")
            url = server.url_of(f"team_{n}")
            with most:
                ours.append(apart(bring_all, work / f"team-{n}", origin.env, {key: days}, postgres=url))
            server.sql("VACUUM FULL", database=f"team_{n}")  # what autovacuum lets the next run use again
            with psycopg2.connect(url) as connection, connection.cursor() as cursor:
                cursor.execute(
                    "SELECT sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables WHERE relname IN "
                    "('event_logs', 'asset_check_executions', 'asset_event_tags', 'asset_keys')"
                )
                bytes_a_day.append(float((cursor.fetchone() or (0,))[0]) / len(days))
            connection.close()
    what = f"Dagster backfill of {len(days)} days of 1m klines in one run, with both checks, records in PostgreSQL"
    times = [cost.seconds / len(days) * 1000 for cost in ours]
    beside = Baseline("records in SQLite", [cost.seconds / len(days) * 1000 for cost in sqlite])
    return [
        Row(
            "backfill-team", f"{what}, for each day", "ms", times, target=1.3 * median(beside.runs), baselines=[beside]
        ),
        Row("backfill-team-bytes", f"{what}: records for each day", "bytes", bytes_a_day, target=6000),
        Row("backfill-team-connections", f"{what}: most connections", "connections", [float(most.seen)], target=3),
    ]


class _Most:
    """The highest answer to a query while the context is open, asked again and again."""

    def __init__(self, url: str, query: str) -> None:
        self._url, self._query, self.seen = url, query, 0
        self._over = threading.Event()

    def __enter__(self) -> None:
        self._over.clear()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        import psycopg2

        connection = psycopg2.connect(self._url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            while not self._over.wait(0.05):
                cursor.execute(self._query)
                self.seen = max(self.seen, int((cursor.fetchone() or (0,))[0]))
        connection.close()


def backfill_months(archives: Archives, work: Path) -> list[Row]:
    """``market-data backfill`` of five years of 1m klines of one symbol from monthly zips: the whole command."""
    key, months, mirror = archives.kline_series, archives.months[-_FIVE_YEARS:], archives.monthly()
    days, zips = days_of_months(months), months_of(key, months)
    with serving(mirror) as origin:
        ours = [
            _command(work / f"command-{n}", origin.env, key, days) for n in range(min(3, archives.scale.repetitions))
        ]
        with_pandas = apart(pandas_ingest, key, zips, origin.url, work / "pandas")
    what = f"market-data backfill of {len(days):,} days of 1m klines from {len(months)} monthly zips"
    script = Baseline("pandas script, a file a month, without its imports", [with_pandas.seconds])
    return [Row("backfill-months", what, "s", ours, target=30, baselines=[script])]


def backfill_trades(archives: Archives, work: Path) -> list[Row]:
    """Measure a whole Dagster backfill of two weeks of a million aggTrades a day: the memory of all its processes."""
    key, days, mirror = archives.trade_series, archives.trade_days, archives.trades()
    with serving(mirror) as origin:
        ours = [apart(bring_all, work / f"trades-{n}", origin.env, {key: days}) for n in range(_FEW)]
        with_pandas = apart(pandas_ingest, key, days_of(key, days), origin.url, work / "trades-pandas")
    what = f"Dagster backfill of {len(days)} days of aggTrades in one run"
    return [_memory("backfill-trades-memory", what, ours, [Baseline("pandas script", [with_pandas.peak_mb])])]


def _memory(name: str, what: str, costs: Sequence[Cost], baselines: list[Baseline]) -> Row:
    peaks = [cost.peak_mb for cost in costs]
    return Row(name, f"{what}: peak memory of all processes", "MB", peaks, target=1000, baselines=baselines)


def backfill_types(archives: Archives, work: Path) -> list[Row]:
    """Measure a Dagster backfill of many series of small types: funding rates, metrics and 1h mark prices of a year.

    Processor time counts, of the process and its helpers: the days are small, and other programs would count, too.
    """
    keys, days = archives.small_series, archives.kline_days
    with serving(archives.small_types()) as origin:
        ours = [apart(bring_all, work / f"types-{n}", origin.env, dict.fromkeys(keys, days)) for n in range(_FEW)]
    what = f"Dagster backfill of {len(days)} days of {len(keys)} series of small types, with all checks"
    seconds = [cost.cpu_seconds for cost in ours]
    details = {"seconds": min(cost.seconds for cost in ours)}
    return [
        Row("backfill-types", f"{what}: processor time", "s", seconds, target=90, details=details),
        _memory("backfill-types-memory", what, ours, []),
    ]


def yesterday(archives: Archives, work: Path) -> list[Row]:
    """Measure a day of 400 series as one Dagster run, each answer of the archive 50 ms late; both checks on each day.

    What the daily schedule's run does after its imports. Beside it, a script that fetches the zips one after another.
    """
    keys, day = archives.many_series, archives.short_days[-1]
    with serving(archives.many(), ROUND_TRIP_SECONDS) as origin:
        ours = [
            apart(_one_day, work / f"yesterday-{n}", origin.env, keys, day).seconds
            for n in range(archives.scale.repetitions)
        ]
        in_turn = apart(pandas_ingest_each, keys, day, origin.url, work / "yesterday-pandas")
    what = f"yesterday for {len(keys)} series as one Dagster run, with 50 ms to each answer"
    return [Row("yesterday", what, "s", ours, target=40, baselines=[Baseline("pandas script", [in_turn])])]


def load(archives: Archives, work: Path) -> list[Row]:
    """Measure a code location of 400 assets, from Dagster's import to the snapshot that its server is asked for.

    In a fresh process, with the project's own imports. The import of Dagster, which no code location can do without and
    which a slow moment of the machine doubles, stands beside it.
    """
    assets = len(archives.many_series)
    universe = work / "universe.yaml"
    universe.parent.mkdir(parents=True, exist_ok=True)
    write_universe(universe, archives.many_series)
    env = os.environ | {"MARKET_DATA_UNIVERSE": str(universe), "MARKET_DATA_DIR": str(work)}
    loads = [_load_seconds(env, assets) for _ in range(archives.scale.repetitions)]
    what = f"load a code location of {assets} klines assets with {2 * assets} checks, after Dagster's import"
    beside = [
        Baseline("import dagster, before it", [dagster for dagster, _ in loads]),
        Baseline("both together", [dagster + ours for dagster, ours in loads]),
    ]
    return [Row("load", what, "s", [ours for _, ours in loads], target=1.3, baselines=beside)]


_LOAD = """
import time, warnings
began = time.perf_counter()
import dagster
imported = time.perf_counter()
warnings.simplefilter("ignore")
from dagster._core.remote_representation.external_data import RepositorySnap
from market_data_pipeline.defs.definitions import defs
snapshot = RepositorySnap.from_def(defs().get_repository_def())
loaded = time.perf_counter()
print(imported - began, loaded - imported, len(snapshot.asset_nodes))
"""


def _load_seconds(env: Mapping[str, str], assets: int) -> tuple[float, float]:
    """Seconds to import Dagster, and then to load the code location."""
    done = subprocess.run([sys.executable, "-c", _LOAD], env=env, check=True, capture_output=True, text=True)
    dagster, ours, nodes = done.stdout.split()
    if int(nodes) < assets:
        raise RuntimeError(f"The code location has {nodes} assets, not {assets}.")
    return float(dagster), float(ours)


def write_universe(path: Path, keys: Sequence[SeriesKey], first: date = KLINES_FROM) -> None:
    """Write a ``universe.yaml`` with every data type and interval of the series for every symbol, from a day on."""
    entries = []
    for market in dict.fromkeys(key.market for key in keys):
        of_market = [key for key in keys if key.market is market]
        entry: dict[str, Any] = {"market": str(market), "symbols": list(dict.fromkeys(key.symbol for key in of_market))}
        for data_type in dict.fromkeys(key.data_type for key in of_market):
            intervals = dict.fromkeys(key.interval for key in of_market if key.data_type is data_type and key.interval)
            entry[str(data_type)] = {**({"intervals": list(intervals)} if intervals else {}), "from": first}
        entries.append(entry)
    path.write_text(yaml.safe_dump({"collect": entries}))


def _command(root: Path, env: Mapping[str, str], key: SeriesKey, days: Sequence[date]) -> float:
    """Seconds that ``market-data backfill`` takes from its start to its end."""
    root.mkdir(parents=True)
    write_universe(root / "universe.yaml", [key], days[0])
    own = {"MARKET_DATA_DIR": str(root), "MARKET_DATA_UNIVERSE": str(root / "universe.yaml")}
    command = [sys.executable, "-m", "market_data_pipeline.cli", "backfill", "--yes", "--symbol", key.symbol]
    command += ["--interval", str(key.interval), "--from", str(days[0]), "--through", str(days[-1])]
    whole = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"} | {**env, **own}
    began = time.perf_counter()
    done = subprocess.run(command, env=whole, cwd=root, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode or len(day_files(Layout(root), key)) != len(days):
        raise RuntimeError(f"market-data backfill did not bring all days: {done.stderr[-500:]}")
    return seconds


def _one_day(root: Path, env: Mapping[str, str], keys: Sequence[SeriesKey], day: date) -> Cost:
    from market_data_pipeline.defs.definitions import build_definitions, ignore_notices
    from market_data_pipeline.defs.in_process import days_on_record, materialize_days
    from market_data_pipeline.defs.platform.home import open_instance
    from market_data_pipeline.universe import load_universe

    os.environ.pop("DAGSTER_HOME", None)
    ignore_notices()
    layout, universe = Layout(root), root / "universe.yaml"
    root.mkdir(parents=True)
    write_universe(universe, keys)
    definitions = build_definitions(settings_of(env, root, universe), load_universe(universe))
    with open_instance(layout) as instance:
        with measured() as cost:
            run = materialize_days(instance, definitions, keys, day, day, log_level="CRITICAL")
        if not run.success or any(days_on_record(instance, key) != {day} for key in keys):
            raise RuntimeError("Not every series has its day on record.")
    return cost


def bring_all(
    root: Path,
    env: Mapping[str, str],
    wanted: Mapping[SeriesKey, Sequence[date]],
    *,
    stock: bool = False,
    postgres: str = "",
) -> Cost:
    """Bring days through Dagster, with a new DAGSTER_HOME.

    Args:
        root: The lake's root, which is new.
        env: Where the archive is.
        wanted: Days of each series.
        stock: Whether Dagster's own event log is used in place of ours.
        postgres: URL of an empty database for Dagster's records and all locks. Empty means files.

    Raises:
        RuntimeError: a day failed or is not on record: what was measured would not be what it says.
    """
    import dagster as dg

    # Dagster imports its storages, SQLAlchemy and Alembic with them, when it opens the first instance.
    import dagster._core.storage.runs
    import dagster._core.storage.schedules

    import market_data_pipeline.defs.event_log
    from market_data_pipeline.defs.in_process import days_on_record, run_ingest
    from market_data_pipeline.defs.platform.home import CONFIG, open_instance

    os.environ.pop("DAGSTER_HOME", None)
    os.environ.update({"MARKET_DATA_POSTGRES": postgres, "MARKET_DATA_DIR": str(root)})
    if postgres:
        import market_data_pipeline.defs.platform.team_storage  # noqa: F401
    warnings.simplefilter("ignore", dg.PreviewWarning)
    warnings.simplefilter("ignore", dg.BetaWarning)
    layout, universe = Layout(root), root / "universe.yaml"
    layout.dagster_home.mkdir(parents=True)
    write_universe(universe, list(wanted), min(day for days in wanted.values() for day in days))
    if stock:
        # Without the first line of ours it counts as the user's own, and is left as it is.
        config = yaml.safe_load(CONFIG.read_text())
        del config["event_log_storage"]
        (layout.dagster_home / "dagster.yaml").write_text(yaml.safe_dump(config))
    with measured() as cost, cost.watching_helpers():
        report = run_ingest(settings_of(env, root, universe), wanted)
    if report.failures:
        raise RuntimeError(f"{len(report.failures)} days failed: {report.failures[0].reason}")
    with open_instance(layout) as instance:
        lost = [key for key, days in wanted.items() if days_on_record(instance, key) != set(days)]
    if lost:
        raise RuntimeError(f"Not all days of {len(lost)} series are on record, e.g. of {lost[0]}.")
    return cost
