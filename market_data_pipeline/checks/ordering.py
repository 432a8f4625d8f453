"""Sort the rows of a day by key, with each key once. Sorting and dropping duplicates are findings.

Rules about the values do not belong here (``integrity.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.model.datasets import Spec
from market_data_pipeline.model.findings import MAX_RANGES, Finding, Range, Severity, integrity_finding

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KeyConflict:
    """Two different rows with one key.

    Attributes:
        rows: The rows, as text.
    """

    key: int
    rows: tuple[str, str]


SAME_FLOAT = 1e-9
"""Floats with a smaller relative difference are equal. They are the same number with other rounding."""


def ints(table: pa.Table, column: str) -> Ints:
    """Return an integer or time column as numpy. Times are in microseconds since 1970."""
    values = table.column(column).to_numpy()
    numbers: Ints = values.view(np.int64) if values.dtype.kind == "M" else values
    return numbers


def floats(table: pa.Table, column: str) -> Floats:
    """Return a float column as numpy."""
    values: Floats = table.column(column).to_numpy()
    return values


def in_order(table: pa.Table, spec: Spec) -> tuple[pa.Table, list[Finding], KeyConflict | None]:
    """Sort rows by key and drop exact duplicates.

    Returns:
        The table, the findings, and the first conflict between different rows with one key. With a conflict the table
        is useless. None means no conflict.
    """
    if spec.also:
        return _in_order_of_several(table, spec)
    keys = ints(table, spec.key)
    steps = np.diff(keys)
    if len(keys) == 0 or steps.min(initial=1) > 0:
        return table, [], None
    findings: list[Finding] = []
    backwards = int((steps < 0).sum())
    if backwards:
        table = table.take(np.argsort(keys, kind="stable"))
        severity = Severity.INFO if spec.unordered else Severity.WARN
        message = f"Rows were not in the order of {spec.key} at {backwards} places. They were sorted."
        findings.append(integrity_finding("order", severity, backwards, message))
    keys = ints(table, spec.key)
    repeated = np.flatnonzero(np.diff(keys) == 0)
    if len(repeated):
        conflict = _conflict(table, keys, repeated)
        if conflict is not None:
            return table, findings, conflict
        keep = np.ones(len(keys), dtype=bool)
        keep[repeated + 1] = False
        table = table.filter(pa.array(keep))
        message = f"{len(repeated)} rows were exact duplicates in the file. Each row was stored once."
        ranges = key_ranges(np.unique(keys[repeated]), 1)
        findings.append(integrity_finding("duplicates", Severity.WARN, len(repeated), message, ranges))
    return table, findings, None


def _in_order_of_several(table: pa.Table, spec: Spec) -> tuple[pa.Table, list[Finding], KeyConflict | None]:
    """Do the same for a key of several columns. Only the order of the first one counts as a fault."""
    keys, findings = ints(table, spec.key), list[Finding]()
    backwards = int((np.diff(keys) < 0).sum())
    if backwards:
        message = f"Rows were not in the order of {spec.key} at {backwards} places. They were sorted."
        severity = Severity.INFO if spec.unordered else Severity.WARN
        findings.append(integrity_finding("order", severity, backwards, message))
    table = table.sort_by([(name, "ascending") for name in (spec.key, *spec.also)]).combine_chunks()
    repeated = np.diff(ints(table, spec.key)) == 0
    for name in spec.also:
        repeated &= _equal(table.column(name).slice(1), table.column(name).slice(0, table.num_rows - 1))
    again = np.flatnonzero(repeated)
    if not len(again):
        return table, findings, None
    keys = ints(table, spec.key)
    if (conflict := _conflict(table, keys, again)) is not None:
        return table, findings, conflict
    message = f"{len(again)} rows were exact duplicates in the file. Each row was stored once."
    ranges = key_ranges(np.unique(keys[again]), 1)
    findings.append(integrity_finding("duplicates", Severity.WARN, len(again), message, ranges))
    return table.filter(pa.array(np.r_[True, ~repeated])), findings, None


def _conflict(table: pa.Table, keys: Ints, repeated: Ints) -> KeyConflict | None:
    earlier, later = table.take(repeated), table.take(repeated + 1)
    alike = np.ones(len(repeated), dtype=bool)
    for name in table.column_names:
        if not pa.types.is_dictionary(table.schema.field(name).type):
            alike &= _equal(earlier.column(name), later.column(name))
    if alike.all():
        return None
    at = int(np.flatnonzero(~alike)[0])
    return KeyConflict(int(keys[repeated[at]]), (_text(earlier, at), _text(later, at)))


def _equal(one: pa.ChunkedArray[Any], other: pa.ChunkedArray[Any]) -> npt.NDArray[np.bool_]:
    """Return a mask of equal values. Two missing values are equal."""
    if not one.null_count and not other.null_count:
        same: npt.NDArray[np.bool_] = pc.equal(one, other).to_numpy()
        return same
    pairs = zip(one.to_pylist(), other.to_pylist(), strict=True)
    return np.array([a == b for a, b in pairs], dtype=bool)


def _text(table: pa.Table, row: int) -> str:
    values = table.slice(row, 1).to_pylist()[0]
    return ", ".join(f"{name}={value}" for name, value in values.items() if name not in ("symbol", "interval"))


def within(keys: Ints, ranges: Iterable[Range]) -> npt.NDArray[np.bool_]:
    """Return a mask of the keys that lie in one of the ranges."""
    inside: npt.NDArray[np.bool_] = np.zeros(len(keys), dtype=bool)
    for range_ in ranges:
        inside |= (keys >= range_.first) & (keys <= range_.last)
    return inside


def key_ranges(keys: Ints, step: int) -> tuple[Range, ...]:
    """Return the runs of keys with distance ``step``, at most ``MAX_RANGES`` runs.

    Args:
        keys: Sorted and unique keys.
        step: Distance of neighbours.
    """
    if len(keys) == 0:
        return ()
    breaks = np.flatnonzero(np.diff(keys) != step)
    firsts, lasts = np.r_[0, breaks + 1], np.r_[breaks, len(keys) - 1]
    return tuple(
        Range(first=int(keys[a]), last=int(keys[b]), count=int(b - a + 1))
        for a, b in zip(firsts[:MAX_RANGES], lasts[:MAX_RANGES], strict=True)
    )
