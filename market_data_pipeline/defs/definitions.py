"""What Dagster loads: composition only. Everything in it comes from settings and the universe.

Every process of Dagster's loads it, so ``defs`` imports at the top only what says what there is; what runs and ticks do
lies in ``run.py`` of each topic, and is imported inside the functions that they call.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline.lake.arrow_memory import reuse_memory

reuse_memory()

# isort: split
from market_data_pipeline.defs.coverage.definitions import build_coverage_asset
from market_data_pipeline.defs.ingestion.definitions import (
    INGESTION,
    IO_MANAGER,
    build_series_asset,
    build_trade_profile_asset,
)
from market_data_pipeline.defs.ingestion.resources import Ingest, ingestion_resource
from market_data_pipeline.defs.jobs import build_jobs
from market_data_pipeline.defs.partitions import daily_partitions
from market_data_pipeline.defs.platform.heartbeat import LIFE, life_resource
from market_data_pipeline.defs.platform.io_manager import DuckDBParquetIOManager
from market_data_pipeline.defs.reconciliation.definitions import build_reconciliation_job, build_reconciliation_schedule
from market_data_pipeline.defs.schedules import build_schedules
from market_data_pipeline.defs.sensors import build_sensors
from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.model.lineage import comparable
from market_data_pipeline.model.series import DataType
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.universe import Universe, load_universe

if TYPE_CHECKING:
    from market_data_pipeline.ingest import Sources
    from market_data_pipeline.model.outcomes import OnResult


def build_definitions(
    settings: Settings,
    universe: Universe,
    *,
    open_sources: Callable[[Settings], Sources] | None = None,
    ingest_days: Ingest | None = None,
    on_result: OnResult | None = None,
) -> dg.Definitions:
    """Everything that Dagster shows and runs, made anew from settings and a universe; no network is needed.

    Args:
        settings: Where the lake is and how sources are asked.
        universe: The series to collect.
        open_sources: Opens what a run asks, in place of ``ingest.Sources``.
        ingest_days: Stands in for ``ingest.ingest``, in tests.
        on_result: Told of each day as soon as it is done, where runs are executed in this process.
    """
    keys = universe.series()
    partitions_def = daily_partitions(universe.first_day())
    reconciled = set(comparable(keys))
    series = {key: build_series_asset(key, partitions_def, settings, reconciled=key in reconciled) for key in keys}
    profiles = [
        build_trade_profile_asset(key, partitions_def, settings) for key in keys if key.data_type is DataType.AGG_TRADES
    ]
    coverage = [build_coverage_asset(market, settings, universe) for market in dict.fromkeys(k.market for k in keys)]
    jobs = build_jobs(keys, settings)
    schedules = build_schedules(jobs, settings, universe)
    reconciliation = build_reconciliation_job(keys, settings)
    if reconciliation is not None:
        schedules.append(build_reconciliation_schedule(reconciliation, keys, settings))
    return dg.Definitions(
        assets=[*series.values(), *profiles, *coverage],
        jobs=[*jobs.values(), *filter(None, [reconciliation])],
        schedules=schedules,
        sensors=build_sensors(jobs, settings, universe),
        resources={
            IO_MANAGER: DuckDBParquetIOManager(root=str(settings.root), lock_wait_seconds=settings.lock_wait_seconds),
            INGESTION: ingestion_resource(
                settings, universe, open_sources=open_sources, ingest_days=ingest_days, on_result=on_result
            ),
            LIFE: life_resource(),
        },
        # A run's process costs seconds as it is; the work inside an asset is threads.
        executor=dg.in_process_executor,
    )


def ignore_notices() -> None:
    """Keep Dagster's notices that a part of it may still change from who reads a screen or a log.

    That is the project's concern (its versions are pinned), and it is five lines for each asset in each process.
    """
    for category in (dg.PreviewWarning, dg.BetaWarning):
        warnings.simplefilter("ignore", category)


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions of this environment, loaded by Dagster.

    Raises:
        MarketDataError: a setting or the universe is wrong; the text says where and what is allowed.
    """
    # Hundreds of assets are a million objects that live as long as the process: without looking for garbage among them,
    # now and later, 400 assets load in three quarters of the time.
    gc.disable()
    ignore_notices()
    try:
        settings = load_settings()
        return build_definitions(settings, load_universe(settings.universe))
    except MarketDataError as error:
        # Dagster shows the traceback of a code location that does not load: the text is what helps.
        raise error.with_traceback(None) from None
    finally:
        gc.freeze()
        gc.enable()
