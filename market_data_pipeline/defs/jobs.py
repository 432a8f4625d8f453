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

from market_data_pipeline.defs.keys import asset_key_of, coverage_key_of
from market_data_pipeline.defs.maintenance.definitions import build_compact_job, build_prune_job, build_verify_job
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
TRADE_PROFILES, COVERAGE, VERIFY, COMPACT, PRUNE = "trade_profiles", "coverage", "verify", "compact", "prune"


def build_jobs(keys: Sequence[SeriesKey], settings: Settings) -> Jobs:
    """Return the jobs of the universe's series by name. Leave out jobs that would have nothing to run."""
    klines = [key for key in keys if key.data_type is DataType.KLINES]
    agg_trades = [key for key in keys if key.data_type is DataType.AGG_TRADES]
    profiles = [profile_of(key) for key in agg_trades]
    partitioned = (
        (INGEST_ALL, keys, "Fetch klines and aggTrades of all series, for a day."),
        (KLINES, klines, "Fetch klines of all series, for a day."),
        (AGG_TRADES, agg_trades, "Fetch aggTrades of all symbols, for a day."),
        (TRADE_PROFILES, profiles, "Compute tradeProfile of all symbols, for a day whose aggTrades are stored."),
    )
    jobs: Jobs = {
        name: _job(name, [asset_key_of(key) for key in chosen], description)
        for name, chosen, description in partitioned
        if chosen
    }
    if keys:
        markets = dict.fromkeys(key.market for key in keys)
        description = "Report the stored days of each market, with the standing checks and a calendar."
        jobs[COVERAGE] = _job(COVERAGE, [coverage_key_of(market) for market in markets], description)
        description = (
            "Find archives that were replaced since they were fetched, and mark their days. Reads the listing only."
        )
        jobs[VERIFY] = build_verify_job(keys, settings, VERIFY, description)
        description = "Drop old runs and superseded results from Dagster's records, and free their space."
        jobs[PRUNE] = build_prune_job(settings, PRUNE, description)
    if klines:
        description = "Write the candles of each finished month into one file, so that queries are faster."
        jobs[COMPACT] = build_compact_job(klines, settings, COMPACT, description)
    return jobs


def _job(name: str, asset_keys: Sequence[dg.AssetKey], description: str) -> UnresolvedAssetJobDefinition:
    return AssetJob(name, dg.AssetSelection.assets(*asset_keys), description=description)
