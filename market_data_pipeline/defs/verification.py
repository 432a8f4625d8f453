"""The job ``verify``: which archives of days that are held were replaced since, by the archive's listing.

It marks those days in the ledgers; the schedule ``repair`` requests what is marked. `market-data verify` does both.
"""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` itself, not its text.

from collections.abc import Sequence
from contextlib import closing

import dagster as dg

from market_data_pipeline.defs.runs import LIFE
from market_data_pipeline.series import SeriesKey
from market_data_pipeline.settings import Settings
from market_data_pipeline.verify import Kind, SweepReport, sweep

SHOWN = 100


def build_verify_job(keys: Sequence[SeriesKey], settings: Settings, name: str, description: str) -> dg.JobDefinition:
    """The job that compares the archives of series with their ledgers.

    Args:
        keys: The series; those of which nothing is held cost no request.
        settings: Where the ledgers lie, and where the archive is.
        name: Of the job.
        description: Of the job.
    """

    @dg.op(
        name="sweep",
        out=dg.Out(dg.Nothing),
        required_resource_keys={LIFE},
        description=description,
    )
    def sweep_op(context: dg.OpExecutionContext) -> None:
        # Imported by runs only: a code location that is merely looked at needs no HTTP.
        from market_data_pipeline.sources.vision import Archive

        with closing(Archive(settings)) as archive:
            report = sweep(settings, keys, archive)
        metadata = report_metadata(report)
        context.log.info(
            "%d archives of %d series compared in %d requests: %s",
            sum(report.archives.values()),
            len(report.archives),
            report.requests,
            ", ".join(f"{len(report.of(kind))} {kind.value}" for kind in Kind),
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

    @dg.job(name=name, description=description)
    def verify() -> None:
        sweep_op()

    return verify


def report_metadata(report: SweepReport) -> dict[str, dg.MetadataValue]:
    """What a sweep found, for the run's page: numbers, and a table of the archives that are not as they were."""
    numbers = {
        "archives": sum(report.archives.values()),
        "requests": report.requests,
        **{kind.value: len(report.of(kind)) for kind in Kind},
        "days without an ETag on record": report.unproven,
        **({"not compared": len(report.not_reached)} if report.not_reached else {}),
    }
    metadata: dict[str, dg.MetadataValue] = {name: dg.MetadataValue.int(number) for name, number in numbers.items()}
    if report.discoveries:
        metadata["found"] = dg.MetadataValue.table(
            [
                dg.TableRecord(
                    {
                        "what": found.kind.value,
                        "series": str(found.key),
                        "first day": found.days[0].isoformat(),
                        "days": len(found.days),
                        "archive": found.archive.rsplit("/", 1)[-1],
                    }
                )
                for found in report.discoveries[:SHOWN]
            ]
        )
    return metadata
