"""Ingest days through Dagster in this process, on record: the code behind the command line and notebooks.

Choosing the days that need a run, and running them, belongs here. Fetching a day (``ingest``), recording it (``defs``)
and printing progress (``cli``) do not.
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
from market_data_pipeline.coverage.condition import record_collected
from market_data_pipeline.defs.definitions import build_definitions
from market_data_pipeline.defs.keys import asset_key_of, coverage_key_of
from market_data_pipeline.defs.partitions import day_of, tags_of
from market_data_pipeline.defs.platform.heartbeat import HEARTBEAT, heartbeat, heartbeat_resource
from market_data_pipeline.defs.platform.home import open_instance, recording
from market_data_pipeline.errors import SeriesBusyError, UsageError
from market_data_pipeline.lake import storage
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger, checks_do_not_pass, refresh_ledger
from market_data_pipeline.model.day import EMPTY, NOT_LISTED, DayRecord, Failed, after
from market_data_pipeline.model.findings import Basis, Severity
from market_data_pipeline.model.lineage import profile_of
from market_data_pipeline.model.needs import is_still_unlisted, needs, perishing_first, profile_is_due, reach_of
from market_data_pipeline.model.outcomes import Action, DayFailure, DayOutcome, DayResult, OnResult
from market_data_pipeline.model.series import DataType, ListingSpans, Market, SeriesKey
from market_data_pipeline.model.states import is_complete
from market_data_pipeline.settings import Settings
from market_data_pipeline.sql.publish import publish_views
from market_data_pipeline.universe import Universe, load_universe


@dataclass
class Report:
    """Result of a call: stored days, failed days, and check results.

    Attributes:
        outcomes: Days that are stored, or need no file.
        failures: Days that failed.
        incomplete: Ledger rows of requested days that are stored and not complete (see ``model.states``) after the run,
            whenever they were stored. Days in ``failures`` are left out.
        warned: Rules that only warn, each with its number of requested days.
    """

    outcomes: list[DayOutcome] = field(default_factory=list)
    failures: list[DayFailure] = field(default_factory=list)
    incomplete: dict[SeriesKey, list[DayRecord]] = field(default_factory=dict)
    warned: dict[str, int] = field(default_factory=dict)

    def add(self, result: DayResult) -> None:
        """Add the result of a day."""
        if isinstance(result, DayFailure):
            self.failures.append(result)
        else:
            self.outcomes.append(result)

    def refresh(self, layout: Layout) -> None:
        """Read the rows of days with flat candles from the ledgers again, because they were classified since."""
        ledgers: dict[SeriesKey, Ledger] = {}
        for at, one in enumerate(self.outcomes):
            if one.row.quiet:
                if one.key not in ledgers:
                    ledgers[one.key] = Ledger.read(layout.ledger(one.key))
                self.outcomes[at] = replace(one, row=ledgers[one.key].get(one.day) or one.row)

    def count(self, action: Action) -> int:
        """Return the number of days with this action."""
        return sum(outcome.action is action for outcome in self.outcomes)


def run_ingest(
    settings: Settings,
    wanted: Mapping[SeriesKey, Sequence[date]],
    on_result: OnResult | None = None,
    *,
    profiles: bool = False,
    coverage: bool = False,
) -> Report:
    """Ingest days of series, with each run on record in Dagster. Days that are stored and on record start no run.

    Args:
        settings: The locations of the lake and of the sources.
        wanted: Days of each series. All series must be in the universe.
        on_result: Called after each day. Days that are stored already come first.
        profiles: True also computes tradeProfiles of aggTrades days that are missing or out of date.
        coverage: True also runs the coverage of the markets with its standing checks. It always runs if flat candles
            were fetched, because classifying them takes all symbols of a market, and perhaps REST.

    Returns:
        One result for each requested day.

    Raises:
        UsageError: A series is not in the universe, or a day is before its start.
        MarketDataError: Nothing can be fetched at all, e.g. because the folder is not writable.
        KeyboardInterrupt: Ctrl-C. Finished days are stored, and the next call records them.
    """
    universe = load_universe(settings.universe)
    _refuse_uncollected(universe, wanted)
    layout = Layout(settings.root)
    report = Report()

    def notify(result: DayResult) -> None:
        report.add(result)
        if on_result is not None:
            on_result(result)

    definitions = build_definitions(settings, universe, on_result=notify)
    with recording(layout), open_instance(layout) as instance:
        needed = {
            key: _report_stored(key, days, universe.listing(key), layout, days_on_record(instance, key), notify)
            for key, days in wanted.items()
        }
        for (first, last), keys in _runs(needed, settings.max_partitions_per_run):
            run = materialize_days(instance, definitions, keys, first, last, log_level="CRITICAL")
            if not run.success:
                stop_if_interrupted(run)
                for key in keys:
                    _report_missing(key, days_between(first, last), report, run, notify)
        if profiles:
            for key in wanted:
                if key.data_type is DataType.AGG_TRADES:
                    _make_profiles(key, wanted[key], layout, instance, definitions, settings, report)
        markets = dict.fromkeys(key.market for key in wanted) if coverage else _with_flat_candles(report)
        if markets:
            stop_if_interrupted(materialize_coverage(instance, definitions, markets, log_level="CRITICAL"))
            report.refresh(layout)
    _read_checks(wanted, layout, report)
    record_collected(layout, universe)
    publish_views(layout)
    return report


def _read_checks(wanted: Mapping[SeriesKey, Sequence[date]], layout: Layout, report: Report) -> None:
    """Add the present check results of the requested days to the report."""
    failed = {(failure.key, failure.day) for failure in report.failures}
    warned: Counter[str] = Counter()
    for key, days in wanted.items():
        rows = Ledger.read(layout.ledger(key), checks_do_not_pass()).rows
        stored = [rows[day] for day in days if day in rows and (key, day) not in failed]
        if incomplete := [row for row in stored if not is_complete(row)]:
            report.incomplete[key] = incomplete
        for row in stored:
            warned.update({f.rule for f in row.findings_list() if f.severity is Severity.WARN})
    report.warned = dict(warned)


def _runs(
    needed: Mapping[SeriesKey, Sequence[date]], at_most: int
) -> Iterator[tuple[tuple[date, date], list[SeriesKey]]]:
    """Group series that need the same days into one run, up to ``at_most`` days of all series together.

    Days that REST will soon no longer serve come first.
    """
    for part in perishing_first(needed, clock.now()):
        yield from _grouped(part, at_most)


def _grouped(
    needed: Mapping[SeriesKey, Sequence[date]], at_most: int
) -> Iterator[tuple[tuple[date, date], list[SeriesKey]]]:
    alike: dict[tuple[date, date], list[SeriesKey]] = {}
    for key, days in needed.items():
        for span in contiguous_ranges(days, at_most):
            alike.setdefault(span, []).append(key)
    for (first, last), keys in alike.items():
        together = max(1, at_most // ((last - first).days + 1))
        for n in range(0, len(keys), together):
            yield (first, last), keys[n : n + together]


def _action_of(row: DayRecord) -> Action:
    """Return the action for a day that needs no run."""
    return Action.HELD if row.is_stored_final else Action.EMPTY if row.outcome == EMPTY else Action.NOT_LISTED


def _with_flat_candles(report: Report) -> list[Market]:
    """Return the markets of days with flat candles that are not classified yet."""
    return sorted(
        {one.key.market for one in report.outcomes if one.row.quiet and Basis.MARKET_NOT_COMPARED in one.row.bases}
    )


def _refuse_uncollected(universe: Universe, wanted: Mapping[SeriesKey, Sequence[date]]) -> None:
    known = set(universe.series())
    for key, days in wanted.items():
        if key not in known:
            kind = key.interval or key.data_type
            market = "" if key.market == "spot" else f" --market {key.market}"
            raise UsageError(
                f"{key} is not in {universe.path}, so it cannot be fetched. "
                f"Run `market-data add {key.symbol} {kind}{market}` to add and fetch it."
            )
        if listed := [day for day in days if universe.listing(key).covers(day)]:
            universe.refuse_before_start(min(listed), key)


def _report_stored(
    key: SeriesKey,
    days: Sequence[date],
    listing: ListingSpans,
    layout: Layout,
    on_record: set[date],
    notify: OnResult,
) -> list[date]:
    """Report the days that need no run. Return the others."""
    ledger = Ledger.read(layout.ledger(key))
    # In memory only: runs have the series' lock and write the ledger.
    behind = refresh_ledger(ledger, layout, key)
    needed, now = [], clock.now()
    for day in days:
        row = ledger.get(day)
        if not listing.covers(day):  # no partition in Dagster, and nothing to fetch
            row = row or DayRecord(day=day, outcome=NOT_LISTED, final=True)
            notify(DayOutcome(key, day, row, _action_of(row)))
        elif (
            row is not None
            and day in on_record
            and (needs(row, now, reach_of(key)).is_met or is_still_unlisted(row, listing))
        ):
            notify(DayOutcome(key, day, row, _action_of(row)))
        else:
            needed.append(day)
    if behind and not needed:
        _repair_ledger(key, layout)
    return needed


def _repair_ledger(key: SeriesKey, layout: Layout) -> None:
    """Write a lost ledger if no run is needed. A run that is writing the series does so itself."""
    with suppress(SeriesBusyError), storage.only_writer(layout.lock(key), 0, str(key)):
        ledger = Ledger.read(layout.ledger(key))
        if refresh_ledger(ledger, layout, key):
            ledger.write(layout.ledger(key))


def stop_if_interrupted(run: dg.ExecuteInProcessResult) -> None:
    """Raise KeyboardInterrupt if Ctrl-C ended the run. Dagster only marks it as failed, and the next would start."""
    for event in run.all_events:
        error = event.step_failure_data.error if event.is_step_failure else None
        if error is not None and error.cls_name in (
            "DagsterExecutionInterruptedError",
            "KeyboardInterrupt",
            "StoppedError",
        ):
            raise KeyboardInterrupt


def _report_missing(
    key: SeriesKey,
    days: Sequence[date],
    report: Report,
    run: dg.ExecuteInProcessResult,
    notify: OnResult,
) -> None:
    """Report the days of a failed run without a result, e.g. because another run writes the series."""
    results: list[DayResult] = [*report.outcomes, *report.failures]
    reported = {result.day for result in results if result.key == key}
    reason = next(reasons(run), "the run failed; see its log in Dagster")
    for day in days:
        if day not in reported:
            row = after(None, day, Failed("run", reason, clock.now()))
            notify(DayFailure(key, day, "run", f"{key} {day}: {reason}", row))


def reasons(run: dg.ExecuteInProcessResult) -> Iterator[str]:
    """Yield the reasons why steps of a run failed, as text for people."""
    for event in run.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                yield data.user_failure_data.description
            elif data.error:
                error = data.error
                while error.cause is not None:  # Dagster wraps the error in messages of its own
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
    on_record, stored = days_on_record(instance, key), set(trades.days())
    due = [
        day
        for day in days
        if profile_is_due(trades.get(day), profiles.get(day)) or (day not in on_record and day in stored)
    ]
    # One run can take one day more than a run of the source, see defs.ingestion.definitions.backfill_policy.
    for first, last in contiguous_ranges(due, settings.max_partitions_per_run):
        run = materialize_days(instance, definitions, [key], first, last, log_level="CRITICAL")
        if not run.success:
            stop_if_interrupted(run)
            _report_missing(key, [day for day in due if first <= day <= last], report, run, report.add)


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
    """Run a range of days of series in this process, on record like a run that the UI starts.

    Args:
        instance: From :func:`open_instance`.
        definitions: From ``defs.definitions.build_definitions``. Its ``on_result`` is called after each day.
        keys: The series. Their steps run one after another, and a failed step does not stop the others.
        first: First UTC day.
        last: Last UTC day, included.
        tags: Further tags of the run.
        log_level: Lowest level of the run's log that goes to the console. The event log has all of it.

    Returns:
        The finished run. ``success`` is False if a day failed.
    """
    job = definitions.resolve_implicit_global_asset_job_def()
    assets = [asset_key_of(key) for key in keys]
    return _run(instance, job, log_level, asset_selection=assets, tags={**(tags or {}), **tags_of(first, last)})


def materialize_coverage(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    markets: Iterable[Market],
    *,
    log_level: str = "ERROR",
) -> dg.ExecuteInProcessResult:
    """Run the coverage of markets with its standing checks, in this process and on record.

    Args:
        instance: From :func:`open_instance`.
        definitions: From ``defs.definitions.build_definitions``.
        markets: Markets of the universe.
        log_level: Lowest level of the run's log that goes to the console.
    """
    job = definitions.resolve_implicit_global_asset_job_def()
    return _run(instance, job, log_level, asset_selection=[coverage_key_of(market) for market in markets])


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
        job: From ``defs.reconciliation.definitions.build_reconciliation_job``. Its ``on_compared`` is called after each
            comparison.
        config: From ``defs.reconciliation.definitions.run_config``.
        log_level: Lowest level of the run's log that goes to the console.
    """
    # Only this job of the code location: it needs none of the hundreds of assets.
    definitions = dg.Definitions(
        jobs=[job], resources={HEARTBEAT: heartbeat_resource()}, executor=dg.in_process_executor
    )
    return _run(instance, definitions.resolve_job_def(job.name), log_level, run_config=config)


def _run(
    instance: dg.DagsterInstance,
    job: dg.JobDefinition,
    log_level: str,
    *,
    run_config: Mapping[str, Any] | None = None,
    **more: Any,
) -> dg.ExecuteInProcessResult:
    run_id = make_new_run_id()
    loggers = {"console": {"config": {"log_level": log_level}}}
    with heartbeat(instance, run_id):
        return job.execute_in_process(
            instance=instance,
            run_id=run_id,
            run_config={**(run_config or {}), "loggers": loggers},
            raise_on_error=False,
            **more,
        )


def days_on_record(instance: dg.DagsterInstance, key: SeriesKey) -> set[date]:
    """Return the UTC days of a series that have a materialization in Dagster's records."""
    return {day_of(name) for name in instance.get_materialized_partitions(asset_key_of(key))}
