"""The integrity check of a day's rows. Pure. The table is ordered and has no duplicates.

A day that breaks a rule is stored as published, with the finding. Refusing an archive with other days or other columns
does not belong here (``sources/binance/zip_reader.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.checks.gaps import ends_of
from market_data_pipeline.checks.ordering import SAME_FLOAT, Ints, floats, ints, key_ranges
from market_data_pipeline.model.datasets import spec_of
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.findings import OFF_GRID, SOURCE, Finding, RestAnswer, Severity, integrity_finding
from market_data_pipeline.model.series import DataType, SeriesKey
from market_data_pipeline.model.states import source_mark

Mask = npt.NDArray[np.bool_]

ERROR, WARN, INFO = Severity.ERROR, Severity.WARN, Severity.INFO

_Rule = tuple[str, Severity, Mask, str]
"""A rule, its severity, a mask of the rows that break it, and what is wrong with them."""


def check_integrity(key: SeriesKey, table: pa.Table) -> list[Finding]:
    """Return the findings about the rows of one day. The list is empty if all rules pass."""
    if not table.num_rows:
        return []
    rules, keys = {DataType.KLINES: _klines, DataType.AGG_TRADES: _agg_trades}, ints(table, spec_of(key).key)
    findings = []
    for rule, severity, wrong, text in rules[key.data_type](key, table):
        if count := int(wrong.sum()):
            ranges = key_ranges(keys[wrong], key.step)
            findings.append(integrity_finding(rule, severity, count, f"{count} of {len(keys)} rows: {text}", ranges))
    return findings


def checksum_missing() -> Finding:
    """Return the finding of a day whose archive has no ``.CHECKSUM``. The rows are stored, but not verified."""
    text = "The archive has no .CHECKSUM for this day, so its bytes are not verified. The day stays provisional."
    return integrity_finding("checksum_missing", WARN, 1, text)


def checksum_accepted() -> Finding:
    """Return the finding of a day whose bytes do not match their checksum, but were accepted by a person."""
    text = (
        "The bytes do not match their published checksum, but a person accepted them. "
        "`market-data quarantine show` prints who and why."
    )
    return integrity_finding("checksum_accepted", WARN, 1, text)


def off_grid_finding(key: SeriesKey, table: pa.Table, off: Ints, rest: pa.Table) -> Finding:
    """Return the finding of candles that do not begin at multiples of their interval, with REST's rows for their time.

    Args:
        off: Open times of the candles off the grid.
        rest: REST's rows from the first of them to the last.
    """
    theirs = ints(rest, "open_time")
    on_grid, same = theirs[theirs % key.step == 0], np.intersect1d(theirs, off)
    has = [f"{len(same)} of them" if len(same) else ""]
    if len(on_grid):
        has.append(f"{len(on_grid)} candles on the grid, {_moment(on_grid[0])} to {_moment(on_grid[-1])}")
    evidence = f"REST has {' and '.join(filter(None, has)) or 'none'}"
    if len(on_grid):
        evidence += "; candles on the grid that overlap rows of the archive are not stored"
    text = (
        f"{len(off)} of {table.num_rows} rows: open_time is not a multiple of {key.interval}, from {_moment(off[0])} "
        f"to {_moment(off[-1])}. They count for the time that they cover. {evidence}."
    )
    found = integrity_finding(OFF_GRID, INFO, len(off), text, key_ranges(off, key.step), evidence)
    return found.model_copy(update={"rest": RestAnswer(answered=True)})


def _moment(us: int) -> str:
    return clock.naive_from_us(int(us)).isoformat(sep=" ", timespec="milliseconds")


def _klines(key: SeriesKey, table: pa.Table) -> Iterator[_Rule]:
    step = key.step
    opened, closed = ints(table, "open_time"), ints(table, "close_time")
    names = [column.name for column in spec_of(key).columns if column.kind == "float"]
    values = np.stack([floats(table, name) for name in names])
    open_, high, low, close, total, quote, taker, taker_quote = values

    further = np.diff(opened)
    near = (further > 0) & (further < step)  # if days are read together, they may be out of order
    if near.sum() * 2 > len(opened):
        yield "spacing", ERROR, np.r_[near, False], f"the next candle begins less than {key.interval} later."
    else:
        overlaps = np.r_[near & (opened[1:] < ends_of(opened, closed, step)[:-1]), False]
        yield "overlap", WARN, overlaps, "the next candle begins before this one is over."
        yield OFF_GRID, INFO, opened % step != 0, f"open_time is not a multiple of {key.interval}."
    yield "finite", ERROR, np.any(~np.isfinite(values), axis=0), "a value is not a number."
    yield "negative", ERROR, np.any(values < 0, axis=0), "a price or volume is negative."
    yield "negative_count", ERROR, ints(table, "count") < 0, "the number of trades is negative."
    outside = (low > np.minimum(open_, close)) | (high < np.maximum(open_, close))
    yield "price_range", ERROR, outside, "open or close is not between low and high."
    above = _above(taker, total) | _above(taker_quote, quote)
    yield "taker", ERROR, above, "the taker buy volume exceeds the volume."
    # A candle closes one unit of the file's time before the next: a millisecond, or a microsecond in spot since 2025.
    length = closed - opened
    cut = (length != step - 1000) & (length != step - 1)
    yield "close_time", WARN, cut, "close_time is not the end of the candle (Binance cuts candles short at outages)."


def _agg_trades(_key: SeriesKey, table: pa.Table) -> Iterator[_Rule]:
    price, quantity = floats(table, "price"), floats(table, "quantity")
    first, last = ints(table, "first_trade_id"), ints(table, "last_trade_id")
    # Spot has sentinel rows for trades that were taken back: no price, no quantity, no trade ids.
    sentinel = (price == 0) & (quantity == 0) & (first == -1) & (last == -1)

    yield "finite", ERROR, ~(np.isfinite(price) & np.isfinite(quantity)), "price or quantity is not a number."
    yield "positive", ERROR, ~sentinel & ~((price > 0) & (quantity > 0)), "price or quantity is not positive."
    yield "trade_ids", ERROR, first > last, "first_trade_id is greater than last_trade_id."
    backwards = np.r_[False, np.diff(ints(table, "transact_time")) < 0]
    yield "time_order", INFO, backwards, "the time is earlier than that of the previous trade."


def _above(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> Mask:
    above: Mask = part > whole * (1 + SAME_FLOAT)
    return above


def source_findings(made_of: Mapping[SeriesKey, DayRecord | None]) -> tuple[Finding, ...]:
    """Return a failing integrity finding for each source whose day is not complete.

    Args:
        made_of: Record of the day in each source. None if the source has no record.
    """
    found = []
    for key, row in made_of.items():
        if row is not None and (faults := source_mark(row)):
            listed = ", ".join(f"{rows:,} rows {rule}" if rows else rule for rule, rows in faults)
            message = f"Made from {key}, whose day is incomplete or fails its checks: {listed}."
            found.append(
                Finding(
                    check="integrity",
                    rule=SOURCE,
                    severity=ERROR,
                    count=sum(rows for _, rows in faults),
                    message=message,
                    evidence=listed,
                    faults=faults,
                )
            )
    return tuple(found)
