"""Compare two versions of a day: rows added, removed and changed, and the findings about them. Pure.

The decision between the versions does not belong here (``ingest``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import SAME_FLOAT, Ints, ints, key_ranges
from market_data_pipeline.model.datasets import Spec, keyed_by_time, spec_of
from market_data_pipeline.model.findings import Finding, Severity, integrity_finding
from market_data_pipeline.model.series import SeriesKey

_Values = npt.NDArray[Any]
_Mask = npt.NDArray[np.bool_]

_SHOWN = 3
"""Most changed rows in a message, with both values."""

RECORDED = 100
"""Most changed rows in the evidence, with both values."""


@dataclass(frozen=True, slots=True)
class DayDiff:
    """Difference between two versions of a day.

    Attributes:
        added: Keys of rows in the later version only.
        removed: Keys of rows in the earlier version only.
        changed: Keys of rows in both versions with different values.
        examples: The first changed rows as text, at most ``RECORDED``, with each differing value before and after.
    """

    added: Ints
    removed: Ints
    changed: Ints
    examples: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(len(self.added) or len(self.removed) or len(self.changed))

    @property
    def keys(self) -> Ints:
        """Return the keys of all differing rows, in order."""
        return np.unique(np.concatenate([self.added, self.removed, self.changed]))

    @property
    def shown(self) -> str:
        """Return the first few changed rows with both values and the number of further ones. Empty if none changed."""
        return self._first(_SHOWN)

    @property
    def recorded(self) -> str:
        """Return the changed rows for the evidence, joined by ``; ``, and the number of further ones."""
        return self._first(RECORDED)

    def _first(self, most: int) -> str:
        more = len(self.changed) - len(self.examples[:most])
        return "; ".join([*self.examples[:most], *([f"and {more} more"] if more else [])])

    def __str__(self) -> str:
        shown = f": {self.shown}" if self.examples else ""
        return f"{len(self.added)} rows added, {len(self.removed)} removed, {len(self.changed)} changed{shown}"


def difference(before: pa.Table, after: pa.Table, spec: Spec, as_text: Callable[[int], str]) -> DayDiff:
    """Compare two versions of a day, each ordered by key and without duplicates.

    Times are compared in the coarser of the two units: spot's archives are in milliseconds until 2024-12-31, REST is
    in microseconds. Floats may differ by 1e-9 of their size.
    """
    old, new = ints(before, spec.key), ints(after, spec.key)
    common, at_old, at_new, uneven = _pairs(old, new)
    differs: dict[str, _Mask] = {}
    values: dict[str, tuple[_Values, _Values]] = {}
    for column in spec.columns:
        if column.kind == "ignore" or column.name == spec.key:
            continue
        a, b = _values(before, column.name, column.kind)[at_old], _values(after, column.name, column.kind)[at_new]
        differs[column.name], values[column.name] = _differs(a, b, column.kind), (a, b)
    changed = np.logical_or.reduce(list(differs.values())) if len(common) else np.zeros(0, dtype=bool)
    examples = []
    for at in np.flatnonzero(changed)[:RECORDED]:
        pairs = ", ".join(
            f"{name} {values[name][0][at]} → {values[name][1][at]}" for name in differs if differs[name][at]
        )
        examples.append(f"{as_text(int(common[at]))} {pairs}")
    return DayDiff(
        added=np.setdiff1d(new, old),
        removed=np.setdiff1d(old, new),
        changed=np.union1d(common[changed], uneven),
        examples=tuple(examples),
    )


def _pairs(old: Ints, new: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Return pairs of rows with one key: the keys, and the rows' numbers in both versions.

    The rows of a key that has several are paired in order. The last array has the keys whose numbers of rows differ.
    """
    before, after = (np.unique(keys, return_index=True, return_counts=True) for keys in (old, new))
    _, of_old, of_new = np.intersect1d(before[0], after[0], assume_unique=True, return_indices=True)
    even = before[2][of_old] == after[2][of_new]
    sizes = before[2][of_old][even]
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    at_old = np.repeat(before[1][of_old][even], sizes) + within
    at_new = np.repeat(after[1][of_new][even], sizes) + within
    return old[at_old], at_old, at_new, before[0][of_old][~even]


def key_format(key: SeriesKey) -> Callable[[int], str]:
    """Return the formatter for keys of a series: a time as ISO text (UTC), or an id."""
    if not keyed_by_time(key.data_type):
        return str
    return lambda us: clock.naive_from_us(us).isoformat(sep=" ")


def disagreement(key: SeriesKey, rest: pa.Table, archive: pa.Table) -> list[Finding]:
    """Return the finding of rows that REST and the archive have with different values. Empty if they agree."""
    spec = spec_of(key)
    common = archive.filter(pa.array(np.isin(ints(archive, spec.key), ints(rest, spec.key))))
    found = difference(rest, common, of_both_sources(spec), key_format(key))
    if len(found.changed) == 0:
        return []
    number, ranges = len(found.changed), key_ranges(found.changed, key.step)
    text = f"REST and the archive disagree on {number} rows. The archive's rows are stored. REST → archive: "
    evidence = f"REST → archive: {found.recorded}"
    return [integrity_finding("disagreement", Severity.WARN, number, f"{text}{found.shown}.", ranges, evidence)]


def of_both_sources(spec: Spec) -> Spec:
    """Return a spec without the columns that REST does not have, so that computed values are not compared."""
    if not any(column.spacing for column in spec.columns):
        return spec
    return replace(spec, columns=tuple(column for column in spec.columns if not column.spacing))


def change_finding(key: SeriesKey, rule: str, found: DayDiff, what: str) -> Finding:
    """Return the finding about the changes of a day that was stored again.

    Args:
        rule: ``became_final`` or ``replaced``.
        what: The event, in words.
    """
    ranges = key_ranges(found.keys, key.step)
    evidence = f"before → after: {found.recorded}" if found.examples else ""
    return integrity_finding(rule, Severity.INFO, len(found.keys), f"{what}: {found}.", ranges, evidence)


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
