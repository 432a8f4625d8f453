"""Evaluations of the check ``reconciliation``, and what the job does for them.

A run of the klines compares nothing. It repeats what is on record of days that are still as they were compared, since a
new materialization blanks what was said of the old one, and says of all others that they were not: without a word
Dagster shows them as failed where another series of the same run fails. A day that differed for no known reason stays
failed until it is compared again: that a side has changed does not prove it.
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

SHOWN_DIFFERENCES = 15
"""Values in a day's table of metadata: an event keeps its own copy."""

NOT_COMPARED = f"Not compared yet: the job `{RECONCILIATION}` does so when both sides are held."

CHANGED_SINCE = f"One side has changed since: the job `{RECONCILIATION}` compares the day again."


# --- evaluations ---------------------------------------------------------------------------------------------------


def evaluations(
    instance: dg.DagsterInstance, key: SeriesKey, found: Sequence[DayReconciled], stale: Collection[date] = ()
) -> Iterator[dg.AssetCheckEvaluation]:
    """What was found, as evaluations of the check, each on its day and its newest materialization.

    Args:
        instance: Dagster's records.
        key: The klines.
        found: What was found, by day.
        stale: Days of which a side has changed since.
    """
    asset_key = asset_key_of(key)
    targets = every_target(instance, asset_key, [partition_of(one.day) for one in found])
    for one in found:
        yield dg.AssetCheckEvaluation(
            asset_key=asset_key,
            check_name=RECONCILIATION,
            passed=one.unexplained == 0,
            severity=dg.AssetCheckSeverity.ERROR,
            description=f"{describe(one)} {CHANGED_SINCE}" if one.day in stale else describe(one),
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
    try:
        current = set(plan(layout, key, min(days), max(days)).done)
    except MarketDataError:  # a ledger that cannot be read, which the job tells of
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


def compare_asked(
    context: dg.OpExecutionContext, keys: Sequence[SeriesKey], settings: Settings, on_compared: OnCompared | None
) -> Iterator[dg.AssetCheckEvaluation]:
    """Compare the days that a run's configuration asks for, and tell Dagster of each.

    Args:
        context: Of the job's op.
        keys: The klines that can be compared.
        settings: Where the lake is.
        on_compared: Told of days as soon as they are compared.

    Raises:
        dagster.Failure: a series that is asked for cannot be compared; or, after all others, some could not be read.
    """
    asked, by_name, layout = context.op_config, {str(key): key for key in keys}, Layout(settings.root)
    unknown = [name for name in asked["series"] if name not in by_name]
    if unknown:
        raise dg.Failure(
            f"{', '.join(unknown)} cannot be compared. There are: {', '.join(by_name)}.", allow_retries=False
        )
    troubles = []
    for name in asked["series"] or by_name:
        try:
            wanted = plan(layout, by_name[name], _day(asked["first"]), _day(asked["last"]), again=asked["again"])
            yield from _compared(context, wanted, layout, settings, on_compared)
        except MarketDataError as error:
            troubles.append(str(error))
    publish_views(layout, context.log)
    if troubles:
        # The other series were compared, and are on record.
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
        told = "%s: %d days, %d candles compared: %d differ, %d of them for no known reason"
        context.log.info(told, key, len(wanted.days), bars, differing, unexplained)


def _day(text: str) -> date | None:
    return date.fromisoformat(text) if text else None
