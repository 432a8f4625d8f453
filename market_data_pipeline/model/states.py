"""What a day of a series is, in one word: for tables and calendars that look at many days, and for SQL.

What belongs here: the words and what they rest on, once in Python and once in SQL, which say the same; and what they
leave unsaid of a day that is held.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from market_data_pipeline.model.day import EMPTY, FAILED, HELD, NOT_LISTED, DayRecord
from market_data_pipeline.model.findings import SOURCE, VERDICT_SEVERITY, Severity, Verdict
from market_data_pipeline.model.provenance import ChecksumStatus


class DayState(StrEnum):
    """What a day of a series is. Of a held day, the first that fits in the order in which they stand here."""

    FAULTY = "faulty"
    """Stored, and its rows fail the integrity check."""
    INCOMPLETE = "incomplete"
    """Stored, and rows are missing that nothing explains, or flat, and nothing confirms them."""
    PROVISIONAL = "provisional"
    """Held, and not settled yet: it is fetched again when its archive is there."""
    OUTAGE = "outage"
    """Final; inside of it the exchange or the market stood still, so no rows, or flat ones, are right. It may be all of
    the day, which then has no file."""
    HEALED = "healed"
    """Final; rows that the archive lacks came from REST."""
    FINAL = "final"
    """Final, and nothing is to be said of it."""
    FAILED = "failed"
    """Asked for, and not held."""
    EMPTY = "empty"
    """Asked for, and nothing was there yet."""
    MISSING = "missing"
    """Never asked for."""
    NOT_LISTED = "not_listed"
    """The symbol was not traded on that day."""


EXPLAINED = frozenset(verdict for verdict, severity in VERDICT_SEVERITY.items() if severity is Severity.INFO)
"""Verdicts that say why rows are not there, or stand still: nothing is left to find out."""

NOT_KNOWN_YET = frozenset({Verdict.UNPUBLISHED, Verdict.UNCONFIRMED})


@dataclass(frozen=True, slots=True)
class _Rule:
    """One row of the table of states: a state, and what a day's record must say to have it. None means anything.

    Attributes:
        state: The state.
        outcome: Outcome on record.
        final: If the day is final.
        integrity: Severity of what the integrity check found.
        verdicts: Verdicts of which the gaps check gave at least one.
    """

    state: DayState
    outcome: str | None = None
    final: bool | None = None
    integrity: Severity | None = None
    verdicts: frozenset[Verdict] | None = None

    def fits(self, outcome: str, final: bool, verdicts: frozenset[str], integrity: str | None) -> bool:
        return (
            self.outcome in (None, outcome)
            and self.final in (None, final)
            and self.integrity in (None, integrity)
            and (self.verdicts is None or not self.verdicts.isdisjoint(verdicts))
        )

    def sql(self) -> str:
        """Return the same as an SQL condition."""
        found = []
        if self.outcome is not None:
            found.append(f"outcome = '{self.outcome}'")
        if self.final is not None:
            found.append("final" if self.final else "NOT final")
        if self.integrity is not None:
            found.append(f"integrity = '{self.integrity}'")
        if self.verdicts is not None:
            words = ", ".join(f"'{verdict}'" for verdict in sorted(self.verdicts))
            found.append(f"list_has_any(string_split(coalesce(verdicts, ''), '+'), [{words}])")
        return " AND ".join(found) or "true"


RULES = (
    _Rule(DayState.OUTAGE, outcome=EMPTY, final=True, verdicts=frozenset({Verdict.OUTAGE})),
    _Rule(DayState.EMPTY, outcome=EMPTY),
    _Rule(DayState.FAILED, outcome=FAILED),
    _Rule(DayState.NOT_LISTED, outcome=NOT_LISTED),
    _Rule(DayState.FAULTY, integrity=Severity.ERROR),
    _Rule(DayState.INCOMPLETE, verdicts=frozenset({Verdict.ARCHIVE_DEFECT, Verdict.UNEXPLAINED})),
    # A provisional day is not finished, so rows that are still to come are no news.
    _Rule(DayState.INCOMPLETE, final=True, verdicts=NOT_KNOWN_YET),
    _Rule(DayState.PROVISIONAL, final=False),
    _Rule(DayState.OUTAGE, verdicts=frozenset({Verdict.OUTAGE, Verdict.SUSPENDED})),
    _Rule(DayState.HEALED, verdicts=frozenset({Verdict.HEALED})),
    _Rule(DayState.FINAL),
)
"""The state of a day on record is that of the first rule that fits. SQL and Python both read this table."""


@lru_cache(maxsize=1024)
def state_of(outcome: str, final: bool, verdicts: str, integrity: str | None = None) -> DayState:
    """Return the state of a day on record.

    Args:
        outcome: As in the ledger.
        final: If the day is final.
        verdicts: Verdicts of the gaps check, joined by ``+``.
        integrity: Severity of what the integrity check found.

    >>> state_of("held", True, "quiet+outage").value
    'outage'
    """
    found = frozenset(verdicts.split("+"))
    return next(rule.state for rule in RULES if rule.fits(outcome, final, found, integrity))


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason why a stored day does not count as complete.

    Attributes:
        rule: Rule of the integrity check, verdict of the gaps check, or kind of failure of the newest attempt.
        rows: Number of rows it concerns; 0 if it concerns the day as a whole.
        said: The evidence, or the finding in words.
    """

    rule: str
    rows: int
    said: str


def is_complete(row: DayRecord) -> bool:
    """Return True if a stored day has all its rows, or an explanation for them, and its checks do not fail.

    Checks that only warn pass, and so does a provisional day that still waits for rows. A day that is not stored is not
    complete. This is the rule of the exit code, of ``status``, of ``final_only`` and of the marks on derived data.
    """
    if row.outcome != HELD or _was_refused(row):
        return False
    return state_of(row.outcome, row.final, row.verdicts, row.integrity) not in (DayState.FAULTY, DayState.INCOMPLETE)


def faults_of(row: DayRecord) -> list[Fault]:
    """Return the reasons why a stored day is not complete; none if it is, or if it is not stored."""
    if row.outcome != HELD or is_complete(row):
        return []
    refused = [Fault(row.failure or "", 0, row.reason or "")] if _was_refused(row) else []
    return [*refused, *faults_of_rows(row)]


def faults_of_rows(row: DayRecord) -> list[Fault]:
    """Return those reasons that lie in the stored rows, so that whatever is made of them has them, too."""
    if row.outcome != HELD or row.findings == "[]":
        return []
    found = []
    for finding in row.findings_list():
        open_still = row.final and finding.check == "gaps" and finding.rule in NOT_KNOWN_YET
        if finding.severity is Severity.ERROR or open_still:
            found.append(Fault(finding.rule, finding.count, finding.evidence or finding.message))
    return found


def _was_refused(row: DayRecord) -> bool:
    """Return True if the newest attempt failed and its failure still concerns the stored rows."""
    return row.failure is not None and (not row.final or row.replaced_by is not None)


def doubts_of(row: DayRecord) -> list[str]:
    """What keeps a day that is held from being beyond doubt, a sentence each: whoever uses it should know of it.

    Another archive is there that was refused, or not fetched yet; a person accepted a checksum that does not match; the
    integrity check fails.

    Args:
        row: The day's row in the ledger.
    """
    if row.outcome != HELD:
        return []
    said = []
    if row.replaced_by is not None:
        why = ": ".join(filter(None, (row.failure, row.reason)))
        said.append(
            f"another archive was published, and could not be taken ({why})"
            if why
            else "another archive was published, and is to be fetched"
        )
    if row.checksum == ChecksumStatus.ACCEPTED:
        said.append("its archive does not match the published checksum, and was accepted by a person")
    if row.integrity == Severity.ERROR:
        failing = (f for f in row.findings_list() if f.check == "integrity" and f.severity is Severity.ERROR)
        said.append(f"the integrity check fails ({' '.join(f.message for f in failing)})")
    return said


Mark = tuple[tuple[str, int], ...]
"""Faults of a day: each rule, verdict or kind of failure, with the number of rows that it concerns."""


def source_mark(source: DayRecord) -> Mark:
    """Return the faults of a source's day, as the derived day stores them; none if it is complete."""
    return tuple((fault.rule, fault.rows) for fault in faults_of_rows(source))


def marked_with(derived: DayRecord) -> Mark:
    """Return the faults of the source that a derived day was marked with when it was made."""
    marks = (finding.faults or () for finding in derived.findings_list() if finding.rule == SOURCE)
    return tuple(fault for mark in marks for fault in mark)
