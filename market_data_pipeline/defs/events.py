"""Results of days as Dagster's events: materializations and check evaluations, each on its own partition.

``AssetCheckEvaluation`` with partitions and targets is a preview API, used only here and in ``reconciliation``. In a
run over many partitions an ``AssetCheckResult`` would be stored without a partition. An evaluation without a target is
not shown. Computing results does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from textwrap import shorten
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData as Target,
)
from dagster._core.execution.context.metadata_logging import AssetMetadataHandle, OutputMetadataAccumulator

from market_data_pipeline.clock import contiguous_ranges
from market_data_pipeline.defs.keys import asset_key_of
from market_data_pipeline.defs.partitions import partition_of
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.ledger import Ledger
from market_data_pipeline.lake.partitions import file_of
from market_data_pipeline.model.datasets import keyed_by_time
from market_data_pipeline.model.day import EMPTY, HELD, NOT_LISTED, DayRecord
from market_data_pipeline.model.findings import DAY_CHECKS, Finding, Range, Severity, shortened
from market_data_pipeline.model.outcomes import DayFailure, DayOutcome
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.model.states import is_complete

_SHOWN_RANGES = 10
"""Maximum number of ranges in a metadata table. Every event stores its own copy, below 4 kB per day."""

_SHOWN_EVIDENCE = 40
"""Maximum number of characters of the evidence in that table."""

_SHOWN_FAILURES = 50
_CHANGES = ("became_final", "replaced", "disagreement")
"""Rules that describe how a day that was stored again differs from before."""

_SHOWN_TEXT = 600
_PAGE = 1000


def day_events(
    context: dg.AssetExecutionContext,
    results: Sequence[DayOutcome | DayFailure],
    layout: Layout,
    picture: Callable[[DayOutcome], str | None] | None = None,
) -> Iterator[Any]:
    """Yield the events of one series' days, from the asset's body.

    A run reports its days in one of two ways, never both for the same day:

    - All good: metadata for each partition and one ``MaterializeResult``. Dagster makes a materialization a day of it.
    - Some failed: a materialization for each good day, a failing ``integrity`` for each bad one, then ``Failure``.

    Args:
        context: The context of the asset.
        results: One result for each partition of the run, in order.
        layout: The location of the files, for the metadata.
        picture: Returns Markdown with a picture of a day. Called only for the newest day with rows, because every event
            stores its own copy.

    Raises:
        dagster.Failure: Days failed. It comes after all events and is not retried, because good days are on record and
            the same bytes would fail again.
    """
    good = [result for result in results if isinstance(result, DayOutcome)]
    bad = [result for result in results if isinstance(result, DayFailure)]
    newest = next((result for result in reversed(good) if result.row.outcome == HELD and result.row.rows), None)
    metadata = {
        result.day: day_metadata(result, layout, picture(result) if picture and result is newest else None)
        for result in good
    }
    if bad:
        for result in good:
            yield dg.AssetMaterialization(
                asset_key=context.asset_key, partition=partition_of(result.day), metadata=metadata[result.day]
            )
    else:
        add_metadata(context, {partition_of(result.day): metadata[result.day] for result in good})
        yield dg.MaterializeResult(asset_key=context.asset_key)

    yield from _evaluations(context.instance, context.asset_key, good, bad)
    if bad:
        raise dg.Failure(
            description=failure_text(results), metadata={"failed days": _failures_table(bad)}, allow_retries=False
        )
    for name in DAY_CHECKS:
        spec = context.assets_def.get_spec_for_check_key(dg.AssetCheckKey(context.asset_key, name))
        yield dg.Output(None, output_name=spec.get_python_identifier())


def add_metadata(context: dg.AssetExecutionContext, of_partitions: Mapping[str, Mapping[str, Any]]) -> None:
    """Add metadata to the materializations of partitions.

    ``add_asset_metadata`` does so for one partition, and each call walks all partitions of the run and copies their
    metadata. This takes a sixth of the time of a run over 900 days, and a larger share of a longer one.
    """
    step = context.get_step_execution_context()
    added: dict[Any, Mapping[str, Any]] = {
        AssetMetadataHandle(asset_key=context.asset_key, partition_key=name): metadata
        for name, metadata in of_partitions.items()
    }
    before = step._metadata_accumulator.per_output_metadata
    step._metadata_accumulator = OutputMetadataAccumulator(per_output_metadata={**before, **added})


def _evaluations(
    instance: dg.DagsterInstance, asset_key: dg.AssetKey, good: Sequence[DayOutcome], bad: Sequence[DayFailure]
) -> Iterator[dg.AssetCheckEvaluation]:
    targets = every_target(instance, asset_key, [partition_of(result.day) for result in good])
    for name in DAY_CHECKS:
        for result in good:
            target = targets.get(partition_of(result.day))
            # A day that is reported again may have an older file, while its newest archive is refused.
            if name == "integrity" and result.row.failure is not None:
                reason = result.row.reason or result.row.failure
                yield _failed(asset_key, result.key, result.row, result.row.failure, reason, target)
            else:
                yield _evaluation(asset_key, result.key, result.row, name, target)
    # A bad day with an older file targets that materialization. A day without a file has none.
    older = every_target(instance, asset_key, [partition_of(one.day) for one in bad if one.row.outcome == HELD])
    for one in bad:
        yield _failed(asset_key, one.key, one.row, one.failure, one.reason, older.get(partition_of(one.day)))


def _evaluation(
    asset_key: dg.AssetKey, key: SeriesKey, row: DayRecord, name: str, target: Target | None
) -> dg.AssetCheckEvaluation:
    severity = Severity(getattr(row, name) or Severity.INFO)
    findings = [finding for finding in row.findings_list() if finding.check == name]
    return dg.AssetCheckEvaluation(
        asset_key=asset_key,
        check_name=name,
        passed=severity is Severity.INFO,
        severity=dg.AssetCheckSeverity.WARN if severity is Severity.WARN else dg.AssetCheckSeverity.ERROR,
        description=_description(findings, row),
        metadata=findings_metadata(findings, key),
        partition=partition_of(row.day),
        target_materialization_data=target,
    )


def _failed(
    asset_key: dg.AssetKey, key: SeriesKey, row: DayRecord, failure: str, reason: str, target: Target | None
) -> dg.AssetCheckEvaluation:
    """Return the failing ``integrity`` of a day whose newest attempt failed, with the findings of its older file."""
    stored = row.outcome == HELD
    findings = [finding for finding in row.findings_list() if finding.check == "integrity"] if stored else []
    return dg.AssetCheckEvaluation(
        asset_key=asset_key,
        check_name="integrity",
        passed=False,
        severity=dg.AssetCheckSeverity.ERROR,
        description=shortened(reason, _SHOWN_TEXT),
        metadata={
            "failure": failure,
            "older file": "stays" if stored else "none",
            **findings_metadata(findings, key),
        },
        partition=partition_of(row.day),
        target_materialization_data=target,
    )


def every_target(instance: dg.DagsterInstance, asset_key: dg.AssetKey, partitions: Iterable[str]) -> dict[str, Target]:
    """Return the newest materialization of each partition that has one, whatever its age."""
    found: dict[str, Target] = {}
    names = list(partitions)
    for start in range(0, len(names), _PAGE):
        left = names[start : start + _PAGE]
        while left:
            # Limits count the whole history of the partitions, newest first. Days that were written often crowd out
            # others, so ask again without them.
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=asset_key, asset_partitions=left), limit=len(left)
            ).records
            for record in records:
                target = Target(storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp)
                found.setdefault(record.partition_key or "", target)
            left = [name for name in left if name not in found] if records else []
    return found


def restored_day_events(
    instance: dg.DagsterInstance, layout: Layout, stored: Sequence[DayOutcome]
) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    """Yield events of days that were stored again without a run of their own. Any run may yield them.

    Days without a materialization are left out. The run that adds one reports them.

    Args:
        instance: Dagster's records.
        layout: The location of the files, for the metadata.
        stored: The days.
    """
    by_series: dict[SeriesKey, list[DayOutcome]] = {}
    for one in stored:
        by_series.setdefault(one.key, []).append(one)
    for key, outcomes in by_series.items():
        asset_key, ledger = asset_key_of(key), Ledger.read(layout.ledger(key))
        on_record = every_target(instance, asset_key, [partition_of(one.day) for one in outcomes])
        reported = [
            replace(one, row=ledger.get(one.day) or one.row)  # the row may have newer verdicts
            for one in outcomes
            if partition_of(one.day) in on_record
        ]
        for one in reported:
            yield dg.AssetMaterialization(
                asset_key=asset_key, partition=partition_of(one.day), metadata=day_metadata(one, layout)
            )
        yield from _evaluations(instance, asset_key, reported, ())


def gaps_evaluations(
    instance: dg.DagsterInstance, layout: Layout, days: Mapping[SeriesKey, Sequence[date]]
) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield evaluations of days' ``gaps`` checks from the current ledgers. Any run may yield them.

    Days without a materialization are left out. The run that adds one reports their checks as well.

    Args:
        instance: Dagster's records.
        layout: The location of the ledgers.
        days: UTC days by series.
    """
    for key, some in days.items():
        asset_key, ledger = asset_key_of(key), Ledger.read(layout.ledger(key))
        targets = every_target(instance, asset_key, map(partition_of, some))
        for day in some:
            row, target = ledger.get(day), targets.get(partition_of(day))
            if row is not None and row.outcome == HELD and target is not None:
                yield _evaluation(asset_key, key, row, "gaps", target)


# --- metadata ----------------------------------------------------------------------------------------------------


def day_metadata(result: DayOutcome, layout: Layout, picture: str | None = None) -> dict[str, Any]:
    """Return the metadata of a good day: rows, bytes, source, hashes, state and action."""
    row = result.row
    facts: dict[str, Any] = {
        "dagster/partition_row_count": row.rows,
        "state": state_in_words(row),
        "action": result.action.value,
        "seconds": round(result.seconds, 3),
        "downloaded bytes": result.downloaded,
    }
    if row.outcome == HELD:
        changes = [f.message for f in row.findings_list() if f.rule in _CHANGES] if row.findings != "[]" else []
        facts |= {
            "changes": shortened(" ".join(changes), _SHOWN_TEXT) or None,
            "verdicts": row.verdicts or None,
            "bytes": row.bytes,
            "path": dg.MetadataValue.path(str(file_of(layout, result.key, result.day))),
            "source": row.source,
            "checksum": row.checksum,
            "content sha256": row.content_sha256,
            "archive sha256": row.archive_sha256,
        }
    if picture is not None:
        facts["candles"] = dg.MetadataValue.md(picture)
    return {name: value for name, value in facts.items() if value is not None}


def state_in_words(row: DayRecord) -> str:
    """Return a day's state as text."""
    if row.outcome == HELD:
        return "final" if row.final else "provisional: fetched again when the archive is published"
    return {
        NOT_LISTED: "not listed: the symbol was not listed on this day",
        EMPTY: "empty: no trades on this day" if row.final else "empty: no trades yet",
    }.get(row.outcome, row.outcome)


def findings_metadata(findings: Iterable[Finding], key: SeriesKey) -> dict[str, Any]:
    """Return the findings of a check: one text per rule, and a table of ranges, the most severe first."""
    ranks = list(Severity)
    ordered = sorted(findings, key=lambda finding: -ranks.index(finding.severity))
    metadata: dict[str, Any] = {}
    for finding in ordered:
        text = f"{finding.severity.value}: {shortened(finding.message, _SHOWN_TEXT)}"
        before = metadata.get(finding.rule)
        metadata[finding.rule] = shortened(f"{before}\n{text}", _SHOWN_TEXT) if before else text
    ranges = [(finding, range_) for finding in ordered for range_ in finding.ranges]
    if ranges:
        metadata["ranges"] = _ranges_table(ranges, key)
        if len(ranges) > _SHOWN_RANGES:
            metadata["more ranges"] = f"{_SHOWN_RANGES} of {len(ranges)} ranges shown"
    return metadata


def _ranges_table(ranges: Sequence[tuple[Finding, Range]], key: SeriesKey) -> dg.TableMetadataValue:
    shown: Callable[[int], str | int] = iso_time if keyed_by_time(key.data_type) else int
    # The message shows the first values of changed rows. SQL has them all.
    with_evidence = any(finding.evidence for finding, _ in ranges if finding.check == "gaps")

    def record(finding: Finding, range_: Range) -> dg.TableRecord:
        columns = {
            "rule": finding.rule,
            "first": shown(range_.first),
            "last": shown(range_.last),
            "count": range_.count,
        }
        if with_evidence:
            columns["evidence"] = shorten(finding.evidence, _SHOWN_EVIDENCE, placeholder=" …")
        return dg.TableRecord(columns)

    return dg.MetadataValue.table([record(*one) for one in ranges[:_SHOWN_RANGES]])


def iso_time(microseconds: int) -> str:
    """Return microseconds since 1970 as an ISO time in UTC, e.g. ``2024-01-01T00:00:00Z``."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    return moment.isoformat().replace("+00:00", "Z")


def _failures_table(failures: Sequence[DayFailure]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table(
        [
            dg.TableRecord({"day": partition_of(f.day), "kind": f.failure, "reason": shortened(f.reason, _SHOWN_TEXT)})
            for f in failures[:_SHOWN_FAILURES]
        ]
    )


def _description(findings: Sequence[Finding], row: DayRecord) -> str:
    if row.outcome != HELD:
        return shortened(" ".join([state_in_words(row), *(finding.message for finding in findings)]), _SHOWN_TEXT)
    return shortened(" ".join(finding.message for finding in findings), _SHOWN_TEXT) or "No problems found."


# --- texts for logs ------------------------------------------------------------------------------------------------


def spans(days: Iterable[date]) -> str:
    """Return days as text, with at most ten spans of consecutive days.

    >>> spans([date(2024, 1, 1), date(2024, 1, 2), date(2024, 1, 5)])
    '2024-01-01 to 2024-01-02, 2024-01-05'
    """
    ranges = [str(first) if first == last else f"{first} to {last}" for first, last in contiguous_ranges(days)]
    return ", ".join(ranges[:10]) + (f" and {len(ranges) - 10} more spans" if len(ranges) > 10 else "")


def failure_text(results: Sequence[DayOutcome | DayFailure]) -> str:
    """Return the text of a failed run: the failed days, the first reason of each kind, and the next step."""
    bad = [result for result in results if isinstance(result, DayFailure)]
    first_of_kind: dict[str, DayFailure] = {}
    for failure in bad:
        first_of_kind.setdefault(failure.failure, failure)
    reasons = "\n".join(
        f"- {kind}, {failure.day}: {shortened(failure.reason, _SHOWN_TEXT)}" for kind, failure in first_of_kind.items()
    )
    return (
        f"{bad[0].key}: {len(bad)} of {len(results)} days failed ({spans(failure.day for failure in bad)}). "
        f"The other days are in the lake and on record. Start a backfill of the failed days only.\n{reasons}"
    )


def log_line(key: SeriesKey, results: Sequence[DayOutcome | DayFailure], seconds: float) -> str:
    """Return the log line of a run for one series.

    Args:
        key: The series.
        results: The results of its days.
        seconds: The duration of all of them together.
    """
    actions = [result.action.value for result in results if isinstance(result, DayOutcome)]
    days = "1 day" if len(results) == 1 else f"{len(results)} days"
    counts = [f"{actions.count(action)} {action.replace('_', ' ')}" for action in sorted(set(actions))]
    failed = len(results) - len(actions)
    good = [one.row for one in results if isinstance(one, DayOutcome)]
    incomplete = sum(row.outcome == HELD and not is_complete(row) for row in good)
    counts += [f"{incomplete} of them incomplete"] if incomplete else []
    megabytes = sum(result.downloaded for result in results) / 1e6
    return (
        f"{key}: {days} ({spans(result.day for result in results)}): "
        f"{', '.join([*counts, f'{failed} failed'])}; {megabytes:.1f} MB downloaded in {seconds:.1f} s"
    )
