"""The form of an answer: rows as JSON, units, what is missing, how to get more. Questions belong to ``tools.py``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, Field

from market_data_pipeline.errors import QueryLimitError, UsageError
from market_data_pipeline.model.datasets import MARKETS
from market_data_pipeline.model.series import Market


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """Limits of every call.

    Attributes:
        rows: Most rows of an answer.
        seconds: Time limit of a SQL query in seconds.
        scan_files: Most files that a query may read.
        scan_rows: Most rows that a query may read, estimated from the ledgers.
        characters: Most characters of the rows of an answer, as JSON.
    """

    rows: int = 5000
    seconds: float = 30
    scan_files: int = 5000
    scan_rows: int = 100_000_000
    characters: int = 1_000_000

    def checked(self, limit: int) -> int:
        """Return the limit of rows of a call.

        Raises:
            UsageError: The limit is not a possible number of rows.
        """
        if not 1 <= limit <= self.rows:
            raise UsageError(f"limit is {limit:,}, but an answer has 1 to {self.rows:,} rows.")
        return limit


class AbsentRange(BaseModel):
    """Days or rows that the lake does not have, or that are in doubt."""

    series: str = Field(description="The stored series, as exchange/market/data_type/symbol_interval.")
    first: str = Field(description="First day, or time of the first row (UTC).")
    last: str = Field(description="Last day, or time of the last row (UTC), inclusive.")
    reason: str = Field(description="Reason in one word, for example never_fetched, failed, incomplete or outage.")
    explained: bool = Field(description="True if the source has no such rows either, for example during an outage.")
    days: int | None = Field(default=None, description="Number of whole days.")
    rows: int | None = Field(default=None, description="Number of rows inside a stored day.")
    evidence: str = Field(default="", description="Evidence for the reason.")


class ProvisionalRange(BaseModel):
    """Stored days that may still change, because their archive is not published yet."""

    series: str = Field(description="The stored series.")
    first: str = Field(description="First day (UTC).")
    last: str = Field(description="Last day (UTC), inclusive.")


class ToolAnswer(BaseModel):
    """Answer of every tool."""

    rows: list[dict[str, Any]] = Field(description="The rows. Times are UTC in ISO 8601.")
    units: dict[str, str] = Field(description="Unit or meaning of columns.")
    limit: int = Field(description="Most rows of this answer.")
    truncated: bool = Field(description="True if there are more rows.")
    rest: str | None = Field(default=None, description="How to get the rest of the rows.")
    missing: list[AbsentRange] = Field(description="What the lake does not have, or doubts, in this selection.")
    missing_total: int = Field(description="Number of missing ranges. The answer lists the first of them.")
    provisional: list[ProvisionalRange] = Field(description="Stored days that are not final.")
    days: dict[str, int] = Field(description="Number of days by reason of their condition: final, provisional, …")
    version: str | None = Field(
        None, description="Hash over the contents of the days, to cite. candles and cite have it."
    )
    citation: str | None = Field(default=None, description="The selection and its version in a sentence.")
    reproduce: str | None = Field(default=None, description="Python that returns the same version from an equal lake.")


LISTED = 100
"""Most ranges that an answer lists as missing or provisional."""


def json_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as values of JSON. Times without a zone are UTC. NaN and infinity are null."""
    for batch in table.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            yield {name: json_value(value) for name, value in row.items()}


def json_value(value: Any) -> Any:
    """Return a value of Arrow as a value of JSON.

    >>> json_value(datetime(2024, 1, 1, 12)), json_value(date(2024, 1, 1)), json_value(float("nan"))
    ('2024-01-01T12:00:00Z', '2024-01-01', None)
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case datetime():
            return moment_text(value)
        case date() | time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case Mapping():
            return {str(name): json_value(one) for name, one in value.items()}
        case list() | tuple():
            return [json_value(one) for one in value]
        case _:
            return str(value)


def moment_text(moment: datetime) -> str:
    """Return a moment as ISO text in UTC. Without a zone, it is UTC."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return aware.isoformat().replace("+00:00", "Z")


def cut(rows: Iterable[dict[str, Any]], limit: int, characters: int) -> tuple[list[dict[str, Any]], bool]:
    """Return the first rows, and True if there are more.

    Args:
        limit: Most rows.
        characters: Most characters of all rows as JSON.

    Raises:
        QueryLimitError: The first row alone is too large.
    """
    kept: list[dict[str, Any]] = []
    left = characters
    for row in rows:
        left -= len(json.dumps(row, ensure_ascii=False))
        if left < 0 and not kept:
            raise QueryLimitError(f"One row has more than {characters:,} characters. Select fewer or shorter columns.")
        if left < 0 or len(kept) == limit:
            return kept, True
        kept.append(row)
    return kept, False


_IN_BASE = ("volume", "taker_buy_volume", "quantity", "qty")
_PRICES = ("open", "high", "low", "close", "price", "vwap")


def units_of(columns: Iterable[str], market: Market | None = None) -> dict[str, str]:
    """Return the units of known columns.

    Args:
        columns: Names of columns. Others than the known ones are left out.
        market: The market of the rows; None if they may be of several.

    >>> units_of(["close", "volume", "note"], Market.SPOT)
    {'close': 'quote asset per base asset', 'volume': 'base asset'}
    """
    inverse = None if market is None else MARKETS[market].inverse
    in_base = {None: "base asset; in market cm, contracts", True: "contracts", False: "base asset"}[inverse]
    known = {
        **dict.fromkeys(_PRICES, "quote asset per base asset"),
        **dict.fromkeys(_IN_BASE, in_base),
        **dict.fromkeys(("quote_volume", "taker_buy_quote_volume", "quote_qty"), "quote asset"),
        **dict.fromkeys(("base_volume", "taker_buy_base_volume", "base_qty"), "base asset"),
        **dict.fromkeys(("open_time", "close_time", "transact_time", "time", "create_time", "timestamp"), "UTC"),
        **dict.fromkeys(("fetched_at", "asked_at"), "UTC"),
        **dict.fromkeys(("day", "first_day", "last_day", "listed_from", "listed_until"), "UTC day"),
        "date": "midnight (UTC) at which the day begins",
        "first": "UTC, inclusive",
        "last": "UTC, inclusive",
        "count": "number of trades of a candle, or of rows of a gap",
        "parts": "number of stored candles in a candle",
        "complete": "true if no part of a candle is missing",
        "bytes": "bytes on disk",
        "age_days": "days since the listing",
    }
    return {name: known[name] for name in columns if name in known}
