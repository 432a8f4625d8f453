# ruff: noqa: S608 - the SQL has only the project's own column names, and literals from `quoted`.
"""Candles of any interval as SQL: where they begin, which stored interval divides them, and how they are composed.

All arguments named ``interval`` and ``zone`` are SQL: a literal, or the argument of a macro. Files do not belong here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import reduce

from market_data_pipeline.model.series import INTERVALS

FORM = "[1-9][0-9]{0,3}(s|m|h|d|w|mo)"
"""Pattern of an interval: a number up to 9999 and a unit."""

HOW_TO_WRITE = "Write a number up to 9999 and s, m, h, d, w or mo, such as 7m, 3d, 1w or 1mo."

PARTS = ("parts", "complete")
"""Columns that composed candles have in addition: number of source candles, and True if none is missing."""

UTC_ZONE = "'UTC'"

_US = 1_000_000
_LARGEST_FIRST = sorted(INTERVALS, key=INTERVALS.__getitem__, reverse=True)


def is_interval(text: str) -> bool:
    """Return True if the text is an interval, published or not.

    >>> [is_interval(text) for text in ("7m", "1mo", "1M", "0d")]
    [True, True, False, False]
    """
    return re.fullmatch(FORM, text) is not None


def _unit(interval: str) -> str:
    return f"regexp_extract({interval}, '[a-z]+$')"


def _width(interval: str) -> str:
    return f"TRY_CAST(replace({interval}, 'mo', ' months') AS INTERVAL)"


def _begin(interval: str, time: str) -> str:
    """Return SQL for the begin of the candle that contains a time, both in the candles' own zone.

    Binance counts three days from 1970-01-02 and weeks from Monday. All other units count from 1970-01-01.
    """
    origin = f"""CASE {_unit(interval)} WHEN 'd' THEN TIMESTAMP '1970-01-02' WHEN 'w' THEN TIMESTAMP '1970-01-05'
        ELSE TIMESTAMP '1970-01-01' END"""
    return f"time_bucket({_width(interval)}, {time}, {origin})"


def _to_zone(zone: str, time: str) -> str:
    return f"timezone({zone}, timezone('UTC', {time}))"


def _to_utc(zone: str, time: str) -> str:
    # A midnight can be skipped or come twice. The microsecond before it belongs to the day before in both cases.
    return f"make_timestamp(epoch_us(timezone({zone}, {time} - INTERVAL 1 MICROSECOND)) + 1)"


def first_begin(interval: str, zone: str, moment: str) -> str:
    """Return SQL for the begin of the first candle that does not begin before a moment. All times are UTC."""
    before = _to_zone(zone, f"({moment} - INTERVAL 1 MICROSECOND)")
    return _to_utc(zone, f"({_begin(interval, before)} + {_width(interval)})")


def divisors(interval: str, zone: str, condition: str = "true") -> str:
    """Return SQL for the list of published intervals that divide an interval, the largest first.

    Args:
        interval: SQL for the interval. For text that is no interval, the list is empty.
        zone: SQL for the time zone in which days, weeks and months begin. Its offsets must be multiples of a divisor.
        condition: SQL over ``one``. It is true for intervals to consider.
    """
    names = ", ".join(f"'{name}'" for name in _LARGEST_FIRST)
    step = "epoch_us(CAST(one AS INTERVAL))"
    # The offsets of a zone in winter and summer, of two years because a few zones changed between them.
    moments = ("2017-01-01", "2017-07-01", "2025-01-01", "2025-07-01")
    offsets = [f"epoch_us(timezone({zone}, TIMESTAMP '{moment}'))" for moment in moments]
    shift = reduce(lambda x, y: f"gcd({x}, {y})", offsets)
    form = f"{interval} SIMILAR TO '{FORM}' AND ({zone} = 'UTC' OR {interval} SIMILAR TO '.*(d|w|mo)')"
    return f"""list_filter([{names}], lambda one: {condition} AND {form}
        AND epoch_us({_width(interval)}) % {step} = 0 AND {shift} % {step} = 0)"""


def steps_us(label: str) -> str:
    """Return SQL for the length of a published interval in microseconds. The argument is SQL for its name."""
    branches = (f"WHEN '{name}' THEN {INTERVALS[name] * _US}" for name in _LARGEST_FIRST)
    return f"CASE {label} {' '.join(branches)} END"


def composed(
    source: str, schema: Iterable[str], names: Iterable[str], interval: str, zone: str, step_us: str, symbol: str = ""
) -> str:
    """Return a query that composes candles from the rows of a query, ordered by symbol and time.

    Candles without trades repeat the last price, which is no price of the composed candle unless all are so. Rows off
    the grid of their interval (spot, 2017 and 2018) count as parts, but do not make a candle complete.

    Args:
        source: Query for candles of one interval. Its range begins and ends at a :func:`first_begin`.
        schema: All columns of the source's data type.
        names: Columns to return: those of the data type, and :data:`PARTS`.
        interval: SQL for the interval to compose.
        zone: SQL for the time zone in which days, weeks and months begin. Times of the result are UTC, too.
        step_us: SQL for the length of the source's candles in microseconds. Its columns are those of ``r``.
        symbol: SQL for the symbol, if all rows have the same; empty to take it from the rows.
    """
    traded = ' FILTER (r."count" > 0)' if "count" in schema else ""
    begun, ended = _to_utc(zone, "c.begun"), _to_utc(zone, f"(c.begun + {_width(interval)})")
    outer = {
        "symbol": symbol or 'c."symbol"',
        "interval": interval,
        "open_time": begun,
        "close_time": f"{ended} - to_microseconds(c.unit)",
        "parts": "c.parts",
        "complete": f"c.on_grid * c.step = epoch_us({ended}) - epoch_us({begun})",
    }
    aggregates = {
        **dict.fromkeys(schema, 'round(fsum(r."{0}"), 8)'),
        "count": 'CAST(sum(r."{0}") AS BIGINT)',
        "open": f'coalesce(arg_min(r."{{0}}", r.open_time){traded}, arg_min(r."{{0}}", r.open_time))',
        "close": f'coalesce(arg_max(r."{{0}}", r.open_time){traded}, arg_max(r."{{0}}", r.open_time))',
        "high": f'coalesce(max(r."{{0}}"){traded}, max(r."{{0}}"))',
        "low": f'coalesce(min(r."{{0}}"){traded}, min(r."{{0}}"))',
    }
    names = list(names)
    columns = ", ".join(f'{outer.get(name) or f"""c."{name}" """} AS "{name}"' for name in names)
    inner = [f'{aggregates[name].format(name)} AS "{name}"' for name in names if name not in outer]
    local = f"CASE WHEN {zone} = 'UTC' THEN r.open_time ELSE {_to_zone(zone, 'r.open_time')} END"  # for speed
    by_symbol = "" if symbol else 'r."symbol"'
    groups = ", ".join(filter(None, (by_symbol, "begun")))
    # A candle of Binance closes one unit of its file's time before the next: a millisecond, or a microsecond.
    return f"""
        SELECT {columns} FROM (
            SELECT {", ".join(filter(None, (by_symbol, *inner)))},
                {_begin(interval, local)} AS begun,
                count(*) AS parts, count(*) FILTER (epoch_us(r.open_time) % {step_us} = 0) AS on_grid,
                min({step_us}) AS step, min(1000 - epoch_us(r.close_time) % 1000) AS unit
            FROM ({source}) AS r GROUP BY {groups}
        ) AS c ORDER BY {groups.replace("r.", "c.").replace("begun", "c.begun")}"""


def begin_of(interval: str, time: str) -> str:
    """Return SQL for the begin of the interval that contains a time. Both are UTC."""
    return _begin(interval, time)


def end_of(interval: str, begin: str) -> str:
    """Return SQL for the end of an interval, which is the begin of the next one."""
    return f"({begin} + {_width(interval)})"
