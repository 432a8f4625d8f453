"""Bring days of series through Dagster, in this process and on record: what the command line and notebooks call.

What belongs here: which days need a run at all, and running them. What does not: how a day is brought (``ingest``) or
recorded (``defs``), and what is shown meanwhile (``cli``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import dagster as dg
from dagster._core.utils import make_new_run_id

from market_data_pipeline import clock
from market_data_pipeline.clock import contiguous_ranges, days_between
from market_data_pipeline.defs.coverage.definitions import coverage_key
from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.partitions import RANGE_END, RANGE_START, day_of, partition_of
from market_data_pipeline.defs.platform.heartbeat import LIFE, life_resource, says_it_lives
from market_data_pipeline.defs.platform.home import open_instance, recording
from market_data_pipeline.errors import SeriesBusyError, UsageError
from market_data_pipeline.ingest import Action, DayFailure, DayOutcome
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import CHECKS_DO_NOT_PASS, Ledger, refresh_ledger
from market_data_pipeline.model.day import EMPTY, HELD, DayRecord, Failed, after
from market_data_pipeline.model.findings import Basis, Severity
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline.model.needs import is_still_unlisted, needs, profile_is_due, reach_of
from market_data_pipeline.model.outcomes import DayResult, OnResult
from market_data_pipeline.model.series import DataType, Listing, Market, SeriesKey
from market_data_pipeline.model.states import is_complete
from market_data_pipeline.settings import Settings
from market_data_pipeline.sql.publish import publish_views
from market_data_pipeline.universe import Universe, load_universe


@dataclass
class Report:
    """What came of it.

    Attributes:
        outcomes: Days that are stored, or need not be.
        failures: Days that are not.
        incomplete: Ledger rows of requested days that are stored and not complete (see ``model.states``) after the run,
            whenever they were stored. Days in ``failures`` are left out.
        warned: Rules that only warn, each with the number of requested days on which it does.
    """

    outcomes: list[DayOutcome] = field(default_factory=list)
    failures: list[DayFailure] = field(default_factory=list)
    incomplete: dict[SeriesKey, list[DayRecord]] = field(default_factory=dict)
    warned: dict[str, int] = field(default_factory=dict)

    def add(self, result: DayResult) -> None:
        """Take in the result of a day."""
        if isinstance(result, DayFailure):
            self.failures.append(result)
        else:
            self.outcomes.append(result)

    def look_again(self, layout: Layout) -> None:
        """Take in what the ledgers say now of days with flat candles: they were judged since."""
        ledgers: dict[SeriesKey, Ledger] = {}
        for at, one in enumerate(self.outcomes):
            if one.row.quiet:
                if one.key not in ledgers:
                    ledgers[one.key] = Ledger.read(layout.ledger(one.key))
                self.outcomes[at] = replace(one, row=ledgers[one.key].get(one.day) or one.row)

    def count(self, action: Action) -> int:
        """Days for which this was done."""
        return sum(outcome.action is action for outcome in self.outcomes)


def bring(
    settings: Settings,
    wanted: Mapping[SeriesKey, Sequence[date]],
    on_result: OnResult | None = None,
    *,
    profiles: bool = False,
    coverage: bool = False,
) -> Report:
    """Bring days of series, each run on record in Dagster; nothing is started for days that are held and on record.

    Args:
        settings: Where to, and where from.
        wanted: Days of each series; all series must be in the universe.
        on_result: Told of each day as soon as it is done, with the held ones first.
        profiles: Whether the tradeProfiles of aggTrades days are made, too, where they are missing or out of date.
        coverage: Whether the coverage of the markets, with its standing checks, is looked at afterwards. It is in any
            case where flat candles were brought: what these mean takes all symbols of a market, and perhaps REST.

    Returns:
        One result for each day that was wanted.

    Raises:
        UsageError: a series is not in the universe.
        MarketDataError: nothing can be brought at all, e.g. because the folder is not writable.
        KeyboardInterrupt: Ctrl-C; the days that were done are held, and a further call puts them on record.
    """
    universe = load_universe(settings.universe)
    _refuse_unknown(universe, wanted)
    layout = Layout(settings.root)
    report = Report()

    def told(result: DayResult) -> None:
        report.add(result)
        if on_result is not None:
            on_result(result)

    definitions = build_definitions(settings, universe, on_result=told)
    with recording(layout), open_instance(layout) as instance:
        needed = {
            key: _report_settled(key, days, universe.listing(key), layout, days_on_record(instance, key), told)
            for key, days in wanted.items()
        }
        for (first, last), keys in _runs(needed, settings.max_partitions_per_run):
            run = materialize_days(instance, definitions, keys, first, last, log_level="CRITICAL")
            if not run.success:
                stop_if_interrupted(run)
                for key in keys:
                    _report_lost(key, days_between(first, last), report, run, told)
        if profiles:
            for key in wanted:
                if key.data_type is DataType.AGG_TRADES:
                    _make_profiles(key, wanted[key], layout, instance, definitions, settings, report)
        markets = dict.fromkeys(key.market for key in wanted) if coverage else _with_flat_candles(report)
        if markets:
            stop_if_interrupted(materialize_coverage(instance, definitions, markets, log_level="CRITICAL"))
            report.look_again(layout)
    _look_at_checks(wanted, layout, report)
    publish_views(layout)
    return report


def _look_at_checks(wanted: Mapping[SeriesKey, Sequence[date]], layout: Layout, report: Report) -> None:
    """Enter into the report what the checks of the requested days say now."""
    failed = {(failure.key, failure.day) for failure in report.failures}
    warned: Counter[str] = Counter()
    for key, days in wanted.items():
        rows = Ledger.read(layout.ledger(key), CHECKS_DO_NOT_PASS).rows
        stored = [rows[day] for day in days if day in rows and (key, day) not in failed]
        if incomplete := [row for row in stored if not is_complete(row)]:
            report.incomplete[key] = incomplete
        for row in stored:
            warned.update({f.rule for f in row.findings_list() if f.severity is Severity.WARN})
    report.warned = dict(warned)


def _runs(
    needed: Mapping[SeriesKey, Sequence[date]], at_most: int
) -> Iterator[tuple[tuple[date, date], list[SeriesKey]]]:
    """Series that need the same days go into one run, as far as all their days are no more than ``at_most``."""
    alike: dict[tuple[date, date], list[SeriesKey]] = {}
    for key, days in needed.items():
        for span in contiguous_ranges(days, at_most):
            alike.setdefault(span, []).append(key)
    for (first, last), keys in alike.items():
        together = max(1, at_most // ((last - first).days + 1))
        for n in range(0, len(keys), together):
            yield (first, last), keys[n : n + together]


def _action_of(row: DayRecord) -> Action:
    """What is done for a day that is settled: nothing."""
    return Action.HELD if row.held else Action.EMPTY if row.outcome == EMPTY else Action.NOT_LISTED


def _with_flat_candles(report: Report) -> list[Market]:
    """Markets of which days have flat candles that were not judged yet."""
    return sorted(
        {one.key.market for one in report.outcomes if one.row.quiet and Basis.MARKET_NOT_COMPARED in one.row.bases}
    )


def _refuse_unknown(universe: Universe, wanted: Mapping[SeriesKey, Sequence[date]]) -> None:
    there = set(universe.series())
    for key in wanted:
        if key not in there:
            what = key.interval or key.data_type
            market = "" if key.market == "spot" else f" --market {key.market}"
            raise UsageError(
                f"{key} is not in {universe.path}, so it cannot be brought. "
                f"`market-data add {key.symbol} {what}{market}` puts it there and fetches it."
            )


def _report_settled(
    key: SeriesKey,
    days: Sequence[date],
    listing: Listing,
    layout: Layout,
    on_record: set[date],
    told: OnResult,
) -> list[date]:
    """Report the days for which no run is needed; return the others."""
    ledger = Ledger.read(layout.ledger(key))
    # In memory only: a run, which holds the series' lock, writes the ledger.
    behind = refresh_ledger(ledger, layout, key)
    needed, now = [], clock.now()
    for day in days:
        row = ledger.get(day)
        if (
            row is not None
            and day in on_record
            and (needs(row, now, reach_of(key)).is_met or is_still_unlisted(row, listing))
        ):
            told(DayOutcome(key, day, row, _action_of(row)))
        else:
            needed.append(day)
    if behind and not needed:
        _mend_ledger(key, layout)
    return needed


def _mend_ledger(key: SeriesKey, layout: Layout) -> None:
    """Write a ledger that was lost, where no run is needed; a run that is at work on the series does so itself."""
    with suppress(SeriesBusyError), storage.only_writer(layout.lock(key), 0, str(key)):
        ledger = Ledger.read(layout.ledger(key))
        if refresh_ledger(ledger, layout, key):
            ledger.write(layout.ledger(key))


def stop_if_interrupted(run: dg.ExecuteInProcessResult) -> None:
    """Pass Ctrl-C on: Dagster ends the run as failed, and the next one would begin."""
    for event in run.all_events:
        error = event.step_failure_data.error if event.is_step_failure else None
        if error is not None and error.cls_name in (
            "DagsterExecutionInterruptedError",
            "KeyboardInterrupt",
            "StoppedError",
        ):
            raise KeyboardInterrupt


def _report_lost(
    key: SeriesKey,
    days: Sequence[date],
    report: Report,
    run: dg.ExecuteInProcessResult,
    told: OnResult,
) -> None:
    """Report the days of a failed run that it said nothing of, e.g. because another run wrote the series."""
    results: list[DayResult] = [*report.outcomes, *report.failures]
    said = {result.day for result in results if result.key == key}
    reason = next(reasons(run), "the run failed; its log in Dagster says why")
    for day in days:
        if day not in said:
            row = after(None, day, Failed("run", reason, clock.now()))
            told(DayFailure(key, day, "run", f"{key} {day}: {reason}", row))


def reasons(run: dg.ExecuteInProcessResult) -> Iterator[str]:
    """Why steps of a run failed, in words for people."""
    for event in run.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                yield data.user_failure_data.description
            elif data.error:
                error = data.error
                while error.cause is not None:  # Dagster's own words are around what happened
                    error = error.cause
                yield error.message.strip().removeprefix(f"{error.cls_name}: ")


def _make_profiles(
    source: SeriesKey,
    days: Sequence[date],
    layout: Layout,
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    settings: Settings,
    report: Report,
) -> None:
    key = profile_of(source)
    trades, profiles = Ledger.read(layout.ledger(source)), Ledger.read(layout.ledger(key))
    on_record = days_on_record(instance, key)
    due = [
        day
        for day in days
        if profile_is_due(trades.get(day), profiles.get(day)) or (day not in on_record and _holds(trades.get(day)))
    ]
    # A derived run takes one day more than its source's, see defs.ingestion.definitions.backfill_policy.
    for first, last in contiguous_ranges(due, settings.max_partitions_per_run):
        run = materialize_days(instance, definitions, [key], first, last, log_level="CRITICAL")
        if not run.success:
            stop_if_interrupted(run)
            _report_lost(key, [day for day in due if first <= day <= last], report, run, report.add)


def _holds(row: DayRecord | None) -> bool:
    return row is not None and row.outcome == HELD


def materialize_days(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    keys: Sequence[SeriesKey],
    first: date,
    last: date,
    *,
    tags: Mapping[str, str] | None = None,
    log_level: str = "ERROR",
) -> dg.ExecuteInProcessResult:
    """Run a range of days of one or more series in this process, on record as a run that the UI started would be.

    Args:
        instance: From :func:`open_instance`.
        definitions: From ``defs.definitions.build_definitions``; its ``on_result`` hears of each day.
        keys: The series; their steps go one after another. A failed one does not stop the others.
        first: First UTC day.
        last: Last UTC day, included.
        tags: Further tags of the run.
        log_level: What of the run's log goes to the console; the event log has all of it.

    Returns:
        The finished run; ``success`` is False where a day failed.
    """
    range_tags = {RANGE_START: partition_of(first), RANGE_END: partition_of(last)}
    return _run(instance, definitions, [asset_key_of(key) for key in keys], {**(tags or {}), **range_tags}, log_level)


def materialize_coverage(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    markets: Iterable[Market],
    *,
    log_level: str = "ERROR",
) -> dg.ExecuteInProcessResult:
    """Run the coverage of markets, with its standing checks, in this process and on record.

    Args:
        instance: From :func:`open_instance`.
        definitions: From ``defs.definitions.build_definitions``.
        markets: Markets of the universe.
        log_level: What of the run's log goes to the console.
    """
    return _run(instance, definitions, [coverage_key(market) for market in markets], {}, log_level)


def run_reconciliation(
    instance: dg.DagsterInstance,
    job: dg.JobDefinition,
    config: Mapping[str, Any],
    *,
    log_level: str = "ERROR",
) -> dg.ExecuteInProcessResult:
    """Run the job ``reconciliation`` in this process and on record.

    Args:
        instance: From :func:`open_instance`.
        job: From ``defs.reconciliation.definitions.build_reconciliation_job``; its ``on_compared`` hears of what was
            compared.
        config: From ``defs.reconciliation.definitions.run_config``.
        log_level: What of the run's log goes to the console.
    """
    # Of the code location only this job: its hundreds of assets have no part in it.
    definitions = dg.Definitions(jobs=[job], resources={LIFE: life_resource()}, executor=dg.in_process_executor)
    run_id = make_new_run_id()
    with says_it_lives(instance, run_id):
        return definitions.resolve_job_def(job.name).execute_in_process(
            instance=instance,
            run_id=run_id,
            run_config={**config, **_log_config(log_level)},
            raise_on_error=False,
        )


def _run(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    assets: Sequence[dg.AssetKey],
    tags: Mapping[str, str],
    log_level: str,
) -> dg.ExecuteInProcessResult:
    run_id = make_new_run_id()
    with says_it_lives(instance, run_id):
        return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            run_id=run_id,
            asset_selection=list(assets),
            tags=dict(tags),
            run_config=_log_config(log_level),
            raise_on_error=False,
        )


def _log_config(log_level: str) -> dict[str, Any]:
    return {"loggers": {"console": {"config": {"log_level": log_level}}}}


def days_on_record(instance: dg.DagsterInstance, key: SeriesKey) -> set[date]:
    """The UTC days of a series that have a materialization in Dagster's records."""
    return {day_of(name) for name in instance.get_materialized_partitions(asset_key_of(key))}
