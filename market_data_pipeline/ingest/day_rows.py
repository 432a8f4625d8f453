"""Rows of a day on their way into the lake, with their origin, and merging rows of two sources. Pure.

Fetching and storing rows do not belong here (``from_archive.py``, ``from_rest.py``, ``store.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import Ints, ints
from market_data_pipeline.checks.verdicts import AnsweredIds, answered_ids
from market_data_pipeline.model.datasets import GAPLESS_KEYS, Spec
from market_data_pipeline.model.findings import HISTORY, Basis, Finding, RestAnswer
from market_data_pipeline.model.outcomes import Action
from market_data_pipeline.model.provenance import GAP_FILL_SOURCES, PROVISIONAL_SOURCES, Part, Provenance, Source


@dataclass(frozen=True, slots=True)
class DayRows:
    """Rows of a day from its sources.

    Attributes:
        table: The rows, ordered by key, without duplicate keys.
        parts: Origins, in the order of the rows.
        final: True if the day comes from its verified archive.
        known_until_us: End of the time that the source covers (microseconds UTC).
        downloaded: Bytes fetched from the archive.
        rest: REST's answer about candles that the archive does not have. None if it was not requested.
        asked_ids: REST's answers about missing trades.
        cut: True if later trades are left out because the run used up its REST weight for aggTrades.
        before: Runs of missing ids between the previous day and this one, both ends inclusive.
        reach_us: End of the previous day's last candle, off the grid, inside this day (microseconds UTC). 0 if none.
    """

    table: pa.Table
    parts: tuple[Part, ...]
    final: bool
    known_until_us: int
    findings: tuple[Finding, ...] = ()
    downloaded: int = 0
    action: Action = Action.FETCHED
    rest: RestAnswer | None = None
    asked_ids: tuple[AnsweredIds, ...] = ()
    cut: bool = False
    before: tuple[tuple[int, int], ...] = ()
    reach_us: int = 0

    @classmethod
    def of_file(cls, record: Provenance, table: pa.Table, downloaded: int = 0) -> Self:
        """Build from a stored file, to continue from it. Leave out findings that can be recomputed."""
        over = clock.day_start_us(record.day) + clock.US_PER_DAY
        asked: tuple[AnsweredIds, ...] = ()
        if record.final and not GAPLESS_KEYS.isdisjoint(table.column_names):
            asked = answered_ids(record.findings)
        return cls(
            table=table,
            parts=record.parts,
            final=record.final,
            known_until_us=over if record.final else clock.to_us(record.fetched_at),
            findings=tuple(finding for finding in record.findings if finding.rule in HISTORY),
            downloaded=downloaded,
            asked_ids=asked,
            cut=any(finding.basis is Basis.WEIGHT_SPENT for finding in record.findings),
            before=tuple((one.first, one.last) for one in asked if one.last < (record.first_key or 0)),
        )

    def from_rest(self) -> pa.Table:
        """Return the rows that came from REST, or from the live feed."""
        table: pa.Table = self.table.filter(pa.array(_origins(self.parts)))
        return table

    @property
    def of_archive(self) -> bool:
        """True if the day has an archive, verified or not, so missing rows are missing in the archive."""
        return self.final or any(part.source not in PROVISIONAL_SOURCES for part in self.parts)

    def gap_filled(self, spec: Spec) -> Ints:
        """Return the keys of rows that REST filled into an archive day. A day from REST alone has none."""
        if not self.of_archive:
            return np.zeros(0, dtype=np.int64)
        keys: Ints = ints(self.table, spec.key)[_origins(self.parts)]
        return keys

    def with_more(self, table: pa.Table, part: Part, spec: Spec) -> DayRows:
        """Add rows of one more origin. Their keys must be new to this day."""
        both = pa.concat_tables([self.table, table])
        order = np.argsort(ints(both, spec.key), kind="stable")
        counts = [*(p.rows for p in self.parts), table.num_rows]
        origin = np.repeat(np.arange(len(counts)), counts)[order]
        return replace(self, table=both.take(order), parts=parts_by_origin(origin, (*self.parts, part)))

    def without(self, keys: Ints, spec: Spec) -> DayRows:
        """Remove the rows of some keys."""
        keep = ~np.isin(ints(self.table, spec.key), keys)
        origin = np.repeat(np.arange(len(self.parts)), [p.rows for p in self.parts])[keep]
        return replace(self, table=self.table.filter(pa.array(keep)), parts=parts_by_origin(origin, self.parts))


def _origins(parts: tuple[Part, ...]) -> np.ndarray:
    filling = [part.source in GAP_FILL_SOURCES for part in parts]
    return np.repeat(filling or [False], [part.rows for part in parts] or [0])


def parts_by_origin(origin: np.ndarray, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return row ranges by origin. ``origin`` has the index into ``parts`` of each row."""
    if len(origin) == 0:
        return ()
    starts = np.flatnonzero(np.r_[True, origin[1:] != origin[:-1]])
    ends = np.r_[starts[1:], len(origin)]
    return tuple(
        parts[origin[start]].model_copy(update={"first_row": int(start), "rows": int(end - start)})
        for start, end in zip(starts, ends, strict=True)
    )


def joined(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Merge neighbouring parts of the same REST endpoint, so that a day extended each hour has a short record."""
    made: list[Part] = []
    for part in parts:
        last = made[-1] if made else None
        if last is not None and last.source is part.source is Source.REST and last.url == part.url:
            newest = max(last.fetched_at, part.fetched_at)
            made[-1] = last.model_copy(update={"rows": last.rows + part.rows, "fetched_at": newest})
        else:
            made.append(part)
    return tuple(made)
