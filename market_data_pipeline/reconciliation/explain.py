"""Explain bars that differ from their source although neither is wrong, with a :class:`Reason` for each.

Futures aggTrades leave out trades of the insurance fund and of auto-deleveraging (documentation of the futures API).
Trades that cross the edge of a bar belong to ``reconciliation/boundaries.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from market_data_pipeline import clock
from market_data_pipeline.lake import parquet, storage
from market_data_pipeline.model.datasets import MARKETS
from market_data_pipeline.model.findings import MISSING, OFF_GRID, Finding, Verdict
from market_data_pipeline.model.reconciliation import Reason
from market_data_pipeline.model.series import Market, SeriesKey, interval_us
from market_data_pipeline.reconciliation.bars import (
    RELATIVE,
    VALUE_DECIMALS,
    Bar,
    DaySides,
    Side,
    Trades,
    nearly_equal,
    shown_ids,
    trade_columns,
    trades_of,
)
from market_data_pipeline.reconciliation.boundaries import across_bars


def explain_bars(
    key: SeriesKey, source: SeriesKey, sides: DaySides, bars: Sequence[Bar], contract_size: float | None
) -> dict[int, tuple[Reason, str]]:
    """Return the reasons for a day's differing bars, by open time in microseconds. Unexplained bars are left out."""
    step = interval_us(key.interval or "")
    reasons = _from_findings(bars, sides, step, interval_us(source.interval) if source.interval else 0)
    open_bars = [bar for bar in bars if bar.at not in reasons and bar.klines is not None]
    if not open_bars:
        return reasons
    inverse = MARKETS[key.market].inverse
    if source.interval is not None:
        for bar in open_bars:
            worth = _worth(bar, None, inverse=inverse)
            if _misses_candles(bar, source, sides, step) and _possible(bar, None, worth, opens=True, closes=True):
                reasons[bar.at] = (Reason.MISSING_CANDLES, "")
        return reasons
    columns = trade_columns(source)
    trades = trades_of(parquet.read_table(sides.source, columns))
    holes = list(_holes(key.market, sides, trades, columns))
    for bar in open_bars:
        reason = _left_out(bar, step, holes, _worth(bar, contract_size, inverse=inverse))
        if reason is not None:
            reasons[bar.at] = reason
    if key.market is not Market.SPOT and not trades.single:
        rest = [bar for bar in open_bars if bar.at not in reasons]
        reasons |= across_bars(rest, step, trades)
    return reasons


def _from_findings(bars: Iterable[Bar], sides: DaySides, step: int, finer: int) -> dict[int, tuple[Reason, str]]:
    """Return the reasons that follow from the findings of the days' checks."""
    off_grid = list(_off_grid(sides, step, finer))
    reasons = {}
    for bar in bars:
        if any(start < bar.at + step and bar.at < end for start, end in off_grid):
            reasons[bar.at] = (Reason.OFF_GRID, "")
        elif bar.klines is None and (known := _known_gap(bar, sides.klines_findings)) is not None:
            reasons[bar.at] = (Reason.KNOWN_GAP, known)
    return reasons


def _off_grid(sides: DaySides, step: int, finer: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of candles off the grid, in the klines and in the finer klines of the source."""
    both = (((*sides.before_findings, *sides.klines_findings), step), (sides.source_findings, finer))
    for findings, length in both:
        for found in findings:
            if found.rule == OFF_GRID:
                yield from ((one.first, one.last + length) for one in found.ranges)


def _known_gap(bar: Bar, findings: Iterable[Finding]) -> str | None:
    """Return the gaps verdict for a missing candle with trades, None without a verdict.

    The verdict ``outage`` does not count, because it means that there were no trades.
    """
    for found in findings:
        lacking = found.check == "gaps" and found.rule in MISSING and found.rule != Verdict.OUTAGE
        if lacking and (not found.ranges or any(one.first <= bar.at <= one.last for one in found.ranges)):
            return found.rule
    return None


def _misses_candles(bar: Bar, source: SeriesKey, sides: DaySides, step: int) -> bool:
    """Return True if candles of the finer interval are missing in a bar and may have had trades."""
    fine = interval_us(source.interval or "")
    end = bar.at + step - fine
    # An outage has no trades, so its candles are not missing.
    without_trades = sum(
        max(0, (min(one.last, end) - max(one.first, bar.at)) // fine + 1)
        for found in sides.source_findings
        if found.check == "gaps" and found.rule == Verdict.OUTAGE
        for one in found.ranges
    )
    return bar.rows + without_trades < step // fine


_Worth = tuple[float, float]
"""Lowest and highest possible value of one unit of a bar's volume."""


def _worth(bar: Bar, contract_size: float | None, *, inverse: bool) -> _Worth | None:
    """Return the value of one unit of a bar's volume, from the prices of the klines. None if it is unknown.

    Args:
        contract_size: Size of an inverse contract. None derives it from the rebuilt bar.
        inverse: The volume is in contracts and the value in the base asset.
    """
    ours, made = bar.klines, bar.rebuilt
    if ours is None or not ours.low or not ours.high:
        return None
    if not inverse:
        return ours.low, ours.high
    if contract_size is not None:
        return contract_size / ours.high, contract_size / ours.low
    if not made.value or not made.volume:
        return None
    mean = made.value / made.volume
    return mean * ours.low / ours.high, mean * ours.high / ours.low


def _possible(bar: Bar, at_most: int | None, worth: _Worth | None, *, opens: bool, closes: bool) -> bool:
    """Return True if the klines can be the rebuilt bar plus further trades.

    Args:
        bar: The bar, which has a row in the klines.
        at_most: Most further trades. None for any number.
        worth: Value of one unit of the bar's volume, see :func:`_worth`. None if it is unknown.
        opens: The first further trade may come before all others.
        closes: The last further trade may come after all others.
    """
    ours, made = bar.klines, bar.rebuilt
    if ours is None or ours.open is None or ours.close is None or ours.high is None or ours.low is None:
        return False
    further = ours.count - made.count
    if further < 0 or (at_most is not None and further > at_most):
        return False
    # A further trade has a quantity, even if the number of trades does not count it.
    if nearly_equal(ours.volume, made.volume) or not _sums_possible(ours, made, worth):
        return False
    if made.high is None or made.low is None:
        return True
    return (
        ours.high >= made.high
        and ours.low <= made.low
        and (opens or ours.open == made.open)
        and (closes or ours.close == made.close)
    )


def _sums_possible(ours: Side, made: Side, worth: _Worth | None) -> bool:
    """Return True if further trades within the bar's prices can explain the sums, for taker buys and for the rest.

    Each kind only adds volume, and adds a value within the bounds for that volume.
    """
    volume, taker_volume = ours.volume - made.volume, ours.taker_volume - made.taker_volume
    volume_rounding = RELATIVE * max(ours.volume, made.volume)
    volumes = taker_volume, volume - taker_volume
    if min(volumes) < -volume_rounding:
        return False
    sides = ours.value, ours.taker_value, made.value, made.taker_value
    if worth is None or None in sides:
        return True
    value, taker_value, made_value, made_taker_value = (side or 0.0 for side in sides)
    least, most = worth
    rounding = RELATIVE * max(value, made_value) + VALUE_DECIMALS * ours.count + most * volume_rounding
    taker = taker_value - made_taker_value
    return all(
        least * more - rounding <= further <= most * more + rounding
        for more, further in zip(volumes, (taker, value - made_value - taker), strict=True)
    )


def _edge(path: Path | None, columns: list[str], *, last: bool) -> Trades | None:
    """Return the trades of a file's first or last row group."""
    if path is None:
        return None
    try:
        with storage.open_file(path) as opened, pq.ParquetFile(opened) as file:
            groups = file.metadata.num_row_groups
            table = file.read_row_group(groups - 1 if last else 0, columns=columns) if groups else None
    except (OSError, pa.ArrowException) as error:
        raise parquet.damaged(path, error) from error
    trades = trades_of(table) if table is not None else None
    return trades if trades is not None and len(trades.ids) else None


@dataclass(frozen=True, slots=True)
class _Hole:
    """Possible trades that no stored aggTrade contains.

    Attributes:
        after: Time of the aggTrade before them, in microseconds.
        before: Time of the aggTrade after them.
        first: The first trade id. None if their number is unknown.
        last: The last trade id.
    """

    after: int
    before: int
    first: int | None
    last: int | None
    reason: Reason

    @property
    def ids(self) -> str:
        """Return the trade ids as text."""
        if self.first is None or self.last is None:
            return ""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def _holes(market: Market, sides: DaySides, trades: Trades, columns: list[str]) -> Iterator[_Hole]:
    """Yield the holes in the ids of a day's trades, including holes across both midnights.

    Single trades of futures have holes by design.
    """
    by_design = trades.single and market is not Market.SPOT
    start = clock.day_start_us(sides.day)
    end = start + clock.US_PER_DAY
    before, after = _edge(sides.before, columns, last=True), _edge(sides.after, columns, last=False)
    if len(trades.ids) == 0 and (before is None or after is None):
        yield _Hole(start - 1, end, None, None, Reason.MISSING_TRADES)
        return
    pieces = [(before, slice(-1, None)), (trades, slice(None)), (after, slice(0, 1))]
    ids, first, last, at = (
        np.concatenate([getattr(piece, name)[part] for piece, part in pieces if piece is not None])
        for name in ("ids", "first", "last", "at")
    )
    if before is None and trades.ids[0] != MARKETS[market].first_agg_trade_id:
        yield _Hole(start - 1, int(trades.at[0]), None, None, Reason.MISSING_TRADES)
    if after is None:
        yield _Hole(int(trades.at[-1]), end, None, None, Reason.MISSING_TRADES)
    for n in np.flatnonzero((np.diff(ids) > 1) | (first[1:] - last[:-1] > 1)):
        one, other = int(ids[n]), int(ids[n + 1])
        taken_back = int(np.count_nonzero((trades.sentinels > one) & (trades.sentinels < other)))
        times = int(min(at[n], at[n + 1])), int(max(at[n], at[n + 1]))
        trade_ids = int(last[n]) + 1, int(first[n + 1]) - 1
        if other - one - 1 > taken_back and not by_design:
            yield _Hole(*times, *trade_ids, Reason.MISSING_TRADES)
        elif taken_back:
            yield _Hole(*times, *trade_ids, Reason.TAKEN_BACK)
        elif market is not Market.SPOT:
            yield _Hole(*times, *trade_ids, Reason.SKIPPED_TRADES)


def _left_out(bar: Bar, step: int, holes: Iterable[_Hole], worth: _Worth | None) -> tuple[Reason, str] | None:
    """Return the reason why a bar has more trades than the rebuilt one, None if holes do not explain it."""
    end = bar.at + step
    inside = [hole for hole in holes if hole.after < end and hole.before >= bar.at]
    sizes = [hole.last - hole.first + 1 for hole in inside if hole.first is not None and hole.last is not None]
    at_most = sum(sizes) if len(sizes) == len(inside) else None
    opens, closes = any(hole.after < bar.at for hole in inside), any(hole.before >= end for hole in inside)
    if not inside or not _possible(bar, at_most, worth, opens=opens, closes=closes):
        return None
    # Most serious reason first: trades missing in the lake come before trades that Binance leaves out.
    order = (Reason.MISSING_TRADES, Reason.TAKEN_BACK, Reason.SKIPPED_TRADES)
    reason = min((hole.reason for hole in inside), key=order.index)
    named = [hole.ids for hole in inside if hole.reason is reason and hole.ids]
    return reason, shown_ids(named)
