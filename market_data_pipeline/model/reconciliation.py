"""Results of reconciling a day of klines with its source: the differences, and the reasons that explain them.

Comparing belongs to ``reconciliation/``, and so does the record on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

from market_data_pipeline.model.series import SeriesKey

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


OnCompared = Callable[[SeriesKey, Sequence["DayReconciled"]], None]
"""Told of days as soon as they are compared; the command line's progress bar listens here, in the same process."""
