"""Flat candles against the rest of the market: the exchange stood still, or simply nobody traded. Pure.

In an outage of the futures markets Binance writes flat rows (volume 0, count 0) for every symbol, and a minute in which
nobody traded looks the same. What tells them apart is the rest of the market: ``suspended`` where every other symbol
that is held was flat or missing in the same candles, ``quiet`` where others traded. With no other symbol to compare, a
flat candle is quiet and unconfirmed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

from market_data_pipeline import clock
from market_data_pipeline.findings import FLAT, LACKING, Finding, Range, Verdict
from market_data_pipeline.quality.rows import Ints, key_ranges
from market_data_pipeline.quality.verdicts import verdict_finding
from market_data_pipeline.series import SeriesKey, interval_us

_NAMED = 3
_UNKNOWN, _STILL, _TRADED = -1, 0, 1

_SAYS_NOTHING = frozenset({Verdict.NOT_LISTED, *LACKING}) - {Verdict.OUTAGE}
"""Verdicts on rows that are not there of which it is not known whether there was trading."""


@dataclass(frozen=True, slots=True)
class Stillness:
    """When a symbol did not trade on a day. Bounds are open times in microseconds UTC, both ends included.

    Attributes:
        first: First candle that is there.
        last: Last candle that is there. Outside of these two nothing is known, save by ``still``.
        still: Flat candles, and candles that are missing because nothing was traded.
        unknown: Candles of which it is not known whether anything was traded.
        flat: Flat candles one by one, where they were read off the rows.
    """

    first: int
    last: int
    still: tuple[tuple[int, int], ...] = ()
    unknown: tuple[tuple[int, int], ...] = ()
    flat: Ints | None = None


def stillness(findings: Iterable[Finding], first: int, last: int, flat: Ints | None = None) -> Stillness:
    """When a symbol did not trade on a day, by what the gaps check said of it.

    A finding keeps its first ranges only. What lies beyond those of one that has more is unknown.

    Args:
        findings: Of the day.
        first: Open time of the day's first candle, in microseconds UTC.
        last: Open time of its last candle.
        flat: Open times of all flat candles, read off the rows, in place of those that the findings keep.
    """
    still: list[tuple[int, int]] = []
    unknown: list[tuple[int, int]] = []
    for finding in findings:
        if finding.check != "gaps" or (flat is not None and finding.rule in FLAT):
            continue
        if finding.rule in FLAT or finding.rule == Verdict.OUTAGE:
            still += _bounds(finding.ranges)
        elif finding.rule in _SAYS_NOTHING:
            unknown += _bounds(finding.ranges)
        else:
            continue
        if is_cut(finding):
            unknown.append((finding.ranges[-1].last + 1 if finding.ranges else first, last))
    return Stillness(first, last, tuple(still), tuple(unknown), flat)


def is_cut(finding: Finding) -> bool:
    """Whether a finding speaks of more rows than its ranges show."""
    return finding.count > sum(range_.count for range_ in finding.ranges)


def _bounds(ranges: Iterable[Range]) -> list[tuple[int, int]]:
    return [(range_.first, range_.last) for range_ in ranges]


class MarketDay:
    """What symbols of one market and interval did on one day, candle by candle.

    Args:
        interval: Kline interval.
        day: The UTC day.
        symbols: The symbols that are held on that day, and when they did not trade.
    """

    def __init__(self, interval: str, day: date, symbols: Mapping[str, Stillness]) -> None:
        self._step, self._start = interval_us(interval), clock.day_start_us(day)
        self._names = sorted(symbols)
        shape = len(self._names), clock.US_PER_DAY // self._step
        self._did: npt.NDArray[np.int8] = np.full(shape, _UNKNOWN, dtype=np.int8)
        for row, name in zip(self._did, self._names, strict=True):
            known = symbols[name]
            self._fill(row, (known.first, known.last), _TRADED)
            for bounds in known.unknown:
                self._fill(row, bounds, _UNKNOWN)
            for bounds in known.still:
                self._fill(row, bounds, _STILL)
            if known.flat is not None:
                row[self._slots(known.flat)] = _STILL
        self._traded: Ints = (self._did == _TRADED).sum(axis=0, dtype=np.int64)
        self._known: Ints = (self._did != _UNKNOWN).sum(axis=0, dtype=np.int64)

    def _fill(self, row: npt.NDArray[np.int8], bounds: tuple[int, int], value: int) -> None:
        first, last = (max(0, (bound - self._start) // self._step) for bound in bounds)
        row[first : last + 1] = value

    def _slots(self, times: Ints) -> Ints:
        # Some candles of 2018 are off the grid: they count where they begin.
        slots: Ints = (times - self._start) // self._step
        return slots

    def judge(self, key: SeriesKey, times: Ints) -> list[Finding]:
        """Verdicts on the flat candles of a symbol: ``suspended``, then ``quiet``; one finding for each evidence.

        Args:
            key: The series; whether it is among the symbols of the day makes no difference.
            times: Open times of its flat candles in microseconds UTC, ordered.
        """
        at = self._slots(times)
        traded, known = self._traded[at], self._known[at]
        others = np.ones(len(self._names), dtype=bool)
        if key.symbol in self._names:
            own = self._did[self._names.index(key.symbol), at]
            traded, known = traded - (own == _TRADED), known - (own != _UNKNOWN)
            others[self._names.index(key.symbol)] = False
        suspended, quiet, alone = (known > 0) & (traded == 0), traded > 0, known == 0
        evidence: dict[tuple[Verdict, str], npt.NDArray[np.bool_]] = {}
        if suspended.any():
            evidence[Verdict.SUSPENDED, self._all_still(at[suspended], others, known[suspended])] = suspended
        if quiet.any():
            evidence[Verdict.QUIET, self._some_traded(at[quiet], others, traded[quiet], known[quiet])] = quiet
        if alone.any():
            evidence[Verdict.QUIET, f"unconfirmed: no other {key.interval} series of {key.market} tells"] = alone
        return [
            verdict_finding(verdict, "candles", int(which.sum()), key_ranges(times[which], self._step), told)
            for (verdict, told), which in evidence.items()
        ]

    def _all_still(self, at: Ints, others: npt.NDArray[np.bool_], known: Ints) -> str:
        # Named are those of which most candles are known.
        seen = np.where(others, (self._did[:, at] == _STILL).sum(axis=1), 0)
        names = [self._names[n] for n in np.argsort(-seen, kind="stable") if seen[n]]
        least = int(known.min())
        number = f"{'' if least == known.max() else 'at least '}{least}"
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f"every other symbol that is held was flat or missing, too ({number}: {', '.join(names[:_NAMED])}{more})"

    def _some_traded(self, at: Ints, others: npt.NDArray[np.bool_], traded: Ints, known: Ints) -> str:
        by_symbol = np.where(others, (self._did[:, at] == _TRADED).sum(axis=1), 0)
        busiest = int(np.argmax(by_symbol))
        least = int(traded.min())
        number = f"{'' if least == traded.max() else 'at least '}{least} of {int(known.max())}"
        how = "e.g." if by_symbol[busiest] == len(at) else "most often"
        return f"{number} other symbols that are held traded meanwhile, {how} {self._names[busiest]}"
