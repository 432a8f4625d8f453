"""Evaluations of the check ``reconciliation``, and the run of its job.

A run of klines compares nothing. It repeats stored results, because a new materialization blanks the older evaluation.
Days without a result pass as not compared: Dagster shows a day without an evaluation as failed if another series of the
run fails. A failed day stays failed until it is compared again. Comparing belongs to ``reconciliation.plan``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date
from typing import Any

import dagster as dg

from market_data_pipeline.defs.events import every_target, state_in_words
from market_data_pipeline.defs.keys import RECONCILIATION, asset_key_of
from market_data_pipeline.defs.partitions import partition_of
from market_data_pipeline.errors import MarketDataError
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.day import HELD
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.reconciliation import DayReconciled, Difference, OnCompared
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.reconciliation.plan import Comparison, compare, plan
from market_data_pipeline.reconciliation.record import read_reconciled
from market_data_pipeline.settings import Settings
from market_data_pipeline.sql.publish import publish_views

_SHOWN_DIFFERENCES = 15
"""Maximum number of values in a day's metadata table. Every event stores its own copy."""

NOT_COMPARED = f"Not compared yet. The job `{RECONCILIATION}` compares the day when both sides are stored."

CHANGED_SINCE = f"One side has changed since. The job `{RECONCILIATION}` compares the day again."


# --- evaluations ---------------------------------------------------------------------------------------------------


def evaluations(
    instance: dg.DagsterInstance, key: SeriesKey, found: Sequence[DayReconciled], stale: Collection[date] = ()
) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield results as evaluations of the check, each for its day and the newest materialization of that day.

    Args:
        instance: Dagster's records.
        key: The klines.
        found: The results, by day.
        stale: Days with a side that has changed since the comparison.
    """
    asset_key = asset_key_of(key)
    targets = every_target(instance, asset_key, [partition_of(one.day) for one in found])
    for one in found:
        yield dg.AssetCheckEvaluation(
            asset_key=asset_key,
            check_name=RECONCILIATION,
            passed=one.unexplained == 0,
            severity=dg.AssetCheckSeverity.ERROR,
            description=f"{_describe(one)} {CHANGED_SINCE}" if one.day in stale else _describe(one),
            metadata=_metadata(one),
            partition=partition_of(one.day),
            target_materialization_data=targets.get(partition_of(one.day)),
        )


def _describe(found: DayReconciled) -> str:
    """Return a day's result in one or two sentences."""
    if not found.differing:
        return f"All {found.bars:,} candles equal the candles rebuilt from {found.source}."
    reasons = sorted({one.reason for one in found.differences if one.reason})
    known = f"{found.explained:,} differ for a known reason ({', '.join(reasons)})" if found.explained else ""
    if not found.unexplained:
        return f"Of {found.bars:,} candles {known}. All others equal the candles rebuilt from {found.source}."
    return (
        f"{found.unexplained:,} of {found.bars:,} candles differ from the candles rebuilt from {found.source} for no "
        f"known reason.{f' A further {known}.' if known else ''}"
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
        facts["differences"] = dg.MetadataValue.table([_record(one) for one in ordered[:_SHOWN_DIFFERENCES]])
        if len(ordered) > _SHOWN_DIFFERENCES:
            facts["more differences"] = f"{_SHOWN_DIFFERENCES} of {len(ordered)} values shown"
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
    reported: Iterable[Any],
) -> Iterator[Any]:
    """Yield the events of a run of klines, then the stored reconciliation of its good days.

    Args:
        context: The context of the klines' asset.
        layout: The location of the stored results.
        results: The results of the run's days.
        reported: The events that :func:`~market_data_pipeline.defs.events.day_events` makes of them.

    Raises:
        dagster.Failure: ``reported`` raised it. All events come first.
    """
    good = [result for result in results if isinstance(result, DayOutcome)]
    try:
        yield from reported
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
    try:
        current = set(plan(layout, key, min(days), max(days)).done)
    except MarketDataError:  # a ledger that cannot be read, which the job reports
        current = set()
    record = read_reconciled(layout.reconciled(key), [one.day for one in good if one.row.outcome == HELD])
    known = {day: one for day, one in record.items() if day in current or one.unexplained}
    stale = known.keys() - current
    yield from evaluations(instance, key, [known[day] for day in days if day in known], stale)
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


def compare_requested(
    context: dg.OpExecutionContext, keys: Sequence[SeriesKey], settings: Settings, on_compared: OnCompared | None
) -> Iterator[dg.AssetCheckEvaluation]:
    """Compare the days that a run's configuration selects, and report each to Dagster.

    Args:
        context: The context of the job's op.
        keys: The klines that can be compared.
        settings: The location of the lake.
        on_compared: Called after each comparison.

    Raises:
        dagster.Failure: A requested series cannot be compared. Or, after all others, some could not be read.
    """
    selection, by_name, layout = context.op_config, {str(key): key for key in keys}, Layout(settings.root)
    unknown = [name for name in selection["series"] if name not in by_name]
    if unknown:
        raise dg.Failure(
            f"{', '.join(unknown)} cannot be compared. Choose from: {', '.join(by_name)}.", allow_retries=False
        )
    troubles = []
    for name in selection["series"] or by_name:
        try:
            wanted = plan(
                layout, by_name[name], _day(selection["first"]), _day(selection["last"]), again=selection["again"]
            )
            yield from _compared(context, wanted, layout, settings, on_compared)
        except MarketDataError as error:
            troubles.append(str(error))
    publish_views(layout, context.log)
    if troubles:
        # The other series were compared and reported.
        raise dg.Failure("\n".join(troubles), allow_retries=False)


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
        text = "%s: compared %d days with %d candles: %d differ, %d of them for no known reason"
        context.log.info(text, key, len(wanted.days), bars, differing, unexplained)


def _day(text: str) -> date | None:
    return date.fromisoformat(text) if text else None
