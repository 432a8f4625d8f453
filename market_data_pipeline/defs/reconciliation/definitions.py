"""The job that evaluates the check ``reconciliation`` of klines.

The check belongs to the klines asset, but a job does the work. The other side often arrives later, and a step of its
own would join every backfill of the asset. Comparing does not belong here; see ``run.py``.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

import dagster as dg

from market_data_pipeline.defs.keys import RECONCILIATION
from market_data_pipeline.defs.platform.heartbeat import HEARTBEAT
from market_data_pipeline.model.lineage import comparable, source_of
from market_data_pipeline.model.reconciliation import OnCompared
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings

_OP = "compare"
_CONFIG = {
    "series": dg.Field([str], default_value=[], description="Series, e.g. binance/um/klines/BTCUSDT/1m. Default: all."),
    "first": dg.Field(
        str, default_value="", description="First UTC day, e.g. 2024-01-31. Default: the first stored day."
    ),
    "last": dg.Field(str, default_value="", description="Last UTC day, included. Default: yesterday."),
    "again": dg.Field(bool, default_value=False, description="Compare unchanged days again."),
}


def build_reconciliation_job(
    keys: Sequence[SeriesKey], settings: Settings, on_compared: OnCompared | None = None
) -> dg.JobDefinition | None:
    """Return the job that compares days and evaluates the klines' check. None if nothing can be compared.

    Args:
        keys: The universe's series.
        settings: The location of the lake.
        on_compared: Called after each comparison, if the job runs in this process.
    """
    chosen = comparable(keys)

    @dg.op(name=_OP, out={}, config_schema=_CONFIG, required_resource_keys={HEARTBEAT})
    def compare_days(context: dg.OpExecutionContext) -> Iterator[dg.AssetCheckEvaluation]:
        """Compare days of klines with the candles rebuilt from their source, one month of a series at a time."""
        from market_data_pipeline.defs.platform.faults import failing_in_words
        from market_data_pipeline.defs.reconciliation.run import compare_requested

        with failing_in_words():
            yield from compare_requested(context, chosen, settings, on_compared)

    if not chosen:
        return None

    @dg.job(
        name=RECONCILIATION,
        description=(
            "Compare klines with candles rebuilt from their source.\n\nThe source of 1s and 1m is aggTrades. The "
            "source of longer intervals is 1m. Compares days that are stored on both sides and new or changed since "
            f"the last comparison. The result is the check `{RECONCILIATION}` of each day of klines. Reads files only, "
            "and sends no request to Binance."
        ),
    )
    def reconciliation() -> None:
        compare_days()

    return reconciliation


def run_config(
    series: Sequence[str] = (), first: date | None = None, last: date | None = None, *, again: bool = False
) -> dict[str, Any]:
    """Return the job's configuration. The defaults compare everything that is due."""
    selection = {
        "series": list(series),
        "first": "" if first is None else first.isoformat(),
        "last": "" if last is None else last.isoformat(),
        "again": again,
    }
    return {"ops": {_OP: {"config": selection}}}


def reconciliation_spec(
    key: SeriesKey, asset_key: dg.AssetKey, partitions_def: dg.PartitionsDefinition[str]
) -> dg.AssetCheckSpec:
    """Return the check of a klines series whose source is collected too. Each day has its own evaluation."""
    return dg.AssetCheckSpec(
        RECONCILIATION,
        asset=asset_key,
        partitions_def=partitions_def,
        description=(
            f"Each candle equals the candle rebuilt from `{source_of(key)}`.\n\nPrices and the number of trades must "
            "be equal, and volumes within 1e-9. Known reasons for a difference are listed with ids and pass. Candles "
            "that differ for no known reason fail. "
            f"The job `{RECONCILIATION}` evaluates a day when both sides are stored."
        ),
    )
