"""The gaps check: which rows of a day are not there, as exact ranges. Pure; the table is ordered by key."""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.findings import MAX_RANGES, Finding, Range, Severity
from market_data_pipeline.quality.rows import floats, ints, key_ranges
from market_data_pipeline.series import Listing, SeriesKey, interval_us


def check_gaps(key: SeriesKey, table: pa.Table, day: date, known_until_us: int, listing: Listing) -> list[Finding]:
    """Findings about what is missing in a day.

    Args:
        key: The series.
        table: The day's rows, ordered by key.
        day: The UTC day.
        known_until_us: Until when the day is over, as the source saw it (microseconds UTC): of today only candles
            closed by then are expected.
        listing: On the first and the last listed day the candles before and after trading are not missing.
    """
    if key.interval is None:
        return _missing_trades(table)
    return [*_missing_candles(key, table, day, known_until_us, listing), *_quiet(key, table)]


def expected_open_times(key: SeriesKey, day: date, known_until_us: int) -> np.ndarray:
    """The open times (microseconds UTC) of a day's candles that have closed by ``known_until_us``."""
    step, start = interval_us(key.interval or ""), clock.day_start_us(day)
    closed = max(0, min(known_until_us, start + clock.US_PER_DAY) - start) // step
    return start + step * np.arange(closed, dtype=np.int64)


def _missing_candles(
    key: SeriesKey, table: pa.Table, day: date, known_until_us: int, listing: Listing
) -> list[Finding]:
    step = interval_us(key.interval or "")
    expected, present = expected_open_times(key, day, known_until_us), ints(table, "open_time")
    missing = np.setdiff1d(expected, present, assume_unique=True)
    not_listed = np.zeros(len(missing), dtype=bool)
    if len(present):
        if any(first == day for first, _ in listing.spans):
            not_listed |= missing < present[0]
        if any(last == day for _, last in listing.spans):
            not_listed |= missing > present[-1]
    findings = []
    if not_listed.any():
        findings.append(
            _finding("not_listed", Severity.INFO, missing[not_listed], step, "lie before the listing or after its end.")
        )
    if not not_listed.all():
        absent = missing[~not_listed]
        findings.append(_finding("unpublished", Severity.WARN, absent, step, f"of {len(expected)} are missing."))
    return findings


def _quiet(key: SeriesKey, table: pa.Table) -> list[Finding]:
    flat = (floats(table, "volume") == 0) & (ints(table, "count") == 0)
    if not flat.any():
        return []
    times = ints(table, "open_time")[flat]
    return [_finding("quiet", Severity.INFO, times, interval_us(key.interval or ""), "are flat: no trade took place.")]


def _finding(rule: str, severity: Severity, times: np.ndarray, step: int, text: str) -> Finding:
    message = f"{len(times)} candles {text}"
    return Finding(
        check="gaps", rule=rule, severity=severity, count=len(times), message=message, ranges=key_ranges(times, step)
    )


def _missing_trades(table: pa.Table) -> list[Finding]:
    ids = ints(table, "agg_trade_id")
    jumps = np.flatnonzero(np.diff(ids) > 1)
    if len(jumps) == 0:
        return []
    ranges = tuple(
        Range(first=int(ids[at]) + 1, last=int(ids[at + 1]) - 1, count=int(ids[at + 1] - ids[at]) - 1)
        for at in jumps[:MAX_RANGES]
    )
    count = int((np.diff(ids)[jumps] - 1).sum())
    message = f"{count} aggregate trades are missing: the ids jump at {len(jumps)} places."
    return [
        Finding(check="gaps", rule="unpublished", severity=Severity.WARN, count=count, message=message, ranges=ranges)
    ]


def unpublished() -> Finding:
    """The finding of a day whose rest would cost more REST weight than a run may spend."""
    return Finding(
        check="gaps",
        rule="unpublished",
        severity=Severity.WARN,
        count=0,
        message="Later trades of this day were left to the next run or to the archive: the run's REST weight for "
        "aggTrades was used up (MARKET_DATA_REST_TRADES_WEIGHT).",
    )
