"""Runs of the jobs ``verify``, ``compact`` and ``retain``, and their reports.

The work itself belongs to ``maintenance``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import dagster as dg

from market_data_pipeline.defs.platform.wiping import wipe_days
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import known_series
from market_data_pipeline.maintenance.archive_sweep import ArchiveChange, SweepReport, sweep
from market_data_pipeline.maintenance.compaction import compact
from market_data_pipeline.maintenance.retention import Removal, carry_out_removals, expired
from market_data_pipeline.model.series import SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.sources.binance.archive import ArchiveClient
from market_data_pipeline.stores.push import evict_old_days
from market_data_pipeline.universe import load_universe

_SHOWN_FINDINGS = 100

_SHOWN_SERIES = 100


def compare_archives(context: dg.OpExecutionContext, keys: Sequence[SeriesKey], settings: Settings) -> None:
    """Compare the archives of series with their ledgers, mark the days that were replaced, and report both.

    Args:
        context: The context of the job's op.
        keys: The series. Those without stored days cost no request.
        settings: The locations of the ledgers and of the archive.

    Raises:
        dagster.Failure: Some series could not be compared or marked. The others were.
    """
    with closing(ArchiveClient(settings)) as archive:
        report = sweep(settings, keys, archive)
    metadata = report_metadata(report)
    context.log.info(
        "Compared %d archives of %d series in %d requests: %s",
        sum(report.archives.values()),
        len(report.archives),
        report.requests,
        ", ".join(f"{len(report.of(kind))} {kind.value}" for kind in ArchiveChange),
    )
    if report.troubles:
        raise dg.Failure(
            description=f"{len(report.troubles)} series could not be compared or marked. "
            + " ".join(f"{key}: {reason}" for key, reason in list(report.troubles.items())[:5])
            + (f" {report.said_of_not_reached()}" if report.not_reached else " The others were."),
            metadata=metadata,
            allow_retries=False,
        )
    context.add_output_metadata(metadata)


def report_metadata(report: SweepReport) -> dict[str, dg.MetadataValue]:
    """Return the findings of a sweep for the run's page: numbers, and a table of changed archives."""
    numbers = {
        "archives": sum(report.archives.values()),
        "requests": report.requests,
        **{kind.value: len(report.of(kind)) for kind in ArchiveChange},
        "days without an ETag on record": report.without_etag,
        **({"not compared": len(report.not_reached)} if report.not_reached else {}),
    }
    metadata: dict[str, dg.MetadataValue] = {name: dg.MetadataValue.int(number) for name, number in numbers.items()}
    if report.discoveries:
        metadata["found"] = dg.MetadataValue.table(
            [
                dg.TableRecord(
                    {
                        "finding": found.kind.value,
                        "series": str(found.key),
                        "first day": found.days[0].isoformat(),
                        "days": len(found.days),
                        "archive": found.archive.rsplit("/", 1)[-1],
                    }
                )
                for found in report.discoveries[:_SHOWN_FINDINGS]
            ]
        )
    return metadata


def compact_lake(context: dg.OpExecutionContext, keys: Sequence[SeriesKey], settings: Settings) -> None:
    """Close the months of series that are ready, remove files of days of closed months, and report both.

    Args:
        context: The context of the job's op.
        keys: The series. Those that are stored by day are skipped.
        settings: The location of the lake.

    Raises:
        dagster.Failure: Some series were left unchanged. The others are done.
    """
    report = compact(settings, keys)
    metadata: dict[str, dg.MetadataValue] = {
        "months closed": dg.MetadataValue.int(sum(map(len, report.closed.values()))),
        "files of days removed": dg.MetadataValue.int(report.removed),
        "files of days to remove later": dg.MetadataValue.int(report.waiting),
    }
    if report.closed:
        shown = list(report.closed.items())[:_SHOWN_SERIES]
        metadata["closed"] = dg.MetadataValue.table(
            [dg.TableRecord({"series": str(key), "months": " ".join(months)}) for key, months in shown]
        )
    if report.troubles:
        raise dg.Failure(
            description=f"{len(report.troubles)} series were left unchanged. "
            + " ".join(f"{key}: {reason}" for key, reason in list(report.troubles.items())[:5]),
            metadata=metadata,
            allow_retries=False,
        )
    context.add_output_metadata(metadata)


def retain_days(context: dg.OpExecutionContext, settings: Settings) -> None:
    """Remove the days that are older than ``keep:``, also from Dagster's records, and report them.

    Days that Binance no longer has stay, and are reported. Before, old days leave PostgreSQL, as the settings demand.

    Args:
        context: The context of the job's op.
        settings: The locations of the lake, of the archive and of ``universe.yaml``, which is read again.

    Raises:
        dagster.Failure: Some series were left unchanged. The others are done.
    """
    universe, layout = load_universe(settings.universe), Layout(settings.root)
    hot = evict_old_days(settings, layout, dict.fromkeys([*universe.series(), *known_series(layout)]))
    with closing(ArchiveClient(settings)) as archive:
        found, left_over = expired(layout, universe, universe.series(), archive)
    for one in found:
        wipe_days(context.instance, one.key, one.days)
    troubles = {one.key: one.trouble for one in left_over if one.trouble} | carry_out_removals(settings, found)
    for one in left_over:
        context.log.warning(
            "%s: %d days older than `keep:` stay, because Binance may not have them", one.key, len(one.days)
        )
    removed = [one for one in found if one.key not in troubles]
    metadata: dict[str, dg.MetadataValue] = {
        "days removed": dg.MetadataValue.int(sum(len(one.stored) for one in removed)),
        "bytes removed": dg.MetadataValue.int(sum(one.bytes for one in removed)),
        "days that Binance no longer has": dg.MetadataValue.int(sum(len(one.gone) for one in left_over)),
    }
    if hot is not None:
        metadata["days removed from PostgreSQL"] = dg.MetadataValue.int(hot.evicted)
        metadata["old days that stay in PostgreSQL"] = dg.MetadataValue.int(len(hot.staying))
        for (key, day), reason in list(hot.staying.items())[:_SHOWN_SERIES]:
            context.log.warning("%s %s stays in PostgreSQL: %s", key, day, reason)
    for name, some in (("removed", removed), ("left in the lake", left_over)):
        if some:
            metadata[name] = dg.MetadataValue.table([_record_of(one) for one in some[:_SHOWN_SERIES]])
    if troubles:
        raise dg.Failure(
            description=f"{len(troubles)} series have days that were not removed. "
            + " ".join(f"{key}: {reason}" for key, reason in list(troubles.items())[:5]),
            metadata=metadata,
            allow_retries=False,
        )
    context.add_output_metadata(metadata)


def _record_of(one: Removal) -> dg.TableRecord:
    first, last = one.days[0].isoformat(), one.days[-1].isoformat()
    return dg.TableRecord({"series": str(one.key), "days": len(one.days), "first day": first, "last day": last})
