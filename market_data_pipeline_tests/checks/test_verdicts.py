"""Verdicts come from evidence, in a fixed order of precedence."""

from __future__ import annotations

import numpy as np
import pytest

from market_data_pipeline.checks.gaps import Missing
from market_data_pipeline.checks.ordering import Ints
from market_data_pipeline.checks.verdicts import (
    AnsweredIds,
    TradeRecord,
    answered_ids,
    classify_candles,
    classify_trades,
)
from market_data_pipeline.model.findings import VERDICT_SEVERITY, RestAnswer, Severity, Verdict
from market_data_pipeline_tests.support.world import klines

KEY = klines("BTCUSDT", "1m")
MINUTE = 60_000_000
NONE = np.zeros(0, dtype=np.int64)
NO_ANSWER = RestAnswer(answered=False, reason="its firewall refuses this address")
ANSWERED = RestAnswer(answered=True)
REFUSED = RestAnswer(answered=True, reason="it knows no such symbol")


def minutes(*numbers: int) -> Ints:
    return np.array(numbers, dtype=np.int64) * MINUTE


def trades_at(*numbers: float, first_id: int = 100) -> TradeRecord:
    """Trades at these minutes whose ids follow one another."""
    return TradeRecord(first_id + np.arange(len(numbers)), (np.array(numbers) * MINUTE).astype(np.int64))


TRADED = trades_at(0.5, 4.2, 5.9, 9.5)
"""Trades in the minutes that lack: 4 and 5."""
RAN_ON = trades_at(0.5, 3.9, 6.1, 9.5)
"""Trades before and after them, with ids that follow one another."""


@pytest.mark.parametrize(
    ("archived", "asked", "trades", "verdict", "evidence"),
    [
        (False, ANSWERED, TRADED, Verdict.UNPUBLISHED, "provisional"),
        (True, ANSWERED, None, Verdict.OUTAGE, "REST has no candle either"),
        (True, ANSWERED, RAN_ON, Verdict.OUTAGE, "aggTrade ids before and after are consecutive, 101 to 102"),
        (True, ANSWERED, TRADED, Verdict.UNEXPLAINED, "2 stored aggTrades took place"),
        (True, NO_ANSWER, RAN_ON, Verdict.OUTAGE, "101 to 102; REST was not asked: its firewall"),
        (True, NO_ANSWER, TRADED, Verdict.ARCHIVE_DEFECT, "2 stored aggTrades took place there; REST was not asked"),
        (True, NO_ANSWER, None, Verdict.UNPUBLISHED, "REST was not asked: its firewall"),
        (True, NO_ANSWER, trades_at(0.5), Verdict.UNPUBLISHED, "REST was not asked"),
    ],
)
def test_missing_candles(
    archived: bool, asked: RestAnswer, trades: TradeRecord | None, verdict: Verdict, evidence: str
) -> None:
    (found,) = classify_candles(KEY, Missing(minutes(4, 5)), NONE, NONE, archived=archived, rest=asked, trades=trades)
    assert found.rule == verdict
    assert evidence in found.evidence
    assert evidence in found.message
    assert [(r.first, r.last, r.count) for r in found.ranges] == [(4 * MINUTE, 5 * MINUTE, 2)]


@pytest.mark.parametrize(
    ("archived", "asked", "trades", "verdict", "evidence"),
    [
        (True, ANSWERED, None, Verdict.NOT_LISTED, "REST has no candle {} either"),
        (True, REFUSED, None, Verdict.NOT_LISTED, "trading {} on this day by the listing; it knows no such symbol"),
        (True, NO_ANSWER, None, Verdict.UNPUBLISHED, "REST was not asked: its firewall"),
        (True, NO_ANSWER, RAN_ON, Verdict.OUTAGE, "101 to 102; REST was not asked: its firewall"),
        (True, None, None, Verdict.NOT_LISTED, "trading {} on this day by the listing"),
        (False, None, TRADED, Verdict.NOT_LISTED, "trading {} on this day by the listing"),
        (True, ANSWERED, TRADED, Verdict.UNEXPLAINED, "2 stored aggTrades took place there"),
        (True, NO_ANSWER, TRADED, Verdict.ARCHIVE_DEFECT, "2 stored aggTrades took place there; REST was not asked"),
        (True, ANSWERED, RAN_ON, Verdict.NOT_LISTED, "REST has no candle {} either"),
    ],
)
@pytest.mark.parametrize("end", ["before", "after"])
def test_candles_outside_the_first_and_last_of_a_listing(
    archived: bool, asked: RestAnswer | None, trades: TradeRecord | None, verdict: Verdict, evidence: str, end: str
) -> None:
    missing = Missing(NONE, **{end: minutes(4, 5)})
    (found,) = classify_candles(KEY, missing, NONE, NONE, archived=archived, rest=asked, trades=trades)
    assert found.rule == verdict
    if "REST has no" in evidence:
        evidence = evidence.format({"before": "before 1970-01-01 00:06", "after": "after 1970-01-01 00:03"}[end])
    assert evidence.format({"before": "began", "after": "ended"}[end]) in found.evidence
    assert [(r.first, r.last, r.count) for r in found.ranges] == [(4 * MINUTE, 5 * MINUTE, 2)]


@pytest.mark.parametrize(
    ("verdict", "severity"),
    [
        *((v, Severity.INFO) for v in ("outage", "suspended", "quiet", "not_listed", "healed")),
        ("unpublished", Severity.WARN),
        *((v, Severity.ERROR) for v in ("archive_defect", "unexplained")),
    ],
)
def test_verdict_decides_the_result_of_the_check(verdict: str, severity: Severity) -> None:
    assert VERDICT_SEVERITY[Verdict(verdict)] is severity


def test_each_range_has_its_own_verdict() -> None:
    missing = Missing(minutes(4, 5, 8, 20), before=minutes(0, 1))
    found = classify_candles(
        KEY, missing, minutes(11, 12), minutes(15), archived=True, rest=NO_ANSWER, trades=trades_at(3, 4.5, 7, 9, 11)
    )
    told = {(f.rule, f.count, tuple((r.first // MINUTE, r.last // MINUTE) for r in f.ranges)) for f in found}
    assert told == {
        ("healed", 2, ((11, 12),)),
        ("archive_defect", 2, ((4, 5),)),
        ("outage", 1, ((8, 8),)),
        ("unpublished", 3, ((0, 1), (20, 20))),
        ("quiet", 1, ((15, 15),)),
    }


@pytest.mark.parametrize(
    ("archived", "asked", "verdict"),
    [
        (True, ANSWERED, Verdict.UNEXPLAINED),
        (True, NO_ANSWER, Verdict.UNPUBLISHED),
        (True, None, Verdict.UNPUBLISHED),
        (False, ANSWERED, Verdict.UNPUBLISHED),
    ],
)
def test_missing_ids(archived: bool, asked: RestAnswer | None, verdict: Verdict) -> None:
    answers = [AnsweredIds(1, 20, asked)] if asked else []
    (found,) = classify_trades([(5, 7), (10, 10)], NONE, archived=archived, asked=answers)
    assert (found.rule, found.count) == (verdict, 4)
    assert [(r.first, r.last) for r in found.ranges] == [(5, 7), (10, 10)]


def test_filled_ids_and_used_up_weight_are_distinct() -> None:
    healed, cut = classify_trades([], np.array([5, 6, 9]), archived=True, asked=[AnsweredIds(5, 9, ANSWERED)], cut=True)
    assert (healed.rule, healed.count, len(healed.ranges)) == ("healed", 3, 2)
    assert (cut.rule, cut.severity) == ("unpublished", Severity.WARN)
    assert "MARKET_DATA_REST_TRADES_WEIGHT" in cut.message


def test_each_run_of_ids_is_classified_by_its_own_request() -> None:
    answers = [
        AnsweredIds(11, 12, NO_ANSWER),
        AnsweredIds(5, 7, ANSWERED),
        AnsweredIds(8, 8, RestAnswer(answered=True, elsewhere=True)),
    ]
    found = classify_trades([(5, 12), (20, 21)], NONE, archived=True, asked=answers)
    assert {(one.rule, tuple((r.first, r.last) for r in one.ranges)) for one in found} == {
        ("unexplained", ((5, 7),)),
        ("outage", ((8, 8),)),
        ("unpublished", ((9, 10), (20, 21))),
        ("unpublished", ((11, 12),)),
    }
    again = classify_trades([(5, 12), (20, 21)], NONE, archived=True, asked=answered_ids(found))
    assert {one.rule: one.count for one in again if one.rule != "unpublished"} == {"unexplained": 3, "outage": 1}
    assert sorted(found, key=str) == sorted(again, key=str)
