"""What a run of the job ``compact`` does, and its report."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from market_data_pipeline.compacting import compact
from market_data_pipeline.series import SeriesKey
from market_data_pipeline.settings import Settings

_SHOWN = 100


def close_months(context: dg.OpExecutionContext, keys: Sequence[SeriesKey], settings: Settings) -> None:
    """Close the months of series that may be closed, remove the files of days whose month was, and tell of both.

    Args:
        context: Of the job's op.
        keys: The series; those that stay in days are passed over.
        settings: Where the lake is.

    Raises:
        dagster.Failure: series were left as they were; the others were done.
    """
    report = compact(settings, keys)
    metadata: dict[str, dg.MetadataValue] = {
        "months closed": dg.MetadataValue.int(sum(map(len, report.closed.values()))),
        "files of days removed": dg.MetadataValue.int(report.removed),
        "files of days that wait": dg.MetadataValue.int(report.waiting),
    }
    if report.closed:
        shown = list(report.closed.items())[:_SHOWN]
        metadata["closed"] = dg.MetadataValue.table(
            [dg.TableRecord({"series": str(key), "months": " ".join(months)}) for key, months in shown]
        )
    if report.troubles:
        raise dg.Failure(
            description=f"{len(report.troubles)} series were left as they were. "
            + " ".join(f"{key}: {reason}" for key, reason in list(report.troubles.items())[:5]),
            metadata=metadata,
            allow_retries=False,
        )
    context.add_output_metadata(metadata)
