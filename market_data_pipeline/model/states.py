"""State and condition of a day in one word each, for tables, calendars and SQL. Python and SQL read the same tables.

It also lists the faults and doubts of a stored day. The needs of a day do not belong here (``needs``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from functools import lru_cache

from market_data_pipeline.model.day import EMPTY, FAILED, HELD, NOT_LISTED, DayRecord
from market_data_pipeline.model.findings import SOURCE, VERDICT_SEVERITY, Severity, Verdict
from market_data_pipeline.model.provenance import ChecksumStatus


class DayState(StrEnum):
    """State of a day. A stored day has the first state that fits, in this order."""

    FAULTY = "faulty"
    """Stored, but its rows fail the integrity check."""
    INCOMPLETE = "incomplete"
    """Stored, but rows are missing without an explanation, or flat without a confirmation."""
    PROVISIONAL = "provisional"
    """Stored, but not final. The day is fetched again when its archive is published."""
    OUTAGE = "outage"
    """Final, with a halt of the exchange or the market, so that missing or flat rows are right. A halt of the whole day
    leaves no file."""
    HEALED = "healed"
    """Final, with rows gap-filled from REST."""
    FINAL = "final"
    """Final, without remarks."""
    FAILED = "failed"
    """Fetched, but not stored."""
    EMPTY = "empty"
    """Fetched, but no source had rows yet."""
    MISSING = "missing"
    """Never fetched."""
    NOT_LISTED = "not_listed"
    """The symbol was not traded on that day."""


EXPLAINED = frozenset(verdict for verdict, severity in VERDICT_SEVERITY.items() if severity is Severity.INFO)
"""Verdicts that explain missing or flat rows. Nothing is left to find out."""

_NOT_KNOWN_YET = frozenset({Verdict.UNPUBLISHED, Verdict.UNCONFIRMED})


@dataclass(frozen=True, slots=True)
class _Rule:
    """A state and the conditions for it. None means any value.

    Attributes:
        final: True if the day must be final, False if it must not.
        integrity: Worst severity of the integrity check.
        verdicts: The gaps check gave at least one of these verdicts.
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
        """Return the conditions as an SQL expression."""
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
    # Missing rows of a provisional day may still come.
    _Rule(DayState.INCOMPLETE, final=True, verdicts=_NOT_KNOWN_YET),
    _Rule(DayState.PROVISIONAL, final=False),
    _Rule(DayState.OUTAGE, verdicts=frozenset({Verdict.OUTAGE, Verdict.SUSPENDED})),
    _Rule(DayState.HEALED, verdicts=frozenset({Verdict.HEALED})),
    _Rule(DayState.FINAL),
)
"""The first rule that fits gives the state of a day. SQL and Python both read this table."""


@lru_cache(maxsize=1024)
def state_of(outcome: str, final: bool, verdicts: str, integrity: str | None = None) -> DayState:
    """Return the state of a day on record.

    Args:
        verdicts: Verdicts of the gaps check, joined by ``+``.
        integrity: Worst severity of the integrity check.

    >>> state_of("held", True, "quiet+outage").value
    'outage'
    """
    found = frozenset(verdicts.split("+"))
    return next(rule.state for rule in RULES if rule.fits(outcome, final, found, integrity))


class Condition(StrEnum):
    """Condition of a day for readers of its data."""

    AVAILABLE = "available"
    """Final, and complete."""
    DEGRADED = "degraded"
    """Stored, but rows are missing without an explanation, a check fails, or the archive is in doubt."""
    PENDING = "pending"
    """The day is not over, or its rows are stored and wait for their archive."""
    MISSING = "missing"
    """Not stored, although the symbol was listed."""
    EXPLAINED = "explained"
    """Final, with rows that the source does not have: nothing was traded, or the symbol was not listed."""


@dataclass(frozen=True, slots=True)
class _Fact:
    """A fact of a day on record, for Python and for SQL.

    Attributes:
        sql: The fact over the columns of a ledger. ``{today}`` is the current day.
        is_true: The fact in Python, from the record and the current day.
    """

    sql: str
    is_true: Callable[[DayRecord, date], bool]


_FACTS = {
    "past": _Fact("day < {today}", lambda row, today: row.day < today),
    "refused": _Fact(
        f"outcome = '{HELD}' AND failure IS NOT NULL AND (NOT final OR replaced_by IS NOT NULL)",
        lambda row, _: row.outcome == HELD and _was_refused(row),
    ),
    "replaced": _Fact(
        f"outcome = '{HELD}' AND final AND replaced_by IS NOT NULL",
        lambda row, _: row.is_stored_final and row.replaced_by is not None,
    ),
    "checksum_accepted": _Fact(
        f"outcome = '{HELD}' AND checksum = '{ChecksumStatus.ACCEPTED}'",
        lambda row, _: row.outcome == HELD and row.checksum == ChecksumStatus.ACCEPTED,
    ),
}


@dataclass(frozen=True, slots=True)
class _ConditionRule:
    """A condition with its reason in one word, and when it applies: in this state, if this fact is true, or both."""

    condition: Condition
    reason: str
    state: DayState | None = None
    fact: str | None = None

    def fits(self, state: DayState, row: DayRecord, today: date) -> bool:
        return self.state in (None, state) and (self.fact is None or _FACTS[self.fact].is_true(row, today))

    def sql(self, today: str) -> str:
        found = [] if self.state is None else [f"state = '{self.state}'"]
        found += [] if self.fact is None else [f"({_FACTS[self.fact].sql.format(today=today)})"]
        return " AND ".join(found)


CONDITION_RULES = (
    _ConditionRule(Condition.DEGRADED, "faulty", DayState.FAULTY),
    _ConditionRule(Condition.DEGRADED, "incomplete", DayState.INCOMPLETE),
    _ConditionRule(Condition.DEGRADED, "refused", fact="refused"),
    _ConditionRule(Condition.DEGRADED, "replaced", fact="replaced"),
    _ConditionRule(Condition.DEGRADED, "checksum_accepted", fact="checksum_accepted"),
    _ConditionRule(Condition.PENDING, "provisional", DayState.PROVISIONAL),
    _ConditionRule(Condition.EXPLAINED, "outage", DayState.OUTAGE),
    _ConditionRule(Condition.EXPLAINED, "not_listed", DayState.NOT_LISTED),
    _ConditionRule(Condition.AVAILABLE, "healed", DayState.HEALED),
    _ConditionRule(Condition.AVAILABLE, "final", DayState.FINAL),
    _ConditionRule(Condition.MISSING, "failed", DayState.FAILED, "past"),
    _ConditionRule(Condition.MISSING, "no_rows", DayState.EMPTY, "past"),
    _ConditionRule(Condition.MISSING, "never_fetched", DayState.MISSING, "past"),
    _ConditionRule(Condition.PENDING, "not_over", DayState.FAILED),
    _ConditionRule(Condition.PENDING, "not_over", DayState.EMPTY),
    _ConditionRule(Condition.PENDING, "not_over", DayState.MISSING),
)
"""The first rule that fits gives the condition of a day, and its reason. SQL and Python both read this table."""


def condition_of(state: DayState, row: DayRecord, today: date) -> tuple[Condition, str]:
    """Return the condition of a day and its reason.

    Args:
        state: State of the day.
        row: Its record. For a day that is not on record, any record of its day.
        today: The current day in UTC.

    >>> day = date(2024, 1, 1)
    >>> condition_of(DayState.MISSING, DayRecord(day, EMPTY), date(2024, 1, 9))
    (<Condition.MISSING: 'missing'>, 'never_fetched')
    """
    found = next(rule for rule in CONDITION_RULES if rule.fits(state, row, today))
    return found.condition, found.reason


def evidence_of(row: DayRecord) -> str:
    """Return the evidence for the condition of a day on record: another archive, the failure, findings that matter.

    Findings of the integrity check that pass are left out. ``sql/views.py`` makes the same text.
    """
    texts = [f"another archive is published: {row.replaced_by}"] if row.replaced_by else []
    if row.failure is not None:
        texts.append(": ".join(filter(None, (row.failure, row.reason))))
    texts += [
        f"{finding.count} {finding.rule}: {finding.evidence or finding.message}"
        for finding in row.findings_list()
        if finding.check == "gaps" or finding.severity is not Severity.INFO
    ]
    return "; ".join(texts)


@dataclass(frozen=True, slots=True)
class DayDefect:
    """One reason why a stored day does not count as complete.

    Attributes:
        rule: Rule of the integrity check, verdict of the gaps check, or kind of failure of the newest attempt.
        rows: Number of affected rows. 0 means the whole day.
        text: The evidence, or the message of the finding.
    """

    rule: str
    rows: int
    text: str


def is_complete(row: DayRecord) -> bool:
    """Return True if a day is stored, all its missing rows are explained, and its checks do not fail.

    Checks that only warn pass. A provisional day that waits for rows passes, too. The exit code, ``status``,
    ``final_only`` and the marks on derived data use this rule.
    """
    if row.outcome != HELD or _was_refused(row):
        return False
    return state_of(row.outcome, row.final, row.verdicts, row.integrity) not in (DayState.FAULTY, DayState.INCOMPLETE)


def faults_of(row: DayRecord) -> list[DayDefect]:
    """Return the reasons why a stored day is not complete. The list is empty if it is complete or not stored."""
    if row.outcome != HELD or is_complete(row):
        return []
    refused = [DayDefect(row.failure or "", 0, row.reason or "")] if _was_refused(row) else []
    return [*refused, *faults_of_rows(row)]


def faults_of_rows(row: DayRecord) -> list[DayDefect]:
    """Return the faults of the stored rows. Data derived from the rows inherits them."""
    if row.outcome != HELD or row.findings == "[]":
        return []
    found = []
    for finding in row.findings_list():
        open_still = row.final and finding.check == "gaps" and finding.rule in _NOT_KNOWN_YET
        if finding.severity is Severity.ERROR or open_still:
            found.append(DayDefect(finding.rule, finding.count, finding.evidence or finding.message))
    return found


def _was_refused(row: DayRecord) -> bool:
    """Return True if the newest attempt failed and the failure still affects the stored rows."""
    return row.failure is not None and (not row.final or row.replaced_by is not None)


def doubts_of(row: DayRecord) -> list[str]:
    """Return the doubts about a stored day, one sentence each.

    They are: another archive was refused or not fetched yet, a person accepted a wrong checksum, or the integrity
    check fails.
    """
    if row.outcome != HELD:
        return []
    doubts = []
    if row.replaced_by is not None:
        why = ": ".join(filter(None, (row.failure, row.reason)))
        doubts.append(
            f"another archive was published, but could not be used ({why})"
            if why
            else "another archive was published, and must be fetched"
        )
    if row.checksum == ChecksumStatus.ACCEPTED:
        doubts.append("its archive does not match the published checksum, but a person accepted it")
    if row.integrity == Severity.ERROR:
        failing = (f for f in row.findings_list() if f.check == "integrity" and f.severity is Severity.ERROR)
        doubts.append(f"the integrity check fails ({' '.join(f.message for f in failing)})")
    return doubts


Mark = tuple[tuple[str, int], ...]
"""Faults of a day: each rule, verdict or kind of failure, with its number of affected rows."""


def source_mark(source: DayRecord) -> Mark:
    """Return the faults of a source's day in the form of the mark. The mark is empty if the day is complete."""
    return tuple((fault.rule, fault.rows) for fault in faults_of_rows(source))


def marked_with(derived: DayRecord) -> Mark:
    """Return the mark of a derived day: the faults of its source at the time of computation."""
    marks = (finding.faults or () for finding in derived.findings_list() if finding.rule == SOURCE)
    return tuple(fault for mark in marks for fault in mark)
