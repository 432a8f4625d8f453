"""Mark derived data by its sources: a day made of days that are incomplete or fail their checks says so. Pure.

Deciding whether a day is complete does not belong here (``lake.states``), nor writing the day (``defs.bodies``).
"""

from __future__ import annotations

from collections.abc import Mapping

from market_data_pipeline.findings import SOURCE, Finding, Severity
from market_data_pipeline.lake.ledger import LedgerRow
from market_data_pipeline.lake.states import faults_of_rows
from market_data_pipeline.series import SeriesKey


def source_findings(made_of: Mapping[SeriesKey, LedgerRow | None]) -> tuple[Finding, ...]:
    """Return a failing integrity finding for each source whose day is not complete.

    Args:
        made_of: Ledger row of the day in each source; None if the source has no row.
    """
    found = []
    for key, row in made_of.items():
        if row is not None and (said := source_mark(row)):
            message = f"Made of {key}, whose day is incomplete or fails its checks: {said}."
            number = sum(fault.rows for fault in faults_of_rows(row))
            found.append(
                Finding(
                    check="integrity",
                    rule=SOURCE,
                    severity=Severity.ERROR,
                    count=number,
                    message=message,
                    evidence=said,
                )
            )
    return tuple(found)


def source_mark(source: LedgerRow) -> str:
    """Return the faults of a source's day in words, as the derived day keeps them; empty if it is complete."""
    return ", ".join(
        f"{fault.rows:,} rows {fault.rule}" if fault.rows else fault.rule for fault in faults_of_rows(source)
    )


def marked_with(derived: LedgerRow) -> str:
    """Return the faults of the source that a derived day was marked with when it was made."""
    marks = (finding.evidence for finding in derived.findings_list() if finding.rule == SOURCE)
    return ", ".join(marks)
