"""States of rows, as spans of time: final, provisional, live or forming. Reading rows belongs to ``snapshot.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby

import numpy as np
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.client.request import Request
from market_data_pipeline.client.snapshot import FORMING, LIVE, LiveDay, Snapshot
from market_data_pipeline.lake.day_records import DayFacts, facts_on_record
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.model.day import HELD

_FINAL, _PROVISIONAL = "final", "provisional"

_TYPES: Mapping[str, pa.DataType] = {
    "symbol": pa.string(),
    "start": pa.timestamp("us"),
    "end": pa.timestamp("us"),
    "state": pa.string(),
    "source": pa.string(),
    "differing": pa.int64(),
}
STATES = pa.schema(_TYPES)
"""Columns of the states of a result."""


@dataclass(frozen=True, slots=True)
class StateSpan:
    """A span of time in which all rows have one state.

    Attributes:
        state: ``final``, ``provisional``, ``live`` or ``forming``.
        source: Source of the rows, e.g. ``archive_daily``.
        differing: Number of live rows in the span whose stored row has other values.
    """

    first: datetime
    until: datetime
    state: str
    source: str
    differing: int = 0


def state_rows(layout: Layout, wanted: Request, taken: Snapshot) -> list[dict[str, object]]:
    """Return the states of a request as rows of :data:`STATES`.

    Raises:
        StorageError: A ledger cannot be read.
    """
    found = []
    for key in wanted.keys:
        files = {file.day: file for file in taken.stored if file.key == key}
        live = [one for one in taken.live if one.key == key]
        on_disk = files | {one.day: one.stored for one in live if one.stored is not None}
        records = facts_on_record(layout, key, on_disk, min(on_disk), max(on_disk)) if on_disk else {}
        kept = [record for day, record in records.items() if day in on_disk]
        for span in state_spans(kept, live, wanted.start, wanted.end):
            label = {"symbol": key.symbol, "start": span.first, "end": span.until}
            found.append({**label, "state": span.state, "source": span.source, "differing": span.differing})
    return found


def state_spans(
    records: Iterable[DayFacts], live: Iterable[LiveDay], first: datetime, until: datetime
) -> list[StateSpan]:
    """Return the spans of one series from ``first`` to before ``until``, in order.

    Args:
        records: Records of the days, in order.
        live: Days with live rows.
    """
    by_day = {one.day: one for one in live}
    stored = {record.day: record for record in records if record.outcome == HELD}
    spans = (
        span
        for day in sorted({*by_day, *stored})
        for span in (_of_live(by_day[day], stored.get(day)) if day in by_day else _of_stored(stored[day]))
    )
    return list(_joined(_cut(spans, first, until)))


def _of_stored(record: DayFacts) -> Iterator[StateSpan]:
    begin, over = clock.midnight(record.day), clock.midnight(record.day + clock.DAY)
    yield StateSpan(begin, over, _FINAL if record.final else _PROVISIONAL, record.source or "unknown")


def _of_live(one: LiveDay, record: DayFacts | None) -> Iterator[StateSpan]:
    times, step = one.times_us, one.key.step if one.key.interval else 1
    source = (record.source if record is not None else None) or "unknown"
    states = np.where(one.is_live, LIVE, _PROVISIONAL).tolist()
    states[one.closed_rows :] = [FORMING] * one.ends_open
    at = 0
    for state, run in groupby(states):
        end = at + len(list(run))
        first, last = clock.naive_from_us(int(times[at])), clock.naive_from_us(int(times[end - 1]) + step)
        of = source if state == _PROVISIONAL else LIVE
        yield StateSpan(first, last, state, of, int(np.count_nonzero(one.differs[at:end])))
        at = end


def _cut(spans: Iterable[StateSpan], first: datetime, until: datetime) -> Iterator[StateSpan]:
    for span in spans:
        inside = replace(span, first=max(span.first, first), until=min(span.until, until))
        if inside.first < inside.until:
            yield inside


def _joined(spans: Iterable[StateSpan]) -> Iterator[StateSpan]:
    open_one: StateSpan | None = None
    for span in spans:
        if open_one is not None and _follows(open_one, span):
            open_one = replace(open_one, until=span.until, differing=open_one.differing + span.differing)
            continue
        if open_one is not None:
            yield open_one
        open_one = span
    if open_one is not None:
        yield open_one


def _follows(before: StateSpan, after: StateSpan) -> bool:
    return (before.until, before.state, before.source) == (after.first, after.state, after.source)
