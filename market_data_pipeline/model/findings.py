"""Findings of the checks of a day, and their verdicts.

Findings come from ``checks``, and ``lake`` stores them. The checks themselves do not belong here.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter


class Severity(StrEnum):
    """``error``: the check fails. ``warn``: it fails as a warning. ``info``: the check passes."""

    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class Verdict(StrEnum):
    """Reason for missing or flat rows: the rules of the gaps check. A verdict comes from evidence, never from a date.

    ``checks/verdicts.py`` has the order of precedence.
    """

    NOT_LISTED = "not_listed"
    """Before the listing, or after its end."""
    HEALED = "healed"
    """The rows are missing in the archive and were gap-filled from REST."""
    OUTAGE = "outage"
    """No trade took place: REST has no candle either, or the aggTrade ids are consecutive or belong to another day."""
    ARCHIVE_DEFECT = "archive_defect"
    """Trades took place, but the rows are missing in the archive, and REST could not fill them."""
    UNEXPLAINED = "unexplained"
    """The answers of the sources contradict each other."""
    UNPUBLISHED = "unpublished"
    """Not known yet: the archive is late, the day is provisional, or REST did not answer."""
    UNCONFIRMED = "unconfirmed"
    """Flat rows of the whole market, which may be a fault of the archive. REST has not answered yet."""
    SUSPENDED = "suspended"
    """Flat rows (no volume, no trade) while every other stored symbol of the market was flat or missing, too."""
    QUIET = "quiet"
    """Flat rows without a trade, while others traded or with no other symbol to compare."""


VERDICT_SEVERITY = {
    Verdict.NOT_LISTED: Severity.INFO,
    Verdict.HEALED: Severity.INFO,
    Verdict.OUTAGE: Severity.INFO,
    Verdict.ARCHIVE_DEFECT: Severity.ERROR,
    Verdict.UNEXPLAINED: Severity.ERROR,
    Verdict.UNPUBLISHED: Severity.WARN,
    Verdict.UNCONFIRMED: Severity.WARN,
    Verdict.SUSPENDED: Severity.INFO,
    Verdict.QUIET: Severity.INFO,
}
"""Severity of each verdict: the gaps check passes, warns or fails."""

MISSING = frozenset({Verdict.OUTAGE, Verdict.ARCHIVE_DEFECT, Verdict.UNEXPLAINED, Verdict.UNPUBLISHED})
"""Verdicts on missing rows of a listed symbol."""

FLAT = frozenset({Verdict.UNCONFIRMED, Verdict.SUSPENDED, Verdict.QUIET})
"""Verdicts on stored rows without a trade."""

OPEN = frozenset({Verdict.ARCHIVE_DEFECT, Verdict.UNPUBLISHED, Verdict.UNCONFIRMED})
"""Verdicts that another attempt may change. Such a day is retried with backoff."""


class Basis(StrEnum):
    """Basis of a finding, for code. The evidence explains the same to people."""

    MARKET_NOT_COMPARED = "market_not_compared"
    """Flat candles that were not compared with the other series of the market yet."""
    NO_OTHER_SERIES = "no_other_series"
    """Flat candles without another stored series that shows if the market traded."""
    TRADED = "traded"
    """Flat candles of the archive in which trades took place. REST does not have these trades either."""
    PROVISIONAL = "provisional"
    """Missing rows of a day whose archive is not published yet."""
    WEIGHT_SPENT = "weight_spent"
    """Later trades of the day were not fetched, because the run had spent its REST weight."""
    RULE_REPLACED = "rule_replaced"
    """A rule that no longer exists. The day is checked again."""


class RestAnswer(BaseModel):
    """Answer of REST to a request for rows that the archive does not have.

    Attributes:
        answered: True if REST answered. A permanent refusal counts as an answer.
        reason: Reason for a refusal or a missing answer. Empty if REST answered with rows, or with none.
        elsewhere: True if REST has the rows with times of another day.
        beyond_reach: True if the rows are older than the reach of REST, so that a retry is useless.
    """

    model_config = ConfigDict(frozen=True)

    answered: bool
    reason: str = ""
    elsewhere: bool = False
    beyond_reach: bool = False


CheckName = Literal["integrity", "gaps"]
DAY_CHECKS: tuple[CheckName, ...] = ("integrity", "gaps")


class Range(BaseModel):
    """A run of consecutive rows, by key, both ends included.

    Attributes:
        first: Key of the first row: open_time in microseconds since 1970 (UTC), or an agg_trade_id.
        last: Key of the last row.
    """

    model_config = ConfigDict(frozen=True)

    first: int
    last: int
    count: int


class Finding(BaseModel):
    """One result of a check of one day of one series.

    Attributes:
        rule: Short name of the rule, e.g. ``price_range``. In the gaps check, a :class:`Verdict`.
        count: Number of affected rows.
        message: A sentence for people.
        ranges: The affected rows, at most ``MAX_RANGES`` ranges.
        evidence: Evidence of a verdict, in words. For changed rows, the values before and after.
        basis: Basis of the verdict, for code. None if no code needs it.
        rest: Answer of REST for the rows. None if there was no request.
        faults: For a mark on derived data, the rules that its source breaks, with the number of rows of each.
    """

    model_config = ConfigDict(frozen=True)

    check: CheckName
    rule: str
    severity: Severity
    count: int
    message: str
    ranges: tuple[Range, ...] = ()
    evidence: str = ""
    basis: Basis | None = None
    rest: RestAnswer | None = None
    faults: tuple[tuple[str, int], ...] | None = None

    @property
    def open(self) -> bool:
        """Return True if another attempt may change the verdict."""
        return self.rule in OPEN and not (self.rest is not None and self.rest.beyond_reach)


def integrity_finding(
    rule: str, severity: Severity, count: int, message: str, ranges: tuple[Range, ...] = (), evidence: str = ""
) -> Finding:
    """Return a finding of the integrity check."""
    return Finding(
        check="integrity", rule=rule, severity=severity, count=count, message=message, ranges=ranges, evidence=evidence
    )


ACROSS_MIDNIGHT = "across_midnight"
"""Rule for trades on both sides of midnight."""

OFF_GRID = "off_grid"
"""Rule for candles that do not begin at multiples of their interval. Its evidence is REST's rows for their time."""

FLAT_FILLED = "flat_filled"
"""Rule for candles that are flat in the archive and were stored from REST, which has trades in them."""

FLAT_CONFIRMED = "flat_confirmed"
"""Rule for spans of flat candles in which REST has no trade either."""

FLAT_REFUSED = "flat_refused"
"""Rule for spans of flat candles that REST refuses to serve, for example for a symbol it no longer knows."""

SOURCE = "source"
"""Rule for derived data made of days that are incomplete or fail their checks."""

HISTORY = frozenset(
    {
        "order",
        "duplicates",
        "checksum_missing",
        "checksum_accepted",
        "disagreement",
        "became_final",
        "replaced",
        ACROSS_MIDNIGHT,
        OFF_GRID,
        FLAT_FILLED,
        FLAT_CONFIRMED,
        FLAT_REFUSED,
    }
)
"""Rules that record what happened to a day. All others can be recomputed from its rows."""

MAX_RANGES = 100
"""Most ranges of a finding. Its count always includes all rows."""

_FINDINGS = TypeAdapter(tuple[Finding, ...])


def ranges_of(findings: Iterable[Finding], rule: str) -> tuple[Range, ...]:
    """Return the ranges of all findings of a rule."""
    return tuple(range_ for finding in findings if finding.rule == rule for range_ in finding.ranges)


def to_json(findings: Iterable[Finding]) -> str:
    """Return findings in the form of a ledger."""
    return _FINDINGS.dump_json(tuple(findings), exclude_none=True).decode()


def from_json(text: str) -> tuple[Finding, ...]:
    """Parse the text of :func:`to_json`."""
    return _FINDINGS.validate_json(text or "[]")


def verdicts_of(findings: Iterable[Finding]) -> str:
    """Return the distinct verdicts of the gaps check, joined by ``+`` as in a ledger."""
    return "+".join(dict.fromkeys(finding.rule for finding in findings if finding.check == "gaps"))


def bases_of(findings: Iterable[Finding]) -> str:
    """Return the distinct bases of findings, joined by ``+`` as in a ledger."""
    return "+".join(dict.fromkeys(finding.basis for finding in findings if finding.basis is not None))


def shortened(text: str, most: int) -> str:
    """Shorten a text to ``most`` characters. An ellipsis marks the cut."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def worst(findings: Iterable[Finding], check: CheckName) -> Severity:
    """Return the worst severity of a check's findings. Without findings it is ``info``."""
    ranks = list(Severity)
    return max((f.severity for f in findings if f.check == check), key=ranks.index, default=Severity.INFO)
