"""Rows about Dagster: a whole backfill on record, and how long a code location takes to load."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import yaml

from benchmarks.data import Archives, serving, settings_of, symbol_names
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


def load(archives: Archives, work: Path) -> list[Row]:
    """A code location of 400 assets in a fresh process: from the start of Python to the snapshot that Dagster asks for.

    Compared with the start of Python and the import of Dagster alone, which no code location can do without.
    """
    assets = archives.scale.assets
    universe = work / "universe.yaml"
    universe.parent.mkdir(parents=True, exist_ok=True)
    intervals = ("1m", "5m", "1h", "1d")
    _write_universe(universe, symbol_names(assets // len(intervals)), intervals)
    env = os.environ | {"MARKET_DATA_UNIVERSE": str(universe), "MARKET_DATA_DIR": str(work)}

    def seconds(code: str) -> list[float]:
        return [_process_seconds(code, env) for _ in range(archives.scale.repetitions)]

    ours = seconds(_LOAD + _SNAPSHOT.format(assets=assets))
    beside = [
        Baseline("without the snapshot", seconds(_LOAD)),
        Baseline("import dagster alone", seconds("import dagster")),
    ]
    what = f"load a code location of {assets} klines assets with {2 * assets} checks, in a fresh process, all imports"
    return [Row("load", what, "s", ours, target=2.0, baselines=beside)]


_LOAD = """
import warnings
warnings.simplefilter("ignore")
from market_data_pipeline.definitions import defs
repository = defs().get_repository_def()
"""

_SNAPSHOT = """
from dagster._core.remote_representation.external_data import RepositorySnap
snapshot = RepositorySnap.from_def(repository)
assert len(snapshot.asset_nodes) >= {assets}, len(snapshot.asset_nodes)
"""


def _process_seconds(code: str, env: Mapping[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    return time.perf_counter() - began


def _write_universe(path: Path, symbols: Sequence[str], intervals: Sequence[str]) -> None:
    entry = {
        "market": "spot",
        "symbols": list(symbols),
        "klines": {"intervals": list(intervals), "from": date(2020, 1, 1)},
    }
    path.write_text(yaml.safe_dump({"collect": [entry]}))


def _bring(root: Path, env: Mapping[str, str], key: SeriesKey, days: list[date], *, stock: bool) -> Cost:
    import dagster as dg

    from market_data_pipeline.defs.home import CONFIG, days_on_record, open_instance
    from market_data_pipeline.sync import bring

    os.environ.pop("DAGSTER_HOME", None)
    warnings.simplefilter("ignore", dg.PreviewWarning)
    warnings.simplefilter("ignore", dg.BetaWarning)
    layout, universe = Layout(root), root / "universe.yaml"
    layout.dagster_home.mkdir(parents=True)
    _write_universe(universe, [key.symbol], [str(key.interval)])
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
