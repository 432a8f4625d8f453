"""Rows in order: sorted by key, each key once. What had to be done for it is a finding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.model.datasets import Spec
from market_data_pipeline.model.findings import MAX_RANGES, Finding, Range, Severity

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KeyConflict:
    """Two different rows with one key.

    Attributes:
        key: The key.
        rows: The rows, as text.
    """

    key: int
    rows: tuple[str, str]


SAME_FLOAT = 1e-9
"""Floats that differ by less, relatively, are the same number, rounded in another place."""


def ints(table: pa.Table, column: str) -> Ints:
    """An integer or time column (then microseconds since 1970) as numpy."""
    values = table.column(column).to_numpy()
    numbers: Ints = values.view(np.int64) if values.dtype.kind == "M" else values
    return numbers


def floats(table: pa.Table, column: str) -> Floats:
    """A float column as numpy."""
    values: Floats = table.column(column).to_numpy()
    return values


def in_order(table: pa.Table, spec: Spec) -> tuple[pa.Table, list[Finding], KeyConflict | None]:
    """Sort rows by key and drop exact duplicates.

    Returns:
        The table; what was found; and the first conflict, where two rows share a key and differ (then the table is
        of no use).
    """
    keys = ints(table, spec.key)
    steps = np.diff(keys)
    if len(keys) == 0 or steps.min(initial=1) > 0:
        return table, [], None
    findings: list[Finding] = []
    backwards = int((steps < 0).sum())
    if backwards:
        table = table.take(np.argsort(keys, kind="stable"))
        message = f"Rows were not in the order of {spec.key} at {backwards} places; they were sorted."
        findings.append(
            Finding(check="integrity", rule="order", severity=Severity.WARN, count=backwards, message=message)
        )
    keys = ints(table, spec.key)
    repeated = np.flatnonzero(np.diff(keys) == 0)
    if len(repeated):
        conflict = _conflict(table, keys, repeated)
        if conflict is not None:
            return table, findings, conflict
        keep = np.ones(len(keys), dtype=bool)
        keep[repeated + 1] = False
        table = table.filter(pa.array(keep))
        message = f"{len(repeated)} rows stood in the file more than once, exactly alike; each was kept once."
        ranges = key_ranges(np.unique(keys[repeated]), 1)
        findings.append(
            Finding(
                check="integrity",
                rule="duplicates",
                severity=Severity.WARN,
                count=len(repeated),
                message=message,
                ranges=ranges,
            )
        )
    return table, findings, None


def _conflict(table: pa.Table, keys: Ints, repeated: Ints) -> KeyConflict | None:
    earlier, later = table.take(repeated), table.take(repeated + 1)
    alike = np.ones(len(repeated), dtype=bool)
    for name in table.column_names:
        if not pa.types.is_dictionary(table.schema.field(name).type):
            alike &= pc.equal(earlier.column(name), later.column(name)).to_numpy()
    if alike.all():
        return None
    at = int(np.flatnonzero(~alike)[0])
    return KeyConflict(int(keys[repeated[at]]), (_text(earlier, at), _text(later, at)))


def _text(table: pa.Table, row: int) -> str:
    values = table.slice(row, 1).to_pylist()[0]
    return ", ".join(f"{name}={value}" for name, value in values.items() if name not in ("symbol", "interval"))


def within(keys: Ints, ranges: Iterable[Range]) -> npt.NDArray[np.bool_]:
    """For each key whether it lies in a range."""
    inside: npt.NDArray[np.bool_] = np.zeros(len(keys), dtype=bool)
    for range_ in ranges:
        inside |= (keys >= range_.first) & (keys <= range_.last)
    return inside


def key_ranges(keys: Ints, step: int) -> tuple[Range, ...]:
    """Runs of keys that follow each other by ``step``, at most ``MAX_RANGES`` of them.

    Args:
        keys: Sorted and unique.
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
