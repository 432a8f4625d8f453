"""Why rows are not there: a verdict for every missing or flat range, from evidence. Pure.

The order of precedence, first what fits (:class:`~market_data_pipeline.model.findings.Verdict` says what each means):

1. ``not_listed``: the candles lie before the first one of the first listed day, or after the last one of the last, REST
   has none there either or refuses for good, and no trade that is held took place there. A listing is to the day: it
   proves nothing of minutes, so while REST cannot be asked such candles are judged as all others, see 6.
2. ``healed``: the rows are there, and came from REST because the archive lacks them.
3. ``unpublished``: the day has come from REST alone, so its archive may still bring them.
4. Ids jump, and REST does not serve trades so old: ``archive_defect``, which is not open.
5. REST was asked and has no row: ``outage``, unless aggTrades held of the same symbol took place there
   (``unexplained``). A trade id that REST lacks, too, is ``unexplained``: ids have no holes of their own. Where REST
   refuses for good, as for a symbol that it no longer knows, only ids that run on make it an ``outage``.
6. REST could not be asked: ``outage`` where the ids of aggTrades held run on across the range, ``archive_defect`` where
   trades took place in it, else ``unpublished``.
7. Flat rows: ``suspended`` or ``quiet``; telling them apart takes the rest of the market (``halts.py``), so a day
   alone calls them quiet and unconfirmed. Where the whole market shares them, REST is asked first: the verdict is
   ``unconfirmed`` until it has answered, ``healed`` where it has trades, and ``archive_defect`` where trades took place
   that it does not have either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from market_data_pipeline import clock
from market_data_pipeline.checks.gaps import Missing
from market_data_pipeline.checks.ordering import Ints, key_ranges
from market_data_pipeline.model.findings import MAX_RANGES, VERDICT_SEVERITY, Basis, Finding, Range, RestAnswer, Verdict
from market_data_pipeline.model.series import SeriesKey, interval_us

NOT_COMPARED = "unconfirmed: other symbols of the market were not compared yet"
PROVISIONAL = "the day is provisional: its archive is not there yet"


@dataclass(frozen=True, slots=True)
class AnsweredIds:
    """REST's answer for a run of agg_trade_ids that are not in the lake.

    Attributes:
        first: The first id.
        last: The last id.
        answer: The answer.
    """

    first: int
    last: int
    answer: RestAnswer


@dataclass(frozen=True, slots=True)
class TradeRecord:
    """The aggTrades held of a symbol's day: witnesses for its candles.

    Attributes:
        ids: Their agg_trade_ids, ordered.
        times: Their transact_times (microseconds UTC), in the order of ids.
    """

    ids: Ints
    times: Ints

    def between(self, start_us: int, end_us: int) -> tuple[int, tuple[int, int] | None]:
        """How many trades took place from ``start_us`` (inclusive) to ``end_us``, and the ids around where none did.

        The ids are those of the last trade before and the first after, and given only where they follow one another.
        """
        low, high = np.searchsorted(self.times, [start_us, end_us])
        if high > low:
            return int(high - low), None
        if 0 < low < len(self.ids) and self.ids[low] == self.ids[low - 1] + 1:
            return 0, (int(self.ids[low - 1]), int(self.ids[low]))
        return 0, None


_WHAT = {
    Verdict.NOT_LISTED: "lie before the listing or after its end",
    Verdict.HEALED: "that the archive lacks were filled in from REST",
    Verdict.OUTAGE: "are missing: nothing was traded (outage)",
    Verdict.ARCHIVE_DEFECT: "are missing in the archive although trades took place",
    Verdict.UNEXPLAINED: "are missing, and what the sources say does not fit together",
    Verdict.UNPUBLISHED: "are missing, and why is not known yet",
    Verdict.UNCONFIRMED: "are flat, and whether trades took place is not known yet",
    Verdict.SUSPENDED: "are flat while the whole market stood still",
    Verdict.QUIET: "are flat: no trade took place",
}


@dataclass(frozen=True, slots=True)
class Ground:
    """A verdict with what it rests on.

    Attributes:
        verdict: The verdict.
        evidence: What it rests on, for people.
        basis: The same for code, as far as code asks.
        rest: What REST said; None if it was not asked.
    """

    verdict: Verdict
    evidence: str
    basis: Basis | None = None
    rest: RestAnswer | None = None


def verdict_finding(ground: Ground, what: str, count: int, ranges: Iterable[Range]) -> Finding:
    """Return the finding of a verdict.

    Args:
        ground: The verdict and what it rests on.
        what: What is counted: candles, or aggregated trades.
        count: How many.
        ranges: Where.
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


def judge_candles(
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
    """Verdicts on the candles of a day that are missing, were filled in, or are flat.

    Args:
        key: The series.
        missing: What is not there.
        healed: Open times (microseconds UTC) of rows that came from REST though the day comes from the archive.
        flat: Open times of flat rows.
        filled: Those of the healed that the archive has flat.
        archived: Whether its archive was there; else the day is what REST has of it so far.
        rest: What REST said; None if it was not asked.
        trades: The symbol's aggTrades of the day, if held.
    """
    step = interval_us(key.interval or "")
    found: dict[Ground, list[Ints]] = {}

    def say(ground: Ground, times: Ints) -> None:
        if len(times):
            found.setdefault(ground, []).append(times)

    if len(missing.before):
        say(_judge_end(missing.before, step, archived, rest, trades, began=True), missing.before)
    if len(missing.after):
        say(_judge_end(missing.after, step, archived, rest, trades, began=False), missing.after)
    over_flat = np.isin(healed, filled) if filled is not None else np.zeros(len(healed), dtype=bool)
    say(Ground(Verdict.HEALED, "REST has them"), healed[~over_flat])
    say(Ground(Verdict.HEALED, "the archive has them flat, REST has trades in them"), healed[over_flat])
    if not archived:
        say(_PROVISIONAL, missing.lacking)
    else:
        for times in _runs(missing.lacking, step):
            say(_judge_run(int(times[0]), int(times[-1]) + step, rest, trades), times)
    say(Ground(Verdict.QUIET, NOT_COMPARED, Basis.MARKET_NOT_COMPARED), flat)
    findings = []
    for ground, parts in found.items():
        times = np.concatenate(parts)
        findings.append(verdict_finding(ground, "candles", len(times), key_ranges(times, step)))
    return findings


_PROVISIONAL = Ground(Verdict.UNPUBLISHED, PROVISIONAL, Basis.PROVISIONAL)


def _judge_end(
    times: Ints, step: int, archived: bool, rest: RestAnswer | None, trades: TradeRecord | None, *, began: bool
) -> Ground:
    """Why candles lack before the first one of a listing, or after its last."""
    start, end = int(times[0]), int(times[-1]) + step
    unheard = rest is not None and not rest.answered
    if archived and (unheard or (trades is not None and trades.between(start, end)[0])):
        return _judge_run(start, end, rest, trades)
    if rest is not None and not rest.reason:
        edge = clock.naive_from_us(end if began else start - step).isoformat(sep=" ", timespec="minutes")
        evidence = f"REST has no candle {'before' if began else 'after'} {edge} either"
    else:
        evidence = f"trading {'began' if began else 'ended'} on this day by the listing"
        evidence = f"{evidence}; {rest.reason}" if rest else evidence
    return Ground(Verdict.NOT_LISTED, evidence, rest=rest)


def _judge_run(start_us: int, end_us: int, rest: RestAnswer | None, trades: TradeRecord | None) -> Ground:
    verdict, evidence = _verdict_of_run(start_us, end_us, rest, trades)
    return Ground(verdict, evidence, rest=rest)


def _verdict_of_run(
    start_us: int, end_us: int, rest: RestAnswer | None, trades: TradeRecord | None
) -> tuple[Verdict, str]:
    took_place, around = trades.between(start_us, end_us) if trades else (0, None)
    ran_on = f"the ids of aggTrades run on across it, {around[0]} to {around[1]}" if around else ""
    if rest is not None and rest.answered:
        said = rest.reason or "REST has no candle either"
        if took_place:
            return Verdict.UNEXPLAINED, f"{said}, yet {took_place} aggTrades held took place there"
        if rest.reason and not ran_on:
            return Verdict.UNEXPLAINED, said
        return Verdict.OUTAGE, f"{said}{f', and {ran_on}' if ran_on else ''}"
    why_not = f"{_NOT_ASKED}: {rest.reason}" if rest else _NOT_ASKED
    if ran_on:
        return Verdict.OUTAGE, f"{ran_on}; {why_not}"
    if took_place:
        return Verdict.ARCHIVE_DEFECT, f"{took_place} aggTrades held took place there; {why_not}"
    return Verdict.UNPUBLISHED, why_not


def _runs(keys: Ints, step: int) -> list[Ints]:
    return np.split(keys, np.flatnonzero(np.diff(keys) != step) + 1) if len(keys) else []


def judge_trades(
    missing: Sequence[tuple[int, int]],
    healed: Ints,
    *,
    archived: bool,
    asked: Sequence[AnsweredIds] = (),
    cut: bool = False,
) -> list[Finding]:
    """Verdicts on the agg_trade_ids of a day that are missing or were filled in.

    Args:
        missing: Runs of ids that are not there, both ends included.
        healed: Ids of rows that came from REST though the day comes from the archive.
        archived: Whether its archive was there; else the day is what REST has of it so far.
        asked: What REST said of them, or of some.
        cut: Whether later trades were left out, since the run's REST weight for aggTrades was used up.
    """
    findings = []
    if len(healed):
        healed_ranges = key_ranges(healed, 1)
        findings.append(
            verdict_finding(Ground(Verdict.HEALED, "REST has them"), "aggregated trades", len(healed), healed_ranges)
        )
    found: dict[Ground, list[Range]] = {}
    for first, last in missing:
        for a, b, answer in pieces(first, last, asked):
            found.setdefault(_judge_ids(archived, answer), []).append(Range(first=a, last=b, count=b - a + 1))
    for ground, ranges in found.items():
        count = sum(range_.count for range_ in ranges)
        findings.append(verdict_finding(ground, "aggregated trades", count, ranges))
    if cut:
        findings.append(_unpublished_rest())
    return findings


def pieces(first: int, last: int, asked: Sequence[AnsweredIds]) -> Iterator[tuple[int, int, RestAnswer | None]]:
    """Yield a run of ids in parts, each with REST's answer for it; None if it was not asked."""
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


def _judge_ids(archived: bool, rest: RestAnswer | None) -> Ground:
    if not archived:
        return _PROVISIONAL
    if rest is None:
        return Ground(Verdict.UNPUBLISHED, _NOT_ASKED)
    if rest.elsewhere:
        return Ground(Verdict.OUTAGE, "REST has these ids with times of another day", rest=rest)
    if rest.beyond_reach:
        evidence = f"{_JUMP}{rest.reason}; only another archive can bring them"
        return Ground(Verdict.ARCHIVE_DEFECT, evidence, rest=rest)
    if rest.answered:
        return Ground(Verdict.UNEXPLAINED, _JUMP + (rest.reason or _NOT_THERE), rest=rest)
    return Ground(Verdict.UNPUBLISHED, f"{_NOT_ASKED}: {rest.reason}", rest=rest)


def answered_ids(findings: Iterable[Finding]) -> tuple[AnsweredIds, ...]:
    """Return what REST said of ids that are missing in a final day, as the day's findings have it."""
    return tuple(
        AnsweredIds(range_.first, range_.last, finding.rest)
        for finding in findings
        if finding.check == "gaps" and finding.rest is not None
        for range_ in finding.ranges
    )


def _unpublished_rest() -> Finding:
    return Finding(
        check="gaps",
        rule=Verdict.UNPUBLISHED.value,
        severity=VERDICT_SEVERITY[Verdict.UNPUBLISHED],
        count=0,
        message="Later trades of this day were left to the next run or to the archive: the run's REST weight for "
        "aggTrades was used up (MARKET_DATA_REST_TRADES_WEIGHT).",
        evidence=CUT,
        basis=Basis.WEIGHT_SPENT,
    )


CUT = "the run's REST weight for aggTrades was used up"
"""Evidence of a day whose rest would cost more REST weight than a run may spend."""
