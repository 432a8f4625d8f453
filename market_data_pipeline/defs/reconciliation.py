"""The check ``reconciliation`` of klines, and the job and schedule that evaluate it.

The check stands on the klines asset, and the work is the job's: the other side of the comparison often comes later, and
a step of its own beside the asset would be pulled into every backfill of it. A run of the klines compares nothing. It
repeats what is on record of days that are still as they were compared, since a new materialization blanks what was said
of the old one, and says of all others that they were not: without a word Dagster shows them as failed where another
series of the same run fails.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date
from typing import Any

import dagster as dg

from market_data_pipeline.defs.events import every_target, state_in_words
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.partitions import partition_of
from market_data_pipeline.defs.resources import publish_views
from market_data_pipeline.defs.runs import LIFE
from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import HELD
from market_data_pipeline.lake.reconciled import DayReconciled, Difference
from market_data_pipeline.lineage import comparable, source_of
from market_data_pipeline.outcomes import DayFailure, DayOutcome
from market_data_pipeline.reconciling import Comparison, compare, found_before, plan
from market_data_pipeline.series import SeriesKey
from market_data_pipeline.settings import Settings

RECONCILIATION = "reconciliation"
SCHEDULE = "reconciliation_daily"
MINUTE = 15
"""After the schedule for tradeProfiles, which reads the same days, and before the one for coverage."""

SHOWN_DIFFERENCES = 15
"""Values in a day's table of metadata: an event keeps its own copy."""

NOT_COMPARED = f"Not compared yet: the job `{RECONCILIATION}` does so when both sides are held."

OnCompared = Callable[[SeriesKey, Sequence[DayReconciled]], None]
"""Told of days as soon as they are compared; the command line's progress bar listens here, in the same process."""

_OP = "compare"
_CONFIG = {
    "series": dg.Field([str], default_value=[], description="E.g. binance/um/klines/BTCUSDT/1m; none means all."),
    "first": dg.Field(str, default_value="", description="First UTC day, 2024-01-31; empty: the first that is held."),
    "last": dg.Field(str, default_value="", description="Last UTC day, included; empty: yesterday."),
    "again": dg.Field(bool, default_value=False, description="Compare days again that are as they were compared."),
}


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


# --- evaluations ---------------------------------------------------------------------------------------------------


def evaluations(
    instance: dg.DagsterInstance, key: SeriesKey, found: Sequence[DayReconciled]
) -> Iterator[dg.AssetCheckEvaluation]:
    """What was found, as evaluations of the check, each on its day and its newest materialization."""
    asset_key = asset_key_of(key)
    targets = every_target(instance, asset_key, [partition_of(one.day) for one in found])
    for one in found:
        yield dg.AssetCheckEvaluation(
            asset_key=asset_key,
            check_name=RECONCILIATION,
            passed=one.unexplained == 0,
            severity=dg.AssetCheckSeverity.ERROR,
            description=describe(one),
            metadata=_metadata(one),
            partition=partition_of(one.day),
            target_materialization_data=targets.get(partition_of(one.day)),
        )


def describe(found: DayReconciled) -> str:
    """A day's result in a sentence or two."""
    if not found.differing:
        return f"All {found.bars:,} candles are what {found.source} makes of them."
    reasons = sorted({one.reason for one in found.differences if one.reason})
    known = f"{found.explained:,} differ for a known reason ({', '.join(reasons)})" if found.explained else ""
    if not found.unexplained:
        return f"Of {found.bars:,} candles {known}; all others are what {found.source} makes of them."
    return (
        f"{found.unexplained:,} of {found.bars:,} candles are not what {found.source} makes of them, and nothing "
        f"explains it.{f' A further {known}.' if known else ''}"
    )


def _metadata(found: DayReconciled) -> Mapping[str, Any]:
    facts = {
        "candles": found.bars,
        "differing": found.differing,
        "explained": found.explained,
        "compared at": dg.MetadataValue.timestamp(found.compared_at.replace(tzinfo=UTC)),
        "contract size": found.contract_size,
        "klines sha256": found.klines_sha256,
        "source sha256": found.source_sha256,
    }
    if found.differences:
        ordered = sorted(found.differences, key=lambda one: bool(one.reason))
        facts["differences"] = dg.MetadataValue.table([_record(one) for one in ordered[:SHOWN_DIFFERENCES]])
        if len(ordered) > SHOWN_DIFFERENCES:
            facts["more differences"] = f"{SHOWN_DIFFERENCES} of {len(ordered)} values are shown"
    return {name: value for name, value in facts.items() if value is not None}


def _record(one: Difference) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "open time": f"{one.open_time.isoformat()}Z",
            "column": one.column,
            "klines": "–" if one.klines is None else one.klines,
            "rebuilt": "–" if one.rebuilt is None else one.rebuilt,
            "reason": one.reason or "none known",
            "ids": one.ids,
        }
    )


def with_reconciliation(
    context: dg.AssetExecutionContext,
    layout: Layout,
    results: Iterable[DayOutcome | DayFailure],
    told: Iterable[Any],
) -> Iterator[Any]:
    """The events of a run of klines, followed by what is on record of its good days' reconciliation.

    Args:
        context: Of the klines' asset.
        layout: Where the record lies.
        results: Of the run's days.
        told: What :func:`~market_data_pipeline.defs.events.day_events` makes of them.

    Raises:
        dagster.Failure: as ``told`` does, after all events.
    """
    good = [result for result in results if isinstance(result, DayOutcome)]
    try:
        yield from told
    except dg.Failure:
        yield from _on_record(context.instance, layout, good)
        raise
    yield from _on_record(context.instance, layout, good)
    spec = context.assets_def.get_spec_for_check_key(dg.AssetCheckKey(context.asset_key, RECONCILIATION))
    yield dg.Output(None, output_name=spec.get_python_identifier())


def _on_record(
    instance: dg.DagsterInstance, layout: Layout, good: Sequence[DayOutcome]
) -> Iterator[dg.AssetCheckEvaluation]:
    if not good:
        return
    key, days = good[0].key, [result.day for result in good]
    wanted = plan(layout, key, min(days), max(days))
    known = {one.day: one for one in found_before(layout, wanted)}
    yield from evaluations(instance, key, [known[day] for day in days if day in known])
    targets = every_target(instance, asset_key_of(key), [partition_of(day) for day in days if day not in known])
    for result in good:
        if result.day not in known:
            yield dg.AssetCheckEvaluation(
                asset_key=asset_key_of(key),
                check_name=RECONCILIATION,
                passed=True,
                description=NOT_COMPARED if result.row.outcome == HELD else state_in_words(result.row),
                partition=partition_of(result.day),
                target_materialization_data=targets.get(partition_of(result.day)),
            )


# --- the job -------------------------------------------------------------------------------------------------------


def build_reconciliation_job(
    keys: Sequence[SeriesKey], settings: Settings, on_compared: OnCompared | None = None
) -> dg.JobDefinition | None:
    """The job that compares days and puts what it finds on the klines' check; None where nothing can be compared.

    Args:
        keys: The universe's series.
        settings: Where the lake is.
        on_compared: Told of days as soon as they are compared, where the job runs in this process.
    """
    by_name = {str(key): key for key in comparable(keys)}
    layout = Layout(settings.root)

    @dg.op(name=_OP, out={}, config_schema=_CONFIG, required_resource_keys={LIFE})
    def compare_days(context: dg.OpExecutionContext) -> Iterator[dg.AssetCheckEvaluation]:
        """Compare days of klines with what they are rebuilt from, a month of a series at a time."""
        asked = context.op_config
        unknown = [name for name in asked["series"] if name not in by_name]
        if unknown:
            raise dg.Failure(
                f"{', '.join(unknown)} cannot be compared. There are: {', '.join(by_name)}.", allow_retries=False
            )
        troubles = []
        for name in asked["series"] or by_name:
            wanted = plan(layout, by_name[name], _day(asked["first"]), _day(asked["last"]), again=asked["again"])
            try:
                yield from _compared(context, wanted, layout, settings, on_compared)
            except MarketDataError as error:
                troubles.append(str(error))
        publish_views(layout, context.log)
        if troubles:
            # The other series were compared, and are on record.
            raise dg.Failure("\n".join(troubles), allow_retries=False)

    if not by_name:
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


def _compared(
    context: dg.OpExecutionContext,
    wanted: Comparison,
    layout: Layout,
    settings: Settings,
    on_compared: OnCompared | None,
) -> Iterator[dg.AssetCheckEvaluation]:
    key, bars, differing, unexplained = wanted.key, 0, 0, 0
    if trouble := wanted.trouble():
        context.log.warning(trouble)
    for found in compare(
        layout, key, wanted.days, memory_mb=settings.memory_mb, wait_seconds=settings.lock_wait_seconds
    ):
        yield from evaluations(context.instance, key, found)
        bars += sum(one.bars for one in found)
        differing += sum(one.differing for one in found)
        unexplained += sum(one.unexplained for one in found)
        if on_compared is not None:
            on_compared(key, found)
    if wanted.days:
        told = "%s: %d days, %d candles compared: %d differ, %d of them for no known reason"
        context.log.info(told, key, len(wanted.days), bars, differing, unexplained)


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
        due = [str(key) for key in chosen if plan(layout, key).days]
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


def _day(text: str) -> date | None:
    return date.fromisoformat(text) if text else None
