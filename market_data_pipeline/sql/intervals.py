# ruff: noqa: S608 - the SQL has only the project's own column names, and literals from `quoted`.
"""Candles of any interval as SQL: where they begin, which stored interval divides them, and how they are composed.

All arguments named ``interval`` and ``zone`` are SQL: a literal, or the argument of a macro. Files do not belong here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import reduce

from market_data_pipeline.model.series import INTERVALS

FORM = "[1-9][0-9]{0,3}(s|m|h|d|w|mo)"
"""Pattern of an interval: a number up to 9999 and a unit."""

HOW_TO_WRITE = "Write a number up to 9999 and s, m, h, d, w or mo, such as 7m, 3d, 1w or 1mo."

PARTS = ("parts", "complete")
"""Columns that composed candles have in addition: number of source candles, and True if none is missing."""

UTC_ZONE = "'UTC'"

_US = 1_000_000
_DAY_US = 86_400 * _US
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
    return f"time_bucket({_width(interval)}, {time}, make_timestamp({_origin_us(interval)}))"


def _origin_us(interval: str) -> str:
    """Return SQL for the begin of some candle in microseconds since 1970."""
    return f"CASE {_unit(interval)} WHEN 'd' THEN {_DAY_US} WHEN 'w' THEN {4 * _DAY_US} ELSE 0 END"


def _to_zone(zone: str, time: str) -> str:
    return time if zone == UTC_ZONE else f"timezone({zone}, timezone('UTC', {time}))"


def _to_utc(zone: str, time: str) -> str:
    if zone == UTC_ZONE:
        return time
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
    source: str,
    schema: Iterable[str],
    names: Iterable[str],
    interval: str,
    zone: str,
    step_us: str,
    symbols: Sequence[str],
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
        symbols: SQL for the symbols of the rows, in order. With one, the rows' own symbol is not read.
    """
    local = f"make_timestamp((c.slot & {_SLOTS - 1}) * {_slot_us(interval, zone)} + {_slot_origin_us(interval, zone)})"
    begun, ended = _to_utc(zone, "c.local"), _to_utc(zone, f"(c.local + {_width(interval)})")
    number = f'CASE r."symbol" {" ".join(f"WHEN {one} THEN {n}" for n, one in enumerate(symbols))} END'
    outer = {
        "symbol": symbols[0] if len(symbols) == 1 else f"[{', '.join(symbols)}][(c.slot // {_SLOTS}) + 1]",
        "interval": interval,
        "open_time": "c.begun",
        "close_time": "c.ended - to_microseconds(c.unit)",
        "parts": "c.parts",
        "complete": "c.on_grid * c.step = epoch_us(c.ended) - epoch_us(c.begun)",
    }
    # One price is the first or last of all rows: rows without trades come after or before all others.
    is_traded, time = 'r."count" > 0', "epoch_us(r.open_time)"
    earliest, latest = (
        f"CASE WHEN {is_traded} THEN {time} ELSE {time} {sign} {_AWAY_US} END" if "count" in schema else time
        for sign in "+-"
    )
    extreme = '{0}(r."{1}")'
    if "count" in schema:
        extreme = f'coalesce({{0}}(CASE WHEN {is_traded} THEN r."{{1}}" END), {extreme})'
    aggregates = {
        **dict.fromkeys(schema, 'round(fsum(r."{0}"), 8)'),
        "count": 'CAST(sum(r."{0}") AS BIGINT)',
        "open": f'arg_min(r."{{0}}", {earliest})',
        "close": f'arg_max(r."{{0}}", {latest})',
        "high": extreme.format("max", "{0}"),
        "low": extreme.format("min", "{0}"),
    }
    names = list(names)
    columns = ", ".join(f'{outer.get(name) or f"""c."{name}" """} AS "{name}"' for name in names)
    inner = [f'{aggregates[name].format(name)} AS "{name}"' for name in names if name not in outer]
    slot = _slot(interval, zone, "r.open_time")
    # A candle of Binance closes one unit of its file's time before the next: a millisecond, or a microsecond.
    return f"""
        SELECT {columns} FROM (SELECT c.*, {begun} AS begun, {ended} AS ended FROM (SELECT c.*, {local} AS local FROM (
            SELECT {", ".join(inner)},
                {slot if len(symbols) == 1 else f"{number} * {_SLOTS} + {slot}"} AS slot,
                count(*) AS parts, count(*) FILTER (epoch_us(r.open_time) % {step_us} = 0) AS on_grid,
                min({step_us}) AS step, min(1000 - epoch_us(r.close_time) % 1000) AS unit
            FROM ({source}) AS r GROUP BY slot
        ) AS c) AS c) AS c ORDER BY c.slot"""


_SLOTS = 2**40
"""More than any number of a slot: 2**40 seconds are 34,000 years."""

_AWAY_US = 2**60
"""Longer (µs) than any range of times."""


def _is_even(interval: str, zone: str) -> str:
    """Return SQL that is true if all candles have the same length."""
    return f"({zone} = 'UTC' AND NOT suffix({interval}, 'mo'))"


def _slot(interval: str, zone: str, time: str) -> str:
    """Return SQL for the number of the candle that contains a time. DuckDB groups by integers fastest."""
    local = _begin(interval, _to_zone(zone, time))
    even = f"(epoch_us({time}) - {_origin_us(interval)}) // epoch_us({_width(interval)})"
    return f"CASE WHEN {_is_even(interval, zone)} THEN {even} ELSE epoch_us({local}) // {_US} END"


def _slot_us(interval: str, zone: str) -> str:
    return f"CASE WHEN {_is_even(interval, zone)} THEN epoch_us({_width(interval)}) ELSE {_US} END"


def _slot_origin_us(interval: str, zone: str) -> str:
    return f"CASE WHEN {_is_even(interval, zone)} THEN {_origin_us(interval)} ELSE 0 END"


def begin_of(interval: str, time: str) -> str:
    """Return SQL for the begin of the interval that contains a time. Both are UTC."""
    return _begin(interval, time)


def end_of(interval: str, begin: str) -> str:
    """Return SQL for the end of an interval, which is the begin of the next one."""
    return f"({begin} + {_width(interval)})"
