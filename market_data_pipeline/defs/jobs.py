"""Jobs: assets and ops that start together, by a schedule or by hand.

Derived assets and coverage have jobs of their own. In a job with their sources, one failed source would skip them.
Times do not belong here; see ``schedules``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.assets.job.asset_job import build_asset_job, get_asset_graph_for_job
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from market_data_pipeline.defs.iceberg.definitions import can_publish
from market_data_pipeline.defs.keys import (
    RECONCILIATION,
    asset_key_of,
    coverage_key_of,
    exchange_info_key_of,
    iceberg_key_of,
)
from market_data_pipeline.defs.maintenance.definitions import build_maintenance_jobs
from market_data_pipeline.defs.reconciliation.definitions import build_reconciliation_job
from market_data_pipeline.model.datasets import MARKETS
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.settings import Settings


class AssetJob(UnresolvedAssetJobDefinition):
    """A job of assets whose partitions begin on different days.

    Dagster refuses that for a job from ``define_asset_job``, and allows it for the job behind the UI's *Materialize*.
    This job is built as the latter is. Its run requests name their days by tags; see ``requests``.
    """

    def resolve(
        self,
        asset_graph: AssetGraph,
        default_executor_def: dg.ExecutorDefinition | None = None,
        resource_defs: Mapping[str, dg.ResourceDefinition] | None = None,
    ) -> dg.JobDefinition:
        """Return the job of the selected assets."""
        chosen = get_asset_graph_for_job(asset_graph, self.selection, allow_different_partitions_defs=True)
        return build_asset_job(
            self.name,
            asset_graph=chosen,
            description=self.description,
            executor_def=default_executor_def,
            resource_defs=resource_defs,
            allow_different_partitions_defs=True,
        )


Job = UnresolvedAssetJobDefinition | dg.JobDefinition
Jobs = dict[str, Job]

INGEST_ALL, KLINES, AGG_TRADES = "ingest_all", "klines", "agg_trades"
TRADE_PROFILES, COVERAGE, EXCHANGE_INFO, ICEBERG = "trade_profiles", "coverage", "exchange_info", "iceberg"


def build_jobs(keys: Sequence[SeriesKey], settings: Settings, retained: Sequence[SeriesKey] = ()) -> Jobs:
    """Return all jobs by name. Leave out jobs that would have nothing to run.

    Args:
        keys: The series of the universe.
        settings: The locations of the lake and of the archive.
        retained: The series with ``keep:``.
    """

    def assets_of(data_type: DataType) -> list[dg.AssetKey]:
        return [asset_key_of(key) for key in keys if key.data_type is data_type]

    profiles = [asset_key_of(profile_of(key)) for key in keys if key.data_type is DataType.AGG_TRADES]
    markets = list(dict.fromkeys(key.market for key in keys))
    coverage = [coverage_key_of(market) for market in markets]
    snapshots = [exchange_info_key_of(market) for market in markets if MARKETS[market].has_rest]
    tables = [iceberg_key_of(market) for market in markets if can_publish(settings)]
    rows = (
        (INGEST_ALL, [asset_key_of(key) for key in keys], "Fetch klines and aggTrades of all series, for a day."),
        (KLINES, assets_of(DataType.KLINES), "Fetch klines of all series, for a day."),
        (AGG_TRADES, assets_of(DataType.AGG_TRADES), "Fetch aggTrades of all symbols, for a day."),
        (TRADE_PROFILES, profiles, "Compute tradeProfile of all symbols, for a day whose aggTrades are stored."),
        (COVERAGE, coverage, "Report the stored days of each market, with the standing checks and a calendar."),
        (EXCHANGE_INFO, snapshots, "Store today's status, trading rules and dates of all symbols."),
        (ICEBERG, tables, "Publish the lake as Iceberg tables, and compare both."),
    )
    reconciliation = build_reconciliation_job(keys, settings)
    return {
        **{
            name: AssetJob(name, dg.AssetSelection.assets(*assets), description=description)
            for name, assets, description in rows
            if assets
        },
        **build_maintenance_jobs(keys, settings, retained),
        **({RECONCILIATION: reconciliation} if reconciliation else {}),
    }
