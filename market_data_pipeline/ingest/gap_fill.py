"""Fill gaps of the archive with rows from REST. No row is ever invented, and the archive's row always wins.

Choosing the rows to request and merging them into the day belong here. Verdicts on rows that stay missing do not
(``checks/verdicts.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.checks.diff import (
    change_finding,
    difference,
    disagreement,
    key_format,
    of_both_sources,
)
from market_data_pipeline.checks.gaps import (
    flat_candles,
    missing_candles,
    missing_ids,
    off_grid,
    overlapping,
    seems_cut,
)
from market_data_pipeline.checks.integrity import off_grid_finding
from market_data_pipeline.checks.ordering import Ints, ints, key_ranges, within
from market_data_pipeline.checks.slots import missing_slots
from market_data_pipeline.checks.verdicts import CUT, AnsweredIds, pieces
from market_data_pipeline.errors import RefusedError, SourceError
from market_data_pipeline.ingest.day_rows import DayRows
from market_data_pipeline.ingest.slot_fill import answer_of, fill_slots, only_new_slots, without_near
from market_data_pipeline.model.datasets import Spec, shows_trades, spec_of
from market_data_pipeline.model.findings import (
    ACROSS_MIDNIGHT,
    FLAT_CONFIRMED,
    FLAT_FILLED,
    FLAT_REFUSED,
    OFF_GRID,
    Finding,
    Range,
    RestAnswer,
    Severity,
)
from market_data_pipeline.model.provenance import GAP_FILL_SOURCES, Part, Source
from market_data_pipeline.model.series import ListingSpans, SeriesKey, interval_us
from market_data_pipeline.sources.binance.rest import RestApi, RestRows, endpoint_of

logger = logging.getLogger(__name__)

_MOST_RANGES = 50
"""Maximum runs of missing ids that one attempt at a day requests. A damaged day takes several attempts."""


@dataclass(frozen=True, slots=True)
class GapFiller:
    """Fetch the missing rows of one series from REST."""

    key: SeriesKey
    rest: Callable[[], RestApi]
    listing: ListingSpans

    def fill(self, day: date, rows: DayRows) -> DayRows:
        """Fill the gaps of an archive day with rows that REST has."""
        if spec_of(self.key).slots is not None:
            return fill_slots(self.key, day, rows, self.listing, self._of_time, self.filled_in)
        if self.key.interval is not None:
            return self._candles(day, rows)
        return self._trades(day, rows) if spec_of(self.key).gapless else rows

    # --- days from REST alone ---------------------------------------------------------------------------------------

    def gaps(self, day: date, stored: DayRows) -> Gaps | None:
        """Return the gaps between the stored rows of a day. None if it has no gaps."""
        if (slots := spec_of(self.key).slots) is not None:
            known_until = min(stored.known_until_us, int(ints(stored.table, spec_of(self.key).time)[-1]))
            due = missing_slots(self.key, stored.table, day, known_until, self.listing)
            margin = int(slots.tolerance.total_seconds() * 1e6)
            return Gaps([(int(due[0]) - margin, int(due[-1]) + margin)], int(due[-1])) if len(due) else None
        if self.key.interval is None:
            ids, times = (ints(stored.table, name) for name in (spec_of(self.key).key, spec_of(self.key).time))
            lacking = missing_ids(ids)
            if not lacking:
                return None
            return Gaps(lacking[:_MOST_RANGES], int(times[np.searchsorted(ids, lacking[-1][1])]))
        step, page = interval_us(self.key.interval), spec_of(self.key).rest.page
        newest = int(ints(stored.table, "open_time")[-1])
        candles = missing_candles(self.key, stored.table, day, newest, self.listing, stored.reach_us).inside
        return Gaps(_spans(candles, page * step), int(candles[-1]) + step) if len(candles) else None

    def fill_gaps(self, day: date, gaps: Gaps, rows: DayRows) -> DayRows:
        """Fill gaps of a day with rows that REST did not have before.

        If REST does not respond, the day stays unchanged. It is provisional and is retried later.
        """
        try:
            for first, last in gaps.spans:
                if spec_of(self.key).slots is not None:
                    answer = without_near(self.key, _of_day(self._of_time(first, last + 1), day, self.key), rows.table)
                elif self.key.interval is None:
                    around = _around(rows.table, spec_of(self.key), first, last)
                    answer = _of_day(self.rest().agg_trades_of_ids(self.key, first, last, around), day, self.key)
                else:
                    answer = self._klines(first, last)
                rows = self.filled_in(rows, answer)
        except SourceError as error:
            logger.info("%s %s: cannot fill gaps inside the day: %s", self.key, day, error)
        return rows

    def _of_time(self, start_us: int, end_us: int) -> RestRows:
        endpoint_of(self.key)  # a market without REST has no host
        return self.rest().of_time(self.key, start_us, end_us)

    def _klines(self, first: int, last: int) -> RestRows:
        """Fetch candles, both ends included (open times in microseconds UTC)."""
        return self.rest().klines(self.key, first, last + interval_us(self.key.interval or ""))

    # --- candles ------------------------------------------------------------------------------------------------

    def _candles(self, day: date, rows: DayRows) -> DayRows:
        step = interval_us(self.key.interval or "")
        rows = self.without_overlaps(rows)
        off = off_grid(ints(rows.table, "open_time"), step)
        if len(off) and not any(finding.rule == OFF_GRID and finding.rest is not None for finding in rows.findings):
            rows = self._with_off_grid_finding(rows, off, step)
        missing = missing_candles(self.key, rows.table, day, rows.known_until_us, self.listing, rows.reach_us)
        if len(missing) == 0:
            return rows
        page = spec_of(self.key).rest.page
        try:
            # Before and after trading, REST answers any span with one empty response.
            ends = [(int(times[0]), int(times[-1])) for times in (missing.before, missing.after) if len(times)]
            for first, last in (*_spans(missing.inside, page * step), *ends):
                rows = self.filled_in(rows, self._klines(first, last))
        except SourceError as error:
            # Candles have no reach: a refusal of REST may pass.
            return replace(rows, rest=answer_of(error).model_copy(update={"beyond_reach": False}))
        return replace(rows, rest=RestAnswer(answered=True))

    def without_overlaps(self, rows: DayRows) -> DayRows:
        """Remove REST candles that overlap archive candles off the grid, or a candle of the previous day."""
        if not rows.of_archive or self.key.interval is None:
            return rows
        ours, spec = rows.from_rest(), spec_of(self.key)
        of_archive = rows.without(ints(ours, spec.key), spec)
        overlaps = np.setdiff1d(ints(ours, spec.key), ints(_new_rows(self.key, of_archive, ours), spec.key))
        return rows.without(overlaps, spec) if len(overlaps) else rows

    def _with_off_grid_finding(self, rows: DayRows, off: Ints, step: int) -> DayRows:
        """Add the finding about candles off the grid, with REST's candles in their place.

        If REST does not respond, the integrity check reports them without REST.
        """
        first, last = int(off[0]) // step * step, int(off[-1]) // step * step
        try:
            answer = self._klines(first, last)
        except SourceError as error:
            logger.info("%s: cannot compare candles off the grid with REST: %s", self.key, error)
            return rows
        finding = off_grid_finding(self.key, rows.table, off, answer.table)
        return replace(rows, findings=(*(one for one in rows.findings if one.rule != OFF_GRID), finding))

    def compare_flat(self, day: date, rows: DayRows, suspect: Sequence[Range]) -> DayRows:
        """Replace suspect flat candles with REST's candles if those have trades, and record REST's answer.

        Args:
            suspect: Ranges of flat candles that may be a fault of the archive.
        """
        if self.key.interval is None or not rows.of_archive:
            return rows
        step, page = interval_us(self.key.interval), spec_of(self.key).rest.page
        times = flat_candles(rows.table)
        times = times[within(times, suspect)]
        try:
            for first, last in _spans(times, page * step):
                answer = self._klines(first, last)
                asked = times[(times >= first) & (times <= last)]
                rows = with_trades_over_flat(self.key, rows, answer.table, _part_of(answer))
                still = np.intersect1d(flat_candles(rows.table), asked)
                rows = _noted(rows, FLAT_CONFIRMED, still, first, last, "have no trades in REST either")
        except RefusedError as error:
            return _noted(rows, FLAT_REFUSED, times, int(times[0]), int(times[-1]), f"may be wrong; {error}")
        except SourceError as error:
            logger.info("%s %s: cannot compare flat candles with REST: %s", self.key, day, error)
        return rows

    # --- trades -------------------------------------------------------------------------------------------------

    def _trades(self, day: date, rows: DayRows) -> DayRows:
        spec = spec_of(self.key)
        missing = missing_ids(ints(rows.table, spec.key))
        rows = self._ids(day, rows, missing) if missing else rows
        return self._rest_of_day(day, rows) if rows.cut or seems_cut(ints(rows.table, spec.time), day) else rows

    def _ids(self, day: date, rows: DayRows, missing: Sequence[tuple[int, int]]) -> DayRows:
        """Fill missing ids of a day with trades that REST has and that belong to the day."""
        before = [one for one in rows.asked_ids if one.last < missing[0][0]]
        asked, to_request = _split_answered(missing, [one for one in rows.asked_ids if one.last >= missing[0][0]])
        if len(to_request) > _MOST_RANGES:
            why = f"the ids have {len(to_request)} gaps, and one attempt requests {_MOST_RANGES} of them"
            asked.append(
                AnsweredIds(to_request[_MOST_RANGES][0], missing[-1][1], RestAnswer(answered=False, reason=why))
            )
        for first, last in to_request[:_MOST_RANGES]:
            answer = self.of_ids(first, last, _around(rows.table, spec_of(self.key), first, last))
            mine, elsewhere = answer.of_day(day, self.key)
            rows = self.filled_in(rows, mine)
            asked += (*answer.missing, *elsewhere)
            if answer.why_not and not answer.missing[-1].answer.beyond_reach:  # further requests would fail, too
                asked.append(AnsweredIds(last + 1, missing[-1][1], answer.missing[-1].answer))
                break
        return replace(rows, asked_ids=(*before, *asked))

    def of_ids(self, first: int, last: int, between_us: tuple[int, int] | None) -> IdsResult:
        """Fetch trades by their ids.

        Args:
            last: Last id, inclusive.
            between_us: Times of the trades before and after them (microseconds UTC). None if unknown.
        """
        try:
            answer = self.rest().agg_trades_of_ids(self.key, first, last, between_us)
        except SourceError as error:
            return IdsResult(None, (AnsweredIds(first, last, answer_of(error)),), str(error))
        had = ints(answer.table, spec_of(self.key).key)
        until = last if not answer.cut else int(had[-1]) if len(had) else first - 1
        served = (int(had[0]) if len(had) else until + 1) if answer.beyond else first
        missing = [AnsweredIds(*ids, RestAnswer(answered=True)) for ids in missing_between(served, until, had)]
        if served > first:  # earlier ids are older than what REST serves, so it is unknown if they exist
            missing.insert(
                0, AnsweredIds(first, served - 1, RestAnswer(answered=False, reason=answer.beyond, beyond_reach=True))
            )
        if answer.cut:
            missing.append(AnsweredIds(until + 1, last, RestAnswer(answered=False, reason=CUT)))
        return IdsResult(answer, tuple(missing), CUT if answer.cut else "")

    def _rest_of_day(self, day: date, rows: DayRows) -> DayRows:
        start = clock.day_start_us(day)
        spec = spec_of(self.key)
        last = int(ints(rows.table, spec.key)[-1])
        try:
            since = int(ints(rows.table, spec.time)[-1])
            answer = self.rest().agg_trades(self.key, start, start + clock.US_PER_DAY, last + 1, since)
        except SourceError as error:
            # The day only seems truncated. If it is, the next day's first id shows it (see ``midnight.py``).
            logger.info("%s %s: cannot check for a truncated archive: %s", self.key, day, error)
            return rows
        had = ints(answer.table, spec.key)
        until = int(had[-1]) if len(had) else last
        missing = [AnsweredIds(*ids, RestAnswer(answered=True)) for ids in missing_between(last + 1, until, had)]
        return replace(self.filled_in(rows, answer), cut=answer.cut, asked_ids=(*rows.asked_ids, *missing))

    # --- both ---------------------------------------------------------------------------------------------------

    def filled_in(self, rows: DayRows, answer: RestRows | None) -> DayRows:
        """Add the rows of a response that the day does not have. The day's own rows win."""
        if answer is None:
            return rows
        spec = spec_of(self.key)
        new = _new_rows(self.key, rows, answer.table)
        common = _with_keys(answer.table, spec, ints(rows.table, spec.key))
        if common.num_rows:
            new_findings = (one for one in disagreement(self.key, common, rows.table) if not _is_known(one, rows))
            rows = replace(rows, findings=(*rows.findings, *new_findings))
        if new.num_rows == 0:
            return rows
        return rows.with_more(new, _part_of(answer), spec)


class Gaps(NamedTuple):
    """Gaps between the stored rows of a day: first and last keys to request, and the end of the last gap in µs UTC."""

    spans: Sequence[tuple[int, int]]
    until_us: int


@dataclass(frozen=True, slots=True)
class IdsResult:
    """Result of requesting a run of trade ids.

    Attributes:
        rows: The rows. None without a response.
        missing: The missing ids: those that REST does not have, and those that were not requested.
        why_not: Reason that some ids were not requested. Empty if all were.
    """

    rows: RestRows | None
    missing: tuple[AnsweredIds, ...]
    why_not: str

    def of_day(self, day: date, key: SeriesKey) -> tuple[RestRows | None, list[AnsweredIds]]:
        """Split into the trades of a day, and the ids of trades of other days."""
        if self.rows is None:
            return None, []
        mine, name = _of_day(self.rows, day, key), spec_of(key).key
        others = np.setdiff1d(ints(self.rows.table, name), ints(mine.table, name))
        elsewhere = [
            AnsweredIds(one.first, one.last, RestAnswer(answered=True, elsewhere=True)) for one in key_ranges(others, 1)
        ]
        return mine, elsewhere


def _split_answered(
    missing: Sequence[tuple[int, int]], known: Sequence[AnsweredIds]
) -> tuple[list[AnsweredIds], list[tuple[int, int]]]:
    """Split gaps into those that REST answered in earlier attempts, and those still to request.

    Gaps are requested in order, and a record has only the first ranges of a verdict. So all gaps before the first
    unanswered one were answered.
    """
    answered = [one for one in known if one.answer.answered]
    first_left = min((one.first for one in known if not one.answer.answered), default=0)
    to_request = []
    for first, last in missing:
        for a, b, answer in pieces(first, last, tuple(answered)):
            if answer is None and b < first_left:
                answered.append(AnsweredIds(a, b, RestAnswer(answered=True)))
            elif answer is None:
                to_request.append((a, b))
    return answered, to_request


def _around(table: pa.Table, spec: Spec, first: int, last: int) -> tuple[int, int]:
    """Return the times of the trades before and after a run of ids (microseconds UTC). The table must have both."""
    keys, times = ints(table, spec.key), ints(table, spec.time)
    return int(times[np.searchsorted(keys, first) - 1]), int(times[np.searchsorted(keys, last, "right")])


def missing_between(first: int, last: int, there: Ints) -> tuple[tuple[int, int], ...]:
    """Return the runs of missing ids from ``first`` to ``last``, both inclusive, as ranges of any length."""
    edges = np.concatenate(([first - 1], there, [last + 1]))
    return tuple((int(edges[n]) + 1, int(edges[n + 1]) - 1) for n in np.flatnonzero(np.diff(edges) > 1))


def _of_day(answer: RestRows, day: date, key: SeriesKey) -> RestRows:
    times, start = ints(answer.table, spec_of(key).time), clock.day_start_us(day)
    inside = (times >= start) & (times < start + clock.US_PER_DAY)
    return replace(answer, table=answer.table.filter(pa.array(inside)))


def with_trades_over_flat(key: SeriesKey, rows: DayRows, rest: pa.Table, part: Part) -> DayRows:
    """Replace flat candles of the archive with REST's if those have trades. A finding records both.

    Args:
        rest: Rows that REST has, or had.
    """
    if key.interval is None or not shows_trades(key):
        return rows
    spec = spec_of(key)
    taken = _with_keys(rest.filter(pa.array(ints(rest, "count") > 0)), spec, flat_candles(rows.table))
    if taken.num_rows == 0:
        return rows
    keys = ints(taken, spec.key)
    found = difference(_with_keys(rows.table, spec, keys), taken, spec, key_format(key))
    finding = Finding(
        check="integrity",
        rule=FLAT_FILLED,
        severity=Severity.INFO,
        count=len(keys),
        message=f"{len(keys)} candles are flat in the archive and have trades in REST. REST's candles are stored. "
        f"Archive → REST: {found.shown}.",
        ranges=key_ranges(keys, interval_us(key.interval)),
        evidence=f"archive → REST: {found.recorded}",
    )
    filled = rows.without(keys, spec).with_more(taken, part, spec)
    return replace(filled, findings=(*filled.findings, finding))


def with_stored_rows(key: SeriesKey, stored: DayRows, rows: DayRows) -> DayRows:
    """Merge stored rows that only REST has into an archive day, and record changes since it was stored.

    Args:
        stored: The stored day: provisional, or from an archive that was replaced since.
        rows: The day from the current archive.
    """
    spec = spec_of(key)
    only_rest = stored.from_rest()
    if only_rest.num_rows:
        part = next(part for part in stored.parts if part.source in GAP_FILL_SOURCES)
        rows = with_trades_over_flat(key, rows, only_rest, part)
    only_rest = only_new_slots(key, _new_rows(key, rows, only_rest), rows.table)
    compared = spec if stored.of_archive else of_both_sources(spec)
    found = difference(stored.table, rows.table, compared, key_format(key))
    changes = replace(found, removed=np.setdiff1d(found.removed, ints(only_rest, spec.key)))
    findings: list[Finding] = []
    if stored.of_archive:
        findings += [change_finding(key, "replaced", changes, "The archive was replaced")] if changes else []
    else:
        findings += disagreement(key, stored.table, rows.table)
        findings += [change_finding(key, "became_final", changes, "The archive replaced REST")] if changes else []
    rows = replace(rows, findings=(*rows.findings, *findings))
    if only_rest.num_rows == 0:
        return rows
    return rows.with_more(only_rest, part, spec)


def without_duplicates(key: SeriesKey, before: pa.Table, rows: DayRows) -> DayRows:
    """Remove trades that also appear in the previous day (binance-public-data #353).

    If all of them do, they stay, because a day without rows cannot be stored. A finding reports it.
    """
    spec = spec_of(key)
    repeated = np.intersect1d(ints(before, spec.key), ints(rows.table, spec.key))
    if len(repeated) == 0 and any(finding.rule == ACROSS_MIDNIGHT for finding in rows.findings):
        return rows
    if len(repeated) == 0:
        message = "The ids of this day and of the previous day overlap. No trade appears in both."
        overlap = Finding(check="integrity", rule=ACROSS_MIDNIGHT, severity=Severity.INFO, count=0, message=message)
        return replace(rows, findings=(*rows.findings, overlap))
    found = difference(
        _with_keys(before, spec, repeated),
        _with_keys(rows.table, spec, repeated),
        replace(spec, columns=tuple(column for column in spec.columns if column.kind != "time")),
        key_format(key),
    )
    stay = len(repeated) == rows.table.num_rows
    message = (
        f"All {len(repeated)} trades of this day also appear in the previous day. They stay in both days. "
        f"Deduplicate on `{spec.key}`."
        if stay
        else f"{len(repeated)} trades also appear in the previous day. Only the previous day has them now."
    )
    finding = Finding(
        check="integrity",
        rule=ACROSS_MIDNIGHT,
        severity=Severity.ERROR if stay or found else Severity.WARN,
        count=len(repeated),
        message=f"{message} Some differ: {found.shown}." if found else message,
        ranges=key_ranges(repeated, 1),
    )
    if stay and _is_known(finding, rows):
        return rows
    repaired = rows if stay else rows.without(repeated, spec)
    return replace(repaired, findings=(*repaired.findings, finding))


def _with_keys(table: pa.Table, spec: Spec, keys: Ints) -> pa.Table:
    return table.filter(pa.array(np.isin(ints(table, spec.key), keys)))


def _new_rows(key: SeriesKey, rows: DayRows, table: pa.Table) -> pa.Table:
    """Return the rows of a table that a day does not have. Its candles off the grid count for the time they cover."""
    spec = spec_of(key)
    new = table.filter(pa.array(~np.isin(ints(table, spec.key), ints(rows.table, spec.key))))
    if key.interval is None:
        return new
    spans = ints(new, "open_time"), ints(new, "close_time")
    return new.filter(pa.array(~overlapping(*spans, rows.table, interval_us(key.interval), rows.reach_us)))


def _part_of(answer: RestRows) -> Part:
    return Part(source=Source.REST, url=answer.url, first_row=0, rows=0, fetched_at=answer.asked_at)


def _noted(rows: DayRows, rule: str, times: Ints, first: int, last: int, what: str) -> DayRows:
    """Add the finding about REST's answer for flat candles of a span."""
    if len(times) == 0:
        return rows
    finding = Finding(
        check="integrity",
        rule=rule,
        severity=Severity.INFO,
        count=len(times),
        message=f"{len(times)} flat candles {what}.",
        ranges=(Range(first=first, last=last, count=len(times)),),
    )
    others = (one for one in rows.findings if _without_text(one) != _without_text(finding))
    return replace(rows, findings=(*others, finding))


def _is_known(finding: Finding, rows: DayRows) -> bool:
    """Return True if a day has the finding, in these or other words: stored ones may have an older text."""
    return any(_without_text(one) == _without_text(finding) for one in rows.findings)


def _without_text(finding: Finding) -> Finding:
    return finding.model_copy(update={"message": ""})


def _spans(lacking: Ints, longest_us: int) -> list[tuple[int, int]]:
    """Return the first and last open times of requests, each as big as a page allows."""
    spans: list[tuple[int, int]] = []
    for at in lacking:
        if spans and at - spans[-1][0] < longest_us:
            spans[-1] = (spans[-1][0], int(at))
        else:
            spans.append((int(at), int(at)))
    return spans
