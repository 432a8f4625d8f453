"""Compose everything that Dagster loads, from settings and the universe.

Every process of Dagster imports this module, so ``defs`` imports only definitions at the top. Code that runs and ticks
execute does not belong here: it is in ``run.py`` of each topic, imported when called.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline.lake.arrow_memory import reuse_memory

reuse_memory()

# isort: split
from market_data_pipeline.defs.coverage.definitions import build_coverage_asset
from market_data_pipeline.defs.iceberg.definitions import build_iceberg_asset, can_publish
from market_data_pipeline.defs.ingestion.definitions import (
    INGESTION,
    IO_MANAGER,
    build_series_asset,
    build_trade_profile_asset,
    ingestion_resource,
)
from market_data_pipeline.defs.jobs import build_jobs
from market_data_pipeline.defs.live.definitions import build_live_assets, build_live_checks, build_live_sensor
from market_data_pipeline.defs.partitions import partitions_of
from market_data_pipeline.defs.platform.heartbeat import HEARTBEAT, heartbeat_resource
from market_data_pipeline.defs.platform.io_manager import DuckDBParquetIOManager
from market_data_pipeline.defs.schedules import build_schedules
from market_data_pipeline.defs.sensors import build_sensors
from market_data_pipeline.defs.universe.definitions import build_exchange_info_asset
from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.model.datasets import MARKETS
from market_data_pipeline.model.lineage import comparable
from market_data_pipeline.model.series import DataType
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.universe import Universe, load_universe

if TYPE_CHECKING:
    from market_data_pipeline.model.outcomes import DayResult, OnResult


def build_definitions(
    settings: Settings,
    universe: Universe,
    *,
    ingest_days: Callable[..., Iterator[DayResult]] | None = None,
    on_result: OnResult | None = None,
) -> dg.Definitions:
    """Return everything that Dagster shows and runs. No network is needed.

    Args:
        settings: The location of the lake and the limits for sources.
        universe: The series to collect.
        ingest_days: A replacement for ``ingest.run.ingest``, for tests.
        on_result: Called after each day, if runs execute in this process.
    """
    keys = universe.series()
    partitions = {key: partitions_of(universe, key) for key in keys}
    reconciled = set(comparable(keys))
    series = [build_series_asset(key, partitions[key], settings, reconciled=key in reconciled) for key in keys]
    profiles = [
        build_trade_profile_asset(key, partitions[key], settings)
        for key in keys
        if key.data_type is DataType.AGG_TRADES
    ]
    markets = list(dict.fromkeys(key.market for key in keys))
    coverage = [build_coverage_asset(market, settings, universe) for market in markets]
    snapshots = [build_exchange_info_asset(market, settings) for market in markets if MARKETS[market].has_rest]
    tables = [build_iceberg_asset(market, settings) for market in markets if can_publish(settings)]
    jobs = build_jobs(keys, settings, [key for key in keys if universe.retained_from(key) is not None])
    streamed = [market for market in markets if settings.stream_url(market)]
    live_sensors = [build_live_sensor(streamed, settings)] if streamed else []
    return dg.Definitions(
        assets=[*series, *profiles, *coverage, *snapshots, *tables, *build_live_assets(streamed)],
        asset_checks=build_live_checks(streamed, settings),
        jobs=list(jobs.values()),
        schedules=build_schedules(jobs, settings, universe),
        sensors=[*build_sensors(jobs, settings, universe), *live_sensors],
        resources={
            IO_MANAGER: DuckDBParquetIOManager(root=str(settings.root), lock_wait_seconds=settings.lock_wait_seconds),
            INGESTION: ingestion_resource(settings, universe, ingest_days, on_result),
            HEARTBEAT: heartbeat_resource(),
        },
        # Starting a run's process takes seconds. The work inside an asset uses threads.
        executor=dg.in_process_executor,
    )


def ignore_notices() -> None:
    """Hide Dagster's notices that a part of it may still change.

    They concern the project, which pins its versions, and print five lines for each asset in each process.
    """
    for category in (dg.PreviewWarning, dg.BetaWarning):
        warnings.simplefilter("ignore", category)


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of this environment for Dagster to load.

    Raises:
        MarketDataError: A setting or the universe is invalid. The text names the place and the allowed values.
    """
    # Hundreds of assets are a million objects that live as long as the process. Without garbage collection, 400 assets
    # load 25 % faster.
    gc.disable()
    ignore_notices()
    try:
        settings = load_settings()
        return build_definitions(settings, load_universe(settings.universe))
    except MarketDataError as error:
        # Dagster shows the traceback of a code location that fails to load. Only the text helps users.
        raise error.with_traceback(None) from None
    finally:
        gc.freeze()
        gc.enable()
