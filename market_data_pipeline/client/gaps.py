"""Gaps of a request: missing or doubtful rows without an explanation. Classifying gaps belongs to ``checks``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Literal

import numpy as np

from market_data_pipeline import clock
from market_data_pipeline.client.request import (
    Moment,
    Request,
    SeriesSelection,
    format_moment,
    range_of,
    there_are,
)
from market_data_pipeline.client.snapshot import LiveDay, take_live_days
from market_data_pipeline.errors import GapError, GapWarning, UsageError
from market_data_pipeline.lake.day_records import rows_on_record, sound_among
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_files_between, known_series
from market_data_pipeline.model.datasets import archived_spans, keyed_by_time
from market_data_pipeline.model.day import DAMAGED, FAILED, HELD, NOT_LISTED, DayRecord
from market_data_pipeline.model.findings import Finding, Range, Severity, Verdict
from market_data_pipeline.model.series import DataType, ListingSpans, SeriesKey
from market_data_pipeline.model.states import EXPLAINED
from market_data_pipeline.sql.file_lists import quoted
from market_data_pipeline.universe.resolved import Listings

OnGap = Literal["raise", "warn", "ignore"]
"""Action for gaps without an explanation."""

_MISSING, _PROVISIONAL, _FAULTY = "missing", "provisional", "faulty"
"""Verdicts on whole days, in addition to those of the gaps check and ``failed``."""

_TOLD = 10


@dataclass(frozen=True, slots=True)
class Gap:
    """Requested rows that are missing or doubtful.

    Attributes:
        verdict: Inside a stored day ``archive_defect``, ``unexplained``, ``unpublished`` or ``unconfirmed``. For whole
            days ``failed``, ``missing`` (never fetched), ``provisional`` (if only final days are requested) or
            ``faulty`` (its rows fail the integrity check).
        first: Open time of the first candle, or the beginning of the first day (UTC, without zone).
        last: Open time of the last candle, or the beginning of the last day.
        evidence: Ground of the verdict, or reason of the failure.
        count: Number of rows; None if it is not known.
        ids: First and last missing agg_trade_id.
        failure: Kind of failure, for failed days.
    """

    key: SeriesKey
    verdict: str
    first: datetime
    last: datetime
    evidence: str = ""
    count: int | None = None
    ids: tuple[int, int] | None = None
    failure: str | None = None

    def __str__(self) -> str:
        name = " ".join(filter(None, (self.key.market, self.key.symbol, self.key.interval or self.key.data_type)))
        if self.verdict in (_MISSING, FAILED, _PROVISIONAL, _FAULTY):
            when = _span(str(self.first.date()), str(self.last.date()))
        elif self.ids is not None:
            when = f"{self.first.date()}, ids {_span(*map(str, self.ids))}"
        else:
            when = _span(format_moment(self.first), format_moment(self.last))
        number = f", {self.count:,} {'row' if self.count == 1 else 'rows'}" if self.count else ""
        return f"{name}, {when}: {self.verdict}{number}{f' ({self.evidence})' if self.evidence else ''}"


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _text(gaps: Sequence[Gap]) -> str:
    more = f"\n… and {len(gaps) - _TOLD:,} more" if len(gaps) > _TOLD else ""
    number = "1 gap without an explanation" if len(gaps) == 1 else f"{len(gaps):,} gaps without an explanation"
    return (
        f"The request has {number}:\n"
        + "\n".join(f"- {gap}" for gap in gaps[:_TOLD])
        + f"{more}\n`market-data sync` fetches missing days and repairs what it can. on_gap='warn' or 'ignore' returns "
        "the stored rows, 'raise' refuses."
    )


def worth_a_warning(gaps: Iterable[Gap]) -> list[Gap]:
    """Return gaps without those that need no warning.

    Provisional days are left out on request. A damaged file raises its own error when it is read.
    """
    return [gap for gap in gaps if gap.verdict != _PROVISIONAL and gap.failure != DAMAGED]


def tell_gaps(gaps: Sequence[Gap], on_gap: str, stacklevel: int) -> None:
    """Raise an error or a warning for gaps.

    Args:
        gaps: Gaps without an explanation.
        on_gap: ``raise`` or ``warn``.
        stacklevel: Number of frames up to the line of the user.

    Raises:
        GapError: There are gaps, and ``on_gap`` is ``raise``.
    """
    if gaps and on_gap == "raise":
        raise GapError(_text(gaps), gaps)
    if gaps:
        warnings.warn(GapWarning(_text(gaps)), stacklevel=stacklevel + 1)


def gaps_in(
    layout: Layout,
    wanted: Request,
    listings: Callable[[], Listings],
    *,
    final_only: bool,
    include_live: bool = False,
    growing: bool = True,
) -> list[Gap]:
    """Return the gaps of a request without an explanation, by series and time.

    The future is no gap, and neither is an open candle. Missing ids of aggTrades have no times, so they count for any
    part of the day. Only doubtful days are checked one by one.

    Args:
        listings: Reads the known listings of symbols. Outside a listing, no day is missing.
        final_only: Days that are not final, or fail the integrity check, are left out.
        include_live: Count rows of the live feed as present. Ignored with ``final_only``.
        growing: Count rows that are newer than the last fetch of today.

    Raises:
        StorageError: A ledger cannot be read.
    """
    found: list[Gap] = []
    now = clock.naive_utc(clock.now())
    days = wanted.days_through(now.date())
    if wanted.data_type is DataType.TRADE_PROFILE and days and days[-1] == now.date():
        days.pop()  # a profile is made after its day is over
    with_live = include_live and not final_only and bool(days)
    live = {(one.key, one.day): one for one in (take_live_days(layout, wanted) if with_live else ())}
    for key in wanted.keys if days else ():
        on_disk = {held.day: held for held in day_files_between(layout, key, days[0], days[-1])}
        doubtful = sorted(set(days) - sound_among(layout, key, on_disk))
        if not doubtful:
            continue
        listing = archived_spans(key, listings().get((key.market, key.symbol), ListingSpans()))
        in_doubt = {day: on_disk[day] for day in doubtful if day in on_disk}
        rows = rows_on_record(layout, key, in_doubt, doubtful[0], doubtful[-1], only=doubtful)
        for day in doubtful:
            begin, over = clock.midnight(day), clock.midnight(day + clock.DAY)
            part = _Part(key, day, max(wanted.start, begin), min(wanted.end, over, now))
            until_fetched = not growing and day == now.date()
            if (of_live := live.get((key, day))) is not None:
                if part.start < part.end:
                    before = _last_key_before(layout, key, day, live.get((key, day - clock.DAY)))
                    found += _gaps_of_live_day(
                        part, rows.get(day), of_live, listing, before, until_fetched=until_fetched
                    )
                continue
            if part.start < part.end and not (until_fetched and day not in rows):
                found += _gaps_of_day(part, rows.get(day), listing, final_only=final_only, until_fetched=until_fetched)
    return _joined(found)


@dataclass(frozen=True, slots=True)
class _Part:
    """The past part of a requested day: from ``start`` to before ``end`` (UTC, without a zone)."""

    key: SeriesKey
    day: date
    start: datetime
    end: datetime

    def whole(self, verdict: str, evidence: str, count: int | None = None) -> Gap:
        return Gap(self.key, verdict, clock.midnight(self.day), clock.midnight(self.day), evidence, count)


def _gaps_of_day(
    part: _Part, row: DayRecord | None, listing: ListingSpans, *, final_only: bool, until_fetched: bool
) -> Iterator[Gap]:
    if row is None or row.outcome in (FAILED, NOT_LISTED):
        yield from _absent(part, row, listing)
    elif final_only and not row.final:
        yield part.whole(_PROVISIONAL, "only final days were asked for")
    elif row.outcome == HELD or not row.final:
        yield from _inside(part, row, final_only=final_only)
        if not row.final and not until_fetched:
            yield from _not_yet_fetched(part, row)


def _absent(part: _Part, row: DayRecord | None, listing: ListingSpans) -> Iterator[Gap]:
    """Yield a day that is not stored although its symbol was listed."""
    is_unlisted = row is not None and row.outcome == NOT_LISTED
    if (is_unlisted and not listing.spans) or not listing.covers(part.day):
        return
    if row is None or is_unlisted:
        yield part.whole(_MISSING, "")
    else:
        said = ": ".join(filter(None, (row.failure, row.reason)))
        yield replace(part.whole(FAILED, said), failure=row.failure)


def _inside(part: _Part, row: DayRecord, *, final_only: bool) -> Iterator[Gap]:
    """Yield the faults and the gaps of a stored day."""
    findings = row.findings_list()
    if row.integrity == Severity.ERROR:
        faults = [one.message for one in findings if one.check == "integrity" and one.severity is Severity.ERROR]
        yield part.whole(_FAULTY, " ".join(faults) + (" Left out, by final_only." if final_only else ""))
    for finding in findings:
        if finding.check == "gaps" and finding.rule in set(Verdict) - EXPLAINED:
            yield from _gaps_of_finding(part, finding)


def _gaps_of_finding(part: _Part, finding: Finding) -> Iterator[Gap]:
    for range_ in finding.ranges:
        if not keyed_by_time(part.key.data_type):
            yield replace(part.whole(finding.rule, finding.evidence, range_.count), ids=(range_.first, range_.last))
            continue
        if part.key.interval is None:
            first_time, last_time = clock.naive_from_us(range_.first), clock.naive_from_us(range_.last)
            if first_time < part.end and last_time >= part.start:
                yield Gap(part.key, finding.rule, first_time, last_time, finding.evidence, range_.count)
            continue
        step = part.key.step
        first = max(range_.first, _first_candle(part.start, step))
        last = min(range_.last, _first_candle(part.end, step) - step)
        if first <= last:
            yield _candles(part, finding.rule, first, last, finding.evidence)
    beyond = finding.count - sum(range_.count for range_ in finding.ranges)
    if beyond or not finding.ranges:
        # A finding has only its first ranges.
        yield part.whole(finding.rule, finding.evidence, beyond or None)


def _not_yet_fetched(part: _Part, row: DayRecord) -> Iterator[Gap]:
    """Yield the part of a day that was in the future at the last fetch."""
    known = row.asked_at if row.failure is None else row.fetched_at
    if known is None or known >= part.end:
        return
    evidence = f"fetched at {format_moment(known.replace(microsecond=0))}, and not since"
    if part.key.interval is None:
        yield part.whole(Verdict.UNPUBLISHED, evidence)
        return
    step = part.key.step
    # From the candle that was open then to the last one that has closed by now.
    first = max(_us(known) // step * step, _first_candle(part.start, step))
    closed = _us(min(clock.midnight(part.day + clock.DAY), clock.naive_utc(clock.now()))) // step * step
    last = min(_first_candle(part.end, step), closed) - step
    if first <= last:
        yield _candles(part, Verdict.UNPUBLISHED, first, last, evidence)


# --- days with live rows -------------------------------------------------------------------------------------

_LATE_US = 10_000_000
"""Time after its end in which a live row arrives, also if REST had to be asked."""

_SILENT_US = 60_000_000
"""Time after which a live feed of trades is behind."""


def _gaps_of_live_day(
    part: _Part,
    row: DayRecord | None,
    live: LiveDay,
    listing: ListingSpans,
    before: int | None,
    *,
    until_fetched: bool,
) -> Iterator[Gap]:
    """Yield rows of a day that neither the lake nor the live feed has.

    Args:
        before: Key of the last row of the day before. None if it is not known.
    """
    findings = row.findings_list() if row is not None and row.outcome == HELD else []
    if row is not None and row.integrity == Severity.ERROR:
        faults = [one.message for one in findings if one.check == "integrity" and one.severity is Severity.ERROR]
        yield part.whole(_FAULTY, " ".join(faults))
    explained = [range_ for one in findings if one.check == "gaps" and one.rule in EXPLAINED for range_ in one.ranges]
    now = clock.to_us(clock.now())
    begins_here = any(first == part.day for first, _ in listing.spans)
    if part.key.interval is not None:
        step, keys = part.key.step, live.keys
        first = max(_first_candle(part.start, step), int(keys[0]) if begins_here else 0)
        until = int(keys[-1]) + step if until_fetched else (now - _LATE_US) // step * step
        expected = np.arange(first, min(_first_candle(part.end, step), until), step, dtype=np.int64)
        missing = expected[~np.isin(expected, keys)]
        for range_ in explained:
            missing = missing[(missing < range_.first) | (missing > range_.last)]
        for run in np.split(missing, np.flatnonzero(np.diff(missing) != step) + 1) if len(missing) else ():
            yield _candles(part, Verdict.UNPUBLISHED, int(run[0]), int(run[-1]), _NOT_RECEIVED)
        return
    yield from _gaps_between_trades(part, live, explained, None if begins_here else before)
    last = int(live.times_us[-1])
    over = clock.day_start_us(part.day) + clock.US_PER_DAY
    if not until_fetched and last + _SILENT_US < min(_us(part.end), over, now) and _us(part.start) < over:
        yield part.whole(Verdict.UNPUBLISHED, f"live rows end at {format_moment(clock.naive_from_us(last))}")


_NOT_RECEIVED = "neither stored nor received by the live feed"


def _gaps_between_trades(part: _Part, live: LiveDay, explained: Sequence[Range], before: int | None) -> Iterator[Gap]:
    keys, times = live.keys, live.times_us
    known = keys if before is None else np.concatenate([[before], keys])
    for at in np.flatnonzero(np.diff(known) > 1).tolist():
        first, last = int(known[at]) + 1, int(known[at + 1]) - 1
        if not any(one.first <= first and last <= one.last for one in explained):
            yield replace(part.whole(Verdict.UNPUBLISHED, _NOT_RECEIVED, last - first + 1), ids=(first, last))
    if before is None and bool(live.is_live[0]) and int(times[0]) > _us(part.start) + _SILENT_US:
        begin = format_moment(clock.naive_from_us(int(times[0])))
        yield part.whole(Verdict.UNPUBLISHED, f"live rows begin at {begin}")


def _last_key_before(layout: Layout, key: SeriesKey, day: date, live: LiveDay | None) -> int | None:
    """Return the key of the last known row of the day before."""
    if key.interval is not None:
        return None
    if live is not None:
        return int(live.keys[-1])
    yesterday = day - clock.DAY
    on_disk = {one.day: one for one in day_files_between(layout, key, yesterday, yesterday)}
    record = rows_on_record(layout, key, on_disk, yesterday, yesterday).get(yesterday)
    return record.last_key if record is not None and record.outcome == HELD else None


def _candles(part: _Part, verdict: str, first: int, last: int, evidence: str) -> Gap:
    step = part.key.step
    return Gap(
        part.key, verdict, clock.naive_from_us(first), clock.naive_from_us(last), evidence, (last - first) // step + 1
    )


def _us(moment: datetime) -> int:
    return clock.to_us(moment.replace(tzinfo=UTC))


def _first_candle(moment: datetime, step: int) -> int:
    """Open time of the first candle that does not begin before a moment, in microseconds UTC."""
    return -(-_us(moment) // step) * step


def _joined(gaps: Iterable[Gap]) -> list[Gap]:
    """Join consecutive days with one verdict into one gap, with the evidence of the first day."""
    joined: list[Gap] = []
    for gap in gaps:
        before = joined[-1] if joined else gap
        follows = (before.key, before.verdict, before.last + clock.DAY) == (gap.key, gap.verdict, gap.first)
        if follows and gap.verdict in (_MISSING, FAILED, _PROVISIONAL):
            joined[-1] = replace(before, last=gap.last)
        else:
            joined.append(gap)
    return joined


def gaps_query(
    layout: Layout,
    selection: SeriesSelection,
    start: Moment | None,
    end: Moment | None,
    explained: bool | None,
) -> str:
    """Return the query of ``MarketData.gaps``. None means all.

    Raises:
        UsageError: a symbol or interval is not held, or a moment cannot be meant.
    """
    first, last = range_of(date.min if start is None else start, end)
    held = [key for key in known_series(layout) if selection.market in (None, key.market)]
    if selection.interval is not None:
        _check_one_of(selection.interval, [key.interval or "" for key in held], "interval")
        held = [key for key in held if key.interval == selection.interval]
    for name in selection.symbols or ():
        _check_one_of(name, [key.symbol for key in held], "symbol")
    conditions = [
        f"day >= DATE '{first.date()}' AND coalesce(last, day + INTERVAL 1 DAY) >= TIMESTAMP '{first}'",
        f"coalesce(first, day) < TIMESTAMP '{last}'",
    ]
    conditions += _of_series(selection)
    conditions += [f"explained = {explained}"] if explained is not None else []
    return (
        f"FROM quality.gaps WHERE {' AND '.join(conditions)} "
        'ORDER BY exchange, market, data_type, symbol, "interval", day, first NULLS LAST, first_id NULLS LAST'
    )


def condition_query(selection: SeriesSelection, start: Moment | None, end: Moment | None) -> str:
    """Return the query of ``MarketData.condition``. None means all.

    Raises:
        UsageError: A moment is not valid.
    """
    first, last = range_of(date.min if start is None else start, end)
    conditions = [f"day >= TIMESTAMP '{first}'", f"day < TIMESTAMP '{last}'", *_of_series(selection)]
    return (
        f"FROM quality.condition WHERE {' AND '.join(conditions)} "
        'ORDER BY exchange, market, data_type, symbol, "interval", day'
    )


def _of_series(selection: SeriesSelection) -> list[str]:
    """Return the conditions of a selection in SQL."""
    found = [
        f'"{name}" = {quoted(value)}'
        for name, value in (
            ("market", selection.market),
            ("data_type", selection.data_type),
            ("interval", selection.interval),
        )
        if value is not None
    ]
    if selection.symbols is not None:
        found.append(f"symbol IN ({', '.join(map(quoted, selection.symbols))})")
    return found


def _check_one_of(name: str, names: Iterable[str], what: str) -> None:
    known = sorted({one for one in names if one})
    if name not in known:
        raise UsageError(f"No {what} {name!r} is held. {there_are(name, known) if known else ''}".strip())
