"""Arguments of table macros as SQL: the symbol, the interval, and the range of time from ``a`` to ``b``.

What a macro reads with them belongs to ``sql/views.py`` and ``sql/bars.py``.
"""

from __future__ import annotations

FIRST, LAST = "TIMESTAMP '1000-01-01'", "TIMESTAMP '9999-12-31'"


def _moment(argument: str) -> str:
    """Return SQL for an argument of any type as TIMESTAMP in UTC, independent of the session's zone.

    As text, a TIMESTAMPTZ ends with its offset. Other types have an offset only if the user wrote one. A cast of text
    to TIMESTAMP drops the offset, and a cast of TIMESTAMPTZ uses the session's zone.
    """
    text = f"CAST({argument} AS VARCHAR)"
    in_utc = f"make_timestamp(epoch_us(CAST({text} AS TIMESTAMPTZ)))"
    return f"CASE WHEN {text} GLOB '*:*[+A-Za-z-]*' THEN {in_utc} ELSE CAST({argument} AS TIMESTAMP) END"


# Both functions ignore NULL. The bounds also replace infinity, which has no file name.
START, END = f"greatest({_moment('a')}, {FIRST})", f"least({_moment('b')}, {LAST})"
BEFORE_END = f"({END} - INTERVAL 1 MICROSECOND)"
INTERVAL_ARGUMENT = '"interval"'
SYMBOL_FOLDER = """concat('/', "symbol", '/')"""  # NULL names no series
