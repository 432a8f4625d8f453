"""What differs between two versions of a day: rows added, removed and changed; and how it is told. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import SAME_FLOAT, Ints, ints, key_ranges
from market_data_pipeline.model.datasets import Spec, spec_of
from market_data_pipeline.model.findings import Finding, Severity
from market_data_pipeline.model.series import SeriesKey, interval_us

_Values = npt.NDArray[Any]
_Mask = npt.NDArray[np.bool_]

_SHOWN = 3
"""Changed rows that a sentence shows with both values."""

KEPT = 100
"""Changed rows of a day whose values are kept: a day that differs in more of them differs as a whole."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What a later version of a day has that the earlier one had not, or the other way round.

    Attributes:
        added: Keys of rows that only the later one has.
        removed: Keys of rows that only the earlier one has.
        changed: Keys of rows that both have, with different values.
        examples: The first changed rows, at most ``KEPT``, each value that differs in words: before and after.
    """

    added: Ints
    removed: Ints
    changed: Ints
    examples: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(len(self.added) or len(self.removed) or len(self.changed))

    @property
    def keys(self) -> Ints:
        """Keys of all rows that differ, in order."""
        return np.unique(np.concatenate([self.added, self.removed, self.changed]))

    @property
    def shown(self) -> str:
        """The first few changed rows with both values, and how many there are beside them; empty where none changed."""
        return self._said(_SHOWN)

    @property
    def kept(self) -> str:
        """The changed rows with both values, as far as they are kept, joined by ``; ``, and how many there are more."""
        return self._said(KEPT)

    def _said(self, most: int) -> str:
        more = len(self.changed) - len(self.examples[:most])
        return "; ".join([*self.examples[:most], *([f"and {more} more"] if more else [])])

    def __str__(self) -> str:
        shown = f": {self.shown}" if self.examples else ""
        return f"{len(self.added)} rows added, {len(self.removed)} removed, {len(self.changed)} changed{shown}"


def difference(before: pa.Table, after: pa.Table, spec: Spec, say: Callable[[int], str]) -> Difference:
    """Compare two versions of a day, each ordered by key and without duplicates.

    Times are compared in the coarser of the two units: spot's archives are in milliseconds until 2024-12-31, REST
    speaks microseconds. Floats may differ by 1e-9 of their size.

    Args:
        before: The earlier version.
        after: The later one.
        spec: What the columns are.
        say: A key in words.
    """
    old, new = ints(before, spec.key), ints(after, spec.key)
    common, at_old, at_new = np.intersect1d(old, new, assume_unique=True, return_indices=True)
    differs: dict[str, _Mask] = {}
    values: dict[str, tuple[_Values, _Values]] = {}
    for column in spec.columns:
        if column.kind == "ignore" or column.name == spec.key:
            continue
        a, b = _values(before, column.name, column.kind)[at_old], _values(after, column.name, column.kind)[at_new]
        differs[column.name], values[column.name] = _differs(a, b, column.kind), (a, b)
    changed = np.logical_or.reduce(list(differs.values())) if len(common) else np.zeros(0, dtype=bool)
    examples = []
    for at in np.flatnonzero(changed)[:KEPT]:
        said = ", ".join(
            f"{name} {values[name][0][at]} → {values[name][1][at]}" for name in differs if differs[name][at]
        )
        examples.append(f"{say(int(common[at]))} {said}")
    return Difference(
        added=np.setdiff1d(new, old, assume_unique=True),
        removed=np.setdiff1d(old, new, assume_unique=True),
        changed=common[changed],
        examples=tuple(examples),
    )


def said(key: SeriesKey) -> Callable[[int], str]:
    """How a key of a series is said: an open time as ISO text (UTC), or an id."""
    if key.interval is None:
        return str
    return lambda us: clock.naive_from_us(us).isoformat(sep=" ")


def disagreement(key: SeriesKey, rest: pa.Table, archive: pa.Table) -> list[Finding]:
    """The finding of rows that REST and archive both have, with different values; none where they agree."""
    spec = spec_of(key)
    common = archive.filter(pa.array(np.isin(ints(archive, spec.key), ints(rest, spec.key))))
    found = difference(rest, common, spec, said(key))
    if len(found.changed) == 0:
        return []
    step = interval_us(key.interval) if key.interval else 1
    return [
        Finding(
            check="integrity",
            rule="disagreement",
            severity=Severity.WARN,
            count=len(found.changed),
            message=f"REST and the archive disagree on {len(found.changed)} rows; the archive's stand. "
            f"REST → archive: {found.shown}.",
            ranges=key_ranges(found.changed, step),
            evidence=f"REST → archive: {found.kept}",
        )
    ]


def change_finding(key: SeriesKey, rule: str, found: Difference, what: str) -> Finding:
    """The finding that tells what changed when a day was stored anew.

    Args:
        key: The series.
        rule: ``became_final`` or ``replaced``.
        found: What differs.
        what: What happened, in words.
    """
    step = interval_us(key.interval) if key.interval else 1
    return Finding(
        check="integrity",
        rule=rule,
        severity=Severity.INFO,
        count=len(found.keys),
        message=f"{what}: {found}.",
        ranges=key_ranges(found.keys, step),
        evidence=f"before → after: {found.kept}" if found.examples else "",
    )


def _values(table: pa.Table, name: str, kind: str) -> _Values:
    return ints(table, name) if kind in ("time", "int") else table.column(name).to_numpy()


def _differs(a: _Values, b: _Values, kind: str) -> _Mask:
    if kind == "float":
        unequal = ~(np.abs(a - b) <= SAME_FLOAT * np.maximum(np.abs(a), np.abs(b)))
        return np.asarray(unequal & ~(np.isnan(a) & np.isnan(b)))
    if kind == "time" and (_in_milliseconds(a) or _in_milliseconds(b)):
        return np.asarray(a // 1000 != b // 1000)
    return np.asarray(a != b)


def _in_milliseconds(times: _Values) -> bool:
    return bool((times % 1000 == 0).all())
