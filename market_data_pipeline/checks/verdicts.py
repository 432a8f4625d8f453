"""Classify the missing and flat rows of a day: a verdict for each range, from evidence. Pure.

The docs explain the verdicts (``docs/concepts/verdicts.md``). Comparing flat candles with the rest of the market does
not belong here (``halts.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from market_data_pipeline import clock
from market_data_pipeline.checks.gaps import Missing
from market_data_pipeline.checks.ordering import Ints, key_ranges
from market_data_pipeline.model.findings import MAX_RANGES, VERDICT_SEVERITY, Basis, Finding, Range, RestAnswer, Verdict
from market_data_pipeline.model.series import SeriesKey

# Order of precedence. The first rule that fits gives the verdict.
#
# 1. `not_listed`: the candles are before the first candle of the first listed day, or after the last candle of the last
#    one. REST has none there either or refuses permanently, and no stored trade took place there. A listing has the
#    resolution of a day, so without an answer of REST such candles are classified like all others, see 6.
# 2. `healed`: the rows are missing in the archive and were filled from REST.
# 3. `unpublished`: the day comes from REST alone, so its archive may still have the rows.
# 4. The ids jump, and REST no longer serves trades that old: `archive_defect`, which is not open.
# 5. REST answered and has no row: `outage`, or `unexplained` if stored aggTrades of the symbol took place there. An id
#    that is missing in REST, too, is `unexplained`, because ids have no holes. If REST refuses permanently, for example
#    for a symbol that it no longer knows, only consecutive ids make it an `outage`.
# 6. REST did not answer: `outage` if the ids of stored aggTrades are consecutive across the range, `archive_defect` if
#    trades took place in it, otherwise `unpublished`.
# 7. Flat rows: `suspended` or `quiet`. Only the rest of the market can distinguish them (`halts.py`), so a day alone
#    makes them quiet and unconfirmed. If the whole market shares them, REST decides: `unconfirmed` until it answers,
#    `healed` if it has trades, and `archive_defect` if trades took place that REST does not have either.

MARKET_NOT_COMPARED = "unconfirmed: other symbols of the market were not compared yet"
PROVISIONAL = "the day is provisional: its archive is not published yet"


@dataclass(frozen=True, slots=True)
class AnsweredIds:
    """REST's answer for a run of missing agg_trade_ids, both ends included."""

    first: int
    last: int
    answer: RestAnswer


@dataclass(frozen=True, slots=True)
class TradeRecord:
    """The stored aggTrades of a symbol's day, as evidence for its candles.

    Attributes:
        ids: Their agg_trade_ids, ordered.
        times: Their transact_times (microseconds UTC), in the order of ids.
    """

    ids: Ints
    times: Ints

    def between(self, start_us: int, end_us: int) -> tuple[int, tuple[int, int] | None]:
        """Return the number of trades from ``start_us`` to ``end_us`` (exclusive), and the ids around a range without.

        The ids are those of the last trade before and the first trade after. They are None unless they are consecutive.
        """
        low, high = np.searchsorted(self.times, [start_us, end_us])
        if high > low:
            return int(high - low), None
        if 0 < low < len(self.ids) and self.ids[low] == self.ids[low - 1] + 1:
            return 0, (int(self.ids[low - 1]), int(self.ids[low]))
        return 0, None


_WHAT = {
    Verdict.NOT_LISTED: "are before the listing or after its end",
    Verdict.HEALED: "are missing in the archive and were filled from REST",
    Verdict.OUTAGE: "are missing: nothing was traded (outage)",
    Verdict.ARCHIVE_DEFECT: "are missing in the archive although trades took place",
    Verdict.UNEXPLAINED: "are missing, and the sources contradict each other",
    Verdict.UNPUBLISHED: "are missing, and the reason is not known yet",
    Verdict.UNCONFIRMED: "are flat, and it is not known yet if trades took place",
    Verdict.SUSPENDED: "are flat during a halt of the whole market",
    Verdict.QUIET: "are flat: no trade took place",
}


@dataclass(frozen=True, slots=True)
class Ground:
    """A verdict with its evidence.

    Attributes:
        evidence: The evidence for people.
        basis: The same for code. None if no code needs it.
        rest: Answer of REST. None if there was no request.
    """

    verdict: Verdict
    evidence: str
    basis: Basis | None = None
    rest: RestAnswer | None = None


def verdict_finding(ground: Ground, what: str, count: int, ranges: Iterable[Range]) -> Finding:
    """Return the finding of a verdict.

    Args:
        what: The counted rows: candles, or aggregated trades.
        ranges: Their ranges. More than ``MAX_RANGES`` are cut.
    """
    verdict, evidence = ground.verdict, ground.evidence
    return Finding(
        check="gaps",
        rule=verdict.value,
        severity=VERDICT_SEVERITY[verdict],
        count=count,
        message=f"{count} {what} {_WHAT[verdict]}{f' ({evidence})' if evidence else ''}.",
        ranges=tuple(ranges)[:MAX_RANGES],
        evidence=evidence,
        basis=ground.basis,
        rest=ground.rest,
    )


def classify_candles(
    key: SeriesKey,
    missing: Missing,
    healed: Ints,
    flat: Ints,
    *,
    filled: Ints | None = None,
    archived: bool,
    rest: RestAnswer | None,
    trades: TradeRecord | None,
) -> list[Finding]:
    """Return the verdicts on the candles of a day that are missing, gap-filled or flat.

    Args:
        healed: Open times (microseconds UTC) of rows from REST in a day from the archive.
        filled: Open times of healed rows that are flat in the archive.
        archived: True if the day comes from its archive, False if it comes from REST so far.
        rest: Answer of REST. None if there was no request.
        trades: The symbol's aggTrades of the day. None if they are not stored.
    """
    step = key.step
    found: dict[Ground, list[Ints]] = {}

    def add(ground: Ground, times: Ints) -> None:
        if len(times):
            found.setdefault(ground, []).append(times)

    for times, word in ((missing.before, "before"), (missing.after, "after")):
        if len(times):
            add(_ground_of_end(times, step, archived, rest, trades, word), times)
    over_flat = np.isin(healed, filled) if filled is not None else np.zeros(len(healed), dtype=bool)
    add(Ground(Verdict.HEALED, "REST has them"), healed[~over_flat])
    add(Ground(Verdict.HEALED, "they are flat in the archive, but REST has trades in them"), healed[over_flat])
    if not archived:
        add(_PROVISIONAL, missing.inside)
    else:
        for times in _runs(missing.inside, step):
            add(_ground_of_run(int(times[0]), int(times[-1]) + step, rest, trades), times)
    add(Ground(Verdict.QUIET, MARKET_NOT_COMPARED, Basis.MARKET_NOT_COMPARED), flat)
    findings = []
    for ground, parts in found.items():
        times = np.concatenate(parts)
        findings.append(verdict_finding(ground, "candles", len(times), key_ranges(times, step)))
    return findings


_PROVISIONAL = Ground(Verdict.UNPUBLISHED, PROVISIONAL, Basis.PROVISIONAL)


def _ground_of_end(
    times: Ints, step: int, archived: bool, rest: RestAnswer | None, trades: TradeRecord | None, word: str
) -> Ground:
    """Return the verdict on candles before the first one of a listing, or after its last."""
    start, end = int(times[0]), int(times[-1]) + step
    unanswered = rest is not None and not rest.answered
    if archived and (unanswered or (trades is not None and trades.between(start, end)[0])):
        return _ground_of_run(start, end, rest, trades)
    if rest is not None and not rest.reason:
        edge = clock.naive_from_us(end if word == "before" else start - step).isoformat(sep=" ", timespec="minutes")
        return Ground(Verdict.NOT_LISTED, f"REST has no candle {word} {edge} either", rest=rest)
    evidence = f"trading {'began' if word == 'before' else 'ended'} on this day by the listing"
    return Ground(Verdict.NOT_LISTED, f"{evidence}; {rest.reason}" if rest else evidence, rest=rest)


def _ground_of_run(start_us: int, end_us: int, rest: RestAnswer | None, trades: TradeRecord | None) -> Ground:
    verdict, evidence = _verdict_of_run(start_us, end_us, rest, trades)
    return Ground(verdict, evidence, rest=rest)


def _verdict_of_run(
    start_us: int, end_us: int, rest: RestAnswer | None, trades: TradeRecord | None
) -> tuple[Verdict, str]:
    took_place, around = trades.between(start_us, end_us) if trades else (0, None)
    consecutive = f"the aggTrade ids before and after are consecutive, {around[0]} to {around[1]}" if around else ""
    if rest is not None and rest.answered:
        answer = rest.reason or "REST has no candle either"
        if took_place:
            return Verdict.UNEXPLAINED, f"{answer}, but {took_place} stored aggTrades took place there"
        if rest.reason and not consecutive:
            return Verdict.UNEXPLAINED, answer
        return Verdict.OUTAGE, f"{answer}{f', and {consecutive}' if consecutive else ''}"
    not_asked = f"{_NOT_ASKED}: {rest.reason}" if rest else _NOT_ASKED
    if consecutive:
        return Verdict.OUTAGE, f"{consecutive}; {not_asked}"
    if took_place:
        return Verdict.ARCHIVE_DEFECT, f"{took_place} stored aggTrades took place there; {not_asked}"
    return Verdict.UNPUBLISHED, not_asked


def classify_slots(
    missing: Ints, filled: Ints, *, archived: bool, rest: RestAnswer | None, what: str = "rows"
) -> list[Finding]:
    """Return the verdicts on the rows of a day that were due and are missing, or were gap-filled.

    Args:
        missing: Times at which rows were due (microseconds UTC).
        filled: Times of rows from REST in a day from the archive.
        archived: True if the day comes from its archive, False if it comes from REST so far.
        rest: Answer of REST. None if there was no request.
        what: The counted rows.
    """
    findings = []
    if len(filled):
        ground = Ground(Verdict.HEALED, "REST has them")
        findings.append(verdict_finding(ground, what, len(filled), key_ranges(filled, 1)))
    if len(missing):
        ground = _judge_slots(rest) if archived else _PROVISIONAL
        findings.append(verdict_finding(ground, what, len(missing), key_ranges(missing, 1)))
    return findings


def _judge_slots(rest: RestAnswer | None) -> Ground:
    if rest is not None and rest.beyond_reach:
        return Ground(Verdict.ARCHIVE_DEFECT, f"{rest.reason}; only another archive can have them", rest=rest)
    if rest is not None and rest.answered:
        return Ground(Verdict.OUTAGE, rest.reason or "REST has no row at that time either", rest=rest)
    return Ground(Verdict.UNPUBLISHED, f"{_NOT_ASKED}: {rest.reason}" if rest else _NOT_ASKED, rest=rest)


def _runs(keys: Ints, step: int) -> list[Ints]:
    return np.split(keys, np.flatnonzero(np.diff(keys) != step) + 1) if len(keys) else []


def classify_trades(
    missing: Sequence[tuple[int, int]],
    healed: Ints,
    *,
    archived: bool,
    asked: Sequence[AnsweredIds] = (),
    cut: bool = False,
    what: str = "aggregated trades",
) -> list[Finding]:
    """Return the verdicts on the ids of a day that are missing or gap-filled.

    Args:
        missing: Runs of missing ids, both ends included.
        healed: Ids of rows from REST in a day from the archive.
        archived: True if the day comes from its archive, False if it comes from REST so far.
        asked: REST's answers for all or some of the missing ids.
        cut: True if later trades were not fetched, because the run had spent its REST weight for aggTrades.
        what: The counted rows.
    """
    findings = []
    if len(healed):
        healed_ranges = key_ranges(healed, 1)
        findings.append(verdict_finding(Ground(Verdict.HEALED, "REST has them"), what, len(healed), healed_ranges))
    found: dict[Ground, list[Range]] = {}
    for first, last in missing:
        for a, b, answer in pieces(first, last, asked):
            found.setdefault(_ground_of_ids(archived, answer), []).append(Range(first=a, last=b, count=b - a + 1))
    for ground, ranges in found.items():
        count = sum(range_.count for range_ in ranges)
        findings.append(verdict_finding(ground, what, count, ranges))
    if cut:
        text = (
            "The next run or the archive will add later trades of this day. The run had spent its REST weight for "
            "aggTrades (MARKET_DATA_REST_TRADES_WEIGHT)."
        )
        later = verdict_finding(Ground(Verdict.UNPUBLISHED, CUT, Basis.WEIGHT_SPENT), what, 0, ())
        findings.append(later.model_copy(update={"message": text}))
    return findings


def pieces(first: int, last: int, asked: Sequence[AnsweredIds]) -> Iterator[tuple[int, int, RestAnswer | None]]:
    """Yield a run of ids in parts, each with REST's answer for it. None means no request."""
    at = first
    for ids in sorted(asked, key=lambda one: one.first):
        if ids.last < at or ids.first > last:
            continue
        if ids.first > at:
            yield at, ids.first - 1, None
        end = min(last, ids.last)
        yield max(at, ids.first), end, ids.answer
        at = end + 1
    if at <= last:
        yield at, last, None


_NOT_ASKED = "REST was not asked"
_JUMP, _NOT_THERE = "the ids jump, and ", "REST does not have the ids in between either"


def _ground_of_ids(archived: bool, rest: RestAnswer | None) -> Ground:
    if not archived:
        return _PROVISIONAL
    if rest is None:
        return Ground(Verdict.UNPUBLISHED, _NOT_ASKED)
    if rest.elsewhere:
        return Ground(Verdict.OUTAGE, "REST has these ids with times of another day", rest=rest)
    if rest.beyond_reach:
        evidence = f"{_JUMP}{rest.reason}; only another archive can have them"
        return Ground(Verdict.ARCHIVE_DEFECT, evidence, rest=rest)
    if rest.answered:
        return Ground(Verdict.UNEXPLAINED, _JUMP + (rest.reason or _NOT_THERE), rest=rest)
    return Ground(Verdict.UNPUBLISHED, f"{_NOT_ASKED}: {rest.reason}", rest=rest)


def answered_ids(findings: Iterable[Finding]) -> tuple[AnsweredIds, ...]:
    """Return REST's answers for the missing ids of a day, as recorded in its findings."""
    return tuple(
        AnsweredIds(range_.first, range_.last, finding.rest)
        for finding in findings
        if finding.check == "gaps" and finding.rest is not None
        for range_ in finding.ranges
    )


CUT = "the run had spent its REST weight for aggTrades"
"""Evidence of a day whose later trades would cost more REST weight than a run may spend."""
