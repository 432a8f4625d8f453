"""The job that evaluates the check ``reconciliation`` of klines, and its schedule.

The check stands on the klines asset, and the work is the job's: the other side of the comparison often comes later, and
a step of its own beside the asset would be pulled into every backfill of it.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

import dagster as dg

from market_data_pipeline.defs.keys import RECONCILIATION
from market_data_pipeline.defs.platform.heartbeat import LIFE
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.lineage import comparable, source_of
from market_data_pipeline.model.reconciliation import OnCompared
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings

SCHEDULE = "reconciliation_daily"
MINUTE = 15
"""After the schedule for tradeProfiles, which reads the same days, and before the one for coverage."""

_OP = "compare"
_CONFIG = {
    "series": dg.Field([str], default_value=[], description="E.g. binance/um/klines/BTCUSDT/1m; none means all."),
    "first": dg.Field(str, default_value="", description="First UTC day, 2024-01-31; empty: the first that is held."),
    "last": dg.Field(str, default_value="", description="Last UTC day, included; empty: yesterday."),
    "again": dg.Field(bool, default_value=False, description="Compare days again that are as they were compared."),
}


def build_reconciliation_job(
    keys: Sequence[SeriesKey], settings: Settings, on_compared: OnCompared | None = None
) -> dg.JobDefinition | None:
    """The job that compares days and puts what it finds on the klines' check; None where nothing can be compared.

    Args:
        keys: The universe's series.
        settings: Where the lake is.
        on_compared: Told of days as soon as they are compared, where the job runs in this process.
    """
    chosen = comparable(keys)

    @dg.op(name=_OP, out={}, config_schema=_CONFIG, required_resource_keys={LIFE})
    def compare_days(context: dg.OpExecutionContext) -> Iterator[dg.AssetCheckEvaluation]:
        """Compare days of klines with what they are rebuilt from, a month of a series at a time."""
        from market_data_pipeline.defs.platform.faults import failing_in_words
        from market_data_pipeline.defs.reconciliation.run import compare_asked

        with failing_in_words():
            yield from compare_asked(context, chosen, settings, on_compared)

    if not chosen:
        return None

    @dg.job(
        name=RECONCILIATION,
        description=(
            "Klines against what they can be rebuilt from: 1s and 1m against aggTrades, longer intervals against 1m. "
            "Compares the days of which both sides are held and that are not as they were last compared; its result "
            f"is the check `{RECONCILIATION}` of the klines, day by day. Reads files only; asks nothing of Binance."
        ),
    )
    def reconciliation() -> None:
        compare_days()

    return reconciliation


def build_reconciliation_schedule(
    job: dg.JobDefinition, keys: Sequence[SeriesKey], settings: Settings
) -> dg.ScheduleDefinition:
    """The schedule of the job, after the daily ones; on from the start, since nothing is downloaded."""
    layout, chosen = Layout(settings.root), comparable(keys)

    @dg.schedule(
        name=SCHEDULE,
        job=job,
        cron_schedule=f"{MINUTE} {(settings.daily_hour + 1) % 24} * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Days of klines and of their source that are new, or have changed since they were compared.",
    )
    def evaluate() -> dg.RunRequest | dg.SkipReason:
        from market_data_pipeline.errors import MarketDataError
        from market_data_pipeline.reconciliation.plan import plan

        def is_due(key: SeriesKey) -> bool:
            try:
                return bool(plan(layout, key).days)
            except MarketDataError:  # the run says what is wrong, after it has compared the others
                return True

        due = [str(key) for key in chosen if is_due(key)]
        if not due:
            return dg.SkipReason("All days that are held on both sides are as they were last compared.")
        return dg.RunRequest(run_config=run_config(series=due))

    return evaluate


def run_config(
    series: Sequence[str] = (), first: date | None = None, last: date | None = None, *, again: bool = False
) -> dict[str, Any]:
    """The job's configuration; its defaults compare everything that is due."""
    asked = {
        "series": list(series),
        "first": "" if first is None else first.isoformat(),
        "last": "" if last is None else last.isoformat(),
        "again": again,
    }
    return {"ops": {_OP: {"config": asked}}}


def reconciliation_spec(
    key: SeriesKey, asset_key: dg.AssetKey, partitions_def: dg.PartitionsDefinition[str]
) -> dg.AssetCheckSpec:
    """The check of a klines series whose source is collected, too; evaluated for each day."""
    return dg.AssetCheckSpec(
        RECONCILIATION,
        asset=asset_key,
        partitions_def=partitions_def,
        description=(
            f"Each candle is what `{source_of(key)}` makes of it: prices and the number of trades exactly, volumes "
            "within 1e-9. Where both may differ without a fault the reason is given, with ids; candles that differ "
            f"for no known reason fail. Evaluated by the job `{RECONCILIATION}` when both sides are held."
        ),
    )
