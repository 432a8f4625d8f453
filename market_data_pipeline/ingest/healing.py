"""Filling in what the archive lacks and REST has, by row. Nothing is ever invented, and the archive's row always wins.

What belongs here: which rows to ask REST for, and putting its answer into the day. What does not: the verdict on what
is missing all the same (``quality/verdicts.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.findings import Finding, Severity
from market_data_pipeline.ingest.dayrows import DayRows
from market_data_pipeline.lake.provenance import Part, Source
from market_data_pipeline.quality.difference import change_finding, difference, disagreement, said
from market_data_pipeline.quality.gaps import missing_candles, missing_ids, seems_cut
from market_data_pipeline.quality.rows import Ints, ints, key_ranges
from market_data_pipeline.quality.verdicts import Asked
from market_data_pipeline.series import Listing, SeriesKey, interval_us
from market_data_pipeline.sources.errors import SourceError
from market_data_pipeline.sources.rest import RestApi, RestRows
from market_data_pipeline.specs import spec_of

logger = logging.getLogger(__name__)

_RANGES_ASKED = 50
"""Runs of missing ids that a day may ask REST for: a day that lacks more is damaged, and costs no weight."""


@dataclass(frozen=True, slots=True)
class Healer:
    """Asks REST for what a day of one series lacks.

    Attributes:
        key: The series.
        rest: REST of its market.
        listing: When the symbol was listed.
    """

    key: SeriesKey
    rest: Callable[[], RestApi]
    listing: Listing

    def heal(self, day: date, rows: DayRows) -> DayRows:
        """A day that its archive settled, with the rows that it lacks and REST has."""
        return self._trades(day, rows) if self.key.interval is None else self._candles(day, rows)

    # --- candles ------------------------------------------------------------------------------------------------

    def _candles(self, day: date, rows: DayRows) -> DayRows:
        lacking = missing_candles(self.key, rows.table, day, rows.known_until_us, self.listing).lacking
        if len(lacking) == 0:
            return rows
        step = interval_us(self.key.interval or "")
        page = spec_of(self.key).rest.page
        try:
            for first, last in _spans(lacking, page * step):
                rows = self._filled_in(rows, self.rest().klines(self.key, first, last + step))
        except SourceError as error:
            return replace(rows, asked=Asked(False, str(error)))
        return replace(rows, asked=Asked(True))

    # --- trades -------------------------------------------------------------------------------------------------

    def _trades(self, day: date, rows: DayRows) -> DayRows:
        missing = missing_ids(rows.table)
        rows = self.ids(rows, missing) if missing else rows
        return self._rest_of_day(day, rows) if seems_cut(rows.table, day) else rows

    def ids(self, rows: DayRows, missing: Sequence[tuple[int, int]]) -> DayRows:
        """A day of aggTrades with those of the ids that REST has and that belong into it."""
        cut = ""
        try:
            for first, last in missing[:_RANGES_ASKED]:
                answer = self.rest().agg_trades_of_ids(self.key, first, last)
                rows = self._filled_in(rows, answer)
                if answer.cut:
                    cut = "the run's REST weight for aggTrades was used up"
                    break
        except SourceError as error:
            return replace(rows, asked=Asked(False, str(error)))
        if len(missing) > _RANGES_ASKED:
            cut = f"the ids jump at {len(missing)} places, which is more than a day may ask REST for"
        return replace(rows, asked=Asked(not cut, cut))

    def ids_between(self, rows: DayRows, day: date, first: int, last: int) -> DayRows:
        """A day with those trades that lack between it and its neighbour and belong into it; ``first`` to ``last``.

        What REST does not have, or could not be asked for, is told in the later of the two days.
        """
        start = clock.day_start_us(day)
        later = int(ints(rows.table, "agg_trade_id")[0]) > last
        try:
            answer = self.rest().agg_trades_of_ids(self.key, first, last)
        except SourceError as error:
            return replace(rows, before=((first, last),), asked=Asked(False, str(error))) if later else rows
        times = ints(answer.table, "transact_time")
        mine = answer.table.filter(pa.array((times >= start) & (times < start + clock.US_PER_DAY)))
        filled = self._filled_in(rows, replace(answer, table=mine))
        lacking_from = first + answer.table.num_rows
        if later and lacking_from <= last:
            why = "the run's REST weight for aggTrades was used up" if answer.cut else ""
            filled = replace(filled, before=((lacking_from, last),), asked=Asked(not why, why))
        return filled

    def _rest_of_day(self, day: date, rows: DayRows) -> DayRows:
        start = clock.day_start_us(day)
        last = int(ints(rows.table, "agg_trade_id")[-1])
        try:
            answer = self.rest().agg_trades(self.key, start, start + clock.US_PER_DAY, last + 1)
        except SourceError as error:
            # The day only seemed cut; where it is, the next day's first id tells (see ``ingest``).
            logger.info("%s %s: whether the archive is cut short could not be asked: %s", self.key, day, error)
            return rows
        return replace(self._filled_in(rows, answer), cut=answer.cut)

    # --- both ---------------------------------------------------------------------------------------------------

    def _filled_in(self, rows: DayRows, answer: RestRows) -> DayRows:
        spec = spec_of(self.key)
        known = ints(rows.table, spec.key)
        theirs = ints(answer.table, spec.key)
        new = answer.table.filter(pa.array(~np.isin(theirs, known)))
        common = answer.table.filter(pa.array(np.isin(theirs, known)))
        if common.num_rows:
            rows = replace(rows, findings=(*rows.findings, *disagreement(self.key, common, rows.table)))
        if new.num_rows == 0:
            return rows
        part = Part(source=Source.REST, url=answer.url, first_row=0, rows=new.num_rows, fetched_at=answer.asked_at)
        return rows.with_more(new, part, spec)


def with_what_was_held(key: SeriesKey, held: DayRows, rows: DayRows) -> DayRows:
    """A day as its archive has it now, with what is only known from REST, and what changed since it was stored.

    Args:
        key: The series.
        held: The day as it is held: provisional, or of an archive that was replaced since.
        rows: The day as its archive has it now.
    """
    spec = spec_of(key)
    only_rest = held.from_rest()
    only_rest = only_rest.filter(pa.array(~np.isin(ints(only_rest, spec.key), ints(rows.table, spec.key))))
    found = difference(held.table, rows.table, spec, said(key))
    kept = replace(found, removed=np.setdiff1d(found.removed, ints(only_rest, spec.key)))
    findings: list[Finding] = []
    if held.final:
        findings += [change_finding(key, "replaced", kept, "The archive was replaced")] if kept else []
    else:
        findings += disagreement(key, held.table, rows.table)
        findings += [change_finding(key, "became_final", kept, "The archive stands for REST now")] if kept else []
    rows = replace(rows, findings=(*rows.findings, *findings))
    if only_rest.num_rows == 0:
        return rows
    part = next(part for part in held.parts if part.source is Source.REST)
    return rows.with_more(only_rest, part, spec)


def without_repeated(key: SeriesKey, before: pa.Table, rows: DayRows) -> DayRows:
    """A day of aggTrades without those that stand in the day before, too (binance-public-data #353): none stays twice.

    Args:
        key: The series.
        before: The day before.
        rows: The day.
    """
    spec = spec_of(key)
    repeated = np.intersect1d(ints(before, spec.key), ints(rows.table, spec.key))
    if len(repeated) == 0:
        return rows
    found = difference(
        before.filter(pa.array(np.isin(ints(before, spec.key), repeated))),
        rows.table.filter(pa.array(np.isin(ints(rows.table, spec.key), repeated))),
        replace(spec, columns=tuple(column for column in spec.columns if column.kind != "time")),
        said(key),
    )
    unlike = f" Some differ: {'; '.join(found.examples)}." if found else ""
    message = f"{len(repeated)} trades stood on both sides of midnight; they were kept in the day before only.{unlike}"
    finding = Finding(
        check="integrity",
        rule="across_midnight",
        severity=Severity.ERROR if found else Severity.WARN,
        count=len(repeated),
        message=message,
        ranges=key_ranges(repeated, 1),
    )
    mended = rows.without(repeated, spec)
    return replace(mended, findings=(*mended.findings, finding))


def _spans(lacking: Ints, longest_us: int) -> list[tuple[int, int]]:
    """First and last open times to ask for, so that each request has as much as it can."""
    spans: list[tuple[int, int]] = []
    for at in lacking:
        if spans and at - spans[-1][0] < longest_us:
            spans[-1] = (spans[-1][0], int(at))
        else:
            spans.append((int(at), int(at)))
    return spans
