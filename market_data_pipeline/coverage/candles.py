"""Draw a small picture of a day's candles for metadata: SVG in Markdown, because Dagster's UI strips raw HTML.

Every event stores its own copy, so the picture uses few paths with whole numbers and stays under 4 KB. It is text
instead of base64, so that the event log can compress it to a third. Calendars belong to ``coverage/calendar.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pyarrow as pa

_MOST_CANDLES = 48
WIDTH, HEIGHT, MARGIN = 480, 120, 4
UP, DOWN = "#2a9d62", "#d1495b"


@dataclass(frozen=True, slots=True)
class Candle:
    """Open, high, low and close price of a stretch of time."""

    open: float
    high: float
    low: float
    close: float


def merge_candles(table: pa.Table, most: int = _MOST_CANDLES) -> list[Candle]:
    """Merge a day's klines, ordered by time, into at most ``most`` candles of the same number of rows."""
    columns: dict[str, list[Any]] = {name: table.column(name).to_pylist() for name in ("open", "high", "low", "close")}
    size = max(1, -(-table.num_rows // most))
    return [
        Candle(
            open=columns["open"][start],
            high=max(columns["high"][start : start + size]),
            low=min(columns["low"][start : start + size]),
            close=columns["close"][start : start + size][-1],
        )
        for start in range(0, table.num_rows, size)
    ]


def candles_svg(candles: list[Candle]) -> str:
    """Draw candles as an SVG of 480 by 120 pixels. Rising candles are green, falling ones red."""
    top = max(candle.high for candle in candles)
    bottom = min(candle.low for candle in candles)
    scale = (HEIGHT - 2 * MARGIN) / (top - bottom) if top > bottom else 0.0
    step = WIDTH / max(len(candles), 1)
    wicks: dict[str, list[str]] = {UP: [], DOWN: []}
    bodies: dict[str, list[str]] = {UP: [], DOWN: []}

    def y(price: float) -> int:
        return round(MARGIN + (top - price) * scale) if scale else HEIGHT // 2

    for number, candle in enumerate(candles):
        x = round((number + 0.5) * step)
        color = UP if candle.close >= candle.open else DOWN
        first, last = sorted((y(candle.open), y(candle.close)))
        wicks[color].append(f"M{x},{y(candle.high)}V{y(candle.low)}")
        bodies[color].append(f"M{x},{first}V{max(last, first + 1)}")
    thickness = max(1, round(step * 0.6))
    paths = "".join(
        f'<path stroke="{color}" stroke-width="{width}" d="{"".join(strokes[color])}"/>'
        for color in (UP, DOWN)
        for strokes, width in ((wicks, 1), (bodies, thickness))
        if strokes[color]
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">{paths}</svg>'


def candles_markdown(table: pa.Table) -> str | None:
    """Return Markdown with a picture of a day's klines, None for a table without rows.

    Args:
        table: Columns open, high, low, close, ordered by time.
    """
    if not table.num_rows:
        return None
    return f"![candles](data:image/svg+xml,{quote(candles_svg(merge_candles(table)), safe='=:/,')})"
