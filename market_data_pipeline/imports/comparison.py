"""Comparison of rows of an older cache with the rows that the lake has. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from market_data_pipeline.checks.ordering import SAME_FLOAT, ints
from market_data_pipeline.model.datasets import Spec


@dataclass(frozen=True, slots=True)
class OldComparison:
    """Rows of a cache, compared with those of the lake on the days that both have.

    Attributes:
        rows: Rows with a key that both have.
        different: Those with another value in a column.
        only_old: Rows that only the cache has.
        only_lake: Rows that only the lake has.
        example: The first difference, in words. Empty if there is none.
    """

    rows: int = 0
    different: int = 0
    only_old: int = 0
    only_lake: int = 0
    example: str = ""

    def __add__(self, other: OldComparison) -> OldComparison:
        """Return the sums of two comparisons, with the first example."""
        return OldComparison(
            self.rows + other.rows,
            self.different + other.different,
            self.only_old + other.only_old,
            self.only_lake + other.only_lake,
            self.example or other.example,
        )

    @property
    def is_same(self) -> bool:
        """Return True if no row differs, and none is missing on either side."""
        return not (self.different or self.only_old or self.only_lake)


def compare_rows(old: pa.Table, lake: pa.Table, spec: Spec) -> OldComparison:
    """Compare the columns that both tables have. Floats may differ by rounding.

    Args:
        old: Rows of the cache. Of rows with one key, the first counts.
        lake: Rows of the lake, ordered by key.
    """
    old_keys, first = np.unique(ints(old, spec.key), return_index=True)
    lake_keys = ints(lake, spec.key)
    keys, at_old, at_lake = np.intersect1d(old_keys, lake_keys, assume_unique=True, return_indices=True)
    differs = np.zeros(len(keys), dtype=bool)
    example = ""
    for name in [name for name in old.column_names if name in lake.column_names and name not in ("symbol", "interval")]:
        mine = old.column(name).to_numpy()[first[at_old]]
        theirs = lake.column(name).to_numpy()[at_lake]
        if mine.dtype.kind == "f":
            wrong = ~np.isclose(mine, theirs, rtol=SAME_FLOAT, atol=0, equal_nan=True)
        elif name == "close_time":  # milliseconds or microseconds before the end of the candle
            wrong = np.abs(mine.view(np.int64) - theirs.view(np.int64)) >= 1_000
        else:
            wrong = mine != theirs
        if wrong.any() and not example:
            at = int(np.flatnonzero(wrong)[0])
            row = lake.column(spec.key)[int(at_lake[at])].as_py()
            example = f"{spec.key} {row}: {name} is {mine[at]} in the cache, and {theirs[at]} in the lake"
        differs |= wrong
    count = len(keys)
    return OldComparison(count, int(differs.sum()), len(old_keys) - count, len(lake_keys) - count, example)
