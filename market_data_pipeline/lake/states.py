"""What a day of a series is, in one word: for tables and calendars that look at many days, and for SQL.

What belongs here: the words and what they rest on, once in Python and once in SQL, which say the same; and what they
leave unsaid of a day that is held.
"""

from __future__ import annotations

from enum import StrEnum

from market_data_pipeline.findings import VERDICT_SEVERITY, Severity, Verdict
from market_data_pipeline.lake.ledger import EMPTY, FAILED, HELD, NOT_LISTED, LedgerRow
from market_data_pipeline.lake.provenance import ChecksumStatus


class DayState(StrEnum):
    """What a day of a series is. Of a held day, the first that fits in the order in which they stand here."""

    INCOMPLETE = "incomplete"
    """Held, and rows are missing that nothing explains, or flat, and nothing confirms them."""
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

_UNEXPLAINED = frozenset({Verdict.ARCHIVE_DEFECT, Verdict.UNEXPLAINED})
_NOT_KNOWN_YET = frozenset({Verdict.UNPUBLISHED, Verdict.UNCONFIRMED})
_STOOD_STILL = frozenset({Verdict.OUTAGE, Verdict.SUSPENDED})


def state_of(outcome: str, final: bool, verdicts: str) -> DayState:
    """The state of a day that stands in a ledger.

    Args:
        outcome: As in the ledger.
        final: Whether the day is settled.
        verdicts: Verdicts of the gaps check, joined by ``+``.

    >>> state_of("held", True, "quiet+outage").value
    'outage'
    """
    if outcome == EMPTY and final and Verdict.OUTAGE in verdicts.split("+"):
        return DayState.OUTAGE
    if outcome != HELD:
        return {FAILED: DayState.FAILED, NOT_LISTED: DayState.NOT_LISTED, EMPTY: DayState.EMPTY}[outcome]
    found = set(verdicts.split("+"))
    # Of a provisional day it is no news that something is still to come.
    if found & _UNEXPLAINED or (final and found & _NOT_KNOWN_YET):
        return DayState.INCOMPLETE
    if not final:
        return DayState.PROVISIONAL
    if found & _STOOD_STILL:
        return DayState.OUTAGE
    return DayState.HEALED if Verdict.HEALED in found else DayState.FINAL


def doubts_of(row: LedgerRow) -> list[str]:
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


def _any_of(verdicts: frozenset[Verdict]) -> str:
    words = ", ".join(f"'{verdict}'" for verdict in sorted(verdicts))
    return f"list_has_any(string_split(coalesce(verdicts, ''), '+'), [{words}])"


STATE_SQL = (
    f"CASE WHEN outcome = '{EMPTY}' AND final AND {_any_of(frozenset({Verdict.OUTAGE}))} THEN '{DayState.OUTAGE}' "
    f"WHEN outcome <> '{HELD}' THEN outcome "
    f"WHEN {_any_of(_UNEXPLAINED)} OR (final AND {_any_of(_NOT_KNOWN_YET)}) "
    f"THEN '{DayState.INCOMPLETE}' "
    f"WHEN NOT final THEN '{DayState.PROVISIONAL}' "
    f"WHEN {_any_of(_STOOD_STILL)} THEN '{DayState.OUTAGE}' "
    f"WHEN {_any_of(frozenset({Verdict.HEALED}))} THEN '{DayState.HEALED}' ELSE '{DayState.FINAL}' END"
)
""":func:`state_of` as an SQL expression over the columns ``outcome``, ``final`` and ``verdicts``."""
