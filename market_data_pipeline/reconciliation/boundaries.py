"""Explain differences of adjacent bars by aggTrades that cross their boundary.

Futures aggregate "market trades that fill in 100ms with the same price and the same taking side" (documentation of
the futures API), so the trades of one aggTrade can lie in two bars. Other reasons belong to
``reconciliation/explain.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise, repeat
from typing import NamedTuple

import numpy as np

from market_data_pipeline.model.reconciliation import Reason
from market_data_pipeline.reconciliation.bars import AGGREGATED_US, RELATIVE, Bar, Side, Trades, equal, shown_ids


def across_bars(bars: Sequence[Bar], step: int, trades: Trades) -> dict[int, tuple[Reason, str]]:
    """Return reasons for adjacent bars whose differences cancel out, if aggTrades at their boundary allow it.

    An aggTrade has one time, but its trades may be up to 100 ms apart. Trades beyond the boundary count in the klines
    of the adjacent bar.
    """
    reasons: dict[int, tuple[Reason, str]] = {}
    for run in _runs(bars, step):
        edges = _moved(run, step, trades)
        for bar, (left, right) in zip(run, pairwise(edges), strict=False):
            ids = np.unique(trades.ids[[*left, *right]]).tolist()
            reasons[bar.at] = (Reason.ACROSS_BARS, shown_ids([str(one) for one in ids]))
    return reasons


def _runs(bars: Sequence[Bar], step: int) -> Iterator[list[Bar]]:
    run: list[Bar] = []
    for bar in bars:
        if run and bar.at != run[-1].at + step:
            yield run
            run = []
        run.append(bar)
    if run:
        yield run


_Sides = tuple[Side, Side]
"""A bar of the klines, and the rebuilt one."""


class _Edge(NamedTuple):
    """The end of a bar: trades and volume that the klines have more up to there, and aggTrades that may cross it."""

    flow: int
    volume: float
    rows: Sequence[int]


def _moved(run: Sequence[Bar], step: int, trades: Trades) -> list[Sequence[int]]:
    """Return the aggTrades (row numbers) at each edge of a run of bars. Outer edges are empty.

    Return nothing if aggTrades do not explain the differences.
    """
    sides = [(bar.klines, bar.rebuilt) for bar in run if bar.klines is not None]
    if len(sides) < len(run):
        return []
    counts = accumulate(ours.count - made.count for ours, made in sides)
    volumes = accumulate(ours.volume - made.volume for ours, made in sides)
    ends = (bar.at + step for bar in run)
    edges = [_Edge(0, 0.0, ()), *map(_edge, counts, volumes, ends, repeat(trades))]
    rounding = RELATIVE * sum(made.volume for _, made in sides)
    is_explained = (
        edges[-1].flow == 0
        and all(_may_cross(edge, trades, rounding) for edge in edges)
        and _same_in_sum(sides)
        and all(_with_prices(*both, *around, trades) for both, around in zip(sides, pairwise(edges), strict=True))
    )
    return [edge.rows for edge in edges] if is_explained else []


def _edge(count: int, volume: float, at: int, trades: Trades) -> _Edge:
    """Return an edge with the aggTrades near it that have several trades. If no trade crosses it, there are none.

    If the klines have more before the edge, the aggTrades lie after it, and the other way round.
    """
    low, high = (at, at + AGGREGATED_US) if count > 0 else (at - AGGREGATED_US, at)
    near = (trades.at >= low) & (trades.at < high) & (trades.last > trades.first)
    return _Edge(count, volume, np.flatnonzero(near).tolist() if count else ())


def _may_cross(edge: _Edge, trades: Trades, rounding: float) -> bool:
    """Return True if the aggTrades at an edge can move its trades and volume over it."""
    if not edge.flow:  # no trade crosses, so no volume does
        return abs(edge.volume) <= rounding
    rows = list(edge.rows)
    # At least one trade of an aggTrade stays on its side.
    room = int((trades.last[rows] - trades.first[rows]).sum())
    return abs(edge.flow) <= room and abs(edge.volume) < sum(trades.quantity[rows].tolist())


def _same_in_sum(sides: Sequence[_Sides]) -> bool:
    """Return True if the sums over all bars are equal."""
    trades = sum(ours.count for ours, _ in sides)
    names = ("volume", "taker_volume", "value", "taker_value")
    known = [name for name in names if all(getattr(made, name) is not None for _, made in sides)]
    sums = [[sum(getattr(side, name) or 0 for side in column) for name in known] for column in zip(*sides, strict=True)]
    return all(equal(name, one, other, trades) for name, one, other in zip(known, *sums, strict=True))


def _with_prices(ours: Side, made: Side, before: _Edge, after: _Edge, trades: Trades) -> bool:
    """Return True if a bar has the rebuilt prices, or prices of trades that crossed its edges into it."""
    # Trades enter a bar backwards over its right edge or forwards over its left edge.
    left = set(trades.price[list(before.rows)].tolist()) if before.flow < 0 else set()
    right = set(trades.price[list(after.rows)].tolist()) if after.flow > 0 else set()
    return (
        ours.open in {made.open, *left, *(right if made.open is None else ())}
        and ours.close in {made.close, *right, *(left if made.close is None else ())}
        and ours.high in {made.high, *left, *right}
        and ours.low in {made.low, *left, *right}
    )
