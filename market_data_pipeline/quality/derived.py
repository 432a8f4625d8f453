"""Mark derived data by its sources: a day made of days that are incomplete or fail their checks says so. Pure.

Deciding whether a day is complete does not belong here (``lake.states``), nor writing the day (``defs.bodies``).
"""

from __future__ import annotations

from collections.abc import Mapping

from market_data_pipeline.day import DayRecord
from market_data_pipeline.findings import SOURCE, Finding, Severity
from market_data_pipeline.lake.states import faults_of_rows
from market_data_pipeline.series import SeriesKey


def source_findings(made_of: Mapping[SeriesKey, DayRecord | None]) -> tuple[Finding, ...]:
    """Return a failing integrity finding for each source whose day is not complete.

    Args:
        made_of: Ledger row of the day in each source; None if the source has no row.
    """
    found = []
    for key, row in made_of.items():
        if row is not None and (faults := source_mark(row)):
            said = ", ".join(f"{rows:,} rows {rule}" if rows else rule for rule, rows in faults)
            message = f"Made of {key}, whose day is incomplete or fails its checks: {said}."
            found.append(
                Finding(
                    check="integrity",
                    rule=SOURCE,
                    severity=Severity.ERROR,
                    count=sum(rows for _, rows in faults),
                    message=message,
                    evidence=said,
                    faults=faults,
                )
            )
    return tuple(found)


Mark = tuple[tuple[str, int], ...]
"""Faults of a day: each rule, verdict or kind of failure, with the number of rows that it concerns."""


def source_mark(source: DayRecord) -> Mark:
    """Return the faults of a source's day, as the derived day stores them; none if it is complete."""
    return tuple((fault.rule, fault.rows) for fault in faults_of_rows(source))


def marked_with(derived: DayRecord) -> Mark:
    """Return the faults of the source that a derived day was marked with when it was made."""
    marks = (finding.faults or () for finding in derived.findings_list() if finding.rule == SOURCE)
    return tuple(fault for mark in marks for fault in mark)
