"""The record of reconciled days: one small Parquet file per series, ``{root}/quality/reconciliation/<series>.parquet``.

You can delete it at any time: the days are then compared again. The comparison belongs to
``reconciliation/rebuild.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.errors import DamagedFileError
from market_data_pipeline.lake import parquet
from market_data_pipeline.model.reconciliation import DayReconciled, Difference, Reason

_TIME = pa.timestamp("us")
_SCHEMA = pa.schema(
    [  # type: ignore[arg-type]  # mypy joins the types of the columns to object
        ("day", pa.date32()),
        ("source", pa.string()),
        ("klines_sha256", pa.string()),
        ("source_sha256", pa.string()),
        ("compared_at", _TIME),
        ("bars", pa.int64()),
        ("differing", pa.int64()),
        ("explained", pa.int64()),
        ("contract_size", pa.float64()),
        (
            "differences",
            pa.list_(
                pa.struct(
                    [
                        ("open_time", _TIME),
                        ("column", pa.string()),
                        ("klines", pa.float64()),
                        ("rebuilt", pa.float64()),
                        ("reason", pa.string()),
                        ("ids", pa.string()),
                    ]
                )
            ),
        ),
    ]
)


def read_reconciled(path: Path, days: Collection[date] | None = None) -> dict[date, DayReconciled]:
    """Read a series' record, by day. A missing or damaged record is empty, because days can be compared again.

    Args:
        days: Days to read. None reads all. Reading a few of ten years is thirty times as fast.
    """
    try:
        table = parquet.read_table(path)
        if days is not None:
            table = table.filter(pc.is_in(table["day"], pa.array(days, pa.date32())))
        return {
            row["day"]: DayReconciled(**{**row, "differences": tuple(Difference(**d) for d in row["differences"])})
            for row in table.to_pylist()
        }
    except (DamagedFileError, TypeError, KeyError):
        return {}


class Compared(NamedTuple):
    """The part of a :class:`DayReconciled` that decides if the day has to be compared again."""

    klines_sha256: str | None
    source_sha256: str | None
    compared_us: int
    incomplete_source: bool
    """True if trades or candles of the source were missing. Adjacent days may supply them later."""


_INCOMPLETE_SOURCE = (Reason.MISSING_TRADES, Reason.MISSING_CANDLES)


def read_compared(path: Path, first: date, last: date) -> dict[date, Compared]:
    """Read for each day of a record the part that decides if it has to be compared again. Fast, also for ten years.

    Args:
        path: The record. A missing or damaged one is empty.
        first: First UTC day.
        last: Last UTC day, included.
    """
    try:
        table = parquet.read_table(path).filter((pc.field("day") >= first) & (pc.field("day") <= last)).combine_chunks()
        reasons = pc.struct_field(pc.list_flatten(table["differences"]), "reason")
        is_incomplete = pc.is_in(reasons, pa.array(_INCOMPLETE_SOURCE, pa.string()))
        incomplete = set(pc.list_parent_indices(table["differences"]).filter(is_incomplete).to_pylist())
        both = (table[name].to_pylist() for name in ("klines_sha256", "source_sha256"))
        columns = parquet.days_of(table), *both, parquet.us_of(table, "compared_at")
        return {
            day: Compared(klines, source, at or 0, n in incomplete)
            for n, (day, klines, source, at) in enumerate(zip(*columns, strict=True))
        }
    except (DamagedFileError, KeyError, pa.ArrowException):
        return {}


def write_reconciled(path: Path, days: Iterable[DayReconciled]) -> None:
    """Write a series' record, atomically.

    Raises:
        StorageError: the record cannot be written.
    """
    ordered = sorted(days, key=lambda one: one.day)
    parquet.write_table(path, pa.Table.from_pylist([asdict(one) for one in ordered], schema=_SCHEMA))
