"""Read records of version 0.1, which stored in sentences what are fields today.

They are footers with schema version 1, ledgers without the column ``bases`` and quarantine records without
``published_sha256``. No other module may parse a sentence. New forms do not belong here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from market_data_pipeline.model.findings import OFF_GRID, SOURCE, Basis, Finding, RestAnswer, Verdict

_BASES = {
    "unconfirmed: whether other symbols of the market traded meanwhile was not looked at": Basis.MARKET_NOT_COMPARED,
    "unconfirmed: no other series held": Basis.NO_OTHER_SERIES,
    "flat in the archive, but ": Basis.TRADED,
    "the day is provisional: its archive is not there yet": Basis.PROVISIONAL,
    "the run's REST weight for aggTrades was used up": Basis.WEIGHT_SPENT,
}
_RULE_REPLACED = "grid"
_BEYOND_REACH = "; only another archive can bring them"
_JUMP, _NOT_THERE = "the ids jump, and ", "REST does not have the ids in between either"
_NOBODY_ASKED = "REST was not asked"
_NOT_ASKED = f"{_NOBODY_ASKED}: "
_ELSEWHERE = "REST has these ids with times of another day"
_NO_ROWS = ("REST has no candle", "the archive has no file of the day, the next is of ")
_BY_LISTING = re.compile(r"trading (began|ended) on this day by the listing(; )?")
_BY_TRADES = re.compile(
    r", (and the ids of aggTrades run on across it, [0-9 to]+|yet \d+ aggTrades held took place there)"
)
_MAY_BE_ANSWERED = frozenset({Verdict.NOT_LISTED, Verdict.OUTAGE, Verdict.UNEXPLAINED})
_SHA256 = re.compile(r"\b[0-9a-f]{64}\b")
_FAULT = re.compile(r"(?:(?P<rows>[\d,]+) rows )?(?P<rule>\w+)")


def with_fields(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings of version 0.1 with fields parsed from their sentences."""
    return tuple(_with_fields(finding) for finding in findings)


def _with_fields(finding: Finding) -> Finding:
    if finding.rule == SOURCE:
        return finding.model_copy(update={"faults": _faults(finding.evidence)})
    return finding.model_copy(update={"basis": _basis(finding), "rest": _rest(finding)})


def _basis(finding: Finding) -> Basis | None:
    if finding.check == "gaps":
        return next((basis for begins, basis in _BASES.items() if finding.evidence.startswith(begins)), None)
    return Basis.RULE_REPLACED if finding.rule == _RULE_REPLACED else None


def _rest(finding: Finding) -> RestAnswer | None:
    evidence = finding.evidence
    if finding.check != "gaps":
        return RestAnswer(answered=True) if finding.rule == OFF_GRID and evidence else None
    if evidence == _ELSEWHERE:
        return RestAnswer(answered=True, elsewhere=True)
    if evidence.endswith(_BEYOND_REACH):
        reason = evidence.removeprefix(_JUMP).removesuffix(_BEYOND_REACH)
        return RestAnswer(answered=False, reason=reason, beyond_reach=True)
    if evidence.startswith(_JUMP):
        said = evidence.removeprefix(_JUMP)
        return RestAnswer(answered=True, reason="" if said == _NOT_THERE else said)
    if _NOT_ASKED in evidence:
        return RestAnswer(answered=False, reason=evidence.split(_NOT_ASKED, 1)[1])
    if finding.rule not in _MAY_BE_ANSWERED or evidence.endswith(_NOBODY_ASKED):
        return None
    if evidence.startswith(_NO_ROWS):
        return RestAnswer(answered=True)
    refusal = _BY_TRADES.sub("", _BY_LISTING.sub("", evidence))
    return RestAnswer(answered=True, reason=refusal) if refusal else None


def _faults(evidence: str) -> tuple[tuple[str, int], ...]:
    parts = filter(None, map(_FAULT.fullmatch, evidence.split(", ")))
    return tuple((part["rule"], int((part["rows"] or "0").replace(",", ""))) for part in parts)


def published_sha256(reason: str, sha256: str) -> str | None:
    """Return the published hash from the reason of a refused checksum.

    Args:
        sha256: The hash of the refused bytes. The reason contains it, too.
    """
    return next((found for found in _SHA256.findall(reason) if found != sha256), None)
