"""Results of reconciling a day of klines with its source: differences, and the reasons for them.

Comparing does not belong here (``reconciliation/``), nor does the record on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

from market_data_pipeline.model.series import SeriesKey

MAX_DIFFERENCES = 1000
"""Most differing values on record per day. The counts include all bars."""


class Reason(StrEnum):
    """Reason why a bar differs from its source although both are right."""

    SKIPPED_TRADES = "skipped_trades"
    """Futures: the bar contains trade ids that are in no aggTrade (insurance fund, auto-deleveraging)."""
    TAKEN_BACK = "taken_back"
    """Spot: a sentinel row marks trades that were taken back."""
    ACROSS_BARS = "across_bars"
    """Futures: an aggTrade of up to 100 ms has trades on both sides of the bar's edge."""
    MISSING_TRADES = "missing_trades"
    """A part of the aggTrades of the bar is missing. The gaps check of the aggTrades has the reason."""
    MISSING_CANDLES = "missing_candles"
    """A part of the finer candles of the bar is missing. Their gaps check has the reason."""
    KNOWN_GAP = "known_gap"
    """The candle is missing, and the gaps check of the klines reports it."""
    OFF_GRID = "off_grid"
    """Candles that do not begin at multiples of the interval cover a part of the bar."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One value of a bar that differs from the value rebuilt from its source.

    Attributes:
        open_time: Open time of the bar (UTC, without zone).
        column: Column of the klines. ``candle`` if the whole row is missing; the value is then its number of trades.
        klines: Value in the klines. None if the row is missing.
        rebuilt: Value rebuilt from the source. None if the source has no rows for the bar.
        reason: A :class:`Reason`. Empty if nothing explains the difference.
        ids: Evidence for the reason: skipped trade ids, aggTrade ids, or a verdict.
    """

    open_time: datetime
    column: str
    klines: float | None
    rebuilt: float | None
    reason: str = ""
    ids: str = ""


@dataclass(frozen=True, slots=True)
class DayReconciled:
    """Result of comparing a day of klines with its source.

    Attributes:
        source: Name of the source series.
        klines_sha256: Content hash of the day's klines, as in their ledger.
        source_sha256: Content hash of the source's day.
        compared_at: Time of the comparison (UTC, without zone).
        differing: Bars that differ in any column.
        explained: Differing bars with a :class:`Reason`.
        contract_size: Value of a cm contract in US dollars, derived from both sides. None in other markets.
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
        """Return the number of bars that differ for no known reason."""
        return self.differing - self.explained


OnCompared = Callable[[SeriesKey, Sequence["DayReconciled"]], None]
"""Called for days as soon as they are compared, in the same process. The CLI's progress bar uses it."""
