"""What days of klines were reconciled with, and where they differ: one small Parquet file a series.

What belongs here: the record and its file, ``{root}/quality/reconciliation/<series>.parquet``. How two sides are
compared is ``quality.reconciliation``. The record can be deleted at any time: the days are compared again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from market_data_pipeline.lake import files
from market_data_pipeline.lake.files import DamagedFileError

MAX_DIFFERENCES = 1000
"""Differing values that a day keeps; its counts are of all bars."""


class Reason(StrEnum):
    """Why a bar may differ from its source without either being wrong."""

    SKIPPED_TRADES = "skipped_trades"
    """Futures: trade ids that are in no aggTrade (insurance fund, auto-deleveraging) lie in the bar."""
    TAKEN_BACK = "taken_back"
    """Spot: a sentinel row stands where trades were taken back."""
    ACROSS_BARS = "across_bars"
    """Futures: trades of up to 100 ms are one aggTrade, and its trades lie on both sides of the bar's edge."""
    MISSING_TRADES = "missing_trades"
    """aggTrades are not held for all of the bar; the gaps check of the aggTrades says why."""
    MISSING_CANDLES = "missing_candles"
    """Candles of the finer interval are not held for all of the bar; their gaps check says why."""
    KNOWN_GAP = "known_gap"
    """The candle is not held, and the gaps check of the klines knows it."""
    OFF_GRID = "off_grid"
    """Candles that do not begin at multiples of the interval have a part of the bar's time."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One value of a bar that is not what its source makes of it.

    Attributes:
        open_time: The bar (UTC, without zone).
        column: Column of the klines; ``candle`` where the whole row is missing, with the number of its trades.
        klines: The value in the klines; None where there is no row.
        rebuilt: The value that the source makes; None where the source has nothing for the bar.
        reason: Why that may be so, a :class:`Reason`; empty where nothing explains it.
        ids: What the reason rests on: trade ids that were left out, aggTrade ids, or a verdict.
    """

    open_time: datetime
    column: str
    klines: float | None
    rebuilt: float | None
    reason: str = ""
    ids: str = ""


@dataclass(frozen=True, slots=True)
class DayReconciled:
    """How a day of klines stands against what it was rebuilt from.

    Attributes:
        day: The UTC day.
        source: Name of the series that it was rebuilt from.
        klines_sha256: Hash of the day's klines, as in their ledger.
        source_sha256: Hash of the day of the source.
        compared_at: When (UTC, without zone).
        bars: Bars that were compared.
        differing: Bars that differ in any column.
        explained: Those of them that a :class:`Reason` explains.
        contract_size: What a contract of cm is worth in US dollars, derived from the two sides; None elsewhere.
        differences: The differing values, at most ``MAX_DIFFERENCES``.
    """

    day: date
    source: str
    klines_sha256: str | None
    source_sha256: str | None
    compared_at: datetime
    bars: int
    differing: int
    explained: int
    contract_size: float | None = None
    differences: tuple[Difference, ...] = ()

    @property
    def unexplained(self) -> int:
        """Bars that differ for no known reason."""
        return self.differing - self.explained


_TIME = pa.timestamp("us")
SCHEMA = pa.schema(
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
    """Read a series' record, by day; one that is absent or damaged is empty, since days can be compared again.

    Args:
        path: The record.
        days: Which of its days; all by default. Of ten years, a few are read thirty times as fast.
    """
    try:
        table = files.read_table(path)
        if days is not None:
            table = table.filter(pc.is_in(table["day"], pa.array(days, pa.date32())))
        return {
            row["day"]: DayReconciled(**{**row, "differences": tuple(Difference(**d) for d in row["differences"])})
            for row in table.to_pylist()
        }
    except (DamagedFileError, TypeError, KeyError):
        return {}


class Compared(NamedTuple):
    """What tells whether a day has to be compared again: see :class:`DayReconciled`."""

    klines_sha256: str | None
    source_sha256: str | None
    compared_us: int
    lacked: bool
    """Whether something differed because the source was not held whole, which the days beside may mend."""


_LACKING_SOURCE = (Reason.MISSING_TRADES, Reason.MISSING_CANDLES)


def read_compared(path: Path, first: date, last: date) -> dict[date, Compared]:
    """Of each day on a series' record, what tells whether it has to be compared again; quick, also of ten years.

    Args:
        path: The record; one that is absent or damaged is empty.
        first: First UTC day.
        last: Last UTC day, included.
    """
    try:
        table = files.read_table(path).filter((pc.field("day") >= first) & (pc.field("day") <= last)).combine_chunks()
        reasons = pc.struct_field(pc.list_flatten(table["differences"]), "reason")
        lacks = pc.is_in(reasons, pa.array(_LACKING_SOURCE, pa.string()))
        lacking = set(pc.list_parent_indices(table["differences"]).filter(lacks).to_pylist())
        both = (table[name].to_pylist() for name in ("klines_sha256", "source_sha256"))
        columns = files.days_of(table), *both, files.us_of(table, "compared_at")
        return {
            day: Compared(klines, source, at or 0, n in lacking)
            for n, (day, klines, source, at) in enumerate(zip(*columns, strict=True))
        }
    except (DamagedFileError, KeyError, pa.ArrowException):
        return {}


def write_reconciled(path: Path, days: Iterable[DayReconciled]) -> None:
    """Write a series' record, atomically.

    Raises:
        StorageError: the disk refuses.
    """
    ordered = sorted(days, key=lambda one: one.day)
    files.write_table(path, pa.Table.from_pylist([asdict(one) for one in ordered], schema=SCHEMA))
