"""A day's rows on their way into the lake, with where each came from; rows of two sources become one day. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import Ints, ints
from market_data_pipeline.checks.verdicts import AnsweredIds, answered_ids
from market_data_pipeline.model.datasets import Spec
from market_data_pipeline.model.findings import HISTORY, Basis, Finding, RestAnswer
from market_data_pipeline.model.outcomes import Action
from market_data_pipeline.model.provenance import Part, Provenance, Source


@dataclass(frozen=True, slots=True)
class DayRows:
    """A day's rows as sources gave them.

    Attributes:
        table: The rows, ordered by key, each key once.
        parts: Where they came from, in the order of the rows.
        final: Whether the day is settled by its archive.
        known_until_us: Until when the day is over, as the source saw it (microseconds UTC).
        findings: What was found so far.
        downloaded: Bytes fetched from the archive.
        action: What was done for the day.
        rest: What REST said of candles that the archive does not have; None if it was not asked.
        asked_ids: What REST said of trades that are missing.
        cut: Whether later trades were left out, since the run's REST weight for aggTrades was used up.
        before: Runs of ids that lack between the day before and this one, both ends included.
        reach_us: Until when the last candle of the day before, off the grid, reaches into this day (microseconds UTC).
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
        """The rows of a day's file, to go on from; what can be worked out again from them is left out."""
        over = clock.day_start_us(record.day) + clock.US_PER_DAY
        asked = answered_ids(record.findings) if "agg_trade_id" in table.column_names and record.final else ()
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
        """The rows that came from REST."""
        table: pa.Table = self.table.filter(pa.array(_origins(self.parts, Source.REST)))
        return table

    @property
    def of_archive(self) -> bool:
        """Whether its archive was there, if only without proof, so that what lacks is lacking there."""
        return self.final or any(part.source is not Source.REST for part in self.parts)

    def healed(self, spec: Spec) -> Ints:
        """Keys of the rows that REST gave because the archive lacks them; none of a day that is REST's altogether."""
        if not self.of_archive:
            return np.zeros(0, dtype=np.int64)
        keys: Ints = ints(self.table, spec.key)[_origins(self.parts, Source.REST)]
        return keys

    def with_more(self, table: pa.Table, part: Part, spec: Spec) -> DayRows:
        """This day with rows of one more place, whose keys it does not have yet."""
        both = pa.concat_tables([self.table, table])
        order = np.argsort(ints(both, spec.key), kind="stable")
        counts = [*(p.rows for p in self.parts), table.num_rows]
        origin = np.repeat(np.arange(len(counts)), counts)[order]
        return replace(self, table=both.take(order), parts=parts_by_origin(origin, (*self.parts, part)))

    def without(self, keys: Ints, spec: Spec) -> DayRows:
        """This day without the rows of some keys."""
        keep = ~np.isin(ints(self.table, spec.key), keys)
        origin = np.repeat(np.arange(len(self.parts)), [p.rows for p in self.parts])[keep]
        return replace(self, table=self.table.filter(pa.array(keep)), parts=parts_by_origin(origin, self.parts))


def _origins(parts: tuple[Part, ...], source: Source) -> np.ndarray:
    return np.repeat([part.source is source for part in parts] or [False], [part.rows for part in parts] or [0])


def parts_by_origin(origin: np.ndarray, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Row ranges by source: ``origin`` says for each row which of ``parts`` it came from."""
    if len(origin) == 0:
        return ()
    starts = np.flatnonzero(np.r_[True, origin[1:] != origin[:-1]])
    ends = np.r_[starts[1:], len(origin)]
    return tuple(
        parts[origin[start]].model_copy(update={"first_row": int(start), "rows": int(end - start)})
        for start, end in zip(starts, ends, strict=True)
    )


def joined(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Parts, neighbours from the same REST endpoint made one: a day extended each hour keeps a short record."""
    made: list[Part] = []
    for part in parts:
        last = made[-1] if made else None
        if last is not None and last.source is part.source is Source.REST and last.url == part.url:
            newest = max(last.fetched_at, part.fetched_at)
            made[-1] = last.model_copy(update={"rows": last.rows + part.rows, "fetched_at": newest})
        else:
            made.append(part)
    return tuple(made)
