"""What checks say about a day: :class:`Finding`. Written by ``checks``, kept by ``lake``, shown by Dagster and SQL."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter


class Severity(StrEnum):
    """``error``: the check fails. ``warn``: it fails as a warning. ``info``: said, and the check passes."""

    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class Verdict(StrEnum):
    """Why rows are not there, or stand still; the rules of the gaps check. Each comes from evidence, never from a date.

    Which is given where evidence allows several is said in ``checks/verdicts.py``.
    """

    NOT_LISTED = "not_listed"
    """Before the listing, or after its end."""
    HEALED = "healed"
    """The archive lacks them, REST had them: they were filled in from there."""
    OUTAGE = "outage"
    """No trade took place: REST has no candle either, or the ids of aggTrades run on, or are those of another day."""
    ARCHIVE_DEFECT = "archive_defect"
    """Trades took place, the archive lacks the rows, and REST was not able to fill them in."""
    UNEXPLAINED = "unexplained"
    """Every source was asked, and what they answer does not fit together."""
    UNPUBLISHED = "unpublished"
    """Not known yet: the archive is late, the day is provisional, or REST could not be asked."""
    UNCONFIRMED = "unconfirmed"
    """Flat rows that may be a fault of the archive, since the whole market shares them; REST has not answered yet."""
    SUSPENDED = "suspended"
    """Flat rows (no volume, no trade) while every other symbol held of the market was flat or missing, too."""
    QUIET = "quiet"
    """Flat rows while others traded, or with no other symbol to compare: simply no trade."""


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
"""What a verdict means for the gaps check: it passes, warns or fails."""

LACKING = frozenset({Verdict.OUTAGE, Verdict.ARCHIVE_DEFECT, Verdict.UNEXPLAINED, Verdict.UNPUBLISHED})
"""Verdicts on rows that are not in the lake although the symbol was listed."""

FLAT = frozenset({Verdict.UNCONFIRMED, Verdict.SUSPENDED, Verdict.QUIET})
"""Verdicts on rows that are there and say that nothing was traded."""

OPEN = frozenset({Verdict.ARCHIVE_DEFECT, Verdict.UNPUBLISHED, Verdict.UNCONFIRMED})
"""Verdicts that another attempt may change: such a day is asked for again, with growing pauses."""


class Basis(StrEnum):
    """The ground of a finding, as far as code needs to know it. The evidence says the same to people."""

    MARKET_NOT_COMPARED = "market_not_compared"
    """Flat candles. The other series of the market were not compared yet."""
    NO_OTHER_SERIES = "no_other_series"
    """Flat candles. No other series that is stored says if the market traded."""
    TRADED = "traded"
    """Flat candles of the archive in which trades took place that REST does not have either."""
    PROVISIONAL = "provisional"
    """Missing rows of a day whose archive is not published yet."""
    WEIGHT_SPENT = "weight_spent"
    """Later trades of the day were not fetched, because the run had spent its REST weight."""
    RULE_REPLACED = "rule_replaced"
    """A rule that this version no longer has. The day is checked again."""


class RestAnswer(BaseModel):
    """What REST said when it was asked for rows that the archive does not have.

    Attributes:
        answered: True if it answered. A refusal that it would repeat is an answer.
        reason: Why it did not answer, or refused. Empty if it answered with rows, or said that there are none.
        elsewhere: It has the rows, with times of another day.
        beyond_reach: The rows are older than what REST serves, so it is not asked again.
    """

    model_config = ConfigDict(frozen=True)

    answered: bool
    reason: str = ""
    elsewhere: bool = False
    beyond_reach: bool = False


CheckName = Literal["integrity", "gaps"]
CHECKS: tuple[CheckName, ...] = ("integrity", "gaps")


class Range(BaseModel):
    """A run of consecutive rows, by key, both ends included.

    Attributes:
        first: Key of the first row: open_time in microseconds since 1970 (UTC), or an agg_trade_id.
        last: Key of the last row.
        count: How many rows lie in it.
    """

    model_config = ConfigDict(frozen=True)

    first: int
    last: int
    count: int


class Finding(BaseModel):
    """One thing that a check has to say about one day of one series.

    Attributes:
        check: The check that says it.
        rule: Short name of the rule, e.g. ``price_range``; of the gaps check, a :class:`Verdict`.
        severity: What it means for the check.
        count: How many rows it concerns.
        message: A sentence for people.
        ranges: Where, as far as ``MAX_RANGES`` allows.
        evidence: Of a verdict: what it rests on, in words. Of rows that changed: the values before and after.
        basis: What it rests on, for code; None if no code asks.
        rest: What REST said of the rows; None if it was not asked.
        faults: Of a mark on derived data: the rules that its source breaks, and the number of rows of each.
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
        """Return True if it is a verdict that another attempt may change."""
        return self.rule in OPEN and not (self.rest is not None and self.rest.beyond_reach)


ACROSS_MIDNIGHT = "across_midnight"
"""Rule that tells of trades on both sides of midnight."""

OFF_GRID = "off_grid"
"""Rule that tells of candles that do not begin at multiples of their interval, and of what REST has in their place."""

FLAT_FILLED = "flat_filled"
"""Rule that tells of candles that are flat in the archive, and for which REST's stand, since it has trades in them."""

FLAT_CONFIRMED = "flat_confirmed"
"""Rule that tells of spans whose flat candles have no trade by REST either."""

FLAT_REFUSED = "flat_refused"
"""Rule that tells of spans of whose flat candles REST refuses to tell, as of a symbol that it no longer knows."""

SOURCE = "source"
"""Rule that marks derived data made of days that are incomplete or fail their checks."""

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
"""Rules that tell what was done to a day; what all others say can be worked out again from its rows."""

MAX_RANGES = 100
"""Ranges that a finding keeps; its count always tells of all rows."""

_FINDINGS = TypeAdapter(tuple[Finding, ...])


def ranges_of(findings: Iterable[Finding], rule: str) -> tuple[Range, ...]:
    """The ranges of all findings of a rule."""
    return tuple(range_ for finding in findings if finding.rule == rule for range_ in finding.ranges)


def to_json(findings: Iterable[Finding]) -> str:
    """Findings as they stand in a ledger."""
    return _FINDINGS.dump_json(tuple(findings), exclude_none=True).decode()


def from_json(text: str) -> tuple[Finding, ...]:
    """The inverse of :func:`to_json`."""
    return _FINDINGS.validate_json(text or "[]")


def verdicts_of(findings: Iterable[Finding]) -> str:
    """The distinct verdicts of the gaps check, joined by ``+``, as they stand in a ledger."""
    return "+".join(dict.fromkeys(finding.rule for finding in findings if finding.check == "gaps"))


def bases_of(findings: Iterable[Finding]) -> str:
    """The distinct bases of findings, joined by ``+``, as they stand in a ledger."""
    return "+".join(dict.fromkeys(finding.basis for finding in findings if finding.basis is not None))


def shortened(text: str, most: int) -> str:
    """A text for where there is room for ``most`` characters; that some are left out is seen."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def worst(findings: Iterable[Finding], check: CheckName) -> Severity:
    """The gravest severity among a check's findings; ``info`` where there are none."""
    ranks = list(Severity)
    return max((f.severity for f in findings if f.check == check), key=ranks.index, default=Severity.INFO)
