"""Compare flat candles with the rest of the market: a market halt, or simply no trade. Pure.

Reading the stored days of the market does not belong here (``ingest``, ``maintenance``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from math import gcd

import numpy as np
import numpy.typing as npt

from market_data_pipeline import clock
from market_data_pipeline.checks.ordering import Ints, key_ranges, within
from market_data_pipeline.checks.verdicts import Ground, verdict_finding
from market_data_pipeline.model.findings import (
    FLAT,
    FLAT_CONFIRMED,
    FLAT_FILLED,
    FLAT_REFUSED,
    MISSING,
    Basis,
    Finding,
    Range,
    Verdict,
    ranges_of,
)
from market_data_pipeline.model.series import SeriesKey, interval_us

# In an outage of the futures markets Binance writes flat rows (volume 0, count 0) for every symbol. A minute without
# trades looks the same. The rest of the market distinguishes them: `suspended` if every other stored symbol was flat or
# missing in the same candles, `quiet` if others traded. All stored data of a symbol counts: candles of any interval,
# and aggTrades. Without another symbol to compare, a flat candle is quiet and unconfirmed.
#
# Flat candles of the whole market may also be a fault of the archive alone (um 2025-01-29, binance-public-data #395).
# REST decides. Until it answers, such candles are `unconfirmed`, see `Answers`.

_NAMED = 3
_UNKNOWN, _STILL, _TRADED = -1, 0, 1

_UNKNOWN_TRADING = frozenset({Verdict.NOT_LISTED, *MISSING}) - {Verdict.OUTAGE}
"""Verdicts on missing rows that leave open if trades took place."""


@dataclass(frozen=True, slots=True)
class Stillness:
    """Times without trades of a symbol's day. Bounds are open times in microseconds UTC, both ends included.

    Attributes:
        first: First stored candle.
        last: Last stored candle. Outside of these two, only ``still`` is known.
        still: Flat candles, and candles that are missing because nothing was traded.
        unknown: Candles that may or may not have trades.
        flat: All flat candles one by one. None if the rows were not read.
    """

    first: int
    last: int
    still: tuple[tuple[int, int], ...] = ()
    unknown: tuple[tuple[int, int], ...] = ()
    flat: Ints | None = None


def stillness(findings: Iterable[Finding], first: int, last: int, flat: Ints | None = None) -> Stillness:
    """Return the times without trades of a symbol's day, from the findings of the gaps check.

    A finding has its first ranges only. Candles after the last range of a cut finding are unknown.

    Args:
        first: Open time of the day's first candle, in microseconds UTC.
        last: Open time of its last candle.
        flat: Open times of all flat candles, read from the rows. None means to use the ranges of the findings.
    """
    still: list[tuple[int, int]] = []
    unknown: list[tuple[int, int]] = []
    for finding in findings:
        if finding.check != "gaps" or (flat is not None and finding.rule in FLAT):
            continue
        if finding.rule in FLAT or finding.rule == Verdict.OUTAGE:
            still += _bounds(finding.ranges)
        elif finding.rule in _UNKNOWN_TRADING:
            unknown += _bounds(finding.ranges)
        else:
            continue
        if is_cut(finding):
            unknown.append((finding.ranges[-1].last + 1 if finding.ranges else first, last))
    return Stillness(first, last, tuple(still), tuple(unknown), flat)


def is_cut(finding: Finding) -> bool:
    """Return True if a finding has more rows than its ranges show."""
    return finding.count > sum(range_.count for range_ in finding.ranges)


def _bounds(ranges: Iterable[Range]) -> list[tuple[int, int]]:
    return [(range_.first, range_.last) for range_ in ranges]


@dataclass(frozen=True, slots=True)
class TradedIn:
    """Times of a symbol's trades on a day, from its aggTrades.

    Attributes:
        times: Times of trades in microseconds UTC, ordered. One per candle is enough.
        whole: True if no trade is missing between them.
    """

    times: Ints
    whole: bool


@dataclass(frozen=True, slots=True)
class Answers:
    """REST's answers for the flat candles of a symbol's day.

    Attributes:
        confirmed: Spans in which REST has no trade either.
        filled: Candles that are flat in the archive, but have trades in REST.
        refused: Spans that REST refuses to serve.
    """

    confirmed: tuple[Range, ...] = ()
    filled: tuple[Range, ...] = ()
    refused: tuple[Range, ...] = ()

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> Answers:
        """Return the answers recorded in the findings of a day."""
        return cls(*(ranges_of(findings, rule) for rule in (FLAT_CONFIRMED, FLAT_FILLED, FLAT_REFUSED)))


_ALONE_US = 10 * 60_000_000
_ALONE_TIMES = 5


def stands_out(times: Ints, step: int) -> npt.NDArray[np.bool_]:
    """Return a mask of the flat candles in a run that is out of proportion to the other runs of the day.

    The run is longer than ten minutes and longer than five times the longest other run. For a symbol that trades all
    the time, it may be a fault of the archive. A symbol that seldom trades has no such run.

    Args:
        times: Open times of the flat candles in microseconds UTC, ordered.
        step: Length of a candle in microseconds.
    """
    firsts = np.flatnonzero(np.r_[True, np.diff(times) != step]) if len(times) else np.zeros(0, dtype=np.int64)
    lengths = np.diff(np.r_[firsts, len(times)])
    out: npt.NDArray[np.bool_] = np.zeros(len(times), dtype=bool)
    if len(lengths):
        longest = int(lengths.argmax())
        others = int(np.delete(lengths, longest).max(initial=0))
        if lengths[longest] * step > _ALONE_US and lengths[longest] > _ALONE_TIMES * others:
            out[firsts[longest] : firsts[longest] + lengths[longest]] = True
    return out


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """Symbols by their candles of another interval: for each of ``rows``, the candles with trades."""

    step: int
    rows: Ints
    traded: npt.NDArray[np.bool_]


_Found = dict[Ground, npt.NDArray[np.bool_]]
"""The candles of each verdict."""

_NO_ANSWER = "REST has not answered for them yet"
"""Evidence for flat candles that may be a fault of the archive, until REST answers for them."""


_BUT_TRADED = Ground(
    Verdict.ARCHIVE_DEFECT,
    "flat in the archive, but stored aggTrades took place there, and REST has no candle with trades",
    Basis.TRADED,
)
_OTHERS_TRADED = Ground(
    Verdict.ARCHIVE_DEFECT,
    "flat in the archive, but REST has trades of other symbols there, whose candles were flat, too, and refuses to "
    "serve this symbol",
    Basis.TRADED,
)


class MarketDay:
    """Trading of the symbols of one market on one day, by candles of one interval.

    Args:
        symbols: Times without trades of the symbols that are stored in that interval.
        elsewhere: The same for series of other intervals, by interval and symbol. A candle of another interval with
            trades is evidence against a halt of its whole length.
        trades: Times of trades of the symbols that are stored as aggTrades.
        answers: REST's answers for the flat candles, by symbol. None if they do not matter.
    """

    def __init__(
        self,
        interval: str,
        day: date,
        symbols: Mapping[str, Stillness],
        elsewhere: Mapping[str, Mapping[str, Stillness]] | None = None,
        trades: Mapping[str, TradedIn] | None = None,
        answers: Mapping[str, Answers] | None = None,
    ) -> None:
        self._answers = answers
        self._step, self._start = interval_us(interval), clock.day_start_us(day)
        elsewhere, trades = elsewhere or {}, trades or {}
        self._names = sorted({*symbols, *trades, *(name for those in elsewhere.values() for name in those)})
        self._row = {name: row for row, name in enumerate(self._names)}
        shape = len(self._names), clock.US_PER_DAY // self._step
        self._did: npt.NDArray[np.int8] = np.full(shape, _UNKNOWN, dtype=np.int8)
        for name, known in symbols.items():
            self._did[self._row[name]] = self._states(known, self._step)
        self._elsewhere = [self._take_in(interval_us(other), those) for other, those in elsewhere.items() if those]
        for name, those in trades.items():
            self._take_in_trades(self._did[self._row[name]], those)

    def _states(self, known: Stillness, step: int) -> npt.NDArray[np.int8]:
        """Return the state of a symbol for each candle of a length in microseconds."""
        row = np.full(clock.US_PER_DAY // step, _UNKNOWN, dtype=np.int8)

        def fill(bounds: tuple[int, int], value: int) -> None:
            first, last = (max(0, (bound - self._start) // step) for bound in bounds)
            row[first : last + 1] = value

        fill((known.first, known.last), _TRADED)
        for bounds in known.unknown:
            fill(bounds, _UNKNOWN)
        for bounds in known.still:
            fill(bounds, _STILL)
        if known.flat is not None:
            row[self._slots(known.flat, step)] = _STILL
        return row

    def _take_in(self, step: int, symbols: Mapping[str, Stillness]) -> _Elsewhere:
        """Add symbols by candles of another length: times without trades, and candles with trades."""
        rows = np.array([self._row[name] for name in symbols])
        states = np.array([self._states(known, step) for known in symbols.values()])
        still = self._any_of(states != _STILL, step) == 0
        self._did[rows] = np.where(still & (self._did[rows] == _UNKNOWN), _STILL, self._did[rows])
        return _Elsewhere(step, rows, states == _TRADED)

    def _take_in_trades(self, row: npt.NDArray[np.int8], trades: TradedIn) -> None:
        slots = self._slots(trades.times, self._step)
        if len(slots) and trades.whole:
            within = row[slots[0] : slots[-1] + 1]
            within[within == _UNKNOWN] = _STILL
        row[slots] = _TRADED

    def _slots(self, times: Ints, step: int) -> Ints:
        # Some candles of 2018 are off the grid. They count in the slot of their open time.
        slots: Ints = (times - self._start) // step
        return slots

    def _any_of(self, mask: npt.NDArray[np.bool_], step: int) -> npt.NDArray[np.bool_]:
        """Convert a mask of candles of another length: True for each of our candles that overlaps a True one."""
        cell = gcd(step, self._step)
        cells = np.repeat(mask, step // cell, axis=1)
        return np.asarray(cells.reshape(len(mask), -1, self._step // cell).any(axis=2))

    def _traded_elsewhere(self, symbol: str, still: Ints) -> Iterator[tuple[Ints, npt.NDArray[np.bool_]]]:
        """Yield other symbols that traded in candles of other lengths without another known trade.

        Args:
            still: Its flat candles in which no other symbol is known to have traded.

        Yields:
            Rows of symbols, and a mask of our candles in which they traded.
        """
        seemed = np.zeros(self._did.shape[1], dtype=bool)
        seemed[still] = True
        for one in self._elsewhere:
            cell = gcd(one.step, self._step)
            cells = np.repeat(seemed, self._step // cell)
            inside = cells.reshape(-1, one.step // cell).all(axis=1)
            if inside.any() and (hit := one.traded[:, inside].any(axis=1) & (one.rows != self._row.get(symbol))).any():
                yield one.rows[hit], self._any_of(one.traded[hit] & inside, one.step)

    def classify(self, key: SeriesKey, times: Ints, traded: Ints | None = None) -> list[Finding]:
        """Return the verdicts on the flat candles of a symbol, ``suspended`` first, one finding per evidence.

        Args:
            key: The series. It may be among the symbols of the day.
            times: Open times of its flat candles in microseconds UTC, ordered.
            traded: Times of its own aggTrades. None if they are not stored.
        """
        found = self._by_market(key, times)
        if self._answers is not None:
            found = self._by_rest(key, times, found, self._answers, traded)
        return [
            verdict_finding(
                ground,
                "flat candles" if ground.verdict is Verdict.ARCHIVE_DEFECT else "candles",
                int(which.sum()),
                key_ranges(times[which], self._step),
            )
            for ground, which in found.items()
        ]

    def _by_rest(
        self, key: SeriesKey, times: Ints, found: _Found, answers: Mapping[str, Answers], traded: Ints | None
    ) -> _Found:
        """Return the verdicts after REST's answers for candles that may be a fault of the archive.

        Such candles are flat in the whole market, flat in the archive alone for other symbols, or have trades. Without
        another symbol, they are the runs out of proportion.
        """
        ours = answers.get(key.symbol, Answers())
        confirmed, refused = within(times, ours.confirmed), within(times, ours.refused)
        others = [theirs for symbol, theirs in answers.items() if symbol != key.symbol]
        faulty = within(times, [range_ for theirs in others for range_ in theirs.filled])
        still_elsewhere = within(times, [range_ for theirs in others for range_ in theirs.confirmed])
        but_traded = np.isin(times, traded) if traded is not None else np.zeros(len(times), dtype=bool)
        suspect = faulty | but_traded
        split: _Found = {}

        def add(ground: Ground, which: npt.NDArray[np.bool_], also: str = "") -> None:
            if which.any():
                ground = replace(ground, evidence=f"{ground.evidence}{also}")
                split[ground] = split.get(ground, np.zeros_like(which)) | which

        add(_BUT_TRADED, but_traded & (confirmed | refused))
        add(_OTHERS_TRADED, faulty & refused & ~but_traded & ~confirmed)
        done = (but_traded & (confirmed | refused)) | (faulty & refused & ~confirmed)
        for ground, which in found.items():
            alone = ground.basis is Basis.NO_OTHER_SERIES
            suspended = ground.verdict is Verdict.SUSPENDED
            shared = which & (suspect | suspended | (stands_out(times, self._step) & alone)) & ~done
            answered = confirmed | (refused & still_elsewhere)
            add(replace(ground, verdict=Verdict.UNCONFIRMED), shared & ~answered, f"; {_NO_ANSWER}")
            add(ground, shared & confirmed, "; REST has no trade there either")
            refuses = "; REST has no trade of other symbols there either, and refuses to serve this symbol"
            add(ground, shared & answered & ~confirmed, refuses)
            add(ground, which & ~shared & ~done)
        return split

    def _by_market(self, key: SeriesKey, times: Ints) -> _Found:
        at = self._slots(times, self._step)
        did = self._did[:, at]
        if key.symbol in self._row:
            did[self._row[key.symbol]] = _UNKNOWN
        for rows, slots in self._traded_elsewhere(key.symbol, at[(did != _TRADED).all(axis=0)]):
            did[rows] = np.where(slots[:, at], _TRADED, did[rows])
        traded: Ints = (did == _TRADED).sum(axis=0, dtype=np.int64)
        known: Ints = (did != _UNKNOWN).sum(axis=0, dtype=np.int64)
        suspended, quiet, alone = (known > 0) & (traded == 0), traded > 0, known == 0
        evidence: _Found = {}
        if suspended.any():
            evidence[Ground(Verdict.SUSPENDED, self._all_still(did[:, suspended], known[suspended]))] = suspended
        if quiet.any():
            evidence[Ground(Verdict.QUIET, self._some_traded(did[:, quiet], traded[quiet], known[quiet]))] = quiet
        if alone.any():
            nothing = f"unconfirmed: no other series of {key.market} is stored for this time"
            evidence[Ground(Verdict.QUIET, nothing, Basis.NO_OTHER_SERIES)] = alone
        return evidence

    def _all_still(self, did: npt.NDArray[np.int8], known: Ints) -> str:
        # Name the symbols with the most known candles.
        seen = (did == _STILL).sum(axis=1)
        names = [self._names[n] for n in np.argsort(-seen, kind="stable") if seen[n]]
        least = int(known.min())
        number = f"{'' if least == known.max() else 'at least '}{least}"
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f"every other stored symbol was flat or missing, too ({number}: {', '.join(names[:_NAMED])}{more})"

    def _some_traded(self, did: npt.NDArray[np.int8], traded: Ints, known: Ints) -> str:
        by_symbol = (did == _TRADED).sum(axis=1)
        busiest = int(np.argmax(by_symbol))
        least = int(traded.min())
        number = f"{'' if least == traded.max() else 'at least '}{least} of {int(known.max())}"
        how = "e.g." if by_symbol[busiest] == did.shape[1] else "most often"
        return f"{number} other stored symbols traded meanwhile, {how} {self._names[busiest]}"


def suspect_flat(findings: Iterable[Finding]) -> tuple[Range, ...]:
    """Return the ranges of flat candles that may be a fault of the archive, so that REST must confirm them."""
    suspect = [one for one in findings if one.rule == Verdict.UNCONFIRMED or one.basis is Basis.TRADED]
    beyond = [one.ranges[-1] for one in suspect if is_cut(one)]
    ranges = [range_ for one in suspect for range_ in one.ranges]
    return (*ranges, *(range_.model_copy(update={"last": range_.last + clock.US_PER_DAY}) for range_ in beyond))


def is_contested(finding: Finding) -> bool:
    """Return True if the verdict assumes that no other symbol traded, so that new data may refute it."""
    return finding.rule in (Verdict.SUSPENDED, Verdict.UNCONFIRMED) or finding.basis is Basis.NO_OTHER_SERIES
