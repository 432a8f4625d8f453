"""What checks say about a day: :class:`Finding`. Written by ``quality``, kept by ``lake``, shown by Dagster and SQL."""

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
        rule: Short name of the rule, e.g. ``missing_candles``.
        severity: What it means for the check.
        count: How many rows it concerns.
        message: A sentence for people.
        ranges: Where, as far as ``MAX_RANGES`` allows.
    """

    model_config = ConfigDict(frozen=True)

    check: CheckName
    rule: str
    severity: Severity
    count: int
    message: str
    ranges: tuple[Range, ...] = ()


MAX_RANGES = 100
"""Ranges that a finding keeps; its count always tells of all rows."""

_FINDINGS = TypeAdapter(tuple[Finding, ...])


def to_json(findings: Iterable[Finding]) -> str:
    """Findings as they stand in a ledger."""
    return _FINDINGS.dump_json(tuple(findings)).decode()


def from_json(text: str) -> tuple[Finding, ...]:
    """The inverse of :func:`to_json`."""
    return _FINDINGS.validate_json(text or "[]")


def worst(findings: Iterable[Finding], check: CheckName) -> Severity:
    """The gravest severity among a check's findings; ``info`` where there are none."""
    ranks = list(Severity)
    return max((f.severity for f in findings if f.check == check), key=ranks.index, default=Severity.INFO)
