"""Explain differences of adjacent bars by aggTrades that cross their boundary.

Futures aggregate "market trades that fill in 100ms with the same price and the same taking side" (documentation of
the futures API), so the trades of one aggTrade can lie in two bars. Other reasons belong to
``reconciliation/explain.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from market_data_pipeline.model.reconciliation import Reason
from market_data_pipeline.reconciliation.bars import AGGREGATED_US, RELATIVE, Bar, Trades, equal, shown_ids


def across_bars(bars: Sequence[Bar], step: int, trades: Trades) -> dict[int, tuple[Reason, str]]:
    """Return reasons for adjacent bars whose differences cancel out, if aggTrades at their boundary allow it.

    An aggTrade has one time, but its trades may be up to 100 ms apart. Trades beyond the boundary count in the klines
    of the adjacent bar.
    """
    reasons: dict[int, tuple[Reason, str]] = {}
    for run in _runs(bars, step):
        edges = moved(run, step, trades)
        if edges is None:
            continue
        for n, bar in enumerate(run):
            ids = sorted({int(trades.ids[row]) for rows in edges[n : n + 2] for row in rows})
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


def moved(run: Sequence[Bar], step: int, trades: Trades) -> list[list[int]] | None:
    """Return the aggTrades (row numbers) at each edge of a run of bars. Outer edges are empty.

    Return None if aggTrades do not explain the differences.
    """
    edges: list[list[int]] = [[]]
    flows = [0]
    count, volume = 0, 0.0
    rounding = RELATIVE * sum(bar.rebuilt.volume for bar in run)
    for bar in run:
        if bar.klines is None:
            return None
        count += bar.klines.count - bar.rebuilt.count
        volume += bar.klines.volume - bar.rebuilt.volume
        edge = bar.at + step
        # If the klines have more before the edge, the aggTrades lie after it, and the other way round.
        low, high = (edge, edge + AGGREGATED_US) if count > 0 else (edge - AGGREGATED_US, edge)
        rows = np.flatnonzero((trades.at >= low) & (trades.at < high) & (trades.last > trades.first)) if count else ()
        room = sum(int(trades.last[row] - trades.first[row]) for row in rows)
        quantity = sum(float(trades.quantity[row]) for row in rows)
        # At least one trade of an aggTrade stays on its side. If no trade crosses, no volume does.
        if abs(count) > room or (abs(volume) >= quantity if count else abs(volume) > rounding):
            return None
        edges.append([int(row) for row in rows])
        flows.append(count)
    if count or not _same_in_sum(run):
        return None
    for n, bar in enumerate(run):
        # Trades enter a bar backwards over its right edge or forwards over its left edge.
        left = {float(trades.price[row]) for row in edges[n]} if flows[n] < 0 else set()
        right = {float(trades.price[row]) for row in edges[n + 1]} if flows[n + 1] > 0 else set()
        if not _with_prices(bar, left, right):
            return None
    return edges


def _same_in_sum(run: Sequence[Bar]) -> bool:
    """Return True if the sums over all bars are equal."""
    sides = [(bar.klines, bar.rebuilt) for bar in run if bar.klines is not None]
    trades = sum(ours.count for ours, _ in sides)
    return all(
        equal(
            name,
            sum(getattr(ours, name) or 0 for ours, _ in sides),
            sum(getattr(made, name) or 0 for _, made in sides),
            trades,
        )
        for name in ("volume", "taker_volume", "value", "taker_value")
        if all(getattr(made, name) is not None for _, made in sides)
    )


def _with_prices(bar: Bar, left: set[float], right: set[float]) -> bool:
    """Return True if a bar has the rebuilt prices, or prices of trades that crossed its edges."""
    ours, made = bar.klines, bar.rebuilt
    if ours is None:
        return False
    return (
        ours.open in {made.open, *left, *(right if made.open is None else ())}
        and ours.close in {made.close, *right, *(left if made.close is None else ())}
        and ours.high in {made.high, *left, *right}
        and ours.low in {made.low, *left, *right}
    )
