"""Rows about Dagster: a whole backfill on record, and how long a code location takes to load."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import yaml

from benchmarks.baselines import pandas_ingest_each
from benchmarks.data import ROUND_TRIP_SECONDS, Archives, serving, settings_of
from benchmarks.measure import Cost, apart, measured
from benchmarks.report import Baseline, Row
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.series import SeriesKey


def backfill(archives: Archives, work: Path) -> list[Row]:
    """A whole Dagster backfill of 365 days of 1m klines: one run, SQLite, a new DAGSTER_HOME, both checks on each day.

    What ``market-data backfill`` does after its imports: universe, definitions, records, run, catalog. The same days
    come with Dagster's stock event log for comparison.
    """
    key, days = archives.kline_series, archives.kline_days
    with serving(archives.daily) as origin:

        def runs(name: str, times: int, *, stock: bool) -> list[float]:
            costs = [apart(_bring, work / f"{name}-{n}", origin.env, key, days, stock=stock) for n in range(times)]
            return [cost.seconds / len(days) * 1000 for cost in costs]

        ours = runs("backfill", archives.scale.repetitions, stock=False)
        stock = runs("backfill-stock", 1, stock=True)
    what = f"Dagster backfill of {len(days)} days of 1m klines in one run, with both checks, for each day"
    return [Row("backfill", what, "ms", ours, target=60, baselines=[Baseline("Dagster's own event log", stock)])]


def yesterday(archives: Archives, work: Path) -> list[Row]:
    """A day of 400 series as one Dagster run, each answer of the archive 50 ms late; both checks on each day.

    What the daily schedule's run does after its imports. Beside it, a script that fetches the zips one after another.
    """
    keys, day = archives.many_series, archives.query_days[-1]
    with serving(archives.many, ROUND_TRIP_SECONDS) as origin:
        ours = [
            apart(_one_day, work / f"yesterday-{n}", origin.env, keys, day).seconds
            for n in range(archives.scale.repetitions)
        ]
        in_turn = apart(pandas_ingest_each, keys, day, origin.url, work / "yesterday-pandas")
    what = f"yesterday for {len(keys)} series as one Dagster run, with 50 ms to each answer"
    return [Row("yesterday", what, "s", ours, target=40, baselines=[Baseline("pandas script", [in_turn])])]


def load(archives: Archives, work: Path) -> list[Row]:
    """A code location of 400 assets, from Dagster's import to the snapshot that its server is asked for.

    In a fresh process, with the project's own imports. The import of Dagster, which no code location can do without and
    which a slow moment of the machine doubles, stands beside it.
    """
    assets = len(archives.many_series)
    universe = work / "universe.yaml"
    universe.parent.mkdir(parents=True, exist_ok=True)
    _write_universe(universe, archives.many_series)
    env = os.environ | {"MARKET_DATA_UNIVERSE": str(universe), "MARKET_DATA_DIR": str(work)}
    loads = [_load_seconds(env, assets) for _ in range(archives.scale.repetitions)]
    what = f"load a code location of {assets} klines assets with {2 * assets} checks, after Dagster's import"
    beside = [
        Baseline("import dagster, before it", [dagster for dagster, _ in loads]),
        Baseline("both together", [dagster + ours for dagster, ours in loads]),
    ]
    return [Row("load", what, "s", [ours for _, ours in loads], target=2.0, baselines=beside)]


_LOAD = """
import time, warnings
began = time.perf_counter()
import dagster
imported = time.perf_counter()
warnings.simplefilter("ignore")
from dagster._core.remote_representation.external_data import RepositorySnap
from market_data_pipeline.definitions import defs
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


def _write_universe(path: Path, keys: Sequence[SeriesKey]) -> None:
    klines = {"intervals": list(dict.fromkeys(key.interval for key in keys)), "from": date(2020, 1, 1)}
    symbols = list(dict.fromkeys(key.symbol for key in keys))
    path.write_text(yaml.safe_dump({"collect": [{"market": "spot", "symbols": symbols, "klines": klines}]}))


def _one_day(root: Path, env: Mapping[str, str], keys: Sequence[SeriesKey], day: date) -> Cost:
    from market_data_pipeline.definitions import build_definitions, ignore_notices
    from market_data_pipeline.defs.home import days_on_record, materialize_days, open_instance
    from market_data_pipeline.universe import load_universe

    os.environ.pop("DAGSTER_HOME", None)
    ignore_notices()
    layout, universe = Layout(root), root / "universe.yaml"
    root.mkdir(parents=True)
    _write_universe(universe, keys)
    definitions = build_definitions(settings_of(env, root, universe), load_universe(universe))
    with open_instance(layout) as instance:
        with measured() as cost:
            run = materialize_days(instance, definitions, keys, day, day, log_level="CRITICAL")
        if not run.success or any(days_on_record(instance, key) != {day} for key in keys):
            raise RuntimeError("Not every series has its day on record.")
    return cost


def _bring(root: Path, env: Mapping[str, str], key: SeriesKey, days: list[date], *, stock: bool) -> Cost:
    import dagster as dg

    # Dagster imports its storages, SQLAlchemy and Alembic with them, when it opens the first instance.
    import dagster._core.storage.runs
    import dagster._core.storage.schedules

    import market_data_pipeline.defs.event_log  # noqa: F401
    from market_data_pipeline.defs.home import CONFIG, days_on_record, open_instance
    from market_data_pipeline.sync import bring

    os.environ.pop("DAGSTER_HOME", None)
    warnings.simplefilter("ignore", dg.PreviewWarning)
    warnings.simplefilter("ignore", dg.BetaWarning)
    layout, universe = Layout(root), root / "universe.yaml"
    layout.dagster_home.mkdir(parents=True)
    _write_universe(universe, [key])
    if stock:
        # Without the first line of ours it counts as the user's own, and is left as it is.
        config = yaml.safe_load(CONFIG.read_text())
        del config["event_log_storage"]
        (layout.dagster_home / "dagster.yaml").write_text(yaml.safe_dump(config))
    with measured() as cost:
        report = bring(settings_of(env, root, universe), {key: days})
    if report.failures:
        raise RuntimeError(f"{len(report.failures)} days failed: {report.failures[0].reason}")
    with open_instance(layout) as instance:
        recorded = days_on_record(instance, key)
    if recorded != set(days):
        raise RuntimeError(f"{len(recorded)} of {len(days)} days are on record.")
    return cost
