"""The integrity check of a day's rows. Pure. The table is ordered and has no duplicates.

A day that breaks a rule is stored as published, with the finding. Refusing an archive with other days or other columns
does not belong here (``sources/binance/zip_reader.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market_data_pipeline import clock
from market_data_pipeline.checks.gaps import ends_of
from market_data_pipeline.checks.ordering import SAME_FLOAT, Ints, floats, ints, key_ranges
from market_data_pipeline.model.datasets import MeaningChange, spec_of
from market_data_pipeline.model.day import DayRecord
from market_data_pipeline.model.findings import (
    OFF_GRID,
    RELABELLED,
    SOURCE,
    Finding,
    RestAnswer,
    Severity,
    integrity_finding,
)
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
    keys, findings = ints(table, spec_of(key).key), []
    for rule, severity, wrong, text in _RULES[key.data_type](key, table):
        if count := int(wrong.sum()):
            ranges = key_ranges(np.unique(keys[wrong]), key.step)
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


def relabelled(change: MeaningChange, rows: int) -> Finding:
    """Return the finding of a day whose times were moved to the meaning that they have in the lake."""
    minutes = f"{change.shift.total_seconds() / 60:+g} minutes"
    text = f"The times of {rows} rows were moved by {minutes}: {change.what}."
    return integrity_finding(RELABELLED, INFO, rows, text, evidence=change.source)


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
    opened, closed = ints(table, "open_time"), ints(table, "close_time")
    names = [column.name for column in spec_of(key).columns if column.kind == "float"]
    values = np.stack([floats(table, name) for name in names])
    open_, high, low, close, total, quote, taker, taker_quote = values

    yield from _times_of_candles(key, opened, closed)
    yield "finite", ERROR, np.any(~np.isfinite(values), axis=0), "a value is not a number."
    yield "negative", ERROR, np.any(values < 0, axis=0), "a price or volume is negative."
    yield "negative_count", ERROR, ints(table, "count") < 0, "the number of trades is negative."
    outside = (low > np.minimum(open_, close)) | (high < np.maximum(open_, close))
    yield "price_range", ERROR, outside, "open or close is not between low and high."
    above = _above(taker, total) | _above(taker_quote, quote)
    yield "taker", ERROR, above, "the taker buy volume exceeds the volume."
    yield from _length_of_candles(key, opened, closed)


def _price_klines(key: SeriesKey, table: pa.Table) -> Iterator[_Rule]:
    opened, closed = ints(table, "open_time"), ints(table, "close_time")
    values = np.stack([floats(table, name) for name in ("open", "high", "low", "close")])
    open_, high, low, close = values
    yield from _times_of_candles(key, opened, closed)
    yield "finite", ERROR, np.any(~np.isfinite(values), axis=0), "a value is not a number."
    if not spec_of(key).signed:
        yield "negative", ERROR, np.any(values < 0, axis=0), "a price is negative."
    outside = (low > np.minimum(open_, close)) | (high < np.maximum(open_, close))
    yield "price_range", ERROR, outside, "open or close is not between low and high."
    yield from _length_of_candles(key, opened, closed)


def _times_of_candles(key: SeriesKey, opened: Ints, closed: Ints) -> Iterator[_Rule]:
    """Yield the rules on candles that overlap, or do not begin at multiples of their interval."""
    step = key.step
    further = np.diff(opened)
    near = (further > 0) & (further < step)  # if days are read together, they may be out of order
    if near.sum() * 2 > len(opened):
        yield "spacing", ERROR, np.r_[near, False], f"the next candle begins less than {key.interval} later."
    else:
        overlaps = np.r_[near & (opened[1:] < ends_of(opened, closed, step)[:-1]), False]
        yield "overlap", WARN, overlaps, "the next candle begins before this one is over."
        yield OFF_GRID, INFO, opened % step != 0, f"open_time is not a multiple of {key.interval}."


def _length_of_candles(key: SeriesKey, opened: Ints, closed: Ints) -> Iterator[_Rule]:
    """Yield the rule on candles that do not close at the end of their interval."""
    # A candle closes one unit of the file's time before the next: a millisecond, or a microsecond in spot since 2025.
    length = closed - opened
    cut = (length != key.step - 1000) & (length != key.step - 1)
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


def _trades(_key: SeriesKey, table: pa.Table) -> Iterator[_Rule]:
    price, quantity = floats(table, "price"), floats(table, "qty")
    value = floats(table, next(name for name in ("quote_qty", "base_qty") if name in table.column_names))
    finite = np.isfinite(price) & np.isfinite(quantity) & np.isfinite(value)
    yield "finite", ERROR, ~finite, "price, quantity or value is not a number."
    yield "positive", ERROR, ~((price > 0) & (quantity > 0) & (value >= 0)), "price or quantity is not positive."
    backwards = np.r_[False, np.diff(ints(table, "time")) < 0]
    yield "time_order", INFO, backwards, "the time is earlier than that of the previous trade."


def _funding_rate(_key: SeriesKey, table: pa.Table) -> Iterator[_Rule]:
    times, hours = ints(table, "calc_time"), ints(table, "funding_interval_hours")
    close = np.r_[np.diff(times) < _HOUR_US // 2, False]
    yield "spacing", ERROR, close, "the next funding comes less than half an hour later."
    yield "finite", ERROR, ~np.isfinite(floats(table, "last_funding_rate")), "the rate is not a number."
    odd = (hours < 1) | (hours > _LONGEST_INTERVAL)
    yield "funding_interval", ERROR, odd, "the interval is not between 1 and 24 hours."


def _metrics(key: SeriesKey, table: pa.Table) -> Iterator[_Rule]:
    spec = spec_of(key)
    step = int(spec.slots.step.total_seconds() * 1e6) if spec.slots and spec.slots.step else 1
    names = [column.name for column in spec.columns if column.kind == "float"]
    blank = np.stack([table.column(name).is_null().to_numpy() for name in names])
    values = np.stack([floats(table, name) for name in names])  # a blank is not a number
    yield OFF_GRID, INFO, ints(table, spec.time) % step != 0, "create_time is not a multiple of 5m."
    yield "finite", ERROR, np.any(~np.isfinite(values) & ~blank, axis=0), "a value is not a number."
    yield "negative", ERROR, np.any(values < 0, axis=0), "an open interest or a ratio is negative."
    yield "zero_open_interest", WARN, (values[0] == 0) & ~blank[0], "the open interest is 0, as in faulty files."
    yield "blank", INFO, np.any(blank, axis=0), "Binance left a value out. It is NULL."


def _book_depth(_key: SeriesKey, table: pa.Table) -> Iterator[_Rule]:
    times, bands = ints(table, "timestamp"), floats(table, "percentage")
    values = np.stack([floats(table, name) for name in ("depth", "notional")])
    yield "finite", ERROR, ~(np.isfinite(bands) & np.isfinite(values).all(axis=0)), "a value is not a number."
    yield "negative", ERROR, np.any(values < 0, axis=0), "a depth or its value is negative."
    _, first, of, count = np.unique(times, return_index=True, return_inverse=True, return_counts=True)
    odd = ~np.isin(count, _BANDS)[of] | (np.add.reduceat(np.sign(bands), first) != 0)[of]
    yield "bands", WARN, odd, "the snapshot does not have ten or twelve bands, half of them on each side."
    nearer = np.r_[False, (np.diff(times) == 0) & (np.sign(bands[1:]) == np.sign(bands[:-1]))]
    growing = np.r_[0.0, np.diff(values[0])] * np.sign(bands)
    yield "cumulative", WARN, nearer & (growing < 0), "the depth of the band is less than that of a nearer band."
    yield "frozen", ERROR, _frozen(times, bands, values), "the band has the same depth and value for an hour or longer."


def _frozen(times: Ints, bands: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> Mask:
    """Return a mask of the rows in runs of a band that do not change for an hour."""
    frozen = np.zeros(len(times), dtype=bool)
    for band in np.unique(bands):
        rows = np.flatnonzero(bands == band)
        begins = np.flatnonzero(np.r_[True, np.any(np.diff(values[:, rows], axis=1) != 0, axis=0)])
        ends = np.r_[begins[1:], len(rows)] - 1
        for begin, end in zip(begins, ends, strict=True):
            if times[rows[end]] - times[rows[begin]] >= _HOUR_US:
                frozen[rows[begin : end + 1]] = True
    return frozen


def _book_ticker(_key: SeriesKey, table: pa.Table) -> Iterator[_Rule]:
    names = ("best_bid_price", "best_bid_qty", "best_ask_price", "best_ask_qty")
    bid, bid_quantity, ask, ask_quantity = values = np.stack([floats(table, name) for name in names])
    yield "finite", ERROR, np.any(~np.isfinite(values), axis=0), "a price or quantity is not a number."
    yield "negative", ERROR, np.any(values < 0, axis=0), "a price or quantity is negative."
    two_sided = (bid_quantity > 0) & (ask_quantity > 0)
    yield "crossed", WARN, two_sided & (bid > ask), "the best bid is above the best ask."
    backwards = np.r_[False, np.diff(ints(table, "transaction_time")) < 0]
    yield "time_order", INFO, backwards, "the time is earlier than that of the previous change."


def _liquidations(key: SeriesKey, table: pa.Table) -> Iterator[_Rule]:
    original, price, average, last, filled = np.stack(
        [floats(table, column.name) for column in spec_of(key).columns if column.kind == "float"]
    )
    finite = np.isfinite(original) & np.isfinite(price) & np.isfinite(average) & np.isfinite(last) & np.isfinite(filled)
    yield "finite", ERROR, ~finite, "a value is not a number."
    positive = (original > 0) & (price > 0) & (average >= 0) & (last >= 0) & (filled >= 0)
    yield "positive", ERROR, ~positive, "price or quantity is not positive."
    sides = np.array([side in ("BUY", "SELL") for side in table.column("side").to_pylist()], dtype=bool)
    yield "side", ERROR, ~sides, "the side is neither BUY nor SELL."
    yield "overfilled", WARN, _above(filled, original), "more was filled than ordered."


def _bvol_index(_key: SeriesKey, table: pa.Table) -> Iterator[_Rule]:
    index = floats(table, "index_value")
    yield "finite", ERROR, ~np.isfinite(index), "the index is not a number."
    yield "positive", ERROR, index <= 0, "the index is not positive."


def _eoh_summary(key: SeriesKey, table: pa.Table) -> Iterator[_Rule]:
    names = [column.name for column in spec_of(key).columns if column.kind == "float"]
    blank = np.stack([table.column(name).is_null().to_numpy() for name in names])
    value = {name: floats(table, name) for name in names}  # a blank is not a number
    yield (
        "finite",
        ERROR,
        np.any(~np.isfinite(np.stack(list(value.values()))) & ~blank, axis=0),
        "a value is not a number.",
    )
    amounts = np.stack([value[name] for name in names if name not in _MAY_BE_NEGATIVE])
    yield "negative", ERROR, np.any(amounts < 0, axis=0), "a price, volume or open interest is negative."
    open_, high, low, close = (value[name] for name in ("open", "high", "low", "close"))
    outside = (low > np.minimum(open_, close)) | (high < np.maximum(open_, close))
    yield "price_range", ERROR, outside, "open or close is not between low and high."
    sides = np.array([one in ("C", "P") for one in table.column("type").to_pylist()], dtype=bool)
    yield "option_type", ERROR, ~sides, "the type is neither C nor P."
    bid, ask = value["best_bid_price"], value["best_ask_price"]
    yield "crossed", WARN, (bid > 0) & (ask > 0) & (bid > ask), "the best bid is above the best ask."
    yield "blank", INFO, np.any(blank, axis=0), "Binance left a value out. It is NULL."


_RULES: Mapping[DataType, Callable[[SeriesKey, pa.Table], Iterator[_Rule]]] = {
    DataType.KLINES: _klines,
    DataType.AGG_TRADES: _agg_trades,
    DataType.TRADES: _trades,
    DataType.MARK_PRICE_KLINES: _price_klines,
    DataType.INDEX_PRICE_KLINES: _price_klines,
    DataType.PREMIUM_INDEX_KLINES: _price_klines,
    DataType.METRICS: _metrics,
    DataType.BOOK_DEPTH: _book_depth,
    DataType.BOOK_TICKER: _book_ticker,
    DataType.LIQUIDATION_SNAPSHOT: _liquidations,
    DataType.FUNDING_RATE: _funding_rate,
    DataType.BVOL_INDEX: _bvol_index,
    DataType.EOH_SUMMARY: _eoh_summary,
}

_HOUR_US = 3_600_000_000
_BANDS = (10, 12)
"""Bands of a snapshot: 1 to 5 % on both sides, and 0.2 % since 2026-01-15."""
_LONGEST_INTERVAL = 24
_MAY_BE_NEGATIVE = ("best_buy_iv", "best_sell_iv", "mark_iv", "delta", "gamma", "vega", "theta")
"""Values of options that may be negative. Binance writes -1 for a volatility that cannot be computed."""


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
