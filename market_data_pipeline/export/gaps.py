"""Missing and doubtful rows of an exported series, with the verdict of each, explained ones included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime

from market_data_pipeline import clock
from market_data_pipeline.client.gaps import Gap, gaps_in
from market_data_pipeline.client.request import Request
from market_data_pipeline.lake.day_records import rows_on_record
from market_data_pipeline.lake.layout import Layout
from market_data_pipeline.lake.partitions import day_files_between
from market_data_pipeline.model.datasets import archived_spans, keyed_by_time
from market_data_pipeline.model.day import EMPTY, FAILED, HELD, NOT_LISTED, DayRecord
from market_data_pipeline.model.findings import FLAT, Finding, Verdict
from market_data_pipeline.model.schema import lake_schema
from market_data_pipeline.model.series import ListingSpans, SeriesKey
from market_data_pipeline.model.states import EXPLAINED
from market_data_pipeline.universe.resolved import Listings

_FAULTY = "faulty"
_WHOLE_DAYS = frozenset({"missing", FAILED, "provisional", _FAULTY, Verdict.NOT_LISTED.value})
"""Verdicts on whole days."""

_STORED = FLAT | {Verdict.HEALED, _FAULTY}
"""Verdicts on rows that are in the export."""


@dataclass(frozen=True, slots=True)
class ExportGap:
    """A range of rows with a verdict.

    Attributes:
        series: The name of the series.
        first: Time of the first row of the range (UTC, without zone).
        last: Time of the last row, or the end of the last day if the rows have no fixed times.
        count: Number of rows. None if it is not known.
        verdict: A verdict of the gaps check, or of whole days ``missing``, ``failed``, ``provisional`` or ``faulty``.
        explained: True if nothing is left to find out.
        rows: ``missing``, or ``stored`` if the rows are in the export and the verdict is a remark on them.
        evidence: Ground of the verdict.
        first_id: First missing trade id. None for rows with times.
        last_id: Last missing trade id.
    """

    series: str
    first: datetime
    last: datetime
    count: int | None
    verdict: str
    explained: bool
    rows: str
    evidence: str
    first_id: int | None = None
    last_id: int | None = None

    def as_json(self) -> dict[str, object]:
        """Return a flat object. Times are ISO 8601 with ``Z``."""
        return {**asdict(self), "first": f"{self.first.isoformat()}Z", "last": f"{self.last.isoformat()}Z"}


def export_gaps(
    layout: Layout, key: SeriesKey, first: date, last: date, listings: Callable[[], Listings], *, final_only: bool
) -> list[ExportGap]:
    """Return all gaps of the days from first to last, both included, in order.

    Args:
        listings: Reads the known listings of symbols. Outside a listing, no day is missing.
        final_only: Days that are not final, or fail the integrity check, are left out of the export.

    Raises:
        StorageError: A ledger cannot be read.
    """
    schema = lake_schema(key.market, key.data_type)
    wanted = Request((key,), clock.midnight(first), clock.midnight(last + clock.DAY), schema)
    found = [_of_gap(gap, final_only=final_only) for gap in gaps_in(layout, wanted, listings, final_only=final_only)]
    listing = archived_spans(key, listings().get((key.market, key.symbol), ListingSpans()))
    found += _joined(_explained(layout, key, first, last, listing, final_only=final_only))
    return sorted(found, key=lambda gap: (gap.first, gap.verdict, gap.first_id or 0))


def _of_gap(gap: Gap, *, final_only: bool) -> ExportGap:
    last = gap.last
    if gap.verdict in _WHOLE_DAYS or gap.ids is not None:
        last = _end_of(gap.key, gap.last.date())
    stored = gap.verdict in _STORED and not (final_only and gap.verdict == _FAULTY)
    count = gap.count
    if gap.verdict in _WHOLE_DAYS and gap.key.interval is not None:
        count = _candles(gap.key, gap.first, last)
    ids = gap.ids or (None, None)
    rows = "stored" if stored else "missing"
    return ExportGap(str(gap.key), gap.first, last, count, gap.verdict, False, rows, gap.evidence, *ids)


def _explained(
    layout: Layout, key: SeriesKey, first: date, last: date, listing: ListingSpans, *, final_only: bool
) -> Iterator[ExportGap]:
    on_disk = {stored.day: stored for stored in day_files_between(layout, key, first, last)}
    records = rows_on_record(layout, key, on_disk, first, last)
    for day in clock.days_between(first, last):
        row = records.get(day)
        if row is None or row.outcome == NOT_LISTED:
            # Without a known listing, a day that was never fetched is missing.
            if not listing.covers(day) or (row is not None and not listing.spans):
                yield _whole_day(key, day, Verdict.NOT_LISTED, "")
        elif row.outcome == EMPTY and row.final:
            yield _whole_day(key, day, Verdict.OUTAGE, _evidence(row))
        elif row.outcome == HELD and (row.final or not final_only):
            for finding in row.findings_list():
                if finding.check == "gaps" and finding.rule in EXPLAINED:
                    yield from _of_finding(key, day, finding)


def _of_finding(key: SeriesKey, day: date, finding: Finding) -> Iterator[ExportGap]:
    rows = "stored" if finding.rule in _STORED else "missing"
    whole = replace(_whole_day(key, day, finding.rule, finding.evidence or ""), rows=rows)
    for one in finding.ranges:
        if keyed_by_time(key.data_type):
            begin, end = clock.naive_from_us(one.first), clock.naive_from_us(one.last)
            yield replace(whole, first=begin, last=end, count=one.count)
        else:
            yield replace(whole, count=one.count, first_id=one.first, last_id=one.last)
    beyond = finding.count - sum(one.count for one in finding.ranges)
    if beyond or not finding.ranges:
        # A finding has only its first ranges.
        yield replace(whole, count=beyond or None)


def _whole_day(key: SeriesKey, day: date, verdict: str, evidence: str) -> ExportGap:
    begin, end = clock.midnight(day), _end_of(key, day)
    count = _candles(key, begin, end) if key.interval is not None else None
    return ExportGap(str(key), begin, end, count, str(verdict), True, "missing", evidence)


def _evidence(row: DayRecord) -> str:
    return "; ".join(filter(None, (finding.evidence for finding in row.findings_list())))


def _end_of(key: SeriesKey, day: date) -> datetime:
    """Return the time of the last row that a day can have."""
    return clock.naive_from_us(clock.day_start_us(day + clock.DAY) - key.step)


def _candles(key: SeriesKey, first: datetime, last: datetime) -> int:
    return int((last - first).total_seconds() * 1_000_000) // key.step + 1


def _joined(gaps: Iterable[ExportGap]) -> list[ExportGap]:
    """Join consecutive days outside the listing into one range."""
    joined: list[ExportGap] = []
    for gap in gaps:
        before = joined[-1] if joined else gap
        follows = before.last.date() + clock.DAY == gap.first.date()
        if follows and before.verdict == gap.verdict == Verdict.NOT_LISTED and not gap.evidence:
            count = None if before.count is None or gap.count is None else before.count + gap.count
            joined[-1] = replace(before, last=gap.last, count=count)
        else:
            joined.append(gap)
    return joined
